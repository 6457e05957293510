"""What an importer is told, and what it gives."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple, cast

from torch import Tensor

from ...config import UsageError
from ...spec import Feature, KinoiseError, Spec, SpecMismatch
from ..base import Policy


class Imported(NamedTuple):
    """A policy in eval mode, and where it is from.

    Args:
        weights: the file that its weights are from.
        notes: what of the source doesn't show in the policy, a line each.
        average: averaged weights, by the names of its own, where the source has both; they are to plan.
        updates: that made them, where the source says so: an average moves the less the more there were.
    """

    policy: Policy
    weights: Path
    notes: list[str]
    average: Mapping[str, Tensor] = {}
    updates: int = 0


@dataclass(frozen=True)
class Robot:
    """What checkpoints of others don't know about their robot.

    Args:
        rate: control steps per second; None where nobody said so.
        control: what an action means, see `Spec`; None where nobody said so.
        gripper: indices of the gripper's dimensions in the action.
        like: the spec and the instructions of data or a simulator of this robot, in place of these three.
        rename: what the checkpoint's observations are called on this robot, by what the importer calls them.
        clip: the folder of a CLIP model, for those whose instructions are its vectors.
        vlm: directory or hub name of a vision-language model, for those that are built around one.
    """

    rate: float | None = None
    control: str | None = None
    gripper: tuple[int, ...] = ()
    like: tuple[Spec, tuple[str, ...]] | None = None
    rename: Mapping[str, str] = field(default_factory=dict)
    clip: Path | None = None
    vlm: str | None = None

    def keys(self, observed: Sequence[str]) -> list[str]:
        """The robot's names of these observations. Raises KinoiseError for a `rename` of others, and for a name given twice."""
        unknown = sorted(self.rename.keys() - set(observed))
        if unknown:
            raise KinoiseError(f"rename has {unknown}, but the policy observes {list(observed)}")
        found = [self.rename.get(name, name) for name in observed]
        doubled = [name for name, count in Counter(found).items() if count > 1]
        if doubled:
            raise KinoiseError(f"after rename several observations are called {doubled}: choose other names")
        return found

    def spec(self, observations: dict[str, Feature], action: int) -> tuple[Spec, tuple[str, ...]]:
        """The spec and the instructions of a policy with these observations, in the order in which its network sees them.

        Raises SpecMismatch for data of another robot, UsageError where neither such nor a rate was given, or a control beside
        such.
        """
        control = cast(Any, self.control or "absolute")  # one of the three: Spec says which
        if self.like is None:
            if self.rate is None:
                raise UsageError(
                    "the checkpoint does not say how often its robot is commanded: give data=, env=, or rate= in steps a second"
                )
            return Spec(observations, Feature((action,)), self.rate, control, self.gripper, language=False), ()
        if self.control is not None:
            raise UsageError("control= beside data= or env=, which says so itself: leave out one or the other")
        return self._like(observations, action)

    def _like(self, observations: dict[str, Feature], action: int) -> tuple[Spec, tuple[str, ...]]:
        assert self.like is not None
        data, texts = self.like
        wrong = [f"{key}: only in the policy" for key in observations if key not in data.observations]
        wrong += [
            f"{key}: {data.observations[key].shape} there, {item.shape} in the policy"
            for key, item in observations.items()
            if key in data.observations and data.observations[key].shape != item.shape
        ]
        if data.action.shape != (action,):
            wrong.append(f"action: {data.action.shape} there, {(action,)} in the policy")
        if wrong:
            raise SpecMismatch(
                f"the policy is of another robot than the data or the simulator, which has {sorted(data.observations)}: "
                f"{'; '.join(wrong)}. Where only names differ give rename=; else its own data, or none"
            )
        return replace(data, observations={key: data.observations[key] for key in observations}), texts

    def adopted(self, spec: Spec, guessed: bool = False) -> Spec:
        """The spec of a checkpoint that knows its robot, under the robot's names; `like` says names, units and bounds anew.

        Args:
            guessed: whether the checkpoint's control is a guess, which a control beside it settles.

        Raises UsageError for a rate, control or gripper beside what it knows, SpecMismatch for data of another robot.
        """
        keys = self.keys(list(spec.observations))
        own = replace(spec, observations=dict(zip(keys, spec.observations.values(), strict=True)))
        if (self.control is not None and not guessed) or (self.like is None and (self.rate, self.gripper) != (None, ())):
            raise UsageError(
                f"the checkpoint says itself how its robot is commanded ({spec.control}, {spec.rate:g} times a second, "
                f"gripper {list(spec.gripper)}): leave out rate={'' if guessed else ', control='} and gripper="
            )
        if self.control is not None:
            own = replace(own, control=cast(Any, self.control))
        if self.like is None:
            return own
        data, _ = self._like(own.observations, own.action_dim)
        wrong = [
            f"{name}: {getattr(data, name)} there, {getattr(own, name)} in the policy"
            for name in ("rate", "gripper", "control")
            if getattr(data, name) != getattr(own, name)
        ]
        if guessed and data.control != own.control:
            wrong[-1] += (
                f", which {'you said' if self.control else 'the training guessed from the names of its actions'}: give "
                f"control={data.control} if the policy's actions are what the data or the simulator say"
            )
        if own.language and not data.language:
            wrong.append("language: none there, and the policy follows instructions")
        if wrong:
            raise SpecMismatch(
                f"the policy is of another robot than the data or the simulator: {'; '.join(wrong)}. Give its own data or "
                "simulator, or none"
            )
        # Without an instruction the network has no place for one, whatever the data tell.
        return replace(data, language=own.language)
