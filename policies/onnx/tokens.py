"""The graphs of a policy over masked tokens: its encoder, one network evaluation, a plan, a plan from the one before."""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import pairwise
from typing import Any, cast

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ...spec import KinoiseError
from ..core.network import Prefix
from ..core.network.attention import KeyValues
from ..core.process.base import Denoise
from ..core.sampler.reveal import confidence
from ..discrete_vla import DiscreteVLAPolicy, Embedded, Round
from ..replan import Guess, Start
from .graph import BATCH, SURPRISE, Graph, Port, chunk_port, gap, observation, observed, replanned

SURE = "how probable each number's token was"


def check(policy: DiscreteVLAPolicy) -> None:
    """Raises KinoiseError for a policy whose plans no fixed graph makes."""
    decode = policy.config.decode
    if not isinstance(policy.backbone, Embedded):
        raise KinoiseError("policy.vlm: a vision-language model isn't exported; export a policy without policy.vlm.path")
    if policy.config.network.experts > 1:
        raise KinoiseError(
            "network.experts above 1: how many tokens an expert gets depends on their values, which a graph's shapes can't. "
            "Export a policy that was trained with network.experts=1"
        )
    refused = {
        "sampler": (decode.sampler != "reveal", "reveal"),
        "temperature": (decode.temperature > 0, "0"),
        "confidence": (decode.confidence == "random", "max"),
        "adaptive": (decode.adaptive < 1, "1"),
        "threshold": (decode.threshold > 0, "0"),
        "residual": (decode.residual < 1, "1"),
    }
    for name, (wrong, right) in refused.items():
        if wrong:
            raise KinoiseError(
                f"decode.{name}={getattr(decode, name)}: a graph has the same rounds whatever is decoded, and draws nothing. "
                f"Set decode.{name}={right}"
            )


def graphs(policy: DiscreteVLAPolicy, texts: tuple[str, ...]) -> dict[str, Graph]:
    """By name. `texts`: the instructions that `text` indexes."""
    found = {"context": Context(policy, texts), "evaluation": Evaluation(policy), "plan": Plan(policy, texts)}
    return {**found, "replan": Replan(policy, texts)} if policy.config.decode.warm < 1 else found


class Context(Graph):
    """What the observation offers to action tokens: keys and values in every block, the same in all rounds."""

    def __init__(self, policy: DiscreteVLAPolicy, texts: tuple[str, ...]) -> None:
        dropped = Port("dropped", "bool", (BATCH,), "", "rows whose instruction is hidden: guidance's other half")
        inputs = observed(policy.spec, policy.config.history)
        super().__init__((*inputs, dropped) if policy.spec.language else inputs, _context(policy))
        self.policy, self.texts = policy, texts

    def run(self, given: Mapping[str, Tensor], asked: list[Any]) -> dict[str, Tensor]:
        prefix = self.policy.backbone.prefix(observation(given, self.texts), given.get("dropped"))
        assert isinstance(prefix, Prefix)
        context = torch.stack([torch.stack(list(layer), 1) for layer in prefix.layers], 1)
        there = torch.ones_like(context[:, 0, 0, 0, :, 0], dtype=torch.bool) if prefix.mask is None else prefix.mask
        return {"context": context, "there": there}


class Evaluation(Graph):
    """The bare network: action tokens and the context in, logits out."""

    def __init__(self, policy: DiscreteVLAPolicy) -> None:
        shape = (BATCH, policy.config.chunk, policy.spec.action_dim)
        tokens = Port("x", "int64", shape, "token", f"{policy.process.mask} is the mask")
        value = Port("value", "float32", (*shape, policy.bins.size), "logits", "of each dimension's tokens")
        super().__init__((tokens, *_context(policy)), (value,))
        assert isinstance(policy.backbone, Embedded)
        self.network = policy.backbone.network
        self._fixed = self.network.prefix(torch.zeros(1, 1, policy.config.network.width))

    def run(self, given: Mapping[str, Tensor], asked: list[Any]) -> dict[str, Tensor]:
        asked.append(given["x"])
        layers = tuple(KeyValues(*layer.unbind(1)) for layer in given["context"].unbind(1))
        return {"value": self.network(given["x"], self._fixed._replace(layers=layers, mask=given["there"])).value}


class _Rounds(Graph):
    """Rounds with as many tokens left after each as the grid says, unrolled."""

    def __init__(
        self,
        policy: DiscreteVLAPolicy,
        texts: tuple[str, ...],
        inputs: tuple[Port, ...],
        outputs: tuple[Port, ...],
        grid: Tensor,
    ) -> None:
        spec, chunk = policy.spec, policy.config.chunk
        actions, sure = (
            chunk_port("actions", spec, chunk, "the plan"),
            chunk_port("confidence", spec, chunk, SURE, "probability"),
        )
        calls = 1 if policy.config.decode.guidance in (0, 1) else 2
        super().__init__((*observed(spec, policy.config.history), *inputs), (actions, sure, *outputs), calls)
        self.policy, self.texts = policy, texts
        tokens = chunk * spec.action_dim
        counts = [tokens, *(policy.process.count(s, tokens) for s in grid[1:].unbind())]
        # A round after which as many are masked as before commits nothing.
        self.left = [after for before, after in pairwise(counts) if after < before]

    def reveal(self, denoise: Denoise, x: Int[Tensor, "batch chunk action"]) -> Int[Tensor, "batch chunk action"]:
        """`core.sampler.reveal`, greedy, without shortcuts that depend on values: a round with nothing due changes nothing."""
        decode, process = self.policy.config.decode, self.policy.process
        for left in self.left:
            belief = denoise(x, torch.zeros((), dtype=torch.float64))
            score = confidence(belief, decode.confidence, torch.Generator(), process.sizes)
            score = score.clamp(min=1e-20).log() if decode.noise == "ranks" else score
            x = belief.argmax(-1).where(_surest(score, x == process.mask, left), x)
        return x

    def read(
        self, x: Int[Tensor, "batch chunk action"], known: Tensor, rounds: list[Round], guess: Guess | None
    ) -> dict[str, Tensor]:
        actions, sure = self.policy.read(x, known, rounds, guess)
        return {"actions": actions, "confidence": sure}


