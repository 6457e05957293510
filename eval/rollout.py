"""Episodes in simulators: played by a policy, whose plans are made here in batches, or by drivers beside the simulators.

The slots are split into two groups: while one group's plans are made, the simulators carry out the other's, so that no core
waits. The groups take turns whatever the timing, so which observations share a batch depends on the episodes alone.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Generator, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float

from ..policies.core.random import derived
from ..spec import KinoiseError, Observation, Plan
from .latency import Late
from .schedule import Schedule
from .slot import Job, Outcome, Simulator
from .timeline import Carried, Timeline
from .workers import STRIKES, Orders, Report, WorkerDied, Workers

GROUPS = 2
SLOTS = 20


@runtime_checkable
class Actor(Protocol):
    """What plans for a batch of observations; every Policy is one."""

    def plan(
        self,
        obs: Observation,
        gen: Sequence[torch.Generator],
        *,
        previous: Plan | None = None,
        elapsed: int = 0,
        prefix: int = 0,
    ) -> Plan:
        """A chunk of actions for each row; row i draws its randomness from `gen[i]` alone.

        With `carry` or `pin`, `previous` holds the plans of these rows before, of which `elapsed` actions have passed and the
        next `prefix` will have before this plan is there.
        """
        ...


def look(workers: Workers, task: str, render: bool = False) -> Simulator:
    """What the simulator of `task` says of itself. It stays where a rollout that begins with this task will use it.

    Raises KinoiseError when it can't be built.
    """
    return _build(workers, {0: (task, render)})[0]


class Rollout:
    """Plays every job once, and once more those that were under way in a process that died.

    Initial states and plans' randomness are drawn from the episode's seed, so a repeated episode is the episode that was lost.
    The one that the process was working on is given up when that has happened STRIKES times.

    Args:
        workers: the processes; they may have served other rollouts, whose simulators are used again where they fit.
        jobs: the episodes, in the order in which each task's are to start.
        execute: steps from one question for a plan to the next, when plans keep up.
        slots: how many episodes are under way at once, at most.
        carry: whether the actor is told each episode's plan before, from which it may start.
        late: by how many steps plans come late, while the simulator goes on; None for never.
        pin: ask for plans that begin with the actions that will have passed when they are there, by `late`'s estimate.
        ensemble: see `Timeline`.
    """

    def __init__(
        self,
        workers: Workers,
        jobs: Sequence[Job],
        *,
        execute: int = 1,
        slots: int = SLOTS,
        carry: bool = False,
        late: Late | None = None,
        pin: bool = False,
        ensemble: float | None = None,
    ) -> None:
        self._workers, self._execute, self._late, self._ensemble = workers, execute, late, ensemble
        self._carry, self._pin, self._estimate = carry or pin, pin, late.estimate if late else 0
        self.carried: list[Carried] = []
        """What the actor's plans came to, of each episode that it planned for, in the order of the outcomes."""
        self._schedule = Schedule(jobs, slots)
        self._running: dict[int, Job] = {}
        self._strikes: Counter[int] = Counter()
        self.repeated = 0
        """How often an episode was begun again, for its process had died."""
        self._asked: dict[int, list[int]] = {}
        self._generators: dict[int, torch.Generator] = {}
        self._timelines: dict[int, Timeline] = {}

    def prepare(self) -> None:
        """Builds the simulators that the first episodes need.

        Raises:
            KinoiseError: one can't be built.
            SpecMismatch: the tasks differ in what is observed or commanded.
        """
        first = self._schedule.first
        built = _build(self._workers, {slot: (job.task, job.film is not None) for slot, job in first.items()})
        for slot, simulator in built.items():
            built[0].spec.require(simulator.spec, (f"task {first[0].task}", f"task {first[slot].task}"))

    def run(self, actor: Actor | None = None) -> Generator[Outcome]:
        """The outcomes, as the episodes end, in an order that depends on the episodes alone.

        Args:
            actor: plans for the jobs that have no driver.

        Raises:
            KinoiseError: plans that are too short, of the wrong size, or needed where there is no actor.
        """
        turns: deque[int] = deque()
        for group in range(GROUPS):
            start = {slot: job for slot, job in self._schedule.first.items() if slot % GROUPS == group}
            if start:
                self._send(group, {}, start)
                turns.append(group)
        try:
            while turns:
                group = turns.popleft()
                ended, again, reports = self._receive(group)
                following = [(slot, self._schedule.next(slot)) for slot in sorted(ended)]
                actions = self._plan(actor, reports)
                start = again | {slot: job for slot, job in following if job is not None}
                if actions or start:
                    self._send(group, actions, start)
                    turns.append(group)
                yield from (ended[slot] for slot in sorted(ended))
        except GeneratorExit:  # whoever has enough leaves no answers behind, which the next rollout would take for its own
            for group in turns:
                self._receive(group)
            raise

    def _send(self, group: int, actions: dict[int, Float[np.ndarray, "steps action"]], start: dict[int, Job]) -> None:
        for slot, job in start.items():
            self._running[slot] = job
            self._generators[slot] = generator(job)
            self._timelines[slot] = Timeline(self._execute, self._late, job.seed, self._ensemble)
        self._asked[group] = sorted({_worker(self._workers, slot) for slot in (*actions, *start)})
        for worker in self._asked[group]:
            self._workers.send(
                worker,
                Orders(
                    actions={slot: item for slot, item in actions.items() if _worker(self._workers, slot) == worker},
                    start={slot: job for slot, job in start.items() if _worker(self._workers, slot) == worker},
                ),
            )

    def _receive(self, group: int) -> tuple[dict[int, Outcome], dict[int, Job], list[Report]]:
        """Outcomes of what has ended, by slot; what has to be begun again; and the reports of the others."""
        ended: dict[int, Outcome] = {}
        again: dict[int, Job] = {}
        reports = []
        for worker in self._asked[group]:
            try:
                report = self._workers.receive(worker)
                ended |= report.ended
                reports.append(report)
                lost = report.lost
                struck = list(lost)
            except WorkerDied as error:
                ours = [slot for slot in self._running if slot % GROUPS == group and _worker(self._workers, slot) == worker]
                lost = dict.fromkeys(ours, str(error))
                struck = ours if error.at is None else [slot for slot in ours if slot == error.at]
            self._strikes.update(struck)
            given_up = [slot for slot in struck if self._strikes[slot] >= STRIKES]
            ended |= {slot: Outcome(self._running[slot], error=lost[slot]) for slot in given_up}
            again |= {slot: self._running[slot] for slot in lost if slot not in given_up}
        for slot in sorted(ended):
            self._end(slot, ended[slot])
        self.repeated += len(again)
        return ended, again, reports

    def _end(self, slot: int, outcome: Outcome) -> None:
        """Clears the slot; notes what was carried out of plans."""
        del self._running[slot]
        del self._strikes[slot]
        self._generators.pop(slot)
        timeline = self._timelines.pop(slot)
        if outcome.job.driver is None:
            self.carried.append(timeline.carried(outcome.steps))

    def _plan(self, actor: Actor | None, reports: Sequence[Report]) -> dict[int, Float[np.ndarray, "steps action"]]:
        slots = [slot for report in reports for slot in report.waiting]
        if not slots:
            return {}
        if actor is None:
            raise KinoiseError("these episodes have neither a driver nor a policy to plan for them")
        order = np.argsort(slots)
        full = [report for report in reports if report.waiting]
        values = {
            key: torch.from_numpy(np.concatenate([report.values[key] for report in full])[order]) for key in full[0].values
        }
        said = [text for report in full for text in report.instructions]
        asked = [said[row] for row in order]
        texts = tuple(dict.fromkeys(asked))
        text = torch.tensor([texts.index(item) for item in asked])
        slots = [slots[row] for row in order]
        obs = Observation(values, texts, text)
        actions = {}
        for told, rows in self._alike(slots).items():
            own = [slots[row] for row in rows]
            actions |= self._answer(actor, obs if len(rows) == len(slots) else obs.rows(rows), own, told)
        return actions

    def _alike(self, slots: list[int]) -> dict[tuple[int, int] | None, list[int]]:
        """Rows that share a plan, by what it is told of those before: (elapsed, prefix), or nothing."""
        groups: dict[tuple[int, int] | None, list[int]] = {}
        for row, slot in enumerate(slots):
            previous, told = self._timelines[slot].previous if self._carry else None, None
            if previous is not None:
                plan, elapsed = previous
                told = elapsed, min(self._estimate, plan.actions.shape[1] - elapsed) if self._pin else 0
            groups.setdefault(told, []).append(row)
        return dict(sorted(groups.items(), key=lambda item: item[0] or (-1, 0)))

    def _answer(
        self, actor: Actor, obs: Observation, slots: list[int], told: tuple[int, int] | None
    ) -> dict[int, Float[np.ndarray, "steps action"]]:
        """Each slot's next actions, by one plan for all of them."""
        known: dict[str, Any] = {}
        prefix = 0
        if told is not None:
            before = [item for slot in slots if (item := self._timelines[slot].previous)]
            elapsed, prefix = told
            known = {"previous": joined([plan for plan, _ in before]), "elapsed": elapsed}
            known |= {"prefix": prefix} if self._pin else {}
        with torch.no_grad():
            plan = actor.plan(obs, [self._generators[slot] for slot in slots], **known)
        apart = max(self._execute, self._estimate)
        if plan.actions.shape[0] != len(slots) or plan.actions.shape[1] < apart + self._estimate:
            raise KinoiseError(
                f"expected plans for {len(slots)} observations of at least {apart} actions, and {self._estimate} more to "
                f"go on with while the next is made; came {tuple(plan.actions.shape)}. Choose a smaller execute= or latency=."
            )
        return {slot: self._timelines[slot].take(plan.row(row), prefix) for row, slot in enumerate(slots)}


