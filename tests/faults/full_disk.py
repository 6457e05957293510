"""Run by a test in a mount namespace of its own: commands that write to a small disk, and then to one that is read-only.

`python full_disk.py PLACE SMALL`: PLACE is a folder for what they read, SMALL the mounted file system. Prints what became of
each.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lerobot_unets
import numpy as np
from kinoise import cli
from kinoise.data import Episode, write_store
from kinoise.data.cache import mapped
from kinoise.data.replay import ReplayStore
from kinoise.deploy.control import RESERVE
from kinoise.deploy.trace import TraceWriter
from kinoise.policies.checkpoint import save_policy
from kinoise.policies.imports import export_lerobot
from kinoise.spec import Feature, KinoiseError, Spec
from mapped_worlds import POINT, write
from small_policies import fitting

SPEC = Spec(
    {"state": Feature((2,)), "image.top": Feature((64, 64, 3), "image")}, Feature((1,), low=(-1.0,), high=(1.0,)), rate=20.0
)
TINY = ["policy=diffusion", "policy.network.width=32", "policy.network.depth=2", "policy.network.heads=2"]
SHORT = ["train.steps=40", "train.batch_size=4", "train.save_every=1", "train.tensorboard=false", "train.keep=8"]


def demonstrations(count: int, steps: int) -> list[Episode]:
    rng = np.random.default_rng(0)
    return [
        Episode(
            {
                "state": rng.normal(size=(steps, 2)).astype(np.float32),
                "image.top": rng.integers(0, 256, (steps, 64, 64, 3), np.uint8),
                "action": rng.uniform(-1, 1, (steps, 1)).astype(np.float32),
            },
            "go",
        )
        for _ in range(count)
    ]


def command(small: Path, *arguments: str) -> dict[str, Any]:
    said = io.StringIO()
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
        code = cli.main(list(arguments))
    lines = [line for line in said.getvalue().splitlines() if line.startswith("kinoise: ")]
    return {
        "code": code,
        "said": lines[-1] if lines else said.getvalue()[-500:],
        "left": sorted(p.name for p in small.iterdir()),
    }


def cached(source: Path, folder: Path) -> str:
    try:
        mapped(ReplayStore(source), folder, workers=1)
    except KinoiseError as error:
        return str(error)
    return ""


@contextlib.contextmanager
def filled(small: Path, left: int) -> Iterator[None]:
    """All of the small disk but so many bytes is taken during the block."""
    filler = small / "filler"
    with filler.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, os.statvfs(small).f_bavail * os.statvfs(small).f_bsize - left)
    yield
    filler.unlink()


def evaluated(out: Path) -> list[Any]:
    """What the result says of each episode; nothing without one."""
    return json.loads((out / "result.json").read_text())["episodes"] if (out / "result.json").exists() else []


def collected(place: Path, small: Path, world: str) -> dict[str, Any]:
    """`collect` on a disk that fills, and once more with room; beside the data of one that always had it."""
    collect = ["collect", f"env={world}", "episodes=12", "workers=1"]
    with filled(small, 24 << 10):
        found = command(small, *collect, f"out={small / 'c'}")
        found["kept"] = {item.name: item.stat().st_mtime_ns for item in small.glob("c.partial/*/*.npz")}
        found["torn"] = [item.name for item in small.glob("c.partial/*/.*")]
    found["again"] = command(small, *collect, f"out={small / 'c'}")["code"]
    assert cli.main([*collect, f"out={place / 'c'}"]) == 0
    bytes_of = [{p.relative_to(at): p.read_bytes() for p in at.rglob("*") if p.is_file()} for at in (small / "c", place / "c")]
    found["same"] = bytes_of[0] == bytes_of[1] != {}
    subprocess.run(["rm", "-rf", str(small / "c")], check=True)
    return found


def main(place: Path, small: Path) -> dict[str, Any]:
    write_store(place / "data", SPEC, demonstrations(4, 40))
    write_store(place / "little", SPEC, demonstrations(2, 6))
    ReplayStore.write(place / "source.zarr", SPEC, demonstrations(4, 40))
    world = write(place, POINT)
    found: dict[str, Any] = {}
    for name, ending in {"zarr": ".zarr", "robomimic": ".hdf5", "lerobot": ""}.items():
        out = small / f"out{ending}"
        found[f"convert {name}"] = command(small, "convert", str(place / "data"), str(out), f"format={name}")
    found["cache"] = {"said": cached(place / "source.zarr", small / "cache"), "left": sorted(map(str, small.rglob("[!.]*-*")))}
    subprocess.run(["rm", "-rf", str(small / "cache")], check=True)
    writer = TraceWriter(small / "control.trace", {})
    for count in range(4000):
        writer.add("observe", {"image": np.full(4096, count % 256, np.uint8)}, 4096)
    found["trace"] = writer.close()
    (small / "control.trace").unlink()
    (place / "policy").mkdir()
    save_policy(place / "policy", fitting(world), {})
    play = ["eval", str(place / "policy"), f"env={world}", "episodes=24", "workers=1", "slots=2"]
    out = small / "eval"
    assert cli.main([*play, f"out={place / 'eval'}"]) == 0
    with filled(small, 12 << 10):
        found["eval"] = command(small, *play, f"out={out}")
    lines = (out / "episodes.jsonl").read_bytes().splitlines(keepends=True)
    found["eval"] |= {"episodes": sum(line.endswith(b"\n") for line in lines) - 1, "result": evaluated(out)}
    found["resumed"] = command(small, *play, f"out={out}", "resume=true")
    found["resumed"] |= {"result": evaluated(out), "expected": evaluated(place / "eval")}
    found["resumed"]["kept"] = json.loads((out / "result.json").read_text())["rollout"]["resumed"]
    subprocess.run(["rm", "-rf", str(out)], check=True)
    control = ["control", str(place / "policy"), f"env={world}", "seconds=2", "trace=true"]
    with filled(small, RESERVE + (8 << 10)):
        found["control"] = command(small, *control, f"out={small / 'control'}")
    found["control"]["trace"] = json.loads((small / "control" / "control.json").read_text())["trace"]
    subprocess.run(["rm", "-rf", str(small / "control")], check=True)
    with filled(small, RESERVE // 2):
        found["control at once"] = command(small, *control, f"out={small / 'control'}")
    found["collect"] = collected(place, small, world)
    train = ["train", *TINY, *SHORT, "policy.observations=[state]", f"data={place / 'little'}", f"cache={place / 'cache'}"]
    found["train"] = command(small, *train, f"out={small / 'run'}")
    steps = [item.name for item in (small / "run" / "checkpoints").iterdir() if item.name.isdigit()]
    found["train"]["checkpoints"] = steps
    (small / "run" / "metrics.jsonl").write_text("")
    subprocess.run(["rm", "-rf", str(small / "run")], check=True)
    subprocess.run(["rm", "-rf", str(small / "run"), str(small / "control")], check=True)
    (place / "theirs").mkdir()
    export_lerobot(lerobot_unets.small(), place / "theirs")
    bring = ["import", str(place / "theirs"), "rate=10"]
    assert cli.main([*bring, f"out={place / 'ours'}"]) == 0
    for name, arguments in {"import": bring, "export": ["export-lerobot", str(place / "ours")]}.items():
        for left in (8 << 10, 64 << 10):  # within the weights, and within what goes before or after them
            with filled(small, left):
                found[f"{name} {left}"] = command(small, *arguments, f"out={small / 'new'}")
    subprocess.run(["mount", "-o", "remount,ro", str(small)], check=True)
    found["read-only convert"] = command(small, "convert", str(place / "data"), str(small / "b"), "format=zarr")
    found["read-only train"] = command(small, *train, f"out={small / 'run'}")
    found["read-only collect"] = command(small, "collect", f"env={world}", "episodes=1", "workers=1", f"out={small / 'c'}")
    found["read-only eval"] = command(small, *play, f"out={small / 'e'}")
    found["read-only control"] = command(small, *control, f"out={small / 'r'}")
    return found


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]), Path(sys.argv[2]))))
