"""The demonstrators' skills for LIBERO's movable things, each alone: where a thing is afterwards, and the hand off it."""

from __future__ import annotations

import numpy as np
import pytest
from kinoise.envs.experts.libero.cloud import Clouds
from kinoise.envs.experts.libero.drawer import openness
from kinoise.envs.experts.libero.motion import OPEN, axis_angle, move, turn_about
from kinoise.envs.experts.libero.pick import pick_and_place, plans, take
from kinoise.envs.experts.libero.scene import Rotation, Scene, Vector
from kinoise.envs.experts.libero.shake import LIFT, neighbours, shake_off
from kinoise.envs.experts.libero.shelve import covered, opening, shelve
from kinoise.envs.experts.libero.stow import in_drawer, sticks_out, tuck
from kinoise.envs.experts.libero.travel import approach
from kinoise.envs.rendering import load_mujoco
from libero_scenes import begun, env, played, rest

pytest.importorskip("libero", reason="LIBERO isn't installed: make libero")

TABLE = "libero/goal-0"  # a bowl, a plate, a box of cheese, a bottle; a cabinet, a stove, a rack
BASKET = "libero/object-0"
SHELF = "libero/90-40"
STACKED = "libero/spatial-5"  # a bowl stands on a ramekin
BOWL, CHEESE, PLATE, RAMEKIN = "akita_black_bowl_1", "cream_cheese_1", "plate_1", "glazed_rim_porcelain_ramekin_1"
DRAWER = "wooden_cabinet_1_top_region"


def seen(task: str) -> tuple[Scene, Clouds]:
    scene = begun(task)
    return scene, Clouds(scene)


def with_open_drawer() -> tuple[Scene, Clouds]:
    scene, clouds = seen(TABLE)
    (joint,) = scene.joints(DRAWER)
    scene.data.qpos[scene.model.joint(joint.name).qposadr[0]] = max(joint.low, joint.high, key=abs)
    scene.env.sim.forward()
    rest(TABLE, 5)
    assert openness(scene, DRAWER) > 0.97
    return scene, clouds


def put(scene: Scene, thing: str, position: Vector, rotation: Rotation) -> None:
    """Sets a thing somewhere, at rest."""
    joint = scene.model.joint(scene.env.objects_dict[thing].joints[0])
    place, speed = joint.qposadr[0], joint.dofadr[0]
    scene.data.qpos[place : place + 3] = position
    load_mujoco().mju_mat2Quat(scene.data.qpos[place + 3 : place + 7], rotation.ravel())
    scene.data.qvel[speed : speed + 6] = 0
    scene.env.sim.forward()


def let_go(scene: Scene, thing: str) -> bool:
    return not scene.grasped(thing) and not scene.hand_touches() and scene.opening() > 0.06


# By target: the thing, how far from the target's middle it may lie sideways, and how far above it at least and at most, m.
ON = {
    PLATE: (BOWL, 0.02, 0.0, 0.02),
    "flat_stove_1_cook_region": (BOWL, 0.02, 0.0, 0.04),
    "wooden_cabinet_1_top_side": (BOWL, 0.03, -0.02, 0.02),
    BOWL: (CHEESE, 0.03, 0.0, 0.06),
}


@pytest.mark.parametrize("target", ON)
def test_a_thing_is_put_on_another(target: str) -> None:
    thing, beside, lowest, highest = ON[target]
    wanted = ("on", thing, target)
    scene, clouds = seen(TABLE)
    others = {name: scene.pose(name).position for name in scene.objects if name not in (thing, target)}
    assert not scene.holds(wanted)
    assert played(TABLE, pick_and_place(scene, clouds, wanted, 0)), scene.notes
    assert let_go(scene, thing)
    rest(TABLE)
    assert scene.holds(wanted), "it was on it in passing"
    off = scene.pose(thing).position - scene.pose(target).position
    assert np.linalg.norm(off[:2]) < beside
    assert lowest <= off[2] <= highest
    for name, place in others.items():
        assert np.linalg.norm(scene.pose(name).position - place) < 0.01, f"{name} was pushed about"


def test_a_thing_is_put_into_a_basket() -> None:
    scene, clouds = seen(BASKET)
    wanted = tuple(scene.goal[0])
    thing = wanted[1]
    assert played(BASKET, pick_and_place(scene, clouds, wanted, 0)), scene.notes
    assert let_go(scene, thing)
    rest(BASKET)
    walls, inside = clouds.of("basket_1"), clouds.of(thing)
    assert scene.holds(wanted)
    assert (walls.min(0)[:2] < inside.min(0)[:2]).all()
    assert (inside.max(0)[:2] < walls.max(0)[:2]).all()
    assert inside[:, 2].min() < walls[:, 2].mean(), "it lies on the rim"


