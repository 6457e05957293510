"""diffusion_policy's zarr layout: what kinoise makes of stores that others wrote, and of its own."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import zipfile
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
from zarr_buffers import ENDS, TEN, arrays, fill, own


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


@pytest.mark.parametrize("shape", [(16, 20), (16, 20, 1), (3, 16, 20), (16, 20, 4)])
def test_what_looks_like_another_kind_of_picture_is_no_state(shape, replay):
    given = np.random.default_rng(0).integers(0, 256, (50, *shape), np.uint8)
    zarr.open_group(replay, mode="r+").create_array("data/depth", data=given)
    store = open_store(replay, TEN)
    assert "depth" not in store.keys
    np.testing.assert_array_equal(store.read("depth", 0, 50), given)
    assert any("data/depth" in line and "kept beside" in line for line in store.dropped)
