"""`kinoise eval RUN`: a policy's success by rollouts, as a table, result.json and videos."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from ..policies.checkpoint import load_policy, resolve
from .evaluate import evaluate
from .launch import check_launched
from .parts import evaluate_parts
from .protocol import Shard
from .settings import Settings, read_settings
from .shown import show


def main(argv: Sequence[str]) -> int:
    """0, or 1 when not a single episode could be played to its end (of a shard: 0).

    Raises:
        UsageError: a key or a value that doesn't exist.
        KinoiseError: no checkpoint, a policy that doesn't fit the environment, a simulator that can't be built.
    """
    settings = read_settings(argv)
    check_launched(settings.launcher, settings.shards)
    part = "" if settings.shard is None else str(Shard.parse(settings.shard)).replace("/", "-of-")
    out = Path(settings.out or Path(settings.run) / "eval" / part)
    console = Console()
    checkpoint = resolve(settings.run)
    result = _alone(settings, checkpoint, out) if settings.launcher is None else evaluate_parts(settings, argv, checkpoint, out)
    show(result, console)
    console.print(f"{out / 'result.json'}", highlight=False, soft_wrap=True)
    # Of a part, all episodes may well be errors: whoever merges the parts judges the whole.
    return int(settings.shard is None and result["success"]["errors"] == result["success"]["n"])


def _alone(settings: Settings, checkpoint: Path, out: Path) -> dict[str, Any]:
    """All of it in this process."""
    policy = load_policy(
        checkpoint,
        ema=settings.ema,
        device=settings.device,
        decode=settings.decode.given(),
        compile=settings.compile,
        bf16=settings.bf16,
        frame=settings.frame,
    )
    return evaluate(
        policy,
        settings.env,
        protocol=settings.protocol,
        episodes=settings.episodes,
        seed=settings.seed,
        execute=settings.execute,
        latency=settings.latency,
        ensemble=settings.ensemble,
        pin=settings.pin,
        horizon=settings.horizon,
        wait=settings.wait,
        images=settings.images,
        perturb=settings.perturb,
        checkpoint=checkpoint,
        ema=settings.ema,
        out=out,
        video=settings.video,
        data=None if settings.data is None else Path(settings.data),
        resume=settings.resume,
        shard=settings.shard,
        until=settings.until,
        workers=settings.workers,
        slots=settings.slots,
        threads=settings.threads,
        timeout=settings.timeout,
    )
