"""Protocols by name: how others evaluate, as numbers, and what a command changes of them."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

from .. import envs
from ..config import UsageError, check_seed
from ..envs.mapping import is_mapping
from ..envs.remote.place import split
from .protocol import COUNTED, HASHED, SEEDED, STORED, EvaluationProtocol
from .slot import MIRRORED, TURNS, UPRIGHT, UPSIDE_DOWN, Simulator

EPISODES, SEED = 10, 1000
FOLLOWING = ("name", "seeding", "wait", "idle", "images", "size", "perturb")
"""Values of a protocol that follow from what `as_settings` gives."""


@dataclass(frozen=True)
class Preset:
    """A protocol's values for one simulator.

    Args:
        episodes: of each task.
        horizon: steps after which an episode has failed; by suite where they differ.
        wait: steps that pass before the policy sees anything.
        idle: the action of these steps; None: the simulator's own.
        images: how they are turned, a key of TURNS.
        size: of images, in pixels a side; None where it says nothing of images.
        seed: what initial states are drawn from; None: SEED.
        seeding: how an episode's seed follows from it.
        perturb: strengths of perturbations, by kind.
    """

    episodes: int
    horizon: int | Mapping[str, int]
    wait: int = 0
    idle: tuple[float, ...] | None = None
    images: str = UPRIGHT
    size: int | None = None
    seed: int | None = None
    seeding: str = HASHED
    perturb: Mapping[str, float] = field(default_factory=dict)


def _libero(spatial: int, objects: int, goal: int, ten: int, ninety: int) -> dict[str, int]:
    names = ("spatial", "object", "goal", "10", "90")
    return {f"libero/{name}": steps for name, steps in zip(names, (spatial, objects, goal, ten, ninety), strict=True)}


# A little more than the longest demonstration of each suite.
DEMONSTRATED = _libero(220, 280, 300, 520, 400)
OPEN = (0.0,) * 6 + (-1.0,)
OPENVLA = Preset(episodes=50, horizon=DEMONSTRATED, wait=10, idle=OPEN, images=MIRRORED, size=256)

# Strengths at which a perturbation is easily seen and every task can still be done.
STANDARD = {"positions": 0.05, "lighting": 0.5, "camera": 0.05, "distractors": 3.0, "instruction": 2.0}

PRESETS: dict[str, dict[str, Preset]] = {
    "openvla": {"libero": OPENVLA},
    "openpi": {"libero": OPENVLA},
    "lerobot": {
        "libero": Preset(10, _libero(280, 280, 300, 520, 400), wait=10, idle=OPEN, images=MIRRORED, size=256),
        "metaworld": Preset(10, 500),
    },
    "libero-original": {"libero": Preset(20, 600, wait=5, idle=(0.0,) * 7, images=UPSIDE_DOWN, size=128)},
    "mode": {"libero": Preset(20, 520)},
    "metaworld": {"metaworld": Preset(50, 500)},
    "robomimic": {"robosuite": Preset(50, 400)},
    "diffusion-policy": {
        "pusht": Preset(50, 300, seed=100_000, seeding=COUNTED),
        "robosuite": Preset(50, 400, seed=100_000, seeding=COUNTED),
    },
    **{
        f"libero-{kind}": {"libero": Preset(50, DEMONSTRATED, wait=10, idle=OPEN, perturb={kind: strength})}
        for kind, strength in STANDARD.items()
    },
}
"""By name and simulator. docs/evaluation.md says where the values are from."""


@dataclass(frozen=True)
class Wanted:
    """What a command asks for; None leaves a value to the preset, or to what holds without one.

    Args:
        protocol: a preset's name.
        episodes, horizon, seed, wait, images: see `EvaluationProtocol`.
        perturb: such as "camera:0.05,lighting:0.5"; "" for none.

    Raises:
        UsageError: an unknown preset, unfit values.
    """

    protocol: str | None = None
    episodes: int | None = None
    horizon: int | None = None
    seed: int | None = None
    wait: int | None = None
    images: str | None = None
    perturb: str | None = None

    def __post_init__(self) -> None:
        if self.protocol is not None and self.protocol not in PRESETS:
            close = difflib.get_close_matches(self.protocol, PRESETS, 1)
            hint = f" Did you mean {close[0]}?" if close else ""
            raise UsageError(f"protocol={self.protocol}: the choices are {', '.join(PRESETS)}.{hint}")
        for name in ("episodes", "horizon"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UsageError(f"{name}={value}: at least 1 is needed")
        if self.wait is not None and self.wait < 0:
            raise UsageError(f"wait={self.wait}: expected at least 0 steps")
        if self.images is not None and self.images not in TURNS:
            raise UsageError(f"images={self.images}: the choices are {', '.join(TURNS)}")
        if self.seed is not None:
            check_seed(self.seed)
        self.strengths()

    def preset(self, tasks: Sequence[str]) -> Preset | None:
        """The preset for these tasks, None without one. Raises UsageError when it is for others."""
        if self.protocol is None:
            return None
        there = PRESETS[self.protocol]
        simulators = {_simulator(task) for task in tasks}
        fit = len(simulators) == 1 and simulators <= there.keys()
        preset = there[simulators.pop()] if fit else None
        if preset is None or any(_steps(preset, task) is None for task in tasks):
            others = [name for name, item in PRESETS.items() if _simulator(tasks[0]) in item]
            known = f"For {tasks[0]} there are {', '.join(others)}" if others else f"For {tasks[0]} there is none"
            raise UsageError(f"protocol={self.protocol} is for {', '.join(there)}, and says nothing of {tasks[0]}. {known}.")
        return preset

    def strengths(self, preset: Preset | None = None) -> dict[str, float]:
        """Of the perturbations, by kind. Raises UsageError when they can't be read."""
        if self.perturb is None:
            return {} if preset is None else dict(preset.perturb)
        found: dict[str, float] = {}
        for item in filter(None, self.perturb.split(",")):
            kind, _, text = item.partition(":")
            try:
                strength = float(text)
            except ValueError:
                strength = -1.0
            if not 0 < strength < float("inf") or kind in found:
                raise UsageError(
                    f"perturb={self.perturb}: expected KIND:STRENGTH[,KIND:STRENGTH...] with each kind once and strengths "
                    f"above 0, such as camera:0.05"
                )
            found[kind] = strength
        return found

    def resolve(
        self, env: str, tasks: Sequence[str], simulators: Mapping[str, Simulator], size: int | None = None
    ) -> EvaluationProtocol:
        """The protocol, with every value.

        Args:
            env: as it was asked for.
            tasks: their full ids.
            simulators: what each task's says of itself.
            size: of the images that the policy looks at, if it looks at any.

        Raises:
            UsageError: a preset for other tasks; tasks that begin in different ways; `wait` without an action to wait with.
        """
        preset, simulator = self.preset(tasks), _alike(simulators)
        values: dict[str, Any] = {
            "episodes": EPISODES,
            "horizon": _by_task({task: simulators[task].horizon for task in tasks}),
            "seed": SEED,
            "wait": simulator.settle,
            "images": UPRIGHT,
            "perturb": {},
            "size": None,
        }
        if preset is not None:
            values |= {name: getattr(preset, name) for name in values if name not in ("horizon", "seed")}
            values |= {"horizon": _by_task({task: _steps(preset, task) for task in tasks})}
            values |= {} if preset.seed is None else {"seed": preset.seed}
        asked = {name: getattr(self, name) for name in ("episodes", "horizon", "seed", "wait", "images")}
        asked |= {"perturb": None if self.perturb is None else self.strengths(), "size": values["size"] and size}
        # A seed that a preset leaves open is not its own, and so no change of it.
        free = {"seed"} if preset is not None and preset.seed is None else set()
        changed = [name for name, item in asked.items() if item is not None and item != values[name] and name not in free]
        values |= {name: item for name, item in asked.items() if item is not None}
        name = self.protocol or (STORED if simulator.stored else SEEDED)
        if preset is not None and changed:
            name += f", changed: {', '.join(changed)}"
        elif preset is None and values["perturb"]:
            name += ", perturbed"
        idle = preset.idle if preset is not None and preset.idle is not None else simulator.idle
        if values["wait"] and idle is None:
            raise UsageError(f"wait={values['wait']}: {tasks[0]} has no action that leaves everything as it is")
        return EvaluationProtocol(
            env,
            tuple(tasks),
            name=name,
            seeding=HASHED if preset is None else preset.seeding,
            stored=simulator.stored,
            idle=idle if values["wait"] and idle is not None else (),
            mappings=envs.described(tasks),
            **values,
        )


