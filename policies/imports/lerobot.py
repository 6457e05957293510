"""LeRobot's DiffusionPolicy checkpoints as policies of ours, and back: nothing is unpickled, nothing of LeRobot is imported.

A checkpoint is LeRobot's folder `pretrained_model`: config.json, model.safetensors and, since 0.4, policy_preprocessor.json and
policy_postprocessor.json with their statistics.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ...config import UsageError
from ...files import read_json, write_json, write_tensors
from ...spec import KinoiseError
from .. import build_policy
from ..base import Policy
from ..bounded import held_by, no_larger
from ..diffusion import DiffusionConfig, DiffusionPolicy
from ..encoders.image import STAGES
from .bounds import within
from .lerobot_config import (
    ACTION,
    CLIPS,
    DEFAULTS,
    ENVIRONMENT,
    LINEAR,
    MODES,
    PARAMETRISATIONS,
    STATE,
    Layout,
    layout,
    read_config,
    settings,
    their_name,
)
from .lerobot_processors import write_processors
from .lerobot_stats import BURIED, our_stats, read_normalisation, their_stats
from .lerobot_weights import GRID, Names, grid, ours, theirs
from .plugin import import_plugin
from .plugin_config import PREFIX
from .robot import Imported, Robot
from .tensors import Tensors, read_named

CONFIG, WEIGHTS = "config.json", "model.safetensors"
COMPILED = "._orig_mod"
"""What torch.compile puts into names."""


def import_lerobot(folder: Path, robot: Robot) -> Imported:
    """A policy out of `folder`, LeRobot's pretrained_model: its own DiffusionPolicy, or one of the plugin's types.

    Raises:
        KinoiseError: another policy, settings that kinoise hasn't, files missing or damaged, tensors that don't fit (listed),
            or data of another robot.
    """
    source = str(folder / CONFIG)
    if not (folder / CONFIG).is_file():
        raise KinoiseError(f"{folder}: no {CONFIG} there. Give LeRobot's folder pretrained_model")
    told = read_json(folder / CONFIG)
    if isinstance(told, dict) and str(told.get("type")).startswith(PREFIX):
        return import_plugin(folder, told, robot)
    if robot.vlm is not None:
        raise UsageError(f"vlm={robot.vlm}: policies of LeRobot's own are built around no such model: leave out vlm=")
    if isinstance(told, dict):
        within({key: told.get(key) for key in (*DEFAULTS, "input_features", "output_features")}, source)
    value = read_config(told, source)
    weights = read_named(folder / WEIGHTS, lambda name: name.replace(COMPILED, ""))
    known = read_normalisation(folder, value, weights)
    found = layout(value, known.renamed, known.modes, source)
    found = replace(found, keys=dict(zip(found.keys, robot.keys(list(found.keys.values())), strict=True)))
    spec, texts = robot.spec(found.observations, found.action)
    stats = {}
    for name in (*found.features, ACTION):
        size = found.action if name == ACTION else found.features[name][0]
        own = our_stats(known.stats.get(name), size, name in found.cameras, found.modes[name], f"{folder}: {name}")
        stats[found.keys.get(name, name)] = own
    config = settings(value, found)
    with no_larger(held_by(weights), folder / WEIGHTS, folder / CONFIG):
        policy = build_policy(config, spec, stats, texts)
    tensors, names = Tensors(weights, folder / WEIGHTS), Names(config, found)
    state = ours(tensors, policy.state_dict(), names)
    grids = [f"{names.encoder(index)}.{GRID}" for index in range(names.encoders)]
    tensors.finish((*BURIED, *grids))
    policy.load_state_dict(state)
    notes = [f"{name}: not an input of LeRobot's DiffusionPolicy network" for name in found.ignored]
    notes += [f"{name}: no statistics, so it isn't scaled" for name in (*found.features, ACTION) if name not in known.stats]
    return Imported(policy.eval(), folder / WEIGHTS, notes)


def unfit(policy: Policy) -> list[str]:
    """Why LeRobot's DiffusionPolicy can't hold this policy, a line each; empty if it can."""
    config = policy.config
    if type(policy) is not DiffusionPolicy or not isinstance(config, DiffusionConfig) or config.network.kind != "unet":
        return ["it isn't a U-Net of the policy 'diffusion'"]
    process, unet, vector, decode = config.process, config.network.unet, config.vector, config.decode
    names = {key: their_name(key, item) for key, item in policy.spec.observations.items()}
    states = [names[key] for key, item in policy.spec.observations.items() if item.kind == "state"]
    shapes = {item.shape for item in policy.spec.observations.values() if item.kind == "image"}
    horizon = config.past + config.chunk
    exact = process.spacing == "leading" or decode.steps == process.levels
    clipped = process.clip is None or process.clips == CLIPS.get(decode.sampler.upper())
    checks = {
        f"process.kind={process.kind}, levels={process.levels}": process.kind == "vp" and process.levels is not None,
        f"process.betas={process.betas} with {process.levels} levels": process.betas != "linear"
        or (process.levels or 0) > LINEAR,
        f"process.parametrisation={process.parametrisation}": process.parametrisation in PARAMETRISATIONS.values(),
        f"process.spacing={process.spacing} with {decode.steps} steps": exact,
        f"process.clips={process.clips} with decode.sampler={decode.sampler}": clipped,
        f"decode.sampler={decode.sampler}": decode.sampler.upper() in CLIPS,
        f"network.positions={config.network.positions}": config.network.positions == process.levels,
        f"policy.past={config.past} with history={config.history}": config.past == config.history - 1,
        f"{horizon} actions to denoise, no multiple of {2 ** len(unet.widths)}": horizon % 2 ** len(unet.widths) == 0,
        f"gripper_size={config.gripper_size}": config.gripper_size == 1,
        "an instruction": policy.spec.language is False or not vector.language,
        f"states {states}: expected {STATE}, and {ENVIRONMENT} at most": states in ([STATE], [STATE, ENVIRONMENT]),
        "neither images nor environment_state": bool(shapes) or ENVIRONMENT in states,
        "cameras of different sizes": len(shapes) < 2,
    }
    return [text for text, fine in checks.items() if not fine]


def export_lerobot(policy: Policy, out: Path) -> None:
    """Writes the files of LeRobot's `pretrained_model` (0.4) into `out`. Raises KinoiseError for a policy that is `unfit`."""
    why = unfit(policy)
    if why:
        raise KinoiseError(
            f"LeRobot's DiffusionPolicy can't be this policy: {'; '.join(why)}. With plugin=true the "
            "run becomes a policy of the plugin lerobot_policy_kinoise, which holds any"
        )
    assert isinstance(policy, DiffusionPolicy)
    found, config = _layout(policy), policy.config
    names = Names(config, found)
    weights = theirs({key: item.detach().cpu() for key, item in policy.state_dict().items()}, names)
    for index in range(names.encoders):
        rows, columns = config.vector.seen(*found.features[found.cameras[0]][1:])
        weights[f"{names.encoder(index)}.{GRID}"] = grid(*(_halved(size, len(STAGES) + 1) for size in (rows, columns)))
    stats = {}
    for name in (*found.features, ACTION):
        own = their_stats(policy.stats[found.keys.get(name, name)], name in found.cameras, found.modes[name])
        stats |= {f"{name}.{kind}": item for kind, item in own.items()}
    value = _config(policy, found)
    write_json(out / CONFIG, value)
    write_tensors(out / WEIGHTS, weights)
    write_processors(out, value, stats)


