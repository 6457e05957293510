"""diffusion_policy's zarr layout, with whatever compression zarr reads, in a folder or a zip.

    STORE/data/action           [steps, d]
    STORE/data/<key>            [steps, ...]   images uint8 (or whole float numbers) [height, width, 3], else states
    STORE/meta/episode_ends     [episodes]     one past each episode's last step

The files don't say how many steps a second has, nor what an action means. kinoise's own stores of this kind do: in the root's
attribute `kinoise` is what the native format keeps in `kinoise.json`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int64

from ...files import MALFORMED
from ...spec import Feature, KinoiseError, Spec
from ..base import (
    ACTION,
    AS_IT_IS,
    DONE,
    REWARD,
    SIM_STATE,
    SUCCESS,
    TIMESTAMP,
    Episode,
    Extra,
    Reading,
    Report,
    features,
    refuse,
)
from ..check import check_spec, extras_from_json
from ..decoded import DecodedStore
from ..long_texts import together
from .arrays import EMPTY_CHUNKS, ZarrArray, ZarrFiles, is_replay
from .rows import ZarrRows
from .writer import ATTRIBUTE, FORMAT, write_replay

ENDS = "meta/episode_ends"
BESIDE = (REWARD, DONE, SUCCESS, TIMESTAMP, SIM_STATE)
SMALLEST_IMAGE = 16
"""Sides from which on an array of floats [height, width, 3] is taken for a picture (Push-T's `img` is one), and arrays of other
shapes for none, but for no state either."""


class ReplayStore(DecodedStore):
    """A DecodedStore over a zarr group; opening it reads JSON, the names of the chunks' files and `meta/episode_ends`."""

    format = "zarr"

    def __init__(self, path: Path, reading: Reading = AS_IT_IS, report: Report = refuse) -> None:
        """Raises KinoiseError when the store can't be read, or its rate is neither in it nor in `reading`.

        `report` takes arrays that are unfit (wrong length, no numbers) and chunks without a file: without it, reading would go
        on without those arrays, and without the episodes that lie in such chunks.
        """
        self.path = Path(path)
        if reading.filter is not None:
            raise KinoiseError(f"{self.path} has no filters, so filter={reading.filter} names nothing. Leave it out.")
        files = ZarrFiles(self.path)
        self._rows = ZarrRows(self.path, files.root)
        attributes = files.attributes()
        header = attributes.pop(ATTRIBUTE, None)
        notes: list[str] = []
        ends = self._episode_ends(files)
        self._arrays = self._named(files, int(ends[-1]), report, notes)
        self.texts, self.text, self.info = ("",), np.zeros(len(ends), np.int64), [{} for _ in ends]
        self.extras, self.meta = {}, {}
        spec = None if header is None else self._adopt(header, notes)
        covered = self.extras.keys() | (features(spec).keys() if spec else ())
        found = {key: _derived(key, array, notes) for key, array in self._arrays.items() if key not in covered}
        self.extras |= {key: item for key, item in found.items() if isinstance(item, Extra)}
        seen = {key: item for key, item in found.items() if isinstance(item, Feature)}
        self.spec = self._described(seen, reading.rate) if spec is None else _with(spec, seen)
        check_spec(self.spec)
        try:
            json.dumps(attributes, allow_nan=False)
            if attributes:
                told = self.meta.get("zarr")
                self.meta["zarr"] = {**(told if isinstance(told, dict) else {}), "attributes": attributes}
        except (ValueError, RecursionError):
            notes.append(f"the attributes {sorted(attributes)}: they hold NaN or infinity, or lists within lists without end")
        others = [name for name in files.arrays("meta") if name != ENDS]
        self.dropped = (*notes, *(f"{name}: only data and {ENDS} are read" for name in others))
        self._keep(ends, report)

    @classmethod
    def recognises(cls, path: Path) -> bool:
        return is_replay(path)

    @classmethod
    def write(cls, path: Path, spec: Spec, episodes: Iterable[Episode], meta: Mapping[str, Any] | None = None) -> list[str]:
        """See `write_replay`: plain zarr v2 with zstd, which diffusion_policy's ReplayBuffer reads. It can hold everything."""
        write_replay(path, spec, episodes, meta=meta)
        return []

    @property
    def original(self) -> Int64[np.ndarray, "episodes"]:
        return np.array([number for number, _, _ in self._spans], np.int64)

    def decode(self, episode: int, keys: Sequence[str]) -> dict[str, np.ndarray]:
        number, start, stop = self._spans[episode]
        known = features(self.spec)
        result = {}
        for key in keys:
            rows = self._rows.read(self._arrays[key].name, start, stop, f"episode {number}")
            where = f"{self.path}: {self._arrays[key].name} of episode {number}"
            if key in self.extras:
                result[key] = np.ascontiguousarray(rows, self.extras[key].dtype)
            elif known[key].kind == "image":
                result[key] = _picture(rows, where)
            else:
                with np.errstate(over="ignore"):
                    numbers = np.ascontiguousarray(rows, np.float32).reshape(stop - start, *known[key].shape)
                if not np.isfinite(numbers).all():
                    step = int(np.argwhere(~np.isfinite(numbers))[0, 0])
                    raise KinoiseError(f"{where} is NaN or infinite at step {step}. Repair or remove the episode.")
                result[key] = numbers
        return result

    def _episode_ends(self, files: ZarrFiles) -> np.ndarray:
        array = files.array(ENDS)
        if array.missing:
            raise KinoiseError(f"{self.path}: {ENDS} lacks its file {array.missing[0][2]}. Copy the store again.")
        if array.dtype.kind not in "iu" or len(array.shape) != 1 or array.shape[0] == 0:
            raise KinoiseError(
                f"{self.path}: {ENDS} is {array.dtype}{list(array.shape)}, expected whole numbers, one for each "
                f"episode. Write the store again."
            )
        ends = self._rows.read(ENDS, 0, array.shape[0], "every episode").astype(np.int64)
        lengths = np.diff(ends, prepend=0)
        if np.any(lengths <= 0):
            bad = int(np.argmax(lengths <= 0))
            raise KinoiseError(
                f"{self.path}: {ENDS} must increase from above 0, but episode {bad} ends at {ends[bad]}. Write the store again."
            )
        return ends

    def _named(self, files: ZarrFiles, steps: int, report: Report, notes: list[str]) -> dict[str, ZarrArray]:
        """The arrays of `data` that can be read, by their keys; nested groups are joined by dots."""
        found: dict[str, ZarrArray] = {}
        for name in files.arrays("data"):
            key = name.removeprefix("data/").replace("/", ".")
            try:
                array = files.array(name)
                if array.shape[:1] != (steps,):
                    raise KinoiseError(
                        f"{self.path}: {name} has {array.shape[0] if array.shape else 'no'} steps, but {ENDS} ends at {steps}: "
                        f"the store is incomplete. Copy or write it again."
                    )
            except KinoiseError as error:
                if key == ACTION:
                    raise
                report(str(error))
                notes.append(f"{name}: it can't be read")
                continue
            if 0 in array.shape[1:]:
                notes.append(f"{name}: {list(array.shape[1:])} a step, which holds no numbers")
                continue
            if key in found:
                raise KinoiseError(f"{self.path}: {name} and {found[key].name} would both be called '{key}'. Rename one.")
            found[key] = array
        if ACTION not in found:
            raise KinoiseError(f"{self.path}: data/action is missing; data holds {sorted(found)}. Rename the actions' array.")
        return found

    def _described(self, seen: dict[str, Feature], rate: float | None) -> Spec:
        """The spec of a store that kinoise didn't write."""
        action = seen.pop(ACTION, None)
        if action is None or action.kind != "state":
            raise KinoiseError(f"{self.path}: data/action must be [steps, d], came {list(self._arrays[ACTION].shape)}.")
        if rate is None:
            raise KinoiseError(_no_rate(self.path))
        return Spec(seen, action, float(rate), "absolute", language=False)

    def _adopt(self, header: Any, notes: list[str]) -> Spec | None:
        """The spec that kinoise once wrote, and with it texts, infos, extras and meta; None where the arrays are others."""
        try:
            spec, texts = Spec.from_json(header["spec"]), tuple(map(str, header["texts"]))
            text = np.array([item["text"] for item in header["episodes"]], np.int64)
            info = [together(item, header.get("long", ())) for item in header["episodes"]]
            meta = dict(header["meta"])
            extras = extras_from_json(header["extras"])
            wrong = self._differs({**features(spec), **extras}, len(info), texts, text)
            if header["format"] != FORMAT:
                wrong = f"its format is {header['format']!r}, not {FORMAT}"
            if not wrong:
                self.extras, self.texts, self.text, self.info, self.meta = extras, texts, text, info, meta
                return spec
        except (KinoiseError, *MALFORMED) as error:
            wrong = f"it is damaged: {error!r}"
        notes.append(f"the attribute {ATTRIBUTE} with names, units, texts and rate: {wrong}")
        return None

    def _differs(self, known: Mapping[str, Feature | Extra], episodes: int, texts: tuple[str, ...], text: np.ndarray) -> str:
        if episodes != len(self.info):
            return f"it has {episodes} episodes, {ENDS} {len(self.info)}"
        if sorted(set(text.tolist())) != list(range(len(texts))) or len(set(texts)) < len(texts):
            return "its texts are not the episodes' distinct instructions"
        for key, item in known.items():
            array = self._arrays.get(key)
            if array is None or array.shape[1:] != item.shape or array.dtype != item.dtype:
                return f"its '{key}' is {item.dtype}{list(item.shape)}, data has another or none"
        return ""

    def _keep(self, ends: np.ndarray, report: Report) -> None:
        """Leaves out the episodes whose chunks aren't all there."""
        spans = np.stack([np.concatenate([[0], ends[:-1]]), ends], 1)
        whole = np.ones(len(ends), bool)
        for array in self._arrays.values():
            if not array.missing:
                continue
            # Chunks come in the order of their rows: of those that end after an episode's start, the first is looked at.
            gaps = np.array([gap[:2] for gap in array.missing])
            nearest = gaps[:, 1].searchsorted(spans[:, 0], side="right")
            hit = np.append(gaps[:, 0], ends[-1])[nearest] < spans[:, 1]
            whole &= ~hit
            report(
                f"{self.path}: {array.name} lacks {len(gaps)} of its chunks' files ({array.missing[0][2]} is the first), in "
                f"{hit.sum()} of {len(ends)} episodes ({np.argmax(hit)} is the first). zarr would read zeros. Copy the store "
                f"again; if its writer leaves out chunks of zeros, as zarr 3 does, write it after {EMPTY_CHUNKS}."
            )
        if not whole.any():
            raise KinoiseError(f"{self.path}: every episode lacks chunks' files, nothing is left. Copy the store again.")
        kept = np.flatnonzero(whole)
        self.lost = len(ends) - len(kept)
        self._spans = [(int(number), int(spans[number, 0]), int(spans[number, 1])) for number in kept]
        self.ends = np.cumsum([stop - start for _, start, stop in self._spans], dtype=np.int64)
        if len(kept) < len(ends):
            said = [self.texts[index] for index in self.text[kept]]
            self.texts = tuple(dict.fromkeys(said))
            self.text = np.array([self.texts.index(item) for item in said], np.int64)
            self.info = [self.info[index] for index in kept]


def _with(spec: Spec, later: dict[str, Feature]) -> Spec:
    """`spec` with observations that were put beside its own."""
    return replace(spec, observations={**spec.observations, **later}) if later else spec


def _derived(key: str, array: ZarrArray, notes: list[str]) -> Feature | Extra:
    """What an array that nobody describes is, by its name, shape and dtype; what is lost of it goes to `notes`."""
    shape = array.shape[1:]
    if key in BESIDE or not shape:
        return Extra(array.dtype, shape)
    picture = len(shape) == 3 and shape[-1] == 3
    if picture and (array.dtype == np.uint8 or (array.dtype.kind == "f" and min(shape[:2]) >= SMALLEST_IMAGE)):
        if array.dtype != np.uint8:
            notes.append(f"{array.name}: {array.dtype} becomes uint8, the values stay")
        return Feature(shape, "image")
    if sum(side >= SMALLEST_IMAGE for side in shape) > 1:  # depth, channels first, ...: thousands of numbers are no state
        notes.append(
            f"{array.name}: {list(shape)} a step is no picture [height, width, 3], so it is kept beside the observations"
        )
        return Extra(array.dtype, shape)
    if len(shape) > 1:
        notes.append(f"{array.name}: {list(shape)} numbers a step become {int(np.prod(shape))} in a row")
    if array.dtype != np.float32 and not np.can_cast(array.dtype, np.float32):
        notes.append(f"{array.name}: {array.dtype} is rounded to float32")
    return Feature((int(np.prod(shape)),))


def _picture(rows: np.ndarray, where: str) -> np.ndarray:
    if rows.dtype == np.uint8:
        return np.ascontiguousarray(rows)
    with np.errstate(invalid="ignore"):
        whole = np.clip(rows, 0, 255).astype(np.uint8)
    if not np.array_equal(whole, rows):
        raise KinoiseError(
            f"{where} is {rows.dtype} from {rows.min():g} to {rows.max():g}: a picture needs whole numbers from 0 to 255. "
            f"Write it as uint8 (times 255, if it is from 0 to 1)."
        )
    return whole


def _no_rate(path: Path) -> str:
    return (
        f"{path} doesn't say how many steps a second has. Run kinoise convert '{path}' DATA format=kinoise rate=10, or give "
        f"data= a .yaml file with 'datasets: [{{path: {path}, rate: 10}}]'."
    )
