"""What lies beside, on or in what, once things have come to rest: LIBERO's stored states have them hang in the air."""

from __future__ import annotations

from collections.abc import Iterable
from copy import copy
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float64

from ..rendering import load_mujoco
from .objects import SURFACES

WORLD = 0
NEAR = 0.005
"""Metres at which things count as touching."""
SETTLING = 0.5
"""Seconds in which things come to rest."""

Pair = tuple[int, int]


@dataclass(frozen=True)
class Group:
    """Movable things that touch.

    Args:
        roots: their bodies.
        joints: where their positions begin in qpos.
        surfaces: the bodies of the tables or floors that they lie on.
    """

    roots: frozenset[int]
    joints: tuple[int, ...]
    surfaces: frozenset[int]


def movable(model: Any) -> dict[int, int]:
    """By body, of what moves freely, where its position begins in qpos."""
    free = load_mujoco().mjtJoint.mjJNT_FREE
    first = [(body, int(model.body_jntadr[body])) for body in range(model.nbody) if model.body_jntnum[body]]
    return {body: int(model.jnt_qposadr[joint]) for body, joint in first if model.jnt_type[joint] == free}


def is_surface(model: Any, body: int) -> bool:
    """Whether the outermost body `body` is a table or a floor."""
    name = model.body(body).name.removesuffix("_main").removeprefix("main_")
    return body == WORLD or name.rstrip("_0123456789") in SURFACES


def settled(model: Any, data: Any) -> Any:
    """A copy of `data` in which what is movable has fallen down, and nothing else has moved."""
    mujoco = load_mujoco()
    still, free = copy(data), movable(model)
    places = np.concatenate([np.arange(start, start + 7) for start in free.values()])
    speeds = np.concatenate([np.arange(6) + model.jnt_dofadr[model.body_jntadr[body]] for body in free])
    fixed, halted = np.setdiff1d(np.arange(model.nq), places), np.setdiff1d(np.arange(model.nv), speeds)
    for _ in range(round(SETTLING / model.opt.timestep)):
        mujoco.mj_step(model, still)
        still.qpos[fixed], still.qvel[halted] = data.qpos[fixed], 0
    still.qvel[:] = 0
    mujoco.mj_forward(model, still)
    return still


def near(model: Any, data: Any, margin: float) -> set[Pair]:
    """Pairs of outermost bodies that are at most `margin` metres apart, where things are now."""
    mujoco = load_mujoco()
    flags, before = model.opt.enableflags, model.opt.o_margin
    model.opt.enableflags |= mujoco.mjtEnableBit.mjENBL_OVERRIDE
    model.opt.o_margin = margin
    mujoco.mj_collision(model, data)
    model.opt.enableflags, model.opt.o_margin = flags, before
    roots = model.body_rootid[model.geom_bodyid[data.contact.geom[: data.ncon]]]
    return {(int(a), int(b)) for a, b in roots if a != b}


def touching(pairs: Iterable[Pair], bodies: Iterable[int]) -> set[int]:
    """What touches one of `bodies` and is none of them."""
    own = set(bodies)
    return {b for pair in pairs for a, b in (pair, pair[::-1]) if a in own and b not in own}


def groups(model: Any, data: Any) -> list[Group]:
    """What lies on tables and floors alone, by groups that touch, in the order of their bodies."""
    joints, pairs = movable(model), near(model, data, NEAR)
    found, left = [], set(joints)
    while left:
        group = {min(left)}
        while more := (touching(pairs, group) & joints.keys()) - group:
            group |= more
        left -= group
        beside = touching(pairs, group)
        if beside and all(is_surface(model, body) for body in beside):
            ordered = sorted(group)
            found.append(Group(frozenset(group), tuple(joints[body] for body in ordered), frozenset(beside)))
    return found


def ground(model: Any, data: Any, place: Float64[np.ndarray, "2"], above: float) -> float | None:
    """The height of the table or floor at `place`, looked down upon from `above`; None where something else is in between."""
    geom = np.zeros(1, np.int32)
    start, down = np.array([*place, above]), np.array([0.0, 0.0, -1.0])
    distance = load_mujoco().mj_ray(model, data, start, down, None, 1, -1, geom)
    if distance < 0 or not is_surface(model, int(model.body_rootid[model.geom_bodyid[geom[0]]])):
        return None
    return above - distance
