"""robosuite's tasks here are robosuite's as robomimic has them: draws, physics, pictures and files."""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from kinoise.data import open_store
from kinoise.envs import check_made, check_recorded, make, tasks
from kinoise.envs.robosuite import env as ours
from kinoise.envs.robosuite import recorded, upstream
from kinoise.policies import choices
from kinoise.spec import KinoiseError
from kinoise.train.__main__ import build
from kinoise.train.config import Settings

if find_spec("robosuite") is None:
    pytest.skip("robosuite isn't installed", allow_module_level=True)

VERSION = "1.4.0"
THEIRS = {"object": "object-state"}
"""robosuite's names of what robomimic calls otherwise."""
CAMERAS = ("agentview", "robot0_eye_in_hand")


@cache
def env(task: str, cameras: tuple[str, ...] = ()) -> ours.Robosuite:
    made = make(f"robosuite/{task}", cameras=cameras, size=32)
    assert isinstance(made, ours.Robosuite)
    return made


@pytest.fixture(scope="module", autouse=True)
def closed():
    """robosuite ends OpenGL before our pictures are put away, once it has drawn some."""
    yield
    env("can", CAMERAS).close()
    env.cache_clear()


@cache
def theirs(task: str) -> Any:
    """robosuite's own environment, which compiles its model anew for every episode."""
    made = upstream.build(task)
    made.hard_reset = True
    return made


def differing(found: dict[str, np.ndarray], wanted: dict[str, np.ndarray]) -> float:
    keys = [key for key in found if not key.startswith("image.")]
    return max(float(np.abs(found[key] - wanted[THEIRS.get(key, key)]).max()) for key in keys)


# robosuite


@pytest.mark.parametrize("task", upstream.TASKS)
def test_an_episode_is_robosuite_s_after_numpy_is_seeded(task):
    mine, other = env(task), theirs(task)
    mine.reset(seed=2)
    mine.step(np.ones(7, np.float32))
    found, _ = mine.reset(seed=1)
    np.random.seed(1)
    wanted = other.reset()
    np.testing.assert_array_equal(mine.initial()["qpos"], other.sim.data._data.qpos)
    assert differing(found, wanted) < 1e-6
    rng, action = np.random.default_rng(0), np.zeros(7)
    for _ in range(15):
        action = np.clip(0.8 * action + 0.4 * rng.normal(size=7), -1, 1).astype(np.float32)
        found, reward, *_, info = mine.step(action)
        wanted, expected, *_ = other.step(action.astype(np.float64))
        assert differing(found, wanted) < 1e-4
        assert (reward, info["success"]) == (expected, other._check_success())


def test_lift_s_cube_is_compiled_anew_in_robosuite_and_changed_here():
    mine, other = env("lift"), theirs("lift")
    mine.reset(seed=5)
    with upstream.drawing(5):
        other.reset()
    models = [mine._model, other.sim.model._model]
    for name in (
        "body_mass",
        "body_inertia",
        "body_invweight0",
        "body_subtreemass",
        "dof_invweight0",
        "geom_size",
        "geom_rbound",
    ):
        np.testing.assert_allclose(getattr(models[0], name), getattr(models[1], name), rtol=1e-9, atol=1e-12)
    for name in ("geom_aabb", "bvh_aabb", "qpos0"):
        np.testing.assert_allclose(getattr(models[0], name), getattr(models[1], name), atol=1e-12)
    assert mine.initial()["cube"] == list(map(float, other.cube.size))


def test_numpy_s_global_generator_is_given_back():
    np.random.seed(3)
    expected = np.random.rand()
    np.random.seed(3)
    env("lift").reset(seed=1)
    assert np.random.rand() == expected
    starts = [env("lift").reset(seed=seed)[0]["object"].tobytes() for seed in (7, 7 + 2**32, 7 + 2**33)]
    assert len(set(starts)) == 3, "all of a seed counts"


