"""kinoise's own format: diffusion_policy's zarr layout, uncompressed, with the spec beside it.

    DATA/data/<key>/          one array [steps, *shape] for each observation key and for "action"
    DATA/extra/<key>/         one array for each extra, where there are any
    DATA/meta/episode_ends/   int64 [episodes]
    DATA/kinoise.json         {"format": 1, "kinoise": version, "spec": Spec, "texts": [instructions],
                               "episodes": [{"text": index in texts, "info": Episode.info, "long": see long_texts.apart}],
                               "long": [the long texts in the infos],
                               "extras": {key: {"dtype": numpy's name, "shape": of a step}}, "meta": EpisodeStore.meta}

Everything but `kinoise.json` is plain zarr (v2 format): diffusion_policy's ReplayBuffer, or `zarr.open(DATA)`, reads it as it
is. Chunks hold whole rows, uncompressed, so that a chunk file is the array's memory and can be mapped instead of read.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int64

from .. import __version__
from ..files import MALFORMED, new_directory, read_json, write_json
from ..spec import KinoiseError, Spec, Stats
from .base import AS_IT_IS, Episode, Extra, Reading, Report, features, refuse
from .check import check_episode, check_meta, check_spec, extras_from_json, extras_of, label
from .chunks import ChunkReader, ChunkWriter
from .long_texts import apart, together
from .stats import statistics

FORMAT = 1
CHUNK_BYTES = 2**26
SPEC_FILE = "kinoise.json"


class NativeStore:
    """An EpisodeStore over memory-mapped files: opening it reads the metadata alone."""

    format = "kinoise"
    lost = 0

    def __init__(self, path: Path, reading: Reading = AS_IT_IS, report: Report = refuse) -> None:
        """Raises KinoiseError when a file is missing or cut short, or the files disagree."""
        self.path, self.dropped = Path(path), ()
        if reading.filter is not None:
            raise KinoiseError(f"{self.path} has no filters, so filter={reading.filter} names nothing. Leave it out.")
        if not (self.path / SPEC_FILE).exists():
            raise KinoiseError(_no_spec_file(self.path))
        header = read_json(self.path / SPEC_FILE)
        self.spec, self.texts, self.text, self.info = _parsed(header, self.path / SPEC_FILE)
        self.extras, self.meta = _beside(header, self.path / SPEC_FILE)
        ends = ChunkReader(self.path / "meta" / "episode_ends", np.dtype(np.int64), ())
        self.ends: Int64[np.ndarray, "episodes"] = np.array(ends.read(0, ends.rows))
        self._check_ends()
        wanted = features(self.spec)
        unknown = sorted({item.name for item in (self.path / "data").glob("[!.]*")} - wanted.keys())
        if unknown:
            raise KinoiseError(f"{self.path}/data holds {unknown}, which the spec in {SPEC_FILE} lacks: remove or add them.")
        self._arrays = {
            key: ChunkReader(self.path / "data" / key, feature.dtype, feature.shape) for key, feature in wanted.items()
        }
        self._arrays |= {key: ChunkReader(self.path / "extra" / key, *extra) for key, extra in self.extras.items()}
        steps = int(self.ends[-1])
        for key, array in self._arrays.items():
            if array.rows != steps:
                raise KinoiseError(
                    f"{self.path}: {key} has {array.rows} steps, meta/episode_ends ends at {steps}: "
                    f"the store is damaged. Write it again."
                )
        self._stats: dict[str, Stats] | None = None

    @classmethod
    def recognises(cls, path: Path) -> bool:
        return (path / SPEC_FILE).exists()

    @classmethod
    def write(cls, path: Path, spec: Spec, episodes: Iterable[Episode], meta: Mapping[str, Any] | None = None) -> list[str]:
        """See `write_store`; this format can hold everything."""
        write_store(path, spec, episodes, meta=meta)
        return []

    @property
    def original(self) -> Int64[np.ndarray, "episodes"]:
        return np.arange(len(self.ends))

    @property
    def keys(self) -> tuple[str, ...]:
        return tuple(features(self.spec))

    def read(self, key: str, start: int, stop: int) -> np.ndarray:
        return self._arrays[key].read(start, stop)

    def gather(self, key: str, indices: Int64[np.ndarray, "..."]) -> np.ndarray:
        return self._arrays[key].gather(indices)

    def stats(self) -> dict[str, Stats]:
        if self._stats is None:
            self._stats = statistics(self)
        return self._stats

    def _check_ends(self) -> None:
        file = self.path / "meta" / "episode_ends"
        if len(self.ends) != len(self.info):
            raise KinoiseError(
                f"{file} holds {len(self.ends)} episodes, {SPEC_FILE} {len(self.info)}: the store is damaged. Write it again."
            )
        if np.any(np.diff(self.ends, prepend=0) <= 0):
            bad = int(np.argmax(np.diff(self.ends, prepend=0) <= 0))
            raise KinoiseError(
                f"{file} must increase from above 0, but episode {bad} ends at {self.ends[bad]}: "
                f"the store is damaged. Write it again."
            )


def write_store(
    path: Path,
    spec: Spec,
    episodes: Iterable[Episode],
    *,
    meta: Mapping[str, Any] | None = None,
    chunk_bytes: int = CHUNK_BYTES,
) -> None:
    """Streams `episodes` into a new store at `path`, which appears only when all of it is on disk.

    One episode is in memory at a time. Raises KinoiseError, leaving nothing behind, when `path` exists, there are no episodes,
    or one of them does not fit the spec (see `check.problems`) or has other extras than the first.
    """
    path = Path(path)
    check_spec(spec)
    check_meta(meta)
    if path.exists() and not (path.is_dir() and not any(path.iterdir())):
        raise KinoiseError(f"{path} exists already. Choose another out=, or remove it first.")
    with new_directory(path) as temporary, ExitStack() as stack:
        writers = {
            key: stack.enter_context(ChunkWriter(temporary / "data" / key, feature.dtype, feature.shape, chunk_bytes))
            for key, feature in features(spec).items()
        }
        beside: dict[str, ChunkWriter] = {}
        extras: dict[str, Extra] = {}
        texts: dict[str, int] = {}
        entries, ends, steps = [], [], 0
        for index, episode in enumerate(episodes):
            if index == 0:
                extras = extras_of(episode)
            steps += check_episode(spec, extras, episode, label(index, episode))
            if index == 0:
                beside = {
                    key: stack.enter_context(ChunkWriter(temporary / "extra" / key, *extra, chunk_bytes))
                    for key, extra in extras.items()
                }
            for key, writer in writers.items():
                writer.append(episode.arrays[key])
            for key, writer in beside.items():
                writer.append(episode.extras[key])
            ends.append(steps)
            entries.append({"text": texts.setdefault(episode.instruction, len(texts)), "info": dict(episode.info)})
        if not entries:
            raise KinoiseError(f"no episodes to write to {path}: a store needs at least one.")
        with ChunkWriter(temporary / "meta" / "episode_ends", np.dtype(np.int64), (), chunk_bytes) as writer:
            writer.append(np.array(ends, np.int64))
        stack.close()
        write_header(temporary, spec, list(texts), entries, extras, meta or {})


def write_header(
    folder: Path,
    spec: Spec,
    texts: list[str],
    episodes: list[dict[str, Any]],
    extras: Mapping[str, Extra],
    meta: Mapping[str, Any],
) -> None:
    """The groups' metadata and `kinoise.json`, which completes a store whose arrays are there."""
    for group in (folder, folder / "data", folder / "meta", *([folder / "extra"] if extras else [])):
        write_json(group / ".zgroup", {"zarr_format": 2})
    beside = {key: {"dtype": extra.dtype.name, "shape": list(extra.shape)} for key, extra in extras.items()}
    entries, long = apart(episodes)
    header = {"format": FORMAT, "kinoise": __version__, "spec": spec.to_json(), "texts": texts, "episodes": entries}
    write_json(folder / SPEC_FILE, {**header, "long": long, "extras": beside, "meta": dict(meta)})


