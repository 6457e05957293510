"""Several data sets as one, see `recipe.py` for the file that lists them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int64

from ...spec import KinoiseError, Spec, SpecMismatch, Stats
from ..base import (
    ACTION,
    AS_IT_IS,
    Episode,
    EpisodeStore,
    Extra,
    Reading,
    Report,
    check_indices,
    check_span,
    features,
    refuse,
    starts,
)
from ..stats import statistics
from .agreement import agreed
from .frames import Frame, fit_frames
from .recipe import EACH, SUFFIXES, Entry, read_recipe


class Mixture:
    """An EpisodeStore of the episodes of its members, one member after the other. `info["dataset"]` says whose one is.

    Extras are those that all members have, in one type; texts are the distinct ones of all; `meta` holds what the members
    agree on. What is left out is in `dropped`.

    `normalise: together` takes numbers as they are. With `each`, states and actions of the other members are laid over those
    of the first (see `fit_frames`): every member is then normalised by its own statistics, though the policy has one codec.
    Images are never changed, the gripper's dimensions only with `normalise_gripper`.

    Attributes:
        members: the data sets, each under the names of the mixture.
        names: theirs.
        member: for each episode the index of the data set that it comes from.
        weights: of the members' shares of the windows in training; None for as many as there are.
    """

    format = "mixture"

    def __init__(self, path: Path, reading: Reading = AS_IT_IS, report: Report = refuse) -> None:
        """Raises KinoiseError for a wrong file, data sets that can't be opened (all of them) or that don't go together (every
        difference), and for a `reading` of the whole: the file says for each data set how to read it."""
        self.path = Path(path)
        said = sorted(name for name, value in vars(reading).items() if value != getattr(AS_IT_IS, name) and name != "format")
        if said:
            raise KinoiseError(f"{path} says for each data set how to read it: write {', '.join(said)} there.")
        self.recipe, problems = read_recipe(self.path)
        opened = self._opened(report, problems)
        if problems:
            said = " ".join(f"{item}{'' if item.endswith('?') else ';'}" for item in problems).rstrip(";")
            remedy = "Paths are relative to the file; see docs/data.md, Mixtures."
            raise KinoiseError(f"{self.path}: {said}{'' if said.endswith('?') else '.'} {remedy}")
        self._join(opened)

    @classmethod
    def recognises(cls, path: Path) -> bool:
        return path.suffix in SUFFIXES and path.is_file()

    @classmethod
    def write(cls, path: Path, spec: Spec, episodes: Iterable[Episode], meta: Mapping[str, Any] | None = None) -> list[str]:
        raise KinoiseError(f"{path}: a mixture only lists data sets and holds none. Name another format: format=kinoise.")

    def replaced(self, members: Sequence[EpisodeStore]) -> Mixture:
        """The same mixture with other stores of the same data in the place of its members, in their order."""
        other = object.__new__(type(self))
        other.path, other.recipe = self.path, self.recipe
        other._join(members)
        return other

    def unframed(self) -> Mixture:
        """The same mixture with every member's own numbers, whatever `normalise` says."""
        other = self.replaced(self.members)
        other._each = False
        return other

    @property
    def keys(self) -> tuple[str, ...]:
        return (*self.spec.observations, ACTION)

    def read(self, key: str, start: int, stop: int) -> np.ndarray:
        check_span(start, stop, int(self.ends[-1]))
        first, last = self._last.searchsorted([start, max(start, stop - 1)], side="right").clip(max=len(self.members) - 1)
        parts = []
        for index in range(first, last + 1):
            shift, steps = int(self._first[index]), int(self._last[index] - self._first[index])
            found = self.members[index].read(key, min(max(start - shift, 0), steps), min(stop - shift, steps))
            parts.append(self._framed(index, key, found))
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def gather(self, key: str, indices: Int64[np.ndarray, "..."]) -> np.ndarray:
        check_indices(indices, int(self.ends[-1]))
        flat = indices.ravel()
        owner = self._last.searchsorted(flat, side="right")
        touched = np.flatnonzero(np.bincount(owner)) if flat.size else np.zeros(1, np.int64)
        if len(touched) == 1:
            index = int(touched[0])
            return self._framed(index, key, self.members[index].gather(key, indices - self._first[index]))
        dtype, shape = self.extras[key] if key in self.extras else Extra(*self._array(key))
        result = np.empty((flat.size, *shape), dtype)
        for index in touched.tolist():
            mine = np.flatnonzero(owner == index)
            result[mine] = self._framed(index, key, self.members[index].gather(key, flat[mine] - self._first[index]))
        return result.reshape(*indices.shape, *shape)

    def stats(self) -> dict[str, Stats]:
        """Of the values that `read` gives, exact as in `stats.statistics`, but for the percentiles of images (see `_merged`).

        Every step counts once, whatever the weights: shares in training don't change what a policy's numbers mean.
        """
        if self._stats is None:
            if len(self.members) == 1:
                self._stats = self.members[0].stats()
            else:
                found = statistics(self, keys=self._states)
                self._stats = {
                    key: found[key] if key in found else _merged([item.stats()[key] for item in self.members])
                    for key in self.keys
                }
        return self._stats

    def frames(self) -> dict[str, tuple[Spec, dict[str, Stats]]]:
        """By member, what a policy that learnt from this mixture needs in order to work in that member's own numbers: its spec,
        and the mixture's statistics in its numbers. {} where all members have the same."""
        if not self._each:
            return {}
        stats, members = self.stats(), zip(self.names, self._specs, self.laid, strict=True)
        return {
            name: (spec, {key: frames[key].undone(item) if key in frames else item for key, item in stats.items()})
            for name, spec, frames in members
        }

    def _opened(self, report: Report, problems: list[str]) -> list[EpisodeStore]:
        """The data sets that the file lists; what keeps one from being opened goes to `problems`."""
        from .. import open_store

        members = []
        for entry in self.recipe.entries:
            if entry.reading.format in (None, self.format) and self.recognises(entry.path):  # unopened: it may list this one
                problems.append(f"{entry.name}: {entry.path} is a mixture too. List its data sets in this one")
                continue
            try:
                members.append(open_store(entry.path, entry.reading, report))
            except KinoiseError as error:
                problems.append(f"{entry.name}: {str(error).rstrip('.')}")
        return members

    def _join(self, members: Sequence[EpisodeStore]) -> None:
        entries = self.recipe.entries
        self.members, self.weights, self._each = tuple(members), self.recipe.weights, self.recipe.normalise == EACH
        self.names = tuple(item.name for item in entries)
        instructed = [_instructed(*pair) for pair in zip(entries, members, strict=True)]
        self._specs = [spec for spec, _ in instructed]
        try:
            self.spec = agreed(dict(zip(self.names, self._specs, strict=True)), self._each)
        except SpecMismatch as error:
            raise SpecMismatch(f"{self.path}: {error}") from error
        self._last: Int64[np.ndarray, "members"] = np.cumsum([int(item.ends[-1]) for item in members])
        self._first = starts(self._last)
        self.ends = np.concatenate([item.ends + first for item, first in zip(members, self._first, strict=True)])
        self.member: Int64[np.ndarray, "episodes"] = np.repeat(np.arange(len(members)), [len(item.ends) for item in members])
        known: dict[str, int] = {}
        numbers = [np.array([known.setdefault(text, len(known)) for text in texts]) for _, texts in instructed]
        self.text = np.concatenate([number[item.text] for number, item in zip(numbers, members, strict=True)])
        self.texts = tuple(known)
        self.info = [
            {**info, "dataset": f"{name}/{info['dataset']}" if "dataset" in info else name}
            for name, item in zip(self.names, members, strict=True)
            for info in item.info
        ]
        self.extras = _shared([item.extras for item in members])
        self.meta = _shared([item.meta for item in members])
        self.dropped = tuple(self._dropped())
        self.lost = sum(item.lost for item in members)
        self.original = np.concatenate([item.original for item in members])
        self._stats: dict[str, Stats] | None = None

    def _dropped(self) -> list[str]:
        lines = [f"{name}: {line}" for name, item in zip(self.names, self.members, strict=True) for line in item.dropped]
        for what, kept in (("extras", self.extras), ("meta", self.meta)):
            for name, item in zip(self.names, self.members, strict=True):
                lost = sorted(getattr(item, what).keys() - kept.keys())
                lines += [f"{name}: {what} {lost}, which not all data sets have, or not alike"] if lost else []
        return lines

    @property
    def notes(self) -> list[str]:
        """What became of the members' numbers, a line each."""
        if not self._each or len(self.members) == 1:
            return []
        return [f"normalise: each: states and actions are in the numbers of {self.names[0]}"]

    @cached_property
    def laid(self) -> list[dict[str, Frame]]:
        """For each member, by key, how its numbers are laid over the first one's; where nothing changes there is none. The
        members' states are read for it, once. Raises KinoiseError for those that can't be read, or are NaN."""
        if not self._each or len(self.members) == 1:
            return [{} for _ in self.members]
        found = [statistics(item, keys=self._states) for item in self.members]
        result: list[dict[str, Frame]] = [{} for _ in self.members]
        for key in self._states:
            kept = self.spec.gripper if key == ACTION and not self.recipe.normalise_gripper else ()
            for frames, frame in zip(result, fit_frames([item[key] for item in found], kept), strict=True):
                if frame is not None:
                    frames[key] = frame
        return result

    @property
    def _states(self) -> list[str]:
        return [key for key, feature in features(self.spec).items() if feature.kind == "state"]

    def _framed(self, index: int, key: str, values: np.ndarray) -> np.ndarray:
        frame = self.laid[index].get(key)
        return values if frame is None else frame.apply(values)

    def _array(self, key: str) -> tuple[np.dtype, tuple[int, ...]]:
        feature = features(self.spec)[key]
        return feature.dtype, feature.shape


