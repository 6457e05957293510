"""Noise processes by name. A new one is a builder and a line in PROCESSES."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ....spec import KinoiseError
from .base import Belief, Denoise, Losses, Network, Prediction, Process
from .gaussian import CLIPS, Gaussian
from .parametrisation import PARAMETRISATIONS
from .schedule import BETAS, EDM, LEVELINGS, SPACINGS, VP, Flow, Schedule


def _option(default: Any, about: str) -> Any:
    return field(default=default, metadata={"help": about})


@dataclass
class ProcessConfig:
    """A noise process by its settings; those of other kinds are ignored.

    Raises KinoiseError for a name it does not know or a number out of range.
    """

    kind: str = _option("flow", "vp, edm or flow")
    parametrisation: str = _option("u", "what the network predicts: eps, x0, v, u (flow's velocity) or F (EDM's)")
    levels: int | None = _option(100, "vp: discrete noise levels; null for a continuous schedule")
    betas: str = _option("squaredcos_cap_v2", "vp: squaredcos_cap_v2 or linear")
    spacing: str = _option("trailing", "vp: the levels that a plan visits, diffusers' trailing or leading")
    sigma_min: float = _option(0.001, "edm: the least noise, in units of normalised actions")
    sigma_max: float = _option(80.0, "edm: the most noise, in units of normalised actions")
    sigma_data: float = _option(0.5, "F and edm: the deviation of normalised actions")
    grid: str = _option("exponential", "edm: spacing of the noise levels of a plan: exponential, karras or uniform")
    clip: float | None = _option(None, "clamp of the predicted action, in normalised units; null for none")
    clips: str = _option("belief", "what clip bounds: belief, or in each step its signal alone (diffusers' DDIM)")
    time: str = _option("default", "training noise levels: default (the process's own), uniform or logit_normal")

    def __post_init__(self) -> None:
        names = {
            "kind": PROCESSES,
            "parametrisation": PARAMETRISATIONS,
            "betas": BETAS,
            "spacing": LEVELINGS,
            "grid": SPACINGS,
            "clips": CLIPS,
            "time": TIMES,
        }
        for name, known in names.items():
            if getattr(self, name) not in known:
                raise KinoiseError(f"process.{name}={getattr(self, name)}: expected one of {', '.join(known)}")
        if self.levels is not None and self.levels < 1:
            raise KinoiseError(f"process.levels={self.levels}: expected at least 1, or null")
        if not 0 < self.sigma_min < self.sigma_max:
            raise KinoiseError(
                f"process.sigma_min={self.sigma_min}, sigma_max={self.sigma_max}: expected 0 < sigma_min < sigma_max"
            )
        if self.sigma_data <= 0 or (self.clip is not None and self.clip <= 0):
            raise KinoiseError(f"process.sigma_data={self.sigma_data}, clip={self.clip}: expected positive numbers")


def _logit_normal(u: Tensor) -> Tensor:
    """Esser et al. 2024, section 3.1, with location 0 and scale 1."""
    return torch.special.ndtri(u).sigmoid()


TIMES: dict[str, Callable[[Tensor], Tensor] | None] = {"default": None, "uniform": torch.clone, "logit_normal": _logit_normal}

PROCESSES: dict[str, Callable[[ProcessConfig], Schedule]] = {
    "vp": lambda config: VP(config.levels, config.betas, config.spacing),
    "edm": lambda config: EDM(config.sigma_min, config.sigma_max, config.grid),
    "flow": lambda config: Flow(),
}


def make_process(config: ProcessConfig) -> Gaussian:
    """The process that `config` describes."""
    return Gaussian(
        PROCESSES[config.kind](config),
        config.parametrisation,
        sigma_data=config.sigma_data,
        clip=config.clip,
        clips=config.clips,
        quantile=TIMES[config.time],
    )


__all__ = [
    "PARAMETRISATIONS",
    "PROCESSES",
    "Belief",
    "Denoise",
    "Gaussian",
    "Losses",
    "Network",
    "Prediction",
    "Process",
    "ProcessConfig",
    "make_process",
]
