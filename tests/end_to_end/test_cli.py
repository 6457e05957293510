"""The console script: what it lists, and the exit codes that tell wrong usage (2) from a failure (1)."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import fields, is_dataclass
from pathlib import Path

import pytest
from kinoise import __version__
from kinoise.cli import COMMANDS, main
from kinoise.policies.mode import ModeConfig


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_all_commands_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    assert main(["--help"]) == 0
    listed = capsys.readouterr().out
    assert all(f"  {name} " in listed for name in COMMANDS)
    lines = {line.split()[0]: line for line in listed.splitlines() if line.startswith("  ")}
    assert len({lines[name].index(about) for name, (_, about) in COMMANDS.items()}) == 1  # one column
    assert main(["--version"]) == 0
    assert __version__ in capsys.readouterr().out


def test_an_unknown_command_is_answered_with_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["trian"]) == 2
    assert "Did you mean train?" in capsys.readouterr().err


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself_and_refuses_what_it_does_not_know(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as left:
        main([command, "--help"])
    assert not left.value.code
    assert f"usage: kinoise {command}" in capsys.readouterr().out
    for argument in ("nonsense=1", "--nonsense", "+nonsense=1", "~nonsense=1", "hydra.nonsense=1"):
        assert main([command, argument]) == 2
        said = capsys.readouterr().err
        assert said.startswith("kinoise: ")
        assert said.count("\n") == 1
        assert "nonsense" in said
        assert f"kinoise {command} --help" in said


@pytest.mark.parametrize(
    ("command", "argument", "said"),
    [
        ("collect", "episodes=0", "at least 1"),
        ("inspect", "idle=-1", "idle=-1"),
        ("train", "train.stepz=3", "Did you mean train.steps?"),
        ("train", "train.steps=0", "at least 1"),
        ("train", "policy.chunk=0", "at least 1"),
        ("train", "policy.network.heads=3", "multiple"),
        ("train", "policy=mod", "Did you mean mode?"),
        ("control", "guards.jump=0", "above 0"),
        ("report", "videos=-1", "at least 0"),
        ("inspect", "idle=nan", "idle=nan"),
        ("train", "out=", "directory"),
        ("train", f"seed={2**64}", "2^63"),
        ("train", "policy.decode.guidance=nan", "guidance"),
        ("train", "policy.network.ff=nan", "ff=nan"),
        ("train", "policy.network.balance=-1", "balance"),
        ("train", "policy.encoder.pool=max", "softmax, average"),
        ("train", "policy.encoder.backbone=resnet9", "resnet10"),
        ("train", "policy.encoder.channels=24", "multiple of 16"),
        ("train", "policy.encoder.state=max", "meanstd"),
        ("train", "policy.actions=max", "meanstd"),
        ("train", "policy.goal_dropout=1", "below 1"),
        ("control", "rate=inf", "rate=inf"),
        ("control", "seed=-1", "seed=-1"),
    ],
)
def test_a_value_out_of_range_is_wrong_usage(
    command: str, argument: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    needed = {
        "collect": ["env=metaworld/push", "out=DATA"],
        "inspect": ["DATA"],
        "train": ["data=DATA", "out=RUN"],
        "control": ["RUN", "env=metaworld/push"],
        "report": ["RUN"],
    }
    assert main([command, *needed[command], argument]) == 2
    assert said in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_help_shows_the_settings_of_the_policy_that_is_meant(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["train", "--help"])
    said = capsys.readouterr().out.splitlines()
    shown = {line.split()[0]: line for line in said if line.startswith("  policy.")}
    config = ModeConfig()
    for part in ("process", "network", "decode"):
        for name, value in vars(getattr(config, part)).items():
            if name == "schedule":  # which kinoise fit-cache fills
                continue
            if is_dataclass(value):
                assert f"policy.{part}.{name}.{fields(value)[0].name}" in shown
            else:
                assert value is None or shown[f"policy.{part}.{name}"].endswith(f"({value})")


@pytest.mark.parametrize("path", ["runs/lr=0.1,seed=2", "'quoted", 'a, (b) {c} ~ $"', "back\\"])
def test_paths_are_taken_as_they_are(path: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", path if "/" in path else f"run={path}"]) == 1
    assert f"kinoise: {path}: no checkpoint" in capsys.readouterr().err


def test_what_the_machine_refuses_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", "n" * 300]) == 1
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "too long" in said


@pytest.mark.parametrize("text", [b"\xff\xfe", b"base: [mode]", b"- mode", b"", None])
def test_a_yaml_file_that_is_no_policy_is_refused(text: bytes | None, capsys: pytest.CaptureFixture[str]) -> None:
    file = Path("policy.yaml")
    file.mkdir() if text is None else file.write_bytes(text)
    assert main(["train", "data=DATA", "out=RUN", f"policy={file}"]) == 1
    said = capsys.readouterr().err
    assert said.startswith("kinoise: policy.yaml")
    assert said.count("\n") == 1


def test_a_reader_that_has_gone_is_no_error() -> None:
    command = subprocess.Popen(
        [sys.executable, "-u", "-m", "kinoise.cli", "doctor", "--help"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert command.stdout is not None
    command.stdout.close()
    assert command.communicate(timeout=60)[1] == b""
    assert command.returncode == 141


@pytest.mark.parametrize(
    "arguments", [["inspect", "DATA"], ["train", "data=DATA", "out=RUN"], ["eval", "RUN"], ["report", "RUN"]]
)
def test_what_is_not_there_is_a_failure(arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 1
    said = capsys.readouterr().err
    assert said.startswith("kinoise: ")
    assert said.count("\n") == 1
    assert not list(tmp_path.iterdir())
