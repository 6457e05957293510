"""`kinoise doctor` on this machine, and on machines that lack something."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from kinoise.config import UsageError
from kinoise.deploy import doctor
from kinoise.deploy.doctor import Probe


def run(*arguments: str, **environment: str) -> tuple[int, list[str]]:
    done = subprocess.run(
        [sys.executable, "-m", "kinoise.cli", "doctor", *arguments],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert "Traceback" not in done.stderr
    return done.returncode, done.stdout.splitlines()


def checks(lines: list[str]) -> dict[str, tuple[str, str]]:
    """By check: its verdict, and the line after it."""
    following = [*lines[1:], ""]
    return {
        line[5:21].strip(): (line[:4].strip(), after)
        for line, after in zip(lines, following, strict=True)
        if line.startswith(("OK", "FAIL"))
    }


def test_every_check_has_a_verdict_and_every_failure_a_remedy(tmp_path: Path):
    code, lines = run(f"out={tmp_path}")
    found = checks(lines)
    machine = "libraries, source, threads, bfloat16, gpu, sentence encoder, video, disk, write access"
    assert ", ".join(found) == f"{machine}, simulator, rendering, push-t, libero"
    assert found["simulator"][0] == "OK"
    essential = [after for verdict, after in found.values() if verdict == "FAIL" and "(not essential)" not in after]
    assert code == bool(essential)
    assert all(after.startswith("     ") for verdict, after in found.values() if verdict == "FAIL")
    assert not list(tmp_path.iterdir())


def test_no_display_is_found_and_the_remedy_named():
    code, lines = run(MUJOCO_GL="glfw", DISPLAY="", WAYLAND_DISPLAY="")
    found = checks(lines)
    verdict, remedy = found["rendering"]
    assert verdict == "FAIL"
    assert "MUJOCO_GL=egl" in remedy
    assert "(not essential)" in remedy  # `make demo` goes on, without videos
    assert code == any(verdict == "FAIL" and "(not essential)" not in after for verdict, after in found.values())


@pytest.mark.parametrize(
    ("code", "says"),
    [
        ("import time; time.sleep(60)", "hung for 1 s"),
        ("import os; os.abort()", "crashed with signal 6"),
        ("raise RuntimeError('no such driver')", "RuntimeError: no such driver"),
    ],
)
def test_a_probe_outlives_what_it_tries(code: str, says: str):
    probe = Probe("rendering", code, patience=1.0)
    check = probe.result("buy a better one")
    probe.end()
    assert not check.ok
    assert check.detail == says
    assert str(check).splitlines() == [f"FAIL {'rendering':<16} {says}", "     buy a better one"]


def test_a_probe_that_succeeds_says_its_last_line():
    probe = Probe("rendering", "print('warming up'); print('fine')", patience=30.0)
    assert probe.result("")[:3] == ("rendering", True, "fine")
    probe.end()


def test_a_full_disk_and_a_forbidden_place_are_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    assert doctor.disk(tmp_path / "not" / "there").ok
    assert doctor.permissions(tmp_path / "not" / "there").ok
    monkeypatch.setattr(doctor, "FREE_GIB", 1e9)
    assert not doctor.disk(tmp_path).ok
    assert not doctor.permissions(Path("/proc/results")).ok


def test_an_unknown_setting_is_refused():
    with pytest.raises(UsageError, match="outt"):
        doctor.main(["outt=x"])
