"""A policy's success in simulation, from its first reset to its result."""

from __future__ import annotations

import math
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from .. import envs
from ..config import UsageError
from ..data import open_store
from ..files import new_directory, write_json
from ..policies import Policy
from ..policies.base import check_execute
from ..policies.checkpoint import identity
from ..spec import KinoiseError, Spec
from .films import film
from .latency import MEASURED, Late, Latency, parse_latency, samples
from .ledger import LEDGER, Conditions, Entry, Key, Ledger, read_ledger
from .player import Player
from .presets import Wanted, check_perturbations, survey
from .progress import EpisodeProgress
from .protocol import Shard
from .result import VIDEOS, Planning, account, evaluating, overlap
from .rollout import SLOTS, Rollout, look
from .slot import Job, Make, Simulator
from .stopwatch import Stopwatch, batch1
from .until import Until
from .workers import TIMEOUT_S, Workers

BATCH1_PLANS, BATCH1_SECONDS = 20, 2.0
SAMPLES, SAMPLES_SECONDS = 100, 10.0


def evaluate(
    policy: Policy,
    env: str,
    *,
    protocol: str | None = None,
    episodes: int | None = None,
    seed: int | None = None,
    execute: int | None = None,
    latency: float | str = 0.0,
    ensemble: float | None = None,
    pin: bool = False,
    horizon: int | None = None,
    wait: int | None = None,
    images: str | None = None,
    perturb: str | None = None,
    checkpoint: Path | None = None,
    ema: bool = True,
    out: Path | None = None,
    video: int = 0,
    data: Path | None = None,
    resume: bool = False,
    shard: str | None = None,
    until: float | None = None,
    workers: int | None = None,
    slots: int = SLOTS,
    threads: int = 1,
    timeout: float = TIMEOUT_S,
    make: Make | None = None,
    progress: bool = True,
) -> dict[str, Any]:
    """Plays episodes of each task and says how many succeeded.

    The same arguments give the same episodes; `workers` changes only the speed.

    Args:
        policy: plans for all the slots that need it in one batch.
        env: a suite or a task, see `envs.tasks`.
        protocol: a name of `PRESETS`, which gives the values of those of `episodes`, `seed`, `horizon`, `wait`, `images` and
            `perturb` that are None; without one they are 10, 1000, the simulator's own twice, "upright" and "".
        episodes: of each task.
        seed: initial states and the policy's randomness are drawn from it, each episode's apart from all others.
        execute: actions of each plan that are carried out; the policy's own if None.
        latency: seconds of the simulator's time that a plan takes, rounded up to steps, or a distribution of them, see
            `parse_latency`; meanwhile it goes on with the plan before. An episode's first plan is waited for.
        ensemble: carries out means over all plans at hand, see `Timeline`; None: the newest plan.
        pin: whether plans begin with what is carried out until they are there, or will be in 95 of 100 cases.
        horizon: steps after which an episode has failed.
        wait, images, perturb: see `EvaluationProtocol`; `perturb` as text, such as "camera:0.05,lighting:0.5".
        checkpoint: the policy's directory, named in the result; None if it was never saved.
        ema: whether the policy has that checkpoint's averaged weights.
        out: where result.json, episodes.jsonl and videos go; nothing is written if None.
        video: of how many episodes of each task that succeeded, and of how many that failed, there will be a video in `out`.
            They are played once more for it, from the actions that were carried out.
        data: a store of demonstrations; the result counts the episodes that began as one of them did.
        resume: play only what `out` lacks.
        shard: "2/8" plays the second of eight parts.
        until: stops early, see `Until`.
        workers: processes for the simulators; as many as there are cores if None.
        slots: episodes under way at once. Changes which observations share a batch, hence the last bits of plans.
        timeout: s in which a simulator has to get on, see `Workers`.
        threads: torch's, while the simulators run beside it.
        make: builds a simulator from a task and `render=`; if None, one that shows what the policy observes.
        progress: whether to show it.

    Returns:
        What result.json holds.

    Raises:
        SpecMismatch: before any episode, when the policy sees or commands something else than the simulator offers.
        UsageError: unfit numbers; a protocol for other tasks, a perturbation that the simulator lacks.
        KinoiseError: unknown env, a simulator that can't be built; other settings than those that `out` was begun with.
    """
    begin = time.perf_counter()
    wanted = Wanted(protocol, episodes, horizon, seed, wait, images, perturb)
    execute = policy.config.execute if execute is None else execute
    _check(policy, execute, video, out, workers=workers, slots=slots, threads=threads)
    if not timeout > 0:
        raise UsageError(f"timeout={timeout}: expected seconds, above 0")
    if ensemble is not None and not (0 <= ensemble < math.inf and not pin):
        raise UsageError(f"ensemble={ensemble}, pin={pin}: expected at least 0, and no pin: what it keeps is not carried out")
    drawn, own = parse_latency(latency), None if shard is None else Shard.parse(shard)
    _check_parts(own, resume, until, measured=drawn is None, saved=out is not None and checkpoint is not None)
    demonstrations = None if data is None else open_store(data).info
    tasks = envs.tasks(env)
    envs.check_recorded(tasks, policy.recorded)
    strengths = wanted.strengths(wanted.preset(tasks))
    check_perturbations(strengths, tasks)
    make_seen = make or envs.showing(policy.spec, strengths)
    workers = workers or len(os.sched_getaffinity(0))
    if drawn is not None:
        _late(policy, drawn, execute)
    with _staging(out, video) as films, Workers(make_seen, workers, timeout) as pool, _torch_threads(threads):
        before = read_ledger(out / LEDGER) if resume and out is not None else None
        if drawn is None and before is not None and before[0].latency.text == MEASURED:
            drawn = before[0].latency  # the delays have to go on as they were
        found = survey(tasks, lambda task: _fitting(pool, make or envs.make, task, policy.spec, video > 0))
        for task, item in found.items():
            envs.check_made(task, item.meta, policy.recorded)
        played_by = wanted.resolve(env, tasks, found, _size(policy.spec))
        history = policy.config.history
        jobs = played_by.jobs(history, tuple(policy.spec.observations))
        jobs = jobs if own is None else own.deal(jobs)
        warm = policy.config.decode.warm < 1
        late = _late(policy, drawn or _measured(policy, pool, jobs[0], execute, warm, pin), execute)
        decode = {
            **asdict(policy.config.decode),
            "execute": execute,
            "chunk": policy.config.chunk,
            "latency": late.latency.text,
            "delay": late.estimate,
            "ensemble": ensemble,
            "pin": pin,
        }
        which = identity(policy, checkpoint, ema)
        elsewhere = {envs.family(task): dict(item.versions) for task, item in found.items() if item.versions}
        conditions = Conditions(played_by, which, decode, late.latency, policy.spec, history, own and str(own), elsewhere)
        kept = _kept(before, conditions, out)
        enough = None if until is None else Until(until, played_by)
        actor, player = Stopwatch(policy), Player(pool, Ledger(out and out / LEDGER, conditions, kept), enough)
        how = {"execute": execute, "slots": slots, "carry": warm, "late": late, "pin": pin, "ensemble": ensemble}
        with EpisodeProgress(len(jobs), shown=progress) as bar:
            played = player.play(jobs, kept, actor, bar, how)
        entries = [item for item in [*kept, *played] if enough is None or enough.counts(item.outcome)]
        unfilmed = []
        if films is not None:
            entries, unfilmed = film(pool, entries, video, films, slots)
        alone = batch1(policy, actor.last, BATCH1_PLANS, BATCH1_SECONDS)
    carried_out = {"workers": workers, "slots": slots, "threads": threads, "device": str(policy.device)}
    result = account(
        conditions,
        entries,
        Planning(actor.seconds, actor.batch, (), alone),
        rollout_s=player.seconds,
        wall_s=time.perf_counter() - begin,
        rollout={**carried_out, "resumed": len(kept), "repeated": player.repeated},
        steps=sum(item.outcome.steps for item in played),
    )
    if unfilmed:
        result["unfilmed"] = unfilmed
    if enough is not None:
        result["stopped"] = enough.to_json()
    if demonstrations is not None:
        count = overlap([item.outcome for item in entries], demonstrations)
        result["overlap"] = {"data": str(data), "demonstrations": len(demonstrations), "episodes": count}
    if out is not None:
        write_json(out / "result.json", result)
    return result


