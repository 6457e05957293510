"""Every decoder on sound inputs and on some hundred changed ones, by the targets of `benchmarks.fuzz`, without its fuzzer."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path

import pytest
from kinoise.spec import KinoiseError

COUNTS = {"wire": 2000, "native": 150, "zarr": 100, "hdf5": 60, "parquet": 60, "checkpoint": 40, "resume": 60, "torch_zip": 300}


def changed(data: bytes, rng: random.Random) -> bytes:
    """Some bytes are others, or gone, or twice there."""
    found = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 8))):
        place = rng.randrange(1, len(found)) if len(found) > 1 else 0
        what = rng.random()
        if what < 0.6:
            found[place] = rng.choice((0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)))
        elif what < 0.8:
            del found[place : place + rng.choice((1, 4, 64))]
        else:
            found[place:place] = found[place : place + rng.choice((1, 4, 64))]
        if not found:
            return b"\0"
    return bytes(found)


@pytest.mark.parametrize("name", COUNTS)
def test_damage_is_refused_in_kinoise_s_own_words(name: str, tmp_path: Path) -> None:
    from benchmarks.fuzz_mutate import mutated
    from benchmarks.fuzz_targets import TARGETS

    target, rng = TARGETS[name], random.Random(0)
    seeds = target.seeds(tmp_path)
    run = target.runner(tmp_path)
    outcomes: Counter[str] = Counter()
    for count in range(COUNTS[name]):
        seed = rng.choice(seeds)
        found = mutated(seed[1:], rng) if target.json and rng.random() < 0.5 else None
        data = seeds[count] if count < len(seeds) else changed(seed, rng) if found is None else seed[:1] + found
        try:
            run(data)
        except KinoiseError:
            outcomes["refused"] += 1
        else:
            outcomes["read"] += 1
    assert min(outcomes["refused"], outcomes["read"]) > 0, outcomes


def test_the_targets_of_the_fuzzer_are_instrumented() -> None:
    from benchmarks.fuzz_child import MODULES
    from benchmarks.fuzz_targets import TARGETS

    assert MODULES.keys() == TARGETS.keys() == COUNTS.keys()


def test_the_watch_tells_what_was_executed_and_what_was_written(tmp_path: Path) -> None:
    """In a process of its own: an audit hook stays."""
    import subprocess
    import sys

    code = """
import os, pickle, sys
from pathlib import Path
from benchmarks.fuzz_child import Watch

class Payload:
    def __reduce__(self):
        return os.system, ("true",)

runs = {
    b"a": lambda: pickle.loads(pickle.dumps(Payload())),
    b"b": lambda: (Path(sys.argv[1]) / "elsewhere").write_text("x"),
    b"c": lambda: 1 / 0,
    b"d": lambda: (Path(sys.argv[1]) / "place" / "own").write_text("x"),
}
place = Path(sys.argv[1]) / "place"
place.mkdir()
for number, inputs in enumerate((b"a", b"b", b"cc", b"d")):
    note = place / f"findings-{number}.jsonl"
    watch = Watch(lambda data: runs[data](), note, place)
    for data in inputs:
        watch(bytes([data]))
    print(note.read_text() if note.exists() else "")
"""
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], cwd=root, capture_output=True, text=True, check=True)
    kinds = [line.split('"kind": "')[1].split(" ")[0] for line in done.stdout.splitlines() if line]
    assert kinds == ["Executed", "Executed", "ZeroDivisionError"]
    assert "pickle.find_class" in done.stdout
    assert "elsewhere" in done.stdout
    assert not (tmp_path / "elsewhere").exists()


def test_a_campaign_goes_on_where_it_ended_and_only_when_told_to(tmp_path: Path) -> None:
    from kinoise.config import UsageError
    from kinoise.files import read_json, write_json

    from benchmarks.fuzz import Settings, begun

    first = begun(Settings(target="wire", seed=3), tmp_path, {"numpy": "1"})
    write_json(tmp_path / "progress.json", {**first, "inputs": 500, "processes": 2})
    with pytest.raises(UsageError, match="campaign of 500 inputs"):
        begun(Settings(target="wire", seed=3), tmp_path, {"numpy": "1"})
    with pytest.raises(UsageError, match="seed=3"):
        begun(Settings(target="wire", seed=4, resume=True), tmp_path, {"numpy": "1"})
    same = begun(Settings(target="wire", seed=3, resume=True), tmp_path, {"numpy": "1"})
    assert (same["inputs"], same["processes"], len(same["built"])) == (500, 2, 1)
    other = begun(Settings(target="wire", seed=3, resume=True), tmp_path, {"numpy": "2"})
    assert [item["from_input"] for item in other["built"]] == [0, 500]
    assert read_json(tmp_path / "progress.json") == other


def test_inputs_of_the_corpus_that_are_replayed_are_not_counted_again() -> None:
    from benchmarks.fuzz import FIGURES, add

    said = "#30\tINITED cov: 7 ft: 9\n#90\tNEW cov: 8 ft: 11\nstat::number_of_executed_units: 100\nstat::peak_rss_mb: 50\n"
    state = {**FIGURES, "ended_early": []}
    assert not add(state, said, 0, 2.0, stopped=False, short=False)
    assert add(state, said + "SUMMARY: libFuzzer: timeout\n", 70, 1.0, stopped=False, short=False)
    assert (state["inputs"], state["processes"], state["edges"], state["peak_rss_mb"]) == (140, 2, 8, 50)
    assert [item["reason"] for item in state["ended_early"]] == ["timeout"]
    nothing = "#30\tINITED cov: 7 ft: 9\nstat::number_of_executed_units: 30\n"
    assert not add(state, nothing, 0, 2.0, stopped=False, short=True)
    with pytest.raises(SystemExit, match="the corpus alone"):  # or it would go on for ever
        add(state, nothing, 0, 2.0, stopped=False, short=False)
    assert add(state, "", -9, 1.0, stopped=False, short=False)  # the kernel's, for memory
