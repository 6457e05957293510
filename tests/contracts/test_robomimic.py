"""robomimic's HDF5: what is read of files that others wrote."""

from __future__ import annotations

import json
import multiprocessing
import pickle
from typing import Any

import h5py
import numpy as np
import pytest
from kinoise import files
from kinoise.data import Reading, open_store
from kinoise.data.base import DONE, REWARD, SIM_STATE, episode
from kinoise.data.robomimic.reader import RobomimicStore
from kinoise.spec import Feature, KinoiseError
from robomimic_files import ENV_ARGS, LENGTHS, OSC, arrays, change, foreign, put, same


@pytest.fixture(scope="module", autouse=True)
def _no_flush():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files, "sync", lambda path: None)
        yield


def test_a_file_of_robomimics_is_read_by_number_with_everything_it_says(tmp_path):
    store = open_store(foreign(tmp_path / "ünd so.hdf5"))
    assert store.format == "robomimic"
    assert store.ends.tolist() == [5, 6, 13]
    assert [info["demo"] for info in store.info] == ["demo_0", "demo_2", "demo_10"]
    assert store.info[0] == {
        "demo": "demo_0",
        "task": "Lift",
        "model_file": "<mujoco model='demo_0'/>",
        "filters": ["train"],
    }
    assert [info["filters"] for info in store.info] == [["train"], ["valid"], ["train"]]
    spec = store.spec
    assert spec.observations == {
        "image.agentview": Feature((6, 8, 3), "image"),
        "object": Feature((10,)),
        "robot0_eef_pos": Feature((3,)),
    }
    assert spec.action == Feature((7,), low=(-1.0,) * 7, high=(1.0,) * 7)
    assert (spec.rate, spec.control, spec.gripper, spec.language) == (20.0, "delta", (6,), False)
    assert store.meta["robomimic"]["env_args"] == ENV_ARGS
    for index, (name, steps) in enumerate(LENGTHS.items()):
        found, truth = episode(store, index), arrays(name, steps)
        np.testing.assert_array_equal(found.arrays["image.agentview"], truth["obs/agentview_image"])
        np.testing.assert_array_equal(found.arrays["robot0_eef_pos"], truth["obs/robot0_eef_pos"].astype(np.float32))
        np.testing.assert_array_equal(found.arrays["action"], truth["actions"].astype(np.float32))
        for key, theirs in ((REWARD, "rewards"), (DONE, "dones"), (SIM_STATE, "states")):
            np.testing.assert_array_equal(found.extras[key], truth[theirs])
            assert found.extras[key].dtype == truth[theirs].dtype
    said = "\n".join(store.dropped)
    assert "actions, obs/robot0_eef_pos: float64" in said
    assert "next_obs" in said


def composite(input_type: str = "delta", arms: tuple[str, ...] = ("right",)) -> dict[str, Any]:
    parts = {"arms": {arm: {"type": "OSC_POSE", "input_type": input_type} for arm in arms}, "base": {"type": "JOINT_VELOCITY"}}
    return {"type": "BASIC", "body_parts": parts}


@pytest.mark.parametrize(
    ("controllers", "control", "gripper"),
    [
        (OSC, "delta", (6,)),
        ({"type": "OSC_POSE"}, "delta", (6,)),
        ({"type": "OSC_POSE", "control_delta": False}, "absolute", (6,)),
        ([OSC], "delta", (6,)),
        ({"type": "JOINT_VELOCITY"}, "absolute", ()),
        ({"type": "JOINT_POSITION"}, "delta", ()),
        (composite(), "delta", (6,)),
        (composite("absolute"), "absolute", (6,)),
        (composite(arms=("right", "left")), "delta", ()),
        (None, "delta", ()),
        ("nonsense", "delta", ()),
    ],
)
def test_control_and_gripper_are_the_controllers(controllers, control, gripper, tmp_path):
    given = {**ENV_ARGS["env_kwargs"], "controller_configs": controllers}
    spec = open_store(foreign(tmp_path / "a.hdf5", {**ENV_ARGS, "env_kwargs": given})).spec
    assert (spec.control, spec.gripper) == (control, gripper)
    known = controllers is not None and controllers != "nonsense"
    assert (spec.action.low is not None) == (known and control == "delta")


def test_two_arms_have_two_grippers(tmp_path):
    def two(file: h5py.File) -> None:
        put(file, "data/demo_0/actions", np.zeros((5, 14)))

    given = {**ENV_ARGS["env_kwargs"], "controller_configs": [OSC, OSC]}
    path = change(foreign(tmp_path / "a.hdf5", {**ENV_ARGS, "env_kwargs": given}, {"demo_0": 5}), two)
    assert open_store(path, report=lambda problem: None).spec.gripper == (6, 13)


