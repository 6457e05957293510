"""A run from its first or resumed update to its last: logs, checkpoints, validation, evaluation, signals."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from ..files import write_json
from ..policies.checkpoint import load_policy
from ..provenance import origin
from ..spec import KinoiseError
from .checkpoint import RunDirectory, State
from .config import Settings
from .display import Display, clock
from .loop import Trainer
from .optimizer import learning_rate
from .processes import company
from .stop import Stop
from .trackers import Tracker, open_trackers
from .validation import Validation

# Other initial states than those of `kinoise eval`: settings chosen by these do not spoil its figure.
SEED = 10_000


class Session:
    """Runs a trainer in a run's directory.

    Args:
        data: fingerprint of the demonstrations, for `State`.
        validation: None without held-out episodes.
        elapsed_s: seconds that earlier sessions trained.
        recipe: how `kinoise collect` made the demonstrations, where it did.
    """

    def __init__(
        self,
        settings: Settings,
        run: RunDirectory,
        trainer: Trainer,
        console: Console,
        data: str,
        validation: Validation | None = None,
        elapsed_s: float = 0.0,
        recipe: object = None,
    ) -> None:
        self.settings, self.config, self.run, self.trainer = settings, settings.train, run, trainer
        self.console, self.data, self.validation, self._recipe = console, data, validation, recipe
        self._processes = trainer.processes
        self._leads = self._processes.leads
        self._display = Display(console, self.config.steps, trainer.step)
        self._trackers: list[Tracker] = []
        self._stop = Stop(self._processes)
        self._saved = self._logged = trainer.step
        self._began = time.perf_counter() - elapsed_s
        self._window, self._waited = time.perf_counter(), 0.0

    @property
    def elapsed_s(self) -> float:
        """Seconds since the run's first update, pauses between sessions left out."""
        return time.perf_counter() - self._began

    def train(self) -> int:
        """Goes on until the last update or a signal, and returns the exit code.

        Raises:
            KinoiseError: a number is no longer finite (the checkpoints stay sound), the disk is full, an evaluation failed.
        """
        with self.opened(), self._stop, compiler_errors(), company():
            self._evaluate()
            while self.trainer.step < self.config.steps and self._stop.signal is None:
                with self._stop.agreed():
                    self.update()
            if self._stop.signal is not None:
                self._log()
                self._save()
        if self._stop.signal is not None:
            self._say(f"stopped after update {self.trainer.step}; the same command with resume=true goes on from there")
            return self._stop.code
        self._finish()
        return 0

    @contextmanager
    def opened(self) -> Iterator[None]:
        """Trackers and bar, which `update` needs, for the block."""
        with ExitStack() as stack:
            if self._leads:
                opened = open_trackers(self.config, self.run, self.trainer.step, as_json(self.settings))
                self._trackers = stack.enter_context(opened)
            stack.enter_context(self._display)
            yield

    def update(self) -> None:
        """One update and whatever is due after it. Raises as `train` does."""
        config, trainer = self.config, self.trainer
        trainer.update()
        last = trainer.step == config.steps
        validating = self.validation is not None and (trainer.step % config.validate_every == 0 or last)
        if trainer.step % config.log_every == 0 or validating or last:
            self._log(validating)
        else:
            self._display.update(trainer.step)
        if trainer.step % config.save_every == 0 or self._evaluation_is_due or last:
            self._save()
            self._evaluate()

    def _log(self, validating: bool = False) -> None:
        """A line of metrics about the updates since the last one."""
        trainer = self.trainer
        values = trainer.meter.means(trainer.step)
        if not values:
            return
        values["lr"] = learning_rate(self.config, trainer.step - 1)
        spent, waited = time.perf_counter() - self._window, trainer.prefetch.waited
        values["steps_per_s"] = (trainer.step - self._logged) / spent
        values["data_wait"] = (waited - self._waited) / spent
        values["elapsed_s"] = self.elapsed_s
        if validating and self.validation is not None:
            with self._aside():
                values["validation_loss"] = self._validate(self.validation)
        for tracker in self._trackers:
            tracker.log(trainer.step, values)
        self._display.update(trainer.step, values["loss"])
        trainer.meter.clear()
        self._logged, self._window, self._waited = trainer.step, time.perf_counter(), waited

    @contextmanager
    def _aside(self) -> Iterator[None]:
        """Leaves the block's time out of `steps_per_s`."""
        started = time.perf_counter()
        yield
        self._window += time.perf_counter() - started

    def _validate(self, validation: Validation) -> float:
        trainer = self.trainer
        with trainer.autocast(), trainer.ema.applied() if trainer.ema else nullcontext():
            loss = validation.loss(trainer.policy, trainer.spread, self._processes)
        if not math.isfinite(loss):
            raise KinoiseError(f"the validation loss after update {trainer.step} is {loss}. {trainer.meter.remedy}")
        return loss

    def _save(self) -> None:
        """A checkpoint of this update, unless there is one. Weights that are not finite never get there."""
        trainer = self.trainer
        if trainer.step == self._saved:
            return
        with self._aside():
            trainer.meter.means(trainer.step)
            if not trainer.finite():
                raise KinoiseError(f"the weights are not finite after update {trainer.step}. {trainer.meter.remedy}")
            policy, averages, optimizer = trainer.spread.saved(), trainer.averages(), trainer.state()
            if self._leads:
                threads, settings = torch.get_num_threads(), as_json(self.settings)
                state = State(trainer.step, self.elapsed_s, threads, self.data, settings)
                self.run.save(state, policy, averages, optimizer)
            self._processes.wait()
            self._saved = trainer.step

    @property
    def _evaluation_is_due(self) -> bool:
        return self.config.eval_every > 0 and self.trainer.step > 0 and self.trainer.step % self.config.eval_every == 0

    def _evaluate(self) -> None:
        """Rollouts of this update's checkpoint, if they are due and were not finished before a kill; a signal drops them.

        The leader makes them; the others wait, however long it takes.
        """
        if not self._evaluation_is_due:
            return
        step = self.trainer.step
        directory = self.run.path / "evaluations" / str(step)
        with self._aside():
            if self._leads and self._stop.received is None and not (directory / "result.json").exists():
                self._display.pause()
                with self._stop.at_once():
                    self._roll_out(self.run.checkpoint(step), directory)
                self._display.resume()
            self._processes.wait()

    def _roll_out(self, checkpoint: Path, out: Path) -> None:
        from ..eval.evaluate import evaluate

        assert self.settings.env is not None
        policy = load_policy(checkpoint, ema=True, device=str(self.trainer.accelerator.device))
        episodes = self.config.eval_episodes
        result = evaluate(policy, self.settings.env, episodes=episodes, seed=SEED, checkpoint=checkpoint, out=out)
        success = result["success"]
        for tracker in self._trackers[1:]:  # metrics.jsonl has one line for an update, and this one's is written
            tracker.log(self.trainer.step, {"success": success["rate"]})
        span = f"{success['rate']:.3f} ({success['low']:.3f} to {success['high']:.3f})"
        self._say(f"after update {self.trainer.step}: success {span} in {self.settings.env}")

    def _finish(self) -> None:
        if not self._leads:
            return
        trainer, wall = self.trainer, self.elapsed_s
        value = {
            "config": as_json(self.settings),
            "demonstrations": {"fingerprint": self.data, "collect": self._recipe},
            "parameters": trainer.policy.parameter_count,
            "device": str(trainer.accelerator.device),
            "precision": trainer.accelerator.mixed_precision,
            "processes": self._processes.count,
            "parallel": trainer.spread.kind,
            "wall_s": wall,
            "steps_per_s": trainer.step / wall,
            **origin(),
        }
        write_json(self.run.summary, value)
        speed = f"{trainer.step / wall:.1f} updates/s"
        self._say(f"{trainer.step} updates in {clock(wall)} ({speed}); the policy is in {self.run.checkpoints / 'last'}")

    def _say(self, text: str) -> None:
        self.console.print(text, highlight=False, soft_wrap=True)


@contextmanager
def compiler_errors() -> Iterator[None]:
    """Turns what torch.compile raises in the first updates into one line."""
    try:
        yield
    except Exception as error:
        if not type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
            raise
        raise KinoiseError(
            f"torch.compile failed ({str(error).strip().splitlines()[0]}): set train.compile=false, or see kinoise doctor"
        ) from error


def as_json(settings: Settings) -> dict[str, Any]:
    """Settings as a checkpoint stores them, with lists where the dataclasses hold tuples."""
    return json.loads(json.dumps(asdict(settings)))
