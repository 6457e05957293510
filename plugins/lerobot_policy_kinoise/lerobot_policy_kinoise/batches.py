"""LeRobot's batches in kinoise's terms, and the chunks of its real-time queue."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from kinoise.config import UsageError
from kinoise.policies.imports.plugin_config import Data
from kinoise.spec import Batch, Feature, KinoiseError, Observation, Plan
from lerobot.utils.constants import ACTION
from torch import Tensor

from .data import WHITE

TASK, PADDED = "task", "action_is_pad"


def frame(batch: Mapping[str, Any], data: Data) -> dict[str, Tensor]:
    """The batch's observations, by LeRobot's names. Raises KinoiseError for one that is missing."""
    absent = [name for name in data.names.values() if name not in batch]
    if absent:
        has = sorted(key for key in batch if key.startswith("observation."))
        raise KinoiseError(
            f"the batch lacks {absent}; it has {has}. Where an environment calls them otherwise, say so: "
            f'--rename_map=\'{{"{has[0] if has else "observation.image"}": "{absent[0]}"}}\''
        )
    return {name: batch[name] for name in data.names.values()}


def timed(batch: Mapping[str, Any], data: Data, history: int) -> Mapping[str, Any]:
    """The batch with a time axis in every observation: `[batch, history, ...]`; a policy of one observation gets it added.

    Raises KinoiseError for another number of frames, and for single ones where several are needed.
    """
    seen = frame(batch, data)
    single = [name for key, name in data.names.items() if seen[name].ndim == 1 + len(data.spec.observations[key].shape)]
    if not single:
        return batch
    if history > 1:
        raise KinoiseError(
            f"{single} of the batch have no time axis, and this policy sees n_obs_steps={history} frames. Call "
            "policy.observe(batch) at every control step, and plan from what it returns"
        )
    return {**batch, **{name: seen[name][:, None] for name in single}}


def observation(batch: Mapping[str, Any], data: Data) -> Observation:
    """Of a batch whose observations have a time axis; images as float in [0, 1] or uint8, channels first.

    Raises KinoiseError for images out of range, and for a missing task where the policy has language.
    """
    seen = frame(batch, data)
    values = {key: _value(seen[name], data.spec.observations[key], name) for key, name in data.names.items()}
    if not data.spec.language:
        return Observation(values)
    rows = len(next(iter(values.values())))
    tasks = batch.get(TASK)
    tasks = [tasks] * rows if isinstance(tasks, str) else tasks
    if not isinstance(tasks, Sequence) or len(tasks) != rows:
        raise KinoiseError(f"'{TASK}' is {tasks!r}: the policy needs a text for each of {rows} rows, such as '{data.texts[0]}'")
    texts = tuple(dict.fromkeys(map(str, tasks)))
    return Observation(values, texts, torch.tensor([texts.index(str(item)) for item in tasks]))


def training_batch(batch: Mapping[str, Any], data: Data, history: int, chunk: int) -> Batch:
    """What a loss is computed from; steps past an episode's end, `action_is_pad`, are not valid.

    Raises KinoiseError as `observation` does, and for actions of another shape.
    """
    actions = batch.get(ACTION)
    expected = (chunk, data.spec.action_dim)
    if actions is None or tuple(actions.shape[1:]) != expected:
        came = "none" if actions is None else list(actions.shape[1:])
        raise KinoiseError(f"'{ACTION}' of a row has the shape {came}: expected {list(expected)}, chunk_size and dimensions")
    padded = batch.get(PADDED)
    valid = torch.ones(actions.shape[:2], dtype=torch.bool, device=actions.device) if padded is None else ~padded.bool()
    return Batch(observation(timed(batch, data, history), data), actions.float(), valid)


def left_over(chunk: Tensor | None, rows: int, data: Data) -> Plan | None:
    """What LeRobot's queue holds of the chunk before, `[steps, action]` or `[batch, steps, action]`, as kinoise's plan.

    None where there is none, or nothing is left of it. Raises UsageError for another shape.
    """
    if chunk is None:
        return None
    whole = chunk[None] if chunk.ndim == 2 else chunk
    if whole.ndim != 3 or whole.shape[0] != rows or whole.shape[2] != data.spec.action_dim:
        raise UsageError(
            f"prev_chunk_left_over has the shape {list(chunk.shape)}: expected [steps, {data.spec.action_dim}] for one row, "
            f"or [{rows}, steps, {data.spec.action_dim}]"
        )
    if whole.shape[1] == 0:
        return None
    return Plan(actions=whole.detach().float().cpu().clone(), dt=1.0 / data.spec.rate, nfe=0)


def _value(x: Tensor, feature: Feature, name: str) -> Tensor:
    # A tensor made in inference mode can't take part in the gradients of a guided prefix.
    x = x.clone() if x.is_inference() else x
    return _image(x, feature.shape, name) if feature.kind == "image" else x.flatten(2).float()


def _image(x: Tensor, shape: tuple[int, ...], name: str) -> Tensor:
    """`[batch, time, 3, height, width]` to uint8 `[batch, time, *shape]`."""
    scaled = x if x.dtype == torch.uint8 else x.float() * WHITE
    if tuple(x.shape[-2:]) != shape[:2]:
        small = F.interpolate(scaled.float().flatten(0, 1), shape[:2], mode="bilinear", antialias=True, align_corners=False)
        scaled = small.unflatten(0, x.shape[:2])
    if scaled.dtype != torch.uint8:
        if not (scaled.amin() > -1 and scaled.amax() < WHITE + 1):
            raise KinoiseError(
                f"'{name}' reaches from {float(x.min()):.3g} to {float(x.max()):.3g}: expected uint8, or float from 0 to 1"
            )
        scaled = scaled.round().clamp(0, WHITE).to(torch.uint8)
    return scaled.permute(0, 1, 3, 4, 2).contiguous()
