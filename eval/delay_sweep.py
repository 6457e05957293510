"""`kinoise delay-sweep RUN`: what late plans cost, for each way of joining them to the plan before."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

from omegaconf import MISSING
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Column, Table

from .. import envs
from ..config import UsageError, check_seed, parse
from ..data import open_store
from ..files import output_directory, write_file, write_json
from ..policies.base import Policy, check_execute
from ..policies.checkpoint import FRAME, identity, load_policy, resolve
from ..policies.decode import DecodeChanges
from ..provenance import origin
from .evaluate import evaluate, longest_delay
from .motion import demonstrated
from .rollout import SLOTS

ABOUT = """Plays the same episodes with plans that come 0, 1, 2, ... steps late, in simulated time, and writes OUT/delay.json
and OUT/delay.png: success with 95 % intervals, how far the action jumps where one plan follows another, and its acceleration.
naive: the late plan takes over where it is; ensemble: means over all plans at hand are carried out; warm: the plan starts from
the one before; prefix: it begins with what was carried out meanwhile; warm_prefix: both. With data= the jumps are compared with
the demonstrations' own change from step to step."""


class Method(NamedTuple):
    """Whether plans are pinned, whether they start warm, whether means over them are carried out."""

    pin: bool = False
    warm: bool = False
    ensemble: bool = False


METHODS = {
    "naive": Method(),
    "ensemble": Method(ensemble=True),
    "warm": Method(warm=True),
    "prefix": Method(pin=True),
    "warm_prefix": Method(pin=True, warm=True),
}
DELAYS = range(9)
# Okabe and Ito's colours, which all kinds of eyes tell apart.
STYLES = dict(
    zip(METHODS, (("#000000", "o"), ("#E69F00", "s"), ("#0072B2", "^"), ("#009E73", "D"), ("#D55E00", "v")), strict=True)
)


@dataclass
class Settings:
    run: str = field(default=MISSING, metadata={"help": "a run or a checkpoint"})
    env: str = field(default="metaworld/mt10", metadata={"help": "tasks to play"})
    out: str | None = field(default=None, metadata={"help": "where the results go; RUN/delay if null"})
    delays: list[int] = field(
        default_factory=list, metadata={"help": "steps that plans come late; 0 to 8, as far as the chunk allows, if empty"}
    )
    methods: list[str] = field(default_factory=list, metadata={"help": f"of {', '.join(METHODS)}; all if empty"})
    data: str | None = field(default=None, metadata={"help": "demonstrations to compare the jumps with"})
    warm: float = field(default=0.5, metadata={"help": "level of warm starts, where the checkpoint has none"})
    ensemble: float = field(default=0.01, metadata={"help": "m of the ensemble's weights exp(-m i), i = 0 the oldest plan"})
    episodes: int = field(default=10, metadata={"help": "per task"})
    seed: int = field(default=1000, metadata={"help": "what initial states and the policy's noise are drawn from"})
    execute: int | None = field(default=None, metadata={"help": "actions carried out of each plan; null: the policy's own"})
    horizon: int | None = field(default=None, metadata={"help": "most steps of an episode; null: the simulator's own"})
    workers: int | None = field(default=None, metadata={"help": "processes for the simulators; null: one for each core"})
    slots: int = field(default=SLOTS, metadata={"help": "episodes under way at once"})
    ema: bool = field(default=True, metadata={"help": "use the averaged weights"})
    frame: str | None = field(default=None, metadata={"help": FRAME})
    device: str = field(default="auto", metadata={"help": "of the policy: cpu, cuda, or auto"})
    decode: DecodeChanges = field(default_factory=DecodeChanges)

    def __post_init__(self) -> None:
        check_seed(self.seed)
        if min(self.delays, default=0) < 0 or len(set(self.delays)) < len(self.delays):
            raise UsageError(f"delays={self.delays}: expected different numbers of steps, from 0 on")
        unknown = [item for item in self.methods if item not in METHODS]
        if unknown:
            raise UsageError(f"methods={self.methods}: the methods are {', '.join(METHODS)}")
        if not 0 < self.warm < 1:
            raise UsageError(f"warm={self.warm}: expected a level between 0 and 1")
        if not 0 <= self.ensemble < math.inf:
            raise UsageError(f"ensemble={self.ensemble}: expected at least 0")