def _layout(policy: DiffusionPolicy) -> Layout:
    features, keys = {}, {}
    for kind in ("state", "image"):
        for key, item in policy.spec.observations.items():
            if item.kind == kind:
                name = their_name(key, item)
                keys[name] = key
                features[name] = item.shape if kind == "state" else (3, *item.shape[:2])
    vector = policy.config.vector
    modes = {
        name: vector.image if len(shape) == 3 else vector.states.get(keys[name], vector.state)
        for name, shape in features.items()
    }
    return Layout(features, keys, policy.spec.action_dim, {**modes, ACTION: policy.config.actions})


def _config(policy: DiffusionPolicy, found: Layout) -> dict[str, Any]:
    config, kinds = policy.config, {STATE: "STATE", ENVIRONMENT: "ENV"}
    process, unet, vector, decode = config.process, config.network.unet, config.vector, config.decode
    assert process.levels is not None
    modes = {ours: mode for mode, ours in MODES.items()}
    mapping = {kinds.get(name, "VISUAL"): modes[found.modes[name]] for name in found.features}
    inputs = {name: {"type": kinds.get(name, "VISUAL"), "shape": list(shape)} for name, shape in found.features.items()}
    value: dict[str, Any] = {
        "type": "diffusion",
        "n_obs_steps": config.history,
        "horizon": config.past + config.chunk,
        "n_action_steps": config.execute,
        "normalization_mapping": {**mapping, "ACTION": modes[found.modes[ACTION]]},
        "input_features": inputs,
        "output_features": {ACTION: {"type": "ACTION", "shape": [policy.spec.action_dim]}},
        "device": "cpu",
        "vision_backbone": vector.backbone,
        "crop_shape": vector.crop,
        "use_group_norm": vector.norm == "group",
        "spatial_softmax_num_keypoints": vector.keypoints,
        "use_separate_rgb_encoder_per_camera": not vector.shared_cameras,
        "down_dims": list(unet.widths),
        "kernel_size": unet.kernel,
        "n_groups": unet.groups,
        "diffusion_step_embed_dim": unet.embedding,
        "use_film_scale_modulation": unet.film_scale,
        "noise_scheduler_type": decode.sampler.upper(),
        "num_train_timesteps": process.levels,
        "beta_schedule": process.betas,
        "prediction_type": {ours: name for name, ours in PARAMETRISATIONS.items()}[process.parametrisation],
        "beta_start": 0.1 / process.levels,  # which `linear` alone takes
        "beta_end": 20 / process.levels,
        "clip_sample": process.clip is not None,
        "clip_sample_range": process.clip or 1.0,
        "num_inference_steps": decode.steps,
    }
    if vector.resize is not None:
        value |= _resized(vector.resize, vector.crop)
    return value


def _resized(resize: Sequence[int], crop: Sequence[int] | None) -> dict[str, Any]:
    """LeRobot says a crop of resized images as a ratio, of which it takes whole pixels. Raises KinoiseError where none fits."""
    if crop is None:
        return {"resize_shape": list(resize), "crop_ratio": 1.0}
    for ratio in (crop[0] / resize[0], (crop[0] + 0.5) / resize[0], (crop[1] + 0.5) / resize[1]):
        if ratio < 1 and [int(size * ratio) for size in resize] == list(crop):
            return {"resize_shape": list(resize), "crop_ratio": ratio}
    raise KinoiseError(f"vector.crop={list(crop)} is no common share of vector.resize={list(resize)}, which LeRobot needs")


def _halved(size: int, times: int) -> int:
    for _ in range(times):
        size = (size + 1) // 2
    return size
