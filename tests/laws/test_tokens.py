"""The network over masked tokens: what its cached prefix must not change, who sees whom, and what it may believe."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from kinoise.policies.core.network import NetworkConfig, TokenDenoiser
from kinoise.policies.core.network.tokens import WAVES
from kinoise.policies.core.process.masked import Masked, MaskedConfig
from kinoise.policies.core.sampler import Reveal, reveal
from kinoise.spec import KinoiseError
from torch import Tensor

WIDTH, CHUNK, CONTEXT, SIZES = 16, 3, 4, (5, 2)
MASK = max(SIZES)
SMALL = {"width": WIDTH, "depth": 3, "heads": 2, "ff": 2.0, "adaptive_norm": False}
VARIANTS = {
    "plain": {},
    "one block": {"depth": 1},
    "no qk norm": {"qk_norm": False},
    "gelu": {"activation": "gelu", "moe_residual": "normalised"},
    "experts": {"experts": 2, "routing": "token"},
    "two of three": {"experts": 3, "top_k": 2, "routing": "token"},
}
variants = pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS.keys())


def network(**options: object) -> TokenDenoiser:
    """In eval mode, all parameters random: nothing hides behind a zero."""
    net = TokenDenoiser(NetworkConfig(**{**SMALL, **options}), SIZES, CHUNK)
    gen = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=gen) / parameter.shape[-1] ** 0.5)
    return net.eval()


def inputs(batch: int = 3, seed: int = 1) -> tuple[Tensor, Tensor, Tensor]:
    """Action tokens, some of them masked; a context; which of it is there, at least one token."""
    gen = torch.Generator().manual_seed(seed)
    x = (torch.rand(batch, CHUNK, 2, generator=gen) * torch.tensor(SIZES)).long()
    x = x.masked_fill(torch.rand(x.shape, generator=gen) < 0.4, MASK)
    there = torch.rand(batch, CONTEXT, generator=gen) < 0.6
    there[:, 0], there[0, -1] = True, False
    return x, torch.randn(batch, CONTEXT, WIDTH, generator=gen), there


def textbook(net: TokenDenoiser, x: Tensor, context: Tensor, there: Tensor | None) -> Tensor:
    """One pass over [context | actions] in which a boolean matrix says who may look at whom, without a cache."""
    actions = torch.stack([net.embedding_DVW[d, x[..., d]] for d in range(len(SIZES))], -2)
    tokens = torch.cat([context, (actions + net.step + net.dimension).flatten(1, 2)], 1)
    total = tokens.shape[1]
    action = torch.arange(total) >= CONTEXT
    allowed = (action[:, None] | ~action).expand(len(x), total, total)
    if there is not None:
        allowed = allowed & F.pad(there, (0, total - CONTEXT), value=True)[:, None]
    norms = list(net.modulations.weights)
    for index, block in enumerate(net.blocks):
        attention = block.attention
        h = F.rms_norm(tokens, (WIDTH,), norms[2 * index], eps=1e-12)
        q, k, v = (part.unflatten(-1, (2, -1)).transpose(1, 2) for part in attention.into(h).chunk(3, -1))
        if attention.qk_norm is not None:
            q, k = (F.rms_norm(part, part.shape[-1:], attention.qk_norm, eps=1e-12) for part in (q, k))
        scores = (q @ k.mT / q.shape[-1] ** 0.5).masked_fill(~allowed[:, None], -torch.inf)
        tokens = tokens + attention.out((scores.softmax(-1) @ v).transpose(1, 2).flatten(2))
        h = F.rms_norm(tokens, (WIDTH,), norms[2 * index + 1], eps=1e-12)
        experts = None if block.router is None else block._route(block.router(h), None)[0]
        base = h if net.config.moe_residual == "normalised" else tokens
        tokens = base + block.feedforward(h, experts)
    hidden = F.rms_norm(tokens[:, CONTEXT:], (WIDTH,), norms[-1], eps=1e-12).unflatten(1, (CHUNK, -1))
    logits = []
    for d, size in enumerate(SIZES):
        place = torch.arange(MASK)[:, None] + 0.5
        cosines = (torch.pi * place / size * torch.arange(WAVES)).cos()
        logits.append(hidden[:, :, d] @ (net.w_out_DVW[d] + cosines @ net.w_smooth_DCW[d]).T + net.bias_DV[d])
    return torch.stack(logits, 2)


def within(logits: Tensor) -> Tensor:
    """Those of each dimension's own vocabulary."""
    return torch.cat([logits[..., d, :size] for d, size in enumerate(SIZES)], -1)


