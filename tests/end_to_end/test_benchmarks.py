"""`benchmarks.decode` and its report on policies that plan in a millisecond; no figure of time is looked at."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from kinoise.config import UsageError
from kinoise.data import Episode, write_store
from kinoise.policies import Policy
from kinoise.policies.checkpoint import save_policy
from kinoise.spec import Feature, Spec
from small_policies import TEXTS, small, train

ROOT = Path(__file__).resolve().parents[2]
QUICK = ["success=false", "plans=1", "windows=2"]
FULL = 20


@pytest.fixture
def benchmarks(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> tuple[ModuleType, ModuleType]:
    """`decode` and `plots`, whose results go to a folder of the test's; full plans take fewer steps."""
    monkeypatch.setattr(sys, "path", [*sys.path, str(ROOT)])
    from benchmarks import decode, played, plots, record, speed

    for module in (played, record):
        monkeypatch.setattr(module, "RESULTS", tmp_path / "results")
    chains = {prefix: {**chain, "steps": FULL} for prefix, chain in decode.CONTINUOUS.chains.items()}
    monkeypatch.setattr(decode, "CONTINUOUS", decode.CONTINUOUS._replace(chains=chains, budget=4, budgets=(2,)))
    monkeypatch.setattr(decode, "PACE", 1)
    monkeypatch.setattr(speed, "WARMUP", 0)
    return decode, plots


@pytest.fixture
def data(tmp_path: Path) -> str:
    spec = Spec({"state": Feature((5,))}, Feature((3,), low=(-1.0,) * 3, high=(1.0,) * 3), rate=20.0)
    rng = np.random.default_rng(0)
    values = {key: rng.normal(size=(20, size)).astype(np.float32) for key, size in (("state", 5), ("action", 3))}
    write_store(tmp_path / "data", spec, [Episode(values, TEXTS[0])])
    return f"data={tmp_path / 'data'}"


def saved(name: str, folder: Path, **over: object) -> str:
    policy = small(name, **over)
    train(policy)
    save_policy(folder / name, policy.eval(), {})
    return str(folder / name)


