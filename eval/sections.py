"""What each section of a report says, as plain values for the page's template. None or empty: that part was not made."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any, NamedTuple

from markupsafe import Markup

from ..config import flat
from ..policies import Policy
from . import charts
from .charts import Axis, Series
from .slot import UPRIGHT
from .sources import Parts, Video, read_video
from .text import SPACE, Number, count, duration, number, percent, short

Record = Mapping[str, Any]
# Charts of metrics.jsonl: what each one shows, under which name. What is logged beside these gets a chart of its own.
CURVES = (
    ("Loss", {"denoising": "training", "validation_loss": "held-out episodes"}),
    ("Learning rate", {"lr": "learning rate"}),
    ("Updates per second", {"steps_per_s": "updates per second"}),
    ("Gradient norm", {"grad_norm": "before clipping"}),
    ("Waiting for data", {"data_wait": "share of the time"}),
)
LINEAR = {"lr", "steps_per_s", "data_wait"}
UNDRAWN = {"step", "elapsed_s", "loss"}
# Fewer points than FEW are drawn each; a scale is logarithmic when values differ by more than a factor of WIDE.
FEW, WIDE = 30, 8


class Fact(NamedTuple):
    """A tile: what it is, the figure, and what else belongs to it."""

    name: str
    value: str
    notes: tuple[str, ...] = ()


class Chart(NamedTuple):
    """A figure and the names of what is drawn in it."""

    name: str
    svg: Markup
    series: tuple[str, ...] = ()


class Film(NamedTuple):
    """A video and its caption."""

    video: Video
    task: str
    outcome: str
    success: bool


def title(policy: Policy, result: Record | None, run: Path) -> str:
    name = policy.config.name
    return f"{name} on {result['protocol']['env']}" if result else f"{name}, run {run.resolve().name}"


def notices(parts: Parts) -> list[str]:
    """What a reader must know before the figures: parts that are about other weights than the run's newest."""
    lines = []
    for name, record in (("evaluation", parts.result), ("controller", parts.loop)):
        if record and record["policy"]["sha256"] not in (parts.averaged, parts.last):
            used = record["policy"]
            which = (
                f"{used['checkpoint']} (sha256 {used['sha256'][:12]})" if used["sha256"] else "weights that were never saved"
            )
            lines.append(f"The {name} did not use this run's newest checkpoint, but {which}.")
    return [*lines, *_whole(parts.result), *_others(parts.run, parts.evaluation)]


def _others(run: Path, shown: Path | None) -> list[str]:
    """The run's evaluations that are not shown."""
    found = sorted(item.parent for item in run.glob("*/result.json"))
    others = [item for item in found if shown is None or not item.samefile(shown)]
    if not others:
        return []
    names = ", ".join(item.name for item in others)
    return [f"Not shown here: {names}. kinoise report {run} eval={others[0]} shows that evaluation."]


def _whole(result: Record | None) -> list[str]:
    """Whether these are all episodes of the protocol, and if not, why."""
    if not result:
        return []
    protocol, found = result["protocol"], result["success"]["n"]
    asked = protocol["episodes"] * len(protocol.get("tasks", result["tasks"]))
    if "shard" in result:
        return [
            f"This is shard {result['shard']}: {found} of {count(asked, 'episode')}. kinoise merge puts the shards together."
        ]
    lines = [f"Only {found} of {count(asked, 'episode')} are here."] if found < asked else []
    if "stopped" in result:
        stopped = result["stopped"]
        width = f"half the interval's width is {percent(stopped['half_width'])} points"
        if stopped["reached"] and found < asked:
            rounds = f"after {count(stopped['rounds'], 'episode')} of {protocol['episodes']} of each task"
            text = f"Stopped early by until={stopped['until']:g}, {rounds}: {width}. It covers a little less than 95 %."
            return [text]
        if not stopped["reached"]:
            lines.append(f"until={stopped['until']:g} was not reached: {width}.")
    return lines


def _joins(decode: Record) -> list[str]:
    """What an evaluation's success can't be read without: guidance, plans that came late, and how they were joined."""
    lines = [f"guidance {decode['guidance']:g}"] if decode.get("guidance", 1.0) != 1.0 else []
    if decode.get("delay"):
        lines.append(f"plans {count(decode['delay'], 'step')} late (95th percentile)")
    if decode.get("warm", 1.0) < 1:
        lines.append(f"replans from level {decode['warm']:g}")
    if decode.get("ensemble") is not None:
        lines.append(f"means over plans, exp(-{decode['ensemble']:g} i)")
    return [*lines, "prefixes pinned"] if decode.get("pin") else lines


