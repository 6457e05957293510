"""What every exported graph is: a module over tensors alone, with named inputs and outputs of known units."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from ...spec import Observation, Spec

DTYPES = {"float32": torch.float32, "int64": torch.int64, "uint8": torch.uint8, "bool": torch.bool}
BATCH = "batch"
OBSERVATION = "observation."


class Port(NamedTuple):
    """An input or output of a graph.

    Args:
        dtype: one of DTYPES.
        shape: sizes; names stand for those that a call decides.
        unit: of the numbers; of actions and states one for each, where the data say so.
    """

    name: str
    dtype: str
    shape: tuple[int | str, ...]
    unit: str | list[str]
    about: str

    def example(self, rows: int, sizes: Mapping[str, int]) -> Tensor:
        """Zeros of this shape."""
        known = {BATCH: rows, **sizes}
        return torch.zeros([size if isinstance(size, int) else known[size] for size in self.shape], dtype=DTYPES[self.dtype])


class Graph(nn.Module, ABC):
    """A computation on tensors whose control flow their values don't decide, so that it can be traced.

    Args:
        inputs, outputs: in the order of `forward`.
        calls: network evaluations behind each belief.
    """

    def __init__(self, inputs: tuple[Port, ...], outputs: tuple[Port, ...], calls: int = 1) -> None:
        super().__init__()
        self.inputs, self.outputs, self.calls = inputs, outputs, calls

    @abstractmethod
    def run(self, given: Mapping[str, Tensor], asked: list[Any]) -> dict[str, Tensor]:
        """The outputs by name. Something is added to `asked` for every belief."""

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        found = self.run(dict(zip((port.name for port in self.inputs), tensors, strict=True)), [])
        return tuple(found[port.name] for port in self.outputs)

    def rehearse(self, *tensors: Tensor) -> int:
        """Runs once with real numbers, which fills what tracing looks up (instructions, coefficients): network evaluations."""
        asked: list[Any] = []
        self.run(dict(zip((port.name for port in self.inputs), tensors, strict=True)), asked)
        return len(asked) * self.calls


def observed(spec: Spec, history: int) -> tuple[Port, ...]:
    """The inputs that are the observation, and the instruction where there is one."""
    ports = []
    for key, feature in spec.observations.items():
        image = feature.kind == "image"
        unit = "RGB, 0 to 255" if image else list(feature.unit) if feature.unit else "as recorded"
        about = "height, width, RGB" if image else "not normalised"
        shape = (BATCH, history, *feature.shape)
        ports.append(Port(OBSERVATION + key, "uint8" if image else "float32", shape, unit, f"{about}; oldest step first"))
    if spec.language:
        ports.append(Port("text", "int64", (BATCH,), "index", "each row's instruction, by its place in `texts`"))
    return tuple(ports)


def observation(given: Mapping[str, Tensor], texts: tuple[str, ...]) -> Observation:
    """The other way round: what a policy's encoder takes."""
    values = {name.removeprefix(OBSERVATION): item for name, item in given.items() if name.startswith(OBSERVATION)}
    return Observation(values, texts if "text" in given else (), given.get("text"))


def chunk_port(name: str, spec: Spec, chunk: int, about: str, unit: str | None = None) -> Port:
    """Numbers for every action of a chunk; in physical units unless `unit` says otherwise."""
    units = list(spec.action.unit) if spec.action.unit else "as recorded"
    return Port(name, "float32", (BATCH, chunk, spec.action_dim), unit or units, about)


GUESS = "the plan that is carried out, without the actions that were; the last is repeated up to the chunk's length"


def replanned(spec: Spec, chunk: int) -> tuple[Port, ...]:
    """The inputs of a replan that say what it goes on from."""
    elapsed = Port("elapsed", "int64", (), "actions", "how many at the guess's end are repetitions: fewer than the chunk")
    return (chunk_port("guess", spec, chunk, GUESS), elapsed)


SURPRISE = Port("surprise", "float32", (BATCH,), "half ranges", "RMS distance of the first belief from the guess")


def gap(
    belief: Float[Tensor, "batch chunk action"],
    guess: Float[Tensor, "batch chunk action"],
    elapsed: Int[Tensor, ""],
    asked: Bool[Tensor, "batch chunk action"] | None = None,
) -> Float[Tensor, "batch"]:
    """`core.start.distance` where `elapsed` is a tensor."""
    known = (torch.arange(guess.shape[1]) < guess.shape[1] - elapsed)[None, :, None].expand_as(guess)
    about = (known if asked is None else known & asked).to(guess.dtype)
    return (((belief - guess).square() * about).sum((1, 2)) / about.sum((1, 2)).clamp(min=1)).sqrt()
