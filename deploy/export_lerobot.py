"""`kinoise export-lerobot RUN out=DIR`: a U-Net policy as a checkpoint of LeRobot's own DiffusionPolicy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from omegaconf import MISSING

from ..config import UsageError, parse
from ..files import new_directory
from ..policies.checkpoint import FRAME, load_policy
from ..policies.decode import DecodeChanges
from ..policies.imports import export_lerobot

ABOUT = """Writes what LeRobot calls pretrained_model: config.json, model.safetensors, two processors with statistics, as
LeRobot 0.4 reads them. The policy has to be what LeRobot's DiffusionPolicy can be: one that kinoise import-lerobot made, or
one of network.kind=unet on process.kind=vp whose chunk begins at its first observation. Others are for the plugin
lerobot_policy_kinoise. Warm starts and caches are kinoise's, and stay behind."""


@dataclass
class Settings:
    run: str = field(default=MISSING, metadata={"help": "a run or a checkpoint"})
    out: str = field(default=MISSING, metadata={"help": "directory to make"})
    ema: bool = field(default=True, metadata={"help": "use the averaged weights"})
    frame: str | None = field(default=None, metadata={"help": FRAME})
    decode: DecodeChanges = field(default_factory=DecodeChanges)


def main(argv: Sequence[str]) -> int:
    """Raises UsageError where something is at `out`, KinoiseError when the policy can't be loaded, or isn't LeRobot's."""
    settings = parse("export-lerobot", Settings, argv, positional="run", about=ABOUT)
    out = Path(settings.out)
    if out.exists():
        raise UsageError(f"{out} is there already: choose another out=")
    policy = load_policy(settings.run, ema=settings.ema, device="cpu", decode=settings.decode.given(), frame=settings.frame)
    with new_directory(out) as directory:
        export_lerobot(policy, directory)
    print(f"{out}: for DiffusionPolicy.from_pretrained, lerobot-eval --policy.path and lerobot-record --policy.path")
    return 0
