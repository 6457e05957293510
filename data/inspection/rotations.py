"""How rotations are laid out in a vector, guessed from what only rotations obey: unit norms, right angles, wraps at pi."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float64

TIGHT = 0.01
PRESENT, CHANGES = 0.05, 1e-4
LARGE, SMALL = 0.5, 0.2
FEWEST_FLIPS = 2
FEW = 500
EULER = re.compile(r"roll|pitch|yaw|euler", re.I)
VECTOR = re.compile(r"rotvec|rot_vec|axis_?angle|(^|[._])r[xyz]$", re.I)
ANGLES = re.compile(r"(^|[._])rot(ation)?[._]?[xyz0-2]?$", re.I)
"""Names of either."""
QUATERNION = re.compile(r"quat|(^|[._])q[wxyz0-3]$|(^|[._])[wxyz]$|rot|orn", re.I)
FIRST, LAST, UNKNOWN = "w first", "w last", "undecided"


def rotations(
    names: Sequence[str], values: Float64[np.ndarray, "steps d"], within: Bool[np.ndarray, "steps"], key: str = ""
) -> list[dict[str, Any]]:
    """Every run of neighbouring dimensions that looks like a rotation, with the evidence.

    Looked for are, in this order, rotation matrices (9), the 6D form of Zhou et al. (2019, arXiv 1812.07035), unit quaternions
    (4), rotation vectors and Euler angles (3), and a cosine beside its sine (2). Whether a matrix lies there by rows or by
    columns no data can say: the transpose is a rotation too.

    Args:
        names: one for each dimension.
        within: whether the next step belongs to the same episode.
        key: the feature's, whose name may say something as well.
    """
    found, taken = [], np.zeros(values.shape[1], bool)
    # What holds at all steps holds at some: most places are out after a look at few.
    few = values[:: max(1, len(values) // FEW)]
    alone = np.zeros(len(few), bool)
    for size, look in ((9, _matrix), (6, _two_axes), (4, _quaternion), (3, _angles), (2, _pair)):
        candidates = []
        for start in range(values.shape[1] - size + 1):
            place, said = np.s_[:, start : start + size], names[start : start + size]
            if look is not _angles and look(few[place], alone, said, key) is None:
                continue
            item = look(values[place], within, said, key)
            if item is not None:
                candidates.append((_varying(values[:, start : start + size]), -start, item))
        for _, start, item in sorted(candidates, key=lambda it: it[:2], reverse=True):
            dims = range(-start, -start + size)
            if not taken[dims].any():
                taken[dims] = True
                found.append({"dims": list(dims), "names": [names[dim] for dim in dims], **item})
    return sorted(found, key=lambda item: item["dims"])


def _matrix(values: np.ndarray, within: np.ndarray, names: Sequence[str], key: str) -> dict[str, Any] | None:
    matrices = values.reshape(-1, 3, 3)
    error = np.abs(matrices @ matrices.transpose(0, 2, 1) - np.eye(3)).max((1, 2))
    if not _varying(values) or error.mean() > 2 * TIGHT or np.linalg.det(matrices).min() < 0:
        return None
    return _said(
        "rotation matrix", "rows or columns: undecided", np.linalg.norm(matrices, axis=2), f"R RT = I to {error.mean():.1e}"
    )


def _two_axes(values: np.ndarray, within: np.ndarray, names: Sequence[str], key: str) -> dict[str, Any] | None:
    layouts = (
        ("one 3-vector after the other", values.reshape(-1, 2, 3)),
        ("two 3-vectors interleaved (the first two columns by rows)", values.reshape(-1, 3, 2).transpose(0, 2, 1)),
    )
    for order, axes in layouts:
        norms, product = np.linalg.norm(axes, axis=2), np.abs((axes[:, 0] * axes[:, 1]).sum(1))
        if _varying(values) > 2 and np.abs(norms - 1).mean() < TIGHT and norms.std() < TIGHT and product.mean() < TIGHT:
            return _said("6D rotation", order, norms, f"their product is {product.mean():.1e} on average")
    return None


def _quaternion(values: np.ndarray, within: np.ndarray, names: Sequence[str], key: str) -> dict[str, Any] | None:
    norms = np.linalg.norm(values, axis=1)
    there = norms > 0
    if there.mean() < PRESENT or not _unit(norms[there]) or np.isin(values, (0, 1)).all(0).all():
        return None
    named = sum(bool(QUATERNION.search(name)) for name in names) == 4 or bool(QUATERNION.search(key))
    if _varying(values) < (2 if named else 3):
        return None
    order, why = _order(values, within & there & np.append(there[1:], False), names)
    missing = "" if there.all() else f"; all zero at {1 - there.mean():.0%} of the steps"
    return _said("unit quaternion", order, norms[there], why + missing)


def _order(values: np.ndarray, within: np.ndarray, names: Sequence[str]) -> tuple[str, str]:
    """Whether w is the first or the last number: by names, where signs flip, what is never negative, identities."""
    ends = [name.lower().removesuffix("]")[-1:] for name in names]
    if "w" in (ends[0], ends[3]) and ends[0] != ends[3]:
        return (FIRST, "the names say so") if ends[0] == "w" else (LAST, "the names say so")
    # q and -q are one rotation, and most libraries give the one with w >= 0: the sign flips where w passes 0.
    now = np.flatnonzero(within)
    flips = now[(values[now] * values[now + 1]).sum(1) < -1 + SMALL]
    if len(flips) >= FEWEST_FLIPS:
        first, last = np.median(np.abs(values[flips]), 0)[[0, 3]]
        if first < SMALL and last > LARGE:
            return FIRST, f"the sign flips {len(flips)} times, where the first number is near 0"
        if last < SMALL and first > LARGE:
            return LAST, f"the sign flips {len(flips)} times, where the last number is near 0"
    values = values[np.linalg.norm(values, axis=1) > 0]
    low = values.min(0)
    for index, other, order in ((0, 3, FIRST), (3, 0, LAST)):
        if -1e-6 <= low[index] < SMALL and values[:, index].max() > LARGE and low[other] < -SMALL:
            return order, f"the {'first' if index == 0 else 'last'} number is never negative, down to {low[index]:.2g}"
    # A measured rotation is never exactly a half turn, but a body that wasn't turned has exactly none.
    identity = (np.abs(values) == np.eye(4)[0]).all(1).mean(), (np.abs(values) == np.eye(4)[3]).all(1).mean()
    near = np.array([(np.abs(values[:, 0]) > 0.999).mean(), (np.abs(values[:, 3]) > 0.999).mean()])
    if max(identity) > TIGHT and near[int(np.argmin(identity))] == 0:
        order = FIRST if identity[0] else LAST
        return order, f"so read, {max(identity):.0%} of the steps are exactly the identity"
    if np.abs(values[:, 3]).mean() > 1 - TIGHT * 10:
        return LAST, f"the last number stays near 1 (mean {np.abs(values[:, 3]).mean():.3f}), as w does near the identity"
    if min(near) > TIGHT:
        return UNKNOWN, f"first near 1 at {near[0]:.0%} of the steps, last at {near[1]:.0%}: two orders, or many turns?"
    mean = np.abs(values).mean(0)
    return UNKNOWN, (
        f"mean sizes {', '.join(f'{item:.2f}' for item in mean)} fit both w first and w last"
        + (": near the identity, or turned by 180 degrees about x" if mean[0] > 1 - TIGHT * 10 else "")
    )


def _angles(values: np.ndarray, within: np.ndarray, names: Sequence[str], key: str) -> dict[str, Any] | None:
    if np.abs(values).max() > 2 * np.pi + TIGHT or _varying(values) < 2:
        return None
    norms = np.linalg.norm(values, axis=1)
    now = np.flatnonzero(within)
    jumps = np.abs(np.diff(values, axis=0))[now]
    # A rotation vector of length pi and its opposite are one rotation; an Euler angle wraps alone, by a whole turn.
    flips = int(((norms[now] > 0.9 * np.pi) & (np.linalg.norm(values[now] + values[now + 1], axis=1) < 0.5)).sum())
    wraps = (np.abs(jumps - 2 * np.pi) < 0.5).sum(0)
    bounds = f"largest {np.abs(values).max():.3f} rad, largest norm {norms.max():.3f}"
    # Numbers alone rarely tell the two apart: what their author called them counts more, where it can be.
    if _named(VECTOR, names, key) and norms.max() <= 2 * np.pi + TIGHT:
        return _said("rotation vector", "", norms, f"the names say so; {bounds}", unit=False)
    if _named(EULER, names, key):
        why = f"the names say so; wraps of a whole turn: {', '.join(map(str, wraps))}; {bounds}"
        return _said("Euler angles", "", norms, why, unit=False)
    if flips >= FEWEST_FLIPS and norms.max() <= np.pi + TIGHT:
        return _said("rotation vector", "", norms, f"{flips} times it turns over at length pi; {bounds}", unit=False)
    if _named(ANGLES, names, key) or _named(VECTOR, names, key):  # the latter of more than a whole turn
        if wraps.sum() or norms.max() > np.pi + TIGHT:
            why = f"wraps of a whole turn: {', '.join(map(str, wraps))}; {bounds}"
            return _said("Euler angles", "", norms, why, unit=False)
        return _said("rotation vector or Euler angles", UNKNOWN, norms, f"named so; {bounds}", unit=False)
    if (wraps >= FEWEST_FLIPS).sum() >= 1 and np.abs(values).max() <= np.pi + TIGHT and (np.ptp(values, axis=0) > 1).all():
        why = f"wraps of a whole turn: {', '.join(map(str, wraps))}; {bounds}"
        return _said("Euler angles or other angles in (-pi, pi]", UNKNOWN, norms, why, unit=False)
    return None


def _pair(values: np.ndarray, within: np.ndarray, names: Sequence[str], key: str) -> dict[str, Any] | None:
    norms = np.linalg.norm(values, axis=1)
    if _varying(values) < 2 or not _unit(norms) or np.isin(values, (0, 1)).all():
        return None
    low = "".join(names).lower()
    order = UNKNOWN
    if "cos" in low and "sin" in low:
        order = "cosine first" if low.index("cos") < low.index("sin") else "sine first"
    return _said(
        "cosine and sine of an angle",
        order,
        norms,
        "the names say which" if order != UNKNOWN else "which is which: no evidence",
    )


def _named(kind: re.Pattern[str], names: Sequence[str], key: str) -> bool:
    return all(kind.search(name) for name in names) or bool(kind.search(key))


def _said(kind: str, order: str, norms: np.ndarray, why: str, unit: bool = True) -> dict[str, Any]:
    mean, std = float(norms.mean()), float(norms.std())
    evidence = f"{'unit ' if unit else ''}norm {mean:.4f} ± {std:.1e}; {why}"
    return {"kind": kind, "order": order, "norm_mean": mean, "norm_std": std, "evidence": evidence}


def _unit(norms: np.ndarray) -> bool:
    return bool(abs(norms.mean() - 1) < TIGHT and norms.std() < TIGHT)


def _varying(values: np.ndarray) -> int:
    """How many dimensions change."""
    return int((np.ptp(values, axis=0) > CHANGES).sum())
