"""What lies in a robomimic file, read without following links: the demonstrations' arrays, their attributes, the filters.

HDF5's own calls are used instead of h5py's objects, which take several times as long for a thousand demonstrations.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np
from h5py import h5a, h5d, h5g, h5l, h5o, h5t  # type: ignore[attr-defined]

from ...spec import KinoiseError
from .probe import PROBER

MAGIC = b"\x89HDF\r\n\x1a\n"
ACTIONS, OBS, NEXT_OBS = "actions", "obs", "next_obs"
NESTED = 4
"""Groups within groups at most: hard links can make circles."""
SPARE, MOST = 2**26, 1100
"""Bytes that any array may have, and how many times smaller than its numbers it may be stored: deflate's most is 1032."""
BROKEN = (OSError, RuntimeError, KeyError, ValueError, TypeError, AttributeError, OverflowError, MemoryError)
"""What h5py raises for files whose structure is damaged."""


class Array(NamedTuple):
    """An array of a demonstration; `shape` is None for one without data, `dtype` for a type that numpy lacks."""

    shape: tuple[int, ...] | None
    dtype: np.dtype | None

    @property
    def numeric(self) -> bool:
        return self.dtype is not None and self.dtype.kind in "biuf"

    def __str__(self) -> str:
        return f"{self.dtype}{[] if self.shape is None else list(self.shape)}"


Known = dict[str, tuple[h5t.TypeID, np.dtype | None]]
"""HDF5's and numpy's type of an array, by its path: comparing types takes a fraction of translating them."""


class Demo(NamedTuple):
    """A demonstration's metadata. `arrays` by their path in it; `problems` are of the reading."""

    name: str
    arrays: dict[str, Array]
    attributes: dict[str, Any]
    groups: tuple[str, ...]
    problems: tuple[str, ...]


@contextmanager
def opened(path: Path) -> Iterator[h5py.File]:
    """The file, for reading. Raises KinoiseError for one that is no HDF5, is cut short or damaged."""
    with readable(str(path)):
        file = h5py.File(path, "r", locking="best-effort")
    try:
        yield file
    finally:
        file.close()


@contextmanager
def readable(place: str) -> Iterator[None]:
    """Turns what h5py says of a damaged file into one line about `place`."""
    try:
        yield
    except BROKEN as error:
        raise KinoiseError(f"{place}: {unreadable(error)}") from error


def unreadable(error: BaseException) -> str:
    said = " ".join(str(error).split())
    if "truncated" in said:
        return f"it is cut short ({said}). Copy or write it again."
    if "signature not found" in said:
        return "it is no HDF5 file, or its beginning is damaged. Check the path, or copy it again."
    return f"it can't be read ({said or type(error).__name__}). Copy or write it again."


def numbered(name: str) -> tuple[Any, ...]:
    """Sorts names by the numbers in them: demo_2 before demo_10."""
    parts = enumerate(re.split(r"([0-9]+)", name))
    return tuple((index % 2, int(part) if index % 2 else part) for index, part in parts)


def demo(data: h5g.GroupID, name: str, wanted: tuple[str, ...], known: Known) -> Demo:
    """The metadata of demonstration `name`: its arrays, and of its attributes those that are `wanted`."""
    arrays: dict[str, Array] = {}
    groups: list[str] = []
    problems: list[str] = []
    attributes: dict[str, Any] = {}
    try:
        group = h5o.open(data, name.encode("utf-8", "surrogateescape"))
        if not isinstance(group, h5g.GroupID):
            return Demo(name, arrays, attributes, (), ("is no group: expected a demonstration. Remove it.",))
        _walk(group, "", arrays, groups, problems.append, known)
        for key in wanted:
            if h5a.exists(group, key.encode()):
                attributes[key] = attribute(group, key)
    except BROKEN as error:
        problems.append(unreadable(error))
    return Demo(name, arrays, attributes, tuple(groups), tuple(problems))


