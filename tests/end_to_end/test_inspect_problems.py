"""What `kinoise inspect` finds wrong: damaged files and episodes, cameras, clocks, instructions, actions."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from inspected_data import SPEC, inspected, moving
from kinoise.cli import main
from kinoise.data import Episode, write_store
from kinoise.spec import Feature, Spec


def test_every_problem_is_found(tmp_path, capsys):
    rng = np.random.default_rng(1)
    items = [moving(rng, 20, initial=[index]) for index in range(6)]
    for item in items:
        item.arrays["state"][:, 2] = 5
    # Still for steps 5..9 and 12..14: seven idle steps of 20, five of 20 in a row short of the tenth that moves.
    for item in items[:5]:
        for start, stop in ((5, 10), (12, 15)):
            item.arrays["state"][start:stop] = item.arrays["state"][start]
            item.arrays["action"][start:stop] = item.arrays["action"][start]
    items[1].arrays["action"][7:9, 0] = 0.2
    same = Episode(items[0].arrays, items[0].instruction, {"initial": [0]})
    other_goal = Episode(items[0].arrays, items[0].instruction, {"initial": [9]})
    failed = moving(rng, 3, success=False)
    failed.arrays["state"][:, 2] = 5
    write_store(tmp_path / "data", SPEC, [*items, same, other_goal, failed])
    found = inspected(tmp_path / "data", capsys)
    assert found["keys"]["state"]["constant"] == ["unused"]
    # Episode 1 jumps to 0.2 and back inside its first rest: steps 7 and 9 move there, 8 does not.
    idle_steps = 6 * (4 + 2) + (2 + 2)
    idle = found["instructions"][0]["idle"]
    assert idle == {"fraction": pytest.approx(idle_steps / (8 * 20 + 3)), "longest": 4}
    problems = found["problems"]
    assert len(problems) == 6
    for expected in (
        "'state': 1 of 3 dimensions never change (unused)",
        "steps are idle, up to 4 in a row",
        "'action': steps outside the spec's bounds: 2",
        "start exactly like an earlier one: 1 (episode 6 like episode 0)",
        "median: 1 (the first is episode 8, 3 steps)",
        "marked as failed: 1 (the first is episode 8)",
    ):
        assert any(expected in problem for problem in problems), expected

    assert main(["inspect", str(tmp_path / "data")]) == 0
    assert capsys.readouterr().out.count("problem:") == 6


@pytest.mark.parametrize("case", ["absent", "empty", "truncated"])
def test_data_that_cannot_be_read_is_one_line_and_exit_code_1(case, tmp_path, capsys):
    path = tmp_path / "data"
    if case == "empty":
        path.mkdir()
    elif case != "absent":
        write_store(path, SPEC, [moving(np.random.default_rng(0), 5)])
        file = path / "data" / "action" / "0.0"
        file.write_bytes(file.read_bytes()[:-4])
    assert main(["inspect", str(path)]) == 1
    caught = capsys.readouterr()
    assert caught.out == ""
    assert caught.err.startswith("kinoise: ")
    assert caught.err.count("\n") == 1
    assert str(path) in caught.err


def spoiled(path: Path, key: str, steps: list[int], width: int) -> None:
    """Writes NaN over the first number of these steps of a store."""
    file = path / "data" / key / "0.0"
    numbers = np.frombuffer(file.read_bytes(), np.float32).reshape(-1, width).copy()
    numbers[steps, 0] = np.nan
    file.write_bytes(numbers.tobytes())


def test_every_bad_episode_is_named_and_the_good_ones_are_described(tmp_path, capsys):
    rng = np.random.default_rng(0)
    items = [moving(rng, 20, task=f"task {index}") for index in range(6)]
    path = tmp_path / "für dich"
    write_store(path, SPEC, items)
    spoiled(path, "state", [25, 26, 100], 3)
    spoiled(path, "action", [31, 77], 2)
    found = inspected(path, capsys)
    assert (found["episodes"], found["steps"]) == (3, 60)
    assert (found["numbers"], found["left_out"]) == ([0, 2, 4], [1, 3, 5])
    good = np.concatenate([items[index].arrays["state"] for index in (0, 2, 4)])
    np.testing.assert_allclose(found["keys"]["state"]["mean"], good.mean(0, np.float64), rtol=1e-6)
    np.testing.assert_array_equal(found["keys"]["state"]["max"], good.max(0))
    frames = np.concatenate([items[index].arrays["image.top"] for index in (0, 2, 4)])
    np.testing.assert_allclose(found["keys"]["image.top"]["mean"], frames.reshape(-1, 3).mean(0), rtol=1e-6)
    assert [len(found["keys"][key]["histogram"]) for key in found["keys"]] == [3, 3, 2]
    problems = found["problems"]
    assert len(problems) == 4
    for problem, words in zip(
        problems,
        (
            ("episode 1 (task 1)", "'state'", "2 step(s)", "step 5", "'x'"),
            ("episode 1 (task 1)", "'action'", "step 11", "'dx'"),
            ("episode 3 (task 3)", "'action'", "step 17"),
            ("episode 5 (task 5)", "'state'", "step 0"),
        ),
        strict=True,
    ):
        assert all(word in problem for word in (str(path), *words)), problem


def test_without_one_good_episode_the_problems_are_shown_all_the_same(tmp_path, capsys):
    write_store(tmp_path / "data", SPEC, [moving(np.random.default_rng(0), 5) for _ in range(2)])
    spoiled(tmp_path / "data", "action", [0, 5], 2)
    assert main(["inspect", str(tmp_path / "data"), f"html={tmp_path / 'page.html'}"]) == 1
    assert capsys.readouterr().out.count("problem:") == 2
    assert "NaN" in (tmp_path / "page.html").read_text()
    assert main(["inspect", str(tmp_path / "data"), "json=true"]) == 1
    assert len(json.loads(capsys.readouterr().out)["problems"]) == 2


def test_the_terminal_shows_the_first_and_last_of_many_problems(tmp_path, capsys):
    write_store(tmp_path / "data", SPEC, [moving(np.random.default_rng(0), 5) for _ in range(71)])
    spoiled(tmp_path / "data", "state", list(range(0, 350, 5)), 3)
    assert main(["inspect", str(tmp_path / "data")]) == 0
    shown = capsys.readouterr().out
    assert shown.count("problem:") == 60
    assert "and 10 more problems" in shown
    assert len(inspected(tmp_path / "data", capsys)["problems"]) == 70


def test_what_a_foreign_file_lacks_is_told_all_at_once(tmp_path, capsys):
    import h5py
    from kinoise.data import FORMATS

    rng = np.random.default_rng(0)
    spec = Spec({"state": SPEC.observations["state"]}, SPEC.action, rate=10.0, language=False)
    items = [moving(rng, 20) for _ in range(6)]
    for item in items:
        del item.arrays["image.top"]
    path = tmp_path / "d.hdf5"
    FORMATS["robomimic"].write(path, spec, (Episode(item.arrays) for item in items))
    with h5py.File(path, "r+") as file:
        del file["data/demo_1/obs/state"]
        file["data/demo_3/obs/state"][7, 2] = np.inf
        shorter = file["data/demo_4/actions"][:10]
        del file["data/demo_4/actions"]
        file["data/demo_4/actions"] = shorter
    found = inspected(path, capsys)
    assert (found["episodes"], found["lost"]) == (3, 2)
    assert found["called"] == ["episode 0", "episode 2", "episode 5"]
    for demo in ("demo_1", "demo_3", "demo_4"):
        assert any(demo in problem for problem in found["problems"]), found["problems"]
    assert not any("demo_2" in problem for problem in found["problems"])


def still_life(steps: int, seed: int, flip: bool = False) -> np.ndarray:
    """A camera's frames: a lit floor, a wall and a dot that moves."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[:24, :32]
    frames = np.repeat((8 * rows + 2 * columns)[None, ..., None], steps, 0) + rng.integers(0, 9, (steps, 24, 32, 3))
    for step in range(steps):
        frames[step, 4 + step % 16 : 7 + step % 16, step % 29 : step % 29 + 3] = 0
    return (frames[:, ::-1] if flip else frames).clip(0, 255).astype(np.uint8)


