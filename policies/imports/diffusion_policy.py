"""Checkpoints of diffusion_policy's transformer (DP-T, low-dimensional observations) as policies of ours.

A .ckpt holds the workspace's settings, an OmegaConf object, and the state dicts of the policy, of its average and of the
optimizer.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...spec import Feature, KinoiseError, Spec, Stats
from .. import build_policy
from ..bounded import held_by, no_larger
from ..core.network import NetworkConfig
from ..core.process import ProcessConfig
from ..decode import DecodeConfig
from ..diffusion import DiffusionConfig
from ..encoders import VectorConfig
from .bounds import LARGEST, LARGEST_FLOAT, LONGEST, shown
from .lerobot_config import CLIPS, PARAMETRISATIONS
from .robot import Imported, Robot
from .tensors import Tensors
from .torch_zip import plain, read_torch

POLICY = "DiffusionTransformerLowdimPolicy"
OBSERVED, ACTION = "obs", "action"
LAYER = {"linear1": "into", "linear2": "out", "self_attn.out_proj": "attention.out", "multihead_attn.out_proj": "cross.out"}
ATTENTIONS = {"attention": "self_attn", "cross": "multihead_attn"}
MODULES = {"input_emb": "actions", "cond_obs_emb": "context", "ln_f": "norm", "head": "head"}
POSITIONS = {"network.position": "model.pos_emb", "network.place": "model.cond_pos_emb"}
KNOWN = {
    "policy": """
_target_ model noise_scheduler horizon obs_dim action_dim n_action_steps n_obs_steps num_inference_steps obs_as_cond
pred_action_steps_only eta use_clipped_model_output
""",
    "policy.model": """
_target_ input_dim output_dim horizon n_obs_steps cond_dim n_layer n_head n_emb p_drop_emb p_drop_attn causal_attn time_as_cond
obs_as_cond n_cond_layers
""",
    "policy.noise_scheduler": """
