"""`kinoise replay`: a recorded run's controller once more, on the clock, the readings and the replies that it had."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import torch
from omegaconf import MISSING, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from rich.console import Console
from rich.table import Table

from ..config import UsageError, parse
from ..policies.checkpoint import identity, load_policy, resolve
from ..spec import KinoiseError, Plan, Spec
from .controller import Controller, ControllerConfig
from .guards import GuardConfig, Guards
from .inference import PolicyPlanner, Request
from .latency import Record
from .recording import Names
from .script import CutShort, Difference, Raised, Script, ScriptClock, ScriptInference, ScriptRestartable, ScriptRobot
from .trace import TraceError, TraceReader

ABOUT = """Runs the controller of a trace, which `kinoise control trace=true` writes, on what it was told then, and checks that
it does the same: every question and every command, bit for bit. Exit code 1 at the first difference. With run=RUN that policy
plans every recorded question again; on the same machine, with as many threads, its plans are the recorded ones, bit for bit."""

Config = TypeVar("Config")
Planner = Callable[[Request], Plan]


@dataclass
class Settings:
    trace: str = field(default=MISSING, metadata={"help": "OUT/control.trace"})
    run: str | None = field(default=None, metadata={"help": "a run or a checkpoint that plans every question again"})
    tolerance: float = field(default=0.0, metadata={"help": "by how much a number of such a plan may differ, physical units"})
    device: str = field(default="auto", metadata={"help": "of the policy: cpu, cuda, or auto: cuda where there is one"})

    def __post_init__(self) -> None:
        if not self.tolerance >= 0:
            raise UsageError(f"tolerance={self.tolerance}: expected at least 0")


def main(argv: Sequence[str]) -> int:
    """Exit codes: 0 when everything was as recorded, 1 when something was not.

    Raises KinoiseError when the trace or the policy can't be read, or the policy is not the one of the trace.
    """
    settings = parse("replay", Settings, argv, positional="trace", about=ABOUT)
    with TraceReader(settings.trace) as trace:
        again = None if settings.run is None else Again(_planner(settings, trace.header))
        outcome = replay(trace, again or (lambda request, plan: None))
    _report(trace, outcome, again)
    problems = [] if outcome.difference is None else [f"the controller did not do the same: {outcome.difference}"]
    if again is not None and again.largest > settings.tolerance:
        problems.append(f"{again.different} plans are not the recorded ones, the first at {again.first}")
    for problem in problems:
        print(f"kinoise: {problem}", file=sys.stderr)
    return 1 if problems else 0


@dataclass(frozen=True)
class Outcome:
    """What became of a replay.

    Args:
        record: of the run, as the controller kept it.
        counts: events by kind, as far as they agree.
        interventions: of the guards.
        raised: what ended the recorded run; "" when nothing was raised.
        difference: the first call that was not the recorded one.
    """

    record: Record
    counts: Mapping[str, int]
    interventions: Mapping[str, int]
    raised: str
    difference: Difference | None


def replay(trace: TraceReader, answered: Callable[[Request, Plan], None] = lambda request, plan: None) -> Outcome:
    """Runs the controller of `trace` to the end of what it holds, or to the first difference.

    Args:
        answered: gets every question that a plan came to, and that plan.

    Raises:
        TraceError: a damaged trace.
    """
    header = trace.header
    wanted = {"spec", "controller", "guards", "execute", "history", "seconds", "restartable"}
    if absent := sorted(wanted - header.keys()):
        raise TraceError(f"{trace.path}: its header lacks {absent}: it is damaged, or another kinoise wrote it")
    spec = Spec.from_json(header["spec"])
    guards = Guards(spec, _settings(GuardConfig, header["guards"]))
    script, names, raised = Script(trace.events()), Names(), ""
    kind = ScriptRestartable if header["restartable"] else ScriptInference
    controller = Controller(
        ScriptRobot(script, spec, names),
        kind(script, names, answered),
        guards,
        _settings(ControllerConfig, header["controller"]),
        execute=header["execute"],
        history=header["history"],
        clock=ScriptClock(script),
    )
    try:
        controller.prepare(lambda: script.told("stopped", bool))
        controller.run(header["seconds"], lambda: script.told("stopped", bool))
        script.finish()
    except (CutShort, Difference):
        pass
    except (Raised, KinoiseError) as error:
        raised = str(error)
        script.finish()
    if isinstance(script.ended, TraceError):
        raise script.ended
    difference = script.ended if isinstance(script.ended, Difference) else None
    return Outcome(controller.record, script.counts, guards.interventions, raised, difference)


class Again:
    """Plans questions again, and holds the plans against the recorded ones.

    A plan that a time budget cut short depends on how long it took: where the other one has another number of evaluations, the
    two are not compared, and counted in `cut`.
    """

    def __init__(self, planner: Planner) -> None:
        self._planner = planner
        self.equal, self.different, self.cut = 0, 0, 0
        self.largest, self.first = 0.0, ""

    def __call__(self, request: Request, plan: Plan) -> None:
        own = self._planner(replace(request, budget=None))
        if request.budget is not None and own.nfe != plan.nfe:
            self.cut += 1
            return
        same = own.actions.shape == plan.actions.shape
        if same and torch.equal(own.actions, plan.actions):
            self.equal += 1
            return
        self.different += 1
        apart = float((own.actions - plan.actions).abs().max()) if same else math.inf
        self.largest = max(self.largest, math.inf if math.isnan(apart) else apart)
        self.first = self.first or f"tick {request.tick}: {apart:.3g} apart"


def _planner(settings: Settings, header: Mapping[str, Any]) -> Planner:
    """The policy of `run`, as the recorded one was asked. Raises KinoiseError when the two are not the same."""
    assert settings.run is not None
    made = header.get("planning")
    if not isinstance(made, dict) or made.get("seed") is None:
        raise KinoiseError("the plans of this trace came from a server, whose noise is not in it: replay without run=")
    checkpoint = resolve(settings.run)
    rounding = {name: made.get(name, False) for name in ("compile", "bf16")}
    loading = {"device": settings.device, "decode": made["decode"], "frame": made.get("frame"), **rounding}
    policy = load_policy(checkpoint, ema=made["ema"], **loading)
    mine, theirs = identity(policy, checkpoint, made["ema"])["sha256"], made["sha256"]
    if mine != theirs:
        raise KinoiseError(f"run={settings.run} has the weights {mine[:12]}, the trace those of {str(theirs)[:12]}")
    if made["threads"] is not None:
        torch.set_num_threads(made["threads"])
    return PolicyPlanner(policy, made["seed"])


def _settings(kind: type[Config], value: Any) -> Config:
    try:
        return OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(kind), value))  # type: ignore[return-value]
    except (OmegaConfBaseException, ValueError, TypeError) as error:
        text = str(error).splitlines()[0]
        raise TraceError(f"the trace's settings of the {kind.__name__} are unknown here: {text}") from error


def _report(trace: TraceReader, outcome: Outcome, again: Again | None) -> None:
    record, console = outcome.record, Console()
    table = Table(title=f"{trace.path}", show_header=False)
    rows = {
        "ticks": f"{record.ticks}, {record.missed} missed",
        "plans": f"{record.plans}, {record.outcomes['expired']} too late",
        "commands compared": str(outcome.counts["command"]),
        "questions compared": str(outcome.counts["submit"]),
        "guards": ", ".join(f"{count} {name}" for name, count in outcome.interventions.items()),
        "stops": ", ".join(f"tick {item.tick}: {item.reason}" for item in record.stops) or "none",
    }
    if outcome.raised:
        rows["ended by"] = outcome.raised
    if again is not None:
        rows["planned again"] = f"{again.equal} bit for bit, {again.different} not; largest difference {again.largest:.3g}"
        if again.cut:
            rows["planned again"] += f"; {again.cut} were cut by their time budget"
    for name, text in rows.items():
        table.add_row(name, text)
    console.print(table)
    end = trace.end
    if outcome.difference is None and end is None:
        console.print("the trace was cut short: the run, or the recording, was killed; it agrees as far as it goes")
    elif end is not None and end.get("lost"):
        console.print(f"the trace lacks its last {end['lost']} events: {end.get('trouble')}; it agrees as far as it goes")