def _instructed(entry: Entry, store: EpisodeStore) -> tuple[Spec, tuple[str, ...]]:
    """A member's spec and texts, with the instruction that the file gives its episodes that have none."""
    if entry.instruction is None:
        return store.spec, store.texts
    if store.spec.language and all(store.texts):
        raise KinoiseError(f"{entry.name}: every episode of {store.path} has an instruction: leave out instruction.")
    return replace(store.spec, language=True), tuple(text or entry.instruction for text in store.texts)


def _shared(values: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What all of them have, and alike."""
    return {key: item for key, item in values[0].items() if all(key in other and other[key] == item for other in values)}


def _merged(stats: Sequence[Stats]) -> Stats:
    """Statistics of a camera out of the members', which may have been taken long ago: millions of pictures aren't read again.

    Mean, deviation and extremes are exact. The percentiles, which no policy uses, are means of the members', by steps.
    """
    count = np.array([item.count for item in stats])
    share = (count / count.sum())[:, None]
    table = {name: np.array([getattr(item, name) for item in stats]) for name in ("mean", "std", "min", "max", "q01", "q99")}
    mean, q01, q99 = ((share * table[name]).sum(0) for name in ("mean", "q01", "q99"))
    std = np.sqrt((share * (table["std"] ** 2 + (table["mean"] - mean) ** 2)).sum(0))
    numbers = (mean, std, table["min"].min(0), table["max"].max(0), q01, q99)
    return Stats(*(tuple(item.tolist()) for item in numbers), count=int(count.sum()))
