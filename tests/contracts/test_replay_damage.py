"""diffusion_policy's zarr layout: what kinoise says of stores that are damaged."""

from __future__ import annotations

import json
import pickle
import shutil
import sys
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import zarr
from kinoise.data import open_store
from kinoise.data.base import episode
from kinoise.data.replay.reader import ReplayStore
from kinoise.data.replay.writer import write_replay
from kinoise.spec import KinoiseError
from zarr_buffers import TEN, arrays, fill, own


@pytest.fixture
def replay(tmp_path) -> Path:
    """A zarr v2 store as somebody else writes it."""
    fill(tmp_path / "replay.zarr", 2, arrays())
    return tmp_path / "replay.zarr"


class Trap:
    """Unpickling it leaves a trace."""

    def __reduce__(self) -> tuple:
        return (Path.touch, (Path("unpickled"),))


def set_array(path: Path, **changes: object) -> None:
    metadata = json.loads((path / ".zarray").read_text())
    (path / ".zarray").write_text(json.dumps({**metadata, **changes}))


def trap(path: Path, **changes: object) -> None:
    set_array(path / "data/state", **changes)
    for file in (path / "data/state").glob("[0-9]*"):
        file.write_bytes(pickle.dumps([Trap(), "|O", [7, 5]]))


def put_ends(path: Path, *ends: float) -> None:
    group = zarr.open_group(path, mode="r+")
    group["meta"].create_array("episode_ends", data=np.array(ends), overwrite=True)


def put(path: Path, key: str, value: np.ndarray) -> None:
    data = zarr.open_group(path, mode="r+")["data"]
    data.create_array(key, data=value, overwrite=True)  # type: ignore[union-attr]


def spoilt(value: float) -> np.ndarray:
    array = arrays()["img"].copy()
    array[11] = value
    return array


CUT = "can't be decoded .* cut short, overwritten or removed"
DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "no ends": (lambda path: shutil.rmtree(path / "meta"), "meta/episode_ends is missing"),
    "no actions": (lambda path: shutil.rmtree(path / "data/action"), r"data/action is missing.*'img'"),
    "cut metadata": (
        lambda path: (path / "data/state/.zarray").write_text('{"sha'),
        r"data/state/\.zarray is not a JSON object",
    ),
    "metadata without shape": (lambda path: (path / "data/state/.zarray").write_text("{}"), "data/state has damaged metadata"),
    "ends beyond the arrays": (lambda path: put_ends(path, 10, 60), "has 50 steps, but meta/episode_ends ends at 60"),
    "ends short of the arrays": (lambda path: put_ends(path, 10, 40), "has 50 steps, but meta/episode_ends ends at 40"),
    "ends that fall": (lambda path: put_ends(path, 20, 10, 50), "episode 1 ends at 10"),
    "no episodes": (lambda path: put_ends(path), r"episode_ends is float64\[0\]"),
    "ends that are no numbers of steps": (lambda path: put_ends(path, 10.5, 50.0), r"float64\[2\], expected whole numbers"),
    "unequal lengths": (lambda path: put(path, "state", np.ones((49, 5))), "data/state has 49 steps, but"),
    "missing chunk": (
        lambda path: (path / "data/state/3.0").unlink(),
        r"data/state lacks 1 of its chunks' files \(3\.0 is the first\), in 2 of 3 episodes \(1 is the first\)",
    ),
    "missing chunk of the ends": (lambda path: (path / "meta/episode_ends/0").unlink(), "episode_ends lacks its file 0"),
    "text": (lambda path: set_array(path / "data/state", dtype="<U4"), "data/state holds <U4: expected numbers"),
    "objects": (lambda path: trap(path, dtype="|O", filters=[{"id": "pickle", "protocol": 5}]), "Python objects"),
    "pickled numbers": (
        lambda path: trap(path, compressor=None, filters=[{"id": "pickle", "protocol": 5}]),
        "'pickle', which could run any program",
    ),
    "pickle for a compressor": (lambda path: trap(path, compressor={"id": "pickle", "protocol": 5}), "'pickle'"),
    "unknown codec": (lambda path: set_array(path / "data/img", compressor={"id": "tape"}), "compressed with tape"),
    "jpeg2k": (
        lambda path: set_array(path / "data/img", compressor={"id": "imagecodecs_jpeg2k", "level": 50}),
        r"imagecodecs_jpeg2k, which needs imagecodecs\. Run: pip install imagecodecs",
    ),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_damage_is_one_line_that_names_file_and_field(case, replay, monkeypatch):
    monkeypatch.chdir(replay.parent)
    monkeypatch.setitem(sys.modules, "imagecodecs.numcodecs", None)  # as where imagecodecs isn't installed
    damage, message = DAMAGE[case]
    damage(replay)
    assert ReplayStore.recognises(replay)
    with pytest.raises(KinoiseError, match=message) as caught:
        open_store(replay, TEN)
    assert str(replay) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not Path("unpickled").exists()


