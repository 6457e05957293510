"""What the demonstrators know of a LIBERO scene: poses, collision geometry, joints, contacts and predicates, read from MuJoCo.

Positions are in metres in the world's frame (x forward from the robot, y to its left, z up), rotations are 3x3 matrices whose
columns are the axes of what is turned. The gripper's frame is that of robosuite's grip site between the fingers: z points out
of the hand, the fingers open and close along x.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from ...rendering import Data, Model

Vector = Float[np.ndarray, "3"]
Rotation = Float[np.ndarray, "3 3"]
Points = Float[np.ndarray, "_ 3"]

PLANE, SPHERE, CAPSULE, ELLIPSOID, CYLINDER, BOX, MESH = 0, 2, 3, 4, 5, 6, 7  # MuJoCo's types of geometries
SLIDE, HINGE = 2, 3  # and of joints

ROUND = 16  # corners that stand for a circle
MAX_OPENING = 0.08  # m between the open fingers' pads


class Pose(NamedTuple):
    """A frame in the world: `position` [3], m; `rotation` [3, 3], columns are the frame's axes."""

    position: Vector
    rotation: Rotation

    def to_world(self, points: np.ndarray) -> np.ndarray:
        """Points `[..., 3]` of this frame, in the world's."""
        return points @ self.rotation.T + self.position

    def to_local(self, points: np.ndarray) -> np.ndarray:
        """Points `[..., 3]` of the world, in this frame."""
        return (points - self.position) @ self.rotation

    def times(self, other: Pose) -> Pose:
        """The world's pose of `other`, which is given in this frame."""
        return Pose(self.to_world(other.position), self.rotation @ other.rotation)

    def inverse(self) -> Pose:
        """The world as seen from this frame."""
        return Pose(-self.position @ self.rotation, self.rotation.T)


class Joint(NamedTuple):
    """A hinge or slide: its `value` and its range `low` to `high`, m or rad."""

    name: str
    value: float
    low: float
    high: float


class Part(NamedTuple):
    """A convex piece of collision geometry: its `name`, its `body`'s name, the corners `points` of its hull, [points, 3]."""

    name: str
    body: str
    points: Points