@pytest.fixture(autouse=True)
def threads() -> object:
    """Those of the other tests are left as they were."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_rows_of_a_continuous_policy(benchmarks, data: str, tmp_path: Path) -> None:
    decode, plots = benchmarks
    run = saved("ddim", tmp_path)
    rows = ["cached", "cached_order1", "cached_2", "uniform", "smooth", "short_3", "ddim_cached", "same_compute", "same_time"]
    assert decode.main([run, data, *QUICK, f"only=[{','.join(rows)},warm]", "warm=0.5", "execute=1"]) == 0
    assert not list((tmp_path / "results").glob(".*"))
    found = json.loads((tmp_path / "results" / "decode_diffusion_vp.json").read_text())
    table = found["rows"]
    assert set(table) == {"full", "short", "warm", *rows}
    evaluations = {name: row["evaluations"] for name, row in table.items()}
    assert [evaluations[name] for name in ("full", "cached", "ddim_cached", "uniform", "short", "short_3", "warm")] == [
        *(FULL, FULL, FULL, FULL),
        *(10, 3, 1),
    ]
    assert table["full"]["computed"] == table["warm"]["computed"] == 1
    assert table["uniform"]["computed"] == 4 / FULL
    assert table["smooth"]["computed"] <= 4 / FULL
    assert table["cached_2"]["computed"] < table["cached"]["computed"] < 8 / FULL  # the union adds to the budget's share
    assert evaluations["same_compute"] == round(FULL * table["cached"]["computed"])
    assert 1 <= evaluations["same_time"] <= FULL
    assert table["cached_order1"]["changes"]["cache_order"] == 1
    refresh = found["schedules"]["cached"]
    assert all(when[0] == 0 and when == sorted(set(when)) and when[-1] < FULL for when in refresh.values())
    assert found["schedules"]["cached_order1"] == refresh
    assert [(item["row"], item["than"], item["difference"]) for item in found["targets"]] == [("cached", "full", None)]
    readme = tmp_path / "README.md"
    readme.write_text(f"before\n{plots.BEGIN}\nold\n{plots.END}\nafter\n")
    assert plots.main([f"results={tmp_path / 'results'}", f"readme={readme}"]) == 0
    told = readme.read_text()
    assert told.startswith("before")
    assert told.endswith("after\n")
    assert "old" not in told
    assert all(f"| diffusion_vp | `{name}` |" in told for name in table)


def test_rows_of_tokens(benchmarks, data: str, tmp_path: Path) -> None:
    decode, _ = benchmarks
    run = saved("discrete_vla", tmp_path, chunk=12)
    assert decode.main([run, data, *QUICK, "only=[cached,uniform,same_compute]", "budgets=[]", "steps=[]"]) == 0
    found = json.loads((tmp_path / "results" / "decode_discrete_vla_masked.json").read_text())
    assert found["targets"] == []
    table = found["rows"]
    assert [table[name]["evaluations"] for name in ("full", "short", "cached", "uniform")] == [12, 4, 12, 12]
    assert table["uniform"]["computed"] == pytest.approx(1 / 3, abs=1e-4)
    assert table["same_compute"]["evaluations"] == pytest.approx(12 * table["cached"]["computed"], abs=0.5 + 1e-3)


def test_success_is_paired_and_compiled_plans_have_their_twins_episodes(
    benchmarks, data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Episodes and compilation are stood in for: 100 episodes, of which `cached` loses 2 and every other row none."""
    decode, plots = benchmarks
    asked = []

    def play(row, partial, **how):
        asked.append(row.name)
        won = [True] * (98 if row.name == "cached" else 100)
        figures = {"errors": 0, "nfe": 1, "planned": 1, "jump": 0.0, "acceleration": 0.0, "wall_s": 0.0, "commit": None}
        return [{"protocol": how, "success": won + [False] * (100 - len(won)), **figures}]

    monkeypatch.setattr(decode, "play", play)
    monkeypatch.setattr(Policy, "compiled", lambda policy: policy)
    run = saved("ddim", tmp_path)
    rows = "only=[cached,compiled,everything]"
    assert decode.main([run, data, *QUICK, "success=true", rows, "warm=0.5", "execute=1"]) == 0
    found = json.loads((tmp_path / "results" / "decode_diffusion_vp.json").read_text())
    table = found["rows"]
    assert asked == ["full", "short", "cached", "warm"]
    assert table["everything"]["success"] == table["warm"]["success"]
    assert table["everything"]["rounding"] == table["compiled"]["rounding"] == 0
    assert (table["cached"]["only_this"], table["cached"]["only_reference"]) == (0, 2)
    assert [(item["row"], item["than"]) for item in found["targets"]] == [
        ("cached", "full"),
        ("everything", "full"),
        ("everything", "short"),
    ]
    assert found["targets"][0]["difference"]["value"] == pytest.approx(-0.02)
    assert found["targets"][0]["met"] is False  # 2 points are lost, however fast it is
    assert all(item["met"] == (item["faster"] >= item["faster_at_least"]) for item in found["targets"][1:])
    readme = tmp_path / "README.md"
    readme.write_text(f"{plots.BEGIN}{plots.END}")
    assert plots.main([f"results={tmp_path / 'results'}", f"readme={readme}"]) == 0
    assert "-2.0 (" in readme.read_text()
    assert (tmp_path / "results" / "decode.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("wrong", "told"),
    [("only=[fast]", "the rows are full, short"), ("budget=20", "less than 20"), ("only=[warm]", "kinoise calibrate")],
)
def test_what_can_not_be_measured_is_refused(benchmarks, data: str, tmp_path: Path, wrong: str, told: str) -> None:
    decode, _ = benchmarks
    with pytest.raises(UsageError, match=told):
        decode.main([saved("ddim", tmp_path), data, *QUICK, wrong])


def test_the_same_policy_and_process_twice_would_share_a_result(benchmarks, data: str, tmp_path: Path) -> None:
    decode, _ = benchmarks
    run = saved("ddim", tmp_path)
    with pytest.raises(UsageError, match="diffusion_vp, diffusion_vp"):
        decode.main([run, run, data, *QUICK, "only=[]"])


def test_as_many_steps_as_take_so_long(benchmarks) -> None:
    from benchmarks.speed import as_fast

    assert as_fast(4.0, {10: 1.5, 30: 3.5}) == 35
    assert as_fast(0.1, {10: 1.5, 30: 3.5}) == 1


def test_sides_take_turns_in_beginning(benchmarks, monkeypatch: pytest.MonkeyPatch) -> None:
    from benchmarks import speed

    monkeypatch.setattr(speed, "WARMUP", 1)
    order: list[tuple[int, str]] = []

    def side(name: str):
        return lambda number: order.append((number, name)) or float(number)

    times = speed.alternate({name: side(name) for name in "abc"}, 4)
    assert times == {name: [0.0, 1.0, 2.0, 3.0] for name in "abc"}
    begun = ["".join(name for at, name in order if at == number) for number in range(-1, 4)]
    assert begun == ["cab", "abc", "bca", "cab", "abc"]
