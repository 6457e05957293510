"""Checkpoints of the plugin lerobot_policy_kinoise, which are LeRobot's folders with a policy of ours in them, and back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...config import UsageError
from ...files import write_json, write_tensors
from ...spec import Feature, KinoiseError
from .. import POLICIES, build_policy
from ..base import Policy, PolicyConfig
from ..bounded import held_by_shapes, no_larger
from ..caching import check_fit
from ..checkpoint import policy_config, shapes
from ..diffusion import DiffusionConfig
from .bounds import shown, within
from .lerobot_config import ACTION, ENVIRONMENT, our_key, their_name
from .lerobot_processors import POSTPROCESSOR, PREPROCESSOR, read_steps, refuse_scaling, renamed, write_processors
from .plugin_config import AVERAGED, LEFT_OUT, OTHERS, PREFIX, THEIRS, TRAINED, UPDATES, WRITTEN, Data
from .robot import Imported, Robot
from .tensors import LONGEST, SHOWN, Tensors, read_safetensors

CONFIG, WEIGHTS = "config.json", "model.safetensors"
KINDS = ("STATE", "ENV", "VISUAL", "ACTION")
"""LeRobot's kinds of features, of which none is normalised outside a policy of ours."""


def import_plugin(folder: Path, value: Mapping[str, Any], robot: Robot) -> Imported:
    """A policy out of `folder`, whose config.json is `value`, of a type that begins with PREFIX.

    Raises:
        KinoiseError: settings that kinoise hasn't, a file that is missing or damaged, tensors that don't fit (listed).
        UsageError, SpecMismatch: a robot that isn't the checkpoint's.
    """
    path, weights = folder / CONFIG, folder / WEIGHTS
    data = Data.from_json(value.get("data"), str(path))
    mapping = value.get("normalization_mapping")
    if not isinstance(mapping, dict) or any(mode != "IDENTITY" for mode in mapping.values()):
        raise KinoiseError(
            f"{path}: normalization_mapping is {shown(mapping)}: expected IDENTITY of each kind, since kinoise's policies "
            "normalise themselves. The file was changed after it was written: take another"
        )
    seen = Robot(rename=_renamed(folder, data)).keys(list(data.spec.observations))
    theirs = replace(data.spec, observations=dict(zip(seen, data.spec.observations.values(), strict=True)))
    spec = robot.adopted(theirs, data.guessed)
    notes = []
    if data.guessed and robot.control is None and robot.like is None:
        notes.append(f"control={spec.control} is a guess by the names of its actions: control= says what they mean")
    keys = dict(zip(data.spec.observations, spec.observations, strict=True))
    config = policy_config(_settings(value, path), {}, path)
    _around(config, robot, path)
    config.observations = list(spec.observations)
    if isinstance(config, DiffusionConfig):
        config.vector = replace(config.vector, states={keys.get(key, key): item for key, item in config.vector.states.items()})
    stats = {keys.get(key, key): item for key, item in data.stats.items()}
    with no_larger(held_by_shapes(shapes(weights)), weights, path):
        policy = build_policy(config, spec, stats, data.texts)
    policy.recorded = data.recorded
    tensors, expected = Tensors(read_safetensors(weights), weights), policy.state_dict(keep_vars=True)
    parts = (TRAINED, AVERAGED) if value["ema"] else (TRAINED,)
    found = {part: {key: tensors.get(f"{part}.{key}", item) for key, item in expected.items()} for part in parts}
    updates = int(tensors.get(UPDATES, torch.zeros((), dtype=torch.int64))) if UPDATES in tensors else 0
    tensors.finish()
    if updates < 0:
        raise KinoiseError(f"{weights}: {UPDATES} is {updates}, expected how many updates of training made the weights")
    policy.load_state_dict(found[parts[-1]])  # which plan
    try:
        check_fit(policy.config.decode, policy)
    except KinoiseError as error:
        raise KinoiseError(f"{path}: {error} there") from error
    policy.load_state_dict(found[TRAINED])
    return Imported(policy.eval(), weights, notes, found.get(AVERAGED, {}), updates)


def export_plugin(
    policy: Policy,
    out: Path,
    *,
    trained: Mapping[str, Tensor] | None = None,
    updates: int = 0,
    rename: Mapping[str, str] | None = None,
) -> None:
    """Writes the files of LeRobot's `pretrained_model` (0.4) into `out`, of the plugin's type for this policy.

    Args:
        trained: the weights that training goes on from, where those of `policy`, which plans, are their average.
        updates: how many made them: the average moves the less the more there were.
        rename: what LeRobot's robot calls observations, by ours: `image.corner4: image` is `observation.image` there.

    Raises:
        KinoiseError: names that LeRobot can't have, or of observations that aren't there; `trained` of another policy; several
            robots' numbers, of which none was chosen.
    """
    if policy.frames and policy.frame is None:
        raise KinoiseError(
            f"the policy learnt from several robots, each in its own numbers: {', '.join(policy.frames)}. LeRobot's checkpoint "
            "holds one: say which with frame="
        )
    names = _names(policy.spec.observations, rename or {})
    value = _config(policy, names, averaged=trained is not None)
    # Contiguous on the CPU, as safetensors takes them.
    own = {key: item.detach().cpu().contiguous() for key, item in policy.state_dict().items()}
    weights = {UPDATES: torch.tensor(updates)}
    if trained is None:
        weights |= {f"{TRAINED}.{key}": item for key, item in own.items()}
    else:
        tensors = Tensors(trained, Path("the weights as trained"))
        # A copy, since safetensors refuses what the two have in common.
        weights |= {f"{TRAINED}.{key}": tensors.get(key, item).cpu().clone() for key, item in own.items()}
        tensors.finish()
        weights |= {f"{AVERAGED}.{key}": item for key, item in own.items()}
    write_json(out / CONFIG, value)
    write_tensors(out / WEIGHTS, weights)
    write_processors(out, value, {})


