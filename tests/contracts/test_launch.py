"""Jobs: kinoise's own commands as processes that are begun again when they die, and end with whoever started them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, nullcontext, suppress
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from kinoise.config import UsageError, parse
from kinoise.eval import collect
from kinoise.eval.__main__ import main as evaluate
from kinoise.eval.attempts import Ledger
from kinoise.eval.launch import Cluster, open_launcher
from kinoise.eval.launch.job import TRIES, Ended, Job, carry_out, last_words, run, run_all
from kinoise.eval.launch.local import Local
from kinoise.eval.ledger import LEDGER
from kinoise.eval.parts import begun, check, parts
from kinoise.eval.protocol import Shard
from kinoise.eval.settings import Settings
from kinoise.spec import KinoiseError
from kinoise.train.checkpoint import RunDirectory
from short_runs import QUIET, SHORT, TINY, write_data


def job(folder: Path, *argv: str, again: tuple[str, ...] = ("--version",)) -> Job:
    return Job(argv[0], argv, folder / f"{argv[0].strip('-')}.log", again, folder)


class Deadly(Local):
    """Kills the first so many of the processes that it starts."""

    def __init__(self, deaths: int) -> None:
        super().__init__(Cluster())
        self.deaths, self.started = deaths, []

    def start(self, job: Job):
        running = super().start(job)
        self.started.append(running)
        if len(self.started) <= self.deaths:
            running.process.kill()
        return running


def hanging(folder: Path) -> Job:
    """One that waits for ever, for somebody to write its settings."""
    os.mkfifo(folder / "settings.yaml")
    return job(folder, "train", "policy=settings.yaml", "data=D", "out=RUN")


def test_jobs_end_with_what_they_said(tmp_path: Path):
    jobs = [job(tmp_path, "--version"), job(tmp_path, "evaluate")]
    done = {item.job.name: item for item in run(Local(Cluster()), jobs)}
    assert done["--version"].ended.code == 0
    assert last_words(tmp_path / "version.log").startswith("kinoise ")
    assert (done["evaluate"].ended.code, done["evaluate"].tries) == (2, 1)
    assert "unknown command 'evaluate'" in done["evaluate"].ended.said
    with pytest.raises(KinoiseError, match=r"1 of 2 parts failed: evaluate: unknown command 'evaluate'.*Their logs are in"):
        run_all(Local(Cluster()), jobs)


def test_what_a_log_ends_with_is_the_last_tries(tmp_path: Path):
    log = tmp_path / "log"
    log.write_text("$ kinoise eval RUN\nkinoise: out of memory\n$ kinoise eval RUN resume=true\nTraceback\nValueError: b\n")
    assert last_words(log) == "ValueError: b"


def test_a_job_whose_process_was_killed_goes_on_in_another(tmp_path: Path):
    launcher, first = Deadly(1), hanging(tmp_path)
    (done,) = run(launcher, [first])
    assert (done.ended.code, done.tries) == (0, 2)
    assert [item.job.argv for item in launcher.started] == [first.argv, ("--version",)]


def test_one_that_is_always_killed_is_given_up(tmp_path: Path):
    first = hanging(tmp_path)
    (done,) = run(Deadly(9), [replace(first, again=first.argv)])
    assert (done.ended, done.tries) == (Ended(-signal.SIGKILL, "signal SIGKILL", done.ended.machine), TRIES)


def test_no_more_run_at_once_than_asked(tmp_path: Path):
    launcher, most = Deadly(0), 0

    class Watching(Deadly):
        def start(self, job: Job):
            nonlocal most
            running = super().start(job)
            most = max(most, sum(item.process.poll() is None for item in self.started))
            return running

    launcher = Watching(0)
    assert len(list(run(launcher, [job(tmp_path, "--version")] * 3, at_once=1))) == 3
    assert most <= 1  # a busy machine may come to look when it has ended


def test_whoever_stops_listening_ends_the_jobs(tmp_path: Path):
    with Deadly(0) as launcher:
        loop = run(launcher, [hanging(tmp_path), job(tmp_path, "--version")])
        assert next(loop).job.name == "--version"
        loop.close()
    assert launcher.started[0].process.poll() in (-signal.SIGTERM, 128 + signal.SIGTERM)


def test_a_job_is_told_once_to_stop_and_by_nobody_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """At a second signal a command ends at once, and what it was about to save is lost. Ctrl-C goes to a terminal's session."""
    told: list[int] = []
    terminate = subprocess.Popen.terminate
    monkeypatch.setattr(subprocess.Popen, "terminate", lambda self: (told.append(self.pid), terminate(self)))
    with Deadly(0) as launcher:
        running = launcher.start(hanging(tmp_path))
        assert os.getsid(running.process.pid) == running.process.pid != os.getsid(0)
        running.stop()
    assert told == [running.process.pid]


