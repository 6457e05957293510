"""`kinoise compare`: two results paired episode by episode, and everything that can't be paired refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from kinoise.cli import main
from kinoise.eval.metrics import compare_paired, holm
from kinoise.eval.protocol import EvaluationProtocol
from kinoise.eval.result import Planning, make_result
from kinoise.eval.slot import Job, Outcome, Terms
from kinoise.files import write_json
from scipy.stats import binomtest

TASKS = ("line/push", "line/reach")
EPISODES = 8
# "1" solved, "0" not, "e" an error, by index.
A = {"line/push": "11111110", "line/reach": "1010101e"}
B = {"line/push": "00000010", "line/reach": "10101010"}

Result = dict[str, Any]


def write(out: Path, won: Mapping[str, str], *, name: str = "mode", nfe: int = 4, seed: int = 1000, **protocol: Any) -> Path:
    """OUT/result.json as `kinoise eval` would write it."""
    terms = {"env": "line/all", "tasks": TASKS, "episodes": EPISODES, "horizon": 500, "seed": seed, **protocol}
    played = EvaluationProtocol(**terms)
    outcomes = []
    for task, index, episode_seed in played.episode_seeds():
        letter = won[task][index]
        wrong = "the simulator said no" if letter == "e" else None
        job = Job(task, index, episode_seed, Terms(1, ("state",), played.horizon))
        outcomes.append(Outcome(job, letter == "1", 40, 1.5, wrong, {"goal": [float(index)]}))
    policy = {"name": name, "checkpoint": f"{out}/last", "sha256": name[0] * 64, "parameters": 12345}
    decode = {"sampler": "ddim", "steps": nfe, "guidance": 1.0, "execute": 2, "chunk": 4}
    planning = Planning([0.02, 0.03], [6, 4], [nfe, nfe], [0.01 * nfe])
    result = make_result(played, policy, decode, outcomes, planning, rollout_s=2.0, wall_s=7.0, rollout={"workers": 2})
    write_json(out / "result.json", result)
    return out


def change(result: Path, edit: Callable[[Result], object]) -> None:
    value = json.loads((result / "result.json").read_text())
    edit(value)
    write_json(result / "result.json", value)


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    return write(tmp_path / "a", A, nfe=2), write(tmp_path / "b", B, name="ddim", nfe=10)


def compared(*arguments: object, out: Path) -> Result:
    assert main(["compare", *map(str, arguments), f"out={out}"]) == 0
    return json.loads(out.read_text())


def refused(code: int, capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    capsys.readouterr()
    assert main(["compare", *map(str, arguments)]) == code
    said = capsys.readouterr().err
    assert said.startswith("kinoise: ")
    assert said.count("\n") == 1
    return said


def test_figures_are_those_of_the_pairs(pair: tuple[Path, Path], tmp_path: Path):
    found = compared(*pair, out=tmp_path / "new" / "compare.json")
    for name, row in {**found["tasks"], "all": found["success"]}.items():
        tasks = TASKS if name == "all" else (name,)
        one, other = ([letter == "1" for task in tasks for letter in won[task]] for won in (A, B))
        expected = compare_paired(one, other)
        assert row["n"] == len(one) == len(other)
        assert (row["only_a"], row["only_b"]) == expected.test[:2]
        assert row["p"] == pytest.approx(binomtest(row["only_a"], row["only_a"] + row["only_b"] or 1).pvalue)
        assert row["difference"] == expected.difference._asdict()
        assert row["a"] == {**expected.first._asdict(), "errors": sum(A[task].count("e") for task in tasks)}
        assert row["b"] == {**expected.second._asdict(), "errors": 0}
    assert [row["p_holm"] for row in found["tasks"].values()] == holm([row["p"] for row in found["tasks"].values()])
    assert "p_holm" not in found["success"]
    assert found["cost"]["nfe_per_plan"] == {"a": 2, "b": 10, "ratio": 0.2}
    assert found["cost"]["plan_ms_batch1.p50"] == pytest.approx({"a": 20, "b": 100, "ratio": 0.2})


def test_the_file_says_who_was_compared_and_how(pair: tuple[Path, Path], tmp_path: Path):
    found = compared(*pair, out=tmp_path / "compare.json")
    records = [json.loads((path / "result.json").read_text()) for path in pair]
    for side, record, path in zip((found["a"], found["b"]), records, pair, strict=True):
        assert side["path"] == str(path / "result.json")
        kept = ("policy", "decode", "commit", "versions", "machine", "decode_cost")
        assert {key: side[key] for key in kept} == {key: record[key] for key in kept}
    assert found["protocol"] == records[0]["protocol"]
    assert {"kinoise", "commit", "machine"} <= found.keys()
    assert found["differences"]["decode.steps"] == {"a": 2, "b": 10}
    assert not any(key.startswith(("machine", "rollout")) for key in found["differences"])
    assert "McNemar 1947" in found["methods"]["p"]["source"]
    assert "Newcombe 1998" in found["methods"]["difference"]["source"]
    assert "Holm 1979" in found["methods"]["p_holm"]["source"]
    keys = [(item["task"], item["index"], item["seed"]) for item in found["episodes"]]
    assert keys == [(item["task"], item["index"], item["seed"]) for item in records[0]["episodes"]]
    assert [item["b"]["success"] for item in found["episodes"]] == [item["success"] for item in records[1]["episodes"]]


def test_the_other_way_round_changes_signs_only(pair: tuple[Path, Path], tmp_path: Path):
    forth = compared(*pair, out=tmp_path / "forth.json")
    back = compared(*reversed(pair), out=tmp_path / "back.json")
    for one, other in zip(
        (forth["success"], *forth["tasks"].values()), (back["success"], *back["tasks"].values()), strict=True
    ):
        assert one["p"] == other["p"]
        assert (one["only_a"], one["only_b"], one["a"]) == (other["only_b"], other["only_a"], other["b"])
        gap, mirrored = one["difference"], other["difference"]
        assert (gap["value"], gap["low"], gap["high"]) == pytest.approx(
            (-mirrored["value"], -mirrored["high"], -mirrored["low"])
        )


def test_the_order_of_episodes_in_a_file_does_not_matter(pair: tuple[Path, Path], tmp_path: Path):
    before = compared(*pair, out=tmp_path / "before.json")
    change(pair[1], lambda result: result["episodes"].reverse())
    after = compared(*pair, out=tmp_path / "after.json")
    assert (after["success"], after["tasks"], after["episodes"]) == (before["success"], before["tasks"], before["episodes"])


def test_the_table_says_what_matters(pair: tuple[Path, Path], capsys: pytest.CaptureFixture[str]):
    assert main(["compare", *map(str, pair)]) == 0
    said = capsys.readouterr().out
    lines = said.splitlines()
    row = {line.split()[0]: line.split() for line in lines if line.strip()}
    assert row["push"] == ["push", "0.875", "0.125", "+0.750", *row["push"][4:7], "6:0", "0.031", "0.062"]
    assert row["reach"][1:4] == ["0.500", "0.500", "0.000"]
    assert row["all"][1:4] == ["0.688", "0.312", "+0.375"]
    assert "1 of A's 16 episodes ended in an error; they count as failures" in said
    assert "error in A, line/reach 7: the simulator said no" in said
    assert "of B's" not in said
    assert "decode.steps: 2 in A, 10 in B" in said
    assert "mmmmmmmmmmmm" in lines[0]
    assert "dddddddddddd" in lines[1]
    assert "of 16 episodes 6 solved by A alone, 0 by B alone; p 0.031: they differ; no task differs by Holm's p" in lines[-1]


def test_a_file_a_folder_and_a_run_are_the_same(pair: tuple[Path, Path], tmp_path: Path):
    run = tmp_path / "run"
    shutil.copytree(pair[0], run / "eval")
    expected = compared(*pair, out=tmp_path / "1.json")["success"]
    assert compared(pair[0] / "result.json", pair[1], out=tmp_path / "2.json")["success"] == expected
    assert compared(run, f"b={pair[1]}", out=tmp_path / "3.json")["success"] == expected


def test_a_result_with_itself_is_allowed_and_said(pair: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    shutil.copytree(pair[0], tmp_path / "copy")
    for other in (pair[0], tmp_path / "copy"):
        found = compared(pair[0], other, out=tmp_path / "compare.json")
        assert "compared with itself" in capsys.readouterr().out
        assert found["same"]
        assert not found["differences"]
        for row in (found["success"], *found["tasks"].values()):
            assert (row["difference"]["value"], row["p"], row["only_a"], row["only_b"]) == (0, 1, 0, 0)
    assert not compared(*pair, out=tmp_path / "compare.json")["same"]
    assert "compared with itself" not in capsys.readouterr().out


def test_other_protocols_are_refused_with_every_difference(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    a = write(tmp_path / "a", A)
    b = write(tmp_path / "b", B, env="line/push", tasks=TASKS[:1], episodes=4, seed=7)
    said = refused(1, capsys, a, b)
    for text in ("env line/all in A, line/push in B", "tasks only in A: line/reach", "episodes 8 in A, 4 in B"):
        assert text in said
    assert "seed 1000 in A, 7 in B" in said
    assert "horizon 500 in A" not in said
    assert f"kinoise eval {b}/last env=line/all episodes=8 seed=1000 horizon=500 out=DIR" in said
    assert "version" not in said


@pytest.mark.parametrize(
    ("protocol", "said"),
    [({"episodes": 4}, "episodes 8 in A, 4 in B"), ({"tasks": TASKS[:1]}, "tasks only in A: line/reach")],
)
def test_a_part_of_the_episodes_is_not_enough(
    protocol: dict[str, Any], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    a, b = write(tmp_path / "a", A), write(tmp_path / "b", B, **protocol)
    assert said in refused(1, capsys, a, b)


def test_equal_settings_with_other_hashes_are_refused(pair: tuple[Path, Path], capsys: pytest.CaptureFixture[str]):
    change(pair[1], lambda result: result["protocol"].update(hash="0" * 16))
    assert "same version of kinoise" in refused(1, capsys, *pair)
    change(pair[1], lambda result: result["protocol"].update(name="other"))
    assert "name seeded in A, other in B" in refused(1, capsys, *pair)


def test_episodes_that_are_missing_are_named(pair: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    gone = [("line/push", 0), ("line/push", 3), ("line/push", 4), ("line/reach", 7)]

    def lose(result: Result) -> None:
        result["episodes"] = [item for item in result["episodes"] if (item["task"], item["index"]) not in gone]

    change(pair[1], lose)
    for arguments, name in ((pair, "B"), (pair[::-1], "A")):
        said = refused(1, capsys, *arguments, f"out={tmp_path / 'compare.json'}")
        assert f"{name} ({pair[1] / 'result.json'}) lacks 4 of its protocol's 16 episodes" in said
        assert "line/push 0, 3-4; line/reach 7" in said
    assert not (tmp_path / "compare.json").exists()


@pytest.mark.parametrize(
    ("how", "said"),
    [({"shard": "1/2"}, "shard 1/2: put all of them together with kinoise merge"), ({"stopped": {"until": 0.1}}, "no until=")],
)
def test_parts_of_evaluations_are_refused_even_where_they_agree(
    how: dict[str, Any], said: str, pair: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
):
    def part(result: Result) -> None:
        result.update(how)
        result["episodes"] = [item for item in result["episodes"] if item["index"] < 4]

    for path in pair:
        change(path, part)
    assert said in refused(1, capsys, *pair)


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (lambda result: result["episodes"].append(result["episodes"][2]), "1 episodes more than once: line/push 2"),
        (lambda result: result["episodes"][8].update(index=8), "lacks 1 of its protocol's 16 episodes: line/reach 0; it has 1"),
        (lambda result: result["episodes"][9].update(seed=3), "1 episodes from different seeds: line/reach 1"),
        (lambda result: result["protocol"].update(tasks=[]), "without episodes"),
        (lambda result: result.pop("episodes"), "episodes is missing"),
        (lambda result: result["protocol"].pop("hash"), "protocol.hash is missing"),
    ],
)
def test_what_was_edited_is_refused(
    edit: Callable[[Result], object], said: str, pair: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
):
    change(pair[1], edit)
    assert said in refused(1, capsys, *pair)


def test_other_initial_states_of_the_same_seeds_are_said(pair: tuple[Path, Path], capsys: pytest.CaptureFixture[str]):
    change(pair[1], lambda result: result["episodes"][3]["initial"].update(goal=[9.0]))
    assert main(["compare", *map(str, pair)]) == 0
    assert "1 pairs began in different states" in capsys.readouterr().out


def test_times_of_another_machine_are_said(pair: tuple[Path, Path], capsys: pytest.CaptureFixture[str]):
    change(pair[1], lambda result: (result["machine"].update(cpu="another"), result["rollout"].update(workers=5)))
    assert main(["compare", *map(str, pair)]) == 0
    assert "times depend on: rollout.workers, machine.cpu" in capsys.readouterr().out


def test_wrong_usage(pair: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    before = (pair[1] / "result.json").read_bytes()
    assert "needs a=..., b=..." in refused(2, capsys)
    assert "needs b=..." in refused(2, capsys, pair[0])
    assert "expected key=value after A B" in refused(2, capsys, *pair, tmp_path)
    assert "a file that the comparison goes to" in refused(2, capsys, *pair, f"out={tmp_path}")
    assert "one of the two results" in refused(2, capsys, *pair, f"out={pair[1] / 'result.json'}")
    assert (pair[1] / "result.json").read_bytes() == before


def test_what_is_not_there_fails(pair: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert "does not exist" in refused(1, capsys, pair[0], tmp_path / "nowhere")
    assert "neither result.json nor eval/result.json" in refused(1, capsys, pair[0], tmp_path)
    (tmp_path / "cut.json").write_text("{")
    assert "not valid JSON" in refused(1, capsys, tmp_path / "cut.json", pair[1])
