"""`kinoise push PATH REPO`: a data set or a policy to the Hugging Face hub."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from omegaconf import MISSING

from ...config import parse
from ..convert import named
from .client import Moved, push

ABOUT = """Uploads a data set, a checkpoint, or a run's last one, with the token of HF_TOKEN or of a login. Files that no
format consists of stay here and are listed, and so does what only training needs. A policy goes with its model card, README.md,
which says by then how it was evaluated; one that you edited goes as it is."""


@dataclass
class Settings:
    """The whole command line of `kinoise push`."""

    path: str = field(default=MISSING, metadata={"help": "a data set, a run or a checkpoint"})
    repo: str = field(default=MISSING, metadata={"help": "user/name; made if it isn't there"})
    private: bool = field(default=True, metadata={"help": "whether only its owner sees a repository that is made"})
    revision: str | None = field(default=None, metadata={"help": "the branch; null: the main one"})
    license: str | None = field(default=None, metadata={"help": "of a policy, for its card: the hub's name, such as mit"})
    datasets: list[str] = field(default_factory=list, metadata={"help": "for its card: what it learnt from, [user/name,...]"})
    eval: list[str] = field(
        default_factory=list, metadata={"help": "for its card: folders of kinoise eval, [DIR,...]; none: RUN/eval if there"}
    )


def main(argv: Sequence[str]) -> int:
    """Raises UsageError for wrong settings, KinoiseError as `hub.push` does."""
    settings = parse("push", Settings, named(argv, "push", ("path", "repo")), positional="path repo", about=ABOUT)
    done = push(
        Path(settings.path),
        settings.repo,
        private=settings.private,
        revision=settings.revision,
        license=settings.license,
        datasets=settings.datasets,
        evaluations=[Path(item) for item in settings.eval],
    )
    show(f"{settings.repo} ({done.kind}) has {len(done.files):,} files at {done.commit[:12]}", done)
    return 0


def show(line: str, done: Moved) -> None:
    """Prints `line` and what was left out."""
    print(line)
    for name in done.left[:10]:
        print(f"left out: {name}")
    if len(done.left) > 10:
        print(f"left out: {len(done.left) - 10:,} more")