def test_a_job_dies_with_the_process_that_carries_it_out(tmp_path: Path):
    """As Ray's and Slurm's are killed, without a word: it must not write on beside the one that takes its place."""
    code = "import sys; from kinoise.eval.launch.job import Job, carry_out; from pathlib import Path; p = Path(sys.argv[1]); "
    code += "carry_out(Job('train', ('train', 'policy=settings.yaml', 'data=D', 'out=RUN'), p / 'log', (), p))"
    hanging(tmp_path)
    parent = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)])
    until(lambda: bool(jobs(parent.pid)))
    (child,) = jobs(parent.pid)
    parent.kill()
    parent.wait()
    until(lambda: "State:\tZ" in said(child, "status") or not Path(f"/proc/{child}").exists())


def test_a_job_waits_for_the_folder_that_a_dying_one_still_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """What a killed worker leaves saves what it has when it is told to end; its successor is there at once."""
    data, out = write_data(tmp_path / "data"), tmp_path / "RUN"
    train = ("train", *TINY, *SHORT, *QUIET, "train.steps=1", f"data={data}", f"out={out}")
    launcher = Deadly(1)

    def waits() -> bool:
        return len(launcher.started) == 2 and out in opened(launcher.started[1].process.pid)

    dying = ExitStack()
    dying.enter_context(RunDirectory(out, keep=1).claimed(resume=False))
    with ThreadPoolExecutor() as pool, launcher, dying:
        result = pool.submit(lambda: list(run(launcher, [job(tmp_path, *train, again=(*train, "resume=true"))])))
        until(lambda: result.done() or waits())
        dying.close()  # nothing was saved, so its folder vanishes
        (done,) = result.result()
    assert (done.ended.code, done.tries) == (0, 2), done.ended.said
    assert (out / "checkpoints" / "last").exists()


def opened(process: int) -> list[Path]:
    found = []
    for item in Path(f"/proc/{process}/fd").glob("*"):
        with suppress(OSError):  # closed, or the process has ended
            found.append(item.readlink())
    return found


def jobs(parent: int) -> list[str]:
    """Its children that came as far as the command itself; what it imports may start others for a moment."""
    return [child for child in said(parent, f"task/{parent}/children").split() if "kinoise.cli" in said(child, "cmdline")]


def said(process: int | str, name: str) -> str:
    """What the kernel says of a process; nothing once it has ended."""
    with suppress(OSError):
        return Path(f"/proc/{process}/{name}").read_text()
    return ""


def until(holds: Callable[[], bool], seconds: float = 300.0) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.05)


@pytest.mark.parametrize("there", [True, False])
def test_a_command_that_uses_ray_is_told_to_end_as_any_other(there: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    taken: list[str] = []

    def init(*_: object, **__: object) -> None:
        taken.append("SIGTERM")
        signal.signal(signal.SIGTERM, lambda *_: None)
        if not there:
            raise ConnectionError("nobody is there")

    ray = SimpleNamespace(init=init, is_initialized=lambda: False, shutdown=lambda: None)
    monkeypatch.setitem(sys.modules, "ray", ray)
    before = signal.getsignal(signal.SIGTERM)
    with (
        nullcontext() if there else pytest.raises(KinoiseError, match="no Ray cluster"),
        open_launcher("ray", Cluster(), tmp_path),
    ):
        assert signal.getsignal(signal.SIGTERM) is before
    assert taken
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_machine_that_does_not_see_the_folder_says_so(tmp_path: Path):
    ended = carry_out(Job("x", ("--version",), tmp_path / "elsewhere" / "x.log", ()))
    assert ended.code == 1
    assert "storage that all machines share" in ended.said


def test_packages_that_are_not_there_and_launchers_that_do_not_exist_are_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for name in ("ray", "submitit"):
        monkeypatch.setitem(sys.modules, name, None)
        with pytest.raises(KinoiseError, match=rf"\.\[{name}\]"):
            open_launcher(name, Cluster(), tmp_path)
    with pytest.raises(UsageError, match="expected one of local, ray, submitit"):
        open_launcher("mpi", Cluster(), tmp_path)


def settings(*argv: str) -> Settings:
    return parse("eval", Settings, argv, positional="run")


def test_a_part_is_what_was_asked_for_with_a_shard_and_a_folder(tmp_path: Path):
    argv = [
        "runs/lr=1",
        "env=metaworld/reach",
        "execute=3",
        "launcher=ray",
        "shards=2",
        "cluster.cpus=4",
        "out=OUT",
        "resume=false",
    ]
    jobs = parts(settings(*argv), argv, tmp_path / "step", tmp_path / "OUT", 2)
    plain = ("env=metaworld/reach", "execute=3", "workers=4")
    for number, item in enumerate(jobs, 1):
        place = f"out={tmp_path}/OUT/{number}-of-2"
        assert item.argv == ("eval", f"run={tmp_path}/step", *plain, f"shard={number}/2", place)
        assert item.again == (*item.argv, "resume=true")
        part = settings(*item.argv[1:])
        assert (part.run, part.shard, part.execute, part.launcher) == (f"{tmp_path}/step", f"{number}/2", 3, None)
    again = parts(settings(*argv[:-1], "resume=true", "workers=3"), [*argv, "workers=3"], tmp_path, tmp_path, 2)
    assert all(item.argv == item.again and "workers=3" in item.argv and "workers=4" not in item.argv for item in again)


@pytest.mark.parametrize(("launcher", "said"), [("local", "hands out no GPUs"), ("submitit", "whole ones")])
def test_gpus_that_a_launcher_can_not_give_are_refused(launcher: str, said: str, tmp_path: Path):
    with pytest.raises(UsageError, match=said):
        open_launcher(launcher, Cluster(gpus=0.25), tmp_path)


@pytest.mark.parametrize("command", [evaluate, collect.main])
def test_parts_without_a_launcher_are_refused(command: Callable[[list[str]], int], tmp_path: Path):
    given = [str(tmp_path)] if command is evaluate else []
    with pytest.raises(UsageError, match="shards=4 without launcher="):
        command([*given, "env=metaworld/reach", f"out={tmp_path / 'out'}", "shards=4"])


@pytest.mark.parametrize(("more", "code"), [([], 1), (["shard=1/2"], 0)])
def test_a_part_of_errors_alone_is_for_the_whole_to_judge(
    more: list[str], code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("kinoise.eval.__main__.resolve", Path)
    monkeypatch.setattr("kinoise.eval.__main__._alone", lambda *_: {"success": {"n": 3, "errors": 3}})
    monkeypatch.setattr("kinoise.eval.__main__.show", lambda *_: None)
    assert evaluate([str(tmp_path), "env=metaworld/reach", *more]) == code


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["shard=1/2"], "plays all shards itself"),
        (["until=0.1"], "no part knows"),
        (["latency=measured"], "Measure once"),
        (["shards=0"], "at least 1"),
        (["shards=21"], "only 20 episodes"),
    ],
)
def test_what_parts_can_not_have_is_refused_before_any_begins(more: list[str], said: str):
    with pytest.raises(UsageError, match=said):
        check(settings("RUN", "env=metaworld/reach,push", "launcher=local", *more))
    assert check(settings("RUN", "env=metaworld/reach,push", "launcher=local", "episodes=3")) == 6