def _check(policy: Policy, execute: int, video: int, out: Path | None, **positive: int | None) -> None:
    for name, value in positive.items():
        if value is not None and value < 1:
            raise UsageError(f"{name}={value}: at least 1 is needed")
    check_execute(execute, policy.config.chunk)
    if video < 0 or (video and out is None):
        raise UsageError(f"video={video}: expected at least 0, and out= to write them to")


def _check_parts(own: Shard | None, resume: bool, until: float | None, *, measured: bool, saved: bool) -> None:
    if resume and not saved:
        raise UsageError("resume=true needs out=, and a checkpoint whose weights can be compared")
    if own is not None and until is not None:
        raise UsageError(f"until={until} with shard={own}: no shard knows of the others' episodes. Leave one of them out.")
    if own is not None and measured:
        raise UsageError(
            f"latency={MEASURED} with shard={own}: each shard would draw from times of its own. Measure once, in an evaluation "
            f"with few episodes, and give its result.json to all shards as latency=FILE."
        )


def _kept(before: tuple[Conditions, dict[Key, Entry]] | None, conditions: Conditions, out: Path | None) -> list[Entry]:
    """What need not be played again: an error may have been an accident, the machine's or the network's.

    Raises KinoiseError with every difference from what `out` was begun with.
    """
    if before is None:
        return []
    found, entries = before
    differences = found.differences(conditions)
    if differences:
        raise KinoiseError(
            f"{out}: its episodes were played with other settings (then against now): {'; '.join(differences)}. Go on with "
            f"the same, or leave out resume=true to begin anew."
        )
    return [item for item in entries.values() if item.outcome.error is None]


