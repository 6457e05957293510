"""Writing robomimic's HDF5 and reading it again loses nothing."""

from __future__ import annotations

import json
from pathlib import Path
from tempfile import TemporaryDirectory

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kinoise import files
from kinoise.data import Episode, open_store, write_store
from kinoise.data.base import DONE, REWARD, SIM_STATE, episode, features
from kinoise.data.robomimic.reader import RobomimicStore
from kinoise.spec import Feature, Spec
from robomimic_files import ENV_ARGS, LENGTHS, arrays, change, equal, foreign, put, same


@pytest.fixture(scope="module", autouse=True)
def _no_flush():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files, "sync", lambda path: None)
        yield


def test_there_and_back_by_the_native_store_is_the_identity(tmp_path):
    first = open_store(foreign(tmp_path / "a.hdf5"))
    for write, name in (
        (write_store, "b"),
        (RobomimicStore.write, "c.hdf5"),
        (write_store, "d"),
        (RobomimicStore.write, "e.h5"),
    ):
        assert not write(tmp_path / name, first.spec, (episode(first, index) for index in range(3)), meta=first.meta)
        again = open_store(tmp_path / name)
        same(again, first)
        assert name in ("b", "d") or again.dropped == ()
    with h5py.File(tmp_path / "e.h5") as file:
        assert json.loads(file["data"].attrs["env_args"]) == ENV_ARGS
        assert file["data"].attrs["total"] == 13
        assert file["data/demo_2"].attrs["model_file"] == "<mujoco model='demo_10'/>"
        assert sorted(file["mask/train"][:].tolist()) == [b"demo_0", b"demo_2"]
        assert file["data/demo_0/actions"].dtype == np.float64
        for index, (name, steps) in enumerate(LENGTHS.items()):
            for key, array in arrays(name, steps).items():
                there = file[f"data/demo_{index}/{key}"][()]
                rounded = key == "actions" or key.startswith("obs/")
                np.testing.assert_array_equal(there, array.astype(np.float32) if rounded and array.dtype == float else array)
                if key.startswith("obs/"):
                    np.testing.assert_array_equal(file[f"data/demo_{index}/next_{key}"], [*there[1:], there[-1]])


def test_what_others_changed_in_a_file_of_ours_is_seen(tmp_path):
    spec = Spec({"state": Feature((3,), unit=("m",))}, Feature((2,)), rate=10.0, language=False)
    items = [
        Episode({"state": np.ones((4, 3), np.float32), "action": np.ones((4, 2), np.float32)}, info={"n": n}) for n in (1, 2)
    ]
    path = tmp_path / "a.hdf5"
    RobomimicStore.write(path, spec, items)
    change(path, lambda file: put(file, "mask/new", np.array(["demo_1"], dtype="S")))
    change(path, lambda file: [put(file, f"data/demo_{n}/value", np.ones(4)) for n in range(2)])
    store = open_store(path)
    assert (store.spec, store.dropped) == (spec, ())
    assert store.info == [{"n": 1}, {"n": 2, "filters": ["new"]}]
    assert store.extras.keys() == {"value"}
    change(path, lambda file: [put(file, f"data/demo_{n}/obs/other", np.ones((4, 2))) for n in range(2)])
    store = open_store(path)
    assert store.spec.observations == {"other": Feature((2,)), "state": Feature((3,))}
    assert store.info[0] == {"n": 1}
    assert any(line.startswith("data's attribute kinoise: not used") for line in store.dropped)


@pytest.mark.parametrize("edit", [{"format": 2}, {"spec": None}, {"paths": {"state": []}}, {"extras": {"a": {}}}, {"made": 1}])
def test_a_damaged_note_of_kinoises_is_not_used(edit, tmp_path):
    spec = Spec({"state": Feature((1,), unit=("m",))}, Feature((1,)), rate=10.0, language=False)
    ones = np.ones((2, 1), np.float32)
    RobomimicStore.write(tmp_path / "a.hdf5", spec, [Episode({"state": ones, "action": ones})])

    def spoil(file: h5py.File) -> None:
        header = {**json.loads(file["data"].attrs["kinoise"]), **edit}
        file["data"].attrs["kinoise"] = json.dumps(header)

    store = open_store(change(tmp_path / "a.hdf5", spoil))
    assert store.spec.observations == {"state": Feature((1,))}
    assert any(line.startswith("data's attribute kinoise: not used") for line in store.dropped)


