"""Where a plan's time goes, on a clock that only moves where the test has it move."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch
from kinoise.deploy.stages import STAGES, samples, watching
from kinoise.policies import POLICIES
from kinoise.policies.base import Policy
from kinoise.policies.diffusion import DiffusionPolicy
from kinoise.policies.discrete_vla import DiscreteVLAPolicy
from kinoise.policies.example import example
from kinoise.spec import KinoiseError
from small_policies import SPEC, small

ENCODE, EVALUATION, DECODE = 0.125, 0.25, 0.5


class Slow:
    """A clock, and the things that take time by it."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def make(self, target: object, method: str, seconds: float) -> None:
        whole: Callable[..., Any] = getattr(target, method)

        def slow(*args: Any, **told: Any) -> Any:
            self.now += seconds
            return whole(*args, **told)

        setattr(target, method, slow)


def slowed(name: str, **over: object) -> tuple[Policy, Slow]:
    """A policy whose encoder, network and codec each take their time."""
    policy, clock = small(name, **over).eval(), Slow()
    if isinstance(policy, DiffusionPolicy):
        parts = (policy.observe, "tokens"), (policy.network, "forward"), (policy.codec, "decode")
    else:
        assert isinstance(policy, DiscreteVLAPolicy)
        parts = (policy.backbone, "prefix"), (policy.backbone, "forward"), (policy.bins, "expect")
    for (target, method), seconds in zip(parts, (ENCODE, EVALUATION, DECODE), strict=True):
        clock.make(target, method, seconds)
    return policy, clock


@contextmanager
def measured(name: str, **over: object) -> Iterator[tuple[Policy, list]]:
    policy, clock = slowed(name, **over)
    yield policy, list(samples(policy, example(policy), plans=2, warmup=2, rate=20.0, clock=clock))


@pytest.mark.parametrize("name", POLICIES)
def test_every_stage_has_the_time_that_it_took(name: str) -> None:
    with measured(name, decode={"steps": 3}) as (_, found):
        assert [item.replan for item in found] == [False, False]
        for item in found:
            assert item.nfe == 3
            assert item.seconds == {
                "encode": ENCODE,
                "denoise": 3 * EVALUATION,
                "evaluation": EVALUATION,
                "decode": DECODE,
                "total": ENCODE + 3 * EVALUATION + DECODE,
            }


@pytest.mark.parametrize("name", POLICIES)
def test_replans_go_by_turns_with_plans_from_nothing(name: str) -> None:
    with measured(name, decode={"steps": 4, "warm": 0.5}) as (_, found):
        assert [item.replan for item in found] == [False, True, False, True]
        assert [item.nfe for item in found] == [4, 2, 4, 2]
        assert {item.seconds["denoise"] for item in found if item.replan} == {2 * EVALUATION}
        assert {item.prefix for item in found} == {0}


@pytest.mark.parametrize("name", POLICIES)
def test_a_policy_that_was_trained_with_prefixes_keeps_as_many_actions_as_plans_come_late(name: str) -> None:
    policy = small(name, simulated_delay=2, chunk=8).eval()
    asked, whole = [], policy.plan

    def plan(*args: Any, **told: Any) -> Any:
        asked.append({key: told.get(key) for key in ("elapsed", "prefix")})
        return whole(*args, **told)

    policy.plan = plan  # type: ignore[method-assign]
    found = list(samples(policy, example(policy), plans=1, warmup=3, rate=20.0, clock=iter_clock(0.03)))
    assert found[1].seconds["total"] == pytest.approx(0.09)
    assert [item.prefix for item in found] == [0, 2]  # 90 ms at 20 Hz
    assert [item["elapsed"] for item in asked] == [None, policy.config.execute] * 4


def iter_clock(step: float) -> Callable[[], float]:
    """A clock that moves by so much whenever it is looked at."""
    now = iter(range(10**6))
    return lambda: next(now) * step


def test_what_a_gate_has_decoded_twice_is_counted_twice() -> None:
    gated = {"steps": 4, "warm": 0.5, "gate": 0.0}
    policy, clock = slowed("diffusion", decode=gated)
    found = list(samples(policy, example(policy), plans=1, warmup=1, rate=20.0, clock=clock))
    assert found[1].replan
    assert found[1].nfe == 6
    assert [found[1].seconds[stage] for stage in STAGES] == [2 * ENCODE, 6 * EVALUATION, 2 * DECODE]


def test_a_plan_in_one_piece_is_divided_as_the_policy_says() -> None:
    policy = small("diffusion").eval()
    plain, clock = policy.plan(example(policy), torch.Generator().manual_seed(0)), Slow()
    timing = {"encode": ENCODE, "denoise": plain.nfe * EVALUATION, "evaluation": EVALUATION}
    policy.decode = lambda obs, gen, start: replace(plain, timing=timing)  # type: ignore[method-assign]
    whole = ENCODE + plain.nfe * EVALUATION + DECODE
    clock.make(policy, "decode", whole)
    [found] = samples(policy, example(policy), plans=1, warmup=1, rate=20.0, clock=clock)
    assert found.seconds == {**timing, "decode": DECODE, "total": whole}


@pytest.mark.parametrize("name", POLICIES)
def test_watching_changes_no_plan_and_leaves_nothing_behind(name: str) -> None:
    policy = small(name).eval()
    obs, before = example(policy, 2), {key: set(vars(item)) for key, item in (("policy", policy), ("process", policy.process))}
    plain = policy.plan(obs, torch.Generator().manual_seed(0))
    with watching(policy) as watch:
        plan, seconds = watch(lambda: policy.plan(obs, torch.Generator().manual_seed(0)))
    assert torch.equal(plan.actions, plain.actions)
    assert seconds["total"] == pytest.approx(sum(seconds[stage] for stage in STAGES))
    assert min(seconds.values()) > 0
    assert {key: set(vars(item)) for key, item in (("policy", policy), ("process", policy.process))} == before


def test_plans_of_nan_are_no_figures() -> None:
    policy = small("diffusion").eval()
    with torch.no_grad():
        for item in policy.parameters():
            item.fill_(torch.nan)
    with pytest.raises(KinoiseError, match="NaN or infinity"):
        next(samples(policy, example(policy), plans=1, warmup=1, rate=20.0))


@pytest.mark.parametrize("rows", [1, 3])
def test_the_example_fits_the_spec(rows: int) -> None:
    policy = small("diffusion", observations=["state", "image.front"], history=2, encoder={"shared_cameras": True})
    obs = example(policy, rows)
    assert obs.batch == rows
    for key, feature in SPEC.observations.items():
        assert obs.values[key].shape == (rows, 2, *feature.shape)
        assert obs.values[key].numpy().dtype == feature.dtype
    assert obs.values["state"].unique().tolist() == pytest.approx([0.1])
    assert obs.texts == policy.texts[:1]
