"""A policy on disk: weights as safetensors, everything else as JSON. Enough, alone, to evaluate or deploy.

config.json   {"format", "kinoise", "policy": settings, "spec", "stats", "texts", "frames": {name: {"spec", "stats"}},
               "recorded": env_args}
model.safetensors, ema.safetensors   the same keys, as trained and as averaged
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from .. import __version__
from ..config import UsageError
from ..files import MALFORMED, read_json, sha256, write_json, write_tensors
from ..spec import KinoiseError, Spec, Stats
from . import POLICIES, build_policy
from .base import Frame, Policy, PolicyConfig
from .bounded import held_by_shapes, no_larger
from .caching import check_fit

FORMAT = 1
SECTIONS = {"policy": dict, "spec": dict, "stats": dict, "texts": list, "frames": dict, "recorded": dict}
DEVICES = ("cpu", "cuda")
FRAME = "whose numbers, of data sets that were normalised each by its own; null: the first's"
"""What commands say of their setting `frame`, see `load_policy`."""


def save_policy(directory: Path, policy: Policy, ema: Mapping[str, Tensor]) -> None:
    """Writes the three files into `directory`. `ema` holds averages of the trained parameters; the rest is shared."""
    weights = {key: item.detach().cpu().contiguous() for key, item in policy.state_dict().items()}
    averaged = {**weights, **{key: item.detach().cpu().contiguous() for key, item in ema.items()}}
    for name, tensors in (("model", weights), ("ema", averaged)):
        write_tensors(directory / f"{name}.safetensors", tensors)
    write_json(
        directory / "config.json",
        {
            "format": FORMAT,
            "kinoise": __version__,
            "policy": asdict(policy.config),
            "spec": policy.spec.to_json(),
            "stats": {key: item.to_json() for key, item in policy.stats.items()},
            "texts": list(policy.texts),
            "frames": {
                name: {
                    "spec": spec.select(policy.spec.observations).to_json(),
                    "stats": {key: stats[key].to_json() for key in policy.stats},
                }
                for name, (spec, stats) in policy.frames.items()
            },
            "recorded": dict(policy.recorded),
        },
    )


def load_policy(
    path: Path | str,
    *,
    ema: bool = True,
    device: str = "auto",
    decode: Mapping[str, Any] | None = None,
    compile: bool = False,
    bf16: bool = False,
    frame: str | None = None,
) -> Policy:
    """The policy in eval mode.

    Args:
        path: a run, its `checkpoints/last`, or a checkpoint.
        ema: the averaged weights (what the field evaluates), or the last ones.
        device: `cpu`, `cuda`, `cuda:1`, ...; `auto` is a GPU where there is one.
        decode: settings laid over the checkpoint's own `decode`.
        compile: see `Policy.compiled`.
        bf16: see `Policy.reduced`.
        frame: the robot that it shall work for, by the name of its data set, where each was normalised by its own numbers;
            None is the first.

    Raises:
        UsageError: a device that isn't there, a setting of `decode` that the policy doesn't have, a frame likewise.
        KinoiseError: nothing there, a file cut short, unknown settings, weights that don't fit (every key listed), or a
            cache's schedule that was fitted to others.
    """
    device = _device(device)
    directory = resolve(path)
    config_path = directory / "config.json"
    value = read_json(config_path)
    if not isinstance(value, dict) or value.get("format") != FORMAT:
        raise KinoiseError(
            f"{config_path}: expected format {FORMAT}, which kinoise {__version__} reads. Take a checkpoint that it wrote."
        )
    for name in ("frames", "recorded"):  # which a checkpoint from before there were any lacks
        value.setdefault(name, {})
    if isinstance(value.get("policy"), dict) and isinstance(bins := value["policy"].get("bins"), dict):
        bins.setdefault("range", "percentiles")  # the only one, before there was a choice
    absent = [key for key, kind in SECTIONS.items() if not isinstance(value.get(key), kind)]
    if "texts" not in absent and not all(isinstance(text, str) for text in value["texts"]):
        absent.append("texts")
    if absent:
        raise KinoiseError(f"{config_path}: {absent} are missing or damaged. Take a checkpoint that kinoise wrote.")
    config = policy_config(value["policy"], decode or {}, config_path)
    frames = {name: _frame(item, config_path) for name, item in value["frames"].items()}
    if frame is not None and frame not in frames:
        known = f"one of {', '.join(frames)}" if frames else "none: its data sets were not normalised each by its own numbers"
        raise UsageError(f"frame={frame}: {directory} has {known}")
    spec, stats = _frame(value, config_path) if frame is None else frames[frame]
    weights = weights_path(directory, ema)
    with no_larger(held_by_shapes(shapes(weights)), weights, config_path):
        policy = build_policy(config, spec, stats, tuple(value["texts"]))
    policy.frames, policy.frame, policy.recorded = frames, frame, value["recorded"]
    _load_weights(policy, weights)
    check_fit(policy.config.decode, policy)
    policy = policy.to(device).eval()
    if bf16:
        policy.reduced()
    return policy.compiled() if compile else policy


def _frame(value: Any, path: Path) -> Frame:
    try:
        return Spec.from_json(value["spec"]), {key: Stats.from_json(item) for key, item in value["stats"].items()}
    except MALFORMED as error:
        raise KinoiseError(f"{path}: a frame is damaged ({error!r}). Take a checkpoint that kinoise wrote.") from error


def resolve(path: Path | str) -> Path:
    """The checkpoint's directory behind `path`, with links followed."""
    path = Path(path)
    for candidate in (path / "checkpoints" / "last", path):
        if (candidate / "config.json").is_file():
            return candidate.resolve()
    what = " It is a data set; a run is what kinoise train makes of it." if (path / "kinoise.json").is_file() else ""
    raise KinoiseError(
        f"{path}: no checkpoint there.{what} Expected RUN, RUN/checkpoints/last or a directory with config.json."
    )


