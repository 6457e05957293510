"""One plan of kinoise's policies beside their peers': `python -m benchmarks.peers` (batch 1, alternating, one run).

All see a state of 39 numbers and plan 16 actions of 4 in 10 evaluations of about as large a network, with untrained weights and
the same number of threads; which of them acts better is not asked. At two sizes:

- `kinoise`: `Policy.plan` of the preset `ddim`; `kinoise_mode`: of `mode`; `..._compiled`: the same, compiled; `..._bf16`:
  compiled, and multiplying in bfloat16;
- `diffusers`: the network of `kinoise` in the loop that its scheduler's documentation shows; the plan is the same,
  `agrees_within`;
- `lerobot`: LeRobot's DiffusionPolicy (a U-Net), in an environment of its own in `folder`, which the first run makes. Its
  normalisation, a step before and after the policy, is not in its time; kinoise's is;
- `diffusion_policy`'s transformer policy and `mode`, the network and sampler of MoDE's release: from checkouts in
  `sources/diffusion_policy` and `sources/MoDE_Diffusion_Policy`, where there are any.

`slower` is the median ratio to the plan of kinoise's policy of that kind, of the same round, with quartiles;
`slower_than_compiled` and `slower_than_bf16` to those of its faster ones. The peers are as they come: float32, not compiled.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from diffusers import DDIMScheduler
from kinoise.config import UsageError, parse, run
from kinoise.policies import build_policy, choices
from kinoise.policies.core.random import normal
from kinoise.policies.diffusion import DiffusionPolicy
from kinoise.spec import Feature, Observation, Spec, Stats
from omegaconf import OmegaConf

from .peer import Absent, Peer, environment
from .record import milliseconds, ratio, write
from .speed import alternate

STATE, ACTIONS, CHUNK, STEPS, LEVELS = (4, 35), 4, 16, 10, 100
"""The state's parts: the hand, as LeRobot wants it told apart, and what else there is."""
SIZES: dict[str, dict[str, Any]] = {
    "1M": {
        "ddim": {"width": 128, "depth": 3, "heads": 4},
        "mode": {"width": 136, "depth": 3, "heads": 4},
        "lerobot": [24, 48, 96],
        "diffusion_policy": {"n_emb": 128, "n_layer": 3, "n_head": 4},
        "mode_release": {"embed_dim": 80, "n_layers": 3, "n_heads": 4},
    },
    "10M": {
        "ddim": {"width": 320, "depth": 6, "heads": 8},
        "mode": {"width": 304, "depth": 6, "heads": 8},
        "lerobot": [96, 200, 408],
        "diffusion_policy": {"n_emb": 304, "n_layer": 6, "n_head": 8},
        "mode_release": {"embed_dim": 176, "n_layers": 6, "n_heads": 8},
    },
}
LEROBOT = ("torchvision==0.28.0", "lerobot==0.4.4")
"""Installed alone: both ask for other builds of torch."""
NEEDS = (
    "accelerate>=1.10,<2",
    "av>=15,<16",
    "datasets>=4,<5",
    "deepdiff>=7,<9",
    "diffusers>=0.27.2,<0.36",
    "draccus==0.10.0",
    "einops",
    "gymnasium",
    "huggingface-hub>=0.34.2,<0.36",
    "imageio",
    "jsonlines>=4,<5",
    "numpy",
    "pillow",
    "pyserial",
    "safetensors",
    "termcolor",
)
"""What importing LeRobot's diffusion policy imports."""
NOISE = 0.05
"""On our weights: as they are initialised, gates and the last layer are 0, and every plan would agree with every other."""
SOURCES = {"diffusion_policy": "diffusion_policy", "mode": "MoDE_Diffusion_Policy"}
"""The folders of their checkouts."""
SOURCE_NEEDS = (
    "diffusers>=0.35,<0.36",
    "einops",
    "hydra-core",
    "matplotlib",
    "numpy",
    "scipy",
    "torchdiffeq",
    "torchsde",
    "tqdm",
    "zarr",
)
RELEASES = {"diffusion_policy": "diffusion_policy", "mode": "mode_release"}
OURS = {"diffusers": "kinoise", "lerobot": "kinoise", "diffusion_policy": "kinoise", "mode": "kinoise_mode"}
"""Whose plan a peer's is compared with."""


