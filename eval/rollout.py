"""Episodes in simulators: played by a policy, whose plans are made here in batches, or by drivers beside the simulators.

The slots are split into two groups: while one group's plans are made, the simulators carry out the other's, so that no core
waits. The groups take turns whatever the timing, so which observations share a batch depends on the episodes alone.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float

from ..spec import KinoiseError, Observation, Plan
from .schedule import Schedule
from .slot import Job, Outcome, Simulator
from .workers import Orders, Report, WorkerDied, Workers

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

        With `carry`, `previous` holds the plans of these rows before, of which `elapsed` actions were carried out and the next
        `prefix` will be before this plan is there.
        """
        ...


def look(workers: Workers, task: str, render: bool = False) -> Simulator:
    """What the simulator of `task` says of itself. It stays where a rollout that begins with this task will use it.

    Raises KinoiseError when it can't be built.
    """
    return _build(workers, {0: (task, render)})[0]


class Rollout:
    """Plays every job once.

    Args:
        workers: the processes; they may have served other rollouts, whose simulators are used again where they fit.
        jobs: the episodes, in the order in which each task's are to start.
        execute: actions of each plan that are carried out before the next.
        carry: whether the actor is told each episode's plan before, from which it may start.
        delay: steps that the simulator goes on with the plan before while one is made; an episode's first is waited for.
        pin: ask for plans that begin with these steps' actions.
        slots: how many episodes are under way at once, at most.
    """

    def __init__(
        self,
        workers: Workers,
        jobs: Sequence[Job],
        *,
        execute: int = 1,
        slots: int = SLOTS,
        carry: bool = False,
        delay: int = 0,
        pin: bool = False,
    ) -> None:
        self._workers, self._execute, self._carry = workers, execute, carry or delay > 0
        self._delay, self._pin = delay, pin
        self.joins: list[Float[np.ndarray, "action"]] = []
        """The change of the action, physical units, where one plan's actions follow another's."""
        self._schedule = Schedule(jobs, slots)
        self._running: dict[int, Job] = {}
        self._asked: dict[int, list[int]] = {}
        self._generators: dict[int, torch.Generator] = {}
        self._before: dict[int, Plan] = {}

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

    def run(self, actor: Actor | None = None) -> Iterator[Outcome]:
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
        while turns:
            group = turns.popleft()
            ended, reports = self._receive(group)
            following = [(slot, self._schedule.next(slot)) for slot in sorted(ended)]
            actions = self._plan(actor, reports)
            start = {slot: job for slot, job in following if job is not None}
            if actions or start:
                self._send(group, actions, start)
                turns.append(group)
            yield from (ended[slot] for slot in sorted(ended))

    def _send(self, group: int, actions: dict[int, Float[np.ndarray, "execute action"]], start: dict[int, Job]) -> None:
        for slot, job in start.items():
            self._running[slot] = job
            self._before.pop(slot, None)
            self._generators[slot] = generator(job)
        self._asked[group] = sorted({_worker(self._workers, slot) for slot in (*actions, *start)})
        for worker in self._asked[group]:
            self._workers.send(
                worker,
                Orders(
                    actions={slot: item for slot, item in actions.items() if _worker(self._workers, slot) == worker},
                    start={slot: job for slot, job in start.items() if _worker(self._workers, slot) == worker},
                ),
            )

    def _receive(self, group: int) -> tuple[dict[int, Outcome], list[Report]]:
        ended: dict[int, Outcome] = {}
        reports = []
        for worker in self._asked[group]:
            try:
                report = self._workers.receive(worker)
                ended |= report.ended
                reports.append(report)
            except WorkerDied as error:
                lost = [slot for slot in self._running if slot % GROUPS == group and _worker(self._workers, slot) == worker]
                ended |= {slot: Outcome(self._running[slot], error=str(error)) for slot in lost}
        for slot in ended:
            del self._running[slot]
        return ended, reports

    def _plan(self, actor: Actor | None, reports: Sequence[Report]) -> dict[int, Float[np.ndarray, "execute action"]]:
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
        if not self._carry:
            return self._answer(actor, obs, slots, None)
        again = [slot in self._before for slot in slots]
        actions = {}
        for known in (False, True):
            rows = [row for row, item in enumerate(again) if item == known]
            if rows:
                own = [slots[row] for row in rows]
                actions |= self._answer(
                    actor, obs.rows(rows), own, joined([self._before[slot] for slot in own]) if known else None
                )
        return actions

    def _answer(
        self, actor: Actor, obs: Observation, slots: list[int], previous: Plan | None
    ) -> dict[int, Float[np.ndarray, "execute action"]]:
        """Each slot's next actions, by one plan for all of them."""
        told: dict[str, Any] = {} if previous is None else {"previous": previous, "elapsed": self._execute}
        if previous is not None and self._pin:
            told["prefix"] = self._delay
        with torch.no_grad():
            plan = actor.plan(obs, [self._generators[slot] for slot in slots], **told)
        if plan.actions.shape[0] != len(slots) or plan.actions.shape[1] < self._execute + self._delay:
            raise KinoiseError(
                f"expected plans for {len(slots)} observations of at least {self._execute} actions, and {self._delay} more to "
                f"go on with while the next is made; came {tuple(plan.actions.shape)}. Choose a smaller execute= or latency=."
            )
        if self._carry:
            self._before |= {slot: plan.row(row) for row, slot in enumerate(slots)}
        actions = plan.actions.numpy()
        if previous is not None:
            actions = self._joined(actions, previous.actions[:, self._execute - 1 :].numpy())
        return dict(zip(slots, actions[:, : self._execute], strict=True))

    def _joined(
        self, actions: Float[np.ndarray, "rows chunk action"], before: Float[np.ndarray, "rows left action"]
    ) -> Float[np.ndarray, "rows chunk action"]:
        """What is carried out: the plan before goes on until this one is there. `before` begins with its last action so far."""
        self.joins += list(actions[:, self._delay] - before[:, self._delay])
        return np.concatenate([before[:, 1 : self._delay + 1], actions[:, self._delay :]], 1)


def joined(plans: Sequence[Plan]) -> Plan:
    """A batch of plans of one row each, as far as the next plan may want to know of them."""
    sure = [item.confidence for item in plans if item.confidence is not None]
    actions = torch.cat([item.actions for item in plans])
    return Plan(actions, plans[0].dt, 0, confidence=torch.cat(sure) if len(sure) == len(plans) else None)


def generator(job: Job) -> torch.Generator:
    """The randomness of an episode's plans: a function of its seed, which no other episode shares."""
    return torch.Generator().manual_seed(int(np.random.SeedSequence([job.seed, 2]).generate_state(1, np.uint64)[0] >> 1))


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