_target_ num_train_timesteps beta_start beta_end beta_schedule trained_betas variance_type clip_sample clip_sample_range
prediction_type thresholding dynamic_thresholding_ratio sample_max_value timestep_spacing steps_offset set_alpha_to_one
rescale_betas_zero_snr
""",
}
"""The settings that are read, or change nothing beside those that are: betas by beta_start under squaredcos_cap_v2, say."""
UNCHANGED = {
    "policy.noise_scheduler.steps_offset": 0,
    "policy.noise_scheduler.set_alpha_to_one": True,
    "policy.noise_scheduler.timestep_spacing": "leading",
    "policy.noise_scheduler.thresholding": False,
    "policy.noise_scheduler.trained_betas": None,
    "policy.noise_scheduler.rescale_betas_zero_snr": False,
    "policy.pred_action_steps_only": False,
    "policy.use_clipped_model_output": False,
    "policy.model.time_as_cond": True,
    "policy.model.obs_as_cond": True,
}
"""What they have to be where they are given."""
DUMMY, MASKS = "_dummy_variable", ("model.mask", "model.memory_mask")
"""What its state dicts hold besides weights."""


def import_dp(path: Path, robot: Robot) -> Imported:
    """A policy out of a .ckpt: the averaged weights, where there are any.

    Without data its observation is one vector, `obs`; with data, the keys that the checkpoint's task names. If it names none:
    all states in the data's order, if they are as many numbers, and a note.

    Raises KinoiseError for a file that isn't one, for pickled objects besides tensors and settings, another policy, settings
    that kinoise hasn't, and tensors that don't fit (listed).
    """
    payload = read_torch(path)
    states = payload.get("state_dicts") if isinstance(payload, Mapping) else None
    try:
        settings = plain(payload.get("cfg")) if isinstance(payload, Mapping) else None
    except KinoiseError as error:
        raise KinoiseError(f"{path}: {error}") from error
    if not isinstance(states, Mapping) or not isinstance(settings, Mapping) or "model" not in states:
        raise KinoiseError(f"{path}: expected diffusion_policy's cfg, and state_dicts with a model: a .ckpt of its training")
    source = Settings(settings, path)
    averaged = "ema_model" in states
    state = states["ema_model" if averaged else "model"]
    if not isinstance(state, Mapping) or not all(isinstance(name, str) and isinstance(state[name], Tensor) for name in state):
        raise KinoiseError(f"{path}: its model is no state dict of tensors")
    config = source.policy()
    observed, action = source.integer("policy.obs_dim"), source.integer("policy.action_dim")
    named = source.get("task.obs_keys", None)
    features = _observations(robot, named, observed)
    spec, texts = robot.spec(features, action)
    found = Tensors(state, path)
    whole = {name: _stats(found, name, size) for name, size in ((OBSERVED, observed), (ACTION, action))}
    stats, start = {ACTION: whole[ACTION]}, 0
    for key, item in features.items():
        stats[key] = _part(whole[OBSERVED], start, start + item.shape[0])
        start += item.shape[0]
    with no_larger(held_by(state), path, path):
        policy = build_policy(config, spec, stats, texts)
    weights = _weights(found, policy.state_dict())
    used = [name for name in state if name in MASKS or name.endswith(DUMMY) or ".input_stats." in name]
    found.finish(used)
    policy.load_state_dict(weights)
    notes = ["the averaged weights (ema_model)" if averaged else "the weights as trained: it holds no average"]
    if robot.like is not None and named is None:
        notes.append(f"it names no task.obs_keys: the states are taken in the data's order, {', '.join(features)}")
    return Imported(policy.eval(), path, notes)


class Settings:
    """The workspace's settings, by dotted names."""

    def __init__(self, value: Mapping[str, Any], path: Path) -> None:
        self.value, self.path = value, path

    def get(self, name: str, default: Any) -> Any:
        found: Any = self.value
        for part in name.split("."):
            if not isinstance(found, Mapping) or part not in found:
                return default
            found = found[part]
        return found

    def name(self, name: str) -> str:
        """The last part of a class's dotted name; empty where there is none."""
        found = self.get(name, None)
        return found.rpartition(".")[2] if isinstance(found, str) else ""

    def integer(self, name: str, default: int | None = None, least: int = 1, most: int = LARGEST) -> int:
        found = self.get(name, default)
        if type(found) is not int or not least <= found <= most:
            raise KinoiseError(f"{self.path}: cfg.{name} is {shown(found)}: expected a whole number from {least} to {most}")
        return found

    def number(self, name: str, default: float) -> float:
        found = self.get(name, default)
        if type(found) not in (int, float) or not 0 <= found < LARGEST_FLOAT:
            raise KinoiseError(f"{self.path}: cfg.{name} is {shown(found)}: expected a number from 0 on")
        return float(found)

    def boolean(self, name: str, default: bool) -> bool:
        found = self.get(name, default)
        if type(found) is not bool:
            raise KinoiseError(f"{self.path}: cfg.{name} is {shown(found)}: expected true or false")
        return found

    def only(self, name: str, known: Collection[str], source: str) -> None:
        """Raises KinoiseError for settings in `name` besides those known: what nobody reads may change plans."""
        found = self.get(name, {})
        others = sorted(map(str, found.keys() - set(known))) if isinstance(found, Mapping) else [found]
        if others:
            raise KinoiseError(
                f"{self.path}: cfg.{name} has {shown(others)}, which {source} hasn't: it was written by other code"
            )

    def policy(self) -> DiffusionConfig:
        """Ours. Raises KinoiseError for what kinoise can't do."""
        target, scheduler = self.name("policy._target_"), self.name("policy.noise_scheduler._target_")
        if target != POLICY:
            raise KinoiseError(f"{self.path}: its policy is {target[:100] or 'unknown'}; kinoise imports {POLICY} alone")
        name = self._expect("policy.noise_scheduler._target_", scheduler.removesuffix("Scheduler"), tuple(CLIPS), None)
        prediction = self._expect("policy.noise_scheduler.prediction_type", None, tuple(PARAMETRISATIONS), "epsilon")
        self._expect("policy.noise_scheduler.beta_schedule", None, ("squaredcos_cap_v2",), "linear")
        if name == "DDPM":
            self._expect("policy.noise_scheduler.variance_type", None, ("fixed_small",), "fixed_small")
        for setting, known in UNCHANGED.items():
            self._expect(setting, None, (known,), known)
        self._expect("policy.obs_as_cond", None, (True,), False)
        self._expect("policy.eta", None, (0, 0.0), 0)
        for place, known in KNOWN.items():
            self.only(place, known.split(), "diffusion_policy")
        history = self.integer("policy.n_obs_steps", most=LONGEST)
        levels = self.integer("policy.noise_scheduler.num_train_timesteps")
        clip = self.number("policy.noise_scheduler.clip_sample_range", 1.0)
        steps = "policy.num_inference_steps"
        return DiffusionConfig(
            history=history,
            past=history - 1,
            chunk=self.integer("policy.horizon", most=LONGEST) - history + 1,
            execute=self.integer("policy.n_action_steps"),
            goal_dropout=0.0,
            process=ProcessConfig(
                kind="vp",
                parametrisation=PARAMETRISATIONS[prediction],
                levels=levels,
                spacing="leading",
                clip=clip if self.boolean("policy.noise_scheduler.clip_sample", True) else None,
                clips=CLIPS[name],
            ),
            network=NetworkConfig(
                kind="decoder",
                width=self.integer("policy.model.n_emb"),
                depth=self.integer("policy.model.n_layer"),
                heads=self.integer("policy.model.n_head"),
                causal=self.boolean("policy.model.causal_attn", False),
                dropout=self.number("policy.model.p_drop_attn", 0.1),
                positions=levels,
                encoder_depth=self.integer("policy.model.n_cond_layers", 0, least=0),
            ),
            vector=VectorConfig(language=False),
            decode=DecodeConfig(
                sampler=name.lower(), steps=levels if self.get(steps, None) is None else self.integer(steps, most=levels)
            ),
        )

    def _expect(self, name: str, value: Any, known: tuple[Any, ...], default: Any) -> Any:
        found = self.get(name, default) if value is None else value
        if not any(type(found) is type(item) and found == item for item in known):  # 1 is no true
            only = " and ".join(map(str, known))
            raise KinoiseError(f"{self.path}: cfg.{name} is {shown(found)}; kinoise imports {only} alone")
        return found


