"""What LeRobot's own Metaworld shows in a given state, for `benchmarks.lerobot_path`: run by the Python of its environment.

`python lerobot_sees.py SETTINGS` (JSON: `task`, `rand_vec`, `out`) resets LeRobot's environment to upstream's draw `rand_vec`
and writes `out`, an npz: `pixels` and `agent_pos` as its evaluation gets them, `task` as it tells the policy, `horizon` and
`seconds` of a picture.
"""

from __future__ import annotations

import json
import sys
import time

import numpy as np


def main(settings: dict) -> None:
    import lerobot_policy_kinoise  # noqa: F401 - makes torchvision importable where that is needed
    from lerobot.envs.metaworld import MetaworldEnv

    env = MetaworldEnv(task=settings["task"], obs_type="pixels_agent_pos")
    upstream = env._env
    upstream._last_rand_vec, upstream._freeze_rand_vec = np.array(settings["rand_vec"]), True
    env.reset()  # of these two the second draws a picture in a context that is there
    started = time.perf_counter()
    env.render()
    seconds = time.perf_counter() - started
    seen, _ = env.reset()
    np.savez(settings["out"], **seen, task=env.task_description, horizon=env._max_episode_steps, seconds=seconds)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
