"""Where a plan's time goes: the stages of `Policy.plan`, by the clock."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import torch

from ..policies.base import Policy
from ..policies.core.bins import Bins
from ..policies.core.codec import Affine
from ..policies.core.process.base import Process
from ..policies.core.random import derived
from ..policies.diffusion import DiffusionPolicy
from ..policies.discrete_vla import DiscreteVLAPolicy
from ..spec import KinoiseError, Observation, Plan
from .latency import DelayEstimate

STAGES: tuple[str, ...] = ("encode", "denoise", "decode")
"""In this order; together they are the whole plan."""

Clock = Callable[[], float]


class Sample(NamedTuple):
    """One plan that was measured.

    Args:
        replan: whether it went on from the plan before.
        prefix: actions of that plan that it kept.
        nfe: network evaluations.
        seconds: of each of STAGES, of one `evaluation` at the mean, the `total`, and of `transfer` where there is a device to
            copy to, which is a part of the first and the last stage.
    """

    replan: bool
    prefix: int
    nfe: int
    seconds: dict[str, float]


def samples(
    policy: Policy, obs: Observation, *, plans: int, warmup: int, rate: float, seed: int = 0, clock: Clock = time.perf_counter
) -> Iterator[Sample]:
    """Plans from nothing and, where these differ, replans as the controller asks for them, by turns: a policy with warm starts
    goes on from the plan before, one that was trained with prefixes keeps what is carried out meanwhile.

    Args:
        plans: of each kind, after `warmup` others of each kind, of which nothing is said.
        rate: of the loop, Hz; says how many actions are carried out meanwhile.

    Raises:
        KinoiseError: a plan with NaN, a policy whose stages aren't known, and what planning raises.
    """
    config = policy.config
    pins, kinds = config.simulated_delay > 0, 2 if replans(policy) else 1
    elapsed, prefix = min(config.execute, config.chunk - 1), 0
    delay, previous, made = DelayEstimate(1 / rate), None, set()
    with watching(policy, clock) as watch:
        for number in range(-kinds * warmup, kinds * plans):
            told: dict[str, Any] = {}
            if kinds == 2 and number % 2 == 1:
                if pins and number < 0:  # as many as plans come late; what is measured keeps as many as the last of the warm-up
                    prefix = min(delay.ticks, config.chunk - elapsed)
                told = {"previous": previous, "elapsed": elapsed, "prefix": prefix}
            plan, seconds = watch(lambda told=told, number=number: policy.plan(obs, derived(seed, number + 2 * warmup), **told))
            if not plan.actions.isfinite().all():
                raise KinoiseError("the plan holds NaN or infinity: take another checkpoint")
            previous = plan
            kind = bool(told), told.get("prefix", 0)
            if kind in made:  # the first of its kind allocates and compiles
                delay.add(seconds["total"])
            made.add(kind)
            if number >= 0:
                if policy.device.type == "cuda":
                    seconds["transfer"] = _transfer(obs, plan, policy.device, clock)
                yield Sample(*kind, plan.nfe, seconds)


def replans(policy: Policy) -> bool:
    """Whether the plan before makes a difference to what a plan costs."""
    return policy.config.decode.warm < 1 or policy.config.simulated_delay > 0


Watch = Callable[[Callable[[], Plan]], tuple[Plan, dict[str, float]]]


@contextmanager
def watching(policy: Policy, clock: Clock = time.perf_counter) -> Iterator[Watch]:
    """Yields a function that makes a plan and says what took how long, as in `Sample.seconds`.

    Encoding ends where the network is first asked, denoising where its answer goes back to physical units. There, and nowhere
    between, a device is waited for. A plan that is compiled as a whole asks nobody on its way: there the policy's own `timing`
    tells encoding and denoising apart.

    Raises KinoiseError for a policy whose process and codec aren't known.
    """
    process, codec = _parts(policy)
    laps = dict.fromkeys(STAGES, 0.0)
    stage, since = "encode", 0.0

    def enter(name: str) -> None:
        nonlocal stage, since
        if name == stage:
            return
        _settle(policy.device)
        now = clock()
        laps[stage] += now - since
        stage, since = name, now

    def watch(make: Callable[[], Plan]) -> tuple[Plan, dict[str, float]]:
        nonlocal stage, since
        laps.update(dict.fromkeys(STAGES, 0.0))
        _settle(policy.device)
        stage, since = "encode", clock()
        plan = make()
        enter("")
        total = sum(laps.values())
        if plan.nfe and not laps["denoise"]:
            laps.update({name: plan.timing[name] for name in ("encode", "denoise")})
            laps["decode"] = total - laps["encode"] - laps["denoise"]
        return plan, {**laps, "evaluation": laps["denoise"] / max(1, plan.nfe), "total": total}

    with ExitStack() as stack:
        # A gate may have a plan decoded twice.
        for target, method, name in (
            (policy, "decode", "encode"),
            (process, "predict", "denoise"),
            (codec, "decode", "decode"),
        ):
            stack.enter_context(_announced(target, method, lambda name=name: enter(name)))
        yield watch


@contextmanager
def _announced(target: object, method: str, before: Callable[[], None]) -> Iterator[None]:
    """Has `before` called ahead of this one object's method."""
    whole = getattr(target, method)

    def announced(*args: Any, **told: Any) -> Any:
        before()
        return whole(*args, **told)

    setattr(target, method, announced)
    try:
        yield
    finally:
        delattr(target, method)


def _parts(policy: Policy) -> tuple[Process, Affine | Bins]:
    """What predicts, and what leads back to physical units."""
    if isinstance(policy, DiffusionPolicy):
        return policy.process, policy.codec
    if isinstance(policy, DiscreteVLAPolicy):
        return policy.process, policy.bins
    raise KinoiseError(
        f"the stages of the policy '{policy.config.name}' aren't known: name its process and codec in {__name__}"
    )


def _transfer(obs: Observation, plan: Plan, device: torch.device, clock: Clock) -> float:
    """Seconds that copying an observation to the device and a plan back take on their own."""
    actions = plan.actions.to(device)
    _settle(device)
    begin = clock()
    for value in obs.values.values():
        value.to(device)
    _settle(device)
    actions.cpu()
    return clock() - begin


def _settle(device: torch.device) -> None:
    """Waits for what a device has been told to do."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
