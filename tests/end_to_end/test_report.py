"""`kinoise report`: the page that comes out of the records that the other commands write."""

from __future__ import annotations

import base64
import io
import itertools
import json
import re
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path

import av
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from kinoise.config import UsageError
from kinoise.deploy.latency import Arrival, Record
from kinoise.deploy.video import write_video
from kinoise.eval.charts import Axis, thin
from kinoise.eval.latency import parse_latency
from kinoise.eval.ledger import Conditions, Entry, Ledger
from kinoise.eval.protocol import EvaluationProtocol
from kinoise.eval.report import main
from kinoise.eval.result import Planning, make_result
from kinoise.eval.slot import Job, Outcome, Terms
from kinoise.eval.text import number
from kinoise.eval.timeline import Carried
from kinoise.files import link, sha256, write_json
from kinoise.policies import POLICIES, build_policy
from kinoise.policies.checkpoint import load_policy, save_policy
from kinoise.policies.core.network import NetworkConfig
from kinoise.policies.core.process import ProcessConfig
from kinoise.provenance import origin
from kinoise.spec import Feature, KinoiseError, Spec, Stats

TASKS = ("metaworld/push", "metaworld/reach")
LOST = ("metaworld/push", 1)
HOSTILE = "<script>alert('x')</script> & 5 < 6"


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
    ticks = [index * 0.05 for index in range(100)]
    arrivals = [Arrival(6 * index, 1 + index % 2, 0.01 + 0.001 * index, 5, "used") for index in range(15)]
    arrivals.append(Arrival(96, 9, 0.4, 5, "expired"))
    rungs = Counter(plan=97, rest=2, hold=1)
    record = Record(0.05, ticks, [0.0] * 100, [0.001] * 100, missed=2, rungs=rungs, arrivals=arrivals)
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


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """RUN with everything in its usual place."""
    run = tmp_path_factory.mktemp("made") / "run"
    checkpoint = write_policy(run, experts=3)
    write_training(run)
    write_evaluation(run / "eval", checkpoint, error=HOSTILE)
    write_control(run / "control", checkpoint)
    return run


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


@pytest.fixture(scope="module")
def page(made: Path, tmp_path_factory: pytest.TempPathFactory) -> Page:
    return report(made, tmp_path_factory.mktemp("page") / "report.html")


def test_nothing_is_fetched(page: Page) -> None:
    links = [item.get(key) or "" for _, item in page.elements for key in ("src", "href", "poster", "action") if key in item]
    assert links
    assert all(item.startswith(("data:", "#")) for item in links)
    policy = next(str(item["content"]) for item in page.all("meta") if item.get("http-equiv") == "Content-Security-Policy")
    assert "default-src 'none'" in policy
    assert "http" not in policy


def shown(share: float) -> str:
    return f"{100 * share:.1f}".removesuffix(".0")


def test_headline_and_tasks_say_what_the_result_says(made: Path, page: Page) -> None:
    result = json.loads((made / "eval" / "result.json").read_text())
    header, tasks = page.text["header"], page.text["tasks"]
    assert "4 of 6 episodes succeeded" in header
    assert "1 ended in an error" in header
    for figure in ("66.7", shown(result["success"]["low"]), shown(result["success"]["high"]), "12.3k parameters"):
        assert figure in header
    assert result["protocol"]["hash"] in tasks
    for task, item in result["tasks"].items():
        assert task.split("/")[1] in tasks
        assert f"{shown(item['low'])}–{shown(item['high'])}" in tasks
    for episode in result["episodes"]:
        assert (str(episode["seed"]) in tasks) == (not episode["success"])
    assert "kinoise eval" in tasks
    assert "env=metaworld/push episodes=2 seed=1000" in tasks


def test_what_the_records_hold_is_text_and_never_markup(page: Page) -> None:
    assert HOSTILE in page.text["tasks"]
    assert len(page.all("script")) == 1