def facts(parts: Parts, policy: Policy) -> list[Fact]:
    """The tiles beside the headline figure."""
    result, loop = parts.result, parts.loop
    newest = {"parameters": policy.parameter_count, "checkpoint": parts.checkpoint, "sha256": parts.averaged}
    used = result["policy"] if result else newest
    config = policy.config
    decode = result["decode"] if result else {**vars(config.decode), "execute": config.execute, "chunk": config.chunk}
    tiles = [
        Fact("Policy", config.name, (f"{number(used['parameters'])} parameters",)),
        Fact(
            "Checkpoint",
            _checkpoint(used["checkpoint"]),
            (f"sha256 {used['sha256'][:12]}",) if used["sha256"] else (),
        ),
        Fact(
            "Decoding",
            f"{decode['sampler']}, {count(decode['steps'], 'step')}",
            (f"executes {decode['execute']} of {decode['chunk']} actions", *_joins(decode)),
        ),
    ]
    if result:
        cost = result["decode_cost"]
        plan = cost["plan_ms_batch1"]
        rate = f"{result['env_steps_per_s']:,.0f} steps/s".replace(",", SPACE)
        tiles += [
            Fact(
                "One plan",
                f"{number(plan['p50'])} ms",
                (f"95th percentile {number(plan['p95'])} ms", f"{number(cost['nfe_per_plan'])} network evaluations"),
            ),
            Fact("Simulation", rate, (f"{duration(result['wall_s'])} in all",)),
        ]
    if loop:
        missed = f"{loop['missed']} of {count(loop['ticks'] + loop['missed'], 'deadline')} missed"
        tiles.append(Fact("Controller", f"{loop['rate']:g} Hz", (missed, f"plan {number(loop['plan_ms']['p50'])} ms")))
    return tiles


def tasks(result: Record | None) -> list[tuple[str, Record]]:
    """Short names and intervals, lowest first."""
    if not result:
        return []
    return sorted(((short(task), item) for task, item in result["tasks"].items()), key=lambda pair: (pair[1]["rate"], pair[0]))


def failures(result: Record | None) -> list[Record]:
    """Episodes without success, errors among them."""
    return [] if not result else [{**item, "task": short(item["task"])} for item in result["episodes"] if not item["success"]]


def protocol(result: Record | None) -> str:
    """What has to be equal for two results to be compared."""
    if not result:
        return ""
    item = result["protocol"]
    counted = f"{count(len(result['tasks']), 'task')} × {count(item['episodes'], 'episode')}"
    steps = item["horizon"]
    steps = steps if isinstance(steps, int) else f"{min(steps.values())} to {max(steps.values())}"
    others = [f"wait {item['wait']}"] if item.get("wait") else []
    others += [f"images {item['images']}"] if item.get("images", UPRIGHT) != UPRIGHT else []
    others += [f"{kind} {strength:g}" for kind, strength in item.get("perturb", {}).items()]
    parts = [item["name"], item["env"], counted, f"horizon {steps}", *others, f"seed {item['seed']}", f"hash {item['hash']}"]
    return " · ".join(parts)


def terms(result: Record | None) -> list[tuple[str, str]]:
    """Every value of the protocol but the tasks, by name."""
    if not result:
        return []
    item = result["protocol"]
    return [(key, json.dumps(value) if not isinstance(value, str) else value) for key, value in item.items() if key != "tasks"]


def overlap(result: Record | None) -> str:
    """Whether the demonstrations knew the initial states; empty when they were not compared."""
    seen = (result or {}).get("overlap")
    if not seen:
        return ""
    known = f"{count(seen['demonstrations'], 'demonstration')} in {seen['data']}"
    if not seen["episodes"]:
        return f"No episode began as one of the {known} did."
    return f"{count(seen['episodes'], 'episode')} began exactly as one of the {known}: this is not a test on unseen goals."


def films(evaluation: Path | None, result: Record | None, most: int) -> tuple[list[Film], int]:
    """At most `most` videos, and how many there are: failures and successes take turns, and among each of them the tasks.

    Raises KinoiseError for a video that is named in the result and can't be read.
    """
    if not evaluation or not result:
        return [], 0
    queues: dict[bool, dict[str, list[Record]]] = {False: {}, True: {}}
    for episode in result["episodes"]:
        if episode.get("video"):
            queues[episode["success"]].setdefault(episode["task"], []).append(episode)
    lost, won = (_by_turns(list(by_task.values())) for by_task in queues.values())
    turns = _by_turns([lost, won])
    shown = [
        Film(read_video(evaluation / item["video"]), short(item["task"]), _outcome(item), item["success"])
        for item in turns[:most]
    ]
    return shown, len(turns)


