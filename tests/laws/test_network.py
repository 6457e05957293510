"""The denoiser: what a level computed once must not change, what attends to what, and how a fresh network behaves."""

from itertools import product

import pytest
import torch
import torch.nn.functional as F
from kinoise.policies.core.network import Denoiser, Given, Memory, NetworkConfig
from kinoise.policies.core.network.attention import Attention
from kinoise.policies.core.network.embed import unit
from kinoise.spec import KinoiseError
from torch import Tensor, nn

WIDTH, CHUNK, ACTION, CONTEXT = 16, 5, 3, 2
SMALL = {"width": WIDTH, "depth": 2, "heads": 2, "ff": 2.0}
MODE = {"noise_token": True, "noise_attention": True, "adaptive_norm": False, "noise_embedding": "linear", "causal": True}
NOISE = [
    dict(zip(("noise_token", "noise_attention", "adaptive_norm"), on, strict=True)) for on in product((True, False), repeat=3)
]
NOISE = [entries for entries in NOISE if any(entries.values())]
EXPERTS = {
    "plain": {},
    "mixture": {"experts": 4, "top_k": 2, "moe_residual": "normalised"},
    "one of three": {"experts": 3, "top_k": 1},
    "dense": {"experts": 3, "routing": "dense"},
    "by token": {"experts": 4, "top_k": 2, "routing": "token"},
    "gelu": {"activation": "gelu", "experts": 2, "top_k": 2},
}


def network(**options) -> Denoiser:
    """A network in eval mode whose parameters are all random: nothing hides behind a zero."""
    net = Denoiser(NetworkConfig(**{**SMALL, **options}), ACTION, CHUNK)
    gen = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=gen) / parameter.shape[-1] ** 0.5)
    return net.eval()


def inputs(batch: int = 3) -> tuple[Tensor, Tensor]:
    gen = torch.Generator().manual_seed(1)
    return torch.randn(batch, CHUNK, ACTION, generator=gen), torch.randn(batch, CONTEXT, WIDTH, generator=gen)