def test_a_thing_is_put_into_a_drawer_that_can_be_closed_on_it() -> None:
    scene, clouds = with_open_drawer()
    wanted = ("in", CHEESE, DRAWER)
    assert in_drawer(scene, wanted)
    assert not covered(scene, clouds, wanted)
    assert played(TABLE, pick_and_place(scene, clouds, wanted, 0)), scene.notes
    assert let_go(scene, CHEESE)
    rest(TABLE)
    assert scene.holds(wanted)
    assert not sticks_out(scene, clouds, wanted)
    assert openness(scene, DRAWER) > 0.9, "the drawer was pushed in"


def test_what_stands_on_end_in_a_drawer_is_laid_down() -> None:
    scene, clouds = with_open_drawer()
    wanted, middle = ("in", CHEESE, DRAWER), scene.pose(DRAWER).position
    walls = clouds.of(scene.joint_body(scene.joints(DRAWER)[0].name))
    turn = turn_about(np.array([0.0, 1.0, 0.0]), 1.5)
    rotation = turn @ scene.pose(CHEESE).rotation
    leaning = (clouds.of(CHEESE) - scene.pose(CHEESE).position) @ turn.T
    aside = np.ptp(walls[:, 0]) / 2 - 0.015 + leaning[:, 0].min()
    put(scene, CHEESE, np.array([middle[0] - aside, middle[1], middle[2] - 0.023 - leaning[:, 2].min()]), rotation)
    rest(TABLE, 15)
    assert scene.holds(wanted)
    assert sticks_out(scene, clouds, wanted), "it does not stand out"
    before = clouds.of(CHEESE)[:, 2].max()
    assert any(played(TABLE, tuck(scene, clouds, wanted, attempt)) for attempt in range(4)), scene.notes
    rest(TABLE)
    assert scene.holds(wanted)
    assert not sticks_out(scene, clouds, wanted)
    assert clouds.of(CHEESE)[:, 2].max() < before - 0.01
    assert not scene.hand_touches()


@pytest.mark.parametrize("level", ["top", "bottom"])
def test_a_thing_is_put_under_a_roof_from_its_open_side(level: str) -> None:
    scene, clouds = seen(SHELF)
    thing, target = "chefmate_8_frypan_1", f"wooden_two_layer_shelf_1_{level}_region"
    wanted = ("in", thing, target)
    assert covered(scene, clouds, wanted)
    out, face = opening(scene, clouds, target)
    assert played(SHELF, shelve(scene, clouds, wanted, 0)), scene.notes
    assert let_go(scene, thing)
    rest(SHELF)
    assert scene.holds(wanted)
    place, region = scene.pose(thing).position, scene.pose(target)
    assert (place - face) @ out < 0, "it lies before the face"
    assert (np.abs(region.to_local(place)) < scene.region(target)).all()


# How far (rad) the hand has to swing until the ramekin comes off the bowl that it sticks to, and does at least and at most.
STICKING = {"nothing sticks": (0.0, 0.0, 0.1), "it comes off": (0.4, 0.4, 0.8)}


def taken() -> tuple[Scene, dict[str, float]]:
    """The bowl between the fingers, still on the ramekin; what it touches."""
    scene, clouds = seen(STACKED)
    hand, before = plans(scene, clouds, ("on", BOWL, PLATE))[0].grasp.hand, neighbours(scene, BOWL)
    assert before.keys() == {RAMEKIN}
    played(STACKED, approach(scene, clouds, hand, OPEN, ()))
    assert played(STACKED, move(scene, hand, OPEN, within=0.012, turned=0.08))
    assert played(STACKED, take(scene, BOWL, hand))
    return scene, before


def swung(scene: Scene, since: Rotation) -> float:
    """The hand's turn about the line between the fingers, rad."""
    return float(axis_angle(scene.hand().rotation @ since.T) @ since[:, 1])


@pytest.mark.parametrize("case", STICKING)
def test_the_hand_swings_until_what_sticks_has_come_off(case: str) -> None:
    until, least, most = STICKING[case]
    scene, before = taken()
    begin, below = scene.hand(), scene.pose(BOWL).inverse().times(scene.pose(RAMEKIN))
    sticks, swings = True, [0.0]
    for action in shake_off(scene, before):
        env(STACKED).step(np.clip(action, -1, 1).astype(np.float32))
        swings.append(swung(scene, begin.rotation))
        sticks &= abs(swings[-1]) < until
        if sticks:
            put(scene, RAMEKIN, *scene.pose(BOWL).times(below))
    assert not sticks
    assert least <= np.abs(swings).max() <= most
    assert scene.grasped(BOWL)
    assert scene.pose(RAMEKIN).position[2] < before[RAMEKIN] + 0.02
    assert scene.hand().position[2] > begin.position[2] + LIFT - 0.03