@dataclass
class Settings:
    """The whole command line."""

    plans: int = field(default=60, metadata={"help": "timed, of each side"})
    threads: int = field(default=1, metadata={"help": "torch's, on every side"})
    sizes: list[str] = field(default_factory=lambda: list(SIZES), metadata={"help": f"of {', '.join(SIZES)}"})
    lerobot: bool = field(default=True, metadata={"help": "measure LeRobot's, which the first run installs: 1.5 GB"})
    folder: str = field(default="~/.cache/kinoise/peers", metadata={"help": "where the peers' environments are"})
    sources: str | None = field(default=None, metadata={"help": f"folder with checkouts: {', '.join(SOURCES.values())}"})
    name: str = field(default="peers", metadata={"help": "results/NAME.json"})

    def __post_init__(self) -> None:
        unknown = [name for name in self.sizes if name not in SIZES]
        if unknown or not self.sizes:
            raise UsageError(f"sizes={self.sizes}: expected some of {', '.join(SIZES)}")
        if self.plans < 1 or self.threads < 1:
            raise UsageError(f"plans={self.plans}, threads={self.threads}: at least 1 of each is needed")


def untrained(preset: str, network: dict[str, Any]) -> DiffusionPolicy:
    """Our policy, for a state of 39 numbers between -1 and 1."""
    action = Feature((ACTIONS,), low=(-1.0,) * ACTIONS, high=(1.0,) * ACTIONS)
    spec = Spec({"state": Feature((sum(STATE),))}, action, rate=20.0, language=False)
    changes: dict[str, Any] = {"network": network, "chunk": CHUNK, "decode": {"sampler": "ddim", "steps": STEPS}}
    if preset == "mode":
        changes["decode"] = {"steps": STEPS}
    config = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(choices()[preset]), changes))
    policy = build_policy(config, spec, {"state": plain(sum(STATE)), "action": plain(ACTIONS)}, ())  # type: ignore[arg-type]
    assert isinstance(policy, DiffusionPolicy)
    gen = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for item in policy.parameters():
            item.add_(NOISE * normal(item.shape, gen))
    return policy.eval()


def plain(numbers: int) -> Stats:
    low, high = (-1.0,) * numbers, (1.0,) * numbers
    return Stats(mean=(0.0,) * numbers, std=high, min=low, max=high, q01=low, q99=high, count=1)


def scheduler_loop(policy: DiffusionPolicy) -> Callable[[Observation, torch.Generator], torch.Tensor]:
    """A plan by diffusers' scheduler around our network: what depends on the noise level is worked out in every evaluation."""
    settings = policy.config.process
    scheduler = DDIMScheduler(
        num_train_timesteps=LEVELS,
        beta_schedule=settings.betas,
        prediction_type="epsilon",
        timestep_spacing="trailing",
        clip_sample=settings.clip is not None,
        clip_sample_range=settings.clip or 1.0,
    )

    @torch.inference_mode()
    def plan(obs: Observation, gen: torch.Generator) -> torch.Tensor:
        context = policy.observe(obs)
        x = normal((1, CHUNK, ACTIONS), gen)
        scheduler.set_timesteps(STEPS)
        for step in scheduler.timesteps:
            level = policy.network.level(policy.process.label((step + 1) / LEVELS))
            noise = policy.network(x, level, context).value
            x = scheduler.step(noise, step, x, use_clipped_model_output=True).prev_sample
        return policy.codec.decode(x)

    return plan


def timed(work: Callable[[torch.Generator], object]) -> Callable[[int], float]:
    """A side for `alternate`, which draws from a generator seeded with the round's number."""

    def side(number: int) -> float:
        gen = torch.Generator().manual_seed(number + LEVELS)
        started = time.perf_counter()
        work(gen)
        return time.perf_counter() - started

    return side


