"""`kinoise train`: a policy from demonstrations."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from contextlib import closing, nullcontext
from functools import partial
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs, KwargsHandler
from rich.console import Console

from ..config import UsageError, parse
from ..data import FORMATS, EpisodeStore, Reading, open_store
from ..data.base import ACTION, Report
from ..data.cache import mapped, measured
from ..data.mixture.store import Mixture
from ..data.windows import Windows
from ..policies import build_policy, choices
from ..policies.base import Policy
from ..policies.checkpoint import load_policy
from ..provenance import bfloat16
from ..spec import KinoiseError
from .augment import check_augment
from .checkpoint import RunDirectory, State
from .config import Settings, TrainConfig, differences
from .loop import Trainer
from .processes import Processes, agent, meeting
from .session import Session, as_json
from .validation import Validation, split

ABOUT = """Trains a policy on demonstrations. OUT/checkpoints/last is the newest checkpoint, which is all that evaluation needs;
OUT/metrics.jsonl and OUT/tensorboard hold the curves, OUT/train.json is the account of a finished run. A run that was
killed goes on with the same command and resume=true, and ends with the weights that it would have had. Several processes train
one policy when torchrun or accelerate launch starts them: see docs/training.md."""

PROBES = 64


def main(argv: Sequence[str]) -> int:
    """See ABOUT. The exit code is 0 after the last update, 130 or 143 after a signal."""
    settings = read_settings(argv)
    accelerator = make_accelerator(settings.train)
    processes = Processes.of(accelerator)
    console = Console(stderr=True, quiet=not processes.leads)
    reading = Reading(format=settings.format, filter=settings.filter, rate=settings.rate)
    run = RunDirectory(Path(settings.out), settings.train.keep)
    store = open_store(settings.data, reading, refusing(settings.data))
    check_augment(settings.train.augment, store.spec)
    cache = Path(settings.out).absolute().parent / "cache" if settings.cache is None else Path(settings.cache)
    starter = agent()
    again = processes.most(run.begun_by(starter)) > 0
    with run.claimed(settings.resume or again) if processes.leads else nullcontext():
        processes.wait()
        run.note(starter)
        if emulated(accelerator.mixed_precision, accelerator.device):
            remark = "note: this CPU has no bfloat16 of its own, so bf16 is much slower here than train.precision=no"
            console.print(remark, highlight=False, soft_wrap=True)
        if not processes.leads:  # until the leader's copy is there: a lock alone is not seen by all machines
            processes.wait()
        store = measured(mapped(store, cache, console=console), cache)
        if processes.leads:
            processes.wait()
        state = newest(run, processes)
        if state is None:
            if settings.resume:
                console.print(f"{run.path}: no checkpoint to resume from, so the run starts from the beginning", soft_wrap=True)
        elif processes.most(is_finished(settings, run, state, store, console)):
            accelerator.end_training()
            return 0
        else:
            console.print(f"{run.path}: going on after update {state.step}", highlight=False, soft_wrap=True)
        session = make_session(settings, run, state, store, accelerator, console, processes)
        if processes.leads:
            run.summary.unlink(missing_ok=True)
            size, count = session.trainer.policy.parameter_count, len(store.ends)
            console.print(f"training {size:,} parameters on {count:,} episodes", highlight=False, soft_wrap=True)
        with closing(session.trainer):
            code = session.train()
    accelerator.end_training()
    return code


def read_settings(argv: Sequence[str]) -> Settings:
    """Raises UsageError for what `kinoise train` doesn't take."""
    return parse(
        "train",
        Settings,
        argv,
        groups={"policy": choices()},
        defaults={"policy": "mode"},
        about=ABOUT,
        choices={"data": lambda: f"formats: {', '.join(FORMATS)}"},
    )


def newest(run: RunDirectory, processes: Processes) -> State | None:
    """The state that all processes go on from. Raises KinoiseError where one of them doesn't see the leader's run."""
    state = run.newest()
    found = -1 if state is None else state.step
    if processes.most(found != processes.told(found)):
        raise KinoiseError(
            f"{run.path}: not all processes see the same checkpoints there. out= has to be on a file system that all machines "
            f"share."
        )
    return state


def refusing(data: str) -> Report:
    """What is wrong with one episode ends training before it begins; the command that lists all of them is said with it."""

    def refuse(problem: str) -> None:
        raise KinoiseError(f"{problem} All that are bad are listed by: kinoise inspect {data}")

    return refuse


def make_accelerator(config: TrainConfig) -> Accelerator:
    """Device, precision and processes as Accelerate finds them: torchrun and `accelerate launch` say so in the environment.

    Raises UsageError when a batch has fewer windows than there are processes and parts, or for a launcher's DeepSpeed, or for
        srun without torchrun.
    """
    if os.environ.get("ACCELERATE_USE_DEEPSPEED", "false").lower() == "true":
        raise UsageError("accelerate launch asks for DeepSpeed, which kinoise doesn't use: take --use_fsdp, or neither")
    if int(os.environ.get("SLURM_STEP_NUM_TASKS", "1")) > 1 and "RANK" not in os.environ:
        raise UsageError("srun starts several of these, and none knows of the others: have it start one torchrun on each node")
    precision = config.precision
    if precision == "auto":
        usable = config.device == "auto" and torch.cuda.is_available() and torch.cuda.is_bf16_supported()
        precision = "bf16" if usable else "no"
    # Without a GPU Accelerate joins processes only where it is told to use the CPU.
    on_cpu = config.device == "cpu" or not torch.accelerator.is_available()
    method = meeting()
    handlers: list[KwargsHandler] = [] if method is None else [InitProcessGroupKwargs(init_method=method)]
    accelerator = Accelerator(mixed_precision=precision, cpu=on_cpu, kwargs_handlers=handlers)
    if config.batch_size < accelerator.num_processes * config.accumulate:
        raise UsageError(
            f"train.batch_size={config.batch_size} is all processes' together, and too few windows for "
            f"{accelerator.num_processes} processes and train.accumulate={config.accumulate}: take at least one for each part"
        )
    return accelerator


