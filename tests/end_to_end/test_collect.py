"""`kinoise collect`, with real simulators in real processes."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from kinoise.config import UsageError
from kinoise.data import open_store
from kinoise.envs import episode_seed, make, tasks
from kinoise.eval.collect import main
from kinoise.eval.demonstration import HOLD, Folder, Recipe, play
from kinoise.files import claimed
from kinoise.spec import KinoiseError

TASK = "metaworld/reach"
EPISODES = 12


def collect(out: Path, *arguments: str, env: str = TASK, episodes: int = EPISODES) -> int:
    return main([f"env={env}", f"episodes={episodes}", f"out={out}", *arguments])


def tree(path: Path) -> dict[str, bytes]:
    return {str(item.relative_to(path)): item.read_bytes() for item in sorted(path.rglob("*")) if item.is_file()}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    out = tmp_path_factory.mktemp("collect") / "data"
    assert collect(out, "workers=2") == 0
    return out


def test_the_store_holds_what_was_asked_for(data):
    store, env = open_store(data), make(TASK)
    assert store.spec == env.spec
    assert store.texts == (env.instruction,)
    assert len(store.ends) == EPISODES
    start = 0
    for position, (stop, info) in enumerate(zip(store.ends, store.info, strict=True)):
        assert info["task"] == TASK
        assert info["success"] is True
        assert info["steps"] == stop - start
        assert info["seed"] == episode_seed(0, TASK, info["index"])
        assert position == 0 or info["index"] > store.info[position - 1]["index"]
        observation, _ = env.reset(seed=info["seed"])
        np.testing.assert_array_equal(store.read("state", start, start + 1)[0], observation["state"])
        assert env.initial() == info["initial"]
        start = int(stop)
    env.close()
    assert not data.with_name("data.partial").exists()
    told = store.meta["collect"]
    assert (told["noise"], told["disturb"], told["seed"], told["episodes"]) == (0.1, 0.0, 0, EPISODES)
    assert "mujoco" in told["versions"]


def test_recorded_is_what_the_expert_would_do_and_not_what_the_noise_did(data):
    store, env = open_store(data), make(TASK)
    expert, stop = env.expert(), int(store.ends[0])
    states, actions = store.read("state", 0, stop), store.read("action", 0, stop)
    for state, action in zip(states, actions, strict=True):
        np.testing.assert_array_equal(expert.act({"state": state}), action)
    env.reset(seed=store.info[0]["seed"])
    replayed = np.stack([env.step(action)[0]["state"] for action in actions[:-1]])
    assert np.abs(replayed - states[1:]).max() > 1e-3
    env.close()


def test_an_episode_goes_on_for_a_while_after_its_success():
    env = make(TASK)
    seen, step = [], env.step

    def watched(action):
        seen.append(step(action))
        return seen[-1]

    env.step = watched
    episode = play(env, Recipe(0, 0.1, (), 84), 0)
    successes = [info["success"] for *_, info in seen]
    assert successes.index(True) == len(successes) - 1 - HOLD
    assert len(episode.arrays["action"]) == len(successes)
    env.close()


def test_without_noise_what_is_recorded_is_what_happened():
    env = make(TASK)
    episode = play(env, Recipe(0, 0.0, (), 84), 3)
    states = [env.reset(seed=episode.info["seed"])[0]["state"]]
    states += [env.step(action)[0]["state"] for action in episode.arrays["action"][:-1]]
    np.testing.assert_array_equal(np.stack(states), episode.arrays["state"])
    env.close()


def test_what_is_recorded_of_a_disturbed_episode_is_what_the_expert_said():
    env = make(TASK)
    said, done = [], []
    expert, step = env.expert, env.step

    def listened_to():
        found = expert()
        act = found.act
        found.act = lambda observation: said.append(act(observation)) or said[-1]
        return found

    env.expert, env.step = listened_to, lambda action: done.append(action) or step(action)
    episode = play(env, Recipe(0, 0.0, (), 84, disturb=0.05), 0)
    np.testing.assert_array_equal(np.stack(said), episode.arrays["action"])
    assert 0.05 < (np.stack(done) != np.clip(np.stack(said), env.spec.action.low, env.spec.action.high)).any(1).mean() < 0.95
    env.close()


# Interruptions


def begin(out: Path) -> subprocess.Popen:
    code = "import sys; from kinoise.cli import main; sys.exit(main())"
    arguments = ["collect", f"env={TASK}", f"episodes={EPISODES}", f"out={out}", "workers=2"]
    return subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        start_new_session=True,
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def wait_for(condition, seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.002)


def session(leader: int) -> list[int]:
    """The processes that are left of a session."""
    left = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, _, sid = stat.read_text().rpartition(")")[2].split()[:4]
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(sid) == leader and state != "Z":
            left.append(int(stat.parent.name))
    return left


def finished(out: Path) -> dict[str, int]:
    return {item.name: item.stat().st_mtime_ns for item in out.with_name(f"{out.name}.partial").rglob("[0-9]*.npz")}


def test_interrupted_and_killed_it_goes_on_leaves_nobody_behind_and_ends_the_same(data, tmp_path):
    out = tmp_path / "data"
    interrupted = begin(out)
    wait_for(lambda: finished(out) or interrupted.poll() is not None)
    os.killpg(interrupted.pid, signal.SIGINT)
    said = "".join(interrupted.communicate(timeout=30))
    assert interrupted.returncode == 130, said
    assert "Traceback" not in said
    assert "the same command goes on" in said
    wait_for(lambda: not session(interrupted.pid))
    first = finished(out)
    assert 0 < len(first) < EPISODES

    killed = begin(out)
    wait_for(lambda: len(finished(out)) > len(first) or killed.poll() is not None)
    os.kill(killed.pid, signal.SIGKILL)
    killed.communicate(timeout=30)
    wait_for(lambda: not session(killed.pid))
    second = finished(out)
    assert len(second) < EPISODES
    assert {name: second[name] for name in first} == first, "what was finished is not played again"
    assert not out.exists()

    assert collect(out, "workers=1") == 0
    assert tree(out) == tree(data)
    assert [item.name for item in tmp_path.iterdir()] == ["data"]


# What there is already


def test_data_is_replaced_only_when_asked_and_only_when_it_is_data(data, tmp_path, capsys):
    with pytest.raises(KinoiseError, match="overwrite=true"):
        collect(data)
    out = tmp_path / "data"
    (out / "photos").mkdir(parents=True)
    with pytest.raises(KinoiseError, match="not a data set"):
        collect(out, "overwrite=true")
    assert (out / "photos").is_dir()
    (out / "photos").rmdir()
    assert collect(out, "workers=1", episodes=1) == 0
    before = tree(out)
    assert collect(out, "workers=1", "seed=1", "overwrite=true", episodes=1) == 0
    assert tree(out).keys() == before.keys()
    assert tree(out) != before
    assert [item.name for item in tmp_path.iterdir()] == ["data"]
    assert "metaworld/reach" in capsys.readouterr().out


@pytest.fixture
def unfinished(tmp_path, monkeypatch):
    """Where a collection was to go that played everything and then found the disk full."""

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    out = tmp_path / "data"
    with monkeypatch.context() as patch:
        patch.setattr(os, "rename", full)
        with pytest.raises(KinoiseError, match="disk is full"):
            collect(out, "workers=1", episodes=2)
    assert not out.exists()
    return out


def test_after_a_full_disk_the_same_command_finishes_without_playing_again(unfinished, monkeypatch):
    monkeypatch.setattr("kinoise.eval.attempts.Worker", None)
    assert collect(unfinished, episodes=2) == 0
    assert len(open_store(unfinished).ends) == 2
    assert [item.name for item in unfinished.parent.iterdir()] == ["data"]


def test_what_was_begun_with_other_settings_is_not_mixed_in(unfinished):
    before = finished(unfinished)
    with pytest.raises(KinoiseError, match=r"noise was 0\.1, is 0\.2"):
        collect(unfinished, "noise=0.2", episodes=2)
    assert finished(unfinished) == before


def test_a_part_does_not_begin_anew_what_others_have_begun(tmp_path):
    out = tmp_path / "data"
    assert collect(out, "workers=1", "shard=1/2", episodes=2) == 0
    for attempt in tmp_path.rglob("0*.npz"):
        attempt.unlink()  # as when the other part has not finished one yet
    with pytest.raises(KinoiseError, match="seed was 0, is 1"):
        collect(out, "workers=1", "seed=1", "shard=2/2", episodes=2)
    assert (tmp_path / "data.partial/collect.json").exists()


def test_a_damaged_demonstration_is_named(unfinished):
    file = next(unfinished.with_name("data.partial").rglob("000001.npz"))
    file.write_bytes(file.read_bytes()[:-200])
    with pytest.raises(KinoiseError, match=r"000001\.npz is damaged"):
        collect(unfinished, episodes=2)
    assert not unfinished.exists()
    file.unlink()
    assert collect(unfinished, "workers=1", episodes=2) == 0


def test_two_commands_do_not_make_the_same_data_set(tmp_path):
    partial = tmp_path / "data.partial"
    partial.mkdir()
    with claimed(partial, "collects"), pytest.raises(KinoiseError, match="another process collects there"):
        collect(tmp_path / "data")
    assert list(partial.iterdir()) == []


def test_a_folder_of_somebody_elses_is_left_alone(tmp_path):
    (tmp_path / "data.partial").mkdir()
    (tmp_path / "data.partial" / "letter.txt").write_text("dear")
    with pytest.raises(KinoiseError, match="in the way"):
        collect(tmp_path / "data")
    assert (tmp_path / "data.partial" / "letter.txt").read_text() == "dear"


def test_a_demonstration_that_does_not_fit_on_the_disk_leaves_nothing(tmp_path, monkeypatch):
    def full(path, **_):
        path.write_bytes(b"some")
        raise OSError(errno.ENOSPC, "No space left on device")

    env = make(TASK)
    episode = play(env, Recipe(0, 0.1, (), 84), 0)
    env.close()
    monkeypatch.setattr(np, "savez", full)
    with pytest.raises(KinoiseError, match="disk is full"):
        Folder(tmp_path).write(episode)
    assert [item for item in tmp_path.rglob("*") if item.is_file()] == []


# Bad input


@pytest.mark.parametrize(
    ("argument", "said"),
    [
        ("env=metaworld/psuh", "metaworld/push"),
        ("episodes=0", "episodes=0"),
        ("episodes=many", "many"),
        ("seed=-1", "seed=-1"),
        ("noise=-0.1", "noise=-0.1"),
        ("noise=nan", "noise=nan"),
        ("disturb=1.5", "disturb=1.5"),
        ("disturb=nan", "disturb=nan"),
        ("workers=0", "workers=0"),
        ("timeout=0", "timeout=0"),
        ("timeout=nan", "timeout=nan"),
        ("size=0", "size=0"),
        ("camera=[corner]", "camera"),
        ("cameras=[cornr]", "Did you mean corner"),
    ],
)
def test_bad_input_is_refused_before_anything_is_played(tmp_path, argument, said):
    arguments = {"env": TASK, "out": tmp_path / "data", "episodes": 1}
    key, _, value = argument.partition("=")
    with pytest.raises(KinoiseError, match=said):
        main([f"{name}={item}" for name, item in {**arguments, key: value}.items()])
    assert list(tmp_path.iterdir()) == []


def test_what_is_needed_is_asked_for():
    with pytest.raises(UsageError, match=r"env=.*out="):
        main([])


def test_help_lists_the_choices(capsys):
    with pytest.raises(SystemExit, match="0"):
        main(["--help"])
    text = capsys.readouterr().out
    assert all(task.removeprefix("metaworld/") in text for task in tasks("metaworld/mt50"))
    assert "metaworld/mt10" in text


# Processes and pictures


def test_what_a_killed_worker_was_at_is_played_again(data, tmp_path):
    """As by the kernel, for its memory."""
    out = tmp_path / "data"
    running = begin(out)
    wait_for(lambda: finished(out) or running.poll() is not None)
    workers = [pid for pid in session(running.pid) if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()]
    os.kill(workers[0], signal.SIGKILL)
    said = "".join(running.communicate(timeout=60))
    assert running.returncode == 0, said
    assert "counts as failed" not in said
    assert tree(out) == tree(data)
    wait_for(lambda: not session(running.pid))


def test_images_are_recorded_with_the_states(tmp_path):
    out = tmp_path / "data"
    assert collect(out, "cameras=[corner,gripperPOV]", "size=12", "workers=1", episodes=1) == 0
    store, env = open_store(out), make(TASK, cameras=["corner", "gripperPOV"], size=12)
    assert store.spec == env.spec
    observation, _ = env.reset(seed=store.info[0]["seed"])
    for key in ("image.corner", "image.gripperPOV"):
        assert store.read(key, 0, int(store.ends[0])).shape == (int(store.ends[0]), 12, 12, 3)
        np.testing.assert_array_equal(store.read(key, 0, 1)[0], observation[key])
    env.close()
