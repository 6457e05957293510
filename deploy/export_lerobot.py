"""`kinoise export-lerobot RUN out=DIR`: a U-Net policy as LeRobot's own DiffusionPolicy, or any policy as the plugin's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import MISSING

from ..config import UsageError, new_names, parse
from ..files import new_directory
from ..policies.checkpoint import FRAME, load_policy, resolve, weights_path
from ..policies.decode import DecodeChanges
from ..policies.imports import export_lerobot, export_plugin
from ..policies.imports.tensors import read_safetensors

ABOUT = """Writes what LeRobot calls pretrained_model: config.json, model.safetensors, two processors with statistics, as
LeRobot 0.4 reads them. The policy has to be what LeRobot's DiffusionPolicy can be: one that kinoise import-lerobot made, or
one of network.kind=unet on process.kind=vp whose chunk begins at its first observation. Warm starts and caches are
kinoise's, and stay behind.

plugin=true writes a policy of the plugin lerobot_policy_kinoise instead, which any run can be, with all of its settings, the
weights as trained and as averaged. rename= says what LeRobot's robot calls what the policy observes:
rename={proprio: state, image.corner4: image} are observation.state and observation.image there."""


@dataclass
class Settings:
    run: str = field(default=MISSING, metadata={"help": "a run or a checkpoint"})
    out: str = field(default=MISSING, metadata={"help": "directory to make"})
    ema: bool = field(default=True, metadata={"help": "use the averaged weights; the plugin's has the others beside them"})
    plugin: bool = field(default=False, metadata={"help": "for the plugin lerobot_policy_kinoise, which holds any policy"})
    rename: Any = field(default=None, metadata={"help": "plugin: LeRobot's names of observations, rename={proprio: state}"})
    frame: str | None = field(default=None, metadata={"help": FRAME})
    decode: DecodeChanges = field(default_factory=DecodeChanges)


def main(argv: Sequence[str]) -> int:
    """Raises UsageError where something is at `out`, KinoiseError when the policy can't be loaded, or isn't LeRobot's."""
    settings = parse("export-lerobot", Settings, argv, positional="run", about=ABOUT)
    out = Path(settings.out)
    if out.exists():
        raise UsageError(f"{out} is there already: choose another out=")
    rename = new_names(settings.rename)
    if rename and not settings.plugin:
        raise UsageError("rename= without plugin=true: LeRobot's own DiffusionPolicy has names that are its own")
    policy = load_policy(settings.run, ema=settings.ema, device="cpu", decode=settings.decode.given(), frame=settings.frame)
    with new_directory(out) as directory:
        if settings.plugin:
            run = resolve(settings.run)
            trained = read_safetensors(weights_path(run, ema=False)) if settings.ema else None
            updates = int(run.name) if run.name.isdecimal() else 0
            export_plugin(policy, directory, trained=trained, updates=updates, rename=rename)
        else:
            export_lerobot(policy, directory)
    if settings.plugin:
        print(f"{out}: for lerobot-eval --policy.path, where the plugin lerobot_policy_kinoise is installed")
    else:
        print(f"{out}: for DiffusionPolicy.from_pretrained, lerobot-eval --policy.path and lerobot-record --policy.path")
    return 0