def emulated(precision: str, device: torch.device) -> bool:
    """Whether bfloat16 was asked for, and this CPU is known to get there by way of float32."""
    return precision == "bf16" and device.type == "cpu" and bfloat16() is False


def is_finished(settings: Settings, run: RunDirectory, state: State, store: EpisodeStore, console: Console) -> bool:
    """Whether nothing is left to do in a run with checkpoints; says so.

    Raises KinoiseError when the run was started with other settings or data, with every difference.
    """
    changed = differences(state.settings, as_json(settings))
    if state.data != fingerprint(store):
        counts = ": names, order, weights and normalise count too" if isinstance(store, Mixture) else ""
        changed.append(f"data: {settings.data} is not what the run was trained on until now{counts}")
    if changed:
        raise KinoiseError(
            f"{run.path} was started with other settings, and a resumed run has to keep them: {'; '.join(changed)}. "
            f"Take them back, or train anew in another out=."
        )
    if state.step == settings.train.steps and run.summary.exists():
        console.print(f"{run.path} has all its {state.step} updates: nothing left to train", highlight=False, soft_wrap=True)
        return True
    threads = torch.get_num_threads()
    if threads != state.threads:
        console.print(f"note: {threads} threads instead of {state.threads} round differently, so weights will differ slightly")
    return False


def make_session(
    settings: Settings,
    run: RunDirectory,
    state: State | None,
    store: EpisodeStore,
    accelerator: Accelerator,
    console: Console,
    processes: Processes | None = None,
) -> Session:
    """Everything that training needs, new or as it was at `state`.

    Raises KinoiseError for data that can't be trained on, a policy that can't take them, or a damaged checkpoint.
    """
    config, seed = settings.train, settings.seed
    learnt, held_out = split(store, config.validation, seed)
    policy = build(settings, store) if state is None else load_policy(run.checkpoint(state.step), ema=False)
    gather = partial(Windows, store, policy.config.chunk, policy.config.history, keys=list(policy.spec.observations))
    windows = gather(subset=learnt)
    remedy = f"Train in another out= with train.lr < {config.lr}, or see what is wrong with kinoise inspect {settings.data}."
    if state is None:
        for remark in policy.remarks(torch.tensor(store.read(ACTION, 0, int(store.ends[-1])))):
            console.print(f"note: {remark}", highlight=False, soft_wrap=True)
    if config.augment.shift and getattr(getattr(policy.config, "encoder", None), "shift", 0):
        remark = "train.augment.shift and policy.encoder.shift both move the pictures: set one of them to 0"
        console.print(f"note: {remark}", highlight=False, soft_wrap=True)
    trainer = Trainer(config, policy, windows, seed, accelerator, remedy, processes)
    if state is not None:
        ema = run.ema(state.step) if config.ema else {}
        trainer.restore(state.step, ema, run.optimizer(state.step))
    validation = Validation(gather(subset=held_out), config.batch_size, seed) if held_out else None
    elapsed = state.elapsed_s if state else 0.0
    return Session(settings, run, trainer, console, fingerprint(store), validation, elapsed, collected(store))


def collected(store: EpisodeStore) -> object:
    """How `kinoise collect` made the demonstrations, where it did: of a mixture each of its data sets by its name."""
    if isinstance(store, Mixture):
        return {name: item.meta.get("collect") for name, item in zip(store.names, store.members, strict=True)}
    return store.meta.get("collect")


def build(settings: Settings, store: EpisodeStore) -> Policy:
    """The policy before its first update. Raises KinoiseError for NaN in the data and for data that it can't take."""
    policy = build_policy(settings.policy, store.spec, store.stats(), store.texts, settings.seed)
    if isinstance(store, Mixture):
        policy.frames = store.frames()
    told = store.meta.get("robomimic")
    found = told.get("env_args") if isinstance(told, dict) else None
    policy.recorded = found if isinstance(found, dict) else {}
    return policy


def fingerprint(store: EpisodeStore) -> str:
    """Changes when the demonstrations do, without reading them all: spec, episodes, instructions and some of the steps."""
    digest = hashlib.sha256(json.dumps([store.spec.to_json(), store.texts]).encode())
    digest.update(store.ends.tobytes() + store.text.tobytes())
    if isinstance(store, Mixture):  # what the file says and the steps don't show
        digest.update(json.dumps([store.names, store.weights, store.recipe.normalise]).encode())
    probes = np.linspace(0, int(store.ends[-1]) - 1, PROBES).astype(np.int64)
    for key in store.keys:
        digest.update(store.gather(key, probes).tobytes())
    return digest.hexdigest()