def attribute(owner: h5g.GroupID, name: str) -> Any:
    """Text as str, a number as Python's, anything else as an array; None where there is no value."""
    found = h5a.open(owner, name.encode("utf-8", "surrogateescape"))
    if found.shape is None:
        return None
    array = np.empty(found.shape, found.dtype)
    if array.size:
        found.read(array)
    value = array[()] if array.ndim == 0 else array
    if isinstance(value, bytes):
        return value.decode("utf-8", "surrogateescape")
    return value.item() if isinstance(value, np.generic) else value


def attribute_names(owner: h5g.GroupID) -> list[str]:
    return [
        h5a.open(owner, index=index).name.decode("utf-8", "surrogateescape")  # type: ignore[union-attr]
        for index in range(h5a.get_num_attrs(owner))
    ]


def members(group: h5g.GroupID) -> list[tuple[str, bool]]:
    """Names, and whether each is a part of this file rather than a link to elsewhere."""
    found: list[tuple[str, bool]] = []

    def add(name: bytes, info: h5l.LinkInfo) -> None:
        found.append((name.decode("utf-8", "surrogateescape"), info.type == h5l.TYPE_HARD))

    group.links.iterate(add, info=True)
    return found


def filters(file: h5py.File, report: Callable[[str], None]) -> dict[str, set[str]]:
    """Names of demonstrations by the name of the filter (`mask/<filter>`)."""
    found: dict[str, set[str]] = {}
    if "mask" not in list(file):
        return found
    group = h5o.open(file.id, b"mask") if dict(members(file.id))["mask"] else None
    if not isinstance(group, h5g.GroupID):
        report("mask is no group of this file: expected mask/<filter>, lists of demonstrations. Its filters are not read.")
        return found
    for name, here in members(group):
        try:
            dataset = h5py.Dataset(h5d.open(group, name.encode("utf-8", "surrogateescape"))) if here else None
            if dataset is None or dataset.shape is None or h5py.check_string_dtype(dataset.dtype) is None:
                report(f"mask/{name} is no list of text: expected names of demonstrations. The filter is not read.")
                continue
            found[name] = {bytes(item).decode("utf-8", "surrogateescape") for item in np.atleast_1d(held(dataset)[()]).ravel()}
        except BROKEN as error:
            report(f"mask/{name}: {unreadable(error)}")
    return found


def held(dataset: h5py.Dataset) -> h5py.Dataset:
    """The array; raises ValueError for one of which `excess` has something to say."""
    if said := excess(dataset.id, dataset.shape, dataset.dtype):
        raise ValueError(said)
    return dataset


def excess(dataset: h5d.DatasetID, shape: tuple[int, ...] | None, dtype: np.dtype | None) -> str:
    """What is wrong with an array of which the file holds too little for its size; a few bytes may claim any, all of it fill
    value. "" for what may be read: up to SPARE bytes and MOST times what is stored."""
    claimed = 0 if shape is None or dtype is None else math.prod(shape) * dtype.itemsize
    if claimed <= SPARE:  # what is stored takes long to find out where there are many chunks
        return ""
    stored = dataset.get_storage_size()
    return "" if claimed <= SPARE + MOST * stored else f"it claims {claimed:,} bytes, of which the file holds {stored:,}"


def elsewhere(dataset: h5py.Dataset) -> bool:
    """Whether an array's numbers lie in other files, which are not followed."""
    created = dataset.id.get_create_plist()
    return created.get_layout() == h5d.VIRTUAL or created.get_external_count() > 0


class Contents(NamedTuple):
    """A file's metadata. `attributes` are those of `data`; `unread` says what else there is, a line each; `links`
    is how many demonstrations were reported as such and left out."""

    attributes: dict[str, Any]
    demos: list[Demo]
    masks: dict[str, set[str]]
    unread: list[str]
    links: int


