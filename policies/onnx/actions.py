"""The graphs of a continuous policy: its encoder, one network evaluation, a plan from noise, a plan from the one before."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from ...spec import KinoiseError
from ..core.guidance import guided
from ..core.network import Denoiser, Level, Memory
from ..core.network.moe import Share, choose
from ..core.process.base import Denoise, Prediction
from ..core.process.times import Times
from ..core.sampler import DRAWING, SAMPLERS
from ..core.start import remembering
from ..diffusion import DiffusionPolicy
from .graph import BATCH, SURPRISE, Graph, Port, chunk_port, gap, observation, observed, replanned

DETERMINISTIC = tuple(name for name in SAMPLERS if name not in DRAWING)


def check(policy: DiffusionPolicy) -> None:
    """Raises KinoiseError for a policy whose plans no fixed graph makes."""
    decode, network = policy.config.decode, policy.config.network
    if decode.sampler not in DETERMINISTIC:
        raise KinoiseError(
            f"decode.sampler={decode.sampler} draws noise in every step, which a graph can't: "
            f"set decode.sampler to one of {', '.join(DETERMINISTIC)}"
        )
    if network.kind != "transformer" or policy.config.past:
        raise KinoiseError(
            f"network.kind={network.kind}, past={policy.config.past}: graphs are made of transformers whose chunk begins now. "
            "Plan with kinoise itself, or kinoise export-lerobot for LeRobot"
        )
    if network.experts > 1 and network.routing == "token":
        raise KinoiseError(
            "network.routing=token: how many tokens an expert gets depends on their values, which a graph's shapes can't. "
            "Export a policy that was trained with network.routing=noise or dense"
        )


def graphs(policy: DiffusionPolicy, texts: tuple[str, ...]) -> dict[str, Graph]:
    """By name. `texts`: the instructions that `text` indexes."""
    found = {"context": Context(policy, texts), "evaluation": Evaluation(policy), "plan": Plan(policy, texts)}
    return {**found, "replan": Replan(policy, texts)} if policy.config.decode.warm < 1 else found


def grids(policy: DiffusionPolicy) -> dict[str, list[dict[str, float]]]:
    """What the network is told, and what is made of its answer, at each time of a plan's grid and of a replan's."""
    decode, process = policy.config.decode, policy.process
    times = {"plan": process.grid(decode.steps)}
    if decode.warm < 1:
        times["replan"] = process.grid(decode.replan_steps, decode.warm)
    return {name: [{"t": float(t), **process.at(t, t)._asdict()} for t in grid.unbind()] for name, grid in times.items()}


class Context(Graph):
    """The observation as tokens. They are the same in all of a plan's evaluations."""

    def __init__(self, policy: DiffusionPolicy, texts: tuple[str, ...]) -> None:
        dropped = Port("dropped", "bool", (BATCH,), "", "rows whose instruction is hidden: guidance's other half")
        inputs = observed(policy.spec, policy.config.history)
        super().__init__(
            (*inputs, dropped) if policy.spec.language else inputs, (_context(policy, "what evaluation.onnx takes"),)
        )
        self.policy, self.texts = policy, texts

    def run(self, given: Mapping[str, Tensor], asked: list[Any]) -> dict[str, Tensor]:
        return {"context": self.policy.observe(observation(given, self.texts), given.get("dropped"))}


class Evaluation(Graph):
    """The bare network: scaled noisy actions, the noise level's label and the context in, what it was trained to say out."""

    def __init__(self, policy: DiffusionPolicy) -> None:
        spec, chunk = policy.spec, policy.config.chunk
        noisy = chunk_port("x", spec, chunk, "noisy actions times `into` of their time", "normalised")
        label = Port("noise", "float32", (), "", "`label` of their time, of all rows")
        value = chunk_port(
            "value",
            spec,
            chunk,
            f"{policy.config.process.parametrisation}: the belief is skip x / into + out value",
            "normalised",
        )
        super().__init__((noisy, label, _context(policy, "what context.onnx says")), (value,))
        self.network = policy.network

    def run(self, given: Mapping[str, Tensor], asked: list[Any]) -> dict[str, Tensor]:
        asked.append(given["noise"])
        return {"value": self.network(given["x"], _traced(self.network, given["noise"]), given["context"]).value}


