"""One trained discrete_vla decoded in many ways: `python -m benchmarks.decoding RUN env=metaworld/mt10 [against=OTHER_RUN]`.

Every row plays the same episodes and differs from `max_12`, twelve greedy rounds that commit the surest tokens first, in what
its `changes` say. Success has Wilson's interval; the difference to `max_12` has Newcombe's for pairs, and McNemar's exact test,
alone and with Holm's correction for the number of rows. Latency is measured last, without simulators: on observations of real
episodes, each row's plan for one of them right after `max_12`'s plan for the same.

Each row and seed is kept as soon as it is played, in results/.NAME.partial.json: the same command goes on where it was stopped.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from kinoise.config import UsageError, parse, run
from kinoise.files import read_json, write_json
from kinoise.provenance import commit
from kinoise.spec import KinoiseError
from omegaconf import MISSING

from .record import RESULTS, milliseconds, ratio, write
from .rows import AGAINST, REFERENCE, Row, changes, load

if TYPE_CHECKING:  # worker processes import this file too: they are not to load torch
    from kinoise.spec import Observation

ALPHA = 0.05
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


class Partial:
    """What was played before the command was stopped, by a hash of everything that decides it."""

    def __init__(self, name: str) -> None:
        self.path = RESULTS / f".{name}.partial.json"
        self.used: set[str] = set()
        self._parts: dict[str, Any] = read_json(self.path) if self.path.exists() else {}

    def get(self, **about: Any) -> tuple[str, Any]:
        """The key, and what is kept under it; None if nothing."""
        key = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:16]
        self.used.add(key)
        return key, self._parts.get(key)

    def keep(self, key: str, value: Any) -> None:
        self._parts[key] = value
        write_json(self.path, self._parts)

    def done(self) -> None:
        """Forgets what this command used; another checkpoint's or protocol's parts stay for theirs."""
        self._parts = {key: value for key, value in self._parts.items() if key not in self.used}
        if self._parts:
            write_json(self.path, self._parts)
        else:
            self.path.unlink(missing_ok=True)


def play(row: Row, settings: Settings, partial: Partial) -> list[dict[str, Any]]:
    """What each seed's evaluation found, played now or before."""
    from kinoise.eval.evaluate import evaluate

    found = []
    for seed in settings.seeds:
        protocol = {"env": settings.env, "episodes": settings.episodes, "seed": seed, "horizon": settings.horizon}
        key, part = partial.get(sha256=row.identity["sha256"], decode=asdict(row.decode), execute=row.execute, **protocol)
        if part is None:
            checkpoint = row.checkpoint
            result = evaluate(row.take(), **protocol, execute=row.execute, checkpoint=checkpoint)
            cost = result["decode_cost"]
            part = {
                "protocol": result["protocol"],
                "success": [item["success"] for item in result["episodes"]],
                "errors": result["success"]["errors"],
                "nfe": cost["nfe_per_plan"],
                "planned": round(cost["plans"] * cost["plan_batch"]["mean"]) if cost["plans"] else 0,
                "wall_s": result["wall_s"],
                "commit": commit(),
            }
            partial.keep(key, part)
        found.append(part)
        print(f"{row.name:>20} seed {seed}: {sum(part['success'])} of {len(part['success'])}", flush=True)
    return found


def figures(row: Row, parts: list[dict[str, Any]], reference: list[dict[str, Any]]) -> dict[str, Any]:
    """A row of the result, but for its latency. Raises KinoiseError when it did not play the reference's episodes."""
    from kinoise.eval.metrics import mcnemar, paired_difference, wilson

    if [item["protocol"] for item in parts] != [item["protocol"] for item in reference]:
        raise KinoiseError(f"{row.name} and {REFERENCE} played other episodes: nothing can be said of pairs")
    own, base = ([value for item in played for value in item["success"]] for played in (parts, reference))
    test, planned = mcnemar(own, base), sum(item["planned"] for item in parts)
    return {
        "changes": row.changes,
        "success": wilson(sum(own), len(own))._asdict(),
        "n": len(own),
        "errors": sum(item["errors"] for item in parts),
        "by_seed": [sum(item["success"]) / len(item["success"]) for item in parts],
        "outcomes": ["".join("01"[value] for value in item["success"]) for item in parts],
        "difference": paired_difference(own, base)._asdict(),
        "only_this": test.first,
        "only_reference": test.second,
        "p": test.p,
        "nfe_per_plan": sum(item["nfe"] * item["planned"] for item in parts) / planned if planned else None,
        "rollout_s": sum(item["wall_s"] for item in parts),
        "commits": sorted({str(item["commit"]) for item in parts}),
    }


def correct(table: dict[str, dict[str, Any]]) -> None:
    """Adds Holm's p-values over all rows but the reference, and what differs by each."""
    from kinoise.eval.metrics import holm

    names = [name for name in table if name != REFERENCE]
    adjusted = dict(zip(names, holm([table[name]["p"] for name in names]), strict=True))
    for name, item in table.items():
        item["p_holm"] = adjusted.get(name, 1.0)
        item["differs"], item["differs_holm"] = item["p"] < ALPHA, item["p_holm"] < ALPHA


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
    played = {row.name: play(row, settings, partial) for row in rows}
    table = {row.name: figures(row, played[row.name], played[REFERENCE]) for row in rows}
    correct(table)
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
