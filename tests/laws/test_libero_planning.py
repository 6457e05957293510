"""The LIBERO demonstrators' plain geometry: goals in order, the servo's mathematics, clouds, and grasps of simple solids."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("scipy", reason="SciPy isn't installed: it comes with LIBERO")

from kinoise.envs.experts.libero.cloud import Heights, Obstacle, hand_boxes, surface, thinned
from kinoise.envs.experts.libero.goals import missing, ordered
from kinoise.envs.experts.libero.grasp import candidates
from kinoise.envs.experts.libero.motion import axis_angle, nearest_twin, pointing_down, turn_about
from kinoise.envs.experts.libero.scene import Pose

DOWN = pointing_down(np.pi / 2)
ANGLES = st.floats(-3.1, 3.1)
YAWS = [pointing_down(float(yaw)) for yaw in np.arange(12) * np.pi / 12]
TABLE = np.stack(np.meshgrid(np.arange(-0.3, 0.3, 0.005), np.arange(-0.3, 0.3, 0.005), [0.0]), -1).reshape(-1, 3)


def owner(name: str) -> str:
    return name.removesuffix("_region")


def box(*half: float) -> np.ndarray:
    """The surface of a box that stands on the table."""
    corners = np.stack(np.meshgrid([-1, 1], [-1, 1], [0, 2]), -1).reshape(-1, 3) * np.array(half)
    return surface(corners, 0.003)


def test_doors_open_before_and_close_after_what_goes_in() -> None:
    goal = [["close", "drawer_region"], ["in", "bowl", "drawer_region"], ["open", "drawer_region"]]
    assert [item[0] for item in ordered(goal, owner)] == ["open", "in", "close"]


def test_a_door_with_nothing_behind_it_is_closed_first() -> None:
    goal = [["on", "bowl", "cabinet"], ["close", "drawer_region"]]
    assert [item[0] for item in ordered(goal, owner)] == ["close", "on"]


def test_a_stack_is_built_from_below() -> None:
    goal = [["on", "a", "b"], ["on", "b", "c"], ["in", "c", "tray_region"]]
    assert [item[1] for item in ordered(goal, owner)] == ["c", "b", "a"]


def test_what_is_needed_comes_before_what_is_missing() -> None:
    goal = ordered([["in", "bowl", "drawer_region"]], owner)
    opening = ("open", "drawer_region")
    assert missing(goal, lambda item: False, lambda item: opening) == opening
    assert missing(goal, lambda item: item == opening, lambda item: opening) == goal[0]
    assert missing(goal, lambda item: True, lambda item: opening) is None


@given(st.tuples(ANGLES, ANGLES, ANGLES), st.floats(0.01, 3.1))
def test_axis_angle_undoes_turn_about(axis: tuple[float, float, float], angle: float) -> None:
    direction = np.array(axis)
    if np.linalg.norm(direction) < 1e-3:
        return
    found = axis_angle(turn_about(direction, angle))
    assert np.allclose(found, angle * direction / np.linalg.norm(direction), atol=1e-6)


def test_half_a_turn_has_an_angle_of_pi() -> None:
    for axis in np.eye(3):
        assert np.isclose(np.linalg.norm(axis_angle(turn_about(axis, np.pi))), np.pi)


@given(ANGLES)
def test_the_nearest_twin_is_at_most_a_quarter_turn_away(yaw: float) -> None:
    twin = nearest_twin(pointing_down(yaw), DOWN)
    assert np.linalg.norm(axis_angle(twin @ DOWN.T)) < np.pi / 2 + 1e-6
    assert np.isclose(abs(twin[:, 0] @ pointing_down(yaw)[:, 0]), 1)


def test_a_surface_has_no_holes() -> None:
    points = surface(np.stack(np.meshgrid([-0.05, 0.05], [-0.02, 0.02], [0, 0.03]), -1).reshape(-1, 3), 0.004)
    top = points[points[:, 2] > 0.0299]
    probes = np.random.default_rng(0).uniform([-0.05, -0.02], [0.05, 0.02], (200, 2))
    gaps = np.linalg.norm(top[None, :, :2] - probes[:, None], axis=-1).min(1)
    assert gaps.max() < 0.004
    assert len(thinned(points, 0.02)) < len(points) / 4


def test_a_thing_comes_to_rest_on_the_highest_below_it() -> None:
    step = box(0.03, 0.03, 0.02)
    heights = Heights(np.concatenate([TABLE, step]), np.full(3, -0.3), np.full(3, 0.3))
    assert heights.rest(box(0.02, 0.02, 0.02)) == pytest.approx(0.04, abs=1e-6)
    assert heights.rest(box(0.02, 0.02, 0.02) + np.array([0.1, 0.0, 0.5])) == pytest.approx(-0.5, abs=1e-6)


def test_the_open_hand_straddles_what_is_between_its_fingers() -> None:
    hand = Pose(np.array([0.0, 0.0, 0.03]), DOWN)
    assert Obstacle(box(0.02, 0.02, 0.02)).hits(hand, 0.08) == 0
    assert Obstacle(box(0.02, 0.05, 0.02)).hits(hand, 0.08) > 0  # as wide as the fingers are apart, and more
    assert Obstacle(box(0.02, 0.02, 0.04)).hits(hand, 0.08) > 0  # up to the palm
    assert (hand_boxes(0.08, 0.01)[:, 1] >= hand_boxes(0.08)[:, 1]).all()


@given(ANGLES, ANGLES, st.floats(0.0, 0.08), st.booleans())
def test_what_the_hand_covers_is_counted_point_by_point(yaw: float, lean: float, opening: float, closing: bool) -> None:
    rotation = turn_about(np.array([1.0, 0.0, 0.0]), lean) @ pointing_down(yaw)
    points = np.random.default_rng(0).uniform(-0.15, 0.15, (300, 3))
    cloud, boxes = Obstacle(points), hand_boxes(opening, 0.002, closing)
    for position in np.random.default_rng(1).uniform(-0.1, 0.1, (3, 3)):
        local = (points - position) @ rotation
        expected = sum(any(((row > low) & (row < high)).all() for low, high in boxes) for row in local)
        assert cloud.hits(Pose(position, rotation), opening, 0.002, closing) == expected


@pytest.mark.parametrize("yaw", [0.0, 0.3, 1.2])
def test_a_bar_is_taken_across(yaw: float) -> None:
    turn = turn_about(np.array([0.0, 0.0, 1.0]), yaw)
    rotations = [turn @ item for item in YAWS]
    found = candidates(box(0.06, 0.015, 0.015) @ turn.T, TABLE, np.array([0.0, 0.0, 0.015]), rotations, DOWN)
    assert abs(found[0].hand.rotation[:, 0] @ turn[:, 1]) > 0.99
    assert found[0].width == pytest.approx(0.03, abs=0.001)
    assert found[0].hand.position[2] > 0.0095  # the fingertips are above the table


def test_what_is_too_wide_has_no_grasp() -> None:
    assert candidates(box(0.05, 0.05, 0.03), TABLE, np.zeros(3), YAWS, DOWN) == []


def test_a_cup_is_taken_by_its_rim() -> None:
    turns = np.linspace(0, 2 * np.pi, 120, endpoint=False)
    ring = np.column_stack([0.05 * np.cos(turns), 0.05 * np.sin(turns)])
    wall = np.concatenate(
        [np.column_stack([ring * s, np.full(120, z)]) for z in np.arange(0, 0.06, 0.003) for s in (0.98, 1.02)]
    )
    found = candidates(wall, TABLE, np.array([0.0, 0.0, 0.03]), YAWS, DOWN)
    assert np.linalg.norm(found[0].hand.position[:2]) == pytest.approx(0.05, abs=0.005)
    assert found[0].width < 0.01


def test_a_neighbour_keeps_the_hand_away() -> None:
    bar, wall = box(0.06, 0.015, 0.015), box(0.1, 0.01, 0.05) + np.array([0.0, 0.06, 0.0])
    around = np.concatenate([TABLE, wall])
    for item in candidates(bar, around, np.array([0.0, 0.0, 0.015]), YAWS, DOWN):
        assert Obstacle(around).hits(item.hand, 0.08) == 0
