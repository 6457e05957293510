"""One trained discrete_vla decoded in many ways: `python -m benchmarks.decoding RUN env=metaworld/mt10 [against=OTHER_RUN]`.

Every row plays the same episodes and differs from `max_12`, twelve greedy rounds that commit the surest tokens first, in what
its `changes` say. Success has Wilson's interval; the difference to `max_12` has Newcombe's for pairs, and McNemar's exact test,
alone and with Holm's correction for the number of rows. Latency is measured last, without simulators: on observations of real
episodes, each row's plan for one of them right after `max_12`'s plan for the same.

Each row and seed is kept as soon as it is played, in results/.NAME.partial.json: the same command goes on where it was stopped.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from kinoise.config import UsageError, parse, run
from kinoise.spec import KinoiseError
from omegaconf import MISSING

from .played import ALPHA, Partial, Row, correct, figures, play
from .record import milliseconds, ratio, write
from .rows import AGAINST, REFERENCE, changes, load

if TYPE_CHECKING:  # worker processes import this file too: they are not to load torch
    from kinoise.spec import Observation

WARMUP = 3


@dataclass
class Settings:
    """The whole command line."""

    run: str = field(default=MISSING, metadata={"help": "a training run of discrete_vla, or one of its checkpoints"})
    env: str = "metaworld/mt10"
    against: str | None = field(default=None, metadata={"help": "another run, a row more, which decodes by its own settings"})
    only: list[str] | None = field(default=None, metadata={"help": f"these rows, and {REFERENCE}; all if null"})
    adaptive: list[float] = field(default_factory=lambda: [0.7, 0.8], metadata={"help": "bounds, two rows each"})
    episodes: int = field(default=10, metadata={"help": "per task and seed"})
    seeds: list[int] = field(default_factory=lambda: [1000, 2000])
    horizon: int | None = None
    execute: int | None = field(default=None, metadata={"help": "actions carried out of RUN's plans; null: its own"})
    plans: int = field(default=100, metadata={"help": "observations on which each row's latency is measured"})
    name: str = field(default="decoding", metadata={"help": "results/NAME.json"})

    def __post_init__(self) -> None:
        if not self.seeds or self.plans < 1:
            raise UsageError(f"seeds={self.seeds}, plans={self.plans}: at least one of each is needed")


def watch(row: Row, settings: Settings) -> list[Observation]:
    """Single observations, spread evenly over an episode of each task that the row's policy plays."""
    from kinoise import envs
    from kinoise.eval.protocol import EvaluationProtocol
    from kinoise.eval.rollout import Rollout, look
    from kinoise.eval.slot import Job, Terms
    from kinoise.eval.workers import Workers
    from kinoise.spec import Observation, Plan

    policy, seen = row.take(), []

    class Keeping:
        def plan(self, obs: Observation, gen: Any) -> Plan:
            assert obs.text is not None
            for i, text in enumerate(obs.text.tolist()):
                one = {key: item[i : i + 1].clone() for key, item in obs.values.items()}
                seen.append(Observation(one, (obs.texts[text],), obs.text.new_zeros(1)))
            return policy.plan(obs, gen)

    tasks = envs.tasks(settings.env)
    with Workers(envs.showing(policy.spec), len(os.sched_getaffinity(0))) as pool:
        horizon = settings.horizon or look(pool, tasks[0]).horizon
        terms = Terms(policy.config.history, tuple(policy.spec.observations), horizon)
        keys = EvaluationProtocol(settings.env, tasks, 1, horizon, settings.seeds[0]).episode_seeds()
        rollout = Rollout(pool, [Job(*key, terms) for key in keys], execute=row.execute)
        rollout.prepare()
        errors = [outcome.error for outcome in rollout.run(Keeping()) if outcome.error]
    if errors or not seen:
        raise KinoiseError(f"{len(errors)} episodes could not be played ({errors[:1]}): no observation to measure latency on")
    count = min(settings.plans, len(seen))
    return [seen[i * len(seen) // count] for i in range(count)]


def latency(rows: Sequence[Row], settings: Settings) -> dict[str, dict[str, Any]]:
    """By row: milliseconds of a plan for one observation, and their ratio to the reference's just before."""
    import torch

    reference = rows[0]
    seen = {id(row.policy): watch(row, settings) for row in {id(row.policy): row for row in reversed(rows)}.values()}
    times: dict[str, tuple[list[float], list[float]]] = {row.name: ([], []) for row in rows}

    def timed(row: Row, index: int) -> float:
        policy, choices = row.take(), seen[id(row.policy)]
        gen = torch.Generator().manual_seed(index)
        started = time.perf_counter()
        policy.plan(choices[index % len(choices)], [gen])
        return time.perf_counter() - started

    with torch.no_grad():
        for index in range(-WARMUP, settings.plans):
            for row in rows:
                pair = timed(reference, index % settings.plans), timed(row, index % settings.plans)
                if index >= 0:
                    for kept, seconds in zip(times[row.name], pair, strict=True):
                        kept.append(seconds)
    return {name: {"plan_ms": milliseconds(own), **ratio(own, base)} for name, (base, own) in times.items()}


def show(table: dict[str, dict[str, Any]]) -> None:
    from rich.console import Console
    from rich.table import Table

    shown = Table(title=f"Paired with {REFERENCE}; 95 % intervals; * p < {ALPHA}, ** also by Holm's correction")
    for name in ("row", "success", "", "difference", "", "only it", "only ref.", "p", "evaluations", "plan ms", "ratio"):
        shown.add_column(name, justify="left" if name == "row" else "right", no_wrap=True)
    for name, item in table.items():
        success, difference, nfe = item["success"], item["difference"], item["nfe_per_plan"]
        shown.add_row(
            name,
            f"{success['rate']:.3f}",
            f"{success['low']:.3f} to {success['high']:.3f}",
            f"{difference['value']:+.3f}",
            f"{difference['low']:+.3f} to {difference['high']:+.3f}",
            str(item["only_this"]),
            str(item["only_reference"]),
            f"{item['p']:.2g}{'*' * (item['differs'] + item['differs_holm'])}",
            "" if nfe is None else f"{nfe:.1f}",
            f"{item['plan_ms']['median']:.1f}",
            f"{item['ratio']:.3f}",
        )
    errors = sum(item["errors"] for item in table.values())
    shown.caption = f"{errors} episodes could not be played to their end; they count as failed." if errors else None
    console = Console()
    (console if console.is_terminal else Console(width=140)).print(shown)


def main(argv: Sequence[str]) -> int:
    settings = parse("decoding", Settings, argv, positional="run", about=__doc__ or "")
    import torch

    torch.set_num_threads(1)  # as in an evaluation, whose simulators need the other cores
    wanted = changes(settings.adaptive, settings.only, settings.against is not None)
    rows, partial = load(settings.run, settings.against, settings.execute, wanted), Partial(settings.name)
    how = {name: getattr(settings, name) for name in ("env", "episodes", "seeds", "horizon")}
    played = {row.name: play(row, partial, **how) for row in rows}
    table = {row.name: figures(row, played[row.name], played[REFERENCE]) for row in rows}
    correct(table, REFERENCE)
    for name, item in latency(rows, settings).items():
        table[name] |= item
    other = next((row for row in rows if row.name == AGAINST), None)
    write(
        settings.name,
        {
            "reference": REFERENCE,
            "policy": rows[0].identity,
            "decode": {**asdict(rows[0].decode), "execute": rows[0].execute, "chunk": rows[0].policy.config.chunk},
            AGAINST: other
            and {
                **other.identity,
                "decode": {**asdict(other.decode), "execute": other.execute},
                "chunk": other.policy.config.chunk,
            },
            "protocols": [item["protocol"] for item in played[REFERENCE]],
            "latency": {"batch": 1, "plans": settings.plans, "device": str(rows[0].policy.device)},
            "rows": table,
        },
    )
    show(table)
    partial.done()
    return 0


if __name__ == "__main__":
    sys.exit(run(main, sys.argv[1:]))