class Scene:
    """A LIBERO environment as a demonstrator sees it. Everything is read anew when asked for; nothing is ever written.

    Args:
        env: robosuite's environment, `ControlEnv(...).env`.

    Names are the BDDL's: `objects` that can be moved, `fixtures`, and `sites`, which are regions of the table or of a thing
    (`wooden_cabinet_1_top_region`).
    """

    def __init__(self, env: Any) -> None:
        self.env = env
        self.model: Model = env.sim.model._model
        self.objects: tuple[str, ...] = tuple(env.objects_dict)
        self.fixtures: tuple[str, ...] = tuple(env.fixtures_dict)
        self.sites: tuple[str, ...] = tuple(env.object_sites_dict)
        self.goal: list[list[str]] = [list(item) for item in env.parsed_problem["goal_state"]]
        self._grip = self.model.site(env.robots[0].gripper.important_sites["grip_site"]).id
        prefix = env.robots[0].gripper.naming_prefix
        fingers = [self.model.joint(f"{prefix}finger_joint{i}").qposadr[0] for i in (1, 2)]
        self._fingers = np.array(fingers)
        self._pads = [
            {self.model.geom(f"{prefix}finger{i}_{part}").id for part in ("collision", "pad_collision")} for i in (1, 2)
        ]
        roots = {self.model.body_rootid[item] for item in range(self.model.nbody) if self._robotic(item)}
        self._robot = {item for item in range(self.model.nbody) if self.model.body_rootid[item] in roots}
        self.standing: tuple[int, ...] = tuple(
            g for b in range(self.model.nbody) if b not in self._robot for g in self._own_geoms(b)
        )
        self._geoms: dict[int, list[int]] = {}
        self._hulls: dict[int, Points] = {}
        self.notes: list[str] = []  # why skills failed, for whoever works on them

    def fail(self, reason: str) -> bool:
        """Notes why a skill fails, and returns False: `return scene.fail("slipped")`."""
        self.notes.append(reason)
        return False

    @property
    def data(self) -> Data:
        return self.env.sim.data._data

    # The robot

    def hand(self) -> Pose:
        """The grip site's pose: z out of the hand, x from one finger to the other."""
        return Pose(self.data.site_xpos[self._grip].copy(), self.data.site_xmat[self._grip].reshape(3, 3).copy())

    def opening(self) -> float:
        """Between the fingers' pads, m: 0 (closed) to 0.08."""
        return float(np.abs(self.data.qpos[self._fingers]).sum())

    def grasped(self, name: str) -> bool:
        """Whether both fingers touch the object."""
        geoms = set(self.geoms(name))
        sides = [False, False]
        for contact in self.data.contact[: self.data.ncon]:
            pair = {int(contact.geom1), int(contact.geom2)}
            if pair & geoms:
                for side, pads in enumerate(self._pads):
                    sides[side] |= bool(pair & pads)
        return all(sides)

    def hand_touches(self) -> bool:
        """Whether any part of the robot touches anything that isn't the robot."""
        for contact in self.data.contact[: self.data.ncon]:
            bodies = [int(self.model.geom_bodyid[item]) in self._robot for item in (contact.geom1, contact.geom2)]
            if bodies[0] != bodies[1]:
                return True
        return False

    # Things

    def pose(self, name: str) -> Pose:
        """Of an object's, a fixture's or another body, or of a region's site. Raises KeyError when there is no such."""
        if name in self.env.object_sites_dict:
            item = self.model.site(name).id
            return Pose(self.data.site_xpos[item].copy(), self.data.site_xmat[item].reshape(3, 3).copy())
        item = self.body(name)
        return Pose(self.data.xpos[item].copy(), self.data.xmat[item].reshape(3, 3).copy())

    def body(self, name: str) -> int:
        """MuJoCo's id of the body that an object's or a fixture's pose is that of, or of a body named so."""
        return int(self.env.obj_body_id[name]) if name in self.env.obj_body_id else int(self.model.body(name).id)

    def region(self, name: str) -> Float[np.ndarray, "3"]:
        """Half sizes of a site's box in its own frame, m."""
        return np.asarray(self.env.object_sites_dict[name].size, dtype=np.float64)

    def parent(self, site: str) -> str | None:
        """The object or fixture that a site belongs to; None for a region of the table or the floor."""
        return getattr(self.env.object_sites_dict[site], "parent_name", None)

    def joints(self, name: str) -> list[Joint]:
        """The hinges and slides of a fixture, or of the moving part that a site belongs to (a drawer)."""
        owner = self.env.object_sites_dict[name] if name in self.env.object_sites_dict else self.env.get_object(name)
        return [self.joint(item) for item in owner.joints or [] if self._single(item)]

    def joint(self, name: str) -> Joint:
        """A hinge or slide by MuJoCo's name. Raises KeyError when there is no such."""
        item = self.model.joint(name)
        low, high = (float(bound) for bound in item.range)
        return Joint(name, float(self.data.qpos[item.qposadr[0]]), low, high)

    def joint_frame(self, name: str) -> tuple[Vector, Vector]:
        """A joint's anchor and its axis (of norm 1), both in the world."""
        item = self.model.joint(name).id
        return self.data.xanchor[item].copy(), self.data.xaxis[item].copy()

    def joint_body(self, name: str) -> str:
        """The name of the body that a joint moves."""
        return self.model.body(int(self.model.jnt_bodyid[self.model.joint(name).id])).name

    # Geometry

    def parts(self, name: str, frame: Pose | None = None) -> list[Part]:
        """The convex pieces of an object, a fixture or a body, with all that is mounted on it; in the world or in `frame`.

        In the body's own frame: `parts(name, scene.pose(name))`.
        """
        found = [self._part(geom) for geom in self.geoms(name)]
        return found if frame is None else [part._replace(points=frame.to_local(part.points)) for part in found]

    def corners(self, name: str, frame: Pose | None = None) -> Points:
        """The corners of all `parts` together, [points, 3]."""
        return np.concatenate([part.points for part in self.parts(name, frame)])

    def obstacles(self, without: Iterable[str] = ()) -> list[Part]:
        """All convex pieces in the world but the robot's, the floor's plane and those of the objects and fixtures named."""
        left_out = {geom for name in without for geom in self.geoms(name)}
        found = []
        for geom in self.standing:
            if geom not in left_out and self.model.geom_type[geom] != PLANE:
                found.append(self._part(geom))
        return found

    def geoms(self, name: str) -> list[int]:
        """MuJoCo's ids of the colliding geometries of an object, a fixture or a body and all that is mounted on it."""
        root = self.body(name)
        if root not in self._geoms:
            bodies = {root}
            for item in range(root + 1, self.model.nbody):
                if int(self.model.body_parentid[item]) in bodies:
                    bodies.add(item)
            self._geoms[root] = [geom for body in sorted(bodies) for geom in self._own_geoms(body)]
        return self._geoms[root]

    # Facts

    def holds(self, predicate: Sequence[str]) -> bool:
        """Whether a predicate is true now, such as `["on", "akita_black_bowl_1", "plate_1"]`."""
        return bool(self.env._eval_predicate(list(predicate)))

    def touching(self, first: str, second: str) -> bool:
        """Whether two things are in contact."""
        one, two = set(self.geoms(first)), set(self.geoms(second))
        for contact in self.data.contact[: self.data.ncon]:
            pair = (int(contact.geom1), int(contact.geom2))
            if (pair[0] in one and pair[1] in two) or (pair[1] in one and pair[0] in two):
                return True
        return False

    def _single(self, joint: str) -> bool:
        return int(self.model.joint(joint).type[0]) in (SLIDE, HINGE)

    def _robotic(self, body: int) -> bool:
        return self.model.body(body).name.startswith(("robot0_", "gripper0_", "mount0_"))

    def _own_geoms(self, body: int) -> list[int]:
        first, count = int(self.model.body_geomadr[body]), int(self.model.body_geomnum[body])
        collides = [bool(self.model.geom_contype[g] or self.model.geom_conaffinity[g]) for g in range(first, first + count)]
        return [first + i for i in range(count) if collides[i]]

    def _part(self, geom: int) -> Part:
        pose = Pose(self.data.geom_xpos[geom], self.data.geom_xmat[geom].reshape(3, 3))
        body = self.model.body(int(self.model.geom_bodyid[geom])).name
        return Part(self.model.geom(geom).name, body, pose.to_world(self.hull(geom)))

    def hull(self, geom: int) -> Points:
        """Corners of a geometry's convex hull in its own frame, [points, 3]; see `hull`."""
        if geom not in self._hulls:
            self._hulls[geom] = hull(self.model, geom)
        return self._hulls[geom]


