"""For tests of diffusion_policy's zarr layout: stores as others write them, and episodes of kinoise's own."""

from __future__ import annotations

import numpy as np
import zarr
from kinoise.data import Reading
from kinoise.data.base import Episode
from kinoise.spec import Feature, Spec

ENDS = (10, 25, 50)
TEN = Reading(rate=10.0)


def arrays(seed: int = 0) -> dict[str, np.ndarray]:
    """As in Push-T's file: pictures and key points are floats."""
    rng = np.random.default_rng(seed)
    return {
        "action": rng.normal(size=(50, 2)).astype(np.float32),
        "state": rng.normal(size=(50, 5)),
        "keypoint": rng.normal(size=(50, 9, 2)).astype(np.float32),
        "img": rng.integers(0, 256, (50, 16, 17, 3)).astype(np.float32),
        "reward": rng.uniform(1, 2, 50),
    }


def fill(store: object, version: int, given: dict[str, np.ndarray], ends: object = ENDS, **options) -> zarr.Group:
    group = zarr.open_group(store, mode="w", zarr_format=version)  # type: ignore[arg-type]
    data, meta = group.create_group("data"), group.create_group("meta")
    for key, array in given.items():
        data.create_array(key, data=array, chunks=(7, *array.shape[1:]), **options)
    meta.create_array("episode_ends", data=np.asarray(ends))
    return group


def own(seed: int = 0) -> tuple[Spec, list[Episode]]:
    rng = np.random.default_rng(seed)
    spec = Spec(
        {"state": Feature((3,), names=("x", "y", "z"), unit=("m",)), "image.top": Feature((4, 5, 3), "image")},
        Feature((2,), low=(-1.0, 0.0), high=(1.0, 1.0)),
        rate=20.0,
        control="relative",
        gripper=(1,),
    )
    items = [
        Episode(
            {
                "state": rng.normal(size=(steps, 3)).astype(np.float32),
                "image.top": rng.integers(0, 256, (steps, 4, 5, 3), np.uint8),
                "action": rng.normal(size=(steps, 2)).astype(np.float32),
            },
            text,
            {"index": steps},
            {"reward": rng.normal(size=steps), "sim_state": rng.normal(size=(steps, 7))},
        )
        for steps, text in ((7, "schieb es weg, Ärger!"), (1, "push"), (4, "push"))
    ]
    return spec, items