SEEN_LATER: dict[str, tuple[Callable[[Path], object], str]] = {
    "cut chunk": (lambda path: (path / "data/state/2.0").write_bytes(b"abc"), f"data/state of episode 1 {CUT}"),
    "cut plain chunk": (
        lambda path: (set_array(path / "data/img", compressor=None), (path / "data/img/2.0.0.0").write_bytes(bytes(99))),
        f"data/img of episode [012] {CUT}",
    ),
    "NaN": (
        lambda path: put(path, "state", np.where(np.arange(50)[:, None] == 12, np.nan, np.ones((50, 5)))),
        "data/state of episode 1 is NaN or infinite at step 2",
    ),
    "beyond float32": (
        lambda path: put(path, "action", np.full((50, 2), 1e300)),
        "data/action of episode 0 is NaN or infinite",
    ),
    "picture from 0 to 1": (lambda path: put(path, "img", arrays()["img"] / 255), "data/img of episode 0 .*times 255"),
    "picture beyond 255": (lambda path: put(path, "img", spoilt(256)), "data/img of episode 1 is float32 from 0 to 256"),
    "picture of NaN": (lambda path: put(path, "img", spoilt(np.nan)), "data/img of episode 1"),
}


@pytest.mark.parametrize("case", SEEN_LATER)
def test_damaged_numbers_are_one_line_that_names_episode_and_field(case, replay):
    damage, message = SEEN_LATER[case]
    damage(replay)
    store = open_store(replay, TEN)
    with pytest.raises(KinoiseError, match=message) as caught:
        list(map(partial(episode, store), range(3)))
    assert str(replay) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.99])
def test_a_zip_that_was_cut_short_is_said_to_be(share, replay):
    path = Path(shutil.make_archive(str(replay), "zip", replay))
    whole = path.read_bytes()
    path.write_bytes(whole[: max(4, int(share * len(whole)))])
    assert ReplayStore.recognises(path)
    with pytest.raises(KinoiseError, match=r"no zip that can be read .* cut short"):
        open_store(path, TEN)


def test_a_flipped_byte_in_a_zip_is_noticed(tmp_path):
    path = tmp_path / "store.zip"
    spec, items = own()
    write_replay(path, spec, items)
    with zipfile.ZipFile(path) as file:
        entry = file.getinfo("data/state/0.0")
    data = bytearray(path.read_bytes())
    data[entry.header_offset + 60] ^= 255
    path.write_bytes(data)
    with pytest.raises(KinoiseError, match="data/state of episode 0 can't be decoded"):
        open_store(path).read("state", 0, 7)


def test_inspection_goes_on_without_what_is_unfit(replay):
    (replay / "data/img/0.0.0.0").unlink()
    put(replay, "keypoint", np.ones((49, 9, 2)))
    set_array(replay / "data/reward", dtype="|O")
    problems: list[str] = []
    store = ReplayStore(replay, TEN, problems.append)
    assert len(problems) == 3
    assert store.keys == ("img", "state", "action")
    assert store.ends.tolist() == [15, 40]
    np.testing.assert_array_equal(store.read("state", 0, 40), arrays()["state"][10:].astype(np.float32))
    np.testing.assert_array_equal(store.read("img", 14, 16), arrays()["img"][24:26])


def test_episodes_beside_missing_chunks_are_kept_however_many_there_are(tmp_path):
    steps, lengths = 60, [7, 1, 12, 3, 9, 20, 8]
    group = zarr.open_group(tmp_path / "a.zarr", mode="w", zarr_format=2)
    action = group.create_array("data/action", shape=(steps, 2), chunks=(3, 1), dtype="f4")
    action[:] = 1.0 + np.arange(steps * 2).reshape(steps, 2)
    group.create_array("meta/episode_ends", data=np.cumsum(lengths))
    for chunk in ("1.0", "1.1", "7.1", "12.0", "13.1"):  # steps 3 to 5, 21 to 23, 36 to 41
        (tmp_path / f"a.zarr/data/action/{chunk}").unlink()
    said: list[str] = []
    store = open_store(tmp_path / "a.zarr", TEN, said.append)
    assert len(said) == 1
    assert "lacks 5 of its chunks' files (1.0 is the first), in 4 of 7 episodes (0 is the first)" in said[0]
    assert np.diff(store.ends, prepend=0).tolist() == [1, 12, 8]
    np.testing.assert_array_equal(store.read("action", 0, 21)[:, 0], 1 + 2 * np.r_[7:8, 8:20, 52:60])