def test_the_user_says_the_rate_that_the_file_lacks(tmp_path):
    path = foreign(tmp_path / "a.hdf5", {"env_name": "Lift", "type": 1, "env_kwargs": {}})
    with pytest.raises(KinoiseError, match="Say it with rate="):
        open_store(path)
    assert open_store(path, Reading(rate=15.0)).spec.rate == 15.0
    assert open_store(foreign(tmp_path / "b.hdf5", None), Reading(rate=15.0)).spec.rate == 15.0


@pytest.mark.parametrize("options", [{"compression": "gzip"}, {"compression": "lzf", "shuffle": True}, {"chunks": True}])
def test_compressed_and_chunked_arrays_are_the_same(options, tmp_path):
    same(open_store(foreign(tmp_path / "a.h5", **options)), open_store(foreign(tmp_path / "b.h5")))


def test_a_file_of_liberos_has_its_instruction_and_upright_images(tmp_path):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (4, 6, 6, 3), np.uint8)
    with h5py.File(tmp_path / "pick_up_the_bowl_demo.hdf5", "w") as file:
        data = file.create_group("data")
        data.attrs["env_name"] = "Libero_Tabletop_Manipulation"
        data.attrs["problem_info"] = json.dumps({"problem_name": "x", "language_instruction": ["pick", "up", "the", "bowl"]})
        data.attrs["macros_image_convention"] = "opengl"
        data.attrs["bddl_file_name"] = "libero_goal/pick.bddl"
        data.attrs["env_args"] = json.dumps({**ENV_ARGS, "bddl_file": "libero_goal/pick.bddl"})
        demo = data.create_group("demo_0")
        for key, array in {
            "obs/ee_ori": rng.normal(size=(4, 3)),
            "obs/gripper_states": rng.normal(size=(4, 2)),
            "obs/agentview_rgb": images,
            "obs/eye_in_hand_rgb": images,
            "obs/agentview_depth": rng.normal(size=(4, 6, 6, 1)),
            "actions": rng.normal(size=(4, 7)),
            "states": rng.normal(size=(4, 9)),
            "robot_states": rng.normal(size=(4, 9)),
            "rewards": np.zeros(4, np.uint8),
            "dones": np.zeros(4, np.uint8),
        }.items():
            demo.create_dataset(key, data=array)
        demo.attrs["num_samples"] = 4
        demo.attrs["init_state"] = np.zeros(9)
        data.attrs["num_demos"], data.attrs["total"] = 1, 4
    store = open_store(tmp_path / "pick_up_the_bowl_demo.hdf5")
    assert store.texts == ("pick up the bowl",)
    assert store.spec.language
    assert list(store.spec.observations) == ["image.agentview", "ee_ori", "image.eye_in_hand", "gripper_states"]
    np.testing.assert_array_equal(store.read("image.agentview", 0, 4), images[:, ::-1])
    assert store.extras.keys() == {REWARD, DONE, SIM_STATE, "robot_states"}
    assert store.meta["robomimic"]["attributes"]["bddl_file_name"] == "libero_goal/pick.bddl"
    said = "\n".join(store.dropped)
    for lost in ("obs/agentview_depth", "init_state", "macros_image_convention"):
        assert lost in said
    items = [episode(store, 0)]
    RobomimicStore.write(tmp_path / "again.hdf5", store.spec, items, store.meta)
    same(open_store(tmp_path / "again.hdf5"), store)
    with h5py.File(tmp_path / "again.hdf5") as file:
        np.testing.assert_array_equal(file["data/demo_0/obs/agentview_rgb"], images[:, ::-1])


def test_groups_beside_the_arrays_are_named_and_instructions_are_each_episodes_own(tmp_path):
    def mimicgen(file: h5py.File) -> None:
        for name, steps in LENGTHS.items():
            file[f"data/{name}/datagen_info/eef_pose"] = np.zeros((steps, 4, 4))
            file[f"data/{name}/src_demo_inds"] = np.zeros(steps, np.int64)
            file[f"data/{name}/obs/robot0/pose"] = np.zeros((steps, 4, 4))
            file[f"data/{name}"].attrs["ep_meta"] = json.dumps({"lang": f"task of {name} é", "layout_id": 3})

    store = open_store(change(foreign(tmp_path / "a.hdf5"), mimicgen))
    assert "datagen_info" in "\n".join(store.dropped)
    assert store.extras.keys() == {REWARD, DONE, SIM_STATE, "src_demo_inds"}
    assert store.texts == tuple(f"task of {name} é" for name in LENGTHS)
    assert store.info[0]["ep_meta"]["layout_id"] == 3
    assert store.spec.observations["robot0.pose"] == Feature((16,))
    assert any("obs/robot0/pose" in line and "[16]" in line for line in store.dropped)
    RobomimicStore.write(tmp_path / "b.hdf5", store.spec, [episode(store, 0)], store.meta)
    with h5py.File(tmp_path / "b.hdf5") as file:
        assert file["data/demo_0/obs/robot0/pose"].shape == (5, 16)
        assert json.loads(file["data/demo_0"].attrs["ep_meta"]) == {"lang": "task of demo_0 é", "layout_id": 3}


