"""kinoise convert: from every format into every other and back, and what it says."""

from __future__ import annotations

import itertools
import signal
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from kinoise import cli, files
from kinoise.data import FORMATS, Episode, open_store, write_store
from kinoise.data.base import EpisodeStore, episode
from kinoise.spec import Feature, Spec

ENDINGS = {"kinoise": "", "zarr": ".zarr.zip", "robomimic": ".hdf5", "lerobot": ""}
"""Of every format that is written, so that a conversion needs no more than its name."""
PAIRS = [pair for pair in itertools.permutations(ENDINGS, 2) if "kinoise" in pair or pair[0] < pair[1]]
SPEC = Spec(
    observations={
        "state": Feature((3,), names=("x", "y", "z"), unit=("m",)),
        "image.front": Feature((16, 18, 3), "image"),
    },
    action=Feature((2,), names=("x", "grip"), low=(-1.0, 0.0), high=(1.0, 1.0)),
    rate=20.0,
    control="relative",
    gripper=(1,),
)


@pytest.fixture(scope="module", autouse=True)
def _no_flush():
    """Whether bytes outlive a power cut is not under test, and flushing many small files takes most of the time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files, "sync", lambda path: None)
        yield


def demonstrations(lengths: list[int], seed: int, extras: bool = True) -> list[Episode]:
    rng = np.random.default_rng(seed)
    return [
        Episode(
            {
                "state": rng.normal(size=(steps, 3)).astype(np.float32),
                "image.front": rng.integers(0, 256, (steps, 16, 18, 3), np.uint8),
                "action": rng.normal(size=(steps, 2)).astype(np.float32),
            },
            ("schieb den Würfel, über 20 cm!", "drück", "推")[rng.integers(3)],
            {"task": "push", "index": index, "success": True},
            {"reward": rng.normal(size=steps), "done": np.arange(steps) == steps - 1, "sim_state": rng.normal(size=(steps, 4))}
            if extras
            else {},
        )
        for index, steps in enumerate(lengths)
    ]


def convert(*arguments: str | Path) -> int:
    return cli.main(["convert", *map(str, arguments)])


def write_as(name: str, store: EpisodeStore, path: Path) -> EpisodeStore:
    """`store` in another format, as kinoise convert writes it."""
    FORMATS[name].write(path, store.spec, (episode(store, index) for index in range(len(store.ends))), store.meta)
    return open_store(path)


def different(store: EpisodeStore, truth: EpisodeStore) -> list[str]:
    """Everything in which a store is not the other; the order of extras is nobody's."""
    found = [name for name in ("spec", "meta", "extras", "info", "dropped") if getattr(store, name) != getattr(truth, name)]
    if store.ends.tolist() != truth.ends.tolist():
        return [*found, "ends"]
    for index in range(len(truth.ends)):
        mine, theirs = episode(store, index), episode(truth, index)
        found += ["texts"] if mine.instruction != theirs.instruction else []
        for key, array in {**theirs.arrays, **theirs.extras}.items():
            other = {**mine.arrays, **mine.extras}.get(key)
            if other is None or other.dtype != array.dtype or not np.array_equal(other, array):
                found.append(key)
    return sorted(set(found))


def test_every_format_that_is_written_is_tested():
    assert ENDINGS.keys() == FORMATS.keys() - {"mixture"}


@pytest.mark.parametrize(("first", "second"), PAIRS)
@settings(max_examples=3, deadline=None)
@given(lengths=st.lists(st.integers(1, 6), min_size=1, max_size=3), seed=st.integers(0, 2**16), extras=st.booleans())
def test_there_and_back_is_the_identity(first, second, lengths, seed, extras):
    with TemporaryDirectory() as name:
        folder = Path(name) / "demo data ü"
        write_store(folder / "native", SPEC, demonstrations(lengths, seed, extras), meta={"robot": {"name": "arm"}})
        truth = write_as(first, open_store(folder / "native"), folder / f"a{ENDINGS[first]}")
        there = write_as(second, truth, folder / f"b{ENDINGS[second]}")
        back = write_as(first, there, folder / f"c{ENDINGS[first]}")
        assert (truth.format, there.format, back.format) == (first, second, first)
        assert different(truth, open_store(folder / "native")) == []
        assert different(back, truth) == []


@pytest.mark.parametrize("name", ["zarr", "robomimic", "lerobot"])
def test_the_command_says_what_it_carried(name, tmp_path, capsys):
    write_store(tmp_path / "native", SPEC, demonstrations([3, 4], 0))
    target = tmp_path / f"a{ENDINGS[name]}"
    assert convert(tmp_path / "native", target, *([f"format={name}"] if name == "lerobot" else [])) == 0
    said = capsys.readouterr().out
    assert (
        f"{target}: {name}, 2 episodes, 7 steps of state, image.front, action and beside them reward, done, sim_state" in said
    )
    assert convert(target, tmp_path / "back", "format=kinoise", f"source={name}") == 0
    assert different(open_store(tmp_path / "back"), open_store(tmp_path / "native")) == []
    assert convert(target, tmp_path / "back", "format=kinoise") == 1
    assert f"{tmp_path / 'back'} exists already" in capsys.readouterr().err


def foreign(path: Path) -> None:
    group = zarr.open_group(path, mode="w", zarr_format=2)
    for key, array in {"action": np.ones((4, 2)), "img": np.full((4, 16, 16, 3), 7.0), "keypoint": np.ones((4, 9, 2))}.items():
        group.create_array(f"data/{key}", data=array)
    group.create_array("meta/episode_ends", data=np.array([3, 4]))


