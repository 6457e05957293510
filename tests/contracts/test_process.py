"""Planning in another process: what crosses the pipe, and what becomes of questions when the process fails, dies or hangs."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from far_planner import Make, plan
from kinoise.config import UsageError
from kinoise.deploy.inference import Inference, Reply, Request, Restartable
from kinoise.deploy.process import ProcessInference
from kinoise.deploy.robot import Reading
from kinoise.spec import KinoiseError, Plan


def request(text: str = "", tick: int = 0, side: int = 8, **more: object) -> Request:
    rng = np.random.default_rng(tick)
    readings = tuple(
        Reading(
            {"state": rng.standard_normal(3, dtype=np.float32), "image": rng.integers(0, 255, (side, side, 3), np.uint8)}, text
        )
        for _ in range(2)
    )
    return Request(tick, 0.25 * tick, readings, **more)


def answer(inference: ProcessInference, asked: Request | None = None) -> Reply:
    if asked is not None:
        inference.submit(asked)
    deadline = time.monotonic() + 60
    while (reply := inference.poll()) is None:
        assert time.monotonic() < deadline
        time.sleep(0.002)
    assert not inference.busy
    return reply


def gone(pid: int) -> bool:
    """Whether a process has ended, and been waited for."""
    deadline = time.monotonic() + 10
    while Path(f"/proc/{pid}").exists():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


def hang(inference: ProcessInference, place: Path) -> None:
    """Asks a question that is never answered, and returns once it is being planned on."""
    inference.submit(request(f"wait {place}"))
    deadline = time.monotonic() + 60
    while not place.exists():
        assert time.monotonic() < deadline
        time.sleep(0.002)


@pytest.fixture(scope="module")
def far() -> Iterator[ProcessInference]:
    inference = ProcessInference(Make(), threads=1)
    yield inference
    pid = inference.pid
    assert inference.close() == ""
    assert pid is not None
    assert gone(pid)


def test_a_question_and_its_answer_cross_unchanged(far: ProcessInference) -> None:
    assert isinstance(far, Inference)
    assert isinstance(far, Restartable)
    assert far.about() == {"about": "far", "pid": far.pid}
    assert far.ready
    gen = torch.Generator().manual_seed(0)
    actions, confidence = torch.randn(1, 4, 3, generator=gen), torch.rand(1, 4, 3, generator=gen)
    previous = Plan(actions, 0.05, 3, t0=1.5, nfe_rows=(3,), confidence=confidence, surprise=(0.5,), cold=(True,))
    for asked in (request(), request(tick=1, side=600), request(tick=2, previous=previous, elapsed=1, prefix=2, budget=0.5)):
        reply, here = answer(far, asked), plan(asked)
        assert reply.request is asked
        assert reply.error == ""
        assert reply.seconds > 0
        assert reply.plan is not None
        assert torch.equal(reply.plan.actions, here.actions)
        assert (reply.plan.nfe, reply.plan.dt) == (here.nfe, here.dt)
        assert reply.plan.timing == {"pid": far.pid, "pictures": here.timing["pictures"]}
        assert reply.plan.confidence is None if asked.previous is None else torch.equal(reply.plan.confidence, confidence)


def test_what_planning_raises_is_an_answer_and_the_process_goes_on(far: ProcessInference) -> None:
    assert answer(far, request("fail")).error == "planning failed: StrangeError: one and two"
    assert "BFloat16" in answer(far, request("half")).error
    unsendable = request()
    unsendable.readings[-1].values["state"] = np.array([lambda: None])
    assert answer(far, unsendable).error.startswith("planning failed:")
    assert far.pid is not None
    os.kill(far.pid, signal.SIGINT)  # Ctrl-C reaches every process of a terminal
    assert answer(far, request()).error == ""
    assert far.about()["pid"] == far.pid


def test_a_process_that_dies_is_named_and_replaced(tmp_path: Path) -> None:
    inference = ProcessInference(Make())
    first = inference.about()["pid"]
    hang(inference, tmp_path / "once")
    os.kill(first, signal.SIGKILL)
    assert "SIGKILL" in answer(inference).error
    reply = answer(inference, request())  # waits for the next one
    assert reply.plan is not None
    second = int(reply.plan.timing["pid"])
    assert second == inference.pid != first

    hang(inference, tmp_path / "twice")
    begin = time.monotonic()
    inference.restart()
    assert answer(inference).plan is None
    assert time.monotonic() - begin < 1
    assert gone(second)
    inference.submit(request())
    starting = inference.pid
    inference.restart()  # one is starting: it is left to it, and the question is answered
    assert "given up" in answer(inference).error
    reply = answer(inference, request())
    assert reply.plan is not None
    assert inference.pid == reply.plan.timing["pid"]
    assert starting in (None, inference.pid)

    third = inference.pid
    os.kill(third, signal.SIGKILL)  # while nothing is asked
    assert gone(third)
    assert "SIGKILL" in answer(inference, request()).error
    assert inference.close() == ""


def test_closing_does_not_wait_for_a_plan_that_never_comes(far: ProcessInference, tmp_path: Path) -> None:
    other = ProcessInference(Make("other"), patience=0.1)
    assert other.about()["about"] == "other"
    hang(other, tmp_path / "busy")
    assert answer(far, request()).error == ""  # the two have nothing to do with each other
    pid = other.pid
    assert pid not in (None, far.pid)
    assert "did not return" in other.close()
    assert gone(pid)
    assert other.pid is None
    starting = ProcessInference(Make())
    assert starting.close() == ""
    with pytest.raises(KinoiseError, match="closed"):
        starting.about()


PARENT = """
import os, signal, time
from far_planner import Make
from test_process import hang
from kinoise.deploy.process import ProcessInference

if __name__ == "__main__":
    inference = ProcessInference(Make())
    hang(inference, Path(sys.argv[1]))
    print(inference.pid, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_process_ends_with_its_parent_in_the_middle_of_a_plan(tmp_path: Path) -> None:
    code = f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); from pathlib import Path\n{PARENT}"
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "busy")], stdout=subprocess.PIPE, timeout=60, check=False)
    assert done.returncode == -signal.SIGKILL
    assert gone(int(done.stdout))


def test_a_planner_that_can_not_be_built_says_why() -> None:
    refused, died = ProcessInference(Make(fail="usage")), ProcessInference(Make(fail="exit"))
    with pytest.raises(UsageError, match="device=tpu9"):
        refused.about()
    with pytest.raises(KinoiseError, match="exit code 3"):
        died.about()
    for inference in (refused, died):
        assert not inference.ready
        assert inference.close() == ""