def _no_spec_file(path: Path) -> str:
    if not path.is_dir():
        return f"{path} is not a folder: expected a data set written by kinoise collect."
    return f"{path} holds no {SPEC_FILE}: expected a data set written by kinoise collect. Check the path or collect it again."


def _beside(value: Any, file: Path) -> tuple[dict[str, Extra], dict[str, Any]]:
    """Extras and meta, which a store written before there were any lacks."""
    try:
        return extras_from_json(value.get("extras", {})), dict(value.get("meta", {}))
    except MALFORMED as error:
        raise KinoiseError(f"{file}: its extras or meta are damaged ({error!r}): it was edited. Write it again.") from error


def _parsed(value: Any, file: Path) -> tuple[Spec, tuple[str, ...], np.ndarray, list[dict[str, Any]]]:
    try:
        version = value["format"]
        if version != FORMAT:
            raise KinoiseError(f"format {version!r}, expected {FORMAT}: another kinoise wrote it. Use that, or write it again.")
        spec = Spec.from_json(value["spec"])
        check_spec(spec)
        texts = tuple(value["texts"])
        text = np.array([item["text"] for item in value["episodes"]], np.int64)
        info = [together(item, value.get("long", ())) for item in value["episodes"]]
    except KinoiseError as error:
        raise KinoiseError(f"{file}: {error}") from error
    except MALFORMED as error:
        raise KinoiseError(f"{file} lacks what a store needs ({error!r}): it was edited or damaged. Write it again.") from error
    if not all(isinstance(item, str) for item in texts) or len(set(texts)) < len(texts) or set(text) != set(range(len(texts))):
        raise KinoiseError(f"{file}: its texts are not the episodes' distinct instructions: it was edited. Write it again.")
    return spec, texts, text, info
