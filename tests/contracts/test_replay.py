"""diffusion_policy's zarr layout: what kinoise makes of stores that others wrote, and of damaged ones."""

from __future__ import annotations

import json
import pickle
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numcodecs
import numpy as np
import pytest
import zarr
from kinoise.data import Reading, open_store
from kinoise.data.base import Episode, Extra, episode
from kinoise.data.replay.reader import ReplayStore
from kinoise.data.replay.writer import write_replay
from kinoise.spec import Feature, KinoiseError, Spec
from zarr.storage import ZipStore

ENDS = (10, 25, 50)
TEN = Reading(rate=10.0)


def arrays(seed: int = 0) -> dict[str, np.ndarray]:
    """As in Push-T's file: pictures and key points are floats."""
    rng = np.random.default_rng(seed)
    return {
        "action": rng.normal(size=(50, 2)).astype(np.float32),
        "state": rng.normal(size=(50, 5)),
        "keypoint": rng.normal(size=(50, 9, 2)).astype(np.float32),
        "img": rng.integers(0, 256, (50, 16, 17, 3)).astype(np.float32),
        "reward": rng.uniform(1, 2, 50),
    }


def fill(store: object, version: int, given: dict[str, np.ndarray], ends: object = ENDS, **options) -> zarr.Group:
    group = zarr.open_group(store, mode="w", zarr_format=version)  # type: ignore[arg-type]
    data, meta = group.create_group("data"), group.create_group("meta")
    for key, array in given.items():
        data.create_array(key, data=array, chunks=(7, *array.shape[1:]), **options)
    meta.create_array("episode_ends", data=np.asarray(ends))
    return group


@pytest.fixture
def replay(tmp_path) -> Path:
    """A zarr v2 store as somebody else writes it."""
    fill(tmp_path / "replay.zarr", 2, arrays())
    return tmp_path / "replay.zarr"


@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.parametrize("packed", ["folder", "zip", "zip with a folder"])
def test_a_foreign_store_is_read_as_it_is(version, packed, tmp_path):
    path = tmp_path / "push t ü.zarr"
    truth = arrays()
    fill(path, version, truth)
    if packed != "folder":
        archive = shutil.make_archive(
            str(tmp_path / "archive"), "zip", tmp_path if "with" in packed else path, path.name if "with" in packed else None
        )
        path = Path(archive)
    assert ReplayStore.recognises(path)
    store = open_store(path, TEN)
    assert store.format == "zarr"
    assert store.spec == Spec(
        {"img": Feature((16, 17, 3), "image"), "keypoint": Feature((18,)), "state": Feature((5,))},
        Feature((2,)),
        10.0,
        "absolute",
        language=False,
    )
    assert store.ends.tolist() == list(ENDS)
    assert store.extras == {"reward": Extra(np.dtype(np.float64), ())}
    for key in (*store.keys, "reward"):
        wanted = truth[key].reshape(50, *store.read(key, 0, 1).shape[1:])
        np.testing.assert_array_equal(store.read(key, 3, 50), wanted[3:].astype(store.read(key, 0, 1).dtype))
    assert {line.split(":")[0] for line in store.dropped} == {"data/img", "data/keypoint", "data/state"}


def test_rate_and_meaning_are_asked_for_and_told(replay):
    with pytest.raises(KinoiseError, match=r"convert .* format=kinoise rate=10.*datasets: \[\{path: .*, rate: 10"):
        open_store(replay)
    assert open_store(replay, Reading(rate=5.0, control="delta", gripper=(1,))).spec.control == "delta"
    with pytest.raises(KinoiseError, match="has no filters"):
        open_store(replay, Reading(rate=5.0, filter="train"))


@pytest.mark.parametrize(
    ("version", "options"),
    [
        (2, {"compressors": None}),
        (2, {"compressors": numcodecs.Blosc("lz4", 5, 2)}),
        (2, {"compressors": numcodecs.BZ2(), "filters": [numcodecs.Shuffle(4)], "order": "F"}),
        (2, {"compressors": numcodecs.LZMA(), "chunk_key_encoding": {"name": "v2", "separator": "/"}}),
        (3, {"compressors": None}),
        (3, {"compressors": zarr.codecs.GzipCodec(), "chunk_key_encoding": {"name": "default", "separator": "."}}),
        (3, {"chunk_key_encoding": {"name": "v2", "separator": "."}}),
    ],
)
def test_compression_and_names_of_chunks_are_zarrs_business(version, options, tmp_path):
    truth = {"action": arrays()["action"], "a": arrays()["keypoint"]}
    fill(tmp_path / "store", version, truth, **options)
    store = open_store(tmp_path / "store", TEN)
    np.testing.assert_array_equal(store.read("action", 0, 50), truth["action"])
    np.testing.assert_array_equal(store.read("a", 0, 50), truth["a"].reshape(50, 18))


