"""Things as clouds of points on their surfaces, and the hand as boxes: fast tests of what would touch what."""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache

import numpy as np
from jaxtyping import Float
from scipy.ndimage import maximum_filter
from scipy.spatial import ConvexHull, QhullError

from .scene import PLANE, Points, Pose, Scene

SPACING = 0.004  # m between points of a cloud
COARSE = 0.008  # m, enough to find what the hand would touch
CELL = 0.005  # m, of height maps: wider than SPACING, so that surfaces have no holes

# The gripper in the frame of its grip site: boxes by their lower and upper corners, m. The fingers' x is from the pads' inner
# faces, so that half of the opening is added to it.
FINGER = np.array([[0.0, -0.011, -0.045], [0.027, 0.011, 0.0095]])
PALM = np.array([[-0.105, -0.033, -0.125], [0.105, 0.033, -0.031]])
WRIST = np.array([[-0.06, -0.06, -0.24], [0.06, 0.06, -0.125]])
PAD = np.array([[0.0, -0.008, -0.0116], [0.0, 0.008, 0.0044]])  # what the pads cover along y and z


def surface(corners: Points, spacing: float = SPACING) -> Points:
    """Points on the surface of the convex hull of `corners`, no farther than about `spacing` from each other; read-only."""
    return _surface(np.ascontiguousarray(corners, np.float64).tobytes(), spacing)


@lru_cache(maxsize=4096)
def _surface(data: bytes, spacing: float) -> Points:
    """Kept between episodes, which a task's things go through unchanged: sampling takes a sixth of a demonstration's time."""
    found = _sampled(np.frombuffer(data).reshape(-1, 3), spacing)
    found.setflags(write=False)
    return found


def _sampled(corners: Points, spacing: float) -> Points:
    try:
        triangles = corners[ConvexHull(corners).simplices]
    except QhullError:  # flat
        return corners
    found = [corners]
    edges = np.linalg.norm(triangles - np.roll(triangles, 1, axis=1), axis=-1).max(1)
    for n in np.unique(np.ceil(edges / spacing).astype(int)):
        if n < 2:
            continue
        some = triangles[np.ceil(edges / spacing).astype(int) == n]
        u, v = np.meshgrid(np.arange(n + 1), np.arange(n + 1))
        inside = (u + v) <= n
        weights = np.column_stack([u[inside], v[inside], n - u[inside] - v[inside]]) / n
        found.append(np.einsum("wk,tkd->twd", weights, some).reshape(-1, 3))
    return thinned(np.concatenate(found), spacing / 2)


def thinned(points: Points, spacing: float = SPACING) -> Points:
    """One of the points in each cube of side `spacing`."""
    if not len(points):
        return points
    cells = np.floor(points / spacing).astype(np.int64)
    cells -= cells.min(0)
    size = cells.max(0) + 1
    _, first = np.unique((cells[:, 0] * size[1] + cells[:, 1]) * size[2] + cells[:, 2], return_index=True)
    return points[first]


class Clouds:
    """The scene's things as clouds in the world. What belongs to a rigid piece is sampled once."""

    def __init__(self, scene: Scene) -> None:
        self.scene = scene
        self._local: dict[int, Points] = {}

    def of(self, name: str) -> Points:
        """Of an object, a fixture or a body, [points, 3]."""
        return thinned(np.concatenate([self._geom(geom) for geom in self.scene.geoms(name)]), SPACING / 2)

    def around(self, low: np.ndarray, high: np.ndarray, without: Iterable[str] = ()) -> Points:
        """Of all that isn't the robot nor named in `without`, within the box from `low` to `high` [3], [points, 3]."""
        left_out = {geom for name in without for geom in self.scene.geoms(name)}
        model, data, found = self.scene.model, self.scene.data, []
        for geom in self.scene.standing:
            if geom in left_out:
                continue
            if model.geom_type[geom] == PLANE:
                if not low[2] <= data.geom_xpos[geom][2] <= high[2]:
                    continue
                x, y = (np.arange(low[i], high[i], SPACING) for i in (0, 1))
                grid = np.stack(np.meshgrid(x, y), -1).reshape(-1, 2)
                found.append(np.column_stack([grid, np.full(len(grid), data.geom_xpos[geom][2])]))
                continue
            radius = float(model.geom_rbound[geom])
            middle = data.geom_xpos[geom]
            if (middle + radius < low).any() or (middle - radius > high).any():
                continue
            points = self._geom(geom)
            found.append(points[((points >= low) & (points <= high)).all(1)])
        return thinned(np.concatenate(found), SPACING) if found else np.zeros((0, 3))

    def _geom(self, geom: int) -> Points:
        if geom not in self._local:
            self._local[geom] = surface(self.scene.hull(geom))
        data = self.scene.data
        return Pose(data.geom_xpos[geom], data.geom_xmat[geom].reshape(3, 3)).to_world(self._local[geom])