@variants
@pytest.mark.parametrize("padded", [False, True])
def test_a_cached_prefix_is_one_pass_over_the_whole_sequence(options: dict, padded: bool):
    net, (x, context, there) = network(**options), inputs()
    mask = there if padded else None
    expected = within(textbook(net, x, context, mask))
    found = within(net(x, net.prefix(context, mask)).value)
    assert expected.std() > 0.1
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


@variants
def test_one_prefix_serves_every_round(options: dict):
    net, (x, context, there) = network(**options), inputs()
    prefix = net.prefix(context, there)
    before = [item.clone() for layer in prefix.layers for item in layer]
    first = net(x, prefix).value
    other = net(inputs(seed=2)[0], prefix).value
    assert not torch.allclose(first, other)
    assert torch.equal(net(x, prefix).value, first)
    assert all(map(torch.equal, before, [item for layer in prefix.layers for item in layer]))


@variants
def test_padding_of_the_context_has_no_influence(options: dict):
    net, (x, context, there) = network(**options), inputs()
    noise = torch.where(there[..., None], context, 100 * torch.randn(context.shape))
    expected = net(x, net.prefix(context, there)).value
    torch.testing.assert_close(net(x, net.prefix(noise, there)).value, expected)
    for row in range(len(x)):
        short = context[row : row + 1, there[row]]
        alone = net(x[row : row + 1], net.prefix(short)).value
        torch.testing.assert_close(alone, expected[row : row + 1], atol=1e-5, rtol=1e-4)
    assert not torch.allclose(net(x, net.prefix(context)).value[0], expected[0], atol=1e-3), "what is there does matter"


@pytest.mark.parametrize("depth", [1, 3])
def test_every_action_token_sees_every_other_and_every_context_token(depth: int):
    net, (x, context, _) = network(depth=depth), inputs(1)
    places = [(step, dimension) for step in range(CHUNK) for dimension in range(2)]
    before = net(x, net.prefix(context)).value
    for step, dimension in places:
        changed = x.clone()
        changed[0, step, dimension] = (x[0, step, dimension] + 1) % SIZES[dimension]
        moved = (net(changed, net.prefix(context)).value - before).abs().amax((0, 3))
        assert (moved > 1e-5).all(), f"{step}, {dimension}"
    for place in range(CONTEXT):
        changed = context.clone()
        changed[0, place] += 1
        assert ((net(x, net.prefix(changed)).value - before).abs().amax((0, 3)) > 1e-5).all()


def test_context_tokens_see_each_other():
    net, (_, context, _) = network(), inputs(1)
    changed = context.clone()
    changed[0, 0] += 1
    for before, after in zip(net.prefix(context).layers[1], net.prefix(changed).layers[1], strict=True):
        assert ((before - after).abs().amax((0, 1, 3)) > 1e-5).all()


@variants
def test_a_token_outside_a_vocabulary_is_never_believed(options: dict):
    net, (x, context, _) = network(**options), inputs()
    logits = net(x, net.prefix(context)).value
    assert logits.shape == (3, CHUNK, 2, 5)
    assert (logits[..., 1, 2:] <= -1e3).all()
    assert (within(logits).abs() < 1e3).all()
    assert not logits.softmax(-1)[..., 1, 2:].any()


