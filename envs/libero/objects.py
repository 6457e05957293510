"""What a scene of LIBERO holds, as a list of objects: a row for each object, fixture and moving part."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
from jaxtyping import Float32

from ...spec import OBJECT, Feature

MOST = 12
"""Rows: no scene holds more."""

SURFACES = ("table", "kitchen_table", "living_room_table", "study_table", "floor")
MOVABLE = (
    "akita_black_bowl",
    "alphabet_soup",
    "basket",
    "bbq_sauce",
    "black_book",
    "butter",
    "chefmate_8_frypan",
    "chocolate_pudding",
    "cookies",
    "cream_cheese",
    "glazed_rim_porcelain_ramekin",
    "ketchup",
    "milk",
    "moka_pot",
    "new_salad_dressing",
    "orange_juice",
    "plate",
    "porcelain_mug",
    "red_coffee_mug",
    "salad_dressing",
    "tomato_sauce",
    "white_bowl",
    "white_yellow_mug",
    "wine_bottle",
    "wooden_tray",
    "yellow_book",
)
FIXTURES = ("desk_caddy", "flat_stove", "microwave", "white_cabinet", "wine_rack", "wooden_cabinet", "wooden_two_layer_shelf")
PARTS = (
    "flat_stove/button",
    "microwave/microdoorroot",
    "white_cabinet/cabinet_bottom",
    "white_cabinet/cabinet_middle",
    "white_cabinet/cabinet_top",
    "wooden_cabinet/cabinet_bottom",
    "wooden_cabinet/cabinet_middle",
    "wooden_cabinet/cabinet_top",
)
CATEGORIES = (*MOVABLE, *FIXTURES, *PARTS)

_NUMBERED = re.compile(r"(.+)_(\d+)")


def objects_feature() -> Feature:
    """The same for every task, so that one policy serves them all."""
    names = tuple(f"{row}.{name}" for row in range(MOST) for name in OBJECT)
    return Feature((len(names),), names=names, unit=tuple(OBJECT.values()) * MOST, categories=CATEGORIES)


class Objects:
    """Reads the rows from a simulator's state.

    A row knows what kind of thing it is but not which: of two bowls, the instruction and their places tell which is meant.
    Rows come by category and, within one, by where things are now, from left to right; the rest is empty.

    Args:
        env: upstream's, after its `reset`.
    """

    def __init__(self, env: Any) -> None:
        model = env.sim.model
        self._data = env.sim.data._data
        found: list[tuple[int, int]] = []
        for name, item in {**env.objects_dict, **env.fixtures_dict}.items():
            category = category_of(name)
            if category in SURFACES:
                continue
            found.append((CATEGORIES.index(category), env.obj_body_id[name]))
            for joint in item.joints if name in env.fixtures_dict else ():
                body = int(model._model.jnt_bodyid[model.joint_name2id(joint)])
                part = model.body_id2name(body).removeprefix(f"{name}_")
                found.append((CATEGORIES.index(f"{category}/{part}"), body))
        found.sort()
        self._categories = np.array([category for category, _ in found])
        self._bodies = np.array([body for _, body in found])

    def read(self, hand: np.ndarray, base: np.ndarray) -> Float32[np.ndarray, "numbers"]:
        """The rows one after another. `hand` and `base`: positions of the gripper and of the robot's base, metres."""
        places = self._data.xpos[self._bodies]
        order = np.lexsort((places[:, 0], places[:, 1], self._categories))
        rows = np.zeros((MOST, len(OBJECT)), np.float32)
        rows[:, 0] = -1
        used = rows[: len(order)]
        used[:, 0] = self._categories[order]
        used[:, 1:4] = places[order] - hand
        used[:, 4:7] = places[order] - base
        used[:, 7:] = self._data.xmat[self._bodies[order]].reshape(-1, 3, 3)[:, :, :2].transpose(0, 2, 1).reshape(-1, 6)
        return rows.ravel()


def category_of(name: str) -> str:
    """What kind of thing `akita_black_bowl_1` is: `akita_black_bowl`."""
    numbered = _NUMBERED.fullmatch(name)
    return numbered[1] if numbered else name
