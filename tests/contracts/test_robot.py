"""The simulated robot: its world keeps time by the clock, and its episodes by their index."""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import Any

import av
import kinoise
import numpy as np
import pytest
from kinoise.deploy.robot import Episode, Robot, SimRobot, replay
from kinoise.deploy.video import write_video
from kinoise.envs import Env, episode_seed
from kinoise.policies import build_policy
from kinoise.policies.core.network import NetworkConfig
from kinoise.policies.diffusion import DiffusionConfig
from kinoise.spec import Feature, KinoiseError, Spec, Stats

RATE = 20.0
PERIOD = 1 / RATE


class FakeClock:
    def __init__(self) -> None:
        self.time = 50.0

    def now(self) -> float:
        return self.time

    def sleep_until(self, deadline: float) -> None:
        self.time = max(self.time, deadline)


class Counting(Env):
    """Observes its seed, its steps and the sum of its actions; succeeds where that sum reaches 100."""

    spec = Spec({"state": Feature((3,))}, Feature((1,), low=(-100.0,), high=(100.0,)), rate=80.0)
    horizon = 30

    def __init__(self):
        super().__init__("fake/count", "count", self.spec, self.horizon)

    def reset(self, *, seed=None, options=None):
        self.seed, self.steps, self.total = seed % 1000, 0, 0.0
        return self._observe(), {}

    def step(self, action):
        self.steps += 1
        self.total += float(action[0])
        if np.isnan(self.total):
            raise RuntimeError("the physics exploded")
        return self._observe(), 0.0, False, self.steps == self.horizon, {"success": self.total >= 100}

    def render(self):
        return np.full((33, 48, 3), self.steps * 8 % 256, np.uint8)

    def close(self):
        pass

    def _observe(self):
        return {"state": np.float32([self.seed, self.steps, self.total])}


@pytest.fixture
def clock():
    return FakeClock()


@pytest.fixture
def robot(clock):
    robot = SimRobot(Counting, RATE, seed=7, clock=clock, recorded=True)
    yield robot
    robot.close()


def command(robot: SimRobot, value: float) -> None:
    robot.command(np.float32([value]))


def state(robot: SimRobot) -> list[int]:
    return robot.observe().values["state"].astype(int).tolist()


def test_commands_are_kept_on_request_alone(robot, clock):
    other = SimRobot(Counting, RATE, clock=clock)
    for one in (robot, other):
        command(one, 1)
    assert (len(robot.episode.commands), len(other.episode.commands)) == (1, 0)
    other.close()


def test_it_is_a_robot(robot):
    assert isinstance(robot, Robot)
    assert robot.spec == Counting.spec


def test_the_world_stands_still_until_the_first_command(robot, clock):
    clock.time += 10
    assert state(robot)[1:] == [0, 0]
    command(robot, 1)
    assert state(robot)[1:] == [0, 0]


def test_one_step_a_tick_however_punctual_the_tick(robot, clock):
    start = clock.time
    for tick in range(20):
        clock.time = start + (tick + (0.0, 0.2, -0.2, 0.6)[tick % 4] * (tick > 0)) * PERIOD
        assert state(robot)[1:] == [tick, tick]
        command(robot, 1)


def test_the_world_does_not_wait_for_commands(robot, clock):
    command(robot, 2)
    clock.time += 5 * PERIOD
    assert state(robot)[1:] == [5, 10]
    clock.time += 3 * PERIOD
    assert state(robot)[1:] == [8, 16]


def test_a_command_takes_effect_when_it_comes(robot, clock):
    command(robot, 1)
    clock.time += PERIOD
    assert state(robot)[1:] == [1, 1]
    command(robot, 10)
    clock.time += PERIOD
    assert state(robot)[1:] == [2, 11]


def test_after_a_stall_the_world_makes_up_for_a_second_and_counts_the_rest(robot, clock):
    command(robot, 0)
    clock.time += 60.0
    assert state(robot)[1] == round(RATE)
    assert robot.frozen == round(60 * RATE) - round(RATE)
    command(robot, 0)
    clock.time += PERIOD
    assert state(robot)[1] == round(RATE) + 1


def test_episodes_end_at_success_or_the_horizon_and_start_from_their_index(robot, clock):
    seeds = [episode_seed(7, "fake/count", index) for index in range(3)]
    assert state(robot) == [seeds[0] % 1000, 0, 0]
    command(robot, 60)
    clock.time += PERIOD
    assert robot.observe().episode == 0
    clock.time += PERIOD
    reading = robot.observe()
    assert reading.episode == 1
    assert reading.instruction == "count"
    assert state(robot) == [seeds[1] % 1000, 0, 0]
    for _ in range(Counting.horizon):
        command(robot, 0)
        clock.time += PERIOD
        robot.observe()
    assert state(robot) == [seeds[2] % 1000, 0, 0]
    robot.stop()
    assert [(item.index, item.seed, item.steps, item.success, item.finished) for item in robot.episodes] == [
        (0, seeds[0], 2, True, True),
        (1, seeds[1], 30, False, True),
        (2, seeds[2], 0, False, False),
    ]


