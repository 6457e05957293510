"""Bad robomimic files: what is told of them, and that the good episodes are read."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
from kinoise.data import Reading, open_store
from kinoise.data.base import episode
from kinoise.spec import KinoiseError
from robomimic_files import LENGTHS, arrays, change, foreign, put


def link(file: h5py.File, place: str, target: Path) -> None:
    del file[place]
    file[place] = h5py.ExternalLink(str(target), place)


def words(file: h5py.File, place: str) -> None:
    steps = len(file[place])
    put(file, place, np.array(["a"] * steps, dtype=object), dtype=h5py.string_dtype())


ONE = "data/demo_2"


# What is wrong with one episode: the others are read without it.
EPISODE: dict[str, tuple[Callable[[h5py.File], object], str]] = {
    "no actions": (lambda file: file.__delitem__(f"{ONE}/actions"), f"{ONE}: actions is missing"),
    "flat actions": (lambda file: put(file, f"{ONE}/actions", np.zeros(7)), f"{ONE}: actions is float64\\[7\\]"),
    "no steps": (lambda file: put(file, f"{ONE}/actions", np.zeros((0, 7))), f"{ONE}: actions has no steps"),
    "actions as text": (lambda file: words(file, f"{ONE}/actions"), f"{ONE}: actions is object"),
    "fewer actions": (lambda file: put(file, f"{ONE}/actions", np.zeros((1, 6))), f"{ONE}: actions is float64\\[1, 6\\]"),
    "another length": (
        lambda file: put(file, f"{ONE}/obs/object", np.zeros((2, 10), np.float32)),
        f"{ONE}: obs/object has 2 steps, actions has 1",
    ),
    "another shape": (
        lambda file: put(file, f"{ONE}/obs/object", np.zeros((1, 9), np.float32)),
        f"{ONE}: obs/object is float32\\[1, 9\\], expected float32\\[1, 10\\]",
    ),
    "image as float": (
        lambda file: put(file, f"{ONE}/obs/agentview_image", np.zeros((1, 6, 8, 3))),
        f"{ONE}: obs/agentview_image is float64\\[1, 6, 8, 3\\], expected uint8",
    ),
    "state as text": (lambda file: words(file, f"{ONE}/obs/object"), f"{ONE}: obs/object is object"),
    "missing observation": (lambda file: file.__delitem__(f"{ONE}/obs/object"), f"{ONE}: obs/object is missing"),
    "no observations": (lambda file: file.__delitem__(f"{ONE}/obs"), f"{ONE}: obs/agentview_image is missing"),
    "num_samples": (lambda file: file[ONE].attrs.modify("num_samples", 3), f"{ONE}: num_samples is 3, but actions has 1"),
    "external array": (lambda file: link(file, f"{ONE}/obs/object", Path("other.hdf5")), f"{ONE}: obs/object is a link"),
    "external episode": (lambda file: link(file, ONE, Path("other.hdf5")), f"{ONE} is a link"),
    "soft link": (
        lambda file: (file.__delitem__(f"{ONE}/actions"), file.__setitem__(f"{ONE}/actions", h5py.SoftLink("/data/x"))),
        f"{ONE}: actions is a link",
    ),
    "no group": (lambda file: (file.__delitem__(ONE), put(file, ONE, np.zeros(3))), f"{ONE}: is no group"),
}


@pytest.mark.parametrize("case", EPISODE)
def test_a_bad_episode_is_told_by_file_episode_and_field_and_the_others_are_read(case, tmp_path):
    edit, message = EPISODE[case]
    foreign(tmp_path / "other.hdf5")
    path = change(foreign(tmp_path / "a b.hdf5"), edit)
    with pytest.raises(KinoiseError, match=message) as caught:
        open_store(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    problems: list[str] = []
    store = open_store(path, report=problems.append)
    assert any(str(caught.value) == problem for problem in problems)
    assert [info["demo"] for info in store.info] == ["demo_0", "demo_10"]
    np.testing.assert_array_equal(store.read("action", 5, 12), arrays("demo_10", 7)["actions"].astype(np.float32))


def test_all_problems_are_reported_at_once(tmp_path):
    def several(file: h5py.File) -> None:
        put(file, "data/demo_0/obs/object", np.zeros((4, 10), np.float32))
        put(file, "data/demo_0/obs/robot0_eef_pos", np.zeros((5, 4)))
        del file["data/demo_2/actions"]
        file["data"].attrs["env_args"] = "{"
        put(file, "mask/odd", np.arange(3))

    path = change(foreign(tmp_path / "a.hdf5"), several)
    problems: list[str] = []
    store = open_store(path, Reading(rate=10.0), problems.append)
    assert [info["demo"] for info in store.info] == ["demo_10"]
    for part in ("demo_0: obs/object", "demo_0: obs/robot0_eef_pos", "demo_2: actions", "env_args is no JSON", "mask/odd"):
        assert sum(part in problem for problem in problems) == 1, part
    assert len(problems) == 5


# What is wrong with the whole file.
WHOLE: dict[str, tuple[Callable[[h5py.File], object], str]] = {
    "no data": (lambda file: file.__delitem__("data"), r"the group 'data' is missing, the file holds \['mask'\]"),
    "data elsewhere": (lambda file: link(file, "data", Path("other.hdf5")), "the group 'data' is missing"),
    "data an array": (lambda file: (file.__delitem__("data"), put(file, "data", np.zeros(3))), "the group 'data' is missing"),
    "no episodes": (lambda file: [file.__delitem__(f"data/{name}") for name in LENGTHS], "data holds no episodes"),
    "env_args a list": (lambda file: file["data"].attrs.modify("env_args", "[1]"), "data's env_args is no JSON object: list"),
}


@pytest.mark.parametrize("case", WHOLE)
def test_a_bad_file_is_told(case, tmp_path):
    edit, message = WHOLE[case]
    foreign(tmp_path / "other.hdf5")
    path = change(foreign(tmp_path / "a.hdf5"), edit)
    change(path, lambda file: [file.__delitem__(f"mask/{name}") for name in ("train", "valid")])
    with pytest.raises(KinoiseError, match=message) as caught:
        open_store(path)
    assert str(path) in str(caught.value)


def test_a_file_that_is_cut_short_or_no_hdf5_is_told(tmp_path):
    whole = foreign(tmp_path / "whole.hdf5").read_bytes()
    path = tmp_path / "cut.hdf5"
    for size in range(0, len(whole), len(whole) // 40):
        path.write_bytes(whole[:size])
        with pytest.raises(KinoiseError, match=r"cut\.hdf5: it (is cut short|is no HDF5|can't be read)"):
            open_store(path)
    for content in (b"", b"not at all" * 100):
        path.write_bytes(content)
        with pytest.raises(KinoiseError, match=r"is no HDF5 file|can't be read"):
            open_store(path)
    (tmp_path / "folder.hdf5").mkdir()
    with pytest.raises(KinoiseError, match="no data set in a format"):
        open_store(tmp_path / "folder.hdf5")


def test_a_damaged_file_is_told_whatever_is_damaged(tmp_path):
    whole = foreign(tmp_path / "whole.hdf5", compression="gzip").read_bytes()
    rng = np.random.default_rng(0)
    told: list[str] = []
    for case in range(40):
        data = bytearray(whole)
        for place in rng.integers(0, len(data), 20):
            data[place] = rng.integers(256)
        path = tmp_path / f"{case}.hdf5"
        path.write_bytes(data)
        try:
            store = open_store(path, report=lambda problem: None)
            for index in range(len(store.ends)):
                episode(store, index)
        except KinoiseError as error:
            told.append(str(error))
    assert len(told) > 10
    assert all("hdf5" in message for message in told)


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e300])
def test_nan_is_told_when_it_is_read(value, tmp_path):
    def spoil(file: h5py.File) -> None:
        file["data/demo_10/obs/robot0_eef_pos"][3, 1] = value

    path = change(foreign(tmp_path / "a.hdf5"), spoil)
    store = open_store(path)
    episode(store, 0)
    with pytest.raises(KinoiseError, match=r"a\.hdf5: data/demo_10/obs/robot0_eef_pos is NaN or infinite at step 3"):
        episode(store, 2)


def test_arrays_that_lie_in_other_files_are_not_read(tmp_path):
    (tmp_path / "secret.bin").write_bytes(bytes(5 * 10 * 4))
    foreign(tmp_path / "other.hdf5")

    def elsewhere(file: h5py.File) -> None:
        del file["data/demo_0/obs/object"]
        file["data/demo_0/obs"].create_dataset(
            "object", (5, 10), np.float32, external=[(str(tmp_path / "secret.bin"), 0, h5py.h5f.UNLIMITED)]
        )
        layout = h5py.VirtualLayout((5, 3), np.float64)
        layout[:] = h5py.VirtualSource(str(tmp_path / "other.hdf5"), "data/demo_0/obs/robot0_eef_pos", (5, 3))
        del file["data/demo_0/obs/robot0_eef_pos"]
        file["data/demo_0/obs"].create_virtual_dataset("robot0_eef_pos", layout)

    store = open_store(change(foreign(tmp_path / "a.hdf5"), elsewhere))
    for key in ("object", "robot0_eef_pos"):
        with pytest.raises(KinoiseError, match=f"data/demo_0/obs/{key} is no array of this file's own"):
            store.read(key, 0, 5)
