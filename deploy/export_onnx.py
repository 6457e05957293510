"""`kinoise export-onnx RUN out=DIR`: a policy as ONNX graphs, for machines without torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from omegaconf import MISSING

from ..config import parse
from ..policies.base import Policy
from ..policies.checkpoint import FRAME, load_policy, resolve, weights_path
from ..policies.decode import DecodeChanges
from ..policies.onnx import export_policy, load_onnx
from ..policies.onnx.export import MANIFEST, check, needed, vacant
from ..spec import Observation

ABOUT = """Writes DIR/plan.onnx, from an observation and noise to a plan in physical units; DIR/replan.onnx, from the plan
before, where decode.warm is below 1; DIR/context.onnx and DIR/evaluation.onnx, the encoder and the bare network; and
DIR/export.json, which says what goes in and what comes out. Decoding is part of the graphs: steps, sampler and guidance are
those at export. It takes seconds for every network evaluation of a plan."""


@dataclass
class Settings:
    run: str = field(default=MISSING, metadata={"help": "a run or a checkpoint"})
    out: str = field(default=MISSING, metadata={"help": "directory to make"})
    texts: list[str] | None = field(
        default=None, metadata={"help": "instructions that the graphs know; those of the training data if null"}
    )
    ema: bool = field(default=True, metadata={"help": "use the averaged weights"})
    frame: str | None = field(default=None, metadata={"help": FRAME})
    decode: DecodeChanges = field(default_factory=DecodeChanges)


def main(argv: Sequence[str]) -> int:
    """Raises UsageError where something is at `out`, KinoiseError when the policy can't be loaded or exported."""
    settings = parse("export-onnx", Settings, argv, positional="run", about=ABOUT)
    out = Path(settings.out)
    vacant(out)
    needed("onnx", "onnxscript", "onnxruntime")
    checkpoint = resolve(settings.run)
    policy = load_policy(checkpoint, ema=settings.ema, device="cpu", decode=settings.decode.given(), frame=settings.frame)
    check(policy)
    print("exporting ...", flush=True)
    manifest = export_policy(
        policy, out, texts=settings.texts or (), checkpoint=checkpoint, weights=weights_path(checkpoint, settings.ema)
    )
    for graph in manifest["graphs"].values():
        path = out / graph["file"]
        print(f"{path} {path.stat().st_size / 2**20:.1f} MiB, {graph['evaluations']} network evaluations")
    print(f"{out / MANIFEST} says what goes in and what comes out")
    exported = load_onnx(out)
    print(f"largest difference from torch's plan, in half ranges of the actions: {difference(policy, exported):.1e}")
    return 0


def difference(policy: Policy, exported: Policy) -> float:
    """The largest between their plans on a mean observation, from the same noise; of actions scaled to [-1, 1]."""
    values = {}
    for key, feature in policy.spec.observations.items():
        mean = torch.tensor(policy.stats[key].mean).expand(1, policy.config.history, *feature.shape)
        values[key] = mean.to(torch.uint8 if feature.kind == "image" else torch.float32).contiguous()
    text = torch.zeros(1, dtype=torch.int64) if policy.spec.language else None
    obs = Observation(values, exported.texts[:1] if policy.spec.language else (), text)
    plans = [item.plan(obs, torch.Generator().manual_seed(0)).actions for item in (policy, exported)]
    span = torch.tensor(policy.stats["action"].max) - torch.tensor(policy.stats["action"].min)
    return float(((plans[0] - plans[1]).abs() / (span / 2).clamp(min=1e-6)).max())
