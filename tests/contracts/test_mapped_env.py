"""Gymnasium's environments behind a mapping file: they keep our contract, and what a file has wrong is said with its key."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from acting import WithoutSpec
from gymnasium.utils.env_checker import check_env
from kinoise.envs import Env, episode_seed, instruction, make, showing, tasks
from kinoise.envs.mapping import parse, read
from kinoise.eval.collect import main as collect
from kinoise.eval.simulated import simulated
from kinoise.spec import KinoiseError
from mapped_worlds import PENDULUM, POINT, PUSHT, REACHER, write

REAL = {"pendulum": PENDULUM, "reacher": REACHER, "pusht": PUSHT}


@pytest.fixture(params=REAL)
def task(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "pusht":
        pytest.importorskip("gym_pusht")
    return write(tmp_path, REAL[request.param], f"{request.param}.yaml")


def middle(env: Env) -> np.ndarray:
    low, high = np.array(env.spec.action.low), np.array(env.spec.action.high)
    return (low + 0.75 * (high - low)).astype(np.float32)


@pytest.mark.filterwarnings("ignore:.*Box observation space:UserWarning", "ignore:.*different from the unwrapped:UserWarning")
@pytest.mark.filterwarnings("ignore:.*is not within the observation space:UserWarning")
def test_an_environment_by_its_id_keeps_the_contract(task: str) -> None:
    assert tasks(task) == (task,)
    env = make(task)
    assert (env.task, env.instruction) == (task, parse(task, read(task)).instruction)
    first, _ = env.reset(seed=5)
    initial, after = env.initial(), env.step(middle(env))[0]
    kept = {key: item.copy() for key, item in first.items()}
    for _ in range(4):
        env.step(middle(env))
    assert all(np.array_equal(first[key], kept[key]) for key in first), "an observation changed after it was given"
    other, _ = env.reset(seed=6)
    assert any(not np.array_equal(first[key], other[key]) for key in first)
    assert env.initial() != initial
    again, _ = env.reset(seed=5)
    assert all(np.array_equal(first[key], again[key]) for key in first)
    assert all(np.array_equal(after[key], item) for key, item in env.step(middle(env))[0].items())
    assert env.initial() == initial
    for key, feature in env.spec.observations.items():
        assert (first[key].shape, first[key].dtype) == (feature.shape, np.float32)
        assert len(feature.names) == len(feature.unit) == feature.shape[0]
    check_env(WithoutSpec(env), skip_render_check=True)
    env.close()


def test_an_episode_is_gymnasiums(tmp_path: Path) -> None:
    env, theirs = make(write(tmp_path, REACHER)), gymnasium.make("Reacher-v5")
    observation, _ = env.reset(seed=3)
    expected, _ = theirs.reset(seed=3)
    for _ in range(20):
        np.testing.assert_array_equal(observation["state"], expected.astype(np.float32))
        np.testing.assert_array_equal(observation["goal"], expected[4:6].astype(np.float32))
        observation, reward, *_ = env.step(np.float32([0.3, -0.2]))
        expected, wanted, *_ = theirs.step(np.float32([0.3, -0.2]))
        assert reward == wanted
    theirs.close()
    env.close()


def test_an_episode_s_seed_is_one_that_the_environment_takes(tmp_path: Path) -> None:
    plain, env = make(write(tmp_path, POINT)), make(write(tmp_path, POINT, "short.yaml", gymnasium__kwargs__trouble="short"))
    long = [episode_seed(0, "world.yaml", index) for index in range(8)]
    assert max(long) >= 2**32
    starts = {}
    for seed in (*long, 7, 7 + 2**32, 7 + 2**33, 2**32 - 1):
        first, _ = env.reset(seed=seed)
        np.testing.assert_array_equal(plain.reset(seed=seed)[0]["state"], first["state"])
        starts[first["state"].tobytes()] = seed
    assert len(starts) == 12, "all of a seed counts"
    theirs = gymnasium.make("kinoise/Point-v0", trouble="none", disable_env_checker=True)
    for seed in (0, 7, 2**32 - 1):
        expected, _ = theirs.reset(seed=seed)
        np.testing.assert_array_equal(env.reset(seed=seed)[0]["goal"], expected["goal"].astype(np.float32))


def test_pictures_come_at_the_size_that_a_policy_was_trained_with(task: str) -> None:
    plain = make(task)
    camera = next(iter(parse(task, read(task)).images))
    size = {"Pendulum-v1": 100}.get(parse(task, read(task)).id, 48)
    env = make(task, cameras=[camera], size=size, render=True)
    first, _ = env.reset(seed=1)
    states, _ = plain.reset(seed=1)
    assert all(np.array_equal(first[key], item) for key, item in states.items())
    picture = first[f"image.{camera}"]
    assert (picture.shape, picture.dtype) == ((size, size, 3), np.uint8)
    assert picture.std() > 1
    assert env.observation_space.contains(first)
    full = env.render()
    assert full.dtype == np.uint8
    assert full.shape[2] == 3
    for _ in range(3):
        later = env.step(middle(env))[0]
    assert not np.array_equal(later[f"image.{camera}"], picture)
    assert showing(env.spec)(task).spec == env.spec
    with pytest.raises(KinoiseError, match=r"images.*expected|square and a multiple"):
        make(task, cameras=[camera], size=77)
    with pytest.raises(KinoiseError, match=f"unknown camera 'nose'; the file has {camera}"):
        make(task, cameras=["nose"])
    with pytest.raises(KinoiseError, match="render=True"):
        plain.render()


def test_success_is_read_as_the_file_says(tmp_path: Path) -> None:
    env = make(write(tmp_path, POINT))
    for task, seed in ((env, 0), (env, 1)):
        task.reset(seed=seed)
        expert, done = env.expert(), []
        observation, _ = env.reset(seed=seed)
        for _ in range(30):
            action = expert.act(observation)
            assert env.action_space.contains(action)
            observation, *_, truncated, info = env.step(action)
            done.append(info["success"])
        assert done[0] is False
        assert done[-1] is True
        assert truncated
    with pytest.raises(KinoiseError, match="call reset"):
        env.step(np.zeros(1, np.float32))
    ends = make(write(tmp_path, POINT, "ends.yaml", gymnasium__kwargs__trouble="ends", success={"terminated": True}))
    ends.reset(seed=0)
    found = [ends.step(np.zeros(1, np.float32))[2:] for _ in range(4)]
    assert [(item[0], item[2]["success"]) for item in found] == [(False, False)] * 3 + [(True, True)]
    with pytest.raises(KinoiseError, match="call reset"):
        ends.step(np.zeros(1, np.float32))


def test_an_expert_named_in_the_file_demonstrates(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    task, out = write(tmp_path, PENDULUM), tmp_path / "data"
    monkeypatch.chdir(tmp_path)
    assert collect([f"env={Path(task).name}", "episodes=1", "workers=1", "noise=0", f"out={out}"]) == 0
    assert (out / "kinoise.json").is_file()


def test_the_folder_of_a_file_changes_no_episode(tmp_path: Path) -> None:
    assert episode_seed(1, "a/world.yaml", 2) == episode_seed(1, "/b/c/world.yaml", 2) != episode_seed(1, "other.yaml", 2)
    assert tasks(f"{tmp_path}/a.yaml,{tmp_path}/b.yml") == (f"{tmp_path}/a.yaml", f"{tmp_path}/b.yml")
    assert tasks("a.yaml,b.yaml") == ("a.yaml", "b.yaml")


@pytest.mark.parametrize("python", [None, sys.executable], ids=["here", "in a process"])
def test_an_episodes_instruction_is_what_the_environment_asked_for(tmp_path: Path, python: str | None) -> None:
    own = {} if python is None else {"python": python}
    env = make(write(tmp_path, POINT, instruction={"info": "asked"}, **own))
    said = set()
    for seed in range(6):
        seen, _ = env.reset(seed=seed)
        assert env.instruction == ("go right" if seen["goal"][0] > 0 else "go left")
        said.add(env.instruction)
    env.close()
    assert len(said) == 2


def test_what_is_asked_for_is_known_beforehand_where_the_file_says_it(tmp_path: Path) -> None:
    said, drawn = write(tmp_path, POINT), write(tmp_path, POINT, "drawn.yaml", instruction={"info": "asked"})
    assert simulated(said, (), 84)[1] == (POINT["instruction"],)
    for unknown, why in ((drawn, "instruction.info"), (f"ws://localhost:9999/{said}", "another machine")):
        with pytest.raises(KinoiseError, match=f"{why}.*Give data="):
            instruction(unknown)


def test_a_state_is_made_of_several_entries_in_their_order(tmp_path: Path) -> None:
    apart = make(write(tmp_path, POINT))
    both = {"from": ["goal", "robot.place"], "names": ["goal", "place"], "unit": "m"}
    env = make(
        write(tmp_path, POINT, "both.yaml", observations={"state": both, "place": {**both, "slice": [1, 2], "names": ["p"]}})
    )
    (one, _), (two, _) = apart.reset(seed=5), env.reset(seed=5)
    assert env.spec.observations["state"].names == ("goal", "place")
    np.testing.assert_array_equal(two["state"], [*one["goal"], *one["state"]])
    np.testing.assert_array_equal(two["place"], one["state"])


def change(**changes: Any) -> dict[str, Any]:
    return changes


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (change(horizont=3), "world.yaml: horizont: unknown key. Did you mean horizon"),
        (change(action__contol="delta"), "world.yaml: action.contol: unknown key. Did you mean control"),
        (change(rate=None), "world.yaml: rate: expected a number above 0, came nothing"),
        (change(rate="fast"), "rate: expected a number above 0, came 'fast'"),
        (change(horizon=0), "horizon: expected a whole number of at least 1, came 0"),
        (change(instruction=""), "instruction: expected a text"),
        (change(instruction={"key": "asked"}), "instruction.info: expected a text, came nothing"),
        (
            change(instruction={"info": "told"}),
            "instruction.info: expected a text as 'told' in the info of reset.*there are asked",
        ),
        (
            change(instruction={"info": "asked"}, gymnasium__kwargs__trouble="speechless"),
            "instruction.info: expected a text as 'asked' in the info of reset, came ''",
        ),
        (
            change(instruction={"info": "asked"}, gymnasium__kwargs__trouble="fickle"),
            "instruction.info: .* asked for 'go 1 times', the second time for 'go [0-9]+ times'",
        ),
        (change(observations__state__from=["goal", "place"]), "no entry 'place'; there are robot.place, goal"),
        (change(observations=None), "observations: expected at least one"),
        (change(observations__state="robot"), "observations.state: expected keys with values, came 'robot'"),
        (change(observations__state__unit=None), "observations.state.unit: expected a text or a list of texts, came nothing"),
        (
            change(observations__state__unit=["m", "m"]),
            "observations.state.unit: expected one for each of the 1 numbers, came 2",
        ),
        (change(observations__state__names=["x", "y"]), "observations.state.names: expected one for each of the 1 numbers"),
        (change(observations__state__slice=[1, 0]), r"observations.state.slice: expected \[first, last\]"),
        (change(observations__state__slice=[0, 4]), r"observations.state.slice: \[0, 4\] of 1 numbers"),
        (change(observations__state__from="place"), "no entry 'place'; there are robot.place, goal"),
        (change(observations__state__from="robot"), "expected an array of numbers, came a dict with the entries place"),
        (change(observations__state__from=None), "came a dict with the entries robot.place, goal"),
        (change(**{"observations__image.top": {"unit": 1}}), "observations.image.top: pictures go under 'images:'"),
        (change(action=None), "action: expected keys with values, came nothing"),
        (change(action__control="torque"), "action.control: expected one of absolute, relative, delta, came 'torque'"),
        (change(action__low=None), r"action.low: kinoise/Point-v0 has no bound \(\[-inf\]\): give one"),
        (change(action__high=[1, 2]), "action.high: expected one for each of the 1 numbers, came 2"),
        (change(action__gripper=[3]), r"action.gripper: the action has 1 numbers, came \[3\]"),
        (change(success={}), "success: expected one of 'info: KEY'"),
        (change(success={"info": "there", "reward": 1}), "success: expected one of"),
        (change(expert="worlds"), "expert: expected module:function, came 'worlds'"),
        (change(gymnasium__id="kinoise/Pont-v0"), "gymnasium.id: kinoise/Pont-v0 is not registered: not by point_worlds"),
        (
            change(gymnasium__import="point_wolds"),
            "gymnasium.import: the module point_wolds is not installed. Install it for",
        ),
        (change(gymnasium__kwargs={"gravity": 1}), "gymnasium: kinoise/Point-v0 can't be made with kwargs {'gravity': 1}"),
        (change(gymnasium__kwargs__trouble="unseeded"), r"gymnasium.id: reset\(seed=\d+\) began differently the second"),
        (
            change(gymnasium__kwargs__trouble="noisy"),
            r"gymnasium.id: a step after reset\(seed=\d+\) ended differently the second time \(state\)",
        ),
        (
            change(gymnasium__kwargs__trouble="moody"),
            r"ended differently the second time \(the reward\): episodes of kinoise/Po",
        ),
        (change(gymnasium__kwargs__trouble="lucky"), r"ended differently the second time \(success or not\)"),
        (change(python=3), "python: expected a text, came 3"),
        (change(timeout=-1), "timeout: expected a number above 0, came -1"),
    ],
)
def test_what_a_file_has_wrong_is_said_with_its_key(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(KinoiseError, match=said) as caught:
        make(write(tmp_path, POINT, **changes))
    assert str(caught.value).startswith(f"{tmp_path}/world.yaml: ")


@pytest.mark.parametrize(
    ("trouble", "said"),
    [
        ("nan", r"observations.state: \[nan\] after step 3 is not finite"),
        ("raise", r"step 2 of kinoise/Point-v0 failed: RuntimeError: the point is gone \(point_worlds.py, line \d+\)"),
        ("grow", r"observations.state: expected the shape \(1,\) as at first, came \(2,\)"),
        ("mute", "success.info: no key 'there' in the step's info"),
    ],
)
def test_what_goes_wrong_in_an_episode_is_said(tmp_path: Path, trouble: str, said: str) -> None:
    with pytest.raises(KinoiseError, match=said):  # noqa: PT012 (where it is raised is up to the trouble)
        env = make(write(tmp_path, POINT, gymnasium__kwargs__trouble=trouble))
        env.reset(seed=0)
        for _ in range(3):
            env.step(np.zeros(1, np.float32))


def test_files_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(KinoiseError, match=r"nowhere\.yaml does not exist"):
        make("nowhere.yaml")
    for content, said in (
        ("a: [", "not a valid mapping"),
        ("- a", "expected keys"),
        ("a: ${b}", "not a valid"),
    ):
        (tmp_path / "bad.yaml").write_text(content)
        with pytest.raises(KinoiseError, match=said):
            make(str(tmp_path / "bad.yaml"))
    discrete = write(tmp_path, PENDULUM, gymnasium__id="CartPole-v1", observations={"state": {"unit": 1}}, images=None)
    with pytest.raises(KinoiseError, match=r"CartPole-v1 has the actions Discrete\(2\); expected a Box"):
        make(discrete)
    with pytest.raises(KinoiseError, match="names no expert"):
        make(write(tmp_path, REACHER)).expert()
    with pytest.raises(KinoiseError, match="no function nobody"):
        make(write(tmp_path, POINT, expert="point_worlds:nobody")).expert()


def test_the_documented_file_is_one(tmp_path: Path) -> None:
    page = Path(__file__).parents[2] / "docs" / "environments.md"
    (tmp_path / "fetch_reach.yaml").write_text(page.read_text().split("```yaml\n")[1].split("```")[0])
    found = parse("fetch_reach.yaml", read(str(tmp_path / "fetch_reach.yaml")))
    assert (found.id, found.python, found.action.gripper) == ("FetchReach-v4", "gymnasium-robotics", (3,))
    keys = {*read(str(tmp_path / "fetch_reach.yaml")), "timeout"}
    told = {
        part for line in page.read_text().splitlines() if line.startswith("| `") for part in line.split("|")[1].split("`")[1::2]
    }
    assert keys <= {part.split(".")[0] for part in told}, "the page's table lacks a key"
