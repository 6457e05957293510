"""`benchmarks.kills` in small: the commands that no other test kills, once each, and what counts as torn or left."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest


@pytest.mark.parametrize("name", ["convert", "cache", "control"])
def test_killed_and_begun_again_it_comes_to_the_same(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from benchmarks import kill_works, kills

    monkeypatch.setattr(kill_works.Convert, "formats", ("zarr",))
    monkeypatch.setattr(kill_works.Convert, "variants", 1)
    monkeypatch.setattr(kill_works.Control, "seconds", 1)
    monkeypatch.setattr(kills, "EARLY", 0.0)
    found = kills.killed(name, 1, 0, tmp_path)
    assert found["wrong"] == []
    assert found["other_result"] == 0
    assert found["kills"] == 1


def test_what_is_torn_is_told(tmp_path: Path) -> None:
    from benchmarks.kill_works import Collect, Eval, Train

    out = tmp_path / "out"
    (out / "checkpoints" / "10").mkdir(parents=True)
    (out / "checkpoints" / "last").symlink_to("20")
    assert len(Train(tmp_path).torn(out)) == 3
    (out / "episodes.jsonl").write_text('{}\n{"task": "a"}\n{"task": \n{"torn')
    (out / "result.json").write_text("{")
    assert len(Eval(tmp_path).torn(out)) == 2
    torn = tmp_path / "data.partial" / "task"
    torn.mkdir(parents=True)
    (torn / "000000.npz").write_bytes(b"PK")
    assert len(Collect(tmp_path).torn(tmp_path / "data")) == 1


def test_an_episode_that_counts_twice_is_another_result(tmp_path: Path) -> None:
    from benchmarks.kill_works import Eval

    value: dict[str, Any] = {"protocol": {}, "success": {}, "episodes": []}
    (tmp_path / "result.json").write_text(json.dumps(value))
    line = json.dumps({"task": "a", "index": 0})
    results = []
    for lines in ([line], [line, line]):
        (tmp_path / "episodes.jsonl").write_text("\n".join(["{}", *lines]) + "\n")
        results.append(Eval(tmp_path).result(tmp_path))
    assert results[0] != results[1]
