"""Laws of the decoders in rounds: who is committed when, what stays, and what it costs."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from kinoise.policies.core.process.masked import SCHEDULES, Masked, MaskedConfig
from kinoise.policies.core.sampler import TOKEN_SAMPLERS, Reveal, autoregressive, bridge, reveal
from kinoise.policies.core.sampler.reveal import CONFIDENCES, confidence
from kinoise.spec import KinoiseError

SIZES = (6, 6, 6)
SHAPE = (4, 5, 3)
TOKENS = 15
PROCESS = Masked(MaskedConfig(), SIZES)
HOWS = {
    "greedy": Reveal(),
    "warm": Reveal(temperature=1.0),
    "ranks": Reveal(temperature=1.0, noise="ranks"),
    "random": Reveal(confidence="random", temperature=0.5),
    "doubting": Reveal(temperature=1.0, threshold=0.9, residual=0.05),
    "adaptive": Reveal(temperature=1.0, adaptive=0.6),
    "all": Reveal(confidence="random", temperature=1.0, threshold=0.5, residual=0.1, adaptive=0.5),
}
hows = pytest.mark.parametrize("how", HOWS.values(), ids=HOWS.keys())


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def prior(rows: int = SHAPE[0]) -> torch.Tensor:
    return PROCESS.prior((rows, *SHAPE[1:]), generator())


def beliefs(rows: int = SHAPE[0], scale: float = 2.0, seed: int = 0) -> torch.Tensor:
    return (scale * torch.randn(rows, *SHAPE[1:], 6, generator=generator(seed))).log_softmax(-1)


class Recorded:
    """A belief that depends on all of its row, or is `fixed`; remembers what it was shown."""

    def __init__(self, fixed: torch.Tensor | None = None) -> None:
        self.fixed, self.seen = fixed, []
        self.table = torch.randn(TOKENS, 7, TOKENS * 6, generator=generator(5)) / 2

    def __call__(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        self.seen.append(x.clone())
        if self.fixed is not None:
            return self.fixed
        places = torch.arange(TOKENS)
        return self.table[places, x.flatten(1)].sum(1).view(*x.shape, 6).log_softmax(-1)

    @property
    def left(self) -> list[list[int]]:
        return [(x == PROCESS.mask).flatten(1).sum(-1).tolist() for x in self.seen]


@pytest.mark.parametrize("steps", [1, 3, 40])
def test_all_decoders_agree_on_a_certain_belief_that_looks_at_nothing(steps):
    tokens = torch.randint(6, SHAPE, generator=generator())
    certain = (torch.nn.functional.one_hot(tokens, 6) * 200.0 - 100).log_softmax(-1)
    for sampler in TOKEN_SAMPLERS.values():
        for how in HOWS.values():
            end = sampler(PROCESS, lambda x, t: certain, prior(), PROCESS.grid(steps), generator(), how)
            assert torch.equal(end, tokens)


@pytest.mark.parametrize("steps", [1, 4, 12])
def test_greedy_rounds_are_the_process_s_bridge_without_noise(steps):
    ours, theirs = Recorded(), Recorded()
    end = reveal(PROCESS, ours, prior(), PROCESS.grid(steps), generator(), Reveal())
    assert torch.equal(end, bridge(PROCESS, theirs, prior(), PROCESS.grid(steps), generator()))
    repeated = [torch.equal(a, b) for a, b in pairwise(theirs.seen)]
    for mine, its in zip(
        ours.seen, [x for x, again in zip(theirs.seen, [*repeated, False], strict=True) if not again], strict=True
    ):
        assert torch.equal(mine, its)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("steps", [1, 2, 6, 15, 40])
def test_after_each_round_the_schedule_s_number_is_left(schedule, steps):
    process, denoise = Masked(MaskedConfig(schedule), SIZES), Recorded()
    end = reveal(process, denoise, prior(), process.grid(steps), generator(), Reveal(temperature=1.0))
    due = [process.count(s, TOKENS) for s in process.grid(steps)]
    assert [item[0] for item in denoise.left] == sorted(set(due) - {0}, reverse=True), "a round that commits none costs none"
    assert all(len(set(item)) == 1 for item in denoise.left)
    assert (end < 6).all()


@pytest.mark.parametrize("how", [HOWS[name] for name in ("greedy", "warm", "ranks", "random", "adaptive")])
def test_what_is_committed_stays(how):
    denoise = Recorded()
    end = reveal(PROCESS, denoise, prior(), PROCESS.grid(8), generator(), how)
    for before, after in zip(denoise.seen, [*denoise.seen[1:], end], strict=True):
        there = before != PROCESS.mask
        assert torch.equal(after[there], before[there])


def doubtful(x: torch.Tensor) -> torch.Tensor:
    """Sure of token 1 at first; once it is there, sure of token 2 instead."""
    favourite = torch.where((x[..., :1, :1] == 1), 2, 1).expand(x.shape)
    return (torch.nn.functional.one_hot(favourite, 6) * 4.0).log_softmax(-1)


@pytest.mark.parametrize("how", [Reveal(threshold=0.9), Reveal(residual=0.3)], ids=["threshold", "residual"])
def test_a_doubted_token_is_masked_again_and_nothing_stays_masked(how):
    seen = []

    def denoise(x, t):
        seen.append(x)
        return doubtful(x)

    end = reveal(PROCESS, denoise, prior(1), PROCESS.grid(6), generator(), how)
    again = [(a != PROCESS.mask) & (b == PROCESS.mask) for a, b in pairwise(seen)]
    assert torch.stack(again).any()
    assert (end < 6).all()
    calm = reveal(PROCESS, denoise, prior(1), PROCESS.grid(6), generator(), Reveal(threshold=1e-6, residual=1.0))
    assert (calm < 6).all()


def test_a_token_masked_again_waits_for_the_next_round():
    """The belief of its round has seen it."""
    seen = []

    def denoise(x, t):
        seen.append(x)
        return doubtful(x)

    reveal(PROCESS, denoise, prior(1), PROCESS.grid(6), generator(), Reveal(residual=0.3))
    for before, after in pairwise(seen):
        kept = (before != PROCESS.mask) & (after != PROCESS.mask)
        assert torch.equal(before[kept], after[kept]), "no token is replaced without having been masked"


@hows
@pytest.mark.parametrize("sampler", TOKEN_SAMPLERS)
def test_what_is_there_from_the_beginning_is_never_touched(sampler, how):
    x = prior()
    pinned = torch.rand(SHAPE, generator=generator(3)) < 0.4
    x[pinned] = torch.randint(6, SHAPE, generator=generator(4))[pinned]
    denoise = Recorded()
    end = TOKEN_SAMPLERS[sampler](PROCESS, denoise, x.clone(), PROCESS.grid(6), generator(), how)
    for item in [*denoise.seen, end]:
        assert torch.equal(item[pinned], x[pinned])
    assert (end < 6).all()


@pytest.mark.parametrize("how", [Reveal(), HOWS["doubting"], HOWS["adaptive"]], ids=["greedy", "doubting", "adaptive"])
def test_a_pinned_prefix_saves_rounds_and_a_whole_chunk_all(how):
    calls = []
    for steps in range(SHAPE[1] + 1):
        x, denoise = prior(), Recorded(beliefs(scale=0.1))
        x[:, :steps] = 1
        reveal(PROCESS, denoise, x, PROCESS.grid(12), generator(), how)
        calls.append(len(denoise.seen))
    assert calls == sorted(calls, reverse=True)
    assert calls[0] > calls[2]
    assert calls[-1] == 0


def test_a_sure_row_is_committed_whole_and_a_sure_batch_in_one_evaluation():
    tokens = torch.randint(6, SHAPE, generator=generator())
    sure = (torch.nn.functional.one_hot(tokens, 6) * 20.0).log_softmax(-1)
    for kind in CONFIDENCES:
        denoise = Recorded(sure)
        end = reveal(PROCESS, denoise, prior(), PROCESS.grid(12), generator(), Reveal(confidence=kind, adaptive=0.9))
        assert len(denoise.seen) == 1
        assert torch.equal(end, tokens)
        assert torch.equal(reveal(PROCESS, denoise, prior(), PROCESS.grid(12), generator(), Reveal(confidence=kind)), end)
    mixed = torch.cat([sure[:1], beliefs(3, scale=0.1)])
    denoise = Recorded(mixed)
    reveal(PROCESS, denoise, prior(), PROCESS.grid(12), generator(), Reveal(adaptive=0.9))
    assert [item[0] for item in denoise.left[:2]] == [TOKENS, 0]
    assert len(denoise.seen) > 5, "the others need their rounds"


@hows
@pytest.mark.parametrize("sampler", TOKEN_SAMPLERS)
def test_rows_with_generators_of_their_own_do_not_meet(sampler, how):
    """Neither in their tokens nor in what they leave of their generators."""
    mixed = Recorded()

    def chain(rows: list[int]):
        gens = [generator(row) for row in rows]
        # Row 0 is sure, so that an adaptive decoder is done with it long before the others.
        scale = torch.tensor([30.0 if row == 0 else 1.0 for row in rows])[:, None, None, None]
        x = TOKEN_SAMPLERS[sampler](
            PROCESS, lambda x, t: (mixed(x, t) * scale).log_softmax(-1), prior(len(rows)), PROCESS.grid(6), gens, how
        )
        return x, torch.stack([torch.rand(3, generator=gen) for gen in gens])

    together, after = chain([0, 1, 2])
    for row in range(3):
        alone, rest = chain([row])
        assert torch.equal(alone[0], together[row])
        assert torch.equal(rest[0], after[row])


@pytest.mark.parametrize("name", ["warm", "ranks", "random", "doubting", "all"])
def test_the_same_seed_gives_the_same_tokens_and_another_others(name):
    def chain(seed):
        return reveal(PROCESS, Recorded(), prior(), PROCESS.grid(8), generator(seed), HOWS[name])

    assert torch.equal(chain(0), chain(0))
    assert not torch.equal(chain(0), chain(1))


def test_one_after_another_takes_an_evaluation_a_token_in_order():
    denoise = Recorded()
    end = autoregressive(PROCESS, denoise, prior(), PROCESS.grid(3), generator())
    places = torch.arange(TOKENS)
    for place, x in enumerate([*denoise.seen, end]):
        assert torch.equal((x == PROCESS.mask).flatten(1), (places >= place).expand(4, -1))
    assert len(denoise.seen) == TOKENS
    pinned, denoise = prior(), Recorded()
    pinned[:, :2] = 3
    autoregressive(PROCESS, denoise, pinned, PROCESS.grid(3), generator())
    assert len(denoise.seen) == TOKENS - 6
    assert (pinned[:, 2:] == PROCESS.mask).all(), "the caller's tokens are the caller's"


def test_one_after_another_what_a_row_draws_does_not_depend_on_the_places_that_others_know():
    x, how = prior().masked_fill(torch.rand(SHAPE, generator=generator(2)) < 0.6, 3), Reveal(temperature=1.0)
    seeds = range(SHAPE[0])
    together = autoregressive(PROCESS, Recorded(), x, PROCESS.grid(3), [generator(seed) for seed in seeds], how)
    for row in seeds:
        alone = autoregressive(PROCESS, Recorded(), x[row : row + 1], PROCESS.grid(3), [generator(row)], how)
        assert torch.equal(alone[0], together[row])


def test_confidences_are_what_they_say():
    p = torch.tensor([[[[0.5, 0.2, 0.3], [0.0, 0.6, 0.4]]]])
    for kind, expected in (("max", [0.5, 0.6]), ("gap", [0.2, 0.2]), ("mass", [0.5, 0.6])):
        found = confidence(p.clamp(min=1e-30).log(), kind, generator(), (3, 3))[0, 0]
        torch.testing.assert_close(found, torch.tensor(expected))
    drawn = confidence(p.log(), "random", generator(), (3, 3))
    assert torch.equal(drawn, confidence(p.flip(-1).log(), "random", generator(), (3, 3))), "the belief plays no part"


def test_mass_is_that_of_neighbouring_bins_as_many_as_the_vocabulary_has_for_it():
    """Of 100 bins two to both sides; of a gripper's two tokens in the same tensor none: they are no neighbours."""
    p = torch.full((2, 100), 1e-12)
    p[0, [10, 12, 13, 15, 40]] = torch.tensor([0.1, 0.2, 0.2, 0.1, 0.4])
    p[1, :2] = torch.tensor([0.45, 0.55])
    found = confidence(p.log()[None, None], "mass", generator(), (100, 2))[0, 0]
    torch.testing.assert_close(found, torch.tensor([0.5, 0.55]))
    p[0] = 1e-12
    p[0, [0, 2, 98, 99]] = torch.tensor([0.2, 0.1, 0.3, 0.4])
    assert confidence(p.log()[None, None], "mass", generator(), (100, 2))[0, 0, 0] == pytest.approx(0.7), "at the ends too"


@pytest.mark.parametrize("kind", CONFIDENCES)
def test_where_nothing_can_vary_everything_is_sure(kind):
    process = Masked(MaskedConfig(), (1, 1))
    x = process.prior((2, 3, 2), generator())
    how = Reveal(confidence=kind, adaptive=0.5)
    assert not reveal(process, lambda x, t: torch.zeros(2, 3, 2, 1), x, process.grid(4), generator(), how).any()


@pytest.mark.parametrize(
    "wrong",
    [
        {"confidence": "min"},
        {"noise": "all"},
        {"temperature": -1.0},
        {"temperature": math.inf},
        {"temperature": math.nan},
        {"threshold": 1.5},
        {"residual": -0.1},
        {"adaptive": math.nan},
    ],
)
def test_wrong_settings_are_refused(wrong):
    with pytest.raises(KinoiseError, match=f"decode.{next(iter(wrong))}"):
        Reveal(**wrong)