def test_videos_are_the_files_and_wait_to_be_played(made: Path, page: Page) -> None:
    videos = page.all("video")
    files = [*sorted((made / "eval" / "videos").iterdir()), made / "control" / "control.mp4"]
    embedded = [base64.b64decode(str(item["src"]).removeprefix("data:video/mp4;base64,")) for item in videos]
    assert sorted(embedded) == sorted(path.read_bytes() for path in files)
    for item, content in zip(videos, embedded, strict=True):
        assert item["preload"] == "none"
        assert item["aria-label"]
        with av.open(io.BytesIO(content)) as container:
            assert container.streams.video[0].codec_context.name == "h264"
            *_, last = container.decode(video=0)
        with av.open(io.BytesIO(base64.b64decode(str(item["poster"]).split(",")[1]))) as still:
            frame = next(still.decode(video=0)).to_ndarray(format="gray")
        assert abs(float(frame.mean()) - float(last.to_ndarray(format="gray").mean())) < 4


def test_every_drawing_has_an_alternative_and_every_table_its_headers(page: Page) -> None:
    drawings = [item for item in page.all("svg") if item.get("aria-hidden") != "true"]
    assert drawings
    assert all(item.get("role") == "img" and item.get("aria-label") for item in drawings)
    assert all(item.get("scope") in ("col", "row") for item in page.all("th"))
    assert len(page.all("caption")) == len(page.all("table"))


def test_sections_show_what_was_measured(page: Page) -> None:
    labels = " ".join(str(item.get("aria-label")) for item in page.all("svg"))
    for name in ("Loss by update", "Learning rate", "Balance", "Updates per second", "plans by latency", "Layer 2"):
        assert name in labels
    assert "bounds 7" in page.text["latency"]
    assert "triangles" in page.text["experts"]
    assert "expert 3" in page.text["experts"]
    assert "numpy" in page.text["provenance"]
    assert "kinoise train policy=mode data=DATA seed=3 train.steps=300" in page.text["provenance"]
    assert "No episode began as one of the 20 demonstrations" in page.text["tasks"]
    assert "did not use" not in page.text["header"]


def test_numbers_in_drawings_are_finite_and_inside(page: Page) -> None:
    for item in page.all("path"):
        for x, y in re.findall(r"(-?[\d.]+|nan|inf) (-?[\d.]+|nan|inf)", str(item["d"])):
            assert 0 <= float(x) <= 360
            assert 0 <= float(y) <= 208


def test_a_bare_run_names_the_command_for_every_part(tmp_path: Path) -> None:
    write_policy(tmp_path / "run", "diffusion")
    page = report(tmp_path / "run", tmp_path / "report.html")
    assert "kinoise eval" in page.text["header"]
    for section, command in (("rollouts", "video=1"), ("latency", "kinoise control"), ("training", "kinoise train")):
        assert command in page.text[section]
    assert "policy=mode" in page.text["experts"]
    assert "policy=diffusion" in page.text["training"]
    assert not page.all("video")


def test_failures_and_successes_take_turns_when_not_all_videos_fit(tmp_path: Path) -> None:
    run = tmp_path / "run"
    write_evaluation(run / "eval", write_policy(run), video=2)
    page = report(run, tmp_path / "report.html", "videos=2")
    assert [item["aria-label"] for item in page.all("video")] == ["push, failed after 41 steps", "push, succeeded in 40 steps"]
    assert "2 of 4" in page.text["rollouts"]
    page = report(run, tmp_path / "report.html", "videos=3")
    assert [item["aria-label"] for item in page.all("video")][1:] == [
        "push, succeeded in 40 steps",
        "reach, succeeded in 40 steps",
    ]


def test_an_evaluation_of_other_weights_is_pointed_out(tmp_path: Path) -> None:
    run, other = tmp_path / "run", tmp_path / "other"
    write_policy(run, experts=2)
    write_evaluation(tmp_path / "eval", write_policy(other, experts=3), video=0)
    page = report(run, tmp_path / "report.html", f"eval={tmp_path / 'eval'}")
    assert "did not use this run's newest checkpoint" in page.text["header"]
    assert str(other) in page.text["header"]


def test_the_terms_of_an_evaluation_stand_beside_its_success(tmp_path: Path) -> None:
    run, out = tmp_path / "run", tmp_path / "eval"
    result = write_evaluation(out, write_policy(run), video=0)
    result["decode"] |= {"delay": 4, "latency": "0.05", "warm": 0.5, "pin": True, "ensemble": 0.01}
    write_json(out / "result.json", result)
    header = report(run, tmp_path / "report.html", f"eval={out}").text["header"]
    for terms in ("plans 4 steps late", "replans from level 0.5", "prefixes pinned", "means over plans, exp(-0.01 i)"):
        assert terms in header


