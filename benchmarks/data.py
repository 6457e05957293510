"""Training windows beside LeRobot's and robomimic's data sets: `python -m benchmarks.data` (one run, alternating).

The same demonstrations, drawn here: a state of 10 numbers, 7 of action and, in the rows with images, two cameras of 128 x 128.
LeRobot's are as LeRobot itself writes them (image columns, and video), robomimic's as kinoise writes its format: robomimic
has no writer of its own. Each side loads shuffled batches of 64 windows of 16 actions: the peers by torch's DataLoader with two
workers from their own files, robomimic once with nothing cached and once with everything (without workers, as its documentation
advises then); kinoise by `Windows.batch` in one thread, from its decoded copy of the peer's file. A window of LeRobot's has the
observation of its first step, one of robomimic's those of all 16, and kinoise's the same as that of the side beside it.

Also: seconds to make the decoded copy.
"""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from kinoise.config import parse, run
from kinoise.data import FORMATS, Episode, open_store
from kinoise.data.base import EpisodeStore
from kinoise.data.cache import mapped
from kinoise.data.windows import Windows
from kinoise.spec import Feature, Spec

from .peer import Peer, environment
from .peers import lerobot_environment
from .record import ratio, write
from .speed import alternate

ROBOMIMIC = ("torchvision==0.28.0", "robomimic==0.3.0")
ROBOMIMIC_NEEDS = ("h5py", "imageio", "numpy", "psutil", "six", "tensorboard", "tensorboardX", "termcolor", "tqdm")
CHUNK, BATCH, SIDE, CAMERAS = 16, 64, 128, ("image.front", "image.wrist")
AIMS = {"lerobot": 20.0, "robomimic": 10.0, "robomimic_cached": 1.0}
"""How many times as many windows a second, at least."""


@dataclass
class Settings:
    """The whole command line."""

    episodes: int = field(default=40, metadata={"help": "of each data set"})
    steps: int = field(default=100, metadata={"help": "of an episode"})
    rounds: int = field(default=10, metadata={"help": "of timing"})
    batches: int = field(default=10, metadata={"help": "that a peer loads in a round"})
    ours: int = field(default=100, metadata={"help": "that kinoise loads in a round"})
    folder: str = field(default="~/.cache/kinoise/peers", metadata={"help": "where the peers' environments are"})
    data: str = field(default="outputs/benchmarks/data", metadata={"help": "where the data sets are written, and left"})
    name: str = field(default="data", metadata={"help": "results/NAME.json"})


def spec(images: bool) -> Spec:
    seen = {"state": Feature((10,)), **({key: Feature((SIDE, SIDE, 3), "image") for key in CAMERAS} if images else {})}
    return Spec(seen, Feature((7,)), rate=20.0)


def episodes(count: int, steps: int, images: bool) -> Iterator[Episode]:
    """Smooth walks, and pictures of a bright spot over a smooth ground that move with them: video has something to compress."""
    gen = np.random.default_rng(0)
    y, x = np.mgrid[0:SIDE, 0:SIDE] / SIDE
    for _ in range(count):
        state = np.cumsum(gen.normal(scale=0.05, size=(steps, 10)), 0).astype(np.float32)
        arrays = {"state": state, "action": np.tanh(np.diff(state, axis=0, append=state[-1:])[:, :7])}
        for number, key in enumerate(CAMERAS if images else ()):
            place = 0.5 + 0.4 * np.tanh(state[:, 2 * number : 2 * number + 2])
            near = np.exp(-80 * ((x - place[:, :1, None]) ** 2 + (y - place[:, 1:, None]) ** 2))
            shade = 60 + 60 * x + 40 * y + gen.normal(scale=2, size=(SIDE, SIDE))
            arrays[key] = np.clip(shade[None, ..., None] + near[..., None] * np.array([120, 60, -40]), 0, 255).astype(np.uint8)
        yield Episode(arrays, "push")


def ours(store: EpisodeStore, history: int, batches: int) -> Callable[[int], float]:
    """A side for `alternate`: seconds for so many shuffled batches."""
    windows = Windows(store, CHUNK, history)

    def side(number: int) -> float:
        gen = np.random.default_rng(number + 1000)
        began = time.perf_counter()
        for _ in range(batches):
            windows.batch(gen.integers(0, len(windows), BATCH))
        return time.perf_counter() - began

    return side


