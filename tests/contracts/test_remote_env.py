"""Environments in other processes: the same episodes as here, by names that say where, with what belongs to that place."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from contextlib import closing
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from acting import WithoutSpec
from gymnasium.utils.env_checker import check_env
from kinoise.cli import main as cli
from kinoise.envs import episode_seed, make, tasks
from kinoise.envs.remote import child
from kinoise.envs.remote.child import Host
from kinoise.envs.remote.env import ProcessEnv
from kinoise.envs.remote.place import split
from kinoise.envs.remote.process import LIMITS
from kinoise.envs.robosuite.recorded import made, require_same
from kinoise.envs.simulators import install
from kinoise.eval.collect import main as collect
from kinoise.spec import KinoiseError
from kinoise.wire import pack, unpack
from line_world import LineWorld
from mapped_worlds import PENDULUM, POINT, STILL, episode, write


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A simulator's environment that is this one, under the name "here"."""
    python = tmp_path / "simulators" / "here" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    python.chmod(0o755)
    (python.parents[1] / "kinoise.json").write_text('{"packages": [], "versions": {}}')
    monkeypatch.setenv("KINOISE_SIMULATORS", str(tmp_path / "simulators"))
    return "here"


@pytest.mark.filterwarnings(
    "ignore:.*Box observation space:UserWarning",
    "ignore:.*different from the unwrapped:UserWarning",
    "ignore:.*is not within the observation space:UserWarning",
    "ignore:.*a symmetric and normalized space:UserWarning",
)
def test_an_episode_is_the_same_in_another_process(tmp_path: Path, installed: str) -> None:
    here = make(write(tmp_path, PENDULUM), cameras=["side"], size=50, render=True)
    expected, picture = episode(here, 3, 20), here.render()
    own = write(tmp_path, {**PENDULUM, "python": sys.executable}, "own.yaml")
    for task in (own, f"remote/{installed}/{tmp_path}/world.yaml"):
        env = make(task, cameras=["side"], size=50, render=True)
        assert (env.task, env.spec, env.instruction, env.horizon) == (task, here.spec, here.instruction, here.horizon)
        assert episode(env, 3, 20) == expected
        np.testing.assert_array_equal(env.render(), picture)
        first, _ = env.reset(seed=1)
        first["angle"][:] = 7  # nobody else's
        assert env.reset(seed=1)[0]["angle"][0] != 7
        check_env(WithoutSpec(env), skip_render_check=True)
        env.close()


def test_a_registered_task_is_the_same_in_another_process(installed: str) -> None:
    pytest.importorskip("gym_pusht")
    task = f"remote/{installed}/pusht/pusht"
    assert tasks(task) == tasks(f"remote/{installed}/PushT-v0") == (task,)
    here, env = make("pusht/pusht"), make(task)
    assert env.spec == here.spec
    assert episode(env, 4, 10) == episode(here, 4, 10)
    assert episode_seed(0, task, 3) == episode_seed(0, "pusht/pusht", 3)
    observation, _ = here.reset(seed=2)
    env.reset(seed=2)
    mine, theirs = here.expert(), env.expert()
    for _ in range(5):
        action = mine.act(observation)
        np.testing.assert_array_equal(theirs.act(observation), action)
        observation = here.step(action)[0]
        env.step(action)
    second = env.expert()
    with pytest.raises(KinoiseError, match="expert is gone"):
        theirs.act(observation)
    second.act(observation)
    with pytest.raises(KinoiseError, match="has no action that leaves everything"):
        env.idle_action()
    env.horizon = 3
    env.reset(seed=0)
    assert [env.step(action)[3] for _ in range(3)] == [False, False, True]
    env.close()


def test_pictures_cross_only_when_they_are_wanted(installed: str) -> None:
    pytest.importorskip("gym_pusht")
    with closing(make(f"remote/{installed}/pusht/pusht", cameras=["top"], size=32)) as env:
        env.drawn = False
        assert "image.top" not in env.reset(seed=0)[0]
        action = np.full(2, 200, np.float32)
        assert "image.top" not in env.step(action)[0]
        env.drawn = True
        assert env.step(action)[0]["image.top"].shape == (32, 32, 3)