def test_an_evaluation_is_resumed_in_as_many_parts_as_it_had(tmp_path: Path):
    assert begun(tmp_path) is None
    for number in (1, 2, 3):
        (tmp_path / f"{number}-of-3").mkdir()
    assert begun(tmp_path) == 3
    (tmp_path / "1-of-2").mkdir()
    with pytest.raises(UsageError, match="2 and of 3"):
        begun(tmp_path)
    assert begun(tmp_path, 2) == 2


def test_what_one_process_began_is_not_played_again_in_parts(tmp_path: Path):
    (tmp_path / LEDGER).touch()
    with pytest.raises(UsageError, match="without launcher="):
        begun(tmp_path, 3)


@pytest.mark.parametrize("total", [1, 2, 3, 5])
@pytest.mark.parametrize(
    "fails", [lambda index: False, lambda index: index < 4, lambda index: index * 2654435761 % 2**32 < 2**30]
)
def test_parts_of_a_collection_leave_little_to_make_and_never_change_what_is_kept(total: int, fails: Callable[[int], bool]):
    def play(ledger: Ledger) -> dict[int, bool]:
        while ledger.wanted:
            index = ledger.start()
            ledger.enter(index, not fails(index))
        return ledger.found

    alone = Ledger("task", 20, {})
    play(alone)
    made: dict[int, bool] = {}
    for number in range(1, total + 1):
        part = play(Ledger("task", 20, made, Shard(number, total)))
        assert {index % total for index in part} <= {number - 1}
        assert not part.keys() & made.keys()
        made |= part
    assert sum(made.values()) == 20
    whole = Ledger("task", 20, made)
    assert len(whole.wanted) <= 4
    play(whole)
    assert whole.kept == alone.kept


def test_a_part_of_a_collection_is_the_command_with_a_shard(tmp_path: Path):
    argv = [
        "env=metaworld/reach",
        "episodes=4",
        f"out={tmp_path}/D",
        "launcher=ray",
        "shards=2",
        "overwrite=true",
        "cluster.cpus=3",
    ]
    asked = parse("collect", collect.Settings, argv)
    jobs = collect.parts(asked, argv, tmp_path, 2)
    plain = ("collect", "env=metaworld/reach", "episodes=4", "workers=3", f"out={tmp_path}/D")
    assert [item.argv for item in jobs] == [(*plain, "shard=1/2"), (*plain, "shard=2/2")]
    for refused in ("overwrite=true", "launcher=local"):
        with pytest.raises(UsageError, match="makes a part alone"):
            collect.main([*argv[:3], "shard=1/2", refused])
