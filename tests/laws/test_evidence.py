"""What `kinoise inspect` guesses from numbers alone, on data whose answer is known."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from kinoise.data.inspection.evidence import action_kind, contradiction
from kinoise.data.inspection.rotations import rotations

STEPS, EPISODES, DIMS, RATE = 100, 16, 3, 20.0
Made = tuple[np.ndarray, np.ndarray]


def path(rng: np.random.Generator, steps: int = STEPS, dims: int = DIMS) -> np.ndarray:
    """A smooth path that starts somewhere."""
    walk = rng.normal(size=(steps + 14, dims)).cumsum(0)
    smooth = np.stack([np.convolve(column, np.ones(15) / 15, "valid") for column in walk.T], 1)
    return 0.1 * smooth + rng.normal(size=dims)


def followed(target: np.ndarray, gain: float, rng: np.random.Generator) -> np.ndarray:
    """A robot that makes up for a part of its error in each step."""
    state = np.empty_like(target)
    state[0] = target[0] + 0.1 * rng.normal(size=target.shape[1])
    for step in range(len(target) - 1):
        state[step + 1] = state[step] + gain * (target[step] - state[step]) + 0.003 * rng.normal(size=target.shape[1])
    return state


def summed(motion: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return np.concatenate([np.zeros((1, motion.shape[1])), motion.cumsum(0)[:-1]]) + rng.normal(size=motion.shape[1])


def lagging(rng) -> Made:
    target = path(rng)
    return target, followed(target, 0.25, rng)


def lagging_with_velocities(rng) -> Made:
    target, state = lagging(rng)
    return target, np.concatenate([state, np.diff(state, axis=0, prepend=state[:1]) * RATE], 1)


def next_state(rng) -> Made:
    state = path(rng, STEPS + 1)
    return state[1:], state[:-1]


def with_last_command(made: Callable) -> Callable:
    def both(rng) -> Made:
        action, state = made(rng)
        return action, np.concatenate([state, np.concatenate([0 * action[:1], action[:-1]])], 1)

    return both


def deltas(rng) -> Made:
    action = np.clip(rng.normal(size=(STEPS, DIMS)).cumsum(0) * 0.1, -1, 1)
    state = summed(0.01 * action, rng)
    return action, state + 1e-4 * rng.normal(size=state.shape)


def velocities(rng) -> Made:
    action = path(rng)
    return action, summed(action / RATE, rng)


def velocities_with_their_state(rng) -> Made:
    action = path(rng)
    velocity = followed(action, 0.6, rng)
    return action, np.concatenate([summed(velocity / RATE, rng), velocity], 1)


def ahead(rng) -> Made:
    state = path(rng, STEPS + 8)
    return state[8:] - state[:-8], state[:-8]


def since_the_start(rng) -> Made:
    state = path(rng, STEPS + 1)
    return state[1:] - state[0], state[:-1]


def in_chunks(rng) -> Made:
    state = path(rng, STEPS + 1)
    return state[1:] - state[np.arange(STEPS) // 16 * 16], state[:-1]


def unrelated(rng) -> Made:
    return rng.normal(size=(STEPS, DIMS)), path(rng)


def guessed(made: Callable, episodes: int = EPISODES) -> dict:
    rng = np.random.default_rng(3)
    parts = [made(rng) for _ in range(episodes)]
    action, state = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    ends = np.cumsum([len(part[0]) for part in parts])
    names = [[f"{letter}{dim}" for dim in range(array.shape[1])] for letter, array in (("a", action), ("s", state))]
    return action_kind(action, state, ends, *names, RATE)


@pytest.mark.parametrize(
    ("made", "kind", "state"),
    [
        (lagging, "absolute", "s0"),
        (lagging_with_velocities, "absolute", "s0"),
        (next_state, "absolute", "s0"),
        (with_last_command(lagging), "absolute", "s0"),
        (deltas, "delta", "s0"),
        (with_last_command(deltas), "delta", "s0"),
        (velocities, "delta", "s0"),
        (velocities_with_their_state, "delta", "s0"),
        (ahead, "relative", "s0"),
        (since_the_start, "relative", "s0"),
        (in_chunks, "relative", "s0"),
        (unrelated, "undecided", None),
    ],
)
def test_actions_are_what_they_were_made_to_be(made, kind, state):
    found = guessed(made)
    assert found["kind"] == kind, found
    if state:
        assert found["dimensions"][0]["state"] == state
        assert found["dimensions"][0]["r2"][kind] > 0.5
    else:
        assert "weak" in found["why"]


@pytest.mark.parametrize("noise", [0.0, 1e-6])
def test_what_is_recorded_twice_is_no_chance(noise):
    """Rows a half of the data away are the same ones then, and fit as well as their own."""
    rng = np.random.default_rng(3)
    motion = np.clip(rng.normal(size=(4, STEPS, DIMS)).cumsum(1) * 0.1, -1, 1)
    motion += rng.normal(size=motion.shape) * 0.05
    state = np.cumsum(motion, 1) - motion + 1.5 * rng.normal(size=motion.shape)
    names = [[f"{letter}{dim}" for dim in range(DIMS)] for letter in "as"]
    flat = [item.reshape(-1, DIMS) for item in (motion, state)]
    once = action_kind(*flat, np.arange(1, 5) * STEPS, *names, RATE)
    again = action_kind(*(np.concatenate([item, item + noise]) for item in flat), np.arange(1, 9) * STEPS, *names, RATE)
    assert once["kind"] == again["kind"] == "delta", once
    assert max(once["dimensions"][0]["r2"].values()) < 0.95


def test_weak_evidence_says_what_it_lacks():
    assert "less than 0.5" in guessed(unrelated)["why"]


@pytest.mark.parametrize("episodes", [1, 2, 3, 5])
def test_smooth_curves_that_have_nothing_to_do_with_each_other_are_undecided(episodes):
    decided = 0
    for seed in range(20):
        rng = np.random.default_rng(seed)
        action, state = (np.concatenate([path(rng, STEPS, dims) for _ in range(episodes)]) for dims in (4, 12))
        names = ["abcd", [f"s{dim}" for dim in range(12)]]
        decided += action_kind(action, state, np.arange(1, episodes + 1) * STEPS, *names, RATE)["kind"] != "undecided"
    assert decided <= 2


@pytest.mark.parametrize(("made", "kind"), [(lagging, "absolute"), (deltas, "delta"), (since_the_start, "relative")])
def test_two_episodes_are_enough_for_what_is_clear(made, kind):
    assert guessed(made, episodes=2)["kind"] == kind


def test_a_velocity_is_told_by_its_slope():
    assert all(item["velocity"] for item in guessed(velocities)["dimensions"])
    assert "velocity" in guessed(velocities)["why"]
    assert "velocity" not in guessed(deltas)["why"]
    assert not any(item["velocity"] for item in guessed(deltas)["dimensions"])


@pytest.mark.parametrize(
    ("made", "contradicted"),
    [(deltas, {"absolute"}), (lagging, {"delta", "relative"}), (unrelated, set()), (in_chunks, {"absolute", "delta"})],
)
def test_only_a_clear_contradiction_is_a_problem(made, contradicted):
    guess = guessed(made)
    assert {control for control in ("absolute", "relative", "delta") if contradiction(guess, control)} == contradicted


def test_dimensions_that_disagree_decide_nothing():
    def mixed(rng) -> Made:
        (place, first), (motion, second) = lagging(rng), deltas(rng)
        return np.concatenate([place, motion], 1), np.concatenate([first, second], 1)

    found = guessed(mixed)
    assert found["kind"] == "undecided"
    assert "a0 absolute" in found["why"]
    assert "a3 delta" in found["why"]


def turning(rng: np.random.Generator, steps: int = 4000, step: float = 0.05) -> np.ndarray:
    """A random walk over the rotations, as quaternions w, x, y, z of continuous sign."""
    q = np.array([1.0, 0, 0, 0])
    result = []
    for vector in rng.normal(size=(steps, 3)) * step:
        w, xyz = 1.0, vector / 2
        q = np.array([w * q[0] - xyz @ q[1:], *(w * q[1:] + q[0] * xyz + np.cross(xyz, q[1:]))])
        q /= np.linalg.norm(q)
        result.append(q)
    return np.array(result)


def matrices(q: np.ndarray) -> np.ndarray:
    w, x, y, z = q.T
    rows = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
        [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
        [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
    ]
    return np.array(rows).transpose(2, 0, 1)


def vectors(q: np.ndarray) -> np.ndarray:
    q = q * np.sign(q[:, :1])
    angle = 2 * np.arctan2(np.linalg.norm(q[:, 1:], axis=1), q[:, 0])
    return q[:, 1:] / np.maximum(np.linalg.norm(q[:, 1:], axis=1, keepdims=True), 1e-12) * angle[:, None]


def euler(q: np.ndarray) -> np.ndarray:
    turned = matrices(q)
    return np.stack(
        [
            np.arctan2(turned[:, 2, 1], turned[:, 2, 2]),
            -np.arcsin(turned[:, 2, 0].clip(-1, 1)),
            np.arctan2(turned[:, 1, 0], turned[:, 0, 0]),
        ],
        1,
    )


def canonical(q: np.ndarray) -> np.ndarray:
    return q * np.where(q[:, :1] < 0, -1, 1)


def layouts(values: np.ndarray, names: list[str] | None = None, padded: bool = True) -> list[dict]:
    """What is found in `values` between a place and an opening."""
    rng = np.random.default_rng(1)
    around = [path(rng, len(values), 3), values, rng.uniform(size=(len(values), 1))]
    inner = names or [f"d{dim}" for dim in range(values.shape[1])]
    whole = np.concatenate(around, 1) if padded else values
    within = np.ones(len(values), bool)
    within[-1] = False
    return rotations(["x", "y", "z", *inner, "grip"] if padded else inner, whole, within)


@pytest.fixture(scope="module")
def turned() -> np.ndarray:
    return turning(np.random.default_rng(0))


@pytest.mark.parametrize(
    ("make", "kind", "order", "size"),
    [
        (lambda q: canonical(q), "unit quaternion", "w first", 4),
        (lambda q: np.roll(canonical(q), -1, 1), "unit quaternion", "w last", 4),
        (lambda q: q, "unit quaternion", "undecided", 4),
        (lambda q: matrices(q).reshape(-1, 9), "rotation matrix", "rows or columns: undecided", 9),
        (lambda q: matrices(q)[:, :2].reshape(-1, 6), "6D rotation", "one 3-vector after the other", 6),
        (
            lambda q: matrices(q)[:, :, :2].reshape(-1, 6),
            "6D rotation",
            "two 3-vectors interleaved (the first two columns by rows)",
            6,
        ),
        (vectors, "rotation vector", "", 3),
        (lambda q: np.stack([np.cos(q[:, 0] * 3), np.sin(q[:, 0] * 3)], 1), "cosine and sine of an angle", "undecided", 2),
    ],
)
def test_rotations_are_found_where_they_lie(make, kind, order, size, turned):
    (found,) = layouts(make(turned))
    assert (found["kind"], found["order"]) == (kind, order), found["evidence"]
    assert found["dims"] == list(range(3, 3 + size))
    assert f"{found['norm_mean']:.4f}" in found["evidence"]


def test_euler_angles_wrap_alone(turned):
    (found,) = layouts(euler(turned))
    assert found["kind"] == "Euler angles or other angles in (-pi, pi]"
    (found,) = layouts(euler(turned), ["roll", "pitch", "yaw"])
    assert found["kind"] == "Euler angles"


def test_names_win_over_what_numbers_look_like(turned):
    # A gripper that points down: its rotation vector may grow past pi instead of turning over there.
    down = np.array([np.pi, 0, 0]) + 0.1 * vectors(turned)
    assert np.linalg.norm(down, axis=1).max() > np.pi + 0.1
    for names in (["rx", "ry", "rz"], ["hand.rotvec0", "hand.rotvec1", "hand.rotvec2"]):
        (found,) = layouts(down, names)
        assert (found["kind"], found["order"]) == ("rotation vector", "")
    assert layouts(0.1 * euler(turned), ["roll", "pitch", "yaw"])[0]["kind"] == "Euler angles"
    assert layouts(down, ["rot.x", "rot.y", "rot.z"])[0]["kind"] == "Euler angles", "a name that says neither leaves it open"
    far = np.array([5.5, 5.5, 0]) + 0.1 * vectors(turned)
    assert layouts(far, ["rx", "ry", "rz"])[0]["kind"] == "Euler angles", "no rotation vector is longer than a whole turn"


def test_a_gripper_that_points_down_is_not_taken_for_the_identity(turned):
    # x, y, z, w near (1, 0, 0, 0): read as w first it would be no turn at all.
    small = turning(np.random.default_rng(2), step=0.002)
    down = np.stack([-small[:, 1], small[:, 0], -small[:, 3], small[:, 2]], 1)
    (found,) = layouts(np.roll(down, -1, 1))
    assert found["order"] == "undecided"
    assert "180 degrees" in found["evidence"]


def test_names_say_the_order(turned):
    assert layouts(turned, ["qw", "qx", "qy", "qz"])[0]["order"] == "w first"
    assert layouts(turned, ["qx", "qy", "qz", "qw"])[0]["order"] == "w last"


def test_what_only_looks_like_a_rotation_is_none(turned):
    rng = np.random.default_rng(0)
    choice = np.eye(4)[rng.integers(0, 4, 500)]
    assert layouts(choice) == []
    assert layouts(np.tile([1.0, 0, 0, 0], (500, 1))) == []
    assert layouts(rng.uniform(-1, 1, (500, 4))) == []
