"""What stands in `benchmarks/results`, as the tables of the documentation's site (docs/benchmarks.md)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from kinoise.files import read_json

from .plots import peers as peer_rows
from .plots import points, table, targets

SUCCESS = {
    "success": "`mode` (`make demo`), ten Metaworld tasks",
    "success_mt50": "`mode`, fifty Metaworld tasks",
    "success_discrete_vla": "`discrete_vla`, ten Metaworld tasks, state and instruction",
    "success_images": "`discrete_vla`, six Metaworld tasks, one camera",
    "success_libero_three": "`mode`, `libero/spatial`, `object` and `goal`, states and instruction",
    "success_libero_three_discrete_vla": "`discrete_vla`, the same",
    "success_libero_object_images": "`mode`, `libero/object`, two cameras",
    "success_libero_10": "`mode`, `libero/10`, states and instruction",
    "success_bf16": "`diffusion` (flow), ten Metaworld tasks, planned in bfloat16",
}
REPLANNING = {
    "replanning_flow": "`diffusion` (flow)",
    "replanning_edm": "`mode` (EDM)",
    "replanning_vp": "`diffusion` (VP)",
    "replanning_tokens": "`discrete_vla`, at the level that `calibrate` found",
    "replanning_tokens_high": "`discrete_vla`, at the level 0.95",
    "replanning_pusht": "`mode` on Push-T",
}
WAYS = {
    "full": "in full, 100 steps (12 rounds)",
    "short": "10 steps (4 rounds)",
    "warm_2": "from the plan before, 2 evaluations",
    "warm_1": "from the plan before, 1 evaluation",
    "cold_2": "from noise, 2 evaluations",
    "cold_1": "from noise, 1 evaluation",
}
DELAYS = {"delay_diffusion": "`diffusion` (flow)", "delay_mode": "`mode`", "delay_discrete_vla": "`discrete_vla`"}
WINDOWS = {
    "state": "states",
    "images": "two cameras, PNG",
    "video": "two cameras, video",
    "state_uncached": "states, uncached",
    "state_all": "states, all in memory",
    "images_uncached": "two cameras, uncached",
    "images_all": "two cameras, all in memory",
}


def rows(head: Sequence[str], body: Iterable[Sequence[Any]]) -> str:
    """A table in Markdown."""
    lines = [head, ["---"] * len(head), *body]
    return "\n".join(f"| {' | '.join(str(cell) for cell in line)} |" for line in lines)


def source(name: str) -> str:
    """A link to a result, as the pages of docs write it; the site has the results below itself."""
    return f"[{name}.json](benchmarks/results/{name}.json)"


def interval(found: dict[str, float]) -> str:
    return f"{found['rate']:.3f} ({found['low']:.3f} to {found['high']:.3f})"


def quartiles(found: dict[str, float], places: int = 2) -> str:
    middle, low, high = (f"{found[key]:.{places}f}" for key in ("ratio", "ratio_q25", "ratio_q75"))
    return f"{middle} ({low} to {high})"


def success(results: Path) -> str:
    body = []
    for name, about in SUCCESS.items():
        found = read_json(results / f"{name}.json")
        size = f"{found['policy']['parameters'] / 1e6:.2f} M"
        body.append((about, size, interval(found["success"]), found["n"], found["errors"], source(name)))
    return rows(("policy and tasks", "parameters", "success", "episodes", "errors", "file"), body)


def demonstrators(results: Path) -> str:
    body = []
    for path in sorted(results.glob("demonstrators_*.json")):
        found = read_json(path)
        tasks = found["tasks"]
        reached, played = (sum(task[key] for task in tasks) for key in ("successes", "n"))
        good = sum(task["successes"] >= 0.9 * task["n"] for task in tasks)
        body.append((f"`{found['env']}`", f"{reached} of {played}", f"{good} of {len(tasks)}", source(path.stem)))
    return rows(("suite", "successes", "tasks at 90 % or more", "file"), body)


def decoded(results: Path) -> list[dict[str, Any]]:
    return [read_json(path) for path in sorted(results.glob("decode_*.json"))]


def replanning(results: Path) -> str:
    body = []
    for name, about in REPLANNING.items():
        for run in read_json(results / f"{name}.json")["runs"].values():
            for way, row in run["rows"].items():
                difference = "" if way == "full" else points(row["difference"])
                found = interval(row["success"]), row["n"], f"{row['nfe_per_plan']:.1f}", difference
                body.append((about, WAYS[way], *found, source(name)))
    return rows(("policy", "plan", "success", "episodes", "evaluations", "difference, points", "file"), body)


def delay(results: Path) -> str:
    body = []
    for name, about in DELAYS.items():
        found = read_json(results / f"{name}.json")
        late = sorted({row["delay"] for row in found["rows"]})
        for method in dict.fromkeys(row["method"] for row in found["rows"]):
            cells = {row["delay"]: row for row in found["rows"] if row["method"] == method}
            shown = [f"{cells[d]['success']['rate']:.2f} ({cells[d]['joins']['p99']:.2f})" if d in cells else "" for d in late]
            body.append((about, f"`{method}`", *shown, source(name)))
    head = ("policy", "joined", *(f"{d} steps late" for d in (0, 2, 4, 8)), "file")
    return f"Success, and in brackets the 99th percentile of jumps at joins; 100 episodes a cell.\n\n{rows(head, body)}"


def peers(results: Path) -> str:
    return peer_rows(read_json(results / "peers.json"))


def data(results: Path) -> str:
    found = read_json(results / "data.json")
    body = [
        (
            f"{peer}, {WINDOWS[kind]}",
            one["peer_windows_per_s"],
            one["kinoise_windows_per_s"],
            quartiles(one["faster"], 1),
            f"{one['aim']:g}",
        )
        for peer in ("lerobot", "robomimic")
        for kind, one in found[peer].items()
    ]
    opening = read_json(results / "opening.json")
    opened = [(name, f"{one['first_s']:.3f}", f"{one['again_s']:.3f}") for name, one in opening["formats"].items()]
    head = rows(("beside", "theirs", "kinoise's", "times faster", "aimed at"), body)
    times = rows(("format", "in a new process, s", "again, s"), opened)
    return f"{head}\n\nTime to open {opening['episodes']:,} episodes:\n\n{times}"


def overhead(results: Path) -> str:
    names = (
        "training",
        "plan",
        "server",
        "evaluation",
        "rollouts_libero",
        "memory",
        "importing",
        "stepping",
        "precision_mode",
        "precision_discrete_vla",
    )
    read = {name: read_json(results / f"{name}.json") for name in names}
    mode, flow = (read["plan"]["policies"][name] for name in ("mode", "diffusion"))
    server, memory = read["server"], read["memory"]
    added, waits = server["latency"]["added_ms"], memory["large"]["data_wait_last"]
    body = [
        (
            "updates a second, beside a bare loop on tensors in memory",
            quartiles(read["training"], 3),
            "at least 0.9",
            "training",
        ),
        ("one plan of `mode` beside its bare network evaluations", quartiles(mode, 3), "at most 1.3", "plan"),
        ("one plan of `diffusion`, likewise", quartiles(flow, 3), "at most 1.3", "plan"),
        (
            "what the server adds to a plan, ms",
            f"{added['median']:.1f} ({added['q25']:.1f} to {added['q75']:.1f})",
            "at most 2",
            "server",
        ),
        ("plans a second with 8 clients beside 1", quartiles(server["throughput"]), "at least 3", "server"),
        (
            "evaluation's steps a second beside the simulators alone, Metaworld",
            quartiles(read["evaluation"], 3),
            "at least 0.6",
            "evaluation",
        ),
        (
            "the same of `libero/object`, 8 episodes under way",
            quartiles(read["rollouts_libero"]["steps"]),
            "at least 0.7",
            "rollouts_libero",
        ),
        (
            "its episodes a second beside one episode at a time",
            quartiles(read["rollouts_libero"]["episodes"]),
            "at least 1.6",
            "rollouts_libero",
        ),
        (
            "memory of training on 20 GB beside 0.2 GB, more by",
            f"{memory['more_bytes'] / 1e9:.2f} GB",
            "at most 2 GB",
            "memory",
        ),
        ("share of the time that updates wait for data, after the first", f"{waits:.1%}", "at most 5 %", "memory"),
        ("`import kinoise`, s", f"{read['importing']['import_s']:.4f}", "at most 0.3", "importing"),
        ("steps a second of LIBERO beside upstream's", quartiles(read["stepping"]["upstream_by_kinoise"]), "", "stepping"),
        ("updates a second in bfloat16 beside float32, `mode`", quartiles(read["precision_mode"]), "", "precision_mode"),
        ("the same, `discrete_vla`", quartiles(read["precision_discrete_vla"]), "", "precision_discrete_vla"),
    ]
    return rows(("what", "measured", "aimed at", "file"), [(*line[:3], source(line[3])) for line in body])


def control(results: Path) -> str:
    found = read_json(results / "controller.json")
    seconds, rate = found["settings"]["seconds"], found["settings"]["rate"]
    body = [(name, one["want"], one["found"], "yes" if one["pass"] else "no") for name, one in found["targets"].items()]
    ticks, plans = found["controller"]["deadlines"], found["plans"]
    about = f"{seconds:g} s at {rate:g} Hz, {ticks:,} ticks, {plans:,} plans ({source('controller')})."
    return f"{about}\n\n{rows(('target', 'wanted', 'found', 'met'), body)}"


def kills(results: Path) -> str:
    body = []
    for path in sorted(results.glob("kills*.json")):
        for name, one in read_json(path)["commands"].items():
            killed = one["kills"], one["first_process_alone"], one["works"]
            body.append(
                (f"`{name}`", *killed, one["other_result"], len(one["wrong"]), len(one["left_behind"]), source(path.stem))
            )
    head = ("command", "killed", "its first process alone", "works", "other results", "torn or going on", "files left", "file")
    return rows(head, body)


def fuzz(results: Path) -> str:
    body = []
    for path in sorted(results.glob("fuzz_*.json")):
        found = read_json(path)
        lines = f"{found['coverage']['lines']} of {found['coverage']['of']}"
        bad = len(found["findings"]) + len(found["ended_early"])
        body.append((f"`{found['settings']['target']}`", f"{found['inputs']:,}", bad, lines, found["edges"], source(path.stem)))
    return rows(("what reads", "inputs", "findings", "lines reached", "edges", "file"), body)


def soak(results: Path) -> str:
    body = []
    for path in sorted(results.glob("soak_*.json")):
        record = read_json(path)
        for name, one in record["found"].items():
            if "slope_per_hour" not in one:  # too short to tell
                body.append((record["side"], name, "", "", "", one["verdict"], source(path.stem)))
                continue
            by = [f"{100 * one[key] / (one['median'] or 1.0):+.2f}" for key in ("slope_per_hour", "low", "high")]
            limit = f"{100 * record['bounds_per_hour'][name]:g} %"
            unit = record["unit"].get(name, "")
            shown = f"{one['median']:.1f} {unit}".strip(), f"{by[0]} % ({by[1]} to {by[2]})", limit, one["verdict"]
            body.append((record["side"], name, *shown, source(path.stem)))
    return rows(("side", "series", "median", "change in an hour", "allowed", "verdict", "file"), body)


def origins(results: Path) -> str:
    body = []
    for path in sorted(results.glob("[!.]*.json")):
        found = read_json(path)
        machine = found.get("machine", {})
        commit = (found.get("commit") or "")[:10] + (" and changes" if "+dirty" in (found.get("commit") or "") else "")
        where = f"{machine.get('cpu', '')}, {machine.get('cores', '')} cores" if machine else ""
        command = f"`{found['command']}`".replace("|", "\\|") if "command" in found else ""
        body.append((source(path.stem), command, commit, where))
    return rows(("file", "command", "commit", "machine"), body)


TABLES: dict[str, Callable[[Path], str]] = {
    "success": success,
    "demonstrators": demonstrators,
    "decode": lambda results: table(decoded(results)),
    "decode_targets": lambda results: targets(decoded(results)),
    "replanning": replanning,
    "delay": delay,
    "peers": peers,
    "data": data,
    "overhead": overhead,
    "control": control,
    "kills": kills,
    "fuzz": fuzz,
    "soak": soak,
    "origins": origins,
}