def test_broken_cameras_are_found(tmp_path, capsys):
    rng = np.random.default_rng(0)
    cameras = {f"image.{name}": Feature((24, 32, 3), "image") for name in ("good", "twin", "bad")}
    spec = Spec({"state": Feature((2,)), **cameras}, Feature((2,)), rate=10.0, language=False)

    def recorded(index: int) -> Episode:
        state = rng.normal(size=(40, 2)).astype(np.float32)
        good, bad = still_life(40, index), still_life(40, index + 100, flip=index == 2)
        if index == 4:
            bad[:] = 3
        elif index == 5:
            bad[:] = bad[0]
        elif index == 6:
            bad[10:30] = bad[10]
        return Episode({"state": state, "action": state, "image.good": good, "image.twin": good, "image.bad": bad})

    write_store(tmp_path / "data", spec, (recorded(index) for index in range(8)))
    picture, page = tmp_path / "sheet.png", tmp_path / "page.html"
    found = inspected(tmp_path / "data", capsys, f"sheet={picture}", f"html={page}", "frames=4")
    bad = found["cameras"]["image.bad"]
    assert (bad["black"], bad["frozen"]) == ([4], [5])
    assert bad["stuck"] == [{"episode": 6, "step": 11, "steps": 19}]
    assert [(flip["episode"], flip["flip"]) for flip in bad["flipped"]] == [(2, "upside down")]
    good = found["cameras"]["image.good"]
    assert good["identical_to"] == ["image.twin"]
    assert [good[name] for name in ("black", "uniform", "frozen", "stuck", "flipped")] == [[]] * 5
    assert sum("image.good" in problem for problem in found["problems"]) == 1
    assert picture.read_bytes().startswith(b"\x89PNG")
    # Two pictures for each of three cameras of four episodes: the suspects, as far as they fit, and others.
    assert page.read_text().count("<img") == 24
    assert "Episode 2" in page.read_text()
    assert main(["inspect", str(tmp_path / "data"), f"sheet={picture}", "frames=0"]) == 2


