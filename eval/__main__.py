"""`kinoise eval RUN`: a policy's success by rollouts, as a table, result.json and videos."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import MISSING
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Column, Table

from .. import envs
from ..config import parse
from ..policies.checkpoint import FRAME, load_policy, resolve
from ..policies.decode import DecodeChanges
from .evaluate import evaluate
from .latency import HELP
from .launch import HELP as LAUNCHER
from .launch import Cluster, check_launched
from .presets import EPISODES, PRESETS, SEED
from .protocol import Shard
from .rollout import SLOTS
from .slot import TURNS, UPRIGHT
from .workers import TIMEOUT_S

ABOUT = """Plays episodes with a trained policy and writes DIR/result.json: success per task with 95 % intervals, every episode,
what planning cost. The same command gives the same episodes; with resume=true it goes on after a kill. Parts played with
shard= become one result by kinoise merge; launcher= plays and merges them (docs/scaling.md)."""


@dataclass
class Settings:
    """The whole command line of `kinoise eval`."""

    run: str = field(default=MISSING, metadata={"help": "a training run, or one of its checkpoints"})
    env: str = field(default="metaworld/mt10", metadata={"help": "tasks to play"})
    protocol: str | None = field(
        default=None, metadata={"help": "a preset of what is null among episodes, seed, horizon, wait, images and perturb"}
    )
    episodes: int | None = field(default=None, metadata={"help": f"per task; null: the protocol's, or {EPISODES}"})
    seed: int | None = field(
        default=None, metadata={"help": f"what initial states and the policy's noise are drawn from; null: {SEED}"}
    )
    out: str | None = field(
        default=None, metadata={"help": "where result.json and videos go; RUN/eval if null, with shard=2/8 RUN/eval/2-of-8"}
    )
    resume: bool = field(default=False, metadata={"help": "play only the episodes that out= lacks"})
    shard: str | None = field(default=None, metadata={"help": "such as 2/8: play the second of eight parts"})
    launcher: str | None = field(default=None, metadata={"help": LAUNCHER})
    shards: int | None = field(default=None, metadata={"help": "launcher's parts; null: as many as there is room for at once"})
    until: float | None = field(
        default=None, metadata={"help": "stop once half the overall interval's width is at most this, such as 0.02"}
    )
    execute: int | None = field(default=None, metadata={"help": "actions carried out of each plan; null: the policy's own"})
    latency: str = field(
        default="0", metadata={"help": f"seconds that a plan takes, during which the simulator goes on: {HELP}"}
    )
    ensemble: float | None = field(
        default=None, metadata={"help": "carry out means over all plans at hand, weights exp(-ensemble i), oldest first"}
    )
    pin: bool = field(default=False, metadata={"help": "plans begin with what is carried out meanwhile"})
    horizon: int | None = field(
        default=None, metadata={"help": "most steps of an episode; null: the protocol's, or the simulator's own"}
    )
    wait: int | None = field(
        default=None, metadata={"help": "steps before the policy sees anything; null: 10 of LIBERO, else 0"}
    )
    images: str | None = field(default=None, metadata={"help": f"how they are turned: {', '.join(TURNS)}; null: {UPRIGHT}"})
    perturb: str | None = field(default=None, metadata={"help": "such as camera:0.05,lighting:0.5; null: nothing"})
    video: int = field(default=0, metadata={"help": "films of so many successes and so many failures of each task"})
    data: str | None = field(default=None, metadata={"help": "demonstrations; a note says if initial states occur in them"})
    ema: bool = field(default=True, metadata={"help": "use the averaged weights"})
    frame: str | None = field(default=None, metadata={"help": FRAME})
    device: str = field(default="auto", metadata={"help": "of the policy: cpu, cuda, or auto: cuda where there is one"})
    compile: bool = field(default=False, metadata={"help": "compile plans: the first of a kind takes seconds, the others less"})
    bf16: bool = field(default=False, metadata={"help": "multiply in bfloat16, which rounds; pays for large networks"})
    workers: int | None = field(default=None, metadata={"help": "processes for the simulators; null: one for each core"})
    slots: int = field(default=SLOTS, metadata={"help": "episodes under way at once"})
    threads: int = field(default=1, metadata={"help": "of the policy, on the CPU; more than spare cores slows everything"})
    timeout: float = field(default=TIMEOUT_S, metadata={"help": "seconds after which a simulator that hangs is started again"})
    decode: DecodeChanges = field(default_factory=DecodeChanges)
    cluster: Cluster = field(default_factory=Cluster)


def main(argv: Sequence[str]) -> int:
    """0, or 1 when not a single episode could be played to its end (of a shard: 0).

    Raises:
        UsageError: a key or a value that doesn't exist.
        KinoiseError: no checkpoint, a policy that doesn't fit the environment, a simulator that can't be built.
    """
    settings = read_settings(argv)
    check_launched(settings.launcher, settings.shards)
    part = "" if settings.shard is None else str(Shard.parse(settings.shard)).replace("/", "-of-")
    out = Path(settings.out or Path(settings.run) / "eval" / part)
    console = Console()
    checkpoint = resolve(settings.run)
    result = _alone(settings, checkpoint, out) if settings.launcher is None else _in_parts(settings, argv, checkpoint, out)
    show(result, console)
    console.print(f"{out / 'result.json'}", highlight=False, soft_wrap=True)
    # Of a part, all episodes may well be errors: whoever merges the parts judges the whole.
    return int(settings.shard is None and result["success"]["errors"] == result["success"]["n"])


def read_settings(argv: Sequence[str]) -> Settings:
    """Raises UsageError for what `kinoise eval` doesn't take."""
    choices = {"env": envs.choices, "protocol": lambda: ", ".join(PRESETS)}
    return parse("eval", Settings, argv, positional="run", about=ABOUT, choices=choices)