def longest_delay(execute: int, chunk: int) -> int:
    """The most steps that a plan can always be late by, if `delay + max(execute, delay)` actions have to lie in its chunk."""
    return min(chunk // 2, chunk - execute)


def _late(policy: Policy, latency: Latency, execute: int) -> Late:
    """How late plans are. Raises UsageError when nearly all of them would be later than the policy's chunk lasts."""
    late, chunk = Late(latency, policy.spec), policy.config.chunk
    delay = late.estimate
    if delay + max(execute, delay) > chunk:
        raise UsageError(
            f"latency={latency.text} is {delay} steps at {policy.spec.rate:g} Hz (95th percentile). With execute={execute} of "
            f"a chunk of {chunk} it can be {longest_delay(execute, chunk)} at most: {delay} actions of a plan come too late, "
            f"and {max(execute, delay)} more are carried out until the next is there"
        )
    return late


def _measured(policy: Policy, pool: Workers, job: Job, execute: int, warm: bool, pin: bool) -> Latency:
    """The seconds that this policy's replans take here for one observation, the second that the first episode asks about."""
    first = replace(job, terms=replace(job.terms, horizon=min(execute + 1, job.terms.horizon)))
    actor = Stopwatch(policy)
    for outcome in Rollout(pool, [first], execute=execute, carry=warm or pin).run(actor):
        if actor.last is None:
            raise KinoiseError(f"latency={MEASURED}: no plan to measure, for {outcome.error}")
    assert actor.last is not None
    found = samples(MEASURED, batch1(policy, actor.last, SAMPLES, SAMPLES_SECONDS))
    obs, gen, told = actor.last
    if pin and "previous" in told:  # how much is kept depends on how long it takes, and the other way round
        kept = min(Late(found, policy.spec).estimate, policy.config.chunk - told["elapsed"])
        found = samples(MEASURED, batch1(policy, (obs, gen, {**told, "prefix": kept}), SAMPLES, SAMPLES_SECONDS))
    return found


def _fitting(pool: Workers, make: Make, task: str, spec: Spec, render: bool) -> Simulator:
    """The simulator of `task`, if a policy with `spec` can run there; otherwise an error that lists every difference."""
    names = ("policy", "environment")
    try:
        found = look(pool, task, render)
    except KinoiseError as error:
        # A camera that doesn't exist is noticed while building; what else differs has to be said, too.
        states = [key for key, item in spec.observations.items() if item.kind == "state"]
        with closing(make(task)) as env:
            differences = spec.select(states).differences(env.spec.select(states), names)
        raise KinoiseError("; ".join([str(error), *differences])) from error
    spec.require(found.spec.shown_to(spec), names)
    return found


def _size(spec: Spec) -> int | None:
    """Of the images that a policy looks at, whose sizes are one and the same; None without any."""
    return next((item.shape[0] for item in spec.observations.values() if item.kind == "image"), None)


@contextmanager
def _torch_threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def _staging(out: Path | None, video: int) -> Iterator[Path | None]:
    """Where videos are written; they replace those of an earlier evaluation in `out`, which is made, once all are there.

    Nobody else evaluates into `out` meanwhile.
    """
    if out is None:
        yield None
        return
    with evaluating(out):
        if not video:
            yield None
            return
        with new_directory(out / VIDEOS) as films:
            yield films
            shutil.rmtree(out / VIDEOS, ignore_errors=True)