def write_ledger(out: Path, result: dict, checkpoint: Path, nfe: tuple[int, ...] = (3, 2, 2)) -> None:
    """Episodes whose actions rise from -1 to 1, by three plans, of which the gate sent one replan back to noise."""
    spec = load_policy(checkpoint).spec
    protocol, latency = EvaluationProtocol.from_json(result["protocol"]), parse_latency("0")
    assert latency is not None
    conditions = Conditions(protocol, result["policy"], result["decode"], latency, spec, 1)
    ledger = Ledger(out / "episodes.jsonl", conditions)
    jobs = conditions.jobs()
    for item in result["episodes"]:
        ramp = np.linspace(-1, 1, item["steps"] * 2, dtype=np.float32).reshape(-1, 2)
        carried = Carried(ramp, (10, 20), 0, (0, 0), nfe, (True, False))
        ledger.add(
            Entry(Outcome(jobs[item["task"], item["index"]], item["success"], item["steps"], 1.0, item["error"]), carried)
        )


def test_actions_and_what_each_plan_cost_are_shown(tmp_path: Path) -> None:
    run, out = tmp_path / "run", tmp_path / "eval"
    checkpoint = write_policy(run)
    result = write_evaluation(out, checkpoint)
    result["decode"]["warm"] = 0.5
    write_json(out / "result.json", result)
    assert "belongs to another one" in report(run, tmp_path / "report.html", f"eval={out}").text["plans"]

    write_ledger(out, result, checkpoint)
    page = report(run, tmp_path / "report.html", f"eval={out}")
    labels = [str(item.get("aria-label")) for item in page.all("svg")]
    assert "Actions of push, episode 1, failed: 41 steps, 3 plans" in labels
    assert "Actions of push, episode 0, succeeded: 40 steps, 3 plans" in labels
    assert "Plans by network evaluations: 12 with 2, 6 with 3" in labels
    assert "push 9 3 2.33 2 to 3 7 3 of 6" in " ".join(page.text["plans"].split())
    assert "all 18 3 2.33 2 to 3 7 6 of 12" in " ".join(page.text["plans"].split())
    test_numbers_in_drawings_are_finite_and_inside(page)

    other = {**result, "protocol": EvaluationProtocol("metaworld/mt10", TASKS, 3, 500, 1001).to_json()}
    write_json(out / "result.json", other)
    assert "belongs to another one" in report(run, tmp_path / "report.html", f"eval={out}").text["plans"], "another protocol"
    write_json(out / "result.json", {**result, "decode": {**result["decode"], "steps": 77}})
    assert "belongs to another one" in report(run, tmp_path / "report.html", f"eval={out}").text["plans"], "other plans"
    first, *others = result["episodes"]
    write_json(out / "result.json", {**result, "episodes": [{**first, "steps": first["steps"] + 1}, *others]})
    assert "belongs to another one" in report(run, tmp_path / "report.html", f"eval={out}").text["plans"], "other episodes"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"shard": "2/8"}, "This is shard 2/8: 6 of 8 episodes"),
        (
            {"stopped": {"until": 0.1, "reached": True, "rounds": 3, "half_width": 0.09}},
            "Stopped early by until=0.1, after 3 episodes",
        ),
        ({"stopped": {"until": 0.1, "reached": False, "rounds": 3, "half_width": 0.2}}, "until=0.1 was not reached"),
        ({}, "Only 6 of 8 episodes are here"),
    ],
)
def test_a_part_is_said_to_be_one(tmp_path: Path, change: dict, said: str) -> None:
    run, out = tmp_path / "run", tmp_path / "eval"
    result = write_evaluation(out, write_policy(run), video=0) | change
    result["protocol"]["episodes"] = 4
    write_json(out / "result.json", result)
    assert said in report(run, tmp_path / "report.html", f"eval={out}").text["header"]


def test_the_protocol_is_there_with_every_value(tmp_path: Path) -> None:
    run, out = tmp_path / "run", tmp_path / "eval"
    result = write_evaluation(out, write_policy(run), video=0)
    changes = {"name": "openvla", "wait": 10, "images": "mirrored", "perturb": {"camera": 0.05}}
    horizons = {TASKS[0]: 220, TASKS[1]: 520}
    result["protocol"] |= {**changes, "horizon": horizons}
    write_json(out / "result.json", result)
    text = report(run, tmp_path / "report.html", f"eval={out}").text["tasks"]
    assert "horizon 220 to 520 · wait 10 · images mirrored · camera 0.05" in text
    for value in ("openvla", "any step", '{"camera": 0.05}', "protocol=openvla"):
        assert value in text


