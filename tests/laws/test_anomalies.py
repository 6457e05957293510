"""What `kinoise inspect` finds to stand out: time stamps, flipped cameras, far values and jumps."""

from __future__ import annotations

import numpy as np
import pytest
from kinoise.data import Episode, open_store, write_store
from kinoise.data.inspection.anomalies import anomaly_problems, scan
from kinoise.data.inspection.cameras import flips
from kinoise.data.inspection.clock import Clock, clock_problems
from kinoise.data.inspection.rotations import rotations
from kinoise.data.inspection.sample import Sample
from kinoise.data.subset import Subset
from kinoise.spec import Feature, Spec


def stamped(*stamps: np.ndarray) -> tuple[dict, list[str]]:
    clock = Clock(10.0)
    for index, item in enumerate(stamps):
        clock.add(index, item)
    found = clock.summary()
    assert found is not None
    return found, clock_problems(found, "episode {}".format)


def test_even_time_stamps_have_no_problems():
    assert stamped(np.arange(50) / 10, 3.7 + np.arange(20, dtype=np.float32) / 10)[1] == []
    assert Clock(10.0).summary() is None


def test_gaps_are_found_where_they_are():
    torn = np.delete(np.arange(50), [20, 21, 40]) / 10
    found, problems = stamped(np.arange(50) / 10, torn)
    assert (found["gap_count"], found["lost_frames"]) == (2, 3)
    assert (found["gaps"][0]["episode"], found["gaps"][0]["step"]) == (1, 20)
    assert len(problems) == 1
    assert "episode 1 at step 20: 3 steps long" in problems[0]


def test_other_rates_jitter_and_stamps_that_go_back_are_told_apart():
    rng = np.random.default_rng(0)
    (problem,) = stamped(np.arange(50) / 15)[1]
    assert "15 Hz" in problem
    (problem,) = stamped(np.arange(200) / 10 + rng.uniform(-0.02, 0.02, 200))[1]
    assert "jitter" in problem
    back = np.arange(50) / 10
    back[30] = back[28]
    problems = stamped(back)[1]
    assert "go back" in problems[0]
    assert "episode 0 at step 30" in problems[0]


def scene(rng: np.random.Generator) -> np.ndarray:
    rows, columns = np.mgrid[:24, :32] / 24
    return 100 * rows + 60 * (columns > 0.9) + 30 * np.sin(7 * columns) + rng.normal(size=(24, 32)) * 8


@pytest.mark.parametrize(
    ("name", "turn"),
    [("upside down", np.flipud), ("mirrored", np.fliplr), ("turned by 180 degrees", lambda it: it[::-1, ::-1])],
)
def test_flipped_first_frames_are_found(name, turn):
    rng = np.random.default_rng(0)
    frames = [scene(rng) for _ in range(9)]
    assert flips(np.array(frames), range(9)) == []
    frames[4] = turn(frames[4])
    (found,) = flips(np.array(frames), range(10, 19))
    assert (found["episode"], found["flip"]) == (14, name)
    assert found["flipped_correlation"] > found["correlation"] + 0.25


def test_noise_symmetric_scenes_and_few_episodes_say_nothing_about_flips():
    rng = np.random.default_rng(0)
    assert flips(rng.normal(size=(20, 24, 32)), range(20)) == []
    even = np.abs(np.linspace(-1, 1, 24))[:, None] + np.abs(np.linspace(-1, 1, 32))
    assert flips(even + 0.05 * rng.normal(size=(6, 24, 32)), range(6)) == []
    assert flips(np.array([scene(rng), np.flipud(scene(rng))]), range(2)) == []


