"""`kinoise latency RUN`: how fast a policy plans on this machine, and how often a robot can have a new plan."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from omegaconf import MISSING
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import Progress
from rich.table import Column, Table

from ..config import UsageError, check_seed, parse
from ..files import output_directory, write_json
from ..policies.base import Policy
from ..policies.checkpoint import FRAME, identity, load_policy, resolve
from ..policies.decode import DecodeChanges, DecodeConfig
from ..policies.example import example
from ..provenance import origin
from .cadence import Cadence
from .floor import floor
from .latency import percentiles
from .stages import STAGES, Clock, Sample, replans, samples

ABOUT = """Plans on an observation from the middle of the training data, from nothing and, where a replan differs, from the plan
before, by turns, and shows how long every stage takes: encoding the observation, all network evaluations, and the way back to
physical units (decode; all that is left). Below stand the matrix products of a plan alone, measured right before. From the
95th percentile follows how often the control loop can have a new plan, and how late. Nothing else should run on the machine
meanwhile."""

SHOWN = ("p50", "p95", "p99")
BARS = 20
"""How often the progress is drawn, between two plans."""


@dataclass
class Settings:
    run: str = field(default=MISSING, metadata={"help": "a run or a checkpoint"})
    rate: float | None = field(default=None, metadata={"help": "of the control loop, Hz; null: that of the training data"})
    batch: int = field(default=1, metadata={"help": "observations that are planned for at once"})
    plans: int = field(default=200, metadata={"help": "of each kind to measure"})
    warmup: int = field(default=20, metadata={"help": "of each kind to make before"})
    seed: int = field(default=0, metadata={"help": "of the plans' noise"})
    threads: int | None = field(default=None, metadata={"help": "torch's; null: all cores but one, as in kinoise control"})
    device: str = field(default="auto", metadata={"help": "of the policy: cpu, cuda, or auto: cuda where there is one"})
    ema: bool = field(default=True, metadata={"help": "use the averaged weights"})
    frame: str | None = field(default=None, metadata={"help": FRAME})
    compile: bool = field(default=False, metadata={"help": "compile plans: the first of a kind takes seconds, the others less"})
    bf16: bool = field(default=False, metadata={"help": "multiply in bfloat16, which rounds; pays for large networks"})
    out: str | None = field(default=None, metadata={"help": "JSON file for the figures; none is written if null"})
    decode: DecodeChanges = field(default_factory=DecodeChanges)

    def __post_init__(self) -> None:
        check_seed(self.seed)
        for name in ("batch", "plans", "warmup", "threads"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UsageError(f"{name}={value}: expected at least 1")
        if self.rate is not None and not 0 < self.rate < math.inf:
            raise UsageError(f"rate={self.rate}: expected Hz, more than 0")
        if self.out is not None and (not self.out or Path(self.out).is_dir()):
            raise UsageError(f"out={self.out}: expected a file that the figures go to, as in out=latency.json")


def main(argv: Sequence[str]) -> int:
    """Raises UsageError for wrong settings, KinoiseError without a checkpoint or for a policy that can't plan."""
    settings, console = parse("latency", Settings, argv, positional="run", about=ABOUT), Console()
    checkpoint = resolve(settings.run)
    policy = load_policy(
        checkpoint, ema=settings.ema, device=settings.device, decode=settings.decode.given(), frame=settings.frame
    )
    out = None if settings.out is None else Path(settings.out)
    with nullcontext() if out is None else output_directory(out.parent), _threads(settings.threads):
        result = {**origin(), "policy": identity(policy, checkpoint, settings.ema), **measure(policy, settings)}
        if out is not None:
            write_json(out, result)
    show(result, console)
    if out is not None:
        console.print(f"{out}", highlight=False, soft_wrap=True)
    return 0


def measure(policy: Policy, settings: Settings, clock: Clock = time.perf_counter) -> dict[str, Any]:
    """What the JSON file holds beside its origin and the policy's identity; milliseconds, Hz and, for `latency`, seconds.

    Args:
        policy: neither compiled nor in bfloat16; it is afterwards, where the settings say so.

    Raises:
        UsageError: compile=true for a policy that can't be compiled.
        KinoiseError: a policy that can't plan.
    """
    config, obs = policy.config, example(policy, settings.batch)
    rate = settings.rate or policy.spec.rate
    told = {"plans": settings.plans, "warmup": settings.warmup, "rate": rate, "seed": settings.seed, "clock": clock}
    least = floor(policy) if settings.batch == 1 else None  # read off a plan as it runs, which a compiled one hides
    if settings.compile:
        if not policy.compilable:
            raise UsageError(f"compile=true: nothing of this policy '{config.name}' can be compiled. Leave it false")
        policy.compiled()
    if settings.bf16:
        policy.reduced()
    found = list(_shown(samples(policy, obs, **told), settings.plans * (2 if replans(policy) else 1)))
    kinds = {"cold": [item for item in found if not item.replan], "replan": [item for item in found if item.replan]}
    plans = {kind: _summary(items) for kind, items in kinds.items() if items}
    last = "replan" if kinds["replan"] else "cold"
    return {
        "decode": {**asdict(config.decode), "execute": config.execute, "chunk": config.chunk},
        "device": _device(policy),
        "threads": torch.get_num_threads(),
        "compile": settings.compile,
        "bf16": settings.bf16,
        "batch": settings.batch,
        "seed": settings.seed,
        "warmup": settings.warmup,
        "plans": plans,
        "computed": computed(config.decode, policy.evaluations),
        "floor": None if least is None else {"ms": least * 1e3, "ratio": plans["cold"]["ms"]["total"]["p50"] / (least * 1e3)},
        "cadence": {"of": last, **Cadence(plans[last]["ms"]["total"]["p95"] / 1e3, rate, config.chunk).to_json()},
        "latency": {"samples_s": [item.seconds["total"] for item in kinds[last]]},
    }


