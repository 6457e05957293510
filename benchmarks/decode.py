"""How fast a plan is at equal success: `python -m benchmarks.decode RUN [RUN ...] data=DATA env=metaworld/mt10`.

From each checkpoint the same episodes are played, and single plans timed, by

- `full`: 100 steps of DDPM (masked tokens: 12 rounds); `short`: 10 of DDIM (4 rounds); `short_N`: N;
- `cached`: `full` with a cache fitted to it here, by adaptive scheduling and bubbling union, at a budget of 10 evaluations (4);
  `cached_N`: of N; `smooth`: by SmoothCache; `uniform`: all branches in every tenth evaluation (third); `..._order1`: what is
  kept is extrapolated (TaylorSeer); `ddim_...`: the same on 100 steps of DDIM, which are `ddim_full`;
- `same_compute`: without a cache, as many DDIM steps (rounds) as `cached` computes branches; `same_time`: as many as take as
  long as `cached`, by times taken beforehand;
- `warm`: one step from the plan before, `execute` actions later;
- `compiled`: `short`, and `everything`: `warm`, compiled, where the policy can be. Their plans are those of `short` and `warm`
  but for `rounding`, measured as a share of the actions' range; so are the episodes, which aren't played again.

Success is paired with `full`: differences with Newcombe's interval, McNemar's exact test, and Holm's correction. Every round of
timing makes one plan in each way, for one observation of the demonstrations; `faster` is the median ratio within rounds, with
quartiles. `computed` is the share of the residual branches' outputs that a plan computes.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from kinoise.config import UsageError, parse, run
from omegaconf import MISSING

from .played import Partial, Row, correct, figures, play
from .record import milliseconds, ratio, write
from .speed import Planner, alternate, as_fast, observations
from .ways import (
    CACHED,
    COMPILED,
    CONTINUOUS,
    EVERYTHING,
    FULL,
    PLAIN,
    SAME_COMPUTE,
    SAME_TIME,
    SHORT,
    TOKENS,
    TWINS,
    WARM,
    Fitter,
    Way,
    chosen,
    ways,
)

if TYPE_CHECKING:
    from kinoise.data.base import EpisodeStore
    from kinoise.policies import Policy
    from kinoise.spec import Observation

TARGETS = {CACHED: {FULL: 3.3}, EVERYTHING: {FULL: 30.0, SHORT: 5.0}}
"""Of a continuous policy: how many times faster than which row. Both with success within so much of `full`'s:"""
WITHIN = 0.01
PACE = 40
"""Plans by which the steps of `same_time` are chosen."""


@dataclass
class Settings:
    """The whole command line, but for the runs."""

    data: str = field(default=MISSING, metadata={"help": "demonstrations, to fit caches to and to plan for"})
    env: str = "metaworld/mt10"
    success: bool = field(default=True, metadata={"help": "play episodes; false: speed alone"})
    episodes: int = field(default=10, metadata={"help": "per task and seed"})
    seeds: list[int] = field(default_factory=lambda: [1000, 2000, 3000, 4000, 5000])
    horizon: int | None = None
    plans: int = field(default=60, metadata={"help": "timed, in each way"})
    budget: int | None = field(default=None, metadata={"help": "of the caches; null: 10 of 100 evaluations, 4 of 12 rounds"})
    steps: list[int] | None = field(default=None, metadata={"help": "further rows without a cache; null: 3 and 5 (2 and 8)"})
    budgets: list[int] | None = field(default=None, metadata={"help": "further rows with one; null: 5 and 20 (2 and 6)"})
    union: int = field(default=1, metadata={"help": "of the bubbling union, see kinoise fit-cache"})
    windows: int = field(default=16, metadata={"help": "places that caches are fitted to"})
    warm: float | None = field(default=None, metadata={"help": "level of warm starts; null: the checkpoint's"})
    execute: int = field(default=1, metadata={"help": "actions carried out of a plan made from the one before"})
    only: list[str] | None = field(default=None, metadata={"help": f"these rows, {FULL} and {SHORT}; null for all"})
    threads: int = field(default=1, metadata={"help": "torch's"})
    device: str = field(default="auto", metadata={"help": "of the policy: cpu, cuda, or auto"})
    seed: int = field(default=0, metadata={"help": "of the places in the demonstrations"})
    name: str = field(default="decode", metadata={"help": "results/NAME_POLICY_PROCESS.json"})

    def __post_init__(self) -> None:
        least = {"plans": self.plans, "threads": self.threads, "windows": self.windows, "execute": self.execute}
        for name, value in least.items():
            if value < 1:
                raise UsageError(f"{name}={value}: at least 1 is needed")
        if not self.seeds:
            raise UsageError("seeds=[]: at least one is needed")


def label(policy: Policy) -> str:
    """`diffusion_vp`: the policy and its process."""
    return f"{policy.config.name}_{getattr(policy.config.process, 'kind', 'masked')}"  # type: ignore[attr-defined]


