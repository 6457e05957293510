"""Stores that pass between kinoise and zarr 2, the one that diffusion_policy's ReplayBuffer uses."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from kinoise.data import Episode, Reading, open_store
from kinoise.data.replay.writer import write_replay
from kinoise.spec import Feature, Spec

ROOT = Path(__file__).resolve().parents[2]
NEEDS = ("zarr==2.18.7", "numcodecs<0.16")
READ = """
import json, sys, numpy, zarr
path, out = sys.argv[1:]
root = zarr.group(zarr.ZipStore(path, mode="r") if path.endswith(".zip") else zarr.DirectoryStore(path))
ends = root["meta"]["episode_ends"][:]
assert all(value.shape[0] == ends[-1] for _, value in root["data"].items())  # ReplayBuffer demands it
numpy.savez(out, ends=ends, **{key: value[:] for key, value in root["data"].items()})
"""
WRITE = """
import sys, numpy, zarr
path, source = sys.argv[1:]
store = zarr.ZipStore(path, mode="w") if path.endswith(".zip") else zarr.DirectoryStore(path)
root, given = zarr.group(store), numpy.load(source)
data, meta = root.require_group("data"), root.require_group("meta")
for key in given:
    group = meta if key == "episode_ends" else data
    compressor = zarr.Blosc(cname="lz4", clevel=5, shuffle=zarr.Blosc.NOSHUFFLE) if key == "img" else "default"
    chunks = (4, *given[key].shape[1:])
    group.array(key, given[key], shape=given[key].shape, chunks=chunks, dtype=given[key].dtype, compressor=compressor)
store.close()
"""


@pytest.fixture(scope="module")
def zarr2() -> Path:
    """The Python of an environment with zarr 2, made once for each checkout."""
    folder = ROOT / ".peers" / "zarr-2"
    made = folder / "made.json"
    if not made.exists() or json.loads(made.read_text()) != list(NEEDS):
        steps = [
            (sys.executable, "-m", "venv", "--clear", str(folder)),
            (str(folder / "bin/python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *NEEDS),
        ]
        for step in steps:
            done = subprocess.run(step, capture_output=True, text=True, timeout=600, check=False)
            if done.returncode:
                pytest.skip(f"no environment with zarr 2: {done.stderr[-200:]}")
        made.write_text(json.dumps(NEEDS))
    return folder / "bin" / "python"


def run(python: Path, code: str, *arguments: Path) -> None:
    done = subprocess.run([python, "-c", code, *arguments], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", ["sto re", "störe.zarr.zip"])
def test_zarr_2_reads_what_kinoise_writes(name, zarr2, tmp_path):
    rng = np.random.default_rng(0)
    spec = Spec({"img": Feature((16, 17, 3), "image"), "state": Feature((3,))}, Feature((2,)), rate=10.0)
    items = [
        Episode(
            {
                "img": rng.integers(0, 256, (steps, 16, 17, 3), np.uint8),
                "state": rng.normal(size=(steps, 3)).astype(np.float32),
                "action": rng.normal(size=(steps, 2)).astype(np.float32),
            },
            "schieb",
            extras={"reward": rng.normal(size=steps), "done": np.arange(steps) == steps - 1},
        )
        for steps in (7, 1, 9)
    ]
    write_replay(tmp_path / name, spec, items, chunk_bytes=4000)
    run(zarr2, READ, tmp_path / name, tmp_path / "read.npz")
    with np.load(tmp_path / "read.npz") as found:
        assert sorted(found) == ["action", "done", "ends", "img", "reward", "state"]
        assert found["ends"].tolist() == [7, 8, 17]
        for key in ("img", "state", "action"):
            np.testing.assert_array_equal(found[key], np.concatenate([item.arrays[key] for item in items]))
        for key in ("reward", "done"):
            np.testing.assert_array_equal(found[key], np.concatenate([item.extras[key] for item in items]))


@pytest.mark.parametrize("name", ["sto re", "störe.zarr.zip"])
def test_kinoise_reads_what_zarr_2_writes(name, zarr2, tmp_path):
    rng = np.random.default_rng(0)
    truth = {
        "action": rng.normal(size=(17, 2)).astype(np.float32),
        "img": rng.integers(0, 256, (17, 16, 17, 3)).astype(np.float32),
        "keypoint": np.zeros((17, 9, 2), np.float32),
        "timestamp": np.arange(17.0),
        "episode_ends": np.array([7, 8, 17]),
    }
    np.savez(tmp_path / "given.npz", **truth)
    run(zarr2, WRITE, tmp_path / name, tmp_path / "given.npz")
    store = open_store(tmp_path / name, Reading(rate=10.0))
    assert store.ends.tolist() == [7, 8, 17]
    for key in ("action", "img", "timestamp"):
        np.testing.assert_array_equal(store.read(key, 0, 17), truth[key])
    assert not store.read("keypoint", 0, 17).any()