def measure(size: str, settings: Settings, peers: dict[str, tuple[Path, dict[str, Any]]]) -> dict[str, Any]:
    """The sides at one size.

    Args:
        peers: the Python and the settings of those in a process of their own.
    """
    sizes = SIZES[size]
    obs = Observation({"state": torch.zeros(1, 1, sum(STATE))}, (), None)
    sides: dict[str, Callable[[int], float]] = {}
    about: dict[str, dict[str, Any]] = {}
    for name, preset in (("kinoise", "ddim"), ("kinoise_mode", "mode")):
        for label in (name, f"{name}_compiled", f"{name}_bf16"):
            policy = untrained(preset, sizes[preset])
            if label != name:
                policy.compiled()
            if label.endswith("_bf16"):
                policy.reduced()
            policy.plan(obs, torch.Generator().manual_seed(0))
            sides[label] = timed(partial(policy.plan, obs))
            about[label] = {"parameters": policy.parameter_count}
    policy = untrained("ddim", sizes["ddim"])
    loop = scheduler_loop(policy)
    ours, theirs = policy.plan(obs, torch.Generator().manual_seed(0)), loop(obs, torch.Generator().manual_seed(0))
    sides["diffusers"] = timed(lambda gen: loop(obs, gen))
    agrees = float((ours.actions - theirs).abs().max())
    about["diffusers"] = {"parameters": policy.parameter_count, "agrees_within": agrees}
    with ExitStack() as stack:
        for name, (python, told) in peers.items():
            same = {"observations": STATE, "actions": ACTIONS, "chunk": CHUNK, "steps": STEPS, "threads": settings.threads}
            own = {"down_dims": sizes[name]} if name == "lerobot" else {"network": sizes[RELEASES[name]]}
            script = Path(__file__).parent / ("lerobot_side.py" if name == "lerobot" else "source_side.py")
            peer = stack.enter_context(Peer(python, script, {**same, **own, **told}))
            sides[name], about[name] = peer, peer.about
        times = alternate(sides, settings.plans)
    return {name: {**about[name], "plan_ms": milliseconds(own), **slower(name, times)} for name, own in times.items()}


def slower(name: str, times: dict[str, list[float]]) -> dict[str, Any]:
    """How many times as long as ours a plan takes."""
    ours = OURS.get(name, name.removesuffix("_compiled").removesuffix("_bf16"))
    return {
        "slower": ratio(times[name], times[ours]),
        "slower_than_compiled": ratio(times[name], times[f"{ours}_compiled"]),
        "slower_than_bf16": ratio(times[name], times[f"{ours}_bf16"]),
    }


def lerobot_environment(folder: Path) -> Path:
    """The Python of LeRobot's environment in `folder`, made where it is not there yet. Raises Absent as `environment` does."""
    return environment(folder / "-".join(LEROBOT).replace("==", "-"), LEROBOT, NEEDS)


def reached(settings: Settings) -> tuple[dict[str, tuple[Path, dict[str, Any]]], dict[str, str]]:
    """The peers in processes of their own that can be had, and why the others can't."""
    folder = Path(settings.folder).expanduser()
    found: dict[str, tuple[Path, dict[str, Any]]] = {}
    absent: dict[str, str] = {}
    try:
        if settings.lerobot:
            found["lerobot"] = lerobot_environment(folder), {}
    except Absent as error:
        absent["lerobot"] = str(error)
    for name, checkout in SOURCES.items():
        source = Path(settings.sources or ".").expanduser() / checkout
        if settings.sources is None or not source.is_dir():
            absent[name] = f"a source tree and no package: sources={settings.sources} holds no checkout {checkout}"
            continue
        try:
            found[name] = environment(folder / "sources", (), SOURCE_NEEDS), {"what": name, "source": str(source.resolve())}
        except Absent as error:
            absent[name] = str(error)
    return found, absent


def main(argv: Sequence[str]) -> int:
    settings = parse("peers", Settings, argv, about=__doc__ or "")
    torch.set_num_threads(settings.threads)
    found, absent = reached(settings)
    sizes = {size: measure(size, settings, found) for size in settings.sizes}
    same = {"state": sum(STATE), "chunk": CHUNK, "actions": ACTIONS, "evaluations": STEPS, "threads": settings.threads}
    write(settings.name, {"same": same, "plans": settings.plans, "sizes": sizes, "absent": absent})
    return 0


if __name__ == "__main__":
    sys.exit(run(main, sys.argv[1:]))
