"""LeRobot's DiffusionPolicy answers with actions, for `benchmarks.imported`: run by the Python of its own environment.

`python lerobot_acts.py SETTINGS` (JSON: `checkpoint`, `threads`) prints what it is, as a line of JSON. Observations go through
LeRobot's own processors, and actions come back in physical units. Every line of JSON that it then reads is answered with one:

- {"observation": {name: numbers}, "seed": number or null}: the next action, by `select_action`; a seed begins an episode, which
  draws its noise from it;
- {"frames": [observations, oldest first], "noise": ..., "later": [of every step]}: the actions of one plan with this noise.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import torch
from lerobot_side import answers, load_torchvision


class Acting:
    """The checkpoint's policy between its two processors."""

    def __init__(self, checkpoint: str) -> None:
        from diffusers.schedulers import scheduling_ddpm
        from lerobot.configs.policies import PreTrainedConfig
        from lerobot.policies.diffusion.modeling_diffusion import DiffusionPolicy
        from lerobot.policies.factory import make_pre_post_processors

        self._ddpm = scheduling_ddpm
        config = PreTrainedConfig.from_pretrained(checkpoint)
        config.device = "cpu"
        self.policy = DiffusionPolicy.from_pretrained(checkpoint, config=config, strict=True).eval()
        here: dict[str, Any] = {"preprocessor_overrides": {"device_processor": {"device": "cpu"}}}
        self._before, self._after = make_pre_post_processors(config, pretrained_path=checkpoint, **here)

    def act(self, observation: dict[str, Any], seed: int | None) -> list[float]:
        if seed is not None:
            self.policy.reset()
            torch.manual_seed(seed)
        return self._action(observation)

    def plan(self, frames: list[dict[str, Any]], noise: list[Any], later: list[Any]) -> list[list[float]]:
        """What `select_action` hands out of a plan that sees `frames` and draws this noise."""
        left, own = iter(torch.tensor(later)), self._ddpm.randn_tensor
        self._ddpm.randn_tensor = lambda *_, **__: next(left)
        try:
            self.policy.reset()
            waiting = self.policy._queues["action"]
            for frame in frames[:-1]:
                waiting.append(torch.zeros(1, len(noise[0][0])))  # so that it remembers the frame and plans nothing
                self._action(frame)
            found = [self._action(frames[-1], noise=torch.tensor(noise))]
            return found + [self._after(item)[0].tolist() for item in waiting]
        finally:
            self._ddpm.randn_tensor = own

    def _action(self, observation: dict[str, Any], **given: torch.Tensor) -> list[float]:
        seen = {name: self._tensor(name, numbers) for name, numbers in observation.items()}
        return self._after(self.policy.select_action(self._before(seen), **given))[0].tolist()

    def _tensor(self, name: str, numbers: list[Any]) -> torch.Tensor:
        """As LeRobot's evaluation prepares it: pictures from 0 to 1, channels first."""
        found = torch.tensor(numbers, dtype=torch.float32)
        return (found / 255).permute(2, 0, 1) if name in self.policy.config.image_features else found


def main(settings: dict) -> None:
    torch.set_num_threads(settings["threads"])
    out, kept = answers(), load_torchvision()
    acting = Acting(settings["checkpoint"])
    print(json.dumps({"parameters": sum(item.numel() for item in acting.policy.parameters())}), file=out, flush=True)
    for line in sys.stdin:
        asked = json.loads(line)
        print(json.dumps(acting.plan(**asked) if "frames" in asked else acting.act(**asked)), file=out, flush=True)
    del kept


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
