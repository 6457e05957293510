"""`kinoise calibrate RUN data=DATA`: from which level, in how many steps, a replan may start from the plan before."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Int64
from omegaconf import MISSING
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import track
from rich.table import Column, Table

from ..config import UsageError, check_seed, parse
from ..data import FORMATS, EpisodeStore, open_store
from ..data.windows import Windows
from ..files import read_json, write_json
from ..policies.base import Policy, check_execute
from ..policies.checkpoint import FRAME, load_policy, resolve
from ..policies.decode import DecodeConfig
from ..spec import KinoiseError, Observation, Plan

ABOUT = """Replans demonstrations that the policy was not trained on, in full and from the plan before, several times in a row,
from every level and in every number of steps asked for. The cheapest whose plans stay near the full ones goes into the
checkpoint's own settings: decode.warm and decode.warm_steps; of levels that are about as near, the lowest, which keeps most of
the plan in force. Near means an energy distance of at most `within`: how far replans are from full plans, less half of how far
each are among themselves with other noise. A replan that is merely the mean of the full plans isn't near. Its unit is the root
mean square over the actions that are carried out, with each dimension's range from -1 to 1. Success can't be seen from it:
play some episodes with what was chosen."""

ALIKE = 0.01  # between distances that are about the same: what other noise makes of one, for 128 places


@dataclass
class Settings:
    run: str = field(default=MISSING, metadata={"help": "a run or a checkpoint"})
    data: str = field(default=MISSING, metadata={"help": "demonstrations, best ones that training has not seen"})
    within: float = field(default=0.06, metadata={"help": "the largest energy distance from full plans"})
    levels: list[float] = field(default_factory=lambda: [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8], metadata={"help": "to try"})
    steps: list[int] = field(default_factory=lambda: [1, 2, 3], metadata={"help": "grid intervals to try"})
    execute: int | None = field(default=None, metadata={"help": "actions between plans; null: the policy's own"})
    replans: int = field(default=8, metadata={"help": "warm starts in a row, of which the last is compared: errors add up"})
    windows: int = field(default=128, metadata={"help": "places in the demonstrations to plan at"})
    batch_size: int = field(default=64, metadata={"help": "of them planned at once"})
    seed: int = field(default=0, metadata={"help": "of the places and of the noise"})
    ema: bool = field(default=True, metadata={"help": "use the averaged weights"})
    frame: str | None = field(default=None, metadata={"help": FRAME})
    device: str = field(default="auto", metadata={"help": "of the policy: cpu, cuda, or auto"})
    write: bool = field(default=True, metadata={"help": "put the choice into the checkpoint's config.json"})

    def __post_init__(self) -> None:
        check_seed(self.seed)
        if not self.levels or not all(0 < level < 1 for level in self.levels):
            raise UsageError(f"levels={self.levels}: expected numbers between 0 and 1")
        if not self.steps or min(self.steps) < 1 or min(self.windows, self.batch_size, self.replans) < 1:
            raise UsageError(
                f"steps={self.steps}, windows={self.windows}, batch_size={self.batch_size}, replans={self.replans}: "
                "expected at least 1"
            )
        if not self.within > 0:
            raise UsageError(f"within={self.within}: expected more than 0")


class Trial(NamedTuple):
    """A way to replan: its level and steps, network evaluations, and the energy distance of its plans from full ones.

    The distance is infinite where the process has no such steps: EDM's grid ends at its least noise.
    """

    level: float
    steps: int
    nfe: float
    distance: float


def main(argv: Sequence[str]) -> int:
    """0, or 1 when no way to replan stays within the distance; then nothing is written.

    Raises UsageError for wrong settings, KinoiseError for data that don't fit the policy.
    """
    settings = parse(
        "calibrate",
        Settings,
        argv,
        positional="run",
        about=ABOUT,
        choices={"data": lambda: f"formats: {', '.join(FORMATS)}"},
    )
    checkpoint, console = resolve(settings.run), Console()
    policy = load_policy(checkpoint, ema=settings.ema, device=settings.device, frame=settings.frame)
    full, apart, trials = calibrate(policy, open_store(settings.data), settings)
    best = choice(trials, settings.within)
    console.print(table(trials, best, settings.within))
    console.print(
        f"a full plan takes {full:.1f} evaluations; two of them, with other noise, are {apart:.3f} apart", highlight=False
    )
    if best is None:
        console.print(
            f"none stays within {settings.within:g}: the checkpoint is left as it is. Try more steps, or higher levels."
        )
        return 1
    if settings.write:
        path = checkpoint / "config.json"
        config = read_json(path)
        config["policy"]["decode"] |= {"warm": best.level, "warm_steps": best.steps}
        write_json(path, config)
        console.print(f"{path} now has decode.warm={best.level} decode.warm_steps={best.steps}", soft_wrap=True)
    return 0


def choice(trials: Sequence[Trial], reach: float) -> Trial | None:
    """The fewest steps within the distance; of these the lowest level about as near as the nearest; None if there is none."""
    near = [item for item in trials if item.distance <= reach]
    cheap = [item for item in near if item.steps == min(other.steps for other in near)]
    least = min((item.distance for item in cheap), default=0.0)
    return min((item for item in cheap if item.distance <= least + ALIKE), key=lambda item: item.level, default=None)


def calibrate(policy: Policy, store: EpisodeStore, settings: Settings) -> tuple[float, float, list[Trial]]:
    """Evaluations of a full plan, the distance between two of them with other noise, and all trials.

    Each is replanned twice, with other noise: for X, X' and the full Y, Y' half of the energy distance 2 E|X - Y| - E|X - X'| -
    E|Y - Y'| (Székely and Rizzo 2013) is 0 only where both are drawn from the same distribution.

    Raises KinoiseError when the data don't fit the policy, or no episode is long enough to replan in.
    """
    execute = policy.config.execute if settings.execute is None else settings.execute
    check_execute(execute, policy.config.chunk)
    policy.spec.require(store.spec.shown_to(policy.spec), ("policy", "data"))
    scale = torch.tensor(
        [
            2 / (high - low) if high > low else 0.0
            for low, high in zip(policy.stats["action"].min, policy.stats["action"].max, strict=True)
        ]
    )
    cold, places = policy.config.decode, _places(store, execute, settings)
    windows = Windows(store, policy.config.chunk, policy.config.history, keys=list(policy.spec.observations))
    parts = np.array_split(places, -(-len(places) // settings.batch_size))
    ways = {(level, steps): (0.0, 0.0) for steps in settings.steps for level in settings.levels}
    spent, apart = 0.0, 0.0

    def plan(obs: Observation, decode: DecodeConfig, turn: int, **told: Any) -> Plan:
        policy.config.decode = decode
        return policy.plan(obs, torch.Generator().manual_seed(settings.seed + turn), **told)

    def gap(a: Plan, b: Plan) -> float:
        return ((a.actions - b.actions)[:, :execute] * scale).square().mean((1, 2)).sqrt().sum().item()

    try:
        for number, chosen in enumerate(parts, 1):
            before, *on = (windows.batch(chosen + count * execute).observation for count in range(settings.replans + 1))
            plain = replace(cold, warm=1.0)
            first = [plan(before, plain, turn) for turn in (0, 1)]
            full = [plan(on[-1], plain, turn) for turn in (2, 3)]
            spread = gap(*full)
            spent, apart = spent + _cost(full[0]), apart + spread
            said = f"ways to replan, part {number} of {len(parts)}"
            for level, steps in track(ways, said, console=Console(stderr=True)):
                cost, distance = ways[level, steps]
                if math.isinf(distance):
                    continue
                warm = replace(cold, warm=level, warm_steps=steps, gate=None)
                found = first
                try:
                    for turn, now in enumerate(on, 2):
                        found = [
                            plan(now, warm, 2 * turn + twin, previous=one, elapsed=execute) for twin, one in enumerate(found)
                        ]
                except KinoiseError:  # the policy has just planned from here in full: it's the grid that can't be
                    ways[level, steps] = 0.0, math.inf
                else:
                    across = sum(gap(one, other) for one in found for other in full) / 4
                    ways[level, steps] = cost + _cost(found[0]), distance + across - (gap(*found) + spread) / 2
    finally:
        policy.config.decode = cold
    count = len(places)
    trials = [Trial(*way, cost / count, distance / count) for way, (cost, distance) in ways.items()]
    return spent / count, apart / count, trials


def table(trials: Sequence[Trial], best: Trial | None, reach: float) -> Table:
    rows = Table(
        Column("level", justify="right"),
        Column("steps", justify="right"),
        Column("evaluations", justify="right"),
        Column("distance", justify="right"),
        "",
        box=SIMPLE_HEAD,
    )
    for item in trials:
        if math.isinf(item.distance):
            rows.add_row(f"{item.level:g}", str(item.steps), "", "", "no such grid")
            continue
        note = "chosen" if item is best else "" if item.distance <= reach else "too far"
        rows.add_row(f"{item.level:g}", str(item.steps), f"{item.nfe:.2f}", f"{item.distance:.4f}", note)
    return rows


def _cost(plan: Plan) -> float:
    """Evaluations, summed over the rows."""
    return float(sum(plan.nfe_rows) if plan.nfe_rows else plan.nfe * len(plan.actions))


def _places(store: EpisodeStore, execute: int, settings: Settings) -> Int64[np.ndarray, "places"]:
    """Steps that have another one in the same episode, as many replans later as are asked for."""
    ahead = execute * settings.replans
    steps = np.arange(int(store.ends[-1]) - ahead)
    first, second = (np.searchsorted(store.ends, steps + later, side="right") for later in (0, ahead))
    fit = steps[first == second]
    if not len(fit):
        longest = int(np.diff(store.ends, prepend=0).max())
        fitting = (longest - 1) // execute
        remedy = f"replans={fitting}" if fitting else "a smaller execute="
        raise KinoiseError(
            f"{store.path}: expected an episode of more than {ahead} steps, execute={execute} times "
            f"replans={settings.replans}; the longest has {longest}. Take {remedy}."
        )
    return np.sort(np.random.default_rng(settings.seed).choice(fit, min(settings.windows, len(fit)), replace=False))