def test_a_stopped_world_stands_still(robot, clock):
    command(robot, 1)
    robot.stop()
    clock.time += 1.0
    steps = state(robot)[1]
    clock.time += 1.0
    assert state(robot)[1] == steps
    robot.stop()


def test_a_world_that_was_stopped_goes_on_from_where_it_stood(robot, clock):
    for value in (1, 2, 3):
        command(robot, value)
        clock.time += PERIOD
        robot.observe()
    command(robot, 4)
    robot.stop()
    clock.time += 30
    assert state(robot)[1:] == [3, 6]
    for value in (50, 60):
        command(robot, value)
        clock.time += PERIOD
        robot.observe()
    # The step with 4 was under way when the robot was stopped, and is seen afterwards.
    assert robot.episodes[0].steps == 5
    assert [int(item[0]) for item in robot.episodes[0].commands] == [1, 2, 3, 4, 60]
    assert len(list(replay(Counting(), robot.episodes[:1]))) == 5


def test_a_simulator_that_fails_is_named(robot, clock):
    command(robot, float("nan"))
    clock.time += PERIOD
    with pytest.raises(KinoiseError, match="episode 0: RuntimeError: the physics exploded"):
        robot.observe()


def test_a_replay_shows_the_run_again(robot, clock, tmp_path):
    for value in (30, 30, 50, 1, 1, 1, 1):
        command(robot, value)
        clock.time += PERIOD
        robot.observe()
    robot.stop()
    shown = [int(frame[0, 0, 0]) // 8 for frame in replay(Counting(), robot.episodes)]
    assert shown == [1, 2, 3, 1, 2, 3, 4]
    assert len(list(replay(Counting(), robot.episodes, every=2))) == 4


def test_a_replay_that_ends_otherwise_is_refused():
    episode = Episode(0, 1, steps=1, success=True, finished=True, commands=[np.float32([5])])
    with pytest.raises(KinoiseError, match="doesn't repeat itself"):
        list(replay(Counting(), [episode]))


def test_frames_become_a_video_that_browsers_play(tmp_path):
    frames = (np.full((33, 48, 3), 20 * step, np.uint8) for step in range(10))
    write_video(tmp_path / "run.mp4", frames, 10.0)
    assert [path.name for path in tmp_path.iterdir()] == ["run.mp4"]
    with av.open(str(tmp_path / "run.mp4")) as container:
        stream = container.streams.video[0]
        shown = [frame.to_ndarray(format="rgb24") for frame in container.decode(stream)]
        assert (stream.codec_context.name, stream.pix_fmt, stream.average_rate) == ("h264", "yuv420p", 10)
    assert [frame.shape for frame in shown] == [(32, 48, 3)] * 10
    np.testing.assert_allclose([frame.mean() for frame in shown], range(0, 200, 20), atol=6)


def test_no_frames_are_no_video(tmp_path):
    with pytest.raises(KinoiseError, match="no frame"):
        write_video(tmp_path / "run.mp4", iter(()), 10.0)
    assert not list(tmp_path.iterdir())


class Driver:
    """Of an arm that is where it was told to be."""

    def __init__(self) -> None:
        self.moves, self.halts, self.joints = [], 0, np.zeros(7)

    def read(self) -> np.ndarray:
        time.sleep(0.005)
        return self.joints

    def move_to(self, action: np.ndarray) -> None:
        self.moves.append(action)
        self.joints = action

    def halt(self) -> None:
        self.halts += 1


def test_the_robot_in_the_docs_runs():
    text = (Path(kinoise.__file__).parent / "docs" / "control.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    names: dict[str, Any] = {}
    exec(code, names)
    spec, driver = names["Arm"].spec, Driver()
    config = DiffusionConfig(network=NetworkConfig(width=32, depth=1, heads=2), observations=["state"])
    stats = Stats((0.0,) * 7, (1.0,) * 7, (-1.0,) * 7, (1.0,) * 7, (-1.0,) * 7, (1.0,) * 7, 9)
    policy = build_policy(config, spec, {"state": stats, "action": stats}, ("open the drawer",)).eval()
    record = names["drive"](policy, driver, 0.5)
    assert isinstance(names["Arm"](driver), Robot)
    assert not record.errors
    assert driver.halts == 1
    assert all((spec.action.low <= move).all() and (move <= spec.action.high).all() for move in driver.moves)
    assert len(driver.moves) > record.rungs["plan"] > 0
