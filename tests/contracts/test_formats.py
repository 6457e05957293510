"""What every registered file format promises, and how a damaged store is told from a sound one."""

from __future__ import annotations

import errno
import json
import shutil
import weakref
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from kinoise import files
from kinoise.data import FORMATS, Episode, Reading, open_store, write_store
from kinoise.data.base import features
from kinoise.data.lerobot import LeRobotStore
from kinoise.data.replay.writer import write_replay
from kinoise.data.robomimic.writer import write_robomimic
from kinoise.spec import Feature, KinoiseError, Spec


def robomimic(path: Path, spec: Spec, items: Iterable[Episode], chunk_bytes: int = 0) -> None:
    """Its chunks are frames, whatever `chunk_bytes` is."""
    write_robomimic(path, spec, items, {})


def lerobot(path: Path, spec: Spec, items: Iterable[Episode], chunk_bytes: int = 2**20) -> None:
    LeRobotStore.write(path, spec, items, data_mb=chunk_bytes / 2**20)


# How a test makes a store of each registered format; a format that nobody writes cannot be tested.
WRITERS: dict[str, Callable[..., object]] = {
    "kinoise": write_store,
    "zarr": write_replay,
    "robomimic": robomimic,
    "lerobot": lerobot,
}

SPEC = Spec(
    observations={"state": Feature((3,), unit=("m",)), "image.front": Feature((4, 5, 3), "image")},
    action=Feature((2,), names=("x", "grip"), low=(-1.0, 0.0), high=(1.0, 1.0)),
    rate=20.0,
    gripper=(1,),
)