def hull(model: Model, geom: int) -> Points:
    """Corners whose convex hull is the geometry's (inscribed, for round ones), in the geometry's frame, [points, 3].

    A mesh collides as its convex hull, so its vertices are enough. Raises KeyError for a type that isn't bounded.
    """
    kind, size = int(model.geom_type[geom]), model.geom_size[geom].astype(np.float64)
    turns = np.linspace(0, 2 * np.pi, ROUND, endpoint=False)
    circle = np.column_stack([np.cos(turns), np.sin(turns)])
    if kind == MESH:
        mesh = int(model.geom_dataid[geom])
        first, count = int(model.mesh_vertadr[mesh]), int(model.mesh_vertnum[mesh])
        return _outermost(model.mesh_vert[first : first + count].astype(np.float64))
    if kind == BOX:
        return size * (np.stack(np.meshgrid([-1, 1], [-1, 1], [-1, 1]), -1).reshape(-1, 3))
    if kind in (SPHERE, ELLIPSOID):
        radii = np.full(3, size[0]) if kind == SPHERE else size
        rings = [
            np.column_stack([circle * np.cos(t), np.full(ROUND, np.sin(t))]) for t in np.linspace(-np.pi / 2, np.pi / 2, 9)
        ]
        return radii * np.concatenate(rings)
    if kind == CYLINDER:
        return np.concatenate([np.column_stack([circle * size[0], np.full(ROUND, z)]) for z in (-size[1], size[1])])
    if kind == CAPSULE:
        ends = [(size[0], z) for z in (-size[1], size[1])] + [(0.0, z) for z in (-size[1] - size[0], size[1] + size[0])]
        return np.concatenate([np.column_stack([circle * r, np.full(ROUND, z)]) for r, z in ends])
    raise KeyError(f"geometry {geom} is of MuJoCo's type {kind}, which has no bounded hull")


def _outermost(points: Points) -> Points:
    """The points of a cloud that its hull needs, nearly: the farthest along each of many directions."""
    if len(points) <= 64:
        return points
    count = 256
    heights = 1 - 2 * (np.arange(count) + 0.5) / count
    turns = np.pi * (1 + np.sqrt(5)) * np.arange(count)
    flat = np.sqrt(1 - heights**2)
    directions = np.column_stack([flat * np.cos(turns), flat * np.sin(turns), heights])
    return points[np.unique((points @ directions.T).argmax(0))]