def _in_parts(settings: Settings, argv: Sequence[str], checkpoint: Path, out: Path) -> dict[str, Any]:
    from .parts import evaluate_parts  # which merges, as kinoise merge does, which shows what this module does

    return evaluate_parts(settings, argv, checkpoint, out)


def _alone(settings: Settings, checkpoint: Path, out: Path) -> dict[str, Any]:
    """All of it in this process."""
    policy = load_policy(
        checkpoint,
        ema=settings.ema,
        device=settings.device,
        decode=settings.decode.given(),
        compile=settings.compile,
        bf16=settings.bf16,
        frame=settings.frame,
    )
    return evaluate(
        policy,
        settings.env,
        protocol=settings.protocol,
        episodes=settings.episodes,
        seed=settings.seed,
        execute=settings.execute,
        latency=settings.latency,
        ensemble=settings.ensemble,
        pin=settings.pin,
        horizon=settings.horizon,
        wait=settings.wait,
        images=settings.images,
        perturb=settings.perturb,
        checkpoint=checkpoint,
        ema=settings.ema,
        out=out,
        video=settings.video,
        data=None if settings.data is None else Path(settings.data),
        resume=settings.resume,
        shard=settings.shard,
        until=settings.until,
        workers=settings.workers,
        slots=settings.slots,
        threads=settings.threads,
        timeout=settings.timeout,
    )


def show(result: dict[str, Any], console: Console) -> None:
    """The table per task, what errors said, and what planning cost."""
    right = (Column(name, justify="right") for name in ("success", "95 % interval", "n", "errors"))
    table = Table(Column("task", no_wrap=True), *right, box=SIMPLE_HEAD)
    rows = {**result["tasks"], "all": result["success"]}
    for name, row in rows.items():
        if name == "all":
            table.add_section()
        span = f"{row['low']:.3f} to {row['high']:.3f}"
        table.add_row(name, f"{row['rate']:.3f}", span, str(row["n"]), str(row["errors"] or ""))
    console.print(table)
    played = result["protocol"]
    if played["name"].partition(",")[0] in PRESETS:
        console.print(f"protocol {played['name']}", highlight=False, soft_wrap=True)
    if played["images"] != UPRIGHT and any(item["kind"] == "image" for item in result["observed"].values()):
        console.print(
            f"images were shown {played['images']}, as {played['name']} has them; those of kinoise collect are upright: if the "
            f"policy learnt from these, evaluate it with images=upright",
            style="red",
            markup=False,
            soft_wrap=True,
        )
    failed = [item for item in result["episodes"] if item["error"]]
    for item in failed:
        console.print(f"error in {item['task']} {item['index']}: {item['error']}", style="red", markup=False, soft_wrap=True)
    if result.get("overlap", {}).get("episodes"):
        seen = result["overlap"]
        console.print(
            f"episodes that began exactly as a demonstration in {seen['data']}: {seen['episodes']}. Choose another seed=.",
            style="red",
            markup=False,
            soft_wrap=True,
        )
    for item in result.get("unfilmed", ()):
        console.print(f"no video of {item['task']} {item['index']}: {item['why']}", style="red", markup=False, soft_wrap=True)
    if "latency" in result:
        delays, moved = result["latency"]["delays"], result["motion"]
        console.print(
            f"plans came {_steps(delays['p50'])} steps late (p95 {_steps(delays['p95'])}, most {_steps(delays['max'])}); "
            f"{moved['held']} of {moved['steps']} actions held the robot where no plan was there",
            highlight=False,
            soft_wrap=True,
        )
    if "stopped" in result:
        stopped = result["stopped"]
        console.print(
            f"until={stopped['until']:g}: {'stopped' if stopped['reached'] else 'not reached'} after {stopped['rounds']} "
            f"episodes of each task, half-width {stopped['half_width']:.3f}",
            highlight=False,
            soft_wrap=True,
        )
    cost = result["decode_cost"]
    if cost["nfe_per_plan"] is None:  # no episode came as far as a plan
        return
    evaluations = f"a plan takes {cost['nfe_per_plan']:.3g} network evaluations"
    if cost["plan_batch"]["mean"] is None:  # merged, or all of it played before
        console.print(evaluations, highlight=False, soft_wrap=True)
        return
    console.print(
        f"{result['env_steps_per_s']:.0f} steps/s; {evaluations}, "
        f"{_ms(cost['plan_ms'])} for a batch of {cost['plan_batch']['mean']:.0f}, {_ms(cost['plan_ms_batch1'])} for one; "
        f"{result['wall_s']:.0f} s in all",
        highlight=False,
        soft_wrap=True,
    )


def _steps(value: float | None) -> str:
    return "-" if value is None else f"{value:g}"


def _ms(values: dict[str, float | None]) -> str:
    return "-" if values["p50"] is None else f"{values['p50']:.1f} ms (p95 {values['p95']:.1f})"