class Plan(_Rounds):
    """A plan from masked tokens."""

    def __init__(self, policy: DiscreteVLAPolicy, texts: tuple[str, ...]) -> None:
        super().__init__(policy, texts, (), (), policy.process.grid(policy.config.decode.steps))

    def run(self, given: Mapping[str, Tensor], asked: list[Any]) -> dict[str, Tensor]:
        obs, process = observation(given, self.texts), self.policy.process
        denoise = self.policy.believe(obs, asked, Start())
        shape = (obs.batch, self.policy.config.chunk, self.policy.spec.action_dim)
        x = process.prior(shape, torch.Generator())
        return self.read(self.reveal(denoise, x), torch.zeros_like(x, dtype=torch.bool), asked, None)


class Replan(_Rounds):
    """A plan from the one before, at the level `decode.warm`."""

    def __init__(self, policy: DiscreteVLAPolicy, texts: tuple[str, ...]) -> None:
        spec, chunk, decode = policy.spec, policy.config.chunk, policy.config.decode
        about = f"{SURE} in the plan before, shifted as the guess; where it isn't known, falling from 2 to 1 along the chunk"
        sure = chunk_port("confidence_before", spec, chunk, about, "probability")
        grid = policy.process.grid(decode.replan_steps, decode.warm)
        super().__init__(policy, texts, (*replanned(spec, chunk), sure), (SURPRISE,), grid)
        self._share = float(policy.process.share(torch.tensor(decode.warm, dtype=torch.float64)))

    def run(self, given: Mapping[str, Tensor], asked: list[Any]) -> dict[str, Tensor]:
        guess, elapsed, sure = given["guess"], given["elapsed"], given["confidence_before"]
        policy = self.policy
        denoise = policy.believe(observation(given, self.texts), asked, Start())
        x = self._masked(self._tokens(guess), elapsed, sure)
        known = x != policy.process.mask
        found = self.read(self.reveal(denoise, x), known, asked, Guess(guess, 0, sure.clamp(max=1)))
        first = cast(Round, asked[0])
        believed = policy.bins.expect(first.belief, first.belief.argmax(-1))
        scale = 2 / (policy.bins.ends[:, 1] - policy.bins.ends[:, 0])
        return {**found, "surprise": gap(believed * scale, guess * scale, elapsed, first.masked)}

    def _tokens(self, actions: Float[Tensor, "batch chunk action"]) -> Int[Tensor, "batch chunk action"]:
        """`Bins.encode` without a search, which ONNX lacks."""
        return (actions[..., None] >= self.policy.bins.inner).sum(-1)

    def _masked(
        self, tokens: Int[Tensor, "batch chunk action"], elapsed: Int[Tensor, ""], sure: Float[Tensor, "batch chunk action"]
    ) -> Int[Tensor, "batch chunk action"]:
        """`core.start.warm_tokens` where `elapsed` is a tensor."""
        _, chunk, dims = tokens.shape
        unknown = (torch.arange(chunk) >= chunk - elapsed)[None, :, None].expand_as(tokens)
        count = (chunk - elapsed) * dims
        # As Masked.count rounds: at least one of them, and not all.
        hidden = (self._share * count.double() + 1e-9).floor().long().clamp(min=1).minimum((count - 1).clamp(min=1))
        return tokens.masked_fill(_surest(-sure, ~unknown, count - hidden) | unknown, self.policy.process.mask)


def _surest(
    score: Float[Tensor, "batch chunk action"], masked: Bool[Tensor, "batch chunk action"], left: int | Tensor
) -> Bool[Tensor, "batch chunk action"]:
    """`core.process.masked.surest` without a stable sort, which the exporter lacks: ranks are counts of what comes before."""
    flat = score.masked_fill(~masked, -math.inf).flatten(1)
    mine, other, place = flat[:, :, None], flat[:, None, :], torch.arange(flat.shape[1])
    rank = ((other > mine) | ((other == mine) & (place < place[:, None]))).sum(-1)
    commit = (masked.flatten(1).sum(-1) - left).clamp(min=0)
    return (rank < commit[:, None]).view_as(masked) & masked


def _context(policy: DiscreteVLAPolicy) -> tuple[Port, Port]:
    network = policy.config.network
    shape = (BATCH, network.depth, 2, network.heads, "tokens", network.width // network.heads)
    return (
        Port("context", "float32", shape, "", "each block's keys, then values"),
        Port("there", "bool", (BATCH, "tokens"), "", "which tokens of the context are there"),
    )
