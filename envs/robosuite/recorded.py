"""Whether demonstrations come from the environment that is built here, by their file's `env_args` (robomimic's attribute).

A policy fits by its spec alone wherever seven actions and the same observations are, and fails without a word where the
controller, the robot or the simulator's version are others. What differs is therefore refused.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from ...spec import KinoiseError
from .upstream import CLASSES, RATE

ROBOSUITE = 1
"""robomimic's number for environments of robosuite."""
ARM = {
    "type": "OSC_POSE",
    "input_max": 1,
    "input_min": -1,
    "output_max": [0.05, 0.05, 0.05, 0.5, 0.5, 0.5],
    "output_min": [-0.05, -0.05, -0.05, -0.5, -0.5, -0.5],
    "kp": 150,
    "damping_ratio": 1,
    "impedance_mode": "fixed",
    "kp_limits": [0, 300],
    "damping_ratio_limits": [0, 10],
    "position_limits": None,
    "orientation_limits": None,
    "uncouple_pos_ori": True,
    "control_delta": True,
    "interpolation": None,
    "ramp_ratio": 0.2,
}
"""robosuite's default of its controller OSC_POSE, in the words of 1.4."""
OLDER = {"damping": "damping_ratio", "damping_limits": "damping_ratio_limits"}
"""Words of robosuite before 1.4, which robomimic's files of 1.4 still have."""
NO_EFFECT = {"kp_limits", "damping_ratio_limits", "ramp_ratio", "gripper"}
"""Parts of a controller that one of fixed impedance without interpolation doesn't use."""
FRAMES = ("base", "world")
"""What steps are along, in 1.5: the same, for the Panda's base is parallel to the world."""
SHOWN = {
    "has_renderer",
    "has_offscreen_renderer",
    "render_camera",
    "render_collision_mesh",
    "render_visual_mesh",
    "render_gpu_device_id",
    "renderer",
    "renderer_config",
    "use_camera_obs",
    "use_object_obs",
    "camera_names",
    "camera_heights",
    "camera_widths",
    "camera_depths",
    "camera_segmentations",
    "reward_scale",
    "reward_shaping",
    "ignore_done",
    "horizon",
    "hard_reset",
    "seed",
    "env_lang",
    "lang",
}
"""Arguments that change what is shown or counted, not what happens."""
USUAL = {
    "robots": ("Panda",),
    "gripper_types": ("default", "PandaGripper"),
    "env_configuration": ("default", "single-arm-opposed", None),
    "initialization_noise": ("default", {"magnitude": 0.02, "type": "gaussian"}),
    "base_types": ("default",),
    "mount_types": ("default",),
    "placement_initializer": (None,),
}
"""Arguments that have to be one of these."""


def made(task: str, version: str) -> dict[str, Any]:
    """The `env_args` of demonstrations that are recorded here, as robomimic writes and reads them."""
    if _minor(version) == (1, 4):
        controller: dict[str, Any] = dict(ARM)
    else:
        arm = {key: value for key, value in ARM.items() if key != "control_delta"}
        arm |= {"input_type": "delta", "input_ref_frame": "base", "gripper": {"type": "GRIP"}}
        controller = {"type": "BASIC", "body_parts": {"right": arm}}
    return {
        "env_name": CLASSES[task],
        "env_version": version,
        "type": ROBOSUITE,
        "env_kwargs": {
            "robots": ["Panda"],
            "controller_configs": controller,
            "control_freq": RATE,
            "has_renderer": False,
            "has_offscreen_renderer": False,
            "use_object_obs": True,
            "use_camera_obs": False,
            "ignore_done": True,
            "reward_shaping": False,
        },
    }


def require(task: str, version: str, env_args: Mapping[str, Any]) -> None:
    """Raises KinoiseError with every point at which `env_args` say another environment than `task` in robosuite `version`."""
    require_same(f"robosuite/{task}", made(task, version), env_args)


def require_same(env: str, here: Mapping[str, Any], env_args: Mapping[str, Any]) -> None:
    """The same for an environment that was made, in whatever process: by its own `env_args`.

    Args:
        env: its id, which the error names.
        here: `meta()["robomimic"]["env_args"]` of it, as `made` writes them; empty where the simulator keeps no such record,
            of which nothing is compared.
        env_args: the demonstrations'; nothing is compared where they say nothing.

    Raises KinoiseError with every difference.
    """
    lines = list(differences(here, env_args)) if here and env_args else []
    if lines:
        raise KinoiseError(
            f"the demonstrations' env_args say another environment than {env} with robosuite {here['env_version']}: "
            f"{'; '.join(lines)}. A policy of theirs fails here without a word: evaluate it in what they were recorded with, "
            f"or train on demonstrations from here (kinoise collect env={env}). If the file is wrong, correct its "
            f"attribute data.env_args and train again."
        )


