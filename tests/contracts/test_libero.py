"""LIBERO here is LIBERO: its stored states, its success, its physics; and a list of objects that tells no secrets."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from kinoise.envs import make
from kinoise.envs.libero import assets
from kinoise.envs.libero.names import NAMES, SUITES, TASKS, canonical, definition
from kinoise.envs.libero.objects import CATEGORIES, MOST, category_of
from kinoise.envs.libero.states import read_states
from kinoise.spec import OBJECT, KinoiseError
from libero_scenes import env

pytest.importorskip("libero", reason="LIBERO isn't installed: make libero")

BOWLS = "libero/spatial-0"
DRAWER = "libero/goal-0"


def rows(observation: dict[str, np.ndarray]) -> np.ndarray:
    return observation["objects"].reshape(MOST, len(OBJECT))


def test_tasks_and_instructions_are_upstream_s_in_its_order():
    assets.load_libero()
    from libero.libero.benchmark import get_benchmark_dict

    for suite, members in SUITES.items():
        theirs = get_benchmark_dict()[f"libero_{suite}"]()
        assert [definition(task) for task in members] == theirs.get_task_names()
        assert [TASKS[task] for task in members] == [item.language for item in theirs.tasks]
    assert canonical("libero_spatial") == "spatial"
    assert canonical(NAMES["90"][12]) == "90-12"
    assert canonical("nonsense") == "nonsense"


def test_a_stored_state_is_taken_as_it_is_by_index_alone():
    made = env(BOWLS)
    stored = made._scene.stored
    assert (made.stored, len(stored)) == (50, 50)
    made.reset(seed=3, options={"index": 7})
    places = made.initial()["positions"]
    np.testing.assert_array_equal(places, stored[7, 1 : 1 + len(places)])
    made.step(made.idle_action())
    made.reset(seed=9, options={"index": 57})
    assert made.initial()["positions"] == places
    made.reset(seed=9)
    assert np.abs(np.subtract(made.initial()["positions"], places)).max() > 1e-3, "a fresh draw is not a stored state"


def test_a_fresh_draw_is_at_rest_and_numpy_s_generator_is_left_alone():
    made = env(BOWLS)
    np.random.seed(5)
    expected = np.random.random()
    np.random.seed(5)
    first, _ = made.reset(seed=1)
    assert np.random.random() == expected
    later = first
    for _ in range(5):
        later, *_ = made.step(made.idle_action())
    moved = np.abs(rows(later)[:, 4:7] - rows(first)[:, 4:7]).max()
    assert moved < 2e-3


def test_what_belongs_in_a_drawer_is_placed_in_it_at_every_draw():
    made = env("libero/spatial-4")
    for seed in range(3):
        made.reset(seed=seed)
        assert made._scene.upstream._eval_predicate(["in", "akita_black_bowl_1", "wooden_cabinet_1_top_region"])


def test_objects_are_named_by_kind_and_moving_parts_move():
    made = env(DRAWER)
    observation, _ = made.reset(seed=0)
    found = rows(observation)
    kinds = [CATEGORIES[int(index)] for index in found[found[:, 0] >= 0, 0]]
    assert kinds == sorted(kinds, key=CATEGORIES.index)
    assert {"akita_black_bowl", "wooden_cabinet", "wooden_cabinet/cabinet_middle", "flat_stove/button"} <= set(kinds)
    assert (found[len(kinds) :, 0] == -1).all()
    assert not found[len(kinds) :, 1:].any()
    row = kinds.index("wooden_cabinet/cabinet_middle")
    joint = made._scene.model.joint("wooden_cabinet_1_middle_level").qposadr[0]
    made._scene.data.qpos[joint] -= 0.1
    made._scene.upstream.sim.forward()
    shift = rows(made._observation())[row, 4:7] - found[row, 4:7]
    assert np.linalg.norm(shift) == pytest.approx(0.1, abs=1e-3)
    np.testing.assert_allclose(
        found[: len(kinds), 1:4], found[: len(kinds), 4:7] - (made._scene.hand - made._scene.base), atol=1e-5
    )
    columns = found[: len(kinds), 7:].reshape(-1, 2, 3)
    np.testing.assert_allclose(np.linalg.norm(columns, axis=-1), 1, atol=1e-5)


def test_which_of_two_bowls_is_meant_is_not_told():
    made = env(BOWLS)
    made.reset(seed=2)
    scene = made._scene
    places = [scene.model.joint(f"akita_black_bowl_{number}_joint0").qposadr[0] for number in (1, 2)]
    before = made._observation()["objects"]
    first, second = (scene.data.qpos[at : at + 7].copy() for at in places)
    scene.data.qpos[places[0] : places[0] + 7], scene.data.qpos[places[1] : places[1] + 7] = second, first
    scene.upstream.sim.forward()
    np.testing.assert_allclose(made._observation()["objects"], before, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "kind"), [("akita_black_bowl_1", "akita_black_bowl"), ("chefmate_8_frypan_12", "chefmate_8_frypan")]
)
def test_an_instance_s_kind_is_its_name_without_the_number(name, kind):
    assert category_of(name) == kind
    assert category_of("floor") == "floor"


def test_pictures_are_upright_and_show_what_moves():
    made = make(BOWLS, render=True, cameras=("agentview", "robot0_eye_in_hand"), size=64)
    observation, _ = made.reset(seed=0, options={"index": 0})
    shown, seen = made.render(), observation["image.agentview"]
    assert seen.shape == (64, 64, 3)
    for view in (shown.astype(float), seen.astype(float)):
        # The robot, white, stands at the far side of the table: in the upper half of an upright picture.
        white = (view.min(-1) > 180) & (np.ptp(view, axis=-1) < 12)
        half, side = len(view) // 2, len(view) // 4
        assert white[:side, side:-side].mean() > 2 * white[half:, side:-side].mean()
    # What a policy sees is what people see, and neither turned nor mirrored.
    small = shown.reshape(64, len(shown) // 64, 64, -1, 3).mean((1, 3))
    ways = {"as it is": small, "upside down": small[::-1], "mirrored": small[:, ::-1], "turned": small[::-1, ::-1]}
    apart = {name: np.abs(seen - way).mean() for name, way in ways.items()}
    assert 3 * apart.pop("as it is") < min(apart.values())
    before = observation["image.robot0_eye_in_hand"].astype(int)
    for _ in range(10):
        observation, *_ = made.step(np.array([0, 0, -1, 0, 0, 0, -1], np.float32))
    assert np.abs(observation["image.robot0_eye_in_hand"] - before).mean() > 5
    made.close()


def test_stored_states_are_read_without_running_what_a_pickle_asks_for(tmp_path):
    file = tmp_path / "states.pruned_init"
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps(len))
    with pytest.raises(KinoiseError, match=r"builtins\.len.*make libero"):
        read_states(file)
    file.write_bytes(b"not a zip")
    with pytest.raises(KinoiseError, match=r"states\.pruned_init"):
        read_states(file)


def test_assets_are_compared_with_upstream_s(tmp_path, monkeypatch):
    folder = assets.assets_folder()
    assert folder is not None
    assert not list(assets.damaged(folder, contents=False))
    first, second, third = (line.split("\t") for line in assets.LISTING.read_text().splitlines()[:3])
    monkeypatch.setattr(assets, "LISTING", tmp_path / "listing")
    assets.LISTING.write_text("\n".join("\t".join(line) for line in (first, second, third)))
    for _, _, path in (first, second):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_bytes((folder / path).read_bytes())
    (tmp_path / second[2]).write_bytes(b"!" * int(second[1]))
    assert dict(assets.damaged(tmp_path)) == {second[2]: "has another content than upstream's", third[2]: "missing"}


ASKED = "from kinoise.envs.libero.assets import load_libero; print(load_libero().get_libero_path('bddl_files'))"


@pytest.mark.parametrize("configured", [False, True])
def test_upstream_has_nothing_to_ask(configured, tmp_path):
    own = tmp_path / "own"
    own.mkdir()
    theirs = {key: str(own / key) for key in ("assets", "bddl_files", "benchmark_root", "datasets", "init_states")}
    if configured:
        (own / "config.yaml").write_text("\n".join(f"{key}: {path}" for key, path in theirs.items()))
    before = [(item, item.read_text()) for item in own.iterdir()]
    variables = {key: value for key, value in os.environ.items() if key != "XDG_CACHE_HOME"}
    variables |= {"HOME": str(tmp_path), "LIBERO_CONFIG_PATH": str(own)}
    command = [sys.executable, "-c", ASKED]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, env=variables, timeout=600)
    assert done.returncode == 0, done.stderr
    found = done.stdout.splitlines()[-1]
    written = list((tmp_path / ".cache" / "kinoise").rglob("config.yaml"))
    assert [(item, item.read_text()) for item in own.iterdir()] == before
    assert not (tmp_path / ".libero").exists()
    assert len(written) == (not configured)
    if configured:
        assert found == theirs["bddl_files"]
    else:
        assert str(found) in written[0].read_text()
        assert (Path(found) / "libero_goal").is_dir()