def _around(config: PolicyConfig, robot: Robot, path: Path) -> None:
    """Puts the user's vision-language model in place of the checkpoint's, which says where one is opened or asked for.

    Raises KinoiseError where the user gave none, UsageError for one that the policy isn't built around.
    """
    found = getattr(config, "vlm", None)
    if found is not None and found.path is not None:
        if robot.vlm is None:
            raise KinoiseError(
                f"{path}: its policy is built around a vision-language model, vlm.path={shown(found.path)}, which is not "
                "opened on the checkpoint's word: give vlm=, that model's directory here or its name on the Hugging Face hub"
            )
        found.path = robot.vlm
    elif robot.vlm is not None:
        raise UsageError(f"vlm={robot.vlm}: the checkpoint's policy is built around no vision-language model: leave out vlm=")


def _renamed(folder: Path, data: Data) -> dict[str, str]:
    """What the robot calls observations, by our keys of them, where LeRobot's pipeline renames them before the policy.

    Raises KinoiseError for a pipeline that changes numbers. None at all is as with `save_pretrained` of the policy alone.
    """
    if not any((folder / name).exists() for name in (PREPROCESSOR, POSTPROCESSOR)):
        return {}
    before, after = (read_steps(folder / name) for name in (PREPROCESSOR, POSTPROCESSOR))
    refuse_scaling([*before, *after])
    known = {own: name for name, own in renamed(before).items()}
    return {key: our_key(known[name]) for key, name in data.names.items() if name in known}


def _settings(value: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """Of a policy of ours, out of the plugin's config.json.

    Raises KinoiseError for settings that are missing, whose defaults today need not be those of then, for unknown ones, and for
    whole numbers that none can be.
    """
    name = value["type"].removeprefix(PREFIX)
    if name not in POLICIES:
        return {"name": name}  # which no policy is made of
    usual = POLICIES[name].config()
    theirs = {item.name: THEIRS.get(item.name, item.name) for item in fields(usual) if item.name not in LEFT_OUT}
    missing = sorted({*WRITTEN, *theirs.values()} - value.keys())
    for ours, key in theirs.items():
        missing += _missing(getattr(usual, ours), value.get(key), key)
    unknown = sorted(value.keys() - {*WRITTEN, *OTHERS, *theirs.values()})
    if missing or unknown:
        problems = [*(f"{key} is missing" for key in missing), *(f"{key} is unknown" for key in unknown)]
        more = f"; and {len(problems) - SHOWN} more" if len(problems) > SHOWN else ""
        raise KinoiseError(
            f"{path}: {'; '.join(item[:LONGEST] for item in problems[:SHOWN])}{more}. kinoise and its plugin write all of a "
            "policy's settings and no others: it was changed, or another version wrote it. Take it from where it was made"
        )
    within({key: value[key] for key in theirs.values()}, path)
    return {"name": name, **{ours: value[key] for ours, key in theirs.items()}}


def _missing(usual: Any, found: Any, place: str) -> list[str]:
    """Settings within a setting that it lacks, by their dotted names."""
    if not is_dataclass(usual) or not isinstance(found, dict):
        return []
    inside = {item.name: getattr(usual, item.name) for item in fields(usual)}
    missing = [f"{place}.{name}" for name in inside if name not in found]
    return missing + [part for name in inside for part in _missing(inside[name], found.get(name), f"{place}.{name}")]


def _names(observations: Mapping[str, Feature], rename: Mapping[str, str]) -> dict[str, str]:
    """LeRobot's name of each observation."""
    keys = Robot(rename=rename).keys(list(observations))
    names = {key: their_name(our_key(new), item) for new, (key, item) in zip(keys, observations.items(), strict=True)}
    twice = sorted({name for name in names.values() if list(names.values()).count(name) > 1})
    odd = sorted(name for name in names.values() if "/" in name)
    if twice or odd:
        wrong = f"would call several observations {twice[0]}" if twice else f"has no names with '/', such as {odd[0]}"
        raise KinoiseError(f"LeRobot {wrong}: give others with rename=, as in rename={{{next(iter(names))}: state}}")
    return names


def _config(policy: Policy, names: Mapping[str, str], averaged: bool) -> dict[str, Any]:
    spec, inputs = policy.spec, {}
    for key, name in names.items():
        item = spec.observations[key]
        kind = "VISUAL" if item.kind == "image" else "ENV" if name == ENVIRONMENT else "STATE"
        inputs[name] = {"type": kind, "shape": [3, *item.shape[:2]] if kind == "VISUAL" else list(item.shape)}
    data = Data(spec, dict(policy.stats), policy.texts, dict(names), dict(policy.recorded))
    settings = {key: item for key, item in asdict(policy.config).items() if key not in LEFT_OUT}
    return {
        "type": PREFIX + policy.config.name,
        "input_features": inputs,
        "output_features": {ACTION: {"type": "ACTION", "shape": list(spec.action.shape)}},
        "device": "cpu",
        "observations": list(names.values()),
        "language": spec.language,
        "normalization_mapping": dict.fromkeys(KINDS, "IDENTITY"),
        "ema": averaged,
        "data": data.to_json(),
        **{THEIRS.get(key, key): item for key, item in settings.items()},
    }
