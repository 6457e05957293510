"""Where a run's plans come from: a thread of this process, a process of its own, or a server."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ..config import UsageError
from ..policies.checkpoint import FRAME, identity, load_policy, resolve
from ..policies.decode import DecodeChanges
from .client import PolicyClient, RemoteInference
from .inference import Inference, PolicyPlanner, ThreadInference
from .messages import Served
from .process import ProcessInference

KINDS = ("thread", "process")


@dataclass
class PlanningConfig:
    """Which policy plans, and where."""

    run: str | None = field(default=None, metadata={"help": "a run or a checkpoint; none with server="})
    ema: bool = field(default=True, metadata={"help": "use the averaged weights"})
    frame: str | None = field(default=None, metadata={"help": FRAME})
    device: str = field(default="auto", metadata={"help": "of the policy: cpu, cuda, or auto: cuda where there is one"})
    compile: bool = field(default=False, metadata={"help": "compile plans: the first of a kind takes seconds, the others less"})
    bf16: bool = field(default=False, metadata={"help": "multiply in bfloat16, which rounds; pays for large networks"})
    threads: int | None = field(default=None, metadata={"help": "torch's threads; all cores but the loop's if null"})
    inference: str | None = field(
        default=None, metadata={"help": f"where the policy plans beside the loop: {' or '.join(KINDS)}; {KINDS[0]} if null"}
    )
    server: str | None = field(default=None, metadata={"help": "ws://host:port of a policy server, instead of RUN"})
    token: str | None = field(default=None, metadata={"help": "the server's; token='${oc.env:NAME}' takes it from there"})
    decode: DecodeChanges = field(default_factory=DecodeChanges)

    def __post_init__(self) -> None:
        if (self.run is None) == (self.server is None):
            raise UsageError("expected a run or a checkpoint, or server=ws://host:port, and not both")
        if self.threads is not None and self.threads < 1:
            raise UsageError(f"threads={self.threads}: expected a number above 0")
        if self.inference not in (None, *KINDS):
            raise UsageError(f"inference={self.inference}: expected {' or '.join(KINDS)}")
        if self.server is None:
            if self.token is not None:
                raise UsageError("token= is a server's: give server= with it")
            return
        usual = {
            "ema": True,
            "frame": None,
            "device": "auto",
            "compile": False,
            "bf16": False,
            "threads": None,
            "inference": None,
        }
        changed = [name for name, value in usual.items() if getattr(self, name) != value]
        changed += [f"decode.{name}" for name in self.decode.given()]
        if changed:
            raise UsageError(f"{changed[0]}= is settled where the server was started: leave it out with server=")


@dataclass(frozen=True)
class Planning:
    """A policy that is ready to plan.

    Args:
        inference: asks it.
        served: its spec and lengths.
        policy: which one it is, for `control.json`.
        decode: how it decodes, for `control.json`; {} where only its server knows.
        repeat: what planning again takes, for a trace.
    """

    inference: Inference
    served: Served
    policy: dict[str, Any]
    decode: dict[str, Any]
    repeat: dict[str, Any]


@dataclass(frozen=True)
class Load:
    """Loads a checkpoint as a planner, in this process or another; the arguments are those of `load_policy`."""

    checkpoint: Path
    ema: bool
    device: str
    decode: Mapping[str, Any]
    seed: int
    compile: bool = False
    bf16: bool = False
    frame: str | None = None

    def __call__(self) -> tuple[PolicyPlanner, dict[str, Any]]:
        policy = load_policy(
            self.checkpoint,
            ema=self.ema,
            device=self.device,
            decode=self.decode,
            compile=self.compile,
            bf16=self.bf16,
            frame=self.frame,
        )
        which = identity(policy, self.checkpoint, self.ema)
        about = {
            "served": Served.of(policy, which["sha256"]).to_message(),
            "policy": which,
            "decode": asdict(policy.config.decode),
        }
        return PolicyPlanner(policy, self.seed), about


@contextmanager
def planning(config: PlanningConfig, seed: int) -> Iterator[Planning]:
    """The policy that `config` names, its inference closed at the end of the block.

    Raises KinoiseError when it can't be loaded, or its server not be reached.
    """
    if config.server is not None:
        client = PolicyClient(config.server, config.token)
        inference, served = RemoteInference(client), client.served
        which = {"name": served.policy, "checkpoint": None, "sha256": served.sha256, "parameters": None}
        with closing(inference):
            yield Planning(inference, served, {**which, "server": config.server}, {}, {"kind": "server", "seed": None})
        return
    assert config.run is not None
    load = Load(
        resolve(config.run),
        config.ema,
        config.device,
        config.decode.given(),
        seed,
        compile=config.compile,
        bf16=config.bf16,
        frame=config.frame,
    )
    kind, threads = config.inference or KINDS[0], config.threads or max(1, len(os.sched_getaffinity(0)) - 1)
    if kind == "thread":
        planner, about = load()
        inference = ThreadInference(planner, threads=threads)
    else:
        inference = ProcessInference(load, threads=threads)
        about = _waited(inference)
    with closing(inference):
        again = ("ema", "device", "decode", "seed", "compile", "bf16", "frame")
        repeat = {"kind": kind, "threads": threads, **{key: getattr(load, key) for key in again}}
        decode = {**about["decode"], "threads": threads}
        which = dict(about["policy"])
        yield Planning(inference, Served.from_message(about["served"]), which, decode, {**repeat, "sha256": which["sha256"]})


def _waited(inference: ProcessInference) -> Mapping[str, Any]:
    try:
        return inference.about()
    except BaseException:  # Ctrl-C among them
        inference.close()
        raise