def test_a_run_in_progress_has_curves(tmp_path: Path) -> None:
    run = tmp_path / "run"
    write_policy(run)
    write_training(run, finished=False)
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 310, "lo')
    checked = write_evaluation(run / "evaluations" / "200", run / "checkpoints" / "300", video=0)
    page = report(run, tmp_path / "report.html")
    assert "300 updates" in page.text["training"]
    assert "not finished" in page.text["training"]
    assert any(f"to {shown(checked['success']['rate'])} %" in str(item.get("aria-label")) for item in page.all("svg"))


def test_experts_of_any_process_are_drawn_from_noise_to_clean(tmp_path: Path) -> None:
    write_policy(tmp_path / "run", process="flow", experts=2)
    page = report(tmp_path / "run", tmp_path / "report.html")
    assert "t, from noise (1) to clean (0)" in page.text["experts"]
    layers = [item for item in page.all("svg") if "Layer" in str(item.get("aria-label"))]
    assert len(layers) == 2


@pytest.mark.parametrize(
    ("broken", "said"),
    [
        ("{", "not valid JSON"),
        ("[]", "should be an object"),
        ('{"success": {"rate": "high"}}', "success.rate should be"),
        ("{}", "protocol is missing"),
    ],
)
def test_a_broken_result_is_named_and_no_page_is_left(tmp_path: Path, broken: str, said: str) -> None:
    run, out = tmp_path / "run", tmp_path / "report.html"
    write_policy(run)
    (run / "eval").mkdir()
    (run / "eval" / "result.json").write_text(broken)
    with pytest.raises(KinoiseError, match=said) as caught:
        main([str(run), f"out={out}"])
    assert str(run / "eval" / "result.json") in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not out.exists()


def test_broken_and_missing_parts_are_errors(tmp_path: Path) -> None:
    run = tmp_path / "run"
    with pytest.raises(KinoiseError, match="no checkpoint"):
        main([str(run)])
    checkpoint = write_policy(run)
    with pytest.raises(KinoiseError, match=r"holds no result\.json"):
        main([str(run), f"eval={tmp_path}"])
    with pytest.raises(UsageError, match="videos"):
        main([str(run), "videos=-1"])
    (run / "metrics.jsonl").write_text('{"step": 1, "loss": NaN, "elapsed_s": 1}\n')
    with pytest.raises(KinoiseError, match=r"line 1.*NaN"):
        main([str(run)])
    (run / "metrics.jsonl").unlink()
    write_evaluation(run / "eval", checkpoint)
    video = next((run / "eval" / "videos").iterdir())
    video.write_bytes(video.read_bytes()[:300])
    with pytest.raises(KinoiseError, match=video.name):
        main([str(run)])


@given(values=st.lists(st.floats(1e-6, 1e6), min_size=1, max_size=20), log=st.booleans())
def test_an_axis_holds_its_values_and_has_a_few_ticks_in_order(values: list[float], log: bool) -> None:
    axis = Axis.around(values, log=log)
    assert all(-1e-9 <= axis(value) <= 1 + 1e-9 for value in values)
    ticks = axis.ticks()
    assert 1 <= len(ticks) <= 12
    assert all(-1e-3 <= axis(tick) <= 1 + 1e-3 for tick in ticks)
    assert all(a < b for a, b in itertools.pairwise(ticks))


@given(values=st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=2000), bins=st.integers(1, 200))
def test_thinning_loses_no_outlier(values: list[float], bins: int) -> None:
    thinned = thin(list(enumerate(values)), bins)
    assert len(thinned) <= bins
    assert (min(item.low for item in thinned), max(item.high for item in thinned)) == (min(values), max(values))
    assert all(item.low - 1e-9 <= item.mean <= item.high + 1e-9 for item in thinned)


@given(value=st.floats(1e-12, 1e12))
def test_a_figure_keeps_its_value(value: float) -> None:
    text = number(value).replace("\N{MINUS SIGN}", "-")
    scale = {"k": 1e3, "M": 1e6, "G": 1e9}.get(text[-1], 1.0)
    assert float(text.rstrip("kMG")) * scale == pytest.approx(value, rel=0.006)
    assert len(text) <= 8