def test_what_the_files_do_not_say_is_said_by_settings(tmp_path, capsys):
    foreign(tmp_path / "a.zarr")
    said = ("rate=10", "control=delta", "gripper=[1]", "rename={img:image.top}", "keys=[image.top]")
    assert convert(tmp_path / "a.zarr", tmp_path / "b", "format=kinoise") == 1
    assert "rate=10" in capsys.readouterr().err
    assert convert(tmp_path / "a.zarr", tmp_path / "b", "format=kinoise", *said) == 0
    assert f"not read from {tmp_path / 'a.zarr'} (zarr): data/action: float64 is rounded to float32" in capsys.readouterr().out
    spec = open_store(tmp_path / "b").spec
    assert spec == Spec({"image.top": Feature((16, 16, 3), "image")}, Feature((2,)), 10.0, "delta", (1,), language=False)


def test_what_the_target_cannot_hold_is_listed(tmp_path, capsys):
    write_store(tmp_path / "native", SPEC, demonstrations([3], 0))
    assert convert(tmp_path / "native", tmp_path / "a", "format=lerobot", "video=true") == 0
    assert "not held by lerobot: image.front: compressed as video" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("SRC", "DST"), 2, "format="),
        (("SRC", "DST", "format=tape"), 2, "format=tape: the formats are"),
        (("SRC", "DST.zarr", "source=tape"), 2, "source=tape"),
        (("SRC", "DST.zarr", "video=true"), 2, "has no such choice"),
        (("SRC", "DST", "format=mixture"), 2, "a mixture only lists data sets"),
        (("SRC", "DST.zarr", "THIRD"), 2, "expected key=value after SRC DST"),
        (("SRC", "SRC/inside.zarr"), 2, "would lie inside"),
        (("SRC", "DST.zarr", "rename=3"), 2, "expected {old:new} pairs"),
        (("SRC", "DST.zarr", "rename={a:b}"), 1, "rename has 'a'"),
        (("SRC", "DST.zarr", "keys=[a]"), 1, "keys has ['a']"),
        (("SRC", "DST.zarr", "rename={state:eef,image.front:eef}"), 1, "called 'eef'"),
        (("SRC", "DST.zarr", "control=tape"), 1, "control=tape"),
        (("NOWHERE", "DST.zarr"), 1, "does not exist"),
        (("SRC/../SRC", "SRC/inside.zarr"), 2, "would lie inside"),
    ],
)
def test_a_wrong_command_is_one_line_and_leaves_nothing(arguments, code, message, tmp_path, capsys):
    write_store(tmp_path / "SRC", SPEC, demonstrations([3], 0))
    assert convert(*(tmp_path / item if item[0].isupper() else item for item in arguments)) == code
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["SRC"]
    assert not (tmp_path / "SRC/inside.zarr").exists()


def test_an_ending_may_be_in_capitals(tmp_path):
    write_store(tmp_path / "native", SPEC, demonstrations([3], 0))
    for ending, name in ((".ZARR.ZIP", "zarr"), (".HDF5", "robomimic")):
        assert convert(tmp_path / "native", tmp_path / f"a{ending}") == 0
        assert (tmp_path / f"a{ending}").is_file()
        assert open_store(tmp_path / f"a{ending}").format == name


def test_links_that_lead_nowhere_are_one_line(tmp_path, capsys):
    write_store(tmp_path / "native", SPEC, demonstrations([3], 0))
    (tmp_path / "loop").symlink_to("loop")
    for arguments, message in ((("loop", "b"), "does not exist"), (("native", "loop"), "can't write")):
        assert convert(*(tmp_path / item for item in arguments), "format=kinoise") == 1
        said = capsys.readouterr().err
        assert message in said
        assert said.count("\n") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["loop", "native"]


@pytest.mark.parametrize("name", ENDINGS)
def test_a_source_that_breaks_half_way_leaves_nothing(name, tmp_path, capsys):
    foreign(tmp_path / "a.zarr")
    group = zarr.open_group(tmp_path / "a.zarr", mode="r+")
    group["data/action"][3] = np.nan  # type: ignore[index]
    assert convert(tmp_path / "a.zarr", tmp_path / f"b{ENDINGS[name]}", f"format={name}", "rate=10") == 1
    assert "data/action of episode 1 is NaN or infinite at step 0" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["a.zarr"]


@pytest.mark.parametrize("name", ["zarr", "lerobot"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_conversion_leaves_nothing(name, number, tmp_path):
    """The source gives its second episode only after the signal, which comes when the first is being written."""
    write_store(tmp_path / "native", SPEC, demonstrations([4, 5], 0))
    code = (
        "import signal, os, sys, time\n"
        "from kinoise import cli\n"
        "from kinoise.data import convert\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "whole = convert.episode\n"
        "def slow(store, index):\n"
        "    if index == 1:\n"
        "        os.kill(os.getpid(), int(sys.argv[1]))\n"
        "        time.sleep(30)\n"
        "    return whole(store, index)\n"
        "convert.episode = slow\n"
        "sys.exit(cli.main(['convert', *sys.argv[2:]]))\n"
    )
    command = [sys.executable, "-c", code, str(int(number)), "native", f"out{ENDINGS[name]}", f"format={name}"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 128 + number, done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["native"]
