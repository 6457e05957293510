"""The mixture of experts: however it is computed, it is the weighted sum of its experts."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from kinoise.policies.core.network import Denoiser, NetworkConfig
from kinoise.policies.core.network.moe import Choice, FeedForward, choose, dispatch, imbalance
from torch import Tensor

WIDTH, HIDDEN = 6, 10


def gen(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def feedforward(experts: int, activation: str = "swiglu") -> FeedForward:
    module = FeedForward(WIDTH, HIDDEN, activation, experts)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=gen(1)))
    return module


def expert(module: FeedForward, index: int, x: Tensor) -> Tensor:
    """The textbook's feed-forward with the weights of one expert."""
    parts = [x @ part.T for part in module.w_in_EPHD[index]]
    hidden = F.silu(parts[0]) * parts[1] if len(parts) == 2 else F.gelu(parts[0])
    return hidden @ module.w_out_EDH[index].T


def mixture(module: FeedForward, choice: Choice, x: Tensor) -> Tensor:
    """Row by row, expert by expert, for the only layer of `choice`."""
    rows = [
        sum(weight * expert(module, int(index), row) for index, weight in zip(indices, weights, strict=True))
        for row, indices, weights in zip(x, choice.experts[:, 0], choice.weights[:, 0], strict=True)
    ]
    return torch.stack(rows)


@pytest.mark.parametrize("activation", ["swiglu", "gelu"])
def test_one_expert_is_a_plain_feed_forward(activation: str):
    module, x = feedforward(1, activation), torch.randn(4, 3, WIDTH, generator=gen())
    (grouped,) = dispatch(choose(torch.ones(4, 1, 1), 1, None), experts=1)
    for how in (None, grouped, module.shares([0], [1.0])):
        torch.testing.assert_close(module(x, how), expert(module, 0, x))


@given(
    rows=st.integers(1, 9),
    experts=st.integers(1, 5),
    top_k=st.integers(1, 5),
    tokens=st.integers(1, 3),
    seed=st.integers(0, 99),
    activation=st.sampled_from(["swiglu", "gelu"]),
)
@settings(max_examples=40)
def test_grouping_by_expert_changes_neither_values_nor_gradients(rows, experts, top_k, tokens, seed, activation):
    module, exact = feedforward(experts, activation).double(), {"dtype": torch.float64, "requires_grad": True}
    x = torch.randn(rows, tokens, WIDTH, generator=gen(seed), **exact)
    logits = torch.randn(rows, 1, experts, generator=gen(seed), **exact)
    learned = [x, logits, *module.parameters()]
    outcomes = []
    for grouped in (True, False):
        choice = choose(logits.softmax(-1), min(top_k, experts), gen(seed))
        y = module(x, dispatch(choice, experts)[0]) if grouped else mixture(module, choice, x)
        outcomes.append([y, *torch.autograd.grad(y.sin().sum(), learned)])
    for fast, slow in zip(*outcomes, strict=True):
        torch.testing.assert_close(fast, slow)