@pytest.fixture(scope="module", autouse=True)
def _no_flush():
    """Whether bytes outlive a power cut is not under test, and flushing hundreds of tiny files takes most of the time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files, "sync", lambda path: None)
        yield


def episode(rng: np.random.Generator, steps: int, spec: Spec = SPEC, text: str = "push", **info) -> Episode:
    arrays = {
        key: rng.integers(0, 256, (steps, *feature.shape), np.uint8)
        if feature.kind == "image"
        else rng.normal(size=(steps, *feature.shape)).astype(np.float32)
        for key, feature in features(spec).items()
    }
    return Episode(arrays, text, info)


def episodes(lengths: tuple[int, ...] = (7, 1, 4), seed: int = 0) -> list[Episode]:
    rng = np.random.default_rng(seed)
    return [episode(rng, steps, text=f"task {index % 2}", index=index) for index, steps in enumerate(lengths)]


def joined(items: list[Episode], key: str) -> np.ndarray:
    return np.concatenate([item.arrays[key] for item in items])


def test_every_format_is_tested():
    assert WRITERS.keys() == FORMATS.keys() - {"mixture"}  # which holds no data: see test_mixture.py
    assert all(FORMATS[name].format == name for name in FORMATS)


@pytest.mark.parametrize("name", WRITERS)
@settings(max_examples=25, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 9), min_size=1, max_size=6),
    dims=st.tuples(st.integers(1, 4), st.integers(1, 3)),
    side=st.none() | st.integers(1, 3),
    chunk_bytes=st.sampled_from([1, 40, 100, 2**20]),
    seed=st.integers(0, 2**16),
)
def test_round_trip(name, lengths, dims, side, chunk_bytes, seed):
    rng = np.random.default_rng(seed)
    images = {} if side is None else {"image.top": Feature((side, side, 3), "image")}
    spec = Spec({"state": Feature((dims[0],)), **images}, Feature((dims[1],)), rate=10.0)
    items = [episode(rng, steps, spec, f"task {rng.integers(3)}", seed=seed, nested={"a": [1, 2.5]}) for steps in lengths]
    with TemporaryDirectory() as folder:
        path = Path(folder) / "store"
        WRITERS[name](path, spec, iter(items), chunk_bytes=chunk_bytes)
        store = open_store(path)
        assert store.format == name
        assert store.spec == spec
        assert store.keys == (*spec.observations, "action")
        assert store.ends.tolist() == np.cumsum(lengths).tolist()
        assert [store.texts[index] for index in store.text] == [item.instruction for item in items]
        assert len(set(store.texts)) == len(store.texts)
        assert store.info == [item.info for item in items]
        steps = sum(lengths)
        for key in store.keys:
            truth = joined(items, key)
            start, stop = sorted(rng.integers(0, steps + 1, 2).tolist())
            indices = rng.integers(0, steps, (4, 2))
            assert store.read(key, 0, steps).dtype == truth.dtype
            np.testing.assert_array_equal(store.read(key, 0, steps), truth)
            np.testing.assert_array_equal(store.read(key, start, stop), truth[start:stop])
            np.testing.assert_array_equal(store.gather(key, indices), truth[indices])
            assert store.gather(key, indices[:0]).shape == (0, 2, *truth.shape[1:])


@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.parametrize("chunk_bytes", [100, 2**20])
def test_steps_outside_the_store_are_refused(name, chunk_bytes, tmp_path):
    WRITERS[name](tmp_path / "store", SPEC, episodes(), chunk_bytes=chunk_bytes)
    store = open_store(tmp_path / "store")
    for wrong in (-1, 12):
        with pytest.raises(IndexError):
            store.gather("state", np.array([0, wrong]))
    for wrong in ((-1, 2), (0, 13), (3, 2)):
        with pytest.raises(IndexError):
            store.read("state", *wrong)


@pytest.mark.parametrize("name", WRITERS)
def test_gathered_steps_are_the_callers_own(name, tmp_path):
    WRITERS[name](tmp_path / "store", SPEC, episodes())
    store = open_store(tmp_path / "store")
    rows = store.gather("action", np.arange(12))
    before = rows.copy()
    rows += 1
    np.testing.assert_array_equal(store.gather("action", np.arange(12)), before)


@pytest.mark.parametrize("name", WRITERS)
def test_episodes_are_streamed(name, tmp_path):
    alive: list[weakref.ref] = []

    def stream() -> Iterator[Episode]:
        for item in range(5):
            made = episode(np.random.default_rng(item), 3)
            alive.append(weakref.ref(made))
            yield made
            del made
            assert sum(ref() is not None for ref in alive) <= 1

    WRITERS[name](tmp_path / "store", SPEC, stream(), chunk_bytes=64)
    assert len(open_store(tmp_path / "store").ends) == 5


def changed(**arrays: np.ndarray | None) -> Episode:
    base = episode(np.random.default_rng(0), 4)
    merged = {**base.arrays, **{key.replace("__", "."): value for key, value in arrays.items()}}
    return Episode({key: value for key, value in merged.items() if value is not None}, base.instruction)


def nan_at(step: int, value: float = np.nan) -> np.ndarray:
    array = np.zeros((4, 3), np.float32)
    array[step, 1] = value
    return array


REFUSED = {
    "NaN": (changed(state=nan_at(2)), "'state' is NaN or infinite at step 2"),
    "infinity": (changed(state=nan_at(3, np.inf)), "at step 3"),
    "wrong shape": (changed(state=np.zeros((4, 2), np.float32)), r"float32\[4, 2\], expected float32\[4, 3\]"),
    "unequal lengths": (changed(image__front=np.zeros((3, 4, 5, 3), np.uint8)), "image.front"),
    "wrong dtype": (changed(action=np.zeros((4, 2), np.float64)), "float64"),
    "image as float": (changed(image__front=np.zeros((4, 4, 5, 3), np.float32)), "expected uint8"),
    "missing key": (changed(state=None), r"missing keys \['state'\]"),
    "unknown key": (changed(other=np.zeros(4, np.float32)), r"unknown keys \['other'\]"),
    "no steps": (episode(np.random.default_rng(0), 0), "no steps"),
    "no instruction": (episode(np.random.default_rng(0), 4, text=""), "no instruction"),
    "info beyond JSON": (episode(np.random.default_rng(0), 4, seed=np.int64(3)), "info is not JSON"),
    "NaN in info": (episode(np.random.default_rng(0), 4, initial=float("nan")), "info is not JSON"),
}


@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.parametrize("case", REFUSED)
def test_an_episode_that_does_not_fit_is_refused(name, case, tmp_path):
    bad, message = REFUSED[case]
    with pytest.raises(KinoiseError, match=message) as caught:
        WRITERS[name](tmp_path / "store", SPEC, iter([*episodes(), bad]))
    assert str(caught.value).startswith("episode 3")
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.parametrize(
    "error", [KeyboardInterrupt(), RuntimeError("the simulator died"), OSError(errno.ENOSPC, "No space left on device")]
)
def test_an_interrupted_write_leaves_nothing_behind(name, error, tmp_path):
    def stream() -> Iterator[Episode]:
        yield from episodes()
        raise error

    with pytest.raises(KinoiseError if isinstance(error, OSError) else type(error)):
        WRITERS[name](tmp_path / "store", SPEC, stream(), chunk_bytes=64)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", WRITERS)
def test_nothing_is_overwritten_and_nothing_is_not_a_store(name, tmp_path):
    with pytest.raises(KinoiseError, match="no episodes"):
        WRITERS[name](tmp_path / "store", SPEC, [])
    assert not list(tmp_path.iterdir())
    WRITERS[name](tmp_path / "store", SPEC, episodes())
    with pytest.raises(KinoiseError, match="exists already"):
        WRITERS[name](tmp_path / "store", SPEC, episodes(seed=1))
    np.testing.assert_array_equal(open_store(tmp_path / "store").read("state", 0, 12), joined(episodes(), "state"))


@pytest.mark.parametrize("name", WRITERS)
def test_a_spec_that_cannot_be_stored_is_refused(name, tmp_path):
    for spec, message in (
        (Spec({"a/b": Feature((1,))}, Feature((1,)), 1.0), "cannot name a folder"),
        (Spec({"action": Feature((1,))}, Feature((1,)), 1.0), "Rename it"),
        (Spec({"state": Feature((0,))}, Feature((1,)), 1.0), "at least one number"),
        (Spec({"state": Feature((2,), names=("x",))}, Feature((1,)), 1.0), "1 in its names"),
    ):
        with pytest.raises(KinoiseError, match=message):
            WRITERS[name](tmp_path / "store", spec, [])


def test_plain_zarr_reads_the_native_store_as_diffusion_policys(tmp_path):
    write_store(tmp_path / "store", SPEC, episodes(), chunk_bytes=100)
    group = zarr.open_group(tmp_path / "store", mode="r")
    assert group.metadata.zarr_format == 2
    assert sorted(group["data"].array_keys()) == ["action", "image.front", "state"]
    np.testing.assert_array_equal(group["meta/episode_ends"][:], [7, 8, 12])
    for key in ("action", "state", "image.front"):
        np.testing.assert_array_equal(group["data"][key][:], joined(episodes(), key))


def edit(file: Path, change: Callable[[dict], None]) -> None:
    value = json.loads(file.read_text())
    change(value)
    file.write_text(json.dumps(value))


def cut(file: Path, size: int) -> None:
    file.write_bytes(file.read_bytes()[:size])


def compress(path: Path) -> None:
    group = zarr.open_group(path, mode="r+")
    actions = group["data/action"][:]
    del group["data/action"]
    group["data"].create_array("action", data=actions, chunks=(4, 2))


def set_ends(path: Path, *ends: int) -> None:
    (path / "meta/episode_ends/0").write_bytes(np.array(ends, "<i8").tobytes())


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "truncated chunk": (lambda path: cut(path / "data/state/0.0", 50), r"data/state/0\.0 has 50 bytes, expected 96"),
    "grown chunk": (lambda path: (path / "data/state/0.0").write_bytes(bytes(97)), "97 bytes"),
    "missing chunk": (lambda path: (path / "data/image.front/1.0.0.0").unlink(), r"image\.front/1\.0\.0\.0 is missing"),
    "missing array": (lambda path: shutil.rmtree(path / "data/action"), r"data/action/\.zarray is missing"),
    "missing ends": (lambda path: shutil.rmtree(path / "meta"), r"episode_ends/\.zarray is missing"),
    "extra array": (lambda path: shutil.copytree(path / "data/state", path / "data/other"), "'other'"),
    "ends that do not increase": (lambda path: set_ends(path, 7, 7, 12), "episode 1 ends at 7"),
    "ends from zero": (lambda path: set_ends(path, 0, 7, 12), "episode 0 ends at 0"),
    "ends beyond the arrays": (lambda path: set_ends(path, 7, 8, 13), "12 steps, meta/episode_ends ends at 13"),
    "ends short of the arrays": (lambda path: set_ends(path, 7, 8, 11), "ends at 11"),
    "cut metadata": (lambda path: cut(path / "data/state/.zarray", 30), "not valid JSON"),
    "cut spec": (lambda path: cut(path / "kinoise.json", 100), "not valid JSON"),
    "empty spec": (lambda path: (path / "kinoise.json").write_text("[]"), "edited or damaged"),
    "newer version": (lambda path: edit(path / "kinoise.json", lambda it: it.update(format=2)), "format 2, expected 1"),
    "spec lacks a field": (lambda path: edit(path / "kinoise.json", lambda it: it["spec"].pop("rate")), "rate"),
    "unknown instruction": (lambda path: edit(path / "kinoise.json", lambda it: it["texts"].pop()), "distinct instructions"),
    "lost episode": (lambda path: edit(path / "kinoise.json", lambda it: it["episodes"].pop()), "kinoise.json 2"),
    "spec of another shape": (
        lambda path: edit(path / "kinoise.json", lambda it: it["spec"]["observations"]["state"].update(shape=[4])),
        r"shape is \[12, 3\], not \[12, 4\]",
    ),
    "another dtype": (lambda path: edit(path / "data/state/.zarray", lambda it: it.update(dtype="<f8")), "dtype is '<f8'"),
    "another byte order": (lambda path: edit(path / "data/state/.zarray", lambda it: it.update(dtype=">f4")), "'>f4'"),
    "Fortran order": (lambda path: edit(path / "data/state/.zarray", lambda it: it.update(order="F")), "order is 'F'"),
    "no rows": (lambda path: edit(path / "data/state/.zarray", lambda it: it.update(shape=[0, 3])), "no data"),
    "compressed": (compress, "compressor is"),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_a_damaged_native_store_is_refused_in_one_line_that_names_the_file(case, tmp_path):
    path = tmp_path / "store"
    write_store(path, SPEC, episodes(), chunk_bytes=100)
    damage, message = DAMAGE[case]
    damage(path)
    with pytest.raises(KinoiseError, match=message) as caught:
        open_store(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_foreign_zarr_and_other_folders_are_named_for_what_they_are(tmp_path):
    group = zarr.open_group(tmp_path / "foreign", mode="w", zarr_format=2)
    group.create_group("data").create_array("action", data=np.zeros((4, 2), np.float32))
    group.create_group("meta").create_array("episode_ends", data=np.array([4]))
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    for name, message in (
        ("foreign", "how many steps a second"),
        ("empty", "no data set in a format"),
        ("file", "no data set in a format"),
        ("nowhere", "does not exist"),
    ):
        with pytest.raises(KinoiseError, match=message):
            open_store(tmp_path / name)
    for name in ("empty", "file"):
        with pytest.raises(KinoiseError, match=name):
            open_store(tmp_path / name, Reading(format="kinoise"))
    with pytest.raises(KinoiseError, match="the formats are kinoise"):
        open_store(tmp_path / "foreign", Reading(format="tape"))
