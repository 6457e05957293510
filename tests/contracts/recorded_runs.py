"""For tests of `kinoise report`: runs with the records that the other commands write, and the page, taken apart."""

from __future__ import annotations

import json
import re
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
from kinoise.deploy.latency import Arrival, Record
from kinoise.deploy.video import write_video
from kinoise.eval.protocol import EvaluationProtocol
from kinoise.eval.report import main
from kinoise.eval.result import Planning, make_result
from kinoise.eval.slot import Job, Outcome, Terms
from kinoise.files import link, sha256, write_json
from kinoise.policies import POLICIES, build_policy
from kinoise.policies.checkpoint import save_policy
from kinoise.policies.core.network import NetworkConfig
from kinoise.policies.core.process import ProcessConfig
from kinoise.provenance import origin
from kinoise.spec import Feature, Spec, Stats

TASKS = ("metaworld/push", "metaworld/reach")
LOST = ("metaworld/push", 1)


def write_policy(run: Path, name: str = "mode", process: str = "edm", **network: object) -> Path:
    """A run with one checkpoint: a small policy with fresh weights."""
    directory = run / "checkpoints" / "300"
    directory.mkdir(parents=True)
    spec = Spec({"state": Feature((3,))}, Feature((2,), low=(-1.0, -1.0), high=(1.0, 1.0)), rate=80.0, language=False)
    stats = {key: numbers(size) for key, size in (("state", 3), ("action", 2))}
    config = POLICIES[name].config(chunk=4, execute=2)
    config.process = ProcessConfig(kind=process, parametrisation="x0")
    config.network = NetworkConfig(**{**vars(config.network), "width": 16, "depth": 2, "heads": 2, **network})
    policy = build_policy(config, spec, stats, ())
    save_policy(directory, policy, {})
    link(run / "checkpoints" / "last", "300")
    return directory


def numbers(size: int) -> Stats:
    return Stats((0.0,) * size, (1.0,) * size, (-1.0,) * size, (1.0,) * size, (-0.9,) * size, (0.9,) * size, 100)


def write_training(run: Path, finished: bool = True) -> None:
    lines = []
    for step in range(10, 310, 10):
        line = {"step": step, "loss": 1.01 / step, "denoising": 1 / step, "balance": 0.01, "grad_norm": 0.5, "lr": 1e-4}
        line |= {"steps_per_s": 20.0, "elapsed_s": step / 20} | ({"validation_loss": 2 / step} if step % 100 == 0 else {})
        lines.append(json.dumps(line) + "\n")
    (run / "metrics.jsonl").write_text("".join(lines))
    if finished:
        config = {"policy": {"name": "mode"}, "data": "DATA", "seed": 3, "train": {"steps": 300, "batch_size": 8, "lr": 1e-4}}
        account = {"config": config, "wall_s": 15.0, **origin()}
        write_json(run / "train.json", account)


def film(path: Path) -> None:
    write_video(path, (np.full((32, 48, 3), 20 * shade, np.uint8) for shade in range(12)), 10.0)


def identity_of(checkpoint: Path) -> dict[str, object]:
    weights = sha256(checkpoint / "ema.safetensors")
    return {"name": "mode", "checkpoint": str(checkpoint), "sha256": weights, "parameters": 12345}


def write_evaluation(out: Path, checkpoint: Path, video: int = 1, error: str = "the simulator said no") -> dict:
    """result.json of three episodes of two tasks: one failed, one ended in an error."""
    (out / "videos").mkdir(parents=True)
    protocol = EvaluationProtocol("metaworld/mt10", TASKS, 3, 500, 1000)
    outcomes = []
    for task, index, seed in protocol.episode_seeds():
        path = out / "videos" / f"{task.replace('/', '-')}-{index}.mp4" if index < video else None
        job = Job(task, index, seed, Terms(1, ("state",), 500), film=path)
        wrong = error if (task, index) == (TASKS[1], 2) else None
        outcomes.append(Outcome(job, (task, index) != LOST and not wrong, 40 + index, 3.5, wrong, {"goal": [0.0]}))
        if path:
            film(path)
    identity = identity_of(checkpoint)
    decode = {"sampler": "ddim", "steps": 5, "guidance": 1.0, "execute": 2, "chunk": 4}
    planning = Planning([0.02, 0.03], [6, 4], [5, 5], [0.01, 0.012])
    result = make_result(protocol, identity, decode, outcomes, planning, rollout_s=2.0, wall_s=75.0, rollout={"workers": 2})
    result["overlap"] = {"data": "DATA", "demonstrations": 20, "episodes": 0}
    write_json(out / "result.json", result)
    return result


def write_control(out: Path, checkpoint: Path) -> None:
    out.mkdir(parents=True)
    record = Record(0.05, missed=2, rungs=Counter(plan=97, rest=2, hold=1))
    for index in range(100):
        record.add_tick(index * 0.05, 0.0, 0.001)
    for index in range(15):
        record.add_arrival(Arrival(6 * index, 1 + index % 2, 0.01 + 0.001 * index, 5, "used"))
    record.add_arrival(Arrival(96, 9, 0.4, 5, "expired"))
    value = {
        **origin(),
        "policy": identity_of(checkpoint),
        "env": "metaworld/push",
        "seed": 0,
        "rate": 20.0,
        "seconds": 5.0,
        **record.to_json(),
        "interventions": {"nan": 0, "bounds": 7, "velocity": 0, "jump": 2, "stale": 0, "heartbeat": 0},
        "episodes": [{"index": 0, "seed": 1, "steps": 80, "success": True, "finished": True}],
    }
    write_json(out / "control.json", value)
    film(out / "control.mp4")


class Page(HTMLParser):
    """The elements of a page, with their attributes; text by the section it is in."""

    VOID = frozenset({"meta", "link", "br", "line", "circle", "path", "rect"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.section, self.text = "header", {"header": ""}
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag == "section":
            self.section = str(dict(attrs)["id"])
            self.text[self.section] = ""
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, f"</{tag}> closes nothing"

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in ("style", "script"):
            self.text[self.section] += " ".join(data.split()) + " "

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


def report(run: Path, out: Path, *arguments: str) -> Page:
    assert not main([str(run), f"out={out}", *arguments])
    page = Page(out.read_text(encoding="utf-8"))
    assert not page.open
    return page


def assert_drawn_inside(page: Page) -> None:
    """The numbers in its drawings are finite and inside."""
    for item in page.all("path"):
        for x, y in re.findall(r"(-?[\d.]+|nan|inf) (-?[\d.]+|nan|inf)", str(item["d"])):
            assert 0 <= float(x) <= 360
            assert 0 <= float(y) <= 208
