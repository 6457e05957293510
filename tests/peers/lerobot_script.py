"""What LeRobot does, in its own environment: `lerobot_script.py write|read|extend|convert FOLDER FILE`. Imports no kinoise."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch

# torchvision's wheel expects operators that torch without CUDA lacks; nothing here calls them.
_library = torch.library.Library("torchvision", "FRAGMENT")
for _name in ("nms", "qnms"):
    _library.define(f"{_name}(Tensor boxes, Tensor scores, float threshold) -> Tensor")

from lerobot.datasets import lerobot_dataset  # noqa: E402
from lerobot.datasets.lerobot_dataset import LeRobotDataset  # noqa: E402


def decode(path: Path, timestamps: list[float], tolerance_s: float, backend: str | None = None) -> torch.Tensor:
    """Its own readers need torchcodec, or a torchvision that still has one; the rule is theirs: the nearest in tolerance."""
    with av.open(str(path)) as container:
        found = [(float(frame.pts * frame.time_base), frame) for frame in container.decode(video=0)]
    times = np.array([time for time, _ in found])
    chosen = [int(np.abs(times - wanted).argmin()) for wanted in timestamps]
    assert all(abs(times[index] - wanted) < tolerance_s for index, wanted in zip(chosen, timestamps, strict=True))
    images = np.stack([found[index][1].to_ndarray(format="rgb24") for index in chosen])
    return torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255


lerobot_dataset.decode_video_frames = decode


def read(folder: Path, file: Path) -> None:
    """All items of a data set, stacked, into an npz file, with the tasks and statistics as JSON."""
    data = LeRobotDataset("kinoise/test", root=folder)
    items = [data[index] for index in range(len(data))]
    arrays: dict[str, Any] = {
        key: np.stack([item[key].numpy() for item in items]) for key in items[0] if isinstance(items[0][key], torch.Tensor)
    }
    windows = LeRobotDataset("kinoise/test", root=folder, delta_timestamps={"action": [0.0, 1 / data.fps]})
    arrays["windows"] = np.stack([windows[index]["action"].numpy() for index in range(len(windows))])
    stats = {key: {name: value.tolist() for name, value in item.items()} for key, item in data.meta.stats.items()}
    rows = [data.meta.episodes[index] for index in range(len(data.meta.episodes))]
    about = {"tasks": [item["task"] for item in items], "stats": stats, "episodes": [row["length"] for row in rows]}
    about |= {"fps": data.fps, "robot_type": data.meta.robot_type}
    about["files"] = [data.meta.get_data_file_path(row).name for row in range(len(rows))]
    np.savez(file, about=json.dumps(about), **arrays)


def write(folder: Path, file: Path) -> None:
    """A data set with the features and episodes of an npz file, a file for every few episodes."""
    given = np.load(file)
    about = json.loads(str(given["about"]))
    features = {key: {**item, "shape": tuple(item["shape"])} for key, item in about["features"].items()}
    data = LeRobotDataset.create("kinoise/test", fps=about["fps"], features=features, root=folder, robot_type="so100")
    data.meta.update_chunk_settings(data_files_size_in_mb=about["data_mb"], video_files_size_in_mb=about["video_mb"])
    _add(data, given, about)


def extend(folder: Path, file: Path) -> None:
    """More episodes at the end of a data set."""
    given = np.load(file)
    _add(LeRobotDataset("kinoise/test", root=folder), given, json.loads(str(given["about"])))


def _add(data: LeRobotDataset, given: Any, about: dict[str, Any]) -> None:
    own = [key for key in data.features if key in given]
    start = 0
    for tasks in about["tasks"]:
        for step, task in enumerate(tasks, start):
            # A copy: what is read from a file may not be written to, and torch complains.
            data.add_frame({**{key: np.array(given[key][step]) for key in own}, "task": task})
        for key in own:
            if tuple(data.features[key]["shape"]) == (1,):
                # numpy 2.4 makes no number of an array of one, which `datasets` asks of it.
                data.episode_buffer[key] = [value.item() for value in data.episode_buffer[key]]
        data.save_episode(parallel_encoding=False)
        start += len(tasks)
    data.finalize()


def convert(folder: Path, file: Path) -> None:
    """Its converter from v2.1 to v3.0, in place."""
    from lerobot.datasets.v30.convert_dataset_v21_to_v30 import convert_dataset

    convert_dataset(folder.name, root=folder.parent, push_to_hub=False)


if __name__ == "__main__":
    {"read": read, "write": write, "extend": extend, "convert": convert}[sys.argv[1]](Path(sys.argv[2]), Path(sys.argv[3]))
