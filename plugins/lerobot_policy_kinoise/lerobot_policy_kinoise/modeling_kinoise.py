"""LeRobot's policy interface over kinoise's policies, which do the work."""

from __future__ import annotations

import copy
import logging
from collections import deque
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import torch
from kinoise.config import UsageError
from kinoise.policies import Policy, build_policy
from kinoise.policies.caching import check_fit
from kinoise.policies.imports.plugin_config import Data
from kinoise.spec import KinoiseError, Plan
from kinoise.train.optimizer import decayed, trained
from lerobot.datasets.lerobot_dataset import LeRobotDatasetMetadata
from lerobot.policies.pretrained import PreTrainedPolicy
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch import _foreach_lerp_ as lerp_all
from torch.nn.modules.batchnorm import _BatchNorm

from .batches import frame, left_over, observation, timed, training_batch
from .configuration_kinoise import KinoiseConfig, KinoiseDiffusionConfig, KinoiseDiscreteVlaConfig, KinoiseModeConfig
from .data import learnt_from

Own = TypeVar("Own", bound="KinoisePolicy")


class KinoisePolicy(PreTrainedPolicy):
    """A kinoise policy and its averaged weights, which plan.

    Noise comes from torch's global generator, which LeRobot seeds, saves and restores.

    Args:
        config: with `data`, as a checkpoint's has, or without, before the first training.
        dataset_meta: where `data` comes from then; the statistics of a checkpoint stay, whatever it is trained on later.

    Attributes:
        policy: the weights that training changes.
        average: their moving average, or None with `ema=False`.

    Raises:
        UsageError: settings that don't fit the features; no data set and no checkpoint.
        KinoiseError: a data set that kinoise can't use, or one that doesn't fit the checkpoint.
    """

    config_class: ClassVar[Any] = KinoiseConfig
    name: ClassVar[Any] = "kinoise"
    updates: Tensor

    def __init__(self, config: KinoiseConfig, dataset_meta: LeRobotDatasetMetadata | None = None, **_: Any) -> None:
        super().__init__(config)
        config.validate_features()
        if config.data is None:
            if dataset_meta is None:
                raise UsageError(
                    "a fresh policy needs a data set, whose statistics become part of it: train with lerobot-train, or give "
                    "lerobot.policies.factory.make_policy a ds_meta. To evaluate, name a checkpoint: --policy.path="
                )
            config.data = learnt_from(config, dataset_meta).to_json()
        self.config = config
        self.data = Data.from_json(config.data)
        self._check_action()
        seed = int(torch.randint(2**62, ()))
        self.policy: Policy = build_policy(config.settings(), self.data.spec, self.data.stats, self.data.texts, seed)
        self.average = _twin(self.policy) if config.ema else None
        self.register_buffer("updates", torch.zeros((), dtype=torch.int64))
        self._warned = False
        self.reset()

    def _check_action(self) -> None:
        """Raises KinoiseError where the data set or environment at hand takes other actions than the checkpoint's."""
        assert self.config.action_feature is not None
        shape = tuple(self.config.action_feature.shape)
        if shape != self.data.spec.action.shape:
            raise KinoiseError(
                f"the checkpoint commands {self.data.spec.action_dim} numbers, and 'action' here has the shape {list(shape)}: "
                "use it where it was trained, or train on data from here"
            )

    def get_optim_params(self) -> list[dict[str, Any]]:
        """The trained parameters in two groups, of which norms, biases and embeddings have no weight decay.

        Raises UsageError for a cache that was fitted to the weights as they are.
        """
        self._check_cache()
        parameters, shrunk = trained(self.policy), decayed(self.policy)
        return [
            {"params": [item for name, item in parameters.items() if name in shrunk]},
            {"params": [item for name, item in parameters.items() if name not in shrunk], "weight_decay": 0.0},
        ]

    def _check_cache(self) -> None:
        if self.config.decode.cache == "fitted":
            raise UsageError(
                "decode.cache=fitted: its schedule is for the weights as they are, and training changes them. Train on with "
                "--policy.decode.cache=none, and fit another afterwards: kinoise import-lerobot, then kinoise fit-cache"
            )

    def forward(self, batch: dict[str, Any], reduction: str = "mean") -> tuple[Tensor, dict[str, float]]:
        """The loss, and its parts as numbers for the log.

        Args:
            reduction: `mean`, or `none` for one loss a row, `[batch]`.

        Raises:
            KinoiseError: observations or actions that are missing or of another shape.
        """
        if reduction not in ("mean", "none"):
            raise UsageError(f"reduction={reduction}: expected mean or none")
        rows = training_batch(batch, self.data, self.config.n_obs_steps, self.config.chunk_size)
        losses = self.policy.loss(rows, torch.default_generator)
        parts = {"denoising": losses.per_sample.mean(), **losses.auxiliary, **losses.shown}
        loss = losses.total if reduction == "mean" else losses.per_sample + sum(losses.auxiliary.values())
        return loss, {name: item.item() for name, item in parts.items()}

    @torch.no_grad()
    def update(self) -> None:
        """Moves the average after an update of the weights: LeRobot's training calls it (Diffusion Policy's schedule).

        Raises UsageError as `get_optim_params` does.
        """
        self._check_cache()
        if self.average is not None:
            decay = min(1.0 - (1.0 + int(self.updates)) ** -self.config.ema_power, self.config.ema_max)
            live, average = trained(self.policy), dict(self.average.named_parameters())
            lerp_all([average[name] for name in live], list(live.values()), 1.0 - decay)
            # What batch norms measured is no weight: the average plans with the newest, and not with a fresh network's.
            norms = {name: item for name, item in self.policy.named_modules() if isinstance(item, _BatchNorm)}
            for name, item in norms.items():
                for own, seen in zip(self.average.get_submodule(name).buffers(), item.buffers(), strict=True):
                    own.copy_(seen)
            self.average.forget()
        self.updates += 1

    def reset(self) -> None:
        """Forgets the episode: past observations, the plan and what is left of it."""
        self._past: deque[dict[str, Tensor]] = deque(maxlen=self.config.n_obs_steps)
        self._queue: deque[Tensor] = deque()
        self._plan: Plan | None = None

    def observe(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Remembers the frame of this control step, and returns the batch with the last `n_obs_steps` stacked.

        The first frame after `reset` stands for those before it too, as in training. For loops that plan less often than they
        observe; `select_action` does it itself.

        Args:
            batch: observations without a time axis, `[batch, ...]`.

        Raises:
            KinoiseError: an observation that is missing, or another number of rows than before.
        """
        now = frame(batch, self.data)
        if self._past and any(now[name].shape != item.shape for name, item in self._past[-1].items()):
            raise KinoiseError("the batch has other rows or shapes than the frames before it: call reset() first")
        missing = self.config.n_obs_steps - len(self._past) if not self._past else 1
        self._past.extend([now] * missing)
        return {**batch, **{name: torch.stack([item[name] for item in self._past], 1) for name in now}}

    def predict_action_chunk(
        self,
        batch: dict[str, Any],
        inference_delay: int | None = None,
        prev_chunk_left_over: Tensor | None = None,
        **others: Any,
    ) -> Tensor:
        """A chunk of actions from now on, `[batch, chunk_size, action]`, physical units, on the policy's device.

        Args:
            batch: observations `[batch, n_obs_steps, ...]`; without the time axis where that is 1. See `observe`.
            inference_delay: control steps that pass before the chunk takes over. As many of the left-over's first actions are
                carried out meanwhile: they come back as they are, and the rest continues them (`decode.prefix`). Of a longer
                delay than actions are left, or than leaves one to plan, so many count, as in LeRobot's own.
            prev_chunk_left_over: what the queue holds of the chunk before, `[steps, action]` or `[batch, steps, action]`, from
                now on. With `decode.warm` below 1 decoding starts from it.

        Raises:
            UsageError: a delay that is negative, a left-over of another shape, an argument that other policies have (`noise`,
                `execution_horizon`).
            KinoiseError: a batch that lacks something; a left-over with NaN.
        """
        unknown = sorted(name for name, value in others.items() if value is not None)
        if unknown:
            raise UsageError(
                f"{', '.join(unknown)}: kinoise's policies take inference_delay and prev_chunk_left_over. Noise comes from "
                "torch's generator (torch.manual_seed), and how far a chunk binds the next is set by decode.prefix and pull"
            )
        delay = inference_delay or 0
        if delay < 0:
            raise UsageError(f"inference_delay={delay}: expected at least 0, the control steps that planning takes")
        batch = dict(timed(batch, self.data, self.config.n_obs_steps))
        rows = len(next(iter(frame(batch, self.data).values())))
        with torch.inference_mode(False):  # where a copy made in inference mode could take no part in gradients
            previous = left_over(prev_chunk_left_over, rows, self.data)
        prefix = 0 if previous is None else self._carried_out(delay, previous.actions.shape[1])
        return self._planned(batch, previous, prefix=prefix).actions.to(self.config.device)

    def _carried_out(self, delay: int, left: int) -> int:
        """How many of `left` actions begin a chunk that takes over in `delay` steps; warns once where fewer than the delay."""
        found = min(delay, left, self.config.chunk_size - 1)
        if found < delay and not self._warned:  # one slow plan may make a loop ask so from then on
            self._warned = True
            logging.warning(
                "inference_delay=%d: %d actions are left, chunks have %d: %d of them begin the chunk. Where planning takes "
                "that long, the robot runs out of actions: take fewer decode.steps or a longer chunk_size",
                delay,
                left,
                self.config.chunk_size,
                found,
            )
        return found

    def select_action(self, batch: dict[str, Any], **others: Any) -> Tensor:
        """The next action, `[batch, action]`: of the plan in hand, or of a new one after `n_action_steps` of them.

        With `decode.warm` below 1 a new plan starts from the one before. Raises KinoiseError as `predict_action_chunk` does.
        """
        unknown = sorted(name for name, value in others.items() if value is not None)
        if unknown:
            raise UsageError(f"{', '.join(unknown)}: select_action takes a batch alone; see predict_action_chunk")
        seen = self.observe(batch)
        if not self._queue:
            self._plan = self._planned(seen, self._plan, elapsed=self.config.n_action_steps)
            self._queue.extend(self._plan.actions[:, : self.config.n_action_steps].unbind(1))
        return self._queue.popleft().to(self.config.device)

    @property
    def _planner(self) -> Policy:
        return self.policy if self.average is None else self.average

    def _planned(self, batch: dict[str, Any], previous: Plan | None, elapsed: int = 0, prefix: int = 0) -> Plan:
        self.eval()
        with torch.inference_mode(False), torch.no_grad():
            seen = observation(batch, self.data)
            return self._planner.plan(seen, torch.default_generator, previous=previous, elapsed=elapsed, prefix=prefix)

    @classmethod
    def from_pretrained(cls: type[Own], pretrained_name_or_path: str | Path, *, strict: bool = True, **others: Any) -> Own:
        """As LeRobot's, but strict unless told otherwise: weights that are missing would stay random without a word."""
        return super().from_pretrained(pretrained_name_or_path, strict=strict, **others)

    @classmethod
    def _load_as_safetensor(cls: type[Own], model: Own, model_file: str, map_location: str, strict: bool) -> Own:
        # safetensors' own loader asks the fresh model for its state first, for which it would embed the instructions.
        try:
            model.load_state_dict(load_file(model_file, device=map_location), strict=strict)
        except FileNotFoundError as error:
            raise KinoiseError(
                f"{model_file} is missing: the checkpoint is incomplete. Take another, or train again."
            ) from error
        except SafetensorError as error:
            raise KinoiseError(f"{model_file} can't be read ({error}): it was cut short. Take another checkpoint.") from error
        except RuntimeError as error:
            raise KinoiseError(f"{model_file} does not match its config.json: {error}") from error
        check_fit(model.policy.config.decode, model._planner)
        return model


class KinoiseDiffusionPolicy(KinoisePolicy):
    """`kinoise_diffusion`."""

    config_class = KinoiseDiffusionConfig
    name = "kinoise_diffusion"


class KinoiseModePolicy(KinoisePolicy):
    """`kinoise_mode`."""

    config_class = KinoiseModeConfig
    name = "kinoise_mode"


class KinoiseDiscreteVlaPolicy(KinoisePolicy):
    """`kinoise_discrete_vla`."""

    config_class = KinoiseDiscreteVlaConfig
    name = "kinoise_discrete_vla"


def _twin(policy: nn.Module) -> Any:
    """A copy with weights of its own that nothing trains; parameters that are frozen already are shared."""
    frozen = {id(item): item for item in policy.parameters() if not item.requires_grad}
    return copy.deepcopy(policy, frozen).requires_grad_(False)