def main(argv: Sequence[str]) -> int:
    """0 when all was played.

    Raises UsageError for a delay that the policy's chunk can't bridge, KinoiseError for what `evaluate` refuses.
    """
    settings = parse("delay-sweep", Settings, argv, positional="run", about=ABOUT, choices={"env": envs.choices})
    checkpoint, console = resolve(settings.run), Console()
    policy = load_policy(
        checkpoint, ema=settings.ema, device=settings.device, decode=settings.decode.given(), frame=settings.frame
    )
    methods, (delays, left_out) = settings.methods or list(METHODS), chosen(policy, settings)
    shown = None
    if settings.data is not None:
        store = open_store(settings.data)
        policy.spec.require(store.spec.select(policy.spec.observations), ("policy", "data"))
        shown = demonstrated(policy.spec, store)
    out, rows, played = Path(settings.out or Path(settings.run) / "delay"), [], {}
    if left_out:
        console.print(left_out["reason"], highlight=False, soft_wrap=True)
    with output_directory(out):
        for name in methods:
            for delay in delays:
                console.print(f"{name}, {delay} steps late", highlight=False)
                # Without a delay there is nothing to keep: those methods are the same.
                way = METHODS[name]._replace(pin=METHODS[name].pin and delay > 0)
                if (way, delay) not in played:
                    played[way, delay] = play(policy, settings, way, delay)
                rows.append({"method": name, "delay": delay, **played[way, delay], "within": within(played[way, delay], shown)})
    write_json(
        out / "delay.json",
        {
            **origin(),
            "policy": identity(policy, checkpoint, settings.ema),
            "decode": asdict(policy.config.decode),
            "settings": {key: value for key, value in asdict(settings).items() if key != "decode"},
            "execute": _execute(policy, settings),
            "chunk": policy.config.chunk,
            "left_out": left_out,
            "demonstrations": shown,
            "rows": rows,
        },
    )
    write_file(out / "delay.png", lambda path: draw(rows, shown, path))
    console.print(table(rows))
    if shown:
        console.print(
            f"the demonstrations change by {shown['change']['p50']:.4f} of the range from step to step (median), "
            f"99th percentile {shown['change']['p99']:.4f}",
            highlight=False,
            soft_wrap=True,
        )
    console.print(f"{out / 'delay.json'} and delay.png", highlight=False, soft_wrap=True)
    return 0


def chosen(policy: Policy, settings: Settings) -> tuple[list[int], dict[str, Any] | None]:
    """The delays to play and, of the usual ones, those that the chunk is too short for, with the reason; None for none.

    Raises UsageError for an `execute` that the chunk can't hold, or a delay that it can't bridge.
    """
    execute, chunk = _execute(policy, settings), policy.config.chunk
    check_execute(execute, chunk)
    most = longest_delay(execute, chunk)
    if max(settings.delays, default=0) > most:
        raise UsageError(
            f"delays={settings.delays}: with execute={execute} of a chunk of {chunk} actions it can be {most} at most, since a "
            f"chunk has to hold the delay and, once more, the delay or execute, whichever is longer"
        )
    if settings.delays:
        return sorted(settings.delays), None
    over = [delay for delay in DELAYS if delay > most]
    reason = (
        f"left out: {', '.join(map(str, over))} steps. With execute={execute} a chunk of {chunk} actions bridges {most} at "
        f"most: it has to hold the delay and, once more, the delay or execute, whichever is longer."
    )
    return [delay for delay in DELAYS if delay <= most], {"delays": over, "reason": reason} if over else None


def play(policy: Policy, settings: Settings, method: Method, delay: int) -> dict[str, Any]:
    """One method at one delay: success; joins and acceleration, see `motion`; evaluations a plan."""
    own = policy.config.decode
    level = (own.warm if own.warm < 1 else settings.warm) if method.warm else 1.0
    policy.config.decode = replace(own, warm=level)
    try:
        result = evaluate(
            policy,
            settings.env,
            episodes=settings.episodes,
            seed=settings.seed,
            execute=settings.execute,
            latency=delay / policy.spec.rate,
            ensemble=settings.ensemble if method.ensemble else None,
            pin=method.pin,
            horizon=settings.horizon,
            workers=settings.workers,
            slots=settings.slots,
        )
    finally:
        policy.config.decode = own
    moved, nfe = result["motion"], result["decode_cost"]["nfe_per_plan"]
    return {"warm": level, "success": result["success"], **moved, "nfe_per_plan": nfe}