def test_suites_and_lists_have_a_place_too() -> None:
    assert tasks("remote/sim/metaworld/mt10") == tuple(f"remote/sim/{task}" for task in tasks("metaworld/mt10"))
    assert tasks("remote/sim/metaworld/push,reach") == ("remote/sim/metaworld/push", "remote/sim/metaworld/reach")
    assert tasks("ws://a:1/pusht") == ("ws://a:1/pusht/pusht",)
    assert split("remote/sim//tmp/a.yaml") == ("remote/sim/", "/tmp/a.yaml")
    for name, said in (
        ("remote/sim/metaworld/psuh", "metaworld/push"),
        ("remote/sim", "expected remote/SIMULATOR/ENV"),
        ("http://a:1/pusht", "expected ws://"),
    ):
        with pytest.raises(KinoiseError, match=said):
            tasks(name)


class Here:
    """A line to a host in this process, through the same bytes as to another."""

    def __init__(self) -> None:
        self._host = Host()

    def ask(self, message: Mapping[str, Any], seconds: float) -> dict[str, Any]:
        return unpack(child._reply(self._host, pack(message)), LIMITS)

    def close(self) -> None:
        self._host.close()


class Rewording(LineWorld):
    """Says what is to be done in other words in each episode, as `perturb=instruction` has it."""

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        self.instruction = f"go, in the words of {seed}"
        return super().reset(seed=seed, options=options)


def test_an_episode_s_own_instruction_comes_along(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(child, "make", lambda task, **options: Rewording(task))
    message = {"call": "make", "task": "line/go", "render": False, "cameras": [], "size": 84, "perturb": {"instruction": 1.0}}
    env = ProcessEnv("remote/there/line/go", Here, message)
    assert env.instruction == "do go"
    for seed in (3, 4):
        env.reset(seed=seed)
        assert env.instruction == f"go, in the words of {seed}"
        env.step(STILL)
        assert env.instruction == f"go, in the words of {seed}"


def test_demonstrations_are_held_against_the_robosuite_that_is_there(installed: str) -> None:
    pytest.importorskip("robosuite")
    env = make(f"remote/{installed}/robosuite/lift")
    there, own = env.meta()["robomimic"]["env_args"], metadata.version("robosuite")
    require_same(env.task, there, made("lift", own))
    other = "1.5.1" if own.startswith("1.4") else "1.4.0"
    with pytest.raises(KinoiseError, match=rf"than {env.task} with robosuite {own}: env_version is {other}.*env={env.task}\)"):
        require_same(env.task, there, made("lift", other))
    env.close()


def test_programs_that_are_no_environment_of_kinoise(tmp_path: Path, installed: str) -> None:
    bare = tmp_path / "bare"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(bare)], check=True)
    for python, said in (
        (
            f"{bare}/bin/python",
            r"the package \w+ is not installed for .*bare/bin/python.*pip install gymnasium jaxtyping msgpack",
        ),
        ("/nowhere/python", "/nowhere/python can't be started: No such file"),
        ("/bin/false", "its process ended .exit code 1"),
        ("ogbench", r"'ogbench' is not installed in .*\(there: here\). Run: kinoise simulator install ogbench$"),
        (
            "elsewhere",
            r"There are recipes for gymnasium-robotics, ogbench.*: kinoise simulator install elsewhere packages='\.\.\.'",
        ),
    ):
        with pytest.raises(KinoiseError, match=said):
            make(write(tmp_path, {**POINT, "python": python}))
    (tmp_path / "sims").symlink_to(bare)
    with pytest.raises(KinoiseError, match=r"sims/bin/python"):  # a relative path is from the file's folder
        make(write(tmp_path, {**POINT, "python": "sims/bin/python"}))


def test_demonstrations_from_another_process(tmp_path: Path, installed: str) -> None:
    task, out = write(tmp_path, {**POINT, "python": installed}), tmp_path / "data"
    assert collect([f"env={task}", "episodes=2", "workers=1", "noise=0", f"out={out}"]) == 0
    assert (out / "kinoise.json").is_file()


def test_simulators_are_listed_and_a_broken_one_is_not_taken_for_installed(
    tmp_path: Path, installed: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli(["simulator", "list"]) == 0
    shown = capsys.readouterr().out
    assert "ogbench" in shown
    assert "here                 installed" in shown
    for arguments, code in ((["install", "ogbnch"], 2), (["instal", "ogbench"], 2), (["install", "../a", "packages=a b"], 2)):
        assert cli(["simulator", *arguments]) == code
    assert "no recipe for 'ogbnch': there are gymnasium-robotics, ogbench" in capsys.readouterr().err
    with pytest.raises(KinoiseError, match=r"making the environment failed .exit code 1.: it said nothing"):
        install(tmp_path / "simulators" / "broken", ["nothing"], "/bin/false")
    cli(["simulator", "list"])
    assert "broken" not in capsys.readouterr().out