def differences(here: Mapping[str, Any], env_args: Mapping[str, Any]) -> Iterator[str]:
    """Every such point, a line each."""
    version, wanted = here["env_version"], here["env_kwargs"]
    kind, name, said = env_args.get("type", ROBOSUITE), env_args.get("env_name"), env_args.get("env_version")
    if kind != ROBOSUITE:
        yield f"type is {kind}, expected {ROBOSUITE} (robosuite)"
    if name != here["env_name"]:
        yield f"env_name is {name}, expected {here['env_name']}"
    if not isinstance(said, str):
        yield (
            f"env_version is missing, as in robomimic's files of robosuite 1.2, whose physics, controller's settings and "
            f"pictures differ, expected {_text(version)}"
        )
    elif _minor(said) != _minor(version):
        yield f"env_version is {said}, expected {_text(version)}"
    kwargs = env_args.get("env_kwargs")
    kwargs = kwargs if isinstance(kwargs, Mapping) else {}
    rate = kwargs.get("control_freq", RATE)
    if rate != wanted["control_freq"]:
        yield f"control_freq is {rate}, expected {wanted['control_freq']}"
    yield from _controller(kwargs.get("controller_configs"), wanted["controller_configs"])
    for key, value in kwargs.items():
        if key in SHOWN or key in ("control_freq", "controller_configs"):
            continue
        items = value if isinstance(value, list | tuple) else [value]
        if key not in USUAL or len(items) != 1 or items[0] not in USUAL[key]:
            yield f"{key} is {value}, expected {USUAL[key][0] if key in USUAL else 'not to be given'}"
    if "robots" not in kwargs:
        yield "robots is missing, expected Panda"


def _controller(configs: Any, wanted: Any) -> Iterator[str]:
    arm, ours = _arm(configs), _settings(_arm(wanted) or {})
    if arm is None:
        yield f"controller_configs is {configs}, expected OSC_POSE for one arm"
        return
    frame = arm.get("input_ref_frame", FRAMES[0])
    if frame not in FRAMES:
        yield f"the controller's input_ref_frame is {frame}, expected {FRAMES[0]}"
    found = _settings(arm)
    if "type" not in found:
        yield f"the controller's type is missing, expected {ours.get('type')}"
    for key, value in found.items():
        if key not in NO_EFFECT and not (key in ours and _equal(value, ours[key])):
            yield f"the controller's {key} is {value}, expected {ours.get(key, 'no such')}"


def _settings(arm: Mapping[str, Any]) -> dict[str, Any]:
    """An arm's settings in the words of robosuite 1.4, without the frame of its steps."""
    found = {OLDER.get(key, key): value for key, value in arm.items() if key != "input_ref_frame"}
    kind = found.pop("input_type", None)
    return found if kind is None else {**found, "control_delta": kind == "delta"}


def _arm(configs: Any) -> Mapping[str, Any] | None:
    """The arm's part of a controller's configuration: robosuite 1.4's is nothing else, 1.5's has it among a body's parts."""
    if isinstance(configs, list) and len(configs) == 1:
        configs = configs[0]
    if isinstance(configs, Mapping) and isinstance(configs.get("body_parts"), Mapping):
        parts = configs["body_parts"]
        arms = parts["arms"] if isinstance(parts.get("arms"), Mapping) else parts
        configs = arms.get("right")
    return configs if isinstance(configs, Mapping) else None


def _equal(found: Any, expected: Any) -> bool:
    """Whether they mean the same: one number may stand for six."""
    if isinstance(expected, bool | str) or expected is None:
        return found == expected
    try:
        return bool(np.all(np.asarray(found, dtype=float) == np.asarray(expected, dtype=float)))
    except (TypeError, ValueError):
        return False


def _minor(version: str) -> tuple[int, int] | None:
    parts: Sequence[str] = version.split(".")
    return (int(parts[0]), int(parts[1])) if len(parts) > 1 and parts[0].isdecimal() and parts[1].isdecimal() else None


def _text(version: str) -> str:
    return ".".join(version.split(".")[:2])
