"""What `kinoise train` may be told, and what may differ when a run is resumed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from omegaconf import MISSING

from ..config import UsageError, check_seed, flat
from ..policies import POLICIES
from .augment import AugmentConfig

PRECISIONS = ("auto", "no", "bf16")
PARALLEL = ("auto", "ddp", "fsdp")
DEVICES = ("auto", "cpu")

# What watches a run, or shares its work out, without changing what is computed. Where the data lie is free too: what they are
# is compared instead.
FREE = {"data", "format", "filter", "rate", "cache", "out", "resume", "env"} | {
    f"train.{name}"
    for name in (
        *("steps", "log_every", "save_every", "keep", "validate_every", "eval_every", "eval_episodes", "tensorboard", "wandb"),
        *("trackio", "prefetch", "parallel", "accumulate"),
    )
}


@dataclass
class TrainConfig:
    """AdamW with a linear warm-up and a cosine to `floor`, weights averaged as in Diffusion Policy's release."""

    steps: int = field(default=6000, metadata={"help": "updates of the weights; may grow when a run is resumed"})
    batch_size: int = field(default=128, metadata={"help": "windows in an update, over all processes"})
    lr: float = field(default=1e-3, metadata={"help": "learning rate at its peak"})
    warmup: int = field(default=300, metadata={"help": "updates over which the learning rate rises from 0"})
    floor: float = field(default=0.01, metadata={"help": "learning rate at the end, as a share of its peak"})
    betas: list[float] = field(default_factory=lambda: [0.9, 0.95], metadata={"help": "AdamW's two decay rates"})
    weight_decay: float = field(default=0.05, metadata={"help": "AdamW's; never on norms, biases and embeddings"})
    clip: float = field(default=1.0, metadata={"help": "largest norm of the gradient; 0 is no clipping"})
    ema: bool = field(default=True, metadata={"help": "keep averaged weights, the ones that are evaluated"})
    ema_power: float = field(default=0.75, metadata={"help": "the average's decay after n updates is 1 - (1 + n)^-power"})
    ema_max: float = field(default=0.9999, metadata={"help": "and at most this"})
    device: str = field(default="auto", metadata={"help": f"one of {', '.join(DEVICES)}; auto is what Accelerate finds"})
    precision: str = field(
        default="auto", metadata={"help": f"one of {', '.join(PRECISIONS)}; auto is bf16 where a GPU has it"}
    )
    parallel: str = field(
        default="auto",
        metadata={"help": f"one of {', '.join(PARALLEL)}: with several processes, whole weights in each or a share of them"},
    )
    accumulate: int = field(
        default=1, metadata={"help": "parts that a process computes its share of a batch in, for less memory"}
    )
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    prefetch: int = field(default=1, metadata={"help": "batches made ahead by a thread while the network learns; 0 is none"})
    compile: bool = field(default=False, metadata={"help": "torch.compile the loss; pays on a GPU after a minute"})
    log_every: int = field(default=50, metadata={"help": "updates between lines of metrics.jsonl"})
    save_every: int = field(default=1000, metadata={"help": "updates between checkpoints; the last is always saved"})
    keep: int = field(default=2, metadata={"help": "checkpoints kept, the newest ones"})
    validation: float = field(default=0.0, metadata={"help": "share of the episodes held out for a validation loss"})
    validate_every: int = field(default=500, metadata={"help": "updates between validation losses"})
    eval_every: int = field(default=0, metadata={"help": "updates between evaluations in env; 0 is never"})
    eval_episodes: int = field(default=5, metadata={"help": "episodes per task in such an evaluation"})
    tensorboard: bool = field(default=True, metadata={"help": "write OUT/tensorboard"})
    wandb: str | None = field(default=None, metadata={"help": "Weights & Biases project to log to"})
    trackio: str | None = field(default=None, metadata={"help": "Trackio project to log to"})

    def __post_init__(self) -> None:
        self._expect("at least 1", lambda value: value >= 1, "steps", "batch_size", "log_every", "save_every", "keep")
        self._expect("at least 1", lambda value: value >= 1, "validate_every", "eval_episodes", "accumulate")
        self._expect("at least 0", lambda value: value >= 0, "warmup", "weight_decay", "clip", "eval_every", "prefetch")
        self._expect("above 0", lambda value: value > 0, "lr", "ema_power")
        self._expect("from 0 to 1", lambda value: 0 <= value <= 1, "floor", "ema_max")
        self._expect("from 0 to below 1", lambda value: 0 <= value < 1, "validation")
        self._expect("two numbers from 0 to below 1", lambda pair: len(pair) == 2 and all(0 <= b < 1 for b in pair), "betas")
        self._expect(f"one of {', '.join(DEVICES)}", lambda value: value in DEVICES, "device")
        self._expect(f"one of {', '.join(PRECISIONS)}", lambda value: value in PRECISIONS, "precision")
        self._expect(f"one of {', '.join(PARALLEL)}", lambda value: value in PARALLEL, "parallel")

    def _expect(self, what: str, holds: Any, *names: str) -> None:
        for name in names:
            value = getattr(self, name)
            if not holds(value):
                raise UsageError(f"train.{name}={value}: expected {what}")


@dataclass
class Settings:
    """The whole command line of `kinoise train`."""

    policy: Any = MISSING
    data: str = field(default=MISSING, metadata={"help": "demonstrations to learn from"})
    out: str = field(default=MISSING, metadata={"help": "directory of the run"})
    format: str | None = field(default=None, metadata={"help": "of data, when it is not recognised"})
    filter: str | None = field(default=None, metadata={"help": "the subset of episodes to learn from, by its name in data"})
    rate: float | None = field(default=None, metadata={"help": "control steps per second, where data doesn't say or is wrong"})
    cache: str | None = field(default=None, metadata={"help": "folder of decoded copies of data; none is `cache` beside out"})
    seed: int = field(default=0, metadata={"help": "initial weights, order of the data and noise are functions of it"})
    resume: bool = field(default=False, metadata={"help": "go on from the newest checkpoint in out, if there is one"})
    env: str | None = field(default=None, metadata={"help": "where train.eval_every evaluates"})
    train: TrainConfig = field(default_factory=TrainConfig)

    def __post_init__(self) -> None:
        check_seed(self.seed)
        if not self.out:
            raise UsageError("out=: expected the run's directory")
        if self.cache == "":
            raise UsageError("cache=: expected a folder; leave it out for the one beside out")
        if self.train.eval_every and self.env is None:
            raise UsageError("train.eval_every needs an environment: add env=metaworld/mt10, or leave it 0")


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What a resumed run may not change and does, one `key: before -> now` each; both as nested JSON of `Settings`.

    A setting that only watches the run may change. `train.steps` may grow; the learning rate then follows the longer cosine.
    One that is younger than the run was then what it is by default.
    """
    usual = {"policy": asdict(POLICIES[now["policy"]["name"]].config()), "train": asdict(TrainConfig())}
    old, new = {**dict(flat(usual)), **dict(flat(before))}, dict(flat(now))
    keys = [key for key in {**dict(flat(before)), **new} if key not in FREE and old.get(key) != new.get(key)]
    if not isinstance(old["train.steps"], int) or new["train.steps"] < old["train.steps"]:
        keys.append("train.steps")
    notes = {"train.steps": " (it may only grow)"}
    return [f"{key}: {old.get(key)} -> {new.get(key)}{notes.get(key, '')}" for key in keys]
