"""`kinoise fit-cache RUN data=DATA budget=10`: which evaluations of a plan need not compute which residual branch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace

import numpy as np
import torch
from omegaconf import MISSING
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Column, Table

from ..config import UsageError, check_seed, parse
from ..data import FORMATS, open_store
from ..data.base import EpisodeStore
from ..data.windows import Windows
from ..files import read_json, write_json
from ..policies.base import Policy
from ..policies.caching import fingerprint
from ..policies.checkpoint import FRAME, load_policy, resolve
from ..policies.core.schedules import METHODS, Features, Schedule, bubbling, reuse_error, uniform
from ..policies.decode import CacheSchedule, DecodeChanges
from ..policies.discrete_vla import TokenDecodeConfig
from ..spec import KinoiseError

ABOUT = """Plans at random places of demonstrations, keeps what every residual branch gives in every evaluation, and chooses for
each branch the `budget` evaluations that compute it; the others take its last output. The schedule goes into the checkpoint's
own settings (decode.cache=fitted), for the sampler and the steps that it was fitted to. What it costs in the features is shown
on as many other places, beside the uniform schedule; what it costs in success, and whether fewer steps without a cache are as
fast and as good, only episodes can tell."""


@dataclass
class Settings:
    run: str = field(default=MISSING, metadata={"help": "a run or a checkpoint"})
    data: str = field(default=MISSING, metadata={"help": "demonstrations"})
    budget: int = field(default=10, metadata={"help": "evaluations that compute a branch"})
    method: str = field(default="adaptive", metadata={"help": f"one of {', '.join(METHODS)}"})
    union: int = field(default=1, metadata={"help": "adaptive: feed-forwards that always see fresh inputs (bubbling union)"})
    windows: int = field(default=16, metadata={"help": "places to plan at; as many others are looked at afterwards"})
    seed: int = field(default=0, metadata={"help": "of the places and of the noise"})
    decode: DecodeChanges = field(default_factory=DecodeChanges, metadata={"help": "as for eval: what the schedule is for"})
    ema: bool = field(default=True, metadata={"help": "use the averaged weights"})
    frame: str | None = field(default=None, metadata={"help": FRAME})
    device: str = field(default="auto", metadata={"help": "of the policy: cpu, cuda, or auto"})
    write: bool = field(default=True, metadata={"help": "put the schedule into the checkpoint's config.json"})

    def __post_init__(self) -> None:
        check_seed(self.seed)
        if self.method not in METHODS:
            raise UsageError(f"method={self.method}: expected one of {', '.join(METHODS)}")
        if min(self.budget, self.windows) < 1 or self.union < 0:
            raise UsageError(f"budget={self.budget}, windows={self.windows}, union={self.union}: expected at least 1, 1 and 0")


def main(argv: Sequence[str]) -> int:
    """Raises UsageError for wrong settings, KinoiseError for data that don't fit the policy."""
    settings = parse(
        "fit-cache",
        Settings,
        argv,
        positional="run",
        about=ABOUT,
        choices={"data": lambda: f"formats: {', '.join(FORMATS)}"},
    )
    checkpoint, console = resolve(settings.run), Console()
    policy = load_policy(
        checkpoint,
        ema=settings.ema,
        device=settings.device,
        decode={**settings.decode.given(), "cache": "none"},
        frame=settings.frame,
    )
    seen, unseen = features(policy, open_store(settings.data), settings)
    schedule = fit(seen, settings)
    console.print(table(schedule, seen, unseen))
    count = len(next(iter(seen.values())))
    share = sum(map(len, schedule.values())) / (count * len(schedule))
    console.print(f"{share:.0%} of the branches' outputs are computed in {count} evaluations", highlight=False)
    if settings.write:
        path = checkpoint / "config.json"
        config = read_json(path)
        decode = policy.config.decode
        found = CacheSchedule(settings.method, decode.sampler, policy.evaluations, fingerprint(policy), schedule)
        changes = {"sampler": decode.sampler, "steps": decode.steps, "cache": "fitted", "schedule": asdict(found)}
        config["policy"]["decode"] |= changes
        write_json(path, config)
        console.print(
            f"{path} now has decode.cache=fitted, for {policy.evaluations} evaluations of {decode.sampler}", soft_wrap=True
        )
    return 0


def features(policy: Policy, store: EpisodeStore, settings: Settings) -> tuple[Features, Features]:
    """What every branch gives in full plans at `windows` random places, and at as many others.

    Raises KinoiseError for data that don't fit the policy, or a budget that isn't below the evaluations of a plan.
    """
    policy.spec.require(store.spec.shown_to(policy.spec), ("policy", "data"))
    windows = Windows(store, policy.config.chunk, policy.config.history, keys=list(policy.spec.observations))
    rng = np.random.default_rng(settings.seed)
    count = min(2 * settings.windows, len(windows))
    places = rng.choice(len(windows), count, replace=False)
    if count < 2:
        raise KinoiseError(
            f"{store.path}: it holds one step, and a schedule is fitted to one and shown on another: take more data"
        )
    plain, found = policy.config.decode, []
    whole = {"adaptive": 1.0} if isinstance(plain, TokenDecodeConfig) else {}  # all rounds, of which few plans need the last
    policy.config.decode = replace(plain, cache="none", **whole)
    try:
        for turn, chosen in enumerate(np.array_split(places, 2)):
            recorder = policy.record()
            policy.plan(windows.batch(np.sort(chosen)).observation, torch.Generator().manual_seed(settings.seed + turn))
            found.append({name: torch.stack(items).flatten(2) for name, items in recorder.features.items()})
    finally:
        policy.config.decode = plain
    evaluations = len(next(iter(found[0].values())))
    if settings.budget >= evaluations:
        raise KinoiseError(
            f"budget={settings.budget}: a plan takes {evaluations} evaluations, so nothing would be saved. "
            "Take a smaller budget, or more decode.steps"
        )
    return found[0], found[1]


def fit(seen: Features, settings: Settings) -> Schedule:
    schedule = METHODS[settings.method](seen, settings.budget)
    return bubbling(schedule, seen, settings.union) if settings.method == "adaptive" and settings.union else schedule


def table(schedule: Schedule, seen: Features, unseen: Features) -> Table:
    """A row a branch: how often it is computed, and the errors of what stands for it at other places."""
    rows = Table(
        "branch",
        Column("computed", justify="right"),
        Column("error", justify="right"),
        Column("uniform's", justify="right"),
        "in evaluations",
        box=SIMPLE_HEAD,
    )
    for name, when in schedule.items():
        equal = uniform({name: seen[name]}, len(when))[name]
        errors = [f"{reuse_error(unseen[name], item):.3f}" for item in (when, equal)]
        rows.add_row(name, str(len(when)), *errors, " ".join(map(str, when)))
    return rows