def copied(path: Path, folder: Path) -> tuple[EpisodeStore, float]:
    """The decoded copy, made anew, and the seconds that this took."""
    shutil.rmtree(folder, ignore_errors=True)
    began = time.perf_counter()
    store = mapped(open_store(path), folder)
    return store, time.perf_counter() - began


def beside(peer: Peer, store: EpisodeStore, history: int, settings: Settings) -> dict[str, Any]:
    """Windows a second of both, and how many times as many ours are."""
    times = alternate({"peer": peer, "kinoise": ours(store, history, settings.ours)}, settings.rounds)
    rates = {
        "peer": [settings.batches * BATCH / seconds for seconds in times["peer"]],
        "kinoise": [settings.ours * BATCH / seconds for seconds in times["kinoise"]],
    }
    median = {f"{name}_windows_per_s": round(float(np.median(found))) for name, found in rates.items()}
    return {**median, "faster": ratio(rates["kinoise"], rates["peer"]), "peer": peer.about}


def lerobot(settings: Settings, python: Path, data: Path) -> dict[str, Any]:
    """State alone, image columns and video."""
    found = {}
    for kind, images, video in (("state", False, False), ("images", True, False), ("video", True, True)):
        source, path = data / f"source_{kind}.npz", data / f"lerobot_{kind}"
        shutil.rmtree(path, ignore_errors=True)
        made = list(episodes(settings.episodes, settings.steps, images))
        arrays = {key: np.concatenate([item.arrays[key] for item in made]) for key in made[0].arrays}
        np.savez(source, ends=np.cumsum([len(item.arrays["action"]) for item in made]), **arrays)
        told = {"what": "lerobot", "source": str(source), "video": video, "workers": 2}
        with Peer(python, Path(__file__).parent / "data_side.py", {**common(settings, path), **told}) as peer:
            store, seconds = copied(path, data / "cache")
            found[kind] = {**beside(peer, store, 1, settings), "copy_s": round(seconds, 2), "aim": AIMS["lerobot"]}
        source.unlink()
    return found


def robomimic(settings: Settings, python: Path, data: Path) -> dict[str, Any]:
    """State alone and images, each with nothing cached and with everything."""
    found = {}
    for kind, images in (("state", False), ("images", True)):
        path = data / f"robomimic_{kind}.hdf5"
        path.unlink(missing_ok=True)
        FORMATS["robomimic"].write(path, spec(images), episodes(settings.episodes, settings.steps, images))
        store, seconds = copied(path, data / "cache")
        names = {"low": ["state"], "rgb": [f"{key.removeprefix('image.')}_image" for key in CAMERAS] if images else []}
        for label, cache, workers in (("robomimic", None, 2), ("robomimic_cached", "all", 0)):
            told = {"what": "robomimic", **names, "cache": cache, "workers": workers}
            with Peer(python, Path(__file__).parent / "data_side.py", {**common(settings, path), **told}) as peer:
                figures = beside(peer, store, CHUNK, settings)
            found[f"{kind}_{cache or 'uncached'}"] = {**figures, "copy_s": round(seconds, 2), "aim": AIMS[label]}
    return found


def common(settings: Settings, path: Path) -> dict[str, Any]:
    return {"path": str(path.resolve()), "batch": BATCH, "chunk": CHUNK, "batches": settings.batches}


def main(argv: Sequence[str]) -> int:
    settings = parse("data", Settings, argv, about=__doc__ or "")
    torch.set_num_threads(1)
    folder, data = Path(settings.folder).expanduser(), Path(settings.data)
    data.mkdir(parents=True, exist_ok=True)
    beside_lerobot = lerobot_environment(folder)
    beside_robomimic = environment(folder / "robomimic", ROBOMIMIC, ROBOMIMIC_NEEDS)
    figures = {
        "shape": {"episodes": settings.episodes, "steps": settings.steps, "chunk": CHUNK, "batch": BATCH, "side": SIDE},
        "lerobot": lerobot(settings, beside_lerobot, data),
        "robomimic": robomimic(settings, beside_robomimic, data),
    }
    write(settings.name, figures)
    return 0


if __name__ == "__main__":
    sys.exit(run(main, sys.argv[1:]))