def rows_of(run: str, settings: Settings, partial: Partial) -> list[tuple[Row, str]]:
    """The rows of one checkpoint, each with the curve that it is a point of.

    Raises:
        UsageError: rows that are none, a budget that leaves nothing out, or no level for warm starts.
        KinoiseError: no checkpoint there, or data that don't fit it.
    """
    from kinoise.data import open_store
    from kinoise.deploy.speed import computed
    from kinoise.policies.checkpoint import identity, load_policy, resolve
    from kinoise.policies.discrete_vla import DiscreteVLAPolicy

    checkpoint = resolve(run)
    policy = load_policy(checkpoint, device=settings.device, decode={"cache": "none"})
    own, who = policy.config.decode, identity(policy, checkpoint)
    kind = TOKENS if isinstance(policy, DiscreteVLAPolicy) else CONTINUOUS
    budget = kind.budget if settings.budget is None else settings.budget
    budgets = kind.budgets if settings.budgets is None else settings.budgets
    most = kind.chains[""]["steps"]
    if not all(0 < item < most for item in (budget, *budgets)):
        raise UsageError(f"budget={budget}, budgets={list(budgets)}: expected at least 1, and less than {most} evaluations")
    fixed = ways(kind, budget, kind.steps if settings.steps is None else settings.steps, budgets)
    further = [SAME_COMPUTE, SAME_TIME, WARM, *([COMPILED, EVERYTHING] if policy.compilable else [])]
    names = chosen([*fixed, *further], settings.only)
    store = open_store(settings.data)
    fitter = Fitter(policy, store, windows=settings.windows, union=settings.union, seed=settings.seed)
    plain = replace(own, **PLAIN, schedule=type(own)().schedule)

    def row(name: str, way: Way, execute: int = policy.config.execute) -> Row:
        decode = replace(plain, **way.changes)
        decode = fitter(decode, way.fit) if way.fit else decode
        return Row(name, policy, decode, execute, checkpoint, who, dict(way.changes))

    rows = {name: (row(name, fixed[name]), fixed[name].method) for name in names if name in fixed}
    if {SAME_COMPUTE, SAME_TIME} & set(names):
        cached = row(CACHED, fixed[CACHED])
        steps = {SAME_COMPUTE: round(most * computed(cached.decode, most))}
        if SAME_TIME in names:
            steps[SAME_TIME] = pace(cached, row(SHORT, fixed[SHORT]), kind.few, store, settings, partial)
        for name in (SAME_COMPUTE, SAME_TIME):
            if name in names:
                rows[name] = row(name, Way(kind.name, {**kind.few, "steps": min(most, steps[name])})), kind.name
    if {WARM, EVERYTHING} & set(names):
        level = own.warm if settings.warm is None else settings.warm
        if not 0 < level < 1:
            raise UsageError(f"{run} has no level for warm starts: run kinoise calibrate on it, or give warm=")
        rows[WARM] = row(WARM, Way("warm start", {**kind.few, "warm": level, "warm_steps": 1}), settings.execute), "warm start"
    if {COMPILED, EVERYTHING} & set(names):
        fast = load_policy(checkpoint, device=settings.device, decode={"cache": "none"}, compile=True)
        for name, plain_name in TWINS.items():
            if name in names:
                twin, method = rows[plain_name]
                rows[name] = twin._replace(name=name, policy=fast), f"{method}, compiled"
    return list(rows.values())


def pace(cached: Row, short: Row, few: dict[str, Any], store: EpisodeStore, settings: Settings, partial: Partial) -> int:
    """How many steps without a cache take as long as a cached plan. Kept, so that a command that is resumed has the same."""
    how = {"threads": settings.threads, "device": settings.device, "seed": settings.seed}
    key, steps = partial.get(sha256=cached.identity["sha256"], decode=repr(cached.decode), **how)
    if steps is None:
        seen = observations(cached.policy, store, PACE, settings.seed)
        other = short._replace(decode=replace(short.decode, steps=3 * few["steps"]))
        sides = {"cached": cached, "short": short, "other": other}
        times = alternate({name: Planner(row, seen) for name, row in sides.items()}, PACE)
        slower = {name: float(np.median(np.divide(times[name], times["short"]))) for name in ("cached", "other")}
        steps = as_fast(slower["cached"], {few["steps"]: 1.0, 3 * few["steps"]: slower["other"]})
        partial.keep(key, steps)
    return steps


def rounding(row: Row, twin: Row, seen: Sequence[Observation]) -> float:
    """How far plans are from those of `twin` at most, as a share of an action number's range in the demonstrations."""
    import torch

    stats, planners, apart = row.policy.stats["action"], [Planner(side, seen) for side in (row, twin)], 0.0
    size = (torch.tensor(stats.max) - torch.tensor(stats.min)).clamp(min=1e-6)
    for number in range(len(seen)):
        for planner in planners:
            planner(number)
        mine, other = (planner.made.actions for planner in planners if planner.made is not None)
        apart = max(apart, ((mine - other).abs() / size).max().item())
    return apart