@lru_cache(maxsize=256)
def hand_boxes(opening: float, margin: float = 0.0, closing: bool = False) -> Float[np.ndarray, "4 2 3"]:
    """The two fingers, the palm and the wrist, grown by `margin`, in the grip site's frame: lower and upper corners; read-only.

    With what is between the fingers too if they are to be `closing`.
    """
    half = opening / 2
    right = FINGER + np.array([half, 0.0, 0.0])
    left = right[::-1] * [-1, 1, 1]
    left = np.stack([np.minimum(left[0], left[1]), np.maximum(left[0], left[1])])
    boxes = np.stack([right, left, PALM, WRIST])
    boxes[:, 0] -= margin
    boxes[:, 1] += margin
    # The pads' own side is where the object will be.
    boxes[0, 0, 0] += margin
    boxes[1, 1, 0] -= margin
    if closing:
        boxes[0, 0, 0] = boxes[1, 0, 0]
    boxes.setflags(write=False)
    return boxes


class Obstacle:
    """A cloud that many poses of the hand are tried in, most of them turned alike: sorted once for each way to be turned."""

    def __init__(self, points: Points) -> None:
        self._points = points
        self._turned: dict[bytes, Points] = {}

    def hits(self, hand: Pose, opening: float, margin: float = 0.0, closing: bool = False) -> int:
        """How many of its points the hand would cover; see `hand_boxes`."""
        boxes = hand_boxes(opening, margin, closing)
        key = hand.rotation.tobytes()
        if key not in self._turned:
            local = self._points @ hand.rotation
            self._turned[key] = np.ascontiguousarray(local[local[:, 1].argsort()].T)
        local, at = self._turned[key], hand.position @ hand.rotation
        # One axis after the other: most points are out of the way along the first, the hand's thin one.
        low, high = boxes[:, 0].min(0) + at, boxes[:, 1].max(0) + at
        first, last = np.searchsorted(local[1], (low[1], high[1]))
        local = local[:, first:last]
        for axis in (2, 0):
            local = local[:, (local[axis] > low[axis]) & (local[axis] < high[axis])]
        local = (local - at[:, None])[:, None]
        within = (local > boxes[:, 0].T[..., None]) & (local < boxes[:, 1].T[..., None])  # axes, boxes, points
        return int(within.all(0).any(0).sum())


class Heights:
    """The highest points of a cloud over a grid of the x-y plane. Cells where there is nothing are at minus infinity."""

    def __init__(self, points: Points, low: np.ndarray, high: np.ndarray) -> None:
        self.low = np.asarray(low[:2], dtype=np.float64)
        shape = np.ceil((np.asarray(high[:2]) - self.low) / CELL).astype(int) + 1
        self.map = np.full(shape, -np.inf)
        cells = self._cells(points)
        kept = ((cells >= 0) & (cells < shape)).all(1)
        np.maximum.at(self.map, tuple(cells[kept].T), points[kept, 2])

    def grown(self, metres: float) -> Heights:
        """The map with every point as wide as a square of half side `metres`."""
        new = object.__new__(Heights)
        new.low, new.map = self.low, maximum_filter(self.map, 2 * int(np.ceil(metres / CELL)) + 1, mode="nearest")
        return new

    def under(self, points: Points) -> np.ndarray:
        """The height below each point, [points]; minus infinity off the map."""
        cells = self._cells(points)
        shape = np.array(self.map.shape)
        kept = ((cells >= 0) & (cells < shape)).all(1)
        found = np.full(len(points), -np.inf)
        found[kept] = self.map[tuple(cells[kept].T)]
        return found

    def rest(self, points: Points) -> float:
        """By how much a cloud has to be raised (or lowered, if negative) for it just to lie on the map."""
        gaps = self.under(points) - points[:, 2]
        return float(gaps.max())

    def _cells(self, points: Points) -> np.ndarray:
        return np.floor((points[:, :2] - self.low) / CELL).astype(int)