def _observations(robot: Robot, named: Any, size: int) -> dict[str, Feature]:
    if robot.like is None:
        return {robot.keys([OBSERVED])[0]: Feature((size,))}
    data: Spec = robot.like[0]
    states = {key: item for key, item in data.observations.items() if item.kind == "state"}
    keys = list(states) if named is None else named if isinstance(named, list) else [named]
    keys = robot.keys(keys) if all(isinstance(key, str) for key in keys) else keys
    if not all(isinstance(key, str) and key in states for key in keys):
        raise KinoiseError(
            f"the policy observes cfg.task.obs_keys={shown(keys)}, the data's states are {list(states)}: name the data's "
            "alike, or give none (rate= in place of data=)"
        )
    found = {key: states[key] for key in keys}
    if sum(item.shape[0] for item in found.values()) != size:
        sizes = {key: item.shape[0] for key, item in found.items()}
        raise KinoiseError(f"the policy observes {size} numbers, the data's states are {sizes}: give its own data, or none")
    return found


def _stats(found: Tensors, name: str, size: int) -> Stats:
    """What its normaliser, z = scale x + offset, brings to -1 and 1 as the extremes, so that `minmax` is that normaliser."""
    start, like = f"normalizer.params_dict.{name}", torch.zeros(size, dtype=torch.float64)
    scale, offset = found.get(f"{start}.scale", like), found.get(f"{start}.offset", like)
    if not bool((scale > 0).all() and scale.isfinite().all() and offset.isfinite().all()):
        found.finish(("model", "normalizer", DUMMY, "mask"))
        raise KinoiseError(f"{found.source}: {start} holds no positive finite scale and offset")
    low, high = ((edge - offset) / scale for edge in (-1, 1))
    mean = found.get(f"{start}.input_stats.mean", like) if f"{start}.input_stats.mean" in found else (low + high) / 2
    std = found.get(f"{start}.input_stats.std", like) if f"{start}.input_stats.std" in found else (high - low) / 12**0.5
    values = [tuple(item.tolist()) for item in (mean, std, low, high, low, high)]
    return Stats(*values, count=1)


def _part(stats: Stats, start: int, end: int) -> Stats:
    return Stats(*(getattr(stats, name)[start:end] for name in ("mean", "std", "min", "max", "q01", "q99")), count=stats.count)


def _weights(found: Tensors, expected: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our tensors, `expected` by name and shape, out of theirs."""
    names, result = dict(_names(expected)), {}
    for name, like in expected.items():
        if name in POSITIONS:
            result[name] = found.get(POSITIONS[name], like[None])[0]
        elif name in names:
            result[name] = found.get(names[name], like)
    for name, like in expected.items():
        module, _, kind = name.rpartition(".")
        layer, _, part = module.rpartition(".")
        if part in ("query", "memory"):  # rows of one matrix, [query, key, value]
            block, _, attention = layer.rpartition(".")
            width = like.shape[0] if part == "query" else like.shape[0] // 2
            theirs = f"{_block(block)}.{ATTENTIONS[attention]}.in_proj_{kind}"
            rows = found.get(theirs, like.new_empty(3 * width, *like.shape[1:])).split([width, 2 * width])
            result[name] = rows[0 if part == "query" else 1]
    return {name: item.contiguous() for name, item in result.items()}


def _names(expected: Mapping[str, Tensor]) -> Iterator[tuple[str, str]]:
    """Our name and theirs of every tensor that is only renamed."""
    for name in expected:
        module, _, kind = name.rpartition(".")
        own = module.removeprefix("network.")
        outer = {ours: theirs for theirs, ours in MODULES.items()}
        if own in outer:
            yield name, f"model.{outer[own]}.{kind}"
        elif own in ("encoder.0", "encoder.2") and f"network.{own}.attention.query.weight" not in expected:
            yield name, f"model.{own}.{kind}"
        elif own.startswith(("blocks.", "encoder.")):
            place, index, rest = own.split(".", 2)
            block = _block(f"network.{place}.{index}")
            inner = {ours: theirs for theirs, ours in LAYER.items()}
            if rest in inner:
                yield name, f"{block}.{inner[rest]}.{kind}"
            elif rest.startswith("norms."):
                yield name, f"{block}.norm{int(rest.removeprefix('norms.')) + 1}.{kind}"


def _block(name: str) -> str:
    """`network.blocks.3` is `model.decoder.layers.3`."""
    _, place, index = name.split(".")
    return f"model.{'decoder' if place == 'blocks' else 'encoder'}.layers.{index}"
