"""LeRobot data sets of version 2.1, made by hand as its documentation lays them out: a file for each episode, JSON lines."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

DATA = "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet"
VIDEO = "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4"
CAMERA = "observation.images.top"
TASKS = ["schieb den Würfel", "引き出しを開ける", "schieb den Würfel", "x", "y"]
CODEC_ERROR = 8
"""What `film` may change `frames` by, of 255; the next step's picture is 11 brighter."""


def frames(steps: int, seed: int = 0, size: tuple[int, int] = (32, 48)) -> np.ndarray:
    """Smooth pictures that a codec keeps well; every step's is told from its neighbours' by its brightness."""
    height, width = size
    ramp = np.linspace(0, 60, width)[None, :, None] + np.linspace(0, 40, height)[:, None, None] + np.array([0, 20, 40])
    level = (seed * 37 + np.arange(steps) * 11) % 110
    return (ramp[None] + level[:, None, None, None]).astype(np.uint8)


def film(path: Path, images: np.ndarray, rate: int, codec: str = "libx264", **options: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, Fraction(rate), options={"crf": "18", **options})
        stream.height, stream.width, stream.pix_fmt = images.shape[1], images.shape[2], "yuv420p"
        for image in images:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode(None))


def png(image: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    return buffer.getvalue()


def write_v21(
    root: Path,
    episodes: list[dict[str, np.ndarray]],
    tasks: list[str],
    *,
    rate: int = 10,
    video: bool = True,
    chunk: int = 1000,
    **declared: Any,
) -> None:
    """Args:
    episodes: "state", "action" and CAMERA of each.
    tasks: of each.
    declared: other entries of `info.json`.
    """
    (root / "meta").mkdir(parents=True)
    known = list(dict.fromkeys(tasks))
    dims = {key: episodes[0][key].shape[1] for key in ("state", "action")}
    number = {"shape": [1], "names": None}
    motors = [f"m{index}" for index in range(dims["state"])]
    shape = list(episodes[0][CAMERA].shape[1:])
    features = {
        "observation.state": {
            "dtype": "float32",
            "shape": [dims["state"]],
            "names": {"motors": motors},
        },
        "action": {"dtype": "float32", "shape": [dims["action"]], "names": None},
        CAMERA: {"dtype": "video" if video else "image", "shape": shape, "names": ["height", "width", "channel"]},
        "timestamp": {"dtype": "float32", **number},
        **{name: {"dtype": "int64", **number} for name in ("frame_index", "episode_index", "index", "task_index")},
    }
    lines: dict[str, list[Any]] = {"episodes": [], "episodes_stats": []}
    total = 0
    for index, (arrays, task) in enumerate(zip(episodes, tasks, strict=True)):
        steps = len(arrays["action"])
        place = {"episode_chunk": index // chunk, "episode_index": index}
        columns = {
            "observation.state": pa.array(list(arrays["state"]), pa.list_(pa.float32())),
            "action": pa.array(list(arrays["action"]), pa.list_(pa.float32())),
            "timestamp": pa.array((np.arange(steps) / rate).astype(np.float32)),
            "frame_index": pa.array(np.arange(steps)),
            "episode_index": pa.array(np.full(steps, index)),
            "index": pa.array(np.arange(total, total + steps)),
            "task_index": pa.array(np.full(steps, known.index(task))),
        }
        if video:
            film(root / VIDEO.format(video_key=CAMERA, **place), arrays[CAMERA], rate, g="2", bf="0")
        else:
            columns[CAMERA] = pa.array([{"bytes": png(image), "path": None} for image in arrays[CAMERA]])
        file = root / DATA.format(**place)
        file.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table(columns), file)
        lines["episodes"].append({"episode_index": index, "tasks": [task], "length": steps})
        stats = {f"observation.{key}" if key == "state" else key: _stats(arrays[key]) for key in ("state", "action")}
        stats[CAMERA] = {
            name: [[[float(value)]] for value in values]
            for name, values in _stats(arrays[CAMERA].reshape(-1, 3) / 255).items()
            if name != "count"
        } | {"count": [steps]}
        lines["episodes_stats"].append({"episode_index": index, "stats": stats})
        total += steps
    lines["tasks"] = [{"task_index": index, "task": task} for index, task in enumerate(known)]
    for name, rows in lines.items():
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (root / "meta" / f"{name}.jsonl").write_text(text, encoding="utf-8")
    info = {
        "codebase_version": "v2.1",
        "robot_type": "so100",
        "total_episodes": len(episodes),
        "total_frames": total,
        "total_tasks": len(known),
        "total_videos": len(episodes) * video,
        "total_chunks": (len(episodes) - 1) // chunk + 1,
        "chunks_size": chunk,
        "fps": rate,
        "splits": {"train": f"0:{len(episodes)}"},
        "data_path": DATA,
        "video_path": VIDEO if video else None,
        "features": features,
    }
    (root / "meta/info.json").write_text(json.dumps({**info, **declared}), encoding="utf-8")


def _stats(rows: np.ndarray) -> dict[str, list[float]]:
    found = {"min": rows.min(0), "max": rows.max(0), "mean": rows.mean(0), "std": rows.std(0)}
    return {**{name: value.astype(float).tolist() for name, value in found.items()}, "count": [len(rows)]}


def pictures(lengths: tuple[int, ...] = (6, 1, 9), seed: int = 0) -> list[dict[str, np.ndarray]]:
    """Episodes for `write_v21`."""
    rng = np.random.default_rng(seed)
    return [
        {
            "state": rng.normal(size=(steps, 3)).astype(np.float32),
            "action": rng.normal(size=(steps, 2)).astype(np.float32),
            CAMERA: frames(steps, index),
        }
        for index, steps in enumerate(lengths)
    ]


def edit(file: Path, change: Callable[[Any], object]) -> None:
    value = json.loads(file.read_text(encoding="utf-8"))
    change(value)
    file.write_text(json.dumps(value), encoding="utf-8")


def change_table(file: Path, change: Callable[[pa.Table], pa.Table]) -> None:
    pq.write_table(change(pq.read_table(file)), file)


def cut(file: Path, share: float = 0.5) -> None:
    content = file.read_bytes()
    file.write_bytes(content[: int(len(content) * share)])


def declare(root: Path, **changes: dict[str, Any]) -> None:
    def change(info: dict[str, Any]) -> None:
        for name, item in changes.items():
            info["features"].setdefault(name.replace("__", "."), {}).update(item)

    edit(root / "meta/info.json", change)