def test_tokens_can_be_rows():
    module, x = feedforward(3), torch.randn(2, 4, WIDTH, generator=gen())
    choice = choose(torch.randn(8, 1, 3, generator=gen()).softmax(-1), 2, None)
    expected = mixture(module, choice, x.flatten(0, 1)).view_as(x)
    torch.testing.assert_close(module(x, dispatch(choice, 3)[0]), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("activation", ["swiglu", "gelu"])
def test_experts_shared_by_all_rows_are_their_weighted_sum(activation: str):
    module, x = feedforward(4, activation), torch.randn(2, 3, WIDTH, generator=gen())
    expected = 0.7 * expert(module, 3, x) + 0.3 * expert(module, 1, x)
    torch.testing.assert_close(module(x, module.shares([3, 1], [0.7, 0.3])), expected)


def test_choosing_all_experts_is_the_dense_mixture():
    module, x = feedforward(3), torch.randn(4, 2, WIDTH, generator=gen())
    probabilities = torch.randn(4, 1, 3, generator=gen()).softmax(-1)
    dense = sum(probabilities[:, :, index, None] * expert(module, index, x) for index in range(3))
    (grouped,) = dispatch(choose(probabilities, 3, None), 3)
    torch.testing.assert_close(module(x, grouped), dense, atol=1e-5, rtol=1e-5)


def test_each_layer_is_dispatched_by_its_own_choice():
    choice = choose(torch.randn(7, 3, 4, generator=gen()).softmax(-1), 2, None)
    for layer, grouped in enumerate(dispatch(choice, 4)):
        lined_up = torch.arange(4).repeat_interleave(torch.tensor(grouped.sizes))
        assert lined_up[grouped.back].equal(choice.experts[:, layer])
        assert grouped.source[grouped.back].equal(torch.arange(7)[:, None].expand(-1, 2))


def test_experts_are_drawn_without_replacement_in_proportion():
    probabilities = torch.tensor([0.5, 0.3, 0.15, 0.05])
    experts, weights = choose(probabilities.expand(40_000, 1, 4), 2, gen())
    first, second = experts[:, 0].unbind(-1)
    assert (first != second).all()
    torch.testing.assert_close(weights.sum(-1), torch.ones(40_000, 1))
    expected = torch.tensor(
        [[p * q / (1 - p) if i != j else 0.0 for j, q in enumerate(probabilities)] for i, p in enumerate(probabilities)]
    )
    drawn = torch.bincount(4 * first + second, minlength=16).view(4, 4) / 40_000
    assert (drawn - expected).abs().max() < 0.01


def test_a_row_s_draw_depends_on_its_own_generator_alone():
    probabilities = torch.full((3, 2, 8), 1 / 8)
    together = choose(probabilities, 2, [gen(5), gen(6), gen(7)]).experts
    assert choose(probabilities[1:2], 2, [gen(6)]).experts.equal(together[1:2])
    assert not together[0].equal(together[1])


def test_without_a_generator_the_likeliest_are_taken():
    choice = choose(torch.tensor([[[0.1, 0.6, 0.3]]]), 2, None)
    assert choice.experts.tolist() == [[[1, 2]]]
    torch.testing.assert_close(choice.weights, torch.tensor([[[2 / 3, 1 / 3]]]))


def one_hot(indices: list[int], experts: int) -> tuple[Tensor, Choice]:
    probabilities = F.one_hot(torch.tensor(indices), experts)[:, None].float()
    return probabilities, choose(probabilities, 1, None)


def test_imbalance_is_one_when_even_and_the_number_of_experts_when_collapsed():
    torch.testing.assert_close(imbalance(*one_hot([0, 1, 2, 3], 4)), torch.tensor(1.0))
    torch.testing.assert_close(imbalance(*one_hot([2, 2, 2, 2], 4)), torch.tensor(4.0))
    assert 1 < imbalance(*one_hot([0, 0, 1, 2], 4)) < 4


def test_the_gradient_of_imbalance_takes_from_who_has_most():
    logits = torch.tensor([[[1.0, 0.0, -1.0]]]).expand(5, 1, 3).clone().requires_grad_()
    probabilities = logits.softmax(-1)
    imbalance(probabilities, choose(probabilities, 1, None)).backward()
    assert (logits.grad[..., 0] > 0).all()
    assert (logits.grad[..., 1:] < 0).all()


def denoiser(**options) -> Denoiser:
    return Denoiser(NetworkConfig(width=8, depth=3, heads=2, experts=4, top_k=2, **options), 2, 4)


@pytest.mark.parametrize(("routing", "weighted"), [("noise", True), ("token", True), ("dense", False)])
def test_a_network_s_balance_is_weighted_and_for_training_alone(routing: str, weighted: bool):
    x, noise, context = torch.randn(16, 4, 2), torch.rand(16), torch.randn(16, 1, 8)
    balances = [denoiser(routing=routing, balance=weight)(x, noise, context, gen()).balance for weight in (0.5, 0.0)]
    if weighted:
        assert 0.4 < balances[0].item() < 0.5 * 4
        assert balances[1].item() == 0
    else:
        assert balances == [None, None]
    assert denoiser(routing=routing).eval()(x, noise, context).balance is None


def test_expert_use_is_a_distribution_for_each_level_and_layer():
    noise = torch.linspace(-1, 1, 7)
    use = denoiser(noise_embedding="linear").expert_use(noise)
    assert use.shape == (7, 3, 4)
    assert (use >= 0).all()
    torch.testing.assert_close(use.sum(-1), torch.ones(7, 3))
    torch.testing.assert_close(denoiser(routing="dense").expert_use(noise).sum(-1), torch.ones(7, 3))
    assert denoiser(routing="token").expert_use(noise) is None
    assert Denoiser(NetworkConfig(width=8, heads=2), 2, 4).expert_use(noise) is None


def test_training_draws_experts_that_evaluation_would_not():
    net = denoiser()
    torch.nn.init.normal_(net.head.weight)
    x, noise, context = torch.randn(16, 4, 2), torch.rand(16), torch.randn(16, 1, 8)
    torch.nn.init.normal_(net.modulations.adaptive.weight)
    first, again, other = (net(x, noise, context, gen(seed)).value for seed in (0, 0, 1))
    assert first.equal(again)
    assert not torch.allclose(first, other)
