"""`kinoise pull REPO OUT`: a data set or a policy from the Hugging Face hub."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from omegaconf import MISSING

from ...config import UsageError, parse
from ..convert import named
from .client import KINDS, pull
from .push import show

ABOUT = """Downloads a data set or a policy to the new folder OUT; until all of it is there, to OUT.partial, where the same
command goes on after an interruption. Files with pickles or programs are left out and listed. Nothing that comes is run."""


@dataclass
class Settings:
    """The whole command line of `kinoise pull`."""

    repo: str = field(default=MISSING, metadata={"help": "user/name"})
    out: str = field(default=MISSING, metadata={"help": "the folder to make"})
    kind: str | None = field(default=None, metadata={"help": "dataset or model; null: the first that there is"})
    revision: str | None = field(default=None, metadata={"help": "a branch, tag or commit"})


def main(argv: Sequence[str]) -> int:
    """Raises UsageError for wrong settings, KinoiseError as `hub.pull` does."""
    settings = parse("pull", Settings, named(argv, "pull", ("repo", "out")), positional="repo out", about=ABOUT)
    if settings.kind not in (None, *KINDS):
        raise UsageError(f"kind={settings.kind}: expected {' or '.join(KINDS)}.")
    out = Path(settings.out)
    done = pull(settings.repo, out, kind=settings.kind, revision=settings.revision)
    show(f"{out}: {len(done.files):,} files of {settings.repo} ({done.kind}) at {done.commit[:12]}", done)
    return 0