def test_time_stamps_are_held_against_the_rate(tmp_path, capsys):
    rng = np.random.default_rng(0)
    items = [moving(rng, 20) for _ in range(2)]
    stamps = [np.arange(20) / 10, np.delete(np.arange(22), [8, 9]) / 10]
    episodes = [
        Episode(item.arrays, item.instruction, {}, {"timestamp": it.astype(np.float32)})
        for item, it in zip(items, stamps, strict=True)
    ]
    write_store(tmp_path / "data", SPEC, episodes)
    found = inspected(tmp_path / "data", capsys)
    assert (found["clock"]["rate"], found["clock"]["lost_frames"]) == (pytest.approx(10), 2)
    (problem,) = found["problems"]
    assert "episode 1 at step 8" in problem
    assert any("10 Hz" in problem for problem in inspected(tmp_path / "data", capsys, "rate=20")["problems"])


def test_instructions_that_are_written_in_two_ways(tmp_path, capsys):
    rng = np.random.default_rng(0)
    # The two last ones are one word, as Unicode writes it in one and in two signs.
    texts = ["Open the door.", "open  the door", "close the door", "\u00f6ffne", "o\u0308ffne"]
    write_store(tmp_path / "data", SPEC, [moving(rng, 20, text) for text in texts])
    found = inspected(tmp_path / "data", capsys)
    assert len(found["problems"]) == 2
    assert "'Open the door.', 'open  the door'" in found["problems"][0]
    assert "close" not in found["problems"][0]
    assert "beyond ASCII: 2 of 5" in found["notes"][0]


def test_actions_that_are_not_what_the_spec_says(tmp_path, capsys):
    rng = np.random.default_rng(0)
    spec = Spec({"state": Feature((2,), names=("x", "y"))}, Feature((2,), names=("x", "y")), rate=10.0, control="delta")
    walks = [(rng.normal(size=(60, 2)).cumsum(0) + 9 * rng.normal(size=2)).astype(np.float32) for _ in range(8)]
    write_store(tmp_path / "data", spec, (Episode({"state": it[:-1], "action": it[1:]}, "go") for it in walks))
    found = inspected(tmp_path / "data", capsys)
    assert found["action"]["kind"] == "absolute"
    (problem,) = found["problems"]
    assert "control=delta" in problem
    assert main(["inspect", str(tmp_path / "data")]) == 0
    assert "actions look absolute" in capsys.readouterr().out