def contents(path: Path, wanted: tuple[str, ...], chosen: str | None, report: Callable[[str], None]) -> Contents:
    """The metadata of the file and of its demonstrations, in the order of their numbers.

    Args:
        wanted: the demonstrations' attributes to read.
        chosen: a filter's name, for the demonstrations that it lists; None is all.
        report: takes what is wrong with a filter or a demonstration.

    Raises:
        KinoiseError: the file can't be read, has no demonstrations, or no such filter, or that lists none.
    """
    PROBER.walk(path)
    with opened(path) as file, readable(str(path)):
        there = dict(members(file.id))
        if not there.get("data") or not isinstance(file["data"], h5py.Group):
            raise KinoiseError(
                f"{path}: the group 'data' is missing, the file holds {sorted(there)}: expected data/demo_0, ..."
            )
        data = file["data"].id
        names = {name: here for name, here in sorted(members(data), key=lambda item: numbered(item[0]))}
        masks = filters(file, lambda problem: report(f"{path}: {problem}"))
        stale = {name: sorted(inside - names.keys(), key=numbered) for name, inside in masks.items()}
        if absent := stale.pop(chosen, []) if chosen else []:
            report(f"{path}: mask/{chosen} lists {', '.join(absent[:5])}, which data lacks. Write the filter again.")
        if not names:
            raise KinoiseError(f"{path}: data holds no episodes: expected data/demo_0, ... Record some.")
        if chosen is not None:
            listed = _listed(path, masks, chosen)
            names = {name: here for name, here in names.items() if name in listed}
            if not names:
                raise KinoiseError(f"{path}: filter '{chosen}' lists no episode that data has. Choose another.")
        demos: list[Demo] = []
        links = 0
        known: Known = {}
        for name, here in names.items():
            if here:
                demos.append(demo(data, name, wanted, known))
            else:
                links += 1
                report(f"{path}: data/{name} is a link, and links are not followed. Copy what it points at.")
        attributes = {name: attribute(data, name) for name in attribute_names(data)}
        unread = [f"mask/{name}: {', '.join(absent[:5])}, which data lacks" for name, absent in stale.items() if absent]
        unread += [f"{name}: not a part of the format" for name in there if name not in ("data", "mask")]
        if demos and not demos[0].problems:
            first = attribute_names(h5o.open(data, demos[0].name.encode("utf-8", "surrogateescape")))
            unread += [f"attribute {name} of {demos[0].name} and others" for name in first if name not in wanted]
        groups = dict.fromkeys(group for item in demos for group in item.groups if group != NEXT_OBS)
        unread += [f"{group}: its arrays" for group in groups]
        return Contents(attributes, demos, masks, unread, links)


def _listed(path: Path, masks: dict[str, set[str]], chosen: str) -> set[str]:
    if chosen not in masks:
        raise KinoiseError(f"{path}: filter '{chosen}' is unknown; the file has {', '.join(sorted(masks)) or 'none'}.")
    if not masks[chosen]:
        raise KinoiseError(f"{path}: filter '{chosen}' is empty: expected names of episodes. Choose another.")
    return masks[chosen]


def _walk(
    group: h5g.GroupID, within: str, arrays: dict[str, Array], groups: list[str], problem: Callable[[str], None], known: Known
) -> None:
    for name, here in members(group):
        path = f"{within}{name}"
        if path == NEXT_OBS:
            groups.append(path)
        elif not here:
            problem(f"{path} is a link to elsewhere, and links are not followed: expected an array. Copy what it points at.")
        else:
            item = h5o.open(group, name.encode("utf-8", "surrogateescape"))
            if isinstance(item, h5d.DatasetID):
                arrays[path] = Array(item.shape, _dtype(item, path, known))
                if said := excess(item, *arrays[path]):
                    problem(f"{path}: {said}. Copy or write it again.")
            elif isinstance(item, h5g.GroupID) and (path == OBS or within.startswith(f"{OBS}/")):
                if path.count("/") > NESTED:
                    problem(f"{path} lies deeper than {NESTED} groups: expected an array. Flatten it.")
                else:
                    _walk(item, f"{path}/", arrays, groups, problem, known)
            else:
                groups.append(path)


def _dtype(dataset: h5d.DatasetID, path: str, known: Known) -> np.dtype | None:
    kind = dataset.get_type()
    before = known.get(path)
    if before is None or not before[0].equal(kind):
        try:
            known[path] = (kind, dataset.dtype)
        except TypeError:  # a type of HDF5's that numpy lacks
            known[path] = (kind, None)
    return known[path][1]