def joined(plans: Sequence[Plan]) -> Plan:
    """A batch of plans of one row each, as far as the next plan may want to know of them."""
    sure = [item.confidence for item in plans if item.confidence is not None]
    actions = torch.cat([item.actions for item in plans])
    return Plan(actions, plans[0].dt, 0, confidence=torch.cat(sure) if len(sure) == len(plans) else None)


def generator(job: Job) -> torch.Generator:
    """The randomness of an episode's plans: a function of its seed, which no other episode shares."""
    return derived(job.seed, 2)


def _worker(workers: Workers, slot: int) -> int:
    """Consecutive slots of a group lie in different processes, so that each group keeps all of them busy."""
    return slot // GROUPS % len(workers)


def _build(workers: Workers, wanted: dict[int, tuple[str, bool]]) -> dict[int, Simulator]:
    built: dict[int, Simulator] = {}
    shares = {}
    for slot, item in wanted.items():
        shares.setdefault(_worker(workers, slot), {})[slot] = item
    for worker, share in shares.items():
        workers.send(worker, Orders(build=share))
    try:
        for worker in shares:
            built |= workers.receive(worker).built
    except WorkerDied as error:
        tasks = sorted({task for task, _ in wanted.values()})
        raise KinoiseError(f"{error} while it built {', '.join(tasks)}. Run kinoise doctor.") from error
    return built
