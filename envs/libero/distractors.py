"""Things on the table that have nothing to do with the task: put into a scene before it is compiled, placed at each reset.

They are seen and not touched: they have no part in the physics, so an episode differs from the one without them by its pictures
alone. None is of a kind that the scene has, so that the instruction means what it meant.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Float64

from ...spec import KinoiseError
from ..rendering import load_mujoco
from .objects import category_of
from .surroundings import ground, is_surface, movable

PREFIX = "distractor"
POOL = (
    "macaroni_and_cheese",
    "popcorn",
    "cookies",
    "red_coffee_mug",
    "orange_juice",
    "bbq_sauce",
    "glazed_rim_porcelain_ramekin",
    "milk",
    "ketchup",
    "chocolate_pudding",
    "tomato_sauce",
    "white_bowl",
    "butter",
)
MOST = 6
"""At once. Nothing of the POOL that a scene has is put into it; so many are left everywhere."""

CROWDING = 0.5
"""Metres by which they come nearer where there is no room, measured between the spheres around things: they seldom overlap."""
AWAY = (0.0, 0.0, -10.0)  # under the floor
TRIES = 200
MARGIN, CLEARANCE = 0.15, 0.06
"""Metres: how far from the things of the task, and how near, a distractor may lie."""


def crowded(kind: type[Any]) -> type[Any]:
    """`kind`, a class of LIBERO's scenes, with distractors, which lie under the floor until they are placed."""

    class Crowded(kind):
        def _load_model(self) -> None:
            super()._load_model()
            there = {category_of(name) for name in self.objects_dict}
            for name in [name for name in POOL if name not in there][:MOST]:
                _add(self.model, name)

    Crowded.__name__ = kind.__name__  # which upstream compares with the task's definition
    return Crowded


def place_distractors(model: Any, data: Any, rng: np.random.Generator, strength: float) -> None:
    """Puts `strength` of the distractors beside the things of the task, on the table or the floor, and the others away.

    They lie CLEARANCE metres from everything, less where that is crowded. Raises KinoiseError where there is no place at all.
    """
    mujoco = load_mujoco()

    mujoco.mj_forward(model, data)
    bodies = [body for body in range(model.nbody) if model.body(body).name.startswith(PREFIX) and model.body_mocapid[body] >= 0]
    data.mocap_pos[model.body_mocapid[bodies]] = AWAY
    things = data.xipos[list(movable(model))]
    low, high = things[:, :2].min(0) - MARGIN, things[:, :2].max(0) + MARGIN
    above = float(things[:, 2].max()) + 1.0
    # The arm stands over the table: a place under it is free all the same, and only looked at from too high.
    obstacles = _obstacles(model, data, above)
    for body in rng.permutation(bodies)[: int(strength)]:
        spun, bottom, radius = _lying(model, int(body), rng)
        for attempt in range(TRIES):
            place = rng.uniform(low, high)
            gap = np.linalg.norm(obstacles[:, :2] - place, axis=1) - obstacles[:, 2] - radius
            height = ground(model, data, place, above)
            if height is not None and gap.min() > CLEARANCE - CROWDING * max(0.0, 2 * attempt / TRIES - 1):
                mocap = model.body_mocapid[body]
                data.mocap_pos[mocap], data.mocap_quat[mocap] = (*place, height - bottom), spun
                obstacles = np.vstack([obstacles, [*place, radius]])
                break
        else:
            raise KinoiseError(f"no place for {int(strength)} distractors. Choose fewer: perturb=distractors:1")


def _add(task: Any, name: str) -> None:
    from libero.libero.envs.base_object import OBJECTS_DICT

    thing = OBJECTS_DICT[name](name=f"{PREFIX}_{name}")
    task.merge_assets(thing)
    body = thing.get_obj()
    for part in list(body.iter()):
        for child in list(part):
            shown = child.tag == "geom" and child.get("group") == "1"
            if child.tag in ("joint", "freejoint", "site") or (child.tag == "geom" and not shown):
                part.remove(child)
            elif shown:
                child.set("contype", "0")
                child.set("conaffinity", "0")
    body.set("mocap", "true")
    body.set("pos", " ".join(map(str, AWAY)))
    body.set("quat", " ".join(map(str, _upright(thing))))
    task.worldbody.append(body)


def _upright(thing: Any) -> Float64[np.ndarray, "4"]:
    """How upstream places it: a turn about one axis or several, one after the other."""
    mujoco = load_mujoco()

    turns = thing.rotation if isinstance(thing.rotation, dict) else {thing.rotation_axis or "z": thing.rotation or (0.0,)}
    found = np.array([1.0, 0, 0, 0])
    for axis, angles in turns.items():
        turn, before = np.zeros(4), found.copy()
        turn[0], turn[1 + "xyz".index(axis)] = np.cos(angles[0] / 2), np.sin(angles[0] / 2)
        mujoco.mju_mulQuat(found, turn, before)
    return found


def _lying(model: Any, body: int, rng: np.random.Generator) -> tuple[Float64[np.ndarray, "4"], float, float]:
    """How a thing lies, turned about the vertical at random: its quaternion, how far it reaches below its origin (negative),
    and how far to the side."""
    mujoco = load_mujoco()

    angle, spun, matrix = 2 * np.pi * rng.random(), np.zeros(4), np.zeros(9)
    mujoco.mju_mulQuat(spun, np.array([np.cos(angle / 2), 0, 0, np.sin(angle / 2)]), model.body_quat[body])
    mujoco.mju_quat2Mat(matrix, spun)
    corners = np.vstack(
        [_points(model, geom) for geom in np.flatnonzero(model.body_rootid[model.geom_bodyid] == body).tolist()]
    )
    turned = corners @ matrix.reshape(3, 3).T
    return spun, float(turned[:, 2].min()), float(np.linalg.norm(turned[:, :2], axis=1).max())


def _points(model: Any, geom: int) -> Float64[np.ndarray, "points 3"]:
    """A mesh's vertices in its outermost body's frame."""
    mujoco = load_mujoco()

    mesh, body = model.geom_dataid[geom], model.geom_bodyid[geom]
    first = model.mesh_vertadr[mesh]
    points = model.mesh_vert[first : first + model.mesh_vertnum[mesh]].astype(np.float64)
    steps = [(model.geom_pos[geom], model.geom_quat[geom])]
    while body != model.body_rootid[body]:
        steps.append((model.body_pos[body], model.body_quat[body]))
        body = model.body_parentid[body]
    for place, turn in steps:
        matrix = np.zeros(9)
        mujoco.mju_quat2Mat(matrix, turn)
        points = points @ matrix.reshape(3, 3).T + place
    return points


def _obstacles(model: Any, data: Any, above: float) -> Float64[np.ndarray, "things 3"]:
    """x, y and radius of each part of what is neither table nor floor nor too high to matter."""
    roots = model.body_rootid[model.geom_bodyid]
    solid = np.array([not is_surface(model, int(root)) for root in roots]) & (model.geom_contype > 0)
    low = data.geom_xpos[:, 2] - model.geom_rbound < above - 0.7
    return np.column_stack([data.geom_xpos[:, :2], model.geom_rbound])[solid & low]
