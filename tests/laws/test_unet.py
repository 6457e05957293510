"""Diffusion Policy's two networks against the same weights in torch's own modules."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from kinoise.policies.core.cache import Every, FeatureCache
from kinoise.policies.core.network import Decoder, NetworkConfig, UNet
from kinoise.policies.core.network.config import UNetConfig
from kinoise.spec import KinoiseError
from torch import Tensor, nn

ACTION, CHUNK, STEPS, FEATURES, LEVELS = 3, 8, 2, 5, 50


def inputs(rows: int = 2) -> tuple[Tensor, Tensor, Tensor]:
    gen = torch.Generator().manual_seed(0)
    x, context = torch.randn(rows, CHUNK, ACTION, generator=gen), torch.randn(rows, STEPS, FEATURES, generator=gen)
    return x, torch.tensor(31 / LEVELS, dtype=torch.float64), context


def shaken(network: nn.Module) -> nn.Module:
    """With no weight at the zero or one that it starts at."""
    gen = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for item in network.parameters():
            item.add_(0.2 * torch.randn(item.shape, generator=gen))
    return network.eval()


def unet(**options: object) -> UNet:
    config = UNetConfig(widths=[8, 16, 24], kernel=3, groups=4, embedding=12, **options)
    made = UNet(NetworkConfig(kind="unet", positions=LEVELS, unet=config), ACTION, CHUNK, STEPS, FEATURES)
    return shaken(made)  # type: ignore[return-value]


def decoder(**options: object) -> Decoder:
    config = NetworkConfig(kind="decoder", width=16, depth=2, heads=4, ff=4.0, positions=LEVELS, **options)
    return shaken(Decoder(config, ACTION, CHUNK, STEPS, FEATURES))  # type: ignore[return-value]


def told(step: float, width: int) -> Tensor:
    rates = [math.exp(-math.log(10000) * i / (width // 2 - 1)) for i in range(width // 2)]
    return torch.tensor([math.sin(step * rate) for rate in rates] + [math.cos(step * rate) for rate in rates])


def textbook_unet(net: UNet, x: Tensor, step: float, context: Tensor) -> Tensor:
    """Written out along LeRobot's description: stages down, two blocks at the bottom, stages up with what came across."""
    weights = dict(net.named_parameters())
    vector = net.noise.layers(told(step, 12)).expand(len(x), -1)
    cond = F.mish(torch.cat([vector, context.flatten(1)], 1))

    def conv(name: str, h: Tensor, groups: int = 4) -> Tensor:
        h = F.conv1d(h, weights[f"{name}.0.weight"], weights[f"{name}.0.bias"], padding=1)
        return F.mish(F.group_norm(h, groups, weights[f"{name}.1.weight"], weights[f"{name}.1.bias"]))

    def block(index: int, h: Tensor) -> Tensor:
        name = f"blocks.{index}"
        matrix = torch.cat([weights[f"{name}.noise.weight"], weights[f"{name}.context.weight"]], 1)
        film = (cond @ matrix.T + weights[f"{name}.noise.bias"])[..., None]
        y = conv(f"{name}.first", h)
        channels = y.shape[1]
        y = film[:, :channels] * y + film[:, channels:] if film.shape[1] > channels else y + film
        skip = f"{name}.skip.weight"
        aside = F.conv1d(h, weights[skip], weights[f"{name}.skip.bias"]) if skip in weights else h
        return conv(f"{name}.second", y) + aside

    h = x.transpose(1, 2)
    h = block(1, block(0, h))
    h = F.conv1d(h, weights["down.0.weight"], weights["down.0.bias"], stride=2, padding=1)
    h = across = block(3, block(2, h))
    h = F.conv1d(h, weights["down.1.weight"], weights["down.1.bias"], stride=2, padding=1)
    h = bottom = block(5, block(4, h))
    h = block(7, block(6, h))
    h = block(9, block(8, torch.cat([h, bottom], 1)))
    h = F.conv_transpose1d(h, weights["up.0.weight"], weights["up.0.bias"], stride=2, padding=1)
    h = block(11, block(10, torch.cat([h, across], 1)))
    h = F.conv_transpose1d(h, weights["up.1.weight"], weights["up.1.bias"], stride=2, padding=1)
    h = conv("out", h, 8)
    return F.conv1d(h, weights["head.weight"], weights["head.bias"]).transpose(1, 2)