def within(row: dict[str, Any], shown: dict[str, Any] | None) -> bool | None:
    """Whether 99 of 100 jumps are no larger than 99 of 100 of the demonstrations' changes; None where one is missing."""
    jump, change = row["joins"]["p99"], shown and shown["change"]["p99"]
    return None if jump is None or change is None else jump <= change


def table(rows: Sequence[dict[str, Any]]) -> Table:
    about = (
        "jump: where plans join, median and 99th percentile; fits: the latter is at most the demonstrations'; "
        "acc.: acceleration, RMS. Shares of the action's range, without grippers. NFE: network evaluations a plan"
    )
    names = ("late", "success (95 %)", "jump", "p99", "fits", "acc.", "NFE")
    right = (Column(name, justify="right", no_wrap=True) for name in names)
    found = Table("method", *right, box=SIMPLE_HEAD, caption=about, caption_justify="left")
    for row in rows:
        success, joins = row["success"], row["joins"]
        shares = ["" if item is None else f"{item:.3f}" for item in (joins["p50"], joins["p99"], row["acceleration"]["rms"])]
        fits = {None: "", True: "yes", False: "no"}[row["within"]]
        span = f"{success['rate']:.2f} ({success['low']:.2f}, {success['high']:.2f})"
        found.add_row(row["method"], str(row["delay"]), span, *shares[:2], fits, shares[2], f"{row['nfe_per_plan'] or 0:.2f}")
    return found


def draw(rows: Sequence[dict[str, Any]], shown: dict[str, Any] | None, path: Path) -> None:
    """Success, the joins' 99th percentile and the acceleration's root mean square against the delay, a line for each method."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(13, 4.2), layout="constrained")
    success, jumps, bends = figure.subplots(1, 3)
    names = list(dict.fromkeys(row["method"] for row in rows))
    for place, name in enumerate(names):
        own, (colour, marker) = [row for row in rows if row["method"] == name], STYLES[name]
        # Side by side, so that equal rates and their intervals can be told apart.
        aside = 0.1 * (place - (len(names) - 1) / 2)
        look: dict[str, Any] = {"color": colour, "marker": marker, "markersize": 5, "linewidth": 1.4, "label": name}
        delays, rates = [row["delay"] + aside for row in own], [row["success"]["rate"] for row in own]
        errors = [[abs(row["success"][end] - row["success"]["rate"]) for row in own] for end in ("low", "high")]
        success.errorbar(delays, rates, errors, capsize=2, elinewidth=0.8, **look)
        for panel, (key, part) in ((jumps, ("joins", "p99")), (bends, ("acceleration", "rms"))):
            known = [(row["delay"], row[key][part]) for row in own if row[key][part] is not None]
            panel.plot([item[0] for item in known], [item[1] for item in known], **look)
    if shown and shown["change"]["p99"] is not None:
        jumps.axhline(shown["change"]["p99"], color="0.4", linestyle="--", linewidth=1.2, label="demonstrations")
        jumps.legend(handles=[jumps.lines[-1]], frameon=False, fontsize=9)
    titles = ("Success, 95 % interval", "Jump where plans join, 99th percentile", "Acceleration of the action, RMS")
    for panel, title, unit in zip(
        (success, jumps, bends), titles, ("", "share of the range", "share of the range / step²"), strict=True
    ):
        panel.set_title(title, fontsize=11)
        panel.set(xlabel="steps late", ylabel=unit)
        top = 1.12 * panel.dataLim.ymax
        panel.set_ylim(0, 1.03 if panel is success else top if 0 < top < math.inf else None)
        panel.xaxis.set_major_locator(MaxNLocator(integer=True))
        panel.grid(alpha=0.25)
    lines, labels = bends.get_legend_handles_labels()
    figure.legend(lines, labels, loc="outside lower center", ncols=len(names), frameon=False)
    figure.savefig(path, format="png", dpi=150)


def _execute(policy: Policy, settings: Settings) -> int:
    return policy.config.execute if settings.execute is None else settings.execute