def test_sharded_big_endian_and_whole_numbers(tmp_path):
    group = zarr.open_group(tmp_path / "store", mode="w", zarr_format=3)
    count = np.arange(100).reshape(50, 2)
    group.create_group("data/nested", attributes={"holds": "array"})
    group.create_array("data/action", data=count.astype(np.int16), chunks=(5, 2), shards=(20, 2))
    group.create_array("data/nested/count", data=count.astype(np.int64), chunks=(50, 2))
    group.create_array("data/stage", data=count[:, 0].astype(np.uint8) + 1, chunks=(50,))
    group.create_array("meta/episode_ends", data=np.array([50], np.uint16))
    store = open_store(tmp_path / "store", TEN)
    np.testing.assert_array_equal(store.read("action", 0, 50), count.astype(np.float32))
    np.testing.assert_array_equal(store.read("nested.count", 0, 50), count.astype(np.float32))
    assert store.extras == {"stage": Extra(np.dtype(np.uint8), ())}
    assert store.dropped == ("data/nested/count: int64 is rounded to float32",)

    fill(tmp_path / "old", 2, {"action": count.astype(">f4"), "reward": count[:, 0].astype(">i4") + 1})
    old = open_store(tmp_path / "old", TEN)
    np.testing.assert_array_equal(old.read("action", 0, 50), count)
    assert old.read("reward", 0, 50).dtype == np.int32


