"""What `kinoise report` makes of an evaluation: its episodes, its terms, what its plans cost, and what is missing of it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from kinoise.eval.latency import parse_latency
from kinoise.eval.ledger import Conditions, Entry, Ledger
from kinoise.eval.protocol import EvaluationProtocol
from kinoise.eval.slot import Outcome
from kinoise.eval.timeline import Carried
from kinoise.files import write_json
from kinoise.policies.checkpoint import load_policy
from recorded_runs import TASKS, assert_drawn_inside, report, write_evaluation, write_policy


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


def test_the_runs_other_evaluations_are_named(tmp_path: Path) -> None:
    run = tmp_path / "run"
    checkpoint = write_policy(run)
    for name in ("eval", "later"):
        write_evaluation(run / name, checkpoint, video=0)
        header = report(run, tmp_path / "report.html").text["header"]
        assert ("Not shown here: later. " in header) == (name == "later")
    header = report(run, tmp_path / "report.html", f"eval={run / 'later'}").text["header"]
    assert f"Not shown here: eval. kinoise report {run} eval={run / 'eval'} shows that evaluation." in header


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
    assert_drawn_inside(page)

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