def test_filters_choose_episodes(tmp_path):
    path = foreign(tmp_path / "a.hdf5")
    store = open_store(path, Reading(filter="train"))
    assert [info["demo"] for info in store.info] == ["demo_0", "demo_10"]
    np.testing.assert_array_equal(store.read("action", 5, 12), arrays("demo_10", 7)["actions"].astype(np.float32))
    del store
    with pytest.raises(KinoiseError, match=r"filter 'test' is unknown; the file has train, valid\."):
        open_store(path, Reading(filter="test"))
    change(path, lambda file: put(file, "mask/none", np.array([], dtype="S1")))
    with pytest.raises(KinoiseError, match="filter 'none' is empty"):
        open_store(path, Reading(filter="none"))
    assert len(open_store(path).ends) == 3
    change(path, lambda file: put(file, "mask/gone", np.array(["demo_2", "demo_7", "demo_11"], dtype="S")))
    with pytest.raises(KinoiseError, match="mask/gone lists demo_7, demo_11, which data lacks"):
        open_store(path, Reading(filter="gone"))
    assert "mask/gone: demo_7, demo_11, which data lacks" in open_store(path).dropped
    problems: list[str] = []
    assert len(open_store(path, Reading(filter="gone"), problems.append).ends) == 1
    assert len(problems) == 1
    change(path, lambda file: file.__delitem__("mask"))
    with pytest.raises(KinoiseError, match="the file has none"):
        open_store(path, Reading(filter="train"))


def test_a_store_is_read_in_other_processes(tmp_path):
    store = open_store(foreign(tmp_path / "a.hdf5"))
    truth = store.read("action", 0, 13)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(store)).read("action", 0, 13), truth)
    with multiprocessing.get_context("fork").Pool(2) as pool:
        for found in pool.starmap(store.read, [("action", 0, 13)] * 4):
            np.testing.assert_array_equal(found, truth)
        pool.close()
        pool.join()


@pytest.mark.parametrize(("control", "bound"), [(None, True), ("delta", True), ("absolute", False), ("relative", False)])
def test_bounds_of_steps_are_not_those_of_what_the_user_says_are_places(control, bound, tmp_path):
    store = open_store(foreign(tmp_path / "a.hdf5"), Reading(control=control))
    assert store.spec.control == (control or "delta")
    assert (store.spec.action.low, store.spec.action.high) == (((-1.0,) * 7, (1.0,) * 7) if bound else (None, None))


def test_a_recording_without_observations_says_how_to_make_them(tmp_path):
    def strip(file: h5py.File) -> None:
        for name in LENGTHS:
            del file[f"data/{name}/obs"]

    path = change(foreign(tmp_path / "a.hdf5"), strip)
    with pytest.raises(KinoiseError, match=r"no observations, only actions and .*sim_state.*dataset_states_to_obs"):
        open_store(path)


def test_arrays_that_no_extra_can_be_are_left_out_and_listed(tmp_path):
    def add(file: h5py.File) -> None:
        for name, steps in LENGTHS.items():
            put(file, f"data/{name}/nothing", np.zeros((steps, 0)))
            put(file, f"data/{name}/wide", np.zeros(steps, np.longdouble))

    store = open_store(change(foreign(tmp_path / "a.hdf5"), add))
    assert store.extras.keys() == {REWARD, DONE, SIM_STATE}
    assert {"nothing", "wide"} <= {line.split(":")[0] for line in store.dropped}


def test_a_scene_that_demonstrations_share_is_kept_once(tmp_path):
    def scene(file: h5py.File) -> None:
        for name in LENGTHS:
            file[f"data/{name}"].attrs["model_file"] = "<mujoco>" * 10_000

    store = open_store(change(foreign(tmp_path / "a.hdf5"), scene))
    assert [info["model_file"] for info in store.info] == ["<mujoco>" * 10_000] * 3
    assert len(pickle.dumps(store)) < 160_000