def test_pictures_are_robosuite_s_turned_upright():
    mine = env("can", CAMERAS)
    observation, _ = mine.reset(seed=0)
    from robosuite.utils.binding_utils import MjRenderContextOffscreen

    sim = mine._sim.sim
    context = MjRenderContextOffscreen(sim, device_id=-1)
    context.vopt.geomgroup[list(mine.hidden)] = 0
    for camera in CAMERAS:
        wanted = sim.render(camera_name=camera, width=32, height=32)[::-1]
        np.testing.assert_array_equal(observation[f"image.{camera}"], wanted)
    sim._render_context_offscreen = None
    del context
    gc.collect()  # while its display is open: at the end robosuite's would complain
    # The floor's pale tiles are under the bins, the walls behind them are grey.
    wall = observation["image.agentview"][:2].astype(int)
    assert np.ptp(wall, axis=-1).max() < 12


def test_importing_robosuite_is_silent_and_leaves_no_log(tmp_path):
    code = """
import logging
from kinoise.envs import make
make("robosuite/lift").reset(seed=0)
print([item for item in logging.getLogger("robosuite_logs").handlers if isinstance(item, logging.FileHandler)])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ}, cwd=tmp_path)
    assert (done.stdout, done.stderr) == ("[]\n", "")


def test_another_version_is_refused(monkeypatch):
    monkeypatch.setattr(upstream, "version", lambda name: "1.2.0")
    with pytest.raises(KinoiseError, match=r"robosuite 1\.2\.0 is installed; expected 1\.4 and 1\.5"):
        make("robosuite/lift")


def test_names():
    assert tasks("robosuite/PickPlaceCan") == tasks("robosuite/can") == ("robosuite/can",)
    assert tasks("robosuite/NutAssemblySquare,lift") == ("robosuite/square", "robosuite/lift")


# robomimic's files


def record(path: Path, made: ours.Robosuite, steps: int = 3) -> Path:
    """A file as robomimic's scripts write it, and nothing of kinoise's, of an episode from here."""
    observation, _ = made.reset(seed=0)
    seen: dict[str, list[np.ndarray]] = {}
    for _ in range(steps):
        for key, value in observation.items():
            name = f"{key.removeprefix('image.')}_image" if key.startswith("image.") else key
            seen.setdefault(name, []).append(value if value.dtype == np.uint8 else value.astype(np.float64))
        observation, *_ = made.step(np.zeros(7, np.float32))
    with h5py.File(path, "w") as file:
        data = file.create_group("data")
        data.attrs["env_args"] = json.dumps(made.meta()["robomimic"]["env_args"], indent=4)
        data.attrs["total"] = steps
        demo = data.create_group("demo_0")
        demo.attrs["num_samples"] = steps
        demo["actions"], demo["dones"], demo["rewards"] = np.zeros((steps, 7)), np.zeros(steps, np.int64), np.zeros(steps)
        for name, values in seen.items():
            demo[f"obs/{name}"] = np.stack(values)
    return path


@pytest.mark.parametrize("task", upstream.TASKS)
def test_the_spec_is_what_is_read_from_robomimic_s_file(task, tmp_path):
    made = env(task, CAMERAS if task == "can" else ())
    store = open_store(record(tmp_path / "file.hdf5", made))
    assert store.spec.differences(made.spec) == []
    assert store.spec == made.spec
    first, _ = made.reset(seed=0)
    for key, value in first.items():
        np.testing.assert_array_equal(store.read(key, 0, 1)[0], value)
    check_recorded([f"robosuite/{task}"], store.meta["robomimic"]["env_args"])


def test_training_keeps_what_the_file_says(tmp_path):
    store = open_store(record(tmp_path / "file.hdf5", env("lift")))
    settings = Settings(data="file.hdf5", out="run", policy=choices()["mode"])
    assert build(settings, store).recorded == env("lift").meta()["robomimic"]["env_args"]


def test_an_environment_elsewhere_is_compared_by_what_it_says_of_itself():
    meta, newer = env("lift").meta(), recorded.made("lift", "1.5.1")
    check_made("ws://there:8100/robosuite/lift", meta, recorded.made("lift", VERSION))
    with pytest.raises(KinoiseError, match=r"ws://there:8100/robosuite/lift with robosuite .*env_version is 1\.5\.1"):
        check_made("ws://there:8100/robosuite/lift", meta, newer)
    check_made("ws://there:8100/robosuite/lift", meta, {})
    check_made("ws://there:8100/metaworld/push", {}, newer)
