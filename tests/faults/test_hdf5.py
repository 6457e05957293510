"""HDF5 files on which the library itself fails: kinoise doesn't."""

from __future__ import annotations

import math
import os
import resource
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import h5py
import numpy as np
import pytest
from kinoise.data import FORMATS, Reading
from kinoise.data.robomimic import probe
from kinoise.data.robomimic.probe import Prober
from kinoise.spec import KinoiseError

FATAL = """
import json, os, signal, sys
print("a banner of the site's")
print(sys.argv[1], "ready", flush=True)
for line in sys.stdin:
    path = json.loads(line)[0]
    if path.endswith("crash"):
        os.kill(os.getpid(), signal.SIGSEGV)
    if path.endswith("once") and not os.path.exists(path + ".asked"):
        open(path + ".asked", "w").close()
        sys.exit(75)
    print(sys.argv[1], "walked", flush=True)
"""


def written(path: Path) -> Path:
    with h5py.File(path, "w") as file:
        data = file.create_group("data")
        data.attrs["env_args"] = '{"env_name": "Lift", "type": 1, "env_kwargs": {"control_freq": 20}}'
        demo = data.create_group("demo_0")
        demo.attrs["model_file"] = "<mujoco/>"
        demo["actions"], demo["obs/state"] = np.zeros((4, 2)), np.zeros((4, 3))
    return path


def without_heap(path: Path) -> Path:
    """With the heap of its texts zeroed behind the first of them: HDF5 2.0.0 looks for the end of it for ever."""
    data = bytearray(path.read_bytes())
    heap = data.index(b"GCOL")
    end = heap + int.from_bytes(data[heap + 8 : heap + 16], "little")
    first = heap + 16
    second = first + 16 + -(-int.from_bytes(data[first + 8 : first + 16], "little") // 8) * 8
    data[second:end] = bytes(end - second)
    path.write_bytes(data)
    return path


def test_a_file_that_hdf5_reads_for_ever_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "BASE_S", 1.0)
    sound, damaged = written(tmp_path / "sound.hdf5"), without_heap(written(tmp_path / "damaged.hdf5"))
    with pytest.raises(KinoiseError, match="damaged"):
        FORMATS["robomimic"](damaged, Reading(rate=20.0))
    assert len(FORMATS["robomimic"](sound, Reading(rate=20.0)).ends) == 1


def test_a_crash_is_an_error_and_the_next_file_has_a_process_of_its_own(tmp_path: Path) -> None:
    program, files = tmp_path / "fatal.py", [tmp_path / name for name in ("one", "crash", "two", "once")]
    program.write_text(FATAL)
    for file in files:
        file.write_bytes(b"")
    prober = Prober(program)
    try:
        prober.walk(files[0])
        with pytest.raises(KinoiseError, match=r"ended on it \(SIGSEGV\)"):
            prober.walk(files[1])
        prober.walk(files[2])
        prober.walk(files[3])
        assert (tmp_path / "once.asked").exists(), "another process was asked again"
    finally:
        prober.end()


def test_the_process_ends_with_the_one_that_asked(tmp_path: Path) -> None:
    path = written(tmp_path / "a.hdf5")
    program = (
        "import sys, time; from pathlib import Path; from kinoise.data.robomimic.probe import PROBER;"
        "PROBER.walk(Path(sys.argv[1])); print(PROBER._process.pid, flush=True); time.sleep(600)"
    )
    with subprocess.Popen([sys.executable, "-c", program, str(path)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        asked = int(process.stdout.readline())
        process.kill()
    deadline = time.monotonic() + 60
    while running(asked) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not running(asked)


def running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    with suppress(OSError):
        return b"State:\tZ" not in Path(f"/proc/{pid}/status").read_bytes()
    return False


def test_a_fork_has_a_process_of_its_own(tmp_path: Path) -> None:
    path, prober = written(tmp_path / "a.hdf5"), Prober()
    try:
        prober.walk(path)
        child = os.fork()
        if not child:
            try:
                signal.alarm(60)
                prober.walk(path)
                own = prober._process is not None and prober._process.poll() is None
                prober.end()
                os._exit(0 if own else 1)
            finally:
                os._exit(2)  # not as a second pytest
        assert os.waitpid(child, 0)[1] == 0
        assert prober._process is not None
        assert prober._process.poll() is None
        prober.walk(path)
    finally:
        prober.end()


def test_a_fork_does_not_wait_for_a_lock_that_nobody_holds(tmp_path: Path) -> None:
    path, prober = written(tmp_path / "a.hdf5"), Prober()
    with prober._lock:  # as by another thread, which a fork doesn't take along
        child = os.fork()
        if not child:
            try:
                signal.alarm(60)
                prober.walk(path)
                prober.end()
                os._exit(0)
            finally:
                os._exit(2)
        assert os.waitpid(child, 0)[1] == 0


@pytest.mark.parametrize("python", ["", None, "/bin/false", "/no/such"])
def test_without_an_interpreter_files_are_read_all_the_same(
    python: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, prober = written(tmp_path / "a.hdf5"), Prober()
    monkeypatch.setattr(sys, "executable", python)
    with pytest.warns(RuntimeWarning, match="read without a look"):
        prober.walk(path)
    prober.walk(path)


def test_where_the_machine_limits_a_process_each_file_has_all_of_it(tmp_path: Path) -> None:
    path = written(tmp_path / "a.hdf5")
    program = """
import resource, sys
from pathlib import Path
from kinoise.data.robomimic import probe
probe.BASE_S, most = 1000.0, int(resource.getrusage(resource.RUSAGE_SELF).ru_utime) + 300
resource.setrlimit(resource.RLIMIT_CPU, (most, most))
for _ in range(2):
    probe.PROBER.walk(Path(sys.argv[1]))
    print(probe.PROBER._process.pid)
"""
    done = subprocess.run([sys.executable, "-c", program, str(path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert len(set(done.stdout.split())) == 2


@pytest.mark.parametrize("name", ["data/demo_0/actions", "data/demo_0/obs/state", "mask/train"])
def test_an_array_that_claims_more_than_the_file_holds_is_refused(name: str, tmp_path: Path) -> None:
    """A few bytes, and gigabytes of fill value."""
    path = written(tmp_path / "a.hdf5")
    with h5py.File(path, "a") as file:
        if name in file:
            del file[name]
        shape, kind = ((10**9,), "S8") if name.startswith("mask") else ((4, 10**9), "f8")
        file.create_dataset(name, shape, kind, chunks=tuple(min(size, 1000) for size in shape))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    said: list[str] = []
    with pytest.raises(KinoiseError, match=r"none of its 1 episodes can be read|filter 'train' is unknown"):
        FORMATS["robomimic"](path, Reading(filter="train" if name.startswith("mask") else None), said.append)
    assert f"it claims {8 * math.prod(shape):,} bytes, of which the file holds 0" in said[0]
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200 << 10
