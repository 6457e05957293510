"""A run on disk: complete checkpoints or none, the newest of which training goes on from.

OUT/checkpoints/<step>/      the policy (see policies/checkpoint.py) and
    README.md                its model card (see data/hub/card.py)
    training_state/          optimizer.safetensors by parameter name, state.json
OUT/checkpoints/last         -> the newest
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from ..data.hub.card import write_card
from ..files import MALFORMED, claimed, clear, disk_errors, link, new_directory, read_json, write_json, write_tensors
from ..policies.base import Policy
from ..policies.checkpoint import save_policy, weights_path
from ..spec import KinoiseError

FORMAT = 1


@dataclass(frozen=True)
class State:
    """What training needs besides tensors. The order of the data and the noise are functions of `step`: see order.py.

    Args:
        step: updates made.
        elapsed_s: seconds they took, over all sessions.
        threads: torch's on the CPU; with another number sums are rounded differently.
        data: fingerprint of the demonstrations.
        settings: of the run, as JSON.
    """

    step: int
    elapsed_s: float
    threads: int
    data: str
    settings: dict[str, Any]


KINDS = {"step": int, "elapsed_s": (int, float), "threads": int, "data": str, "settings": dict}
"""Of what `State` holds, in JSON."""
LONGEST_S = 1e12
TRACKED = ("wandb.json", "trackio.json")
"""What trackers keep beside the checkpoints."""


class RunDirectory:
    """OUT of `kinoise train`. Whatever it lists as a checkpoint is complete: one appears by a rename and vanishes by one.

    Args:
        keep: how many checkpoints to keep, the newest ones.
    """

    def __init__(self, path: Path, keep: int) -> None:
        self.path, self.keep = path, keep
        self.checkpoints, self.summary = path / "checkpoints", path / "train.json"
        self.metrics, self.tensorboard = path / "metrics.jsonl", path / "tensorboard"
        self.starters = path / "starters"

    @contextmanager
    def claimed(self, resume: bool) -> Iterator[None]:
        """Creates the directory, or tidies what a killed process left there, and keeps other processes out during the block.

        A block that ends before it logged or saved anything leaves nothing.

        Raises:
            KinoiseError: there is something and `resume` is false, or something that is no run, or a process that trains there.
        """
        existed = self.path.exists()
        with disk_errors(self.path):
            if existed:
                self._require_usable(resume)
            self.path.mkdir(parents=True, exist_ok=True)
        with claimed(self.path, "trains"):
            with disk_errors(self.path):  # not before: who had the run may have taken it back
                self.checkpoints.mkdir(exist_ok=True)
            self._tidy()
            try:
                yield
            finally:
                self._vanish(existed)

    def begun_by(self, starter: str | None) -> bool:
        """Whether `starter`, which starts processes again when one of them has died, has begun this run before."""
        return starter is not None and (self.starters / starter).exists()

    def note(self, starter: str | None) -> None:
        """For `begun_by`; after `claimed`."""
        if starter is not None:
            with disk_errors(self.path):
                self.starters.mkdir(exist_ok=True)
                (self.starters / starter).touch()

    def _vanish(self, existed: bool) -> None:
        """Takes back a run that ended before it had anything to tell: no checkpoint, not a line of metrics."""
        if self.steps() or (self.metrics.exists() and self.metrics.stat().st_size):
            return
        shutil.rmtree(self.checkpoints)
        for folder in (self.tensorboard, self.starters, self.path / "wandb"):
            shutil.rmtree(folder, ignore_errors=True)
        for name in TRACKED:
            (self.path / name).unlink(missing_ok=True)
        self.metrics.unlink(missing_ok=True)
        if not existed:
            with suppress(OSError):  # not empty: a tracker's
                self.path.rmdir()

    def _require_usable(self, resume: bool) -> None:
        if not self.path.is_dir():
            raise KinoiseError(f"{self.path} is a file: choose another out=.")
        if not any(self.path.iterdir()):
            return
        if not resume:
            raise KinoiseError(f"{self.path} is not empty: resume=true continues the run there, or choose another out=.")
        if not self.checkpoints.is_dir():
            raise KinoiseError(f"{self.path} is not empty and holds no run to resume: choose another out=.")

    def _tidy(self) -> None:
        """Removes what was half-written, and does what should have followed the newest checkpoint."""
        for item in self.checkpoints.glob(".*"):
            if found := re.fullmatch(r"\.(\d+)\.unfinished-.+", item.name):
                clear(self.checkpoint(int(found[1])))
            elif re.fullmatch(r"\.\d+\.old", item.name):
                shutil.rmtree(item, ignore_errors=True)
            elif re.fullmatch(r"\.last\.\d+", item.name):
                item.unlink()
        clear(self.summary, *(self.path / name for name in TRACKED))
        self._settle()

    def steps(self) -> list[int]:
        """Those of the checkpoints, ascending."""
        return sorted(int(item.name) for item in self.checkpoints.glob("[0-9]*") if item.name.isdigit())

    def checkpoint(self, step: int) -> Path:
        return self.checkpoints / str(step)

    def save(self, state: State, policy: Policy, ema: Mapping[str, Tensor], optimizer: Mapping[str, Tensor]) -> None:
        """A new checkpoint, `last` pointing at it, and the oldest removed. Raises KinoiseError on a full disk."""
        with new_directory(self.checkpoint(state.step)) as directory:
            save_policy(directory, policy, ema)
            training = directory / "training_state"
            training.mkdir()
            write_tensors(training / "optimizer.safetensors", optimizer)
            write_json(training / "state.json", {"format": FORMAT, **asdict(state)})
            write_card(directory)
        self._settle()

    def _settle(self) -> None:
        steps = self.steps()
        if steps:
            link(self.checkpoints / "last", str(steps[-1]))
        for step in steps[: -self.keep]:
            doomed = self.checkpoints / f".{step}.old"
            with suppress(OSError):  # NFS keeps what another process has open: later, then, and training goes on
                os.rename(self.checkpoint(step), doomed)
                shutil.rmtree(doomed)

    def newest(self) -> State | None:
        """The state of the newest checkpoint; None without one. Raises KinoiseError when it is damaged or another version's."""
        steps = self.steps()
        if not steps:
            return None
        path, older = self.checkpoint(steps[-1]) / "training_state" / "state.json", _older(self.checkpoint(steps[-1]))
        try:
            value = read_json(path)
        except KinoiseError as error:
            raise KinoiseError(f"{path} can't be read ({error}). {older}") from error
        if not isinstance(value, dict) or value.pop("format", None) != FORMAT or value.keys() != KINDS.keys():
            raise KinoiseError(
                f"{path} was written by another kinoise, and this one can't resume it: train anew in another out=."
            )
        kinds = all(isinstance(value[key], kind) and not isinstance(value[key], bool) for key, kind in KINDS.items())
        if not kinds or value["step"] != steps[-1] or not 0 <= value["elapsed_s"] < LONGEST_S:
            raise KinoiseError(f"{path} is damaged. {older}")
        return State(**value)

    def optimizer(self, step: int) -> dict[str, Tensor]:
        return _tensors(self.checkpoint(step) / "training_state" / "optimizer.safetensors", self.checkpoint(step))

    def ema(self, step: int) -> dict[str, Tensor]:
        return _tensors(weights_path(self.checkpoint(step)), self.checkpoint(step))


def _older(checkpoint: Path) -> str:
    return f"If it is damaged, remove {checkpoint} to resume from an older checkpoint."


def _tensors(path: Path, checkpoint: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (SafetensorError, OSError, *MALFORMED) as error:
        raise KinoiseError(f"{path} can't be read ({error}). {_older(checkpoint)}") from error