def test_a_fresh_network_believes_all_tokens_alike():
    (x, context, _), net = inputs(), TokenDenoiser(NetworkConfig(**SMALL), SIZES, CHUNK)
    p = net(x, net.prefix(context)).value.softmax(-1)
    torch.testing.assert_close(p[..., 0, :], torch.full((3, CHUNK, 5), 0.2))
    torch.testing.assert_close(p[..., 1, :2], torch.full((3, CHUNK, 2), 0.5))


def test_neighbouring_bins_start_out_alike_and_the_mask_like_none():
    torch.manual_seed(0)
    table = TokenDenoiser(NetworkConfig(**SMALL | {"width": 128}), (64,), 1).embedding_DVW[0]
    cosine = F.cosine_similarity(table[:, None], table[None], dim=-1)
    near, far = cosine[torch.arange(63), torch.arange(1, 64)], cosine[torch.arange(32), torch.arange(32, 64)]
    assert near.min() > 0.8
    assert far.abs().mean() < 0.4
    assert cosine[64, :64].abs().max() < 0.5
    assert table.square().mean().item() == pytest.approx(1, abs=0.3)


@variants
def test_every_parameter_learns(options: dict):
    net, (x, context, there), gen = network(**options).train(), inputs(32), torch.Generator().manual_seed(0)
    value, balance = net(x, net.prefix(context, there, gen), gen)
    assert (balance is None) == ("experts" not in options)
    (within(value).square().mean() + (0 if balance is None else balance)).backward()
    idle = [name for name, parameter in net.named_parameters() if parameter.grad is None or not parameter.grad.any()]
    assert not idle


@pytest.mark.parametrize("options", [{}, VARIANTS["experts"]], ids=["plain", "experts"])
def test_it_trains_and_plans(options: dict):
    """Tokens that the context gives away are learned, and found in rounds."""
    torch.manual_seed(0)
    net = TokenDenoiser(NetworkConfig(**{**SMALL, "depth": 2, **options}), SIZES, CHUNK)
    process, gen = Masked(MaskedConfig(), SIZES), torch.Generator().manual_seed(0)
    context = torch.randn(8, CONTEXT, WIDTH, generator=gen)
    clean = (torch.rand(8, CHUNK, 2, generator=gen) * torch.tensor(SIZES)).long()
    optimizer, valid = torch.optim.AdamW(net.parameters(), lr=1e-2), torch.ones(8, CHUNK, dtype=torch.bool)
    for _ in range(120):
        losses = process.loss(lambda x, _, prefix: net(x, prefix, gen), clean, net.prefix(context, None, gen), valid, gen)
        assert set(losses.auxiliary) == ({"balance"} if options else set())
        optimizer.zero_grad()
        losses.total.backward()
        optimizer.step()
    net.eval()
    with torch.no_grad():
        prefix = net.prefix(context)
        x = process.prior(clean.shape, gen)
        how, grid = Reveal(), process.grid(4)
        found = reveal(process, lambda x, t: process.predict(lambda x, _, c: net(x, c), x, t, prefix), x, grid, gen, how)
    assert (found == clean).float().mean() > 0.95


def test_dropout_needs_a_generator_and_is_drawn_from_it_alone():
    net, (x, context, _) = network(dropout=0.5).train(), inputs()

    def draw(seed: int) -> Tensor:
        gen = torch.Generator().manual_seed(seed)
        return net(x, net.prefix(context, None, gen), gen).value

    assert draw(0).equal(draw(0))
    assert not draw(0).equal(draw(1))
    with pytest.raises(KinoiseError, match="gen="):
        net.prefix(context)
    prefix = net.eval().prefix(context)
    net.train()
    with pytest.raises(KinoiseError, match="gen="):
        net(x, prefix)


@pytest.mark.parametrize(
    "options",
    [
        {"noise_token": True},
        {"noise_attention": True},
        {"adaptive_norm": True},
        {"context": "cross"},
        {"causal": True},
        {"experts": 2},
        {"experts": 2, "routing": "dense"},
    ],
)
def test_a_noise_level_a_memory_and_an_order_are_refused(options: dict):
    with pytest.raises(KinoiseError, match="masked tokens"):
        network(**options)
