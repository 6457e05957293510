"""Full, read-only and vanished: what docs/faults.md says of the disk.

The full disk is a tmpfs of 1.5 MB in a mount namespace of the test's own; where that can't be had (no root and no user
namespaces) the two tests of it are skipped.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from kinoise.data import FORMATS, Episode, Reading
from kinoise.data.base import episode
from kinoise.spec import Feature, KinoiseError, Spec

SIZE = "1500k"
SPEC = Spec({"state": Feature((3,))}, Feature((2,), low=(-1.0,) * 2, high=(1.0,) * 2), rate=10.0, language=False)
NAMESPACE = ["unshare", "-m"] if os.geteuid() == 0 else ["unshare", "-rm"]


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What became of each command, see full_disk.py."""
    small, place = tmp_path_factory.mktemp("small"), tmp_path_factory.mktemp("place")
    mount = f"mount -t tmpfs -o size={SIZE} tmpfs {small}"
    if shutil.which("unshare") is None or subprocess.run([*NAMESPACE, "sh", "-c", mount], capture_output=True).returncode:
        pytest.skip("no tmpfs can be mounted here")
    program = Path(__file__).with_name("full_disk.py")
    worlds = program.parents[1] / "contracts"
    run = f"{mount} && exec {sys.executable} {program} {place} {small}"
    paths = [str(worlds), *filter(None, [os.environ.get("PYTHONPATH")])]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    done = subprocess.run([*NAMESPACE, "sh", "-c", run], capture_output=True, text=True, env=env, timeout=600, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("name", ["convert zarr", "convert robomimic", "convert lerobot"])
def test_a_full_disk_is_one_line_and_leaves_nothing(full: dict[str, Any], name: str) -> None:
    assert full[name]["code"] == 1
    assert "the disk is full" in full[name]["said"]
    assert full[name]["left"] == []


def test_a_full_disk_leaves_no_decoded_copy(full: dict[str, Any]) -> None:
    assert "disk" in full["cache"]["said"]
    assert full["cache"]["left"] == []


def test_a_full_disk_ends_a_trace_and_says_what_it_lacks(full: dict[str, Any]) -> None:
    assert "disk is full" in full["trace"]["trouble"]
    assert full["trace"]["lost"] > 0
    assert full["trace"]["events"] + full["trace"]["lost"] == 4000


def test_a_full_disk_keeps_the_checkpoints_that_are_there(full: dict[str, Any]) -> None:
    assert full["train"]["code"] == 1
    assert "the disk is full" in full["train"]["said"]
    assert full["train"]["checkpoints"]


def test_a_full_disk_keeps_the_episodes_that_are_written_and_resume_plays_the_others(full: dict[str, Any]) -> None:
    assert full["eval"]["code"] == 1
    assert "the disk is full" in full["eval"]["said"]
    assert full["eval"]["result"] == []
    assert 0 < full["eval"]["episodes"] < len(full["resumed"]["expected"])
    assert full["resumed"]["code"] == 0
    assert full["resumed"]["kept"] == full["eval"]["episodes"]
    assert full["resumed"]["result"] == full["resumed"]["expected"]


def test_a_full_disk_keeps_the_demonstrations_that_are_made_and_the_same_command_goes_on(full: dict[str, Any]) -> None:
    found = full["collect"]
    assert found["code"] == 1
    assert "the disk is full" in found["said"]
    assert "c" not in found["left"]
    assert 0 < len(found["kept"]) < 12
    assert found["torn"] == []
    assert found["again"] == 0
    assert found["same"]


def test_a_full_disk_under_a_control_loop_leaves_room_for_its_figures(full: dict[str, Any]) -> None:
    assert full["control"]["code"] == 1
    assert "control.trace lacks its last" in full["control"]["said"]
    assert "disk is full" in full["control"]["trace"]["trouble"]
    assert full["control"]["trace"]["lost"] > 0


def test_a_control_loop_does_not_begin_without_that_room(full: dict[str, Any]) -> None:
    assert full["control at once"]["code"] == 1
    assert "the disk is full" in full["control at once"]["said"]
    assert full["control at once"]["left"] == ["filler"]


@pytest.mark.parametrize("left", [8 << 10, 64 << 10])
@pytest.mark.parametrize("name", ["import", "export"])
def test_a_full_disk_under_a_policy_is_one_line_and_leaves_nothing(full: dict[str, Any], name: str, left: int) -> None:
    found = full[f"{name} {left}"]
    assert found["code"] == 1
    assert "the disk is full" in found["said"]
    assert found["left"] == ["filler"]


@pytest.mark.parametrize("name", ["convert", "train", "collect", "eval", "control"])
def test_a_read_only_place_is_one_line(full: dict[str, Any], name: str) -> None:
    found = full[f"read-only {name}"]
    assert found["code"] == 1
    assert "not allowed to write" in found["said"]


def demonstrations() -> list[Episode]:
    rng = np.random.default_rng(0)
    arrays = {"state": rng.normal(size=(4, 3)).astype(np.float32), "action": np.zeros((4, 2), np.float32)}
    return [Episode(arrays, "", {}) for _ in range(2)]


@pytest.mark.parametrize(
    ("name", "ending", "file"),
    [
        ("robomimic", ".hdf5", ""),
        ("zarr", ".zarr", "data/state/0.0"),
        ("lerobot", "", "data/chunk-000/file-000.parquet"),
    ],
)
def test_a_file_that_vanishes_before_it_is_read_is_named(name: str, ending: str, file: str, tmp_path: Path) -> None:
    path = tmp_path / f"data{ending}"
    FORMATS[name].write(path, SPEC, demonstrations())
    store = FORMATS[name](path, Reading(rate=10.0))
    (path / file).unlink()
    with pytest.raises(KinoiseError, match=path.name):
        episode(store, 0)


def test_a_mapped_file_that_is_removed_is_read_to_the_end_and_missed_afterwards(tmp_path: Path) -> None:
    path = tmp_path / "data"
    FORMATS["kinoise"].write(path, SPEC, demonstrations())
    store = FORMATS["kinoise"](path)
    before = store.read("state", 0, 8).copy()
    (path / "data" / "state" / "0.0").unlink()
    np.testing.assert_array_equal(store.read("state", 0, 8), before)
    with pytest.raises(KinoiseError, match=r"0\.0 is missing: the store is incomplete"):
        FORMATS["kinoise"](path)


def test_a_mapped_file_that_is_cut_short_ends_the_process_by_sigbus(tmp_path: Path) -> None:
    """The kernel's word: a page that was mapped is gone. What was trained is in the checkpoints."""
    path = tmp_path / "data"
    FORMATS["kinoise"].write(path, SPEC, demonstrations())
    code = (
        "import os, sys; from pathlib import Path; from kinoise.data import open_store\n"
        "store = open_store(Path(sys.argv[1])); os.truncate(Path(sys.argv[1]) / 'data/state/0.0', 0)\n"
        "store.read('state', 0, 8).sum()\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, timeout=120, check=False)
    assert done.returncode == -signal.SIGBUS
    with pytest.raises(KinoiseError, match="it was cut short"):
        FORMATS["kinoise"](path)