class _Decoding(Graph):
    """A sampler's walk along one grid, unrolled."""

    def __init__(
        self, policy: DiffusionPolicy, texts: tuple[str, ...], inputs: tuple[Port, ...], outputs: tuple[Port, ...], grid: Tensor
    ) -> None:
        super().__init__((*observed(policy.spec, policy.config.history), *inputs), outputs)
        self.policy, self.texts, self.grid = policy, texts, Times.of(grid)
        self._levels = {float(t): _fixed(policy.network, policy.process.label(t)) for t in grid[:-1].unbind()}

    def believe(self, given: Mapping[str, Tensor], asked: list[Any]) -> Denoise:
        """The bound prediction, with guidance."""
        obs, scale = observation(given, self.texts), self.policy.config.decode.guidance
        everyone = torch.ones_like(obs.text, dtype=torch.bool) if obs.text is not None else None
        contexts = [self.policy.observe(obs, rows) for rows in (None, everyone)[: 1 if scale == 1 else 2]]
        bound = [self._bound(self.policy.network.remember(context), asked) for context in contexts]
        return guided(bound[0], bound[-1], scale)

    def walk(self, denoise: Denoise, x: Float[Tensor, "batch chunk action"]) -> Float[Tensor, "batch chunk action"]:
        """Actions in physical units."""
        found = SAMPLERS[self.policy.config.decode.sampler](self.policy.process, denoise, x, self.grid, torch.Generator())
        return self.policy.codec.decode(found).float()

    def _bound(self, context: Tensor | Memory, asked: list[Any]) -> Denoise:
        def denoise(x: Tensor, t: Tensor) -> Tensor:
            level = self._levels[float(t)]()

            def network(x: Tensor, noise: Tensor, ctx: Tensor | Memory) -> Prediction:
                asked.append(noise)
                return self.policy.network(x, level, ctx)

            return self.policy.process.predict(network, x, t, context)

        return denoise


class Plan(_Decoding):
    """A plan from noise."""

    def __init__(self, policy: DiffusionPolicy, texts: tuple[str, ...]) -> None:
        spec, chunk = policy.spec, policy.config.chunk
        noise = chunk_port("noise", spec, chunk, "independent standard normal numbers", "standard normal")
        grid = policy.process.grid(policy.config.decode.steps)
        super().__init__(policy, texts, (noise,), (chunk_port("actions", spec, chunk, "the plan"),), grid)
        self._size = policy.process.at(grid[0], grid).sigma

    def run(self, given: Mapping[str, Tensor], asked: list[Any]) -> dict[str, Tensor]:
        return {"actions": self.walk(self.believe(given, asked), self._size * given["noise"])}


class Replan(_Decoding):
    """A plan from the one before, at the level `decode.warm`."""

    def __init__(self, policy: DiffusionPolicy, texts: tuple[str, ...]) -> None:
        spec, chunk, decode = policy.spec, policy.config.chunk, policy.config.decode
        noise = chunk_port("noise", spec, chunk, "independent standard normal numbers", "standard normal")
        inputs = (*replanned(spec, chunk), noise) if decode.renoise else replanned(spec, chunk)
        outputs = (chunk_port("actions", spec, chunk, "the plan"), SURPRISE)
        super().__init__(policy, texts, inputs, outputs, policy.process.grid(decode.replan_steps, decode.warm))
        at = policy.process.at(torch.tensor(decode.warm, dtype=torch.float64), torch.zeros(()))
        self._signal, self._size = at.alpha, at.sigma

    def run(self, given: Mapping[str, Tensor], asked: list[Any]) -> dict[str, Tensor]:
        guess = self.policy.codec.encode(given["guess"])
        x = self._signal * guess
        if "noise" in given:
            x = x + self._size * given["noise"]
        first: list[Tensor] = []
        actions = self.walk(remembering(self.believe(given, asked), first), x)
        return {"actions": actions, "surprise": gap(first[0], guess, given["elapsed"])}


def _context(policy: DiffusionPolicy, about: str) -> Port:
    return Port("context", "float32", (BATCH, "tokens", policy.config.network.width), "", about)


def _fixed(network: Denoiser, label: Float64[Tensor, ""]) -> Callable[[], Level]:
    """A level of the grid: all of it constant, and its experts views of the weights, so that no level has copies of its own."""
    level = network.level(label)
    if network.router is None:
        return lambda: level
    choice = choose(network.router(network.noise(label)), network.config.chosen, None)
    choices = list(zip(network.blocks, *(part.tolist() for part in choice), strict=True))
    return lambda: level._replace(experts=tuple(block.feedforward.shares(*one) for block, *one in choices))


def _traced(network: Denoiser, label: Float[Tensor, ""]) -> Level:
    """A level whose label is an input: the experts are picked within the graph, their weights part of their matrices."""
    phi = network.noise(label)
    level = Level(phi[None, None], network.modulations(phi), (None,) * network.config.depth)
    if network.router is None:
        return level
    choice = choose(network.router(phi), network.config.chosen, None)
    experts = []
    for index, block in enumerate(network.blocks):
        into = block.feedforward.w_in_EPHD.index_select(0, choice.experts[index])
        out = block.feedforward.w_out_EDH.index_select(0, choice.experts[index]) * choice.weights[index][:, None, None]
        experts.append(tuple(Share(one.unbind(), other.T, 1.0) for one, other in zip(into, out, strict=True)))
    return level._replace(experts=tuple(experts))
