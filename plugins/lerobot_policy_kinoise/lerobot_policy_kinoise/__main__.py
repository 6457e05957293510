"""`python -m lerobot_policy_kinoise train|eval ARGUMENTS`: `lerobot-train` and `lerobot-eval`, where these can't start.

They import torchvision before any plugin; here `lend_operators` comes first.
"""

from __future__ import annotations

import importlib
import sys

COMMANDS = {"train": "lerobot.scripts.lerobot_train", "eval": "lerobot.scripts.lerobot_eval"}


def main() -> None:
    name = sys.argv[1] if len(sys.argv) > 1 else ""
    if name not in COMMANDS:
        sys.exit(f"usage: python -m lerobot_policy_kinoise {'|'.join(COMMANDS)} ARGUMENTS; '{name}' is none of them")
    del sys.argv[1]
    importlib.import_module(COMMANDS[name]).main()


if __name__ == "__main__":
    main()
