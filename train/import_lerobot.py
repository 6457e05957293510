"""`kinoise import-lerobot PATH out=RUN`: `kinoise import` with from=lerobot."""

from __future__ import annotations

from collections.abc import Sequence

from .import_policy import main as imported


def main(argv: Sequence[str]) -> int:
    return imported([*argv, "from=lerobot"], "import-lerobot")