def speeds(rows: Sequence[Row], settings: Settings) -> dict[str, dict[str, Any]]:
    """By row: a plan's milliseconds, evaluations and share of branches computed, and how many times faster it is."""
    from kinoise.data import open_store
    from kinoise.deploy.speed import computed

    seen = observations(rows[0].policy, open_store(settings.data), settings.plans, settings.seed)
    planners, by_name = {row.name: Planner(row, seen) for row in rows}, {row.name: row for row in rows}
    times, found = alternate(planners, settings.plans), {}
    for row in rows:
        made, own = planners[row.name].made, times[row.name]
        assert made is not None
        found[row.name] = {
            "execute": row.execute,
            "evaluations": made.nfe,
            "computed": round(computed(row.decode, made.nfe), 4),
            "plan_ms": milliseconds(own),
            "ms_per_action": round(milliseconds(own)["median"] / row.execute, 3),
            "faster": {name: ratio(times[name], own) for name in (FULL, SHORT)},
        }
        if row.name in TWINS:
            found[row.name]["rounding"] = rounding(row, by_name[TWINS[row.name]], seen)
    return found


def verdicts(table: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """What the targets ask, and what was found. `met` is None when the speed is reached and no episode was played."""
    found = []
    for name, others in TARGETS.items():
        for other, least in others.items():
            if name in table:
                faster, gap = table[name]["faster"][other]["ratio"], table[name].get("difference")
                target = {"row": name, "than": other, "faster_at_least": least, "success_within": WITHIN}
                alike = None if gap is None else gap["value"] >= -WITHIN
                found.append({**target, "faster": faster, "difference": gap, "met": alike if faster >= least else False})
    return found


def table_of(pairs: Sequence[tuple[Row, str]], settings: Settings, partial: Partial) -> dict[str, Any]:
    import torch
    from kinoise.policies.discrete_vla import DiscreteVLAPolicy

    rows = [row for row, _ in pairs]
    table: dict[str, dict[str, Any]] = {row.name: {"method": method, "changes": row.changes} for row, method in pairs}
    if settings.success:
        how = {name: getattr(settings, name) for name in ("env", "episodes", "seeds", "horizon")}
        played = {row.name: play(row, partial, **how) for row in rows if row.name not in TWINS}
        played |= {name: played[twin] for name, twin in TWINS.items() if name in table}
        for row in rows:
            table[row.name] |= figures(row, played[row.name], played[FULL])
        correct(table, FULL)
        torch.set_num_threads(settings.threads)  # an evaluation sets its own
    for name, item in speeds(rows, settings).items():
        table[name] |= item
    schedules = {row.name: row.decode.schedule.refresh for row in rows if row.decode.cache == "fitted"}
    policy = rows[0].policy
    targets = [] if isinstance(policy, DiscreteVLAPolicy) else verdicts(table)
    return {"label": label(policy), "policy": rows[0].identity, "targets": targets, "rows": table, "schedules": schedules}


def show(name: str, found: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    shown = Table(title=f"{name}: {found['label']}", caption="success and difference to full with 95 % intervals")
    for column in ("row", "success", "difference", "", "evaluations", "computed", "times faster", "", "ms"):
        shown.add_column(column, justify="left" if column == "row" else "right", no_wrap=True)
    for name, item in found["rows"].items():
        success, difference, faster = item.get("success"), item.get("difference"), item["faster"][FULL]
        shown.add_row(
            name,
            f"{success['rate']:.3f}" if success else "",
            f"{difference['value']:+.3f}" if difference else "",
            f"{difference['low']:+.3f} to {difference['high']:+.3f}" if difference else "",
            str(item["evaluations"]),
            f"{item['computed']:.0%}",
            f"{faster['ratio']:.2f}",
            f"{faster['ratio_q25']:.2f} to {faster['ratio_q75']:.2f}",
            f"{item['plan_ms']['median']:.2f}",
        )
    console = Console()
    (console if console.is_terminal else Console(width=140)).print(shown)
    for item in found["targets"]:
        print(f"{item['row']}: {item['faster']:.2f} times faster than {item['than']}, target {item['faster_at_least']:g}")


def main(argv: Sequence[str]) -> int:
    runs = [item for item in argv if "=" not in item]
    settings = parse("decode", Settings, [item for item in argv if "=" in item], about=__doc__ or "")
    if not runs:
        raise UsageError("expected at least one run or checkpoint")
    import torch

    torch.set_num_threads(settings.threads)
    partial = Partial(settings.name)
    rows = [rows_of(name, settings, partial) for name in runs]
    labels = [label(pairs[0][0].policy) for pairs in rows]
    if len(set(labels)) < len(runs):
        raise UsageError(f"{', '.join(labels)}: expected runs of different policies or processes, a result is named after each")
    for name, pairs in zip(runs, rows, strict=True):
        found = table_of(pairs, settings, partial)
        how = {key: getattr(settings, key) for key in ("env", "seeds", "episodes", "horizon", "plans", "threads", "union")}
        write(f"{settings.name}_{found['label']}", {"run": name, "settings": how, **found}, show=False)
        show(name, found)
    partial.done()
    return 0


if __name__ == "__main__":
    sys.exit(run(main, sys.argv[1:]))