def test_a_forked_process_reads_a_zip_that_was_open(tmp_path):
    fill(tmp_path / "store", 2, arrays())
    path = shutil.make_archive(str(tmp_path / "archive"), "zip", tmp_path / "store")
    code = (
        "import os, numpy as np\n"
        "from kinoise.data import Reading, open_store\n"
        f"store = open_store({path!r}, Reading(rate=10.0))\n"
        "truth = store.read('state', 0, 50)\n"
        "children = []\n"
        "for _ in range(2):\n"
        "    child = os.fork()\n"
        "    if child == 0:\n"
        "        same = all((store.read('state', 0, 10 + n % 40) == truth[: 10 + n % 40]).all() for n in range(30))\n"
        "        os._exit(0 if same else 3)\n"
        "    children.append(child)\n"
        "assert [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children] == [0, 0]\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr


def own(seed: int = 0) -> tuple[Spec, list[Episode]]:
    rng = np.random.default_rng(seed)
    spec = Spec(
        {"state": Feature((3,), names=("x", "y", "z"), unit=("m",)), "image.top": Feature((4, 5, 3), "image")},
        Feature((2,), low=(-1.0, 0.0), high=(1.0, 1.0)),
        rate=20.0,
        control="relative",
        gripper=(1,),
    )
    items = [
        Episode(
            {
                "state": rng.normal(size=(steps, 3)).astype(np.float32),
                "image.top": rng.integers(0, 256, (steps, 4, 5, 3), np.uint8),
                "action": rng.normal(size=(steps, 2)).astype(np.float32),
            },
            text,
            {"index": steps},
            {"reward": rng.normal(size=steps), "sim_state": rng.normal(size=(steps, 7))},
        )
        for steps, text in ((7, "schieb es weg, Ärger!"), (1, "push"), (4, "push"))
    ]
    return spec, items


@pytest.mark.parametrize("name", ["store", "store.zarr.zip"])
@pytest.mark.parametrize("chunk_bytes", [1, 100, 2**20])
def test_what_kinoise_wrote_comes_back_whole_and_is_plain_zarr(name, chunk_bytes, tmp_path):
    spec, items = own()
    meta = {"robomimic": {"env_args": {"name": "Lift"}}, "zarr": {"attributes": {"author": "nobody"}, "of": 2}}
    write_replay(tmp_path / name, spec, iter(items), meta=meta, chunk_bytes=chunk_bytes)
    store = open_store(tmp_path / name)
    assert (store.spec, store.meta, store.dropped) == (spec, meta, ())
    assert store.extras == {"reward": Extra(np.dtype(float), ()), "sim_state": Extra(np.dtype(float), (7,))}
    for index, item in enumerate(items):
        found = episode(store, index)
        assert (found.instruction, found.info) == (item.instruction, item.info)
        for key, array in {**item.arrays, **item.extras}.items():
            np.testing.assert_array_equal({**found.arrays, **found.extras}[key], array)
    plain = zarr.open_group(ZipStore(tmp_path / name, mode="r") if name.endswith("zip") else tmp_path / name, mode="r")
    assert plain.metadata.zarr_format == 2
    assert plain.attrs["author"] == "nobody"
    for _, array in plain["data"].arrays():
        assert array.shape[0] == plain["meta/episode_ends"][-1] == 12
    np.testing.assert_array_equal(plain["data/sim_state"][:], np.concatenate([item.extras["sim_state"] for item in items]))


def test_the_same_episodes_make_the_same_zip(tmp_path):
    spec, items = own()
    for name in ("a.zip", "b.zip"):
        write_replay(tmp_path / name, spec, items)
    assert (tmp_path / "a.zip").read_bytes() == (tmp_path / "b.zip").read_bytes()


def test_a_chunk_of_nothing_but_zeros_is_written(tmp_path):
    spec = Spec({}, Feature((2,)), 10.0, language=False)
    write_replay(tmp_path / "store", spec, [Episode({"action": np.zeros((9, 2), np.float32)})], chunk_bytes=16)
    assert not open_store(tmp_path / "store").read("action", 0, 9).any()


def test_an_attribute_that_no_longer_fits_is_said_and_not_trusted(tmp_path):
    spec, items = own()
    write_replay(tmp_path / "store", spec, items)
    attributes = json.loads((tmp_path / "store/.zattrs").read_text())
    attributes["kinoise"]["episodes"].pop()
    (tmp_path / "store/.zattrs").write_text(json.dumps(attributes))
    with pytest.raises(KinoiseError, match="rate=10"):
        open_store(tmp_path / "store")
    store = open_store(tmp_path / "store", TEN)
    assert (store.spec.rate, store.spec.observations["state"].names) == (10.0, ())
    assert any("it has 2 episodes, meta/episode_ends 3" in line for line in store.dropped)


def test_an_array_that_was_added_later_is_an_observation(tmp_path):
    spec, items = own()
    write_replay(tmp_path / "store", spec, items)
    zarr.open_group(tmp_path / "store", mode="r+")["data"].create_array("force", data=np.ones((12, 6), np.float32))
    store = open_store(tmp_path / "store")
    assert store.spec.observations == {**spec.observations, "force": Feature((6,))}
    assert store.spec.rate == 20.0


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


def test_other_folders_and_zips_are_no_replay_buffers(tmp_path):
    (tmp_path / "lerobot/data").mkdir(parents=True)
    (tmp_path / "lerobot/meta").mkdir()
    zarr.open_group(tmp_path / "group", mode="w").create_array("action", data=np.ones(3))
    with zipfile.ZipFile(tmp_path / "text.zip", "w") as file:
        file.writestr("data/a.txt", "")
    (tmp_path / "empty.zip").write_text("")
    for name in ("lerobot", "group", "text.zip", "empty.zip"):
        assert not ReplayStore.recognises(tmp_path / name)


def test_an_array_without_numbers_is_left_out_and_listed(replay):
    zarr.open_group(replay, mode="r+").create_array("data/none", shape=(50, 0), chunks=(50, 1), dtype="f4")
    store = open_store(replay, TEN)
    assert "none" not in {*store.keys, *store.extras}
    assert "data/none: [0] a step, which holds no numbers" in store.dropped


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


@pytest.mark.parametrize("shape", [(16, 20), (16, 20, 1), (3, 16, 20), (16, 20, 4)])
def test_what_looks_like_another_kind_of_picture_is_no_state(shape, replay):
    given = np.random.default_rng(0).integers(0, 256, (50, *shape), np.uint8)
    zarr.open_group(replay, mode="r+").create_array("data/depth", data=given)
    store = open_store(replay, TEN)
    assert "depth" not in store.keys
    np.testing.assert_array_equal(store.read("depth", 0, 50), given)
    assert any("data/depth" in line and "kept beside" in line for line in store.dropped)
