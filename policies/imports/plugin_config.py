"""What the plugin lerobot_policy_kinoise writes into its config.json; it imports this from here, so that both agree."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from ...files import MALFORMED
from ...spec import KinoiseError, Spec, Stats
from .bounds import shown

PREFIX = "kinoise_"
"""A type of the plugin's is this and the name of a policy of ours."""
THEIRS = {"history": "n_obs_steps", "chunk": "chunk_size", "execute": "n_action_steps"}
"""What LeRobot's policies call a setting of ours."""
LEFT_OUT = ("name", "observations")
"""LeRobot has the policy's type for the first, and for the second names of its own."""
WRITTEN = (
    *("type", "input_features", "output_features", "observations", "language", "normalization_mapping", "ema", "data"),
    *THEIRS.values(),
)
"""What config.json always holds beside the policy's own settings."""
OTHERS = (
    # Of every policy of LeRobot's.
    *("device", "use_amp", "use_peft", "push_to_hub", "repo_id", "private", "tags", "license", "pretrained_path"),
    # About training, which `kinoise export-lerobot` leaves out.
    *("resize_shape", "optimizer_lr", "optimizer_betas", "optimizer_eps", "optimizer_weight_decay"),
    *("optimizer_grad_clip_norm", "scheduler_name", "scheduler_warmup_steps", "ema_power", "ema_max"),
)
"""What it may hold besides, and what does not show in a policy that plans."""
FORMAT = 2
"""Of `Data`; the first, which had no number, lacks `guessed`."""
TRAINED, AVERAGED, UPDATES = "policy", "average", "updates"
"""In model.safetensors: what weights as trained and as averaged begin with, and the number of updates that made them."""


@dataclass(frozen=True)
class Data:
    """What a policy learnt from, a part of its config.

    Args:
        spec: what is observed and commanded; images as the policy sees them.
        stats: of each observation and of the action, physical units, images in [0, 255].
        texts: the tasks; empty without language.
        names: our key of each observation -> LeRobot's name, in the spec's order.
        recorded: see `Policy.recorded`; what LeRobot trained has none.
        guessed: whether the spec's control is guessed from the names of the actions, as where the data don't say it.
    """

    spec: Spec
    stats: dict[str, Stats]
    texts: tuple[str, ...]
    names: dict[str, str]
    recorded: dict[str, Any] = field(default_factory=dict)
    guessed: bool = False

    def to_json(self) -> dict[str, Any]:
        return {
            "format": FORMAT,
            "spec": self.spec.to_json(),
            "stats": {key: item.to_json() for key, item in self.stats.items()},
            "texts": list(self.texts),
            "names": dict(self.names),
            "recorded": dict(self.recorded),
            "guessed": self.guessed,
        }

    @classmethod
    def from_json(cls, value: Any, source: str = "config.json") -> Data:
        """Raises KinoiseError for what `to_json` did not write, and for another format."""
        number = value.get("format", 1) if isinstance(value, dict) else 1
        if type(number) is not int or not 1 <= number <= FORMAT:
            raise KinoiseError(
                f"{source}: 'data' has format {shown(number)}: expected one up to {FORMAT}, which this kinoise reads. It was "
                "written by a newer one: install that"
            )
        try:
            stats = {key: Stats.from_json(item) for key, item in value["stats"].items()}
            names = {str(key): str(name) for key, name in value["names"].items()}
            texts, recorded = tuple(map(str, value["texts"])), dict(value.get("recorded", {}))
            guessed, spec = value["guessed"] if number > 1 else True, Spec.from_json(value["spec"])
            if not isinstance(guessed, bool) or names.keys() != spec.observations.keys():
                raise ValueError("guessed is neither true nor false, or the names are not those of the observations")
            return cls(spec, stats, texts, names, recorded, guessed)
        except MALFORMED as error:
            raise KinoiseError(f"{source}: 'data' is damaged ({error!r}). Take another checkpoint, or train again.") from error