def _by_turns(queues: Sequence[Sequence[Record]]) -> list[Record]:
    """One of each, then the next of each, until all are there."""
    return [item for item in chain.from_iterable(zip_longest(*queues)) if item is not None]


def training(records: Sequence[Record], train: Record | None, checks: Sequence[tuple[int, Number]]) -> dict[str, Any] | None:
    """Curves of what metrics.jsonl logs, by update.

    Args:
        train: train.json, which a run has once it is finished.
        checks: (update, success rate) of evaluations that were made in between.
    """
    if not records:
        return None
    left = {key for record in records for key in record} - UNDRAWN
    drawn = []
    for name, known in CURVES:
        if found := {key: label for key, label in known.items() if key in left}:
            drawn.append(_curve(name, records, found))
        left -= known.keys()
    if checks:
        ends = f"Success while training, from {percent(checks[0][1])} % to {percent(checks[-1][1])} %"
        drawn.insert(
            1, Chart("Success while training", charts.lines([Series("success", checks, "dots")], ends, x="updates", zero=True))
        )
    drawn += [_curve(key.replace("_", " ").capitalize(), records, {key: key}) for key in sorted(left)]
    last = records[-1]
    says = f"{count(last['step'], 'update')} in {duration(train['wall_s'] if train else last['elapsed_s'])}"
    says += "." if train else "; this run is not finished."
    if len(records) > charts.BINS:
        says += " A line is the mean of neighbouring records, the band their range."
    settings = [(name, json.dumps(value)) for name, value in flat(train["config"])] if train else []
    return {"says": says, "charts": drawn, "settings": settings}


def experts(policy: Policy) -> dict[str, Any] | None:
    """Routing probabilities over the noise level, one chart a layer; None for a policy without experts by noise level."""
    use = policy.expert_use()
    if use is None:
        return None
    levels, visited, total = use["noise"], use["visited"], len(use["use"][0][0])
    log, name = {"sigma": (True, "σ, from noise to clean"), "t": (False, "t, from noise (1) to clean (0)")}[use["measure"]]
    axis = Axis(max(*levels, *visited), min(*levels, *visited), log, name)
    drawn = []
    for index, shares in enumerate(zip(*use["use"], strict=True), 1):
        first, last = (max(range(len(share)), key=share.__getitem__) + 1 for share in (shares[0], shares[-1]))
        label = f"Layer {index}: expert {first} is the most probable at the most noise, expert {last} at the least"
        drawn.append(Chart(f"Layer {index}", charts.areas(axis, levels, shares, label, visited)))
    says = (
        f"The router's probabilities. The {use['chosen']} most probable of {total} experts serve a level. Decoding "
        f"goes from left to right, from noise to a plan, and visits the {count(len(visited), 'level')} that triangles mark."
    )
    return {"says": says, "names": [f"expert {index}" for index in range(1, total + 1)], "charts": drawn}


def _curve(name: str, records: Sequence[Record], shown: Mapping[str, str]) -> Chart:
    """One chart of some keys, on a logarithmic scale where the values span much."""
    points = {label: [(item["step"], item[key]) for item in records if key in item] for key, label in shown.items()}
    series = [Series(label, items, "line" if len(items) > FEW else "dots") for label, items in points.items()]
    values = [value for items in points.values() for _, value in items]
    log = min(values) > 0 and max(values) > WIDE * min(values) and not LINEAR & shown.keys()
    ends = "; ".join(f"{label} from {number(items[0][1])} to {number(items[-1][1])}" for label, items in points.items())
    svg = charts.lines(series, f"{name} by update: {ends}", x="updates", log=log, zero=min(values) >= 0)
    return Chart(f"{name}, logarithmic" if log else name, svg, tuple(points))


def _checkpoint(path: Path | str | None) -> str:
    name = Path(path).name if path else "never saved"
    return f"update {name}" if name.isdigit() else name


def _outcome(episode: Record) -> str:
    if episode["error"]:
        return f"error after {count(episode['steps'], 'step')}"
    return f"{'succeeded in' if episode['success'] else 'failed after'} {count(episode['steps'], 'step')}"
