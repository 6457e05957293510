"""LeRobot's and robomimic's data sets and loaders, for `benchmarks.data`: run by a Python of their own, without kinoise.

`python data_side.py SETTINGS` (JSON) opens `settings["path"]` (LeRobot: writes it first, if it isn't there) and prints what it
is as a line of JSON. For every line that it then reads it loads `batches` shuffled batches of `batch` windows by torch's
DataLoader with `workers` processes, and prints the seconds that this took.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from contextlib import redirect_stdout
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

# torchvision's wheel is for another build of torch and doesn't load; nothing here calls the operators that it misses.
LIBRARY = torch.library.Library("torchvision", "FRAGMENT")
for _name in ("nms", "qnms"):
    LIBRARY.define(f"{_name}(Tensor boxes, Tensor scores, float threshold) -> Tensor")


def lerobot(settings: dict[str, Any]) -> tuple[Dataset, dict[str, Any]]:
    """LeRobotDataset with the actions of a window; observations of its first step."""
    from lerobot.datasets import lerobot_dataset

    lerobot_dataset.decode_video_frames = frames
    path, given = Path(settings["path"]), settings["source"]
    if not path.exists():
        written(lerobot_dataset.LeRobotDataset, path, Path(given), settings["video"])
    began = time.perf_counter()
    data = lerobot_dataset.LeRobotDataset("local/data", root=path)
    opened = time.perf_counter() - began
    deltas = {"action": [step / data.fps for step in range(settings["chunk"])]}
    return lerobot_dataset.LeRobotDataset("local/data", root=path, delta_timestamps=deltas), {"opened_s": opened}


def written(kind: Any, path: Path, source: Path, video: bool) -> None:
    """The arrays of `source` (npz) as LeRobot itself writes them."""
    import numpy as np

    arrays = np.load(source)
    cameras = [key for key in arrays.files if key.startswith("image.")]
    features: dict[str, Any] = {
        name: {"dtype": "float32", "shape": arrays[key].shape[1:], "names": None}
        for name, key in (("observation.state", "state"), ("action", "action"))
    }
    for key in cameras:
        shape = {"shape": arrays[key].shape[1:], "names": ["height", "width", "channels"]}
        features[f"observation.images.{key.removeprefix('image.')}"] = {"dtype": "video" if video else "image", **shape}
    data = kind.create("local/data", fps=20, features=features, root=path)
    rows = {key: arrays[key] for key in ("state", "action", *cameras)}
    start = 0
    for end in arrays["ends"].tolist():
        for step in range(start, end):
            images = {f"observation.images.{key.removeprefix('image.')}": rows[key][step] for key in cameras}
            data.add_frame({"observation.state": rows["state"][step], "action": rows["action"][step], **images, "task": "push"})
        data.save_episode(parallel_encoding=False)
        start = end
    data.finalize()


@lru_cache(16)
def container(path: str) -> Any:
    import av

    return av.open(path)


def frames(path: Path, timestamps: list[float], tolerance_s: float, backend: str | None = None) -> torch.Tensor:
    """Its own readers need torchcodec or an older torchvision. This one, PyAV's with files kept open, is faster than they."""
    import numpy as np

    opened = container(str(path))
    stream = opened.streams.video[0]
    found = []
    for wanted in timestamps:
        opened.seek(int(wanted / stream.time_base), stream=stream, backward=True)
        frame = next(item for item in opened.decode(stream) if float(item.pts * stream.time_base) > wanted - tolerance_s)
        found.append(frame.to_ndarray(format="rgb24"))
    return torch.from_numpy(np.stack(found)).permute(0, 3, 1, 2).float() / 255


def robomimic(settings: dict[str, Any]) -> tuple[Dataset, dict[str, Any]]:
    """SequenceDataset: observations and actions of `chunk` steps, cached as `settings["cache"]` says."""
    import robomimic.utils.obs_utils as obs_utils
    from robomimic.utils.dataset import SequenceDataset

    low, rgb = settings["low"], settings["rgb"]
    obs_utils.initialize_obs_utils_with_obs_specs([{"obs": {"low_dim": low, "rgb": rgb}}])
    began = time.perf_counter()
    data = SequenceDataset(
        settings["path"],
        obs_keys=(*low, *rgb),
        dataset_keys=("actions",),
        seq_length=settings["chunk"],
        pad_seq_length=True,
        hdf5_cache_mode=settings["cache"],
        hdf5_use_swmr=False,
        load_next_obs=False,
    )
    return data, {"opened_s": time.perf_counter() - began}


def endless(loader: DataLoader) -> Iterator[Any]:
    while True:
        yield from loader


def main(settings: dict[str, Any]) -> None:
    torch.set_num_threads(1)
    with redirect_stdout(sys.stderr):  # robomimic talks
        data, told = {"lerobot": lerobot, "robomimic": robomimic}[settings["what"]](settings)
    order = torch.Generator().manual_seed(0)
    workers = settings["workers"]
    loader = DataLoader(
        data,
        settings["batch"],
        shuffle=True,
        drop_last=True,
        num_workers=workers,
        generator=order,
        persistent_workers=workers > 0,
    )
    batches = endless(loader)
    next(batches)
    versions = {name: version(name) for name in (settings["what"], "torch")}
    print(json.dumps({"windows": len(data), "versions": versions, **told}), flush=True)  # type: ignore[arg-type]
    ready = workers * (loader.prefetch_factor or 0)
    for _ in sys.stdin:
        for _ in range(ready):  # what was loaded while the other side had its turn doesn't count
            next(batches)
        began = time.perf_counter()
        for _ in range(settings["batches"]):
            next(batches)
        print(time.perf_counter() - began, flush=True)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