def weights_path(directory: Path, ema: bool = True) -> Path:
    return directory / ("ema.safetensors" if ema else "model.safetensors")


def identity(policy: Policy, checkpoint: Path | None, ema: bool = True) -> dict[str, Any]:
    """Which policy a result is about: `name`, `checkpoint`, `sha256` of its weights, `parameters`.

    Args:
        checkpoint: its directory; None for a policy that was never saved, which has no `sha256` either.
        ema: whether the policy has that checkpoint's averaged weights.
    """
    return {
        "name": policy.config.name,
        "checkpoint": None if checkpoint is None else str(checkpoint),
        "sha256": None if checkpoint is None else sha256(weights_path(checkpoint, ema)),
        "parameters": policy.parameter_count,
        **({} if policy.frame is None else {"frame": policy.frame}),
        **({"bf16": True} if policy.bf16 else {}),
    }


def _device(name: str) -> str:
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in DEVICES:
        raise UsageError(f"device={name}: expected cpu, cuda, cuda:1, ... or auto")
    found = torch.cuda.device_count()
    if device.type == "cuda" and (device.index or 0) >= found:
        raise UsageError(f"device={name}: torch finds {found} CUDA devices here; take device=cpu")
    return name


def policy_config(value: dict[str, Any], decode: Mapping[str, Any], path: Path) -> PolicyConfig:
    name = value.get("name")
    if not isinstance(name, str) or name not in POLICIES:
        raise KinoiseError(f"{path}: policy '{name}' is unknown; this kinoise has {', '.join(POLICIES)}")
    if "${" in json.dumps(value):
        raise KinoiseError(
            f"{path}: its settings hold '${{', which would be looked up elsewhere. Take a checkpoint that kinoise wrote."
        )
    known = list(_settings(name).decode)
    foreign = [key for key in decode if key not in known]
    if foreign:
        raise UsageError(f"decode.{foreign[0]}: the policy '{name}' has no such setting; its own are {', '.join(known)}")
    try:
        return OmegaConf.to_object(  # type: ignore[return-value]
            OmegaConf.merge(_settings(name), value, {"decode": dict(decode)})
        )
    except OmegaConfBaseException as error:
        raise KinoiseError(f"{path}: {str(error).splitlines()[0]}") from error
    except KinoiseError as error:
        if decode:
            raise UsageError(str(error)) from error
        raise
    except (*MALFORMED, AssertionError) as error:
        raise KinoiseError(f"{path}: its settings are damaged ({error!r}). Take a checkpoint that kinoise wrote.") from error


@cache
def _settings(name: str) -> Any:
    """A policy's settings with their types, by default; `merge` copies them. Making them takes as long as merging into them."""
    return OmegaConf.structured(POLICIES[name].config())


def shapes(path: Path) -> list[tuple[int, ...]]:
    """Of the tensors in a safetensors file, by its header alone."""
    with _readable(path), safe_open(path, "pt") as file:
        return [tuple(file.get_slice(key).get_shape()) for key in file.keys()]  # noqa: SIM118 (no mapping)


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError as error:
        raise KinoiseError(f"{path} is missing: the checkpoint is incomplete. Take another, or train again.") from error
    except (SafetensorError, OSError, *MALFORMED) as error:
        raise KinoiseError(
            f"{path} can't be read ({error}): it was cut short, or is no safetensors file; nothing else is read, pickles "
            f"least of all. Take another checkpoint."
        ) from error


def _load_weights(policy: Policy, path: Path) -> None:
    with _readable(path):
        found = load_file(path)
    expected = policy.state_dict(keep_vars=True)  # as it stands: nothing is embedded that the file brings
    problems = [f"{key} is missing" for key in expected.keys() - found.keys()]
    problems += [f"{key} is unknown" for key in found.keys() - expected.keys()]
    problems += [
        f"{key} has shape {tuple(found[key].shape)}, the config says {tuple(expected[key].shape)}"
        for key in expected.keys() & found.keys()
        if expected[key].shape != found[key].shape
    ]
    if problems:
        raise KinoiseError(f"{path} does not match its config.json: {'; '.join(sorted(problems))}")
    policy.load_state_dict(found)
