"""What a robomimic file's `env_args` say about its actions: the rate, what they mean, which of them are grippers, the task."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Literal

POSES = {"OSC_POSE": 7, "IK_POSE": 7, "OSC_POSITION": 4}
"""Numbers in an arm's action under robosuite's Cartesian controllers, the gripper's included: it comes last."""
TARGETS = {*POSES, "JOINT_POSITION"}
"""robosuite's controllers of places, whose input is a step from the current one unless their configuration says otherwise."""
RATES = {"JOINT_VELOCITY", "JOINT_TORQUE"}
"""Those whose input is a speed or a torque: it means the same wherever the arm is."""
Control = Literal["absolute", "delta"]
ARMS = ("arms", "right", "left")
LANGUAGE = ("lang", "env_lang", "language_instruction", "language")


def kwargs(env_args: Mapping[str, Any]) -> Mapping[str, Any]:
    """What the environment was made with; empty where that isn't said."""
    found = env_args.get("env_kwargs")
    return found if isinstance(found, Mapping) else {}


def rate(env_args: Mapping[str, Any]) -> float | None:
    """Control steps per second (`control_freq`), or None."""
    found = kwargs(env_args).get("control_freq")
    return float(found) if isinstance(found, int | float) and not isinstance(found, bool) and 0 < found < 1e9 else None


def control(env_args: Mapping[str, Any]) -> Control | None:
    """What an action means to the arms' controllers; None where they aren't said or differ."""
    found: list[Control] = [_control(item) for item in _arms(kwargs(env_args).get("controller_configs"))]
    return found[0] if found and all(item == found[0] for item in found) else None


def gripper(env_args: Mapping[str, Any], dims: int) -> tuple[int, ...]:
    """The grippers' indices in an action of `dims` numbers: the last of each arm's, where all arms are under Cartesian control.

    A composite controller (robosuite 1.5) of two arms has an order of its own, so that nothing is said of it.
    """
    configs = kwargs(env_args).get("controller_configs")
    sizes = [POSES.get(item["type"], 0) for item in _arms(configs)]
    if len(sizes) == 1 and isinstance(configs, Mapping) and _single(sizes[0], dims):
        sizes *= dims // sizes[0]
    composite = isinstance(configs, Mapping) and "body_parts" in configs
    if not sizes or not all(sizes) or sum(sizes) != dims or (composite and len(sizes) > 1):
        return ()
    return tuple(sum(sizes[: index + 1]) - 1 for index in range(len(sizes)))


def instruction(*places: Any) -> str:
    """The first instruction that one of these objects holds; LIBERO's may be a list of words."""
    for place in places:
        for name in LANGUAGE if isinstance(place, Mapping) else ():
            found = place.get(name)
            if isinstance(found, list) and all(isinstance(item, str) for item in found):
                found = " ".join(found)
            if isinstance(found, str) and found.strip():
                return found
    return ""


def _single(size: int, dims: int) -> bool:
    """Whether one configuration stands for several like arms (robosuite copies it for each robot)."""
    return size > 0 and dims > 0 and dims % size == 0


def _control(config: Mapping[str, Any]) -> Control:
    if config["type"] in RATES:
        return "absolute"
    delta = config.get("input_type", "delta") == "delta" and config.get("control_delta", True) is not False
    return "delta" if delta else "absolute"


def _arms(configs: Any) -> Iterator[Mapping[str, Any]]:
    """The arms' controllers: one each (robosuite up to 1.4), or the parts of a composite one (1.5)."""
    if isinstance(configs, list):
        for item in configs:
            yield from _arms(item)
    elif isinstance(configs, Mapping):
        if configs.get("type") in TARGETS | RATES:
            yield configs
        parts = configs.get("body_parts", configs)
        for name in ARMS:
            if isinstance(parts, Mapping) and name in parts:
                yield from _arms(parts[name])