@pytest.mark.parametrize("experts", EXPERTS.values(), ids=EXPERTS.keys())
@pytest.mark.parametrize("context", ["prefix", "cross"])
@pytest.mark.parametrize("causal", [False, True])
def test_a_level_is_a_forward_pass_at_its_noise(context: str, causal: bool, experts: dict):
    (x, ctx), noise = inputs(), torch.tensor(0.3, dtype=torch.float64)
    for entries, embedding in product(NOISE, ("linear", "sinusoidal")):
        net = network(context=context, causal=causal, noise_embedding=embedding, **entries, **experts)
        level = net.level(noise)
        plain = net(x, noise.float().expand(len(x)), ctx)
        torch.testing.assert_close(net(x, level, ctx).value, plain.value, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(net(x, noise, ctx).value, plain.value, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(net(x[:1], level, ctx[:1]).value, plain.value[:1], atol=1e-5, rtol=1e-5)
        assert plain.value.abs().mean() > 0.01


@pytest.mark.parametrize("experts", EXPERTS.values(), ids=EXPERTS.keys())
def test_rows_do_not_see_each_other(experts: dict):
    net, (x, ctx), noise = network(**experts), inputs(), torch.tensor([0.1, 0.5, 0.9])
    together = net(x, noise, ctx).value
    alone = torch.cat([net(x[i : i + 1], noise[i : i + 1], ctx[i : i + 1]).value for i in range(len(x))])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("context", ["prefix", "cross"])
@pytest.mark.parametrize("causal", [True, False])
def test_only_a_causal_network_is_blind_to_later_actions(causal: bool, context: str):
    net, (x, ctx), later = network(context=context, causal=causal), inputs(), 3
    level, changed = net.level(torch.tensor(0.5)), x.clone()
    changed[:, later] += 1
    moved = (net(x, level, ctx).value - net(changed, level, ctx).value).abs().amax((0, 2)) > 1e-4
    assert moved.tolist() == [not causal] * later + [True] * (CHUNK - later)


@pytest.mark.parametrize("context", ["prefix", "cross"])
def test_context_tokens_are_a_set(context: str):
    net, (x, ctx) = network(context=context, noise_token=True), inputs()
    level = net.level(torch.tensor(0.5))
    torch.testing.assert_close(net(x, level, ctx.flip(1)).value, net(x, level, ctx).value, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(net(x, level, ctx + 1).value, net(x, level, ctx).value, atol=1e-3)


@pytest.mark.parametrize("entries", NOISE)
@pytest.mark.parametrize("context", ["prefix", "cross"])
def test_every_way_in_carries_the_noise_level(context: str, entries: dict):
    net, (x, ctx) = network(context=context, **entries), inputs()
    low, high = (net(x, net.level(torch.tensor(noise)), ctx).value for noise in (0.2, 0.8))
    assert (low - high).abs().mean() > 1e-3


@pytest.mark.parametrize("causal", [True, False])
def test_the_last_block_leaves_out_only_what_nothing_reads(causal: bool):
    net, (x, ctx) = network(**MODE | {"causal": causal}), inputs()
    level = net.level(torch.tensor(0.5))
    tokens = torch.cat([level.token.expand(len(x), -1, -1), ctx, net.actions(x) + net.position], 1)
    for index, block in enumerate(net.blocks):
        tokens, _ = block(tokens, None, level.branches[2 * index : 2 * index + 2], None, None)
    whole = net.head(level.branches[-1].enter(tokens))[:, -CHUNK:]
    torch.testing.assert_close(net(x, level, ctx).value, whole, atol=1e-5, rtol=1e-5)


def test_unit_is_the_rms_norm():
    x, weight, shift = torch.randn(4, 3, WIDTH), torch.randn(WIDTH), torch.randn(WIDTH)
    normed = F.rms_norm(x, (WIDTH,), weight, eps=1e-12)
    torch.testing.assert_close(unit(x, weight * WIDTH**0.5), normed)
    torch.testing.assert_close(unit(x, weight * WIDTH**0.5, shift), normed + shift)
    assert unit(torch.zeros(1, WIDTH), weight).isfinite().all()


@pytest.mark.parametrize("qk_norm", [True, False])
@pytest.mark.parametrize("causal", [True, False])
def test_attention_is_the_textbook_s(causal: bool, qk_norm: bool):
    attention = Attention(NetworkConfig(**SMALL, causal=causal, qk_norm=qk_norm), gain=1.0)
    x = torch.randn(2, 6, WIDTH)
    q, k, v = (part.unflatten(-1, (2, -1)).transpose(1, 2) for part in attention.into(x).chunk(3, -1))
    if attention.qk_norm is not None:
        nn.init.uniform_(attention.qk_norm, 0.5, 2.0)
        q, k = (F.rms_norm(part, part.shape[-1:], attention.qk_norm, eps=1e-12) for part in (q, k))
    scores = q @ k.mT / q.shape[-1] ** 0.5
    if causal:
        scores = scores.masked_fill(torch.ones(6, 6).triu(1).bool(), -torch.inf)
    expected = attention.out((scores.softmax(-1) @ v).transpose(1, 2).flatten(2))
    torch.testing.assert_close(attention(x), expected)


@pytest.mark.parametrize("residual", ["input", "normalised"])
@pytest.mark.parametrize("context", ["prefix", "cross"])
def test_a_block_is_its_branches_scaled_shifted_and_gated(context: str, residual: str):
    net, (_, ctx) = network(context=context, moe_residual=residual, noise_attention=True), inputs()
    block, branches = net.blocks[0], net.level(torch.tensor(0.5)).branches[: net.config.branches]
    x = expected = torch.randn(3, 6, WIDTH)
    offered = block.cross.offer(ctx) if block.cross else None
    layers = [block.attention, *([lambda h: block.cross(h, offered)] if block.cross else []), block.feedforward]
    for layer, (scale, shift, gate) in zip(layers, branches, strict=True):
        h = F.rms_norm(expected, (WIDTH,), eps=1e-12) * (scale / WIDTH**0.5) + shift
        base = h if layer is block.feedforward and residual == "normalised" else expected
        expected = base + gate * layer(h)
    torch.testing.assert_close(block(x, offered, branches, None, None)[0], expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("qk_norm", [True, False])
@pytest.mark.parametrize("noise_token", [True, False])
def test_what_a_context_offers_is_the_same_in_every_evaluation(noise_token: bool, qk_norm: bool):
    net, (x, ctx) = network(context="cross", noise_token=noise_token, qk_norm=qk_norm), inputs()
    memory, projected = net.remember(ctx), []
    assert isinstance(memory, Memory)
    levels = [(torch.tensor(noise), net.level(torch.tensor(noise))) for noise in (0.9, 0.3)]
    for block in net.blocks:
        block.cross.memory.register_forward_hook(lambda *_: projected.append(1))
    for noise, level in levels:
        before = len(projected)
        kept = net(x, level, memory).value
        assert len(projected) == before
        torch.testing.assert_close(kept, net(x, noise, ctx).value, atol=1e-5, rtol=0)
        # The memory is [noise token, context], its keys and values those of the whole.
        seen = torch.cat([level.token.expand(len(x), -1, -1), ctx], 1) if noise_token else ctx
        whole = net.blocks[0].cross.offer(unit(seen, net.memory_norm * WIDTH**0.5))
        parts = level.offered[0].before(memory.layers[0]) if noise_token else memory.layers[0]
        for mine, theirs in zip(parts, whole, strict=True):
            torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=0)


@pytest.mark.parametrize("experts", EXPERTS.values(), ids=EXPERTS.keys())
@pytest.mark.parametrize("context", ["prefix", "cross"])
def test_every_parameter_learns(context: str, experts: dict):
    net, (x, ctx), gen = network(context=context, noise_token=True, **experts).train(), inputs(64), torch.Generator()
    value, balance = net(x, torch.rand(64), ctx, gen)
    (value.square().mean() + (0 if balance is None else balance)).backward()
    idle = [name for name, parameter in net.named_parameters() if parameter.grad is None or not parameter.grad.any()]
    assert not idle


def test_a_fresh_network_returns_zero():
    x, ctx = inputs()
    assert not Denoiser(NetworkConfig(**SMALL), ACTION, CHUNK)(x, torch.rand(3), ctx).value.any()


@pytest.mark.parametrize("context", ["prefix", "cross"])
def test_adaptive_norm_starts_without_effect(context: str):
    plain = Denoiser(NetworkConfig(**SMALL, context=context, noise_token=True, adaptive_norm=False), ACTION, CHUNK)
    adaptive = Denoiser(NetworkConfig(**SMALL, context=context, noise_token=True), ACTION, CHUNK)
    nn.init.normal_(plain.head.weight)
    missing, unused = adaptive.load_state_dict(plain.state_dict(), strict=False)
    assert all(name.startswith("modulations.") for name in [*missing, *unused])
    (x, ctx), noise = inputs(), torch.rand(3)
    torch.testing.assert_close(adaptive(x, noise, ctx).value, plain(x, noise, ctx).value, atol=1e-5, rtol=1e-5)


def test_dropout_is_drawn_from_the_given_generator_in_training_alone():
    net, (x, ctx), noise = network(dropout=0.5), inputs(), torch.rand(3)

    def draw(seed: int) -> Tensor:
        return net(x, noise, ctx, torch.Generator().manual_seed(seed)).value

    assert draw(0).equal(draw(1))
    net.train()
    state = torch.get_rng_state()
    assert draw(0).equal(draw(0))
    assert not draw(0).equal(draw(1))
    assert torch.get_rng_state().equal(state)
    with pytest.raises(KinoiseError, match="gen="):
        net(x, noise, ctx)


def test_a_network_computes_in_its_own_precision_and_answers_in_its_input_s():
    net, (x, ctx) = network(**MODE, experts=4, top_k=2), inputs()
    exact = net(x, net.level(torch.tensor(0.5)), ctx).value
    half = net.bfloat16()
    rough = half(x, half.level(torch.tensor(0.5)), ctx.bfloat16()).value
    assert rough.dtype == torch.float32
    assert (rough - exact).abs().max() < 0.1 * exact.abs().max()


@pytest.mark.parametrize(
    "options",
    [
        {"context": "suffix"},
        {"routing": "sample"},
        {"activation": "relu"},
        {"noise_embedding": "fourier"},
        {"moe_residual": "none"},
        {"width": 20, "heads": 4},
        {"depth": 0},
        {"ff": 0.0},
        {"dropout": 1.0},
        {"experts": 2, "top_k": 3},
        {"top_k": 0},
        {"adaptive_norm": False},
    ],
)
def test_settings_that_make_no_network_are_refused(options: dict):
    with pytest.raises(KinoiseError, match="network"):
        Denoiser(NetworkConfig(**options), ACTION, CHUNK)


@pytest.mark.parametrize("experts", ["plain", "mixture", "by token"])
@pytest.mark.parametrize("context", ["prefix", "cross"])
def test_given_actions_have_a_noise_level_of_their_own(context: str, experts: str):
    (x, ctx), noise, clean = inputs(), torch.tensor(0.3), torch.tensor(0.0)
    known = torch.arange(CHUNK)[None] < 2
    for entries in NOISE:
        net = network(context=context, **entries, **EXPERTS[experts])
        plain = net(x, noise.expand(3), ctx).value
        same = net(x, noise.expand(3), ctx, given=Given(known, noise)).value
        torch.testing.assert_close(same, plain, atol=1e-5, rtol=1e-5)
        other = net(x, noise.expand(3), ctx, given=Given(known, clean)).value
        at_once = net(x, net.level(noise, Given(known, clean)), ctx).value
        torch.testing.assert_close(at_once, other, atol=1e-5, rtol=1e-5)
        if entries["noise_attention"] or entries["adaptive_norm"]:
            assert (other - plain).abs().amax((1, 2)).min() > 1e-3
            rows = Given(known.expand(3, -1) & torch.tensor([[True], [False], [True]]), clean)
            mixed = net(x, noise.expand(3), ctx, given=rows).value
            torch.testing.assert_close(mixed[[0, 2]], other[[0, 2]], atol=1e-5, rtol=1e-5)
            torch.testing.assert_close(mixed[1], plain[1], atol=1e-5, rtol=1e-5)
