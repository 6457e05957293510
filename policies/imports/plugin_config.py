"""What the plugin lerobot_policy_kinoise writes into its config.json; it imports this from here, so that both agree."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from ...files import MALFORMED
from ...spec import KinoiseError, Spec, Stats

PREFIX = "kinoise_"
"""A type of the plugin's is this and the name of a policy of ours."""
THEIRS = {"history": "n_obs_steps", "chunk": "chunk_size", "execute": "n_action_steps"}
"""What LeRobot's policies call a setting of ours."""
LEFT_OUT = ("name", "observations")
"""LeRobot has the policy's type for the first, and for the second names of its own."""
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
            "spec": self.spec.to_json(),
            "stats": {key: item.to_json() for key, item in self.stats.items()},
            "texts": list(self.texts),
            "names": dict(self.names),
            "recorded": dict(self.recorded),
            "guessed": self.guessed,
        }

    @classmethod
    def from_json(cls, value: Any, source: str = "config.json") -> Data:
        """Raises KinoiseError for what `to_json` did not write."""
        try:
            stats = {key: Stats.from_json(item) for key, item in value["stats"].items()}
            names = {str(key): str(name) for key, name in value["names"].items()}
            texts, recorded = tuple(map(str, value["texts"])), dict(value.get("recorded", {}))
            guessed = value.get("guessed", True)  # as before it was written down
            if not isinstance(guessed, bool):
                raise TypeError(f"guessed={guessed!r}: expected true or false")
            return cls(Spec.from_json(value["spec"]), stats, texts, names, recorded, guessed)
        except MALFORMED as error:
            raise KinoiseError(f"{source}: 'data' is damaged ({error!r}). Take another checkpoint, or train again.") from error
