"""kinoise's own format: diffusion_policy's zarr layout, uncompressed, with the spec beside it.

    DATA/data/<key>/          one array [steps, *shape] for each observation key and for "action"
    DATA/meta/episode_ends/   int64 [episodes]
    DATA/kinoise.json         {"format": 1, "kinoise": version, "spec": Spec, "texts": [instructions],
                               "episodes": [{"text": index in texts, "info": Episode.info}]}

Everything but `kinoise.json` is plain zarr (v2 format): diffusion_policy's ReplayBuffer, or `zarr.open(DATA)`, reads it as it
is. Chunks hold whole rows, uncompressed, so that a chunk file is the array's memory and can be mapped instead of read.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Int64

from .. import __version__
from ..files import new_directory, read_json, write_json
from ..spec import KinoiseError, Spec, Stats
from .base import ACTION, Episode, features
from .chunks import ChunkReader, ChunkWriter
from .stats import statistics

FORMAT = 1
CHUNK_BYTES = 2**26
SPEC_FILE = "kinoise.json"


class NativeStore:
    """An EpisodeStore over memory-mapped files: opening it reads the metadata alone."""

    format: ClassVar[str] = "zarr"

    def __init__(self, path: Path) -> None:
        """Raises KinoiseError when a file is missing or cut short, or the files disagree."""
        self.path = Path(path)
        if not (self.path / SPEC_FILE).exists():
            raise KinoiseError(_no_spec_file(self.path))
        self.spec, self.texts, self.text, self.info = _read_spec_file(self.path / SPEC_FILE)
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
        steps = int(self.ends[-1])
        for key, array in self._arrays.items():
            if array.rows != steps:
                raise KinoiseError(
                    f"{self.path}: data/{key} has {array.rows} steps, meta/episode_ends ends at {steps}: "
                    f"the store is damaged. Write it again."
                )
        self._stats: dict[str, Stats] | None = None

    @classmethod
    def recognises(cls, path: Path) -> bool:
        return any((path / name).exists() for name in (SPEC_FILE, ".zgroup", "zarr.json"))

    @property
    def keys(self) -> tuple[str, ...]:
        return tuple(self._arrays)

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


def write_store(path: Path, spec: Spec, episodes: Iterable[Episode], *, chunk_bytes: int = CHUNK_BYTES) -> None:
    """Streams `episodes` into a new store at `path`, which appears only when all of it is on disk.

    One episode is in memory at a time. Raises KinoiseError, leaving nothing behind, when `path` exists, there are no episodes,
    or one of them does not fit the spec: missing or unknown keys, wrong shapes or dtypes, unequal lengths, no steps, NaN or
    infinity, no instruction where the spec has language, or `info` that JSON cannot hold.
    """
    path = Path(path)
    _check_spec(spec)
    if path.exists() and not (path.is_dir() and not any(path.iterdir())):
        raise KinoiseError(f"{path} exists already. Choose another out=, or remove it first.")
    with new_directory(path) as temporary, ExitStack() as stack:
        writers = {
            key: stack.enter_context(ChunkWriter(temporary / "data" / key, feature.dtype, feature.shape, chunk_bytes))
            for key, feature in features(spec).items()
        }
        texts: dict[str, int] = {}
        entries, ends, steps = [], [], 0
        for index, episode in enumerate(episodes):
            steps += _check_episode(spec, episode, f"episode {index}{_task(episode)}")
            for key, writer in writers.items():
                writer.append(episode.arrays[key])
            ends.append(steps)
            entries.append({"text": texts.setdefault(episode.instruction, len(texts)), "info": dict(episode.info)})
        if not entries:
            raise KinoiseError(f"no episodes to write to {path}: a store needs at least one.")
        with ChunkWriter(temporary / "meta" / "episode_ends", np.dtype(np.int64), (), chunk_bytes) as writer:
            writer.append(np.array(ends, np.int64))
        stack.close()
        for group in (temporary, temporary / "data", temporary / "meta"):
            write_json(group / ".zgroup", {"zarr_format": 2})
        header = {"format": FORMAT, "kinoise": __version__, "spec": spec.to_json()}
        write_json(temporary / SPEC_FILE, {**header, "texts": list(texts), "episodes": entries})


def _no_spec_file(path: Path) -> str:
    if not path.is_dir():
        return f"{path} is not a folder: expected a data set written by kinoise collect."
    if (path / "data").is_dir() and (path / "meta").is_dir():
        return (
            f"{path} is a zarr store without {SPEC_FILE}, which says what its arrays are: this kinoise reads only stores that "
            f"it wrote itself. Convert it with kinoise.data.write_store."
        )
    return f"{path} holds no {SPEC_FILE}: expected a data set written by kinoise collect. Check the path or collect it again."


def _read_spec_file(file: Path) -> tuple[Spec, tuple[str, ...], np.ndarray, list[dict[str, Any]]]:
    value = read_json(file)
    try:
        version = value["format"]
        if version != FORMAT:
            raise KinoiseError(f"format {version!r}, expected {FORMAT}: another kinoise wrote it. Use that, or write it again.")
        spec = Spec.from_json(value["spec"])
        _check_spec(spec)
        texts = tuple(value["texts"])
        text = np.array([item["text"] for item in value["episodes"]], np.int64)
        info = [dict(item["info"]) for item in value["episodes"]]
    except KinoiseError as error:
        raise KinoiseError(f"{file}: {error}") from error
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise KinoiseError(f"{file} lacks what a store needs ({error!r}): it was edited or damaged. Write it again.") from error
    if not all(isinstance(item, str) for item in texts) or len(set(texts)) < len(texts) or set(text) != set(range(len(texts))):
        raise KinoiseError(f"{file}: its texts are not the episodes' distinct instructions: it was edited. Write it again.")
    return spec, texts, text, info


def _check_spec(spec: Spec) -> None:
    for key, feature in features(spec).items():
        if key != Path(key).name or key.startswith("."):
            raise KinoiseError(f"observation key '{key}' cannot name a folder: use letters, digits, '.' and '_'.")
        if not feature.shape or min(feature.shape) < 1:
            raise KinoiseError(f"'{key}' has shape {feature.shape}: every feature needs at least one number a step.")
        dims = int(np.prod(feature.shape))
        for name in ("names", "low", "high"):
            given = getattr(feature, name)
            if given and len(given) != dims:
                raise KinoiseError(f"'{key}' has {dims} dimensions but {len(given)} in its {name}: give one for each, or none.")
    if ACTION in spec.observations:
        raise KinoiseError(f"an observation cannot be called '{ACTION}': that is the action's key. Rename it.")


def _task(episode: Episode) -> str:
    name = episode.info.get("task") or episode.instruction
    return f" ({name})" if name else ""


def _check_episode(spec: Spec, episode: Episode, label: str) -> int:
    """The episode's number of steps; KinoiseError when it does not fit the spec."""
    wanted = features(spec)
    missing, unknown = sorted(wanted.keys() - episode.arrays.keys()), sorted(episode.arrays.keys() - wanted.keys())
    if missing or unknown:
        raise KinoiseError(f"{label}: missing keys {missing}, unknown keys {unknown}. Record exactly what the spec names.")
    steps = len(np.atleast_1d(episode.arrays[ACTION]))
    if steps == 0:
        raise KinoiseError(f"{label} has no steps. Leave it out.")
    for key, feature in wanted.items():
        array = episode.arrays[key]
        if array.shape != (steps, *feature.shape) or array.dtype != feature.dtype:
            raise KinoiseError(
                f"{label}: '{key}' is {array.dtype}{list(array.shape)}, expected {feature.dtype}{[steps, *feature.shape]}. "
                f"Convert it or change the spec."
            )
        if feature.kind == "state" and not np.isfinite(array).all():
            step = int(np.argwhere(~np.isfinite(array))[0, 0])
            raise KinoiseError(f"{label}: '{key}' is NaN or infinite at step {step}. Repair or drop the episode.")
    if spec.language and not episode.instruction:
        raise KinoiseError(f"{label} has no instruction, but the spec has language. Give it one, or set language=False.")
    try:
        json.dumps(episode.info, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise KinoiseError(f"{label}: info is not JSON ({error}). Use plain numbers, text and lists.") from error
    return steps