def survey(tasks: Sequence[str], look: Callable[[str], Simulator]) -> dict[str, Simulator]:
    """What each task's simulator says of itself; one task of each family is looked at. See `Wanted.resolve`."""
    seen = {envs.family(task): look(task) for task in envs.firsts(tasks)}
    found = {task: seen[envs.family(task)] for task in tasks}
    return {task: replace(item, horizon=envs.horizon(task) or item.horizon) for task, item in found.items()}


def check_perturbations(perturb: Mapping[str, float], tasks: Sequence[str]) -> None:
    """Raises UsageError for a kind that the simulator of one of the tasks lacks."""
    for task in tasks if perturb else ():
        known = envs.perturbations(task)
        missing = [kind for kind in perturb if kind not in known]
        if missing:
            there = ", ".join(f"{kind} ({text})" for kind, text in known.items()) or "none"
            raise UsageError(f"perturb={missing[0]}: the perturbations that {task} has: {there}")


def as_settings(protocol: Mapping[str, Any]) -> dict[str, Any]:
    """What makes a result's protocol again on the command line, by setting."""
    preset = protocol["name"].partition(",")[0]
    known = preset in PRESETS
    plain = {item.name: item.default for item in fields(EvaluationProtocol)}
    settings = {"env": protocol["env"]} | ({"protocol": preset} if known else {})
    settings |= {name: protocol[name] for name in ("episodes", "seed")}
    if isinstance(protocol["horizon"], int):
        settings["horizon"] = protocol["horizon"]
    for name in ("wait", "images"):
        if protocol.get(name, plain[name]) != plain[name] or known:
            settings[name] = protocol.get(name, plain[name])
    strengths = protocol.get("perturb") or {}
    if strengths or known:
        settings["perturb"] = ",".join(f"{kind}:{strength:g}" for kind, strength in strengths.items()) or None
    return settings


def _by_task(steps: Mapping[str, int | None]) -> int | Mapping[str, int | None] | None:
    """One number where all are the same."""
    return steps if len(set(steps.values())) > 1 else next(iter(steps.values()))


def _alike(simulators: Mapping[str, Simulator]) -> Simulator:
    """The first, if all begin an episode as it does. Raises UsageError otherwise."""
    first, *others = simulators
    for task in others:
        differ = [
            f"{name}: {mine} and {its}"
            for name in ("stored", "settle", "idle")
            if (mine := getattr(simulators[first], name)) != (its := getattr(simulators[task], name))
        ]
        if differ:
            raise UsageError(f"{first} and {task} begin differently ({'; '.join(differ)}): evaluate them in turn")
    return simulators[first]


def _simulator(task: str) -> str:
    """The first part of its id, wherever it is simulated; "" of a mapping file."""
    _, own = split(task)
    return "" if is_mapping(own) else own.partition("/")[0]


def _steps(preset: Preset, task: str) -> int | None:
    """The horizon of `task`, whose suite is the part of its id before the last "-"; None where the preset lacks it."""
    return preset.horizon if isinstance(preset.horizon, int) else preset.horizon.get(split(task)[1].rpartition("-")[0])
