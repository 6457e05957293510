"""`kinoise report RUN`: one HTML file about a run: success, rollouts, latency, training, experts, provenance.

The file stands alone: styles, charts and videos lie in it, and its content policy forbids the network.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from jinja2 import Environment, StrictUndefined
from omegaconf import MISSING

from .. import __version__
from ..config import UsageError, parse
from ..files import write_text
from ..policies.checkpoint import load_policy
from ..spec import KinoiseError
from . import plans, sections, timing
from .charts import whisker
from .origin import commands, provenance
from .sources import read_checks, read_metrics, read_parts
from .text import number, percent

ABOUT = "Writes one HTML page that needs no other file and no network. Parts that were not made are named, with the command."


@dataclass
class Settings:
    """The whole command line of `kinoise report`."""

    run: str = field(default=MISSING, metadata={"help": "a training run, or one of its checkpoints"})
    eval: str | None = field(default=None, metadata={"help": "what kinoise eval wrote; RUN/eval where it exists"})
    control: str | None = field(default=None, metadata={"help": "what kinoise control wrote; RUN/control where it exists"})
    out: str | None = field(default=None, metadata={"help": "the page; RUN/report.html if null"})
    videos: int = field(default=40, metadata={"help": "rollout videos embedded at most: failures and successes by turns"})

    def __post_init__(self) -> None:
        if self.videos < 0:
            raise UsageError(f"videos={self.videos}: expected at least 0")


def main(argv: Sequence[str]) -> None:
    """Raises KinoiseError when there is no checkpoint, or a file that was given or found is missing or broken."""
    settings = parse("report", Settings, argv, positional="run", about=ABOUT)
    run = Path(settings.run)
    out = Path(settings.out) if settings.out is not None else run / "report.html"
    evaluation = _directory(settings.eval, run / "eval", "result.json")
    control = _directory(settings.control, run / "control", "control.json")
    write_text(out, render(run, evaluation, control, out, settings.videos))
    print(f"{out} ({out.stat().st_size / 1e6:.1f} MB)")


def render(run: Path, evaluation: Path | None, control: Path | None, out: Path, videos: int = 40) -> str:
    """The page.

    Args:
        run: a training run, or one of its checkpoints.
        evaluation, control: directories of `kinoise eval` and `kinoise control`; None for a part that was not made.
        out: where the page will lie, for the command that it shows.
        videos: rollouts embedded at most.

    Raises:
        KinoiseError: no checkpoint, or a broken file.
    """
    parts = read_parts(run, evaluation, control)
    policy, result, loop = load_policy(parts.checkpoint), parts.result, parts.loop
    films, recorded = sections.films(evaluation, result, videos)
    played = plans.read_played(evaluation, result)
    page = Environment(autoescape=True, undefined=StrictUndefined)
    page.filters.update(percent=percent, number=number)
    return page.from_string(Path(__file__).with_suffix(".html").read_text(encoding="utf-8")).render(
        title=sections.title(policy, result, run),
        written=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        version=__version__,
        notices=sections.notices(parts),
        result=result,
        facts=sections.facts(parts, policy),
        tasks=sections.tasks(result),
        failures=sections.failures(result),
        protocol=sections.protocol(result),
        terms=sections.terms(result),
        overlap=sections.overlap(result),
        whisker=whisker,
        films=films,
        recorded=recorded,
        traces=plans.traces(played, result),
        costs=plans.costs(result, played),
        timings=timing.timings(result, loop),
        control=timing.control(control, loop),
        training=sections.training(read_metrics(run / "metrics.jsonl"), parts.train, read_checks(run / "evaluations")),
        experts=sections.experts(policy),
        provenance=provenance(parts),
        commands=commands(parts, policy.config.name, out),
    )


def _directory(given: str | None, usual: Path, name: str) -> Path | None:
    """What was asked for, which has to be there; or the usual place, if it is."""
    if given is None:
        return usual if (usual / name).is_file() else None
    if not (Path(given) / name).is_file():
        raise KinoiseError(f"{given} holds no {name}: give the directory that kinoise {usual.name} wrote")
    return Path(given)