def computed(decode: DecodeConfig, evaluations: int) -> float:
    """The share of the residual branches' outputs that a full plan computes; its cache has the others.

    Args:
        evaluations: that each belief's cache sees in a full plan.
    """
    if decode.cache == "every":
        return -(-evaluations // decode.cache_every) / evaluations
    if decode.cache == "fitted":
        refresh = decode.schedule.refresh.values()
        return sum(len({0, *when}) for when in refresh) / (evaluations * len(refresh))
    return 1.0


def show(result: dict[str, Any], console: Console) -> None:
    """The stages, what they are made of, and the sentence that a user needs."""
    policy, plans = result["policy"], result["plans"]
    batch = "" if result["batch"] == 1 else f", {result['batch']} observations at once"
    threads = f", {result['threads']} thread{'s' * (result['threads'] > 1)}"
    compiled = ", compiled" * result["compile"] + ", bfloat16" * result["bf16"]
    title = f"{policy['name']} on {result['device']}{threads}{compiled}{batch}"
    columns = [Column(f"{kind}\n{name}", justify="right", no_wrap=True) for kind in plans for name in SHOWN]
    first = Column("\nms", no_wrap=True)
    table = Table(first, *columns, box=SIMPLE_HEAD)
    labels = {"denoise": "evaluations", "evaluation": "one of them", "transfer": "copies in these", "total": "plan"}
    for stage in plans["cold"]["ms"]:
        if stage == "total":
            table.add_section()
        row = [f"{item['ms'][stage][name]:.2f}" for item in plans.values() for name in SHOWN]
        table.add_row(labels.get(stage, stage), *row)
    console.print(title, highlight=False, markup=False)
    console.print(table)
    lines = [f"{policy['parameters'] / 1e6:.2f} M parameters; {plans['cold']['evaluations']:g} evaluations a plan"]
    if replan := plans.get("replan"):
        kept = f", of which it keeps {replan['prefix']} action{'s' * (replan['prefix'] > 1)}" if replan["prefix"] else ""
        lines[0] += f", {replan['evaluations']:g} a replan from the one before{kept}"
    if result["computed"] < 1:
        lines.append(f"cache: {result['computed']:.0%} of the branches' outputs are computed in a full plan")
    if least := result["floor"]:
        lines.append(f"matrix products alone: {least['ms']:.2f} ms; a plan takes {least['ratio']:.2f} times as long")
    console.print("\n".join(lines), highlight=False)
    console.print(result["cadence"]["sentence"], highlight=False, markup=False, style="bold")


def _summary(items: Sequence[Sample]) -> dict[str, Any]:
    """Percentiles of plans of one kind, with the stages in the order in which they are shown."""
    order = [*STAGES[:2], "evaluation", *STAGES[2:], "transfer", "total"]
    return {
        "count": len(items),
        "evaluations": sum(item.nfe for item in items) / len(items),
        "prefix": items[0].prefix,
        "ms": {name: percentiles([item.seconds[name] for item in items], 1e3) for name in order if name in items[0].seconds},
    }


def _shown(found: Iterator[Sample], total: int) -> Iterator[Sample]:
    """Draws a bar while plans are made, a few times and from this thread: a thread of its own would take its time from them."""
    with Progress(auto_refresh=False, transient=True, disable=not Console().is_terminal) as bar:
        task = bar.add_task("plans", total=total)
        for number, item in enumerate(found, 1):
            bar.update(task, completed=number, refresh=number % -(-total // BARS) == 0)
            yield item


@contextmanager
def _threads(wanted: int | None) -> Iterator[None]:
    """Gives torch so many threads for the block; by default what the loop leaves."""
    before = torch.get_num_threads()
    torch.set_num_threads(wanted or max(1, len(os.sched_getaffinity(0)) - 1))
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _device(policy: Policy) -> str:
    """The processor's name where the policy is on it, the card's otherwise."""
    if policy.device.type == "cuda":
        return f"{torch.cuda.get_device_name(policy.device)} ({policy.device})"
    return f"{origin()['machine']['cpu']} (cpu)"