def test_extras_under_robomimics_own_names_are_told(tmp_path):
    spec = Spec({"state": Feature((1,))}, Feature((1,)), rate=10.0, language=False)
    ones = np.ones((2, 1), np.float32)
    item = Episode({"state": ones, "action": ones}, extras={"rewards": np.zeros(2), REWARD: np.ones(2)})
    lost = RobomimicStore.write(tmp_path / "a.hdf5", spec, [item])
    assert len(lost) == 1
    assert "'rewards'" in lost[0]
    store = open_store(tmp_path / "a.hdf5")
    np.testing.assert_array_equal(store.read(REWARD, 0, 2), [1, 1])
    assert store.extras.keys() == {REWARD}


NAMES = st.text("abcé _.-", min_size=1, max_size=6).filter(lambda name: name == Path(name).name and not name.startswith("."))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)


DTYPES = st.sampled_from([np.bool_, np.uint8, np.int16, np.int64, np.uint64, np.float16, np.float32, np.float64])


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_writing_and_reading_is_the_identity(data: st.DataObject):
    draw = data.draw
    states = draw(st.dictionaries(NAMES, st.integers(1, 4), max_size=3))
    cameras = draw(st.dictionaries(NAMES.map(lambda name: f"image.{name}") | NAMES, st.integers(1, 3), max_size=2))
    observations = {key: Feature((size,), unit=("m",)) for key, size in states.items()}
    observations |= {key: Feature((size, size + 1, 3), "image") for key, size in cameras.items()}
    spec = Spec(
        {key: feature for key, feature in observations.items() if key != "action"},
        Feature((2,), names=("x", "y"), low=(-1.0, 0.0), high=(1.0, 2.0)),
        rate=draw(st.floats(0.1, 1000)),
        control=draw(st.sampled_from(["absolute", "relative", "delta"])),
        gripper=(1,),
        language=draw(st.booleans()),
    )
    beside = draw(
        st.dictionaries(
            st.sampled_from([REWARD, DONE, SIM_STATE, "success", "timestamp"]) | NAMES,
            st.tuples(DTYPES, st.lists(st.integers(1, 3), max_size=2)),
            max_size=3,
        )
    )
    beside = {key: value for key, value in beside.items() if key not in {*spec.observations, "action", "obs"}}
    rng = np.random.default_rng(draw(st.integers(0, 2**16)))
    filters = st.lists(st.text(min_size=1, max_size=4), max_size=3, unique=True)
    items = []
    for steps in draw(st.lists(st.integers(1, 5), min_size=1, max_size=3)):
        info = draw(st.dictionaries(st.text(max_size=3), JSON, max_size=2))
        info |= draw(st.fixed_dictionaries({}, optional={"filters": filters, "model_file": st.text(), "task": st.text()}))
        made = {
            key: rng.integers(0, 256, (steps, *feature.shape), np.uint8)
            if feature.kind == "image"
            else rng.normal(size=(steps, *feature.shape)).astype(np.float32)
            for key, feature in features(spec).items()
        }
        more = {key: rng.integers(0, 2, (steps, *shape)).astype(dtype) for key, (dtype, shape) in beside.items()}
        items.append(Episode(made, draw(st.text(min_size=int(spec.language))), info, more))
    meta = draw(st.dictionaries(st.text(max_size=3) | st.just("robomimic"), JSON, max_size=2))
    with TemporaryDirectory() as folder:
        path = Path(folder) / "set é.hdf5"
        assert RobomimicStore.write(path, spec, iter(items), meta) == []
        store = open_store(path)
        assert store.dropped == ()
        assert (store.spec, store.meta) == (spec, meta)
        assert list(store.spec.observations) == list(spec.observations)
        assert len(store.ends) == len(items)
        for index, item in enumerate(items):
            equal(episode(store, index), item)
