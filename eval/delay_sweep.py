"""`kinoise delay-sweep RUN`: what late plans cost, for each way of joining them to the plan before."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from omegaconf import MISSING
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Column, Table

from .. import envs
from ..config import UsageError, check_seed, parse
from ..files import output_directory, write_file, write_json
from ..policies.base import Policy
from ..policies.checkpoint import identity, load_policy, resolve
from ..policies.decode import DecodeChanges
from ..provenance import origin
from .evaluate import evaluate
from .rollout import SLOTS

ABOUT = """Plays the same episodes with plans that come 0, 1, 2, ... steps late, in simulated time, and writes OUT/delay.json
and OUT/delay.png: success with 95 % intervals, and how far the action jumps where one plan follows another. naive: the late
plan takes over where it is; prefix: it begins with what was carried out meanwhile; warm: it starts from the plan before;
warm_prefix: both."""

METHODS = {
    "naive": (False, False),
    "prefix": (True, False),
    "warm": (False, True),
    "warm_prefix": (True, True),
}
"""Whether plans are pinned, and whether they start warm."""


@dataclass
class Settings:
    run: str = field(default=MISSING, metadata={"help": "a run or a checkpoint"})
    env: str = field(default="metaworld/mt10", metadata={"help": "tasks to play"})
    out: str | None = field(default=None, metadata={"help": "where the results go; RUN/delay if null"})
    delays: list[int] = field(default_factory=lambda: [0, 1, 2, 4], metadata={"help": "steps that plans come late"})
    methods: list[str] = field(
        default_factory=list, metadata={"help": f"of {', '.join(METHODS)}; those that the policy can if empty"}
    )
    warm: float = field(default=0.5, metadata={"help": "level of warm starts, where the checkpoint has none"})
    episodes: int = field(default=10, metadata={"help": "per task"})
    seed: int = field(default=1000, metadata={"help": "what initial states and the policy's noise are drawn from"})
    execute: int | None = field(default=None, metadata={"help": "actions carried out of each plan; null: the policy's own"})
    horizon: int | None = field(default=None, metadata={"help": "most steps of an episode; null: the simulator's own"})
    workers: int | None = field(default=None, metadata={"help": "processes for the simulators; null: one for each core"})
    slots: int = field(default=SLOTS, metadata={"help": "episodes under way at once"})
    ema: bool = field(default=True, metadata={"help": "use the averaged weights"})
    device: str = field(default="auto", metadata={"help": "of the policy: cpu, cuda, or auto"})
    decode: DecodeChanges = field(default_factory=DecodeChanges)

    def __post_init__(self) -> None:
        check_seed(self.seed)
        if not self.delays or min(self.delays) < 0 or len(set(self.delays)) < len(self.delays):
            raise UsageError(f"delays={self.delays}: expected different numbers of steps, from 0 on")
        unknown = [item for item in self.methods if item not in METHODS]
        if unknown:
            raise UsageError(f"methods={self.methods}: the methods are {', '.join(METHODS)}")
        if not 0 < self.warm < 1:
            raise UsageError(f"warm={self.warm}: expected a level between 0 and 1")


def main(argv: Sequence[str]) -> int:
    """0 when all was played.

    Raises UsageError for a delay that the policy's chunk can't bridge, KinoiseError for what `evaluate` refuses.
    """
    settings = parse("delay-sweep", Settings, argv, positional="run", about=ABOUT, choices={"env": envs.choices})
    checkpoint, console = resolve(settings.run), Console()
    policy = load_policy(checkpoint, ema=settings.ema, device=settings.device, decode=settings.decode.given())
    methods = settings.methods or [name for name, (pin, _) in METHODS.items() if policy.pins or not pin]
    out = Path(settings.out or Path(settings.run) / "delay")
    rows = []
    with output_directory(out):
        for name in methods:
            for delay in sorted(settings.delays):
                console.print(f"{name}, {delay} steps late", highlight=False)
                rows.append(play(policy, settings, name, delay))
    write_json(
        out / "delay.json",
        {
            **origin(),
            "policy": identity(policy, checkpoint, settings.ema),
            "decode": asdict(policy.config.decode),
            "settings": {key: value for key, value in asdict(settings).items() if key != "decode"},
            "rows": rows,
        },
    )
    write_file(out / "delay.png", lambda path: draw(rows, path))
    console.print(table(rows))
    console.print(f"{out / 'delay.json'} and delay.png", highlight=False, soft_wrap=True)
    return 0


def play(policy: Policy, settings: Settings, method: str, delay: int) -> dict[str, Any]:
    """One method at one delay: success, jumps where plans join (shares of the action's range), evaluations a plan."""
    (pin, warm), own = METHODS[method], policy.config.decode
    level = (own.warm if own.warm < 1 else settings.warm) if warm else 1.0
    policy.config.decode = replace(own, warm=level)
    try:
        result = evaluate(
            policy,
            settings.env,
            episodes=settings.episodes,
            seed=settings.seed,
            execute=settings.execute,
            latency=delay / policy.spec.rate,
            pin=pin and delay > 0,
            horizon=settings.horizon,
            workers=settings.workers,
            slots=settings.slots,
        )
    finally:
        policy.config.decode = own
    return {
        "method": method,
        "delay": delay,
        "warm": level,
        "success": result["success"],
        "joins": result.get("joins"),
        "nfe_per_plan": result["decode_cost"]["nfe_per_plan"],
    }


def table(rows: Sequence[dict[str, Any]]) -> Table:
    columns = ("method", "steps late", "success", "95 % interval", "jump, median", "99th percentile", "evaluations")
    found = Table(columns[0], *(Column(name, justify="right") for name in columns[1:]), box=SIMPLE_HEAD)
    for row in rows:
        success, joins = row["success"], row["joins"] or {"p50": None, "p99": None}
        span = f"{success['low']:.3f} to {success['high']:.3f}"
        jumps = ["" if joins[key] is None else f"{joins[key]:.3f}" for key in ("p50", "p99")]
        found.add_row(
            row["method"], str(row["delay"]), f"{success['rate']:.3f}", span, *jumps, f"{row['nfe_per_plan'] or 0:.2f}"
        )
    return found


def draw(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Success and the joins' 99th percentile against the delay, a line for each method."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    for name in dict.fromkeys(row["method"] for row in rows):
        own = [row for row in rows if row["method"] == name]
        delays, rates = [row["delay"] for row in own], [row["success"]["rate"] for row in own]
        errors = [[abs(row["success"][end] - row["success"]["rate"]) for row in own] for end in ("low", "high")]
        left.errorbar(delays, rates, errors, label=name, marker="o", capsize=3)
        late = [(row["delay"], row["joins"]["p99"]) for row in own if row["joins"]]
        right.plot([item[0] for item in late], [item[1] for item in late], marker="o", label=name)
    left.set(xlabel="steps late", ylabel="success (95 % interval)", ylim=(0, 1.02))
    right.set(xlabel="steps late", ylabel="jump where plans join, 99th percentile\n(share of the action's range)")
    left.legend()
    figure.savefig(path, format="png", dpi=150)
