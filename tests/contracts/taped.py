"""A format that has to be decoded, for tests: one .npz file for each episode, and some of them.

Processes import it by its name.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from kinoise.data.base import AS_IT_IS, Episode, Reading, Report, refuse
from kinoise.data.check import extras_of
from kinoise.data.decoded import DecodedStore
from kinoise.spec import Feature, KinoiseError, Spec
from rich.console import Console

SPEC = Spec(
    {"state": Feature((3,)), "image.a": Feature((4, 5, 3), "image"), "image.b": Feature((3, 3, 3), "image")},
    Feature((2,), low=(-1.0, 0.0), high=(1.0, 1.0)),
    rate=20.0,
)
LENGTHS = (7, 1, 4, 9, 2)
QUIET = Console(quiet=True)


def write_tape(path: Path, spec: Spec, episodes: Sequence[Episode]) -> Path:
    """`path/<index>.npz` and `path/about.json`."""
    path.mkdir(parents=True)
    about = [{"steps": len(item.arrays["action"]), "text": item.instruction, "info": item.info} for item in episodes]
    extras = {key: [item.dtype.name, item.shape] for key, item in extras_of(episodes[0]).items()}
    (path / "about.json").write_text(json.dumps({"spec": spec.to_json(), "episodes": about, "extras": extras}))
    for index, item in enumerate(episodes):
        np.savez(path / f"{index}.npz", **item.arrays, **item.extras)
    return path


class TapedStore(DecodedStore):
    """`decoded` collects, in this process, what was decoded; `pause` seconds pass at each."""

    format = "tape"

    def __init__(self, path: Path, reading: Reading = AS_IT_IS, report: Report = refuse, pause: float = 0.0) -> None:
        from kinoise.data.base import Extra

        self.path, self.pause = Path(path), pause
        about = json.loads((self.path / "about.json").read_text())
        self.spec = Spec.from_json(about["spec"])
        self.ends = np.cumsum([item["steps"] for item in about["episodes"]])
        texts = [item["text"] for item in about["episodes"]]
        self.texts = ("never said", *sorted(set(texts)))
        self.text = np.array([self.texts.index(text) for text in texts])
        self.info = [item["info"] for item in about["episodes"]]
        self.extras = {key: Extra(np.dtype(dtype), tuple(shape)) for key, (dtype, shape) in about["extras"].items()}
        self.meta, self.dropped = {"tape": {"speed": 1}}, ("the label on the reel",)
        self.decoded: list[tuple[int, tuple[str, ...]]] = []

    def decode(self, episode: int, keys: Sequence[str]) -> dict[str, np.ndarray]:
        self.decoded.append((episode, tuple(keys)))
        time.sleep(self.pause)
        file = self.path / f"{episode}.npz"
        if file.with_suffix(".crash").exists():
            os._exit(3)
        try:
            with np.load(file) as arrays:
                return {key: arrays[key] for key in keys}
        except (OSError, ValueError, KeyError) as error:
            raise KinoiseError(f"{file}: episode {episode} can't be read ({error}). Copy it again.") from error


def episodes() -> list[Episode]:
    rng = np.random.default_rng(0)
    return [
        Episode(
            {
                "state": rng.normal(size=(steps, 3)).astype(np.float32),
                "action": rng.normal(size=(steps, 2)).astype(np.float32),
                "image.a": rng.integers(0, 256, (steps, 4, 5, 3), np.uint8),
                "image.b": rng.integers(0, 256, (steps, 3, 3, 3), np.uint8),
            },
            f"task {index % 2}",
            {"index": index},
            {"reward": rng.normal(size=steps), "sim_state": rng.normal(size=(steps, 6))},
        )
        for index, steps in enumerate(LENGTHS)
    ]


def settled_tape(path: Path) -> Path:
    path = write_tape(path, SPEC, episodes())
    for item in path.iterdir():  # files that were there for a while: their hashes may be remembered
        os.utime(item, ns=(0, 0))
    return path


def copies(folder: Path) -> list[str]:
    return sorted(item.name for item in folder.iterdir() if item.is_dir())


def same(one, other) -> None:
    steps = int(other.ends[-1])
    assert one.spec == other.spec
    assert one.keys == other.keys
    assert one.ends.tolist() == other.ends.tolist()
    assert [one.texts[index] for index in one.text] == [other.texts[index] for index in other.text]
    assert (one.info, one.extras, one.meta, one.dropped) == (other.info, other.extras, other.meta, other.dropped)
    for key in (*other.keys, *other.extras):
        np.testing.assert_array_equal(one.read(key, 0, steps), other.read(key, 0, steps))
    assert one.stats() == other.stats()