def test_outliers_and_jumps_are_found_with_their_place(tmp_path):
    rng = np.random.default_rng(0)
    states = [(0.1 * rng.normal(size=(60, 3)).cumsum(0)).astype(np.float32) for _ in range(5)]
    states[3][20, 1] = 400
    states[2][30:, 2] += 3
    # Rotations about a tilted axis, with w >= 0: every half turn changes all signs.
    angle, axis = 0.4 * np.arange(300)[:, None], np.array([[0.6, 0.64, 0.48]])
    quaternions = np.concatenate([np.cos(angle / 2), np.sin(angle / 2) * axis], 1)
    quaternions = (quaternions * np.where(quaternions[:, :1] < 0, -1, 1)).astype(np.float32).reshape(5, 60, 4)
    states = [np.concatenate([state, q], 1) for state, q in zip(states, quaternions, strict=True)]
    spec = Spec({"state": Feature((7,))}, Feature((1,)), rate=10.0, language=False)
    write_store(tmp_path / "data", spec, (Episode({"state": it, "action": it[:, :1]}) for it in states), chunk_bytes=500)
    store, whole = open_store(tmp_path / "data"), np.concatenate(states).astype(np.float64)
    names = [*"xyz", *"wabc"]
    sample = Sample({"state": whole}, np.arange(60, 301, 60))
    turns = rotations(names, whole, sample.within)
    assert [turn["names"] for turn in turns] == [list("wabc")]
    found = scan(store, "state", store.stats()["state"], sample, range(10, 15), names, turns)
    (outlier,) = found["outliers"]
    assert (outlier["name"], outlier["episode"], outlier["step"], outlier["value"]) == ("y", 13, 20, 400)
    jumps = {item["name"]: (item["episode"], item["step"], item["steps"]) for item in found["jumps"]}
    # y jumps out and back; the quaternion's changes of sign are none.
    assert jumps == {"y": (13, 21, 2), "z": (12, 30, 1)}
    assert np.sum(found["histogram"], 1).tolist() == [300] * 7
    assert np.array(found["histogram"])[1, [0, -1]].tolist() == [299, 1]


def test_a_dimension_that_only_rounds_has_no_usual_change_to_be_a_multiple_of(tmp_path):
    rng = np.random.default_rng(0)
    state = np.stack([1e-17 * rng.normal(size=400), 0.1 * rng.normal(size=400).cumsum(), 1 + 1e-7 * rng.normal(size=400)], 1)
    state[200, 0], state[300:, 2] = -0.003, 1.5
    state = state.astype(np.float32)
    spec = Spec({"state": Feature((3,))}, Feature((1,)), rate=10.0, language=False)
    write_store(tmp_path / "data", spec, [Episode({"state": state, "action": state[:, :1]})])
    store = open_store(tmp_path / "data")
    sample = Sample({"state": state.astype(np.float64)}, np.array([400]))
    found = scan(store, "state", store.stats()["state"], sample, [0], ["rounding", "walk", "stair"])
    assert found["jumps"] == found["outliers"] == []
    assert found["nearly_constant"] == ["rounding"]


@pytest.mark.parametrize("episodes", [[0], [4], [1, 2, 4], [0, 2, 3], [0, 1, 2, 3, 4]])
def test_a_subset_is_what_is_left_of_a_store(episodes, tmp_path):
    rng = np.random.default_rng(0)
    items = [
        Episode(
            {"state": (state := rng.normal(size=(3 + index, 2)).astype(np.float32)), "action": state}, text, {"seed": index}
        )
        for index, text in enumerate(("push", "pull", "push", "lift", "pull"))
    ]
    spec = Spec({"state": Feature((2,))}, Feature((2,)), rate=10.0)
    write_store(tmp_path / "whole", spec, items, chunk_bytes=40)
    write_store(tmp_path / "part", spec, [items[index] for index in episodes])
    part, truth = Subset(open_store(tmp_path / "whole"), episodes), open_store(tmp_path / "part")
    steps = int(truth.ends[-1])
    assert part.ends.tolist() == truth.ends.tolist()
    assert [part.texts[index] for index in part.text] == [truth.texts[index] for index in truth.text]
    assert (part.info, part.keys, part.stats()) == (truth.info, truth.keys, truth.stats())
    for start in range(steps + 1):
        for stop in range(start, steps + 1):
            np.testing.assert_array_equal(part.read("state", start, stop), truth.read("state", start, stop))
    indices = rng.integers(0, steps, (4, 3))
    np.testing.assert_array_equal(part.gather("action", indices), truth.gather("action", indices))
    for wrong in (-1, steps):
        with pytest.raises(IndexError):
            part.gather("state", np.array([wrong]))
    with pytest.raises(IndexError):
        part.read("state", 0, steps + 1)


def test_a_lone_jump_names_its_dimension_once():
    worst = {"name": "x", "episode": 4, "step": 7, "steps": 1, "value": -0.7685, "size": 12.0, "median": 0.0}
    for name in ("outliers", "jumps"):
        keys = {"state": {"nearly_constant": [], "outliers": [], "jumps": [], name: [worst]}}
        (said,) = anomaly_problems(keys, 100, "episode {}".format)
        assert (said.count("in x"), said.count("'x'")) == (1, 0)
        assert "-0.7685, episode 4 at step 7" in said
