"""`kinoise inspect` as a user meets it: what it says of a data set, in the terminal and on its page."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest
from inspected_data import SPEC, inspected, moving
from kinoise.cli import main
from kinoise.data import Episode, stats, write_store
from kinoise.spec import OBJECT, Feature, Spec


def test_a_sound_data_set(tmp_path, capsys):
    rng = np.random.default_rng(0)
    items = [moving(rng, steps, failures=index) for index, steps in enumerate((20, 30, 10))]
    write_store(tmp_path / "data", SPEC, [*items, moving(rng, 12, "open it")])
    found = inspected(tmp_path / "data", capsys)
    assert (found["format"], found["episodes"], found["steps"]) == ("kinoise", 4, 72)
    assert (found["rate"], found["duration_s"]) == (10, 7.2)
    assert found["problems"] == []
    assert found["keys"]["state"]["names"] == ["x", "y", "unused"]
    assert found["keys"]["image.top"]["shape"] == [2, 2, 3]
    push, door = found["instructions"]
    assert push["text"] == "push the [red] puck"
    assert (push["episodes"], push["length"], push["failures"]) == (3, {"min": 10, "median": 20, "max": 30}, 3)
    assert push["idle"] == {"fraction": 0, "longest": 0}
    assert door["failures"] is None

    assert main(["inspect", str(tmp_path / "data")]) == 0
    shown = capsys.readouterr().out
    for text in ("4 episodes", "72 steps at 10 Hz", "push the [red] puck", "2x2x3", "no problems found"):
        assert text in shown
    assert main(["inspect", str(tmp_path / "data"), "dimensions=true"]) == 0
    assert "unused" in capsys.readouterr().out


def test_lists_of_objects_are_not_held_against_themselves(tmp_path, capsys):
    rng, turned = np.random.default_rng(0), [1, 0, 0, 0, 1, 0]

    def listed(steps: int, there: int) -> Episode:
        rows = np.zeros((steps, 3, len(OBJECT)), np.float32)
        rows[:, :, 0] = -1
        rows[:, :there, 1:7] = 0.01 * rng.normal(size=(steps, there, 6)).cumsum(0)
        rows[:, :there, 0], rows[:, :there, 7:] = np.arange(there), turned
        rows[steps // 2, 0, 7:] = np.array([0.6, 0.8, 0, -0.8, 0.6, 0])  # lies otherwise, for a step
        rows = rows.reshape(steps, -1)
        return Episode({"objects": rows, "plain": rows, "action": rng.normal(size=(steps, 2)).astype(np.float32)}, "sort")

    names = tuple(f"{row}.{name}" for row in range(3) for name in OBJECT)
    units = tuple(OBJECT.values()) * 3
    objects = Feature((len(names),), names=names, unit=units, categories=("cup", "plate"))
    spec = Spec({"objects": objects, "plain": replace(objects, categories=())}, Feature((2,)), rate=10.0)
    write_store(tmp_path / "data", spec, [listed(40, 1 + index % 2) for index in range(6)])
    found = inspected(tmp_path / "data", capsys)
    assert any("'plain'" in problem for problem in found["problems"]), "the same numbers of no list have problems"
    assert not any("'objects'" in problem for problem in found["problems"])
    assert (found["keys"]["objects"]["rotations"], found["keys"]["objects"]["jumps"]) == ([], [])
    assert found["keys"]["objects"]["histogram"] == found["keys"]["plain"]["histogram"]
    assert any("'objects' is a list of objects" in note for note in found["notes"])
    assert main(["inspect", str(tmp_path / "data"), f"html={tmp_path / 'page.html'}"]) == 0


def test_idle_runs_end_with_their_episode(tmp_path, capsys):
    still = np.ones((4, 1), np.float32)
    spec = Spec({"state": Feature((1,))}, Feature((1,)), rate=10.0)
    write_store(tmp_path / "data", spec, [Episode({"state": still, "action": still}, "rest")] * 2)
    assert inspected(tmp_path / "data", capsys)["instructions"][0]["idle"] == {"fraction": 6 / 8, "longest": 3}


def test_the_tolerance_of_idleness_is_a_setting(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(stats, "BLOCK_BYTES", 28)
    ramp = np.linspace(0, 1, 101, dtype=np.float32)[:, None]
    spec = Spec({"state": Feature((1,))}, Feature((1,)), rate=10.0)
    write_store(tmp_path / "data", spec, [Episode({"state": ramp, "action": ramp}, "climb")])
    assert inspected(tmp_path / "data", capsys)["instructions"][0]["idle"]["fraction"] == 0
    found = inspected(tmp_path / "data", capsys, "idle=0.02")
    assert found["instructions"][0]["idle"] == {"fraction": pytest.approx(100 / 101), "longest": 100}


def test_numbers_and_names_are_never_cut(tmp_path, capsys):
    name = "image.corner.topmost.left"
    spec = Spec(
        {"state": Feature((2,), names=("object.position.x", "y")), name: Feature((2, 2, 3), "image")}, Feature((1,)), 10.0
    )
    rng = np.random.default_rng(0)
    pictures = rng.integers(0, 256, (30, 2, 2, 3), np.uint8)
    small = (-1e-4 * rng.uniform(9.1, 9.2, (30, 2))).astype(np.float32)
    write_store(tmp_path / "data", spec, [Episode({"state": small, name: pictures, "action": small[:, :1]}, "go")])
    found = inspected(tmp_path / "data", capsys)["keys"]["state"]
    for more in ((), ("dimensions=true",)):
        assert main(["inspect", str(tmp_path / "data"), *more]) == 0
        shown = capsys.readouterr().out
        assert "\N{HORIZONTAL ELLIPSIS}" not in shown
        for number in (found["min"], found["max"]) if more else ():
            assert f"{number[1]:.3g}" in shown


def test_a_sheet_needs_cameras(tmp_path, capsys):
    state = np.zeros((4, 1), np.float32)
    spec = Spec({"state": Feature((1,))}, Feature((1,)), rate=10.0, language=False)
    write_store(tmp_path / "data", spec, [Episode({"state": state, "action": state})])
    assert main(["inspect", str(tmp_path / "data"), f"sheet={tmp_path / 'sheet.png'}"]) == 1
    assert "no cameras" in capsys.readouterr().err
    assert not (tmp_path / "sheet.png").exists()


def test_the_page_stands_alone_and_escapes_what_it_shows(tmp_path, capsys):
    rng = np.random.default_rng(0)
    items = [moving(rng, 20, "<script>alert(1)</script> \N{SNOWMAN}"), moving(rng, 30)]
    write_store(tmp_path / "data", SPEC, items)
    page = tmp_path / "page.html"
    assert main(["inspect", str(tmp_path / "data"), f"html={page}"]) == 0
    assert str(page) in capsys.readouterr().err
    text = page.read_text()
    assert "<script" not in text
    assert "&lt;script&gt;alert(1)" in text
    assert "\N{SNOWMAN}" in text
    # Nothing is fetched: every source lies in the page.
    sources = re.findall(r"""(?:src|href)=["']([^"']*)""", text)
    assert sources
    assert all(source.startswith(("data:", "#")) for source in sources)
    assert "url(" not in text
    assert "default-src 'none'" in text
    # A histogram for each of five dimensions, for the camera and for the lengths, and two traces.
    assert text.count("<svg") == 5 + 1 + 1 + 2


def test_memory_does_not_grow_with_the_data(tmp_path, capsys, monkeypatch):
    from kinoise.data.native import NativeStore

    monkeypatch.setattr(stats, "BLOCK_BYTES", 24)
    rng = np.random.default_rng(0)
    write_store(tmp_path / "data", SPEC, [moving(rng, 20) for _ in range(10)])
    largest: dict[str, int] = {}
    read = NativeStore.read

    def watched(self, key, start, stop):
        largest[key] = max(largest.get(key, 0), stop - start)
        return read(self, key, start, stop)

    monkeypatch.setattr(NativeStore, "read", watched)
    assert main(["inspect", str(tmp_path / "data")]) == 0
    # Pictures by the block, states an episode at a time.
    assert largest == {"state": 20, "image.top": 2, "action": 20}
