"""What computing the observation's prefix once a plan saves: `python -m benchmarks.prefix` (batch 1, alternating, one process).

Three comparisons of a network over masked tokens with random weights: (a) `further`, one more round on a prefix that is there,
beside the first evaluation, prefix and round; (b) `cached`, a plan's rounds on one prefix, beside the same rounds with a
prefix each, as published; (c) `plan`, that plan beside a single evaluation. `by_tokens` is each ratio if every token cost the
same, whatever it attends to.

On a CPU: the policy's default network and a larger one, (a) and (b) judged. With `device=cuda`: a network of the shape and
precision of a 7 B language model, (c) judged; results/prefix_cuda.json.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
from kinoise.config import UsageError, parse, run
from kinoise.policies.core.network import NetworkConfig, TokenDenoiser
from kinoise.policies.core.process.base import Prediction
from kinoise.policies.discrete_vla import DiscreteVLAConfig

from .record import milliseconds, ratio, write

TARGETS = {"cpu": {"further": 0.35, "cached": 0.333}, "cuda": {"plan": 1.5}}
"""At most; of `cached`, below."""

SIDES = {"further": ("further", "first"), "plan": ("cached", "first"), "cached": ("cached", "recomputed")}
"""Each ratio's numerator and denominator, which are measured next to each other in a pass over the four."""


@dataclass
class Settings:
    """The whole command line."""

    tokens: int = field(default=300, metadata={"help": "of the context"})
    width: int | None = field(default=None, metadata={"help": "one network of this width instead of the two"})
    depth: int | None = field(default=None, metadata={"help": "one network of this depth instead of the two"})
    heads: int | None = field(default=None, metadata={"help": "that network's; null: the default network's"})
    rounds: int = field(default=12, metadata={"help": "of a plan"})
    chunk: int = field(default=8, metadata={"help": "actions in a plan"})
    dims: int = field(default=7, metadata={"help": "tokens in an action"})
    bins: int = field(default=256, metadata={"help": "words in each token's vocabulary"})
    pairs: int = field(default=30, metadata={"help": "times that each side is measured"})
    threads: int = field(default=1, metadata={"help": "torch's, on the CPU"})
    device: str = field(default="cpu", metadata={"help": "cpu or cuda"})

    def __post_init__(self) -> None:
        for name in ("tokens", "rounds", "chunk", "dims", "bins", "pairs", "threads"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name}={getattr(self, name)}: at least 1 is needed")
        if self.device not in TARGETS:
            raise UsageError(f"device={self.device}: expected one of {', '.join(TARGETS)}")


def networks(settings: Settings) -> dict[str, NetworkConfig]:
    """What is measured, by name."""
    default = DiscreteVLAConfig().network
    own = {key: value for key in ("width", "depth", "heads") if (value := getattr(settings, key)) is not None}
    if own:
        return {"own": replace(default, **own)}
    if settings.device == "cuda":
        return {"7b": replace(default, width=4096, depth=32, heads=32, ff=11008 / 4096)}
    return {"default": default, "wide": replace(default, width=512, depth=8, heads=8)}


@contextmanager
def building(device: str) -> Iterator[None]:
    """Makes new tensors on `device`, on a GPU in bfloat16: 7 B weights never pass through the CPU, nor through 32 bits."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16 if device == "cuda" else before)
    try:
        with torch.device(device):
            yield
    finally:
        torch.set_default_dtype(before)


def by_tokens(settings: Settings) -> dict[str, float]:
    action, first = settings.chunk * settings.dims, settings.tokens + settings.chunk * settings.dims
    plan = settings.tokens + settings.rounds * action
    return {"further": action / first, "plan": plan / first, "cached": plan / (settings.rounds * first)}


@torch.inference_mode()
def measure(config: NetworkConfig, settings: Settings) -> dict[str, Any]:
    """Ratios of one network, and milliseconds of each side."""
    torch.manual_seed(0)
    with building(settings.device):
        network = TokenDenoiser(config, (settings.bins,) * settings.dims, settings.chunk).eval()
        torch.nn.init.normal_(network.w_out_DVW, std=config.width**-0.5)
        context = torch.randn(1, settings.tokens, config.width)
        x = torch.randint(settings.bins + 1, (1, settings.chunk, settings.dims))  # the last of them is the mask
    once = network.prefix(context)

    def first() -> Prediction:
        return network(x, network.prefix(context))

    def further() -> Prediction:
        return network(x, once)

    def cached() -> Prediction:
        prefix = network.prefix(context)
        return [network(x, prefix) for _ in range(settings.rounds)][-1]

    def recomputed() -> Prediction:
        return [network(x, network.prefix(context)) for _ in range(settings.rounds)][-1]

    order: tuple[Callable[[], Prediction], ...] = (further, first, cached, recomputed)
    times: dict[str, list[float]] = {side.__name__: [] for side in order}
    for side in order:
        side()
    for _ in range(settings.pairs):
        for side in order:
            times[side.__name__].append(timed(side, settings.device))
    tokens = by_tokens(settings)
    return {
        "network": {key: asdict(config)[key] for key in ("width", "depth", "heads", "ff")},
        "parameters": sum(item.numel() for item in network.parameters()),
        "precision": str(network.w_out_DVW.dtype).removeprefix("torch."),
        "ms": {name: milliseconds(row) for name, row in times.items()},
        **{
            name: {**ratio(times[above], times[below]), "by_tokens": round(tokens[name], 3)}
            for name, (above, below) in SIDES.items()
        },
    }


def timed(side: Callable[[], Prediction], device: str) -> float:
    """Seconds until the result is there."""
    _finish(device)
    started = time.perf_counter()
    side()
    _finish(device)
    return time.perf_counter() - started


def _finish(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def main(argv: Sequence[str]) -> int:
    settings = parse("prefix", Settings, argv, about=__doc__ or "")
    if settings.device == "cuda" and not torch.cuda.is_available():
        raise UsageError("device=cuda: torch finds no CUDA device here; take device=cpu, which measures smaller networks")
    torch.set_num_threads(settings.threads)
    figures = {
        "target": TARGETS[settings.device],
        "settings": {key: getattr(settings, key) for key in ("tokens", "rounds", "chunk", "dims", "bins", "pairs", "device")},
        "networks": {name: measure(config, settings) for name, config in networks(settings).items()},
    }
    write("prefix" if settings.device == "cpu" else f"prefix_{settings.device}", figures)
    return 0


if __name__ == "__main__":
    sys.exit(run(main, sys.argv[1:]))