@pytest.mark.parametrize("film_scale", [True, False])
def test_the_u_net_is_what_it_says(film_scale):
    net, (x, noise, context) = unet(film_scale=film_scale), inputs()
    torch.testing.assert_close(net(x, noise, context).value, textbook_unet(net, x, 30, context), rtol=1e-4, atol=1e-5)


def copied(layer: nn.Module, own: nn.Module, names: dict[str, str]) -> None:
    """Weights of ours into torch's layer."""
    state = dict(own.named_parameters())
    with torch.no_grad():
        for theirs, ours in names.items():
            for kind in ("weight", "bias"):
                layer.get_parameter(f"{theirs}.{kind}").copy_(state[f"{ours}.{kind}"])
        for theirs, ours in (("self_attn", "attention"), ("multihead_attn", "cross")):
            if f"{ours}.query.weight" in state:
                for kind in ("weight", "bias"):
                    rows = torch.cat([state[f"{ours}.query.{kind}"], state[f"{ours}.memory.{kind}"]])
                    layer.get_parameter(f"{theirs}.in_proj_{kind}").copy_(rows)
                    layer.get_parameter(f"{theirs}.out_proj.{kind}").copy_(state[f"{ours}.out.{kind}"])


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("encoder_depth", [0, 2])
def test_the_decoder_is_torchs(causal, encoder_depth):
    net, (x, noise, context) = decoder(causal=causal, encoder_depth=encoder_depth), inputs()
    memory = torch.cat([told(30, 16).expand(2, 1, -1), net.context(context)], 1) + net.place
    how = {"dim_feedforward": 64, "dropout": 0.0, "activation": "gelu", "batch_first": True, "norm_first": True}
    plain = {"linear1": "into", "linear2": "out", "norm1": "norms.0", "norm2": "norms.1"}
    if encoder_depth:
        for own in net.encoder:
            layer = nn.TransformerEncoderLayer(16, 4, **how)
            copied(layer, own, plain)
            memory = layer(memory)
    else:
        memory = net.encoder(memory)
    places = torch.arange(CHUNK)[:, None]
    hidden = places < torch.arange(CHUNK) if causal else None
    unseen = places < torch.arange(1 + STEPS) - 1 if causal else None
    h = net.actions(x) + net.position
    for own in net.blocks:
        layer = nn.TransformerDecoderLayer(16, 4, **how)
        copied(layer, own, plain | {"norm3": "norms.2"})
        h = layer(h, memory, tgt_mask=hidden, memory_mask=unseen)
    torch.testing.assert_close(net(x, noise, context).value, net.head(net.norm(h)), rtol=1e-4, atol=1e-5)


networks = pytest.mark.parametrize("make", [unet, decoder, lambda: decoder(causal=True, encoder_depth=1)])


@networks
def test_what_is_computed_once_a_plan_and_once_a_level_changes_nothing(make):
    net, (x, noise, context) = make(), inputs()
    plain = net(x, noise, context).value
    torch.testing.assert_close(net(x, net.level(noise), net.remember(context)).value, plain)
    torch.testing.assert_close(net(x, noise.expand(2), context).value, plain)


@networks
def test_caching_everything_anew_changes_nothing_and_reuse_skips_branches(make):
    net, (x, noise, context) = make(), inputs()
    every, other = FeatureCache(Every(1)), FeatureCache(Every(2))
    for cache in (every, other):
        cache.advance()
        torch.testing.assert_close(net(x, noise, context, cache=cache).value, net(x, noise, context).value)
        cache.advance()
    later = torch.tensor(0.3, dtype=torch.float64)
    plain = net(2 * x, later, context).value
    torch.testing.assert_close(net(2 * x, later, context, cache=every).value, plain)
    assert not torch.allclose(net(2 * x, later, context, cache=other).value, plain, atol=1e-3)


@networks
def test_every_parameter_learns(make):
    net, (x, noise, context) = make(), inputs()
    net.train()(x, noise.expand(2).float(), context, gen=torch.Generator()).value.square().sum().backward()
    assert [name for name, item in net.named_parameters() if item.grad is None or not item.grad.any()] == []


def test_a_chunk_that_cannot_be_halved_is_refused():
    with pytest.raises(KinoiseError, match="no multiple of 4"):
        UNet(NetworkConfig(kind="unet"), ACTION, 10, STEPS, FEATURES)
    with pytest.raises(KinoiseError, match="multiples of groups"):
        UNetConfig(widths=[12, 16])
