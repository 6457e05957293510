"""What `kinoise eval` is told."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from omegaconf import MISSING

from .. import envs
from ..config import parse
from ..policies.checkpoint import FRAME
from ..policies.decode import DecodeChanges
from .latency import HELP
from .launch import HELP as LAUNCHER
from .launch import Cluster
from .presets import EPISODES, PRESETS, SEED
from .rollout import SLOTS
from .slot import TURNS, UPRIGHT
from .workers import TIMEOUT_S

ABOUT = """Plays episodes with a trained policy and writes DIR/result.json: success per task with 95 % intervals, every episode,
what planning cost. The same command gives the same episodes; with resume=true it goes on after a kill. Parts played with
shard= become one result by kinoise merge; launcher= plays and merges them (docs/scaling.md)."""


@dataclass
class Settings:
    """The whole command line of `kinoise eval`."""

    run: str = field(default=MISSING, metadata={"help": "a training run, or one of its checkpoints"})
    env: str = field(default="metaworld/mt10", metadata={"help": "tasks to play"})
    protocol: str | None = field(
        default=None, metadata={"help": "a preset of what is null among episodes, seed, horizon, wait, images and perturb"}
    )
    episodes: int | None = field(default=None, metadata={"help": f"per task; null: the protocol's, or {EPISODES}"})
    seed: int | None = field(
        default=None, metadata={"help": f"what initial states and the policy's noise are drawn from; null: {SEED}"}
    )
    out: str | None = field(
        default=None, metadata={"help": "where result.json and videos go; RUN/eval if null, with shard=2/8 RUN/eval/2-of-8"}
    )
    resume: bool = field(default=False, metadata={"help": "play only the episodes that out= lacks"})
    shard: str | None = field(default=None, metadata={"help": "such as 2/8: play the second of eight parts"})
    launcher: str | None = field(default=None, metadata={"help": LAUNCHER})
    shards: int | None = field(default=None, metadata={"help": "launcher's parts; null: as many as there is room for at once"})
    until: float | None = field(
        default=None, metadata={"help": "stop once half the overall interval's width is at most this, such as 0.02"}
    )
    execute: int | None = field(default=None, metadata={"help": "actions carried out of each plan; null: the policy's own"})
    latency: str = field(
        default="0", metadata={"help": f"seconds that a plan takes, during which the simulator goes on: {HELP}"}
    )
    ensemble: float | None = field(
        default=None, metadata={"help": "carry out means over all plans at hand, weights exp(-ensemble i), oldest first"}
    )
    pin: bool = field(default=False, metadata={"help": "plans begin with what is carried out meanwhile"})
    horizon: int | None = field(
        default=None, metadata={"help": "most steps of an episode; null: the protocol's, or the simulator's own"}
    )
    wait: int | None = field(
        default=None, metadata={"help": "steps before the policy sees anything; null: 10 of LIBERO, else 0"}
    )
    images: str | None = field(default=None, metadata={"help": f"how they are turned: {', '.join(TURNS)}; null: {UPRIGHT}"})
    perturb: str | None = field(default=None, metadata={"help": "such as camera:0.05,lighting:0.5; null: nothing"})
    video: int = field(default=0, metadata={"help": "films of so many successes and so many failures of each task"})
    data: str | None = field(default=None, metadata={"help": "demonstrations; a note says if initial states occur in them"})
    ema: bool = field(default=True, metadata={"help": "use the averaged weights"})
    frame: str | None = field(default=None, metadata={"help": FRAME})
    device: str = field(default="auto", metadata={"help": "of the policy: cpu, cuda, or auto: cuda where there is one"})
    compile: bool = field(default=False, metadata={"help": "compile plans: the first of a kind takes seconds, the others less"})
    bf16: bool = field(default=False, metadata={"help": "multiply in bfloat16, which rounds; pays for large networks"})
    workers: int | None = field(default=None, metadata={"help": "processes for the simulators; null: one for each core"})
    slots: int = field(default=SLOTS, metadata={"help": "episodes under way at once"})
    threads: int = field(default=1, metadata={"help": "of the policy, on the CPU; more than spare cores slows everything"})
    timeout: float = field(default=TIMEOUT_S, metadata={"help": "seconds after which a simulator that hangs is started again"})
    decode: DecodeChanges = field(default_factory=DecodeChanges)
    cluster: Cluster = field(default_factory=Cluster)


def read_settings(argv: Sequence[str]) -> Settings:
    """Raises UsageError for what `kinoise eval` doesn't take."""
    choices = {"env": envs.choices, "protocol": lambda: ", ".join(PRESETS)}
    return parse("eval", Settings, argv, positional="run", about=ABOUT, choices=choices)
