"""Rollouts: every episode is played once, whatever goes wrong in others, and the same way whatever the timing."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from kinoise import envs
from kinoise.envs import episode_seed
from kinoise.eval.rollout import Rollout, look
from kinoise.eval.schedule import Schedule
from kinoise.eval.slot import Job, ReplayDriver, Terms
from kinoise.eval.workers import Workers
from kinoise.spec import KinoiseError, Observation, Plan
from line_world import HORIZON, ExpertDriver, make, make_counting, make_slow
from walker import CHUNK, TERMS, Walker, line_jobs, summary


@pytest.fixture(scope="module")
def pool() -> Iterator[Workers]:
    with Workers(make, 2) as workers:
        yield workers


def test_a_policy_plays_every_episode_to_success(pool: Workers):
    jobs, walker = line_jobs("go", "other"), Walker()
    outcomes = list(Rollout(pool, jobs, execute=4, slots=5).run(walker))
    assert Counter((item.job.task, item.job.index) for item in outcomes) == Counter((job.task, job.index) for job in jobs)
    assert all(item.success and item.error is None and 0 < item.steps <= HORIZON for item in outcomes)
    assert all(set(obs.texts) <= {"do go", "do other"} for obs in walker.asked)
    assert max(obs.batch for obs in walker.asked) > 1


def test_episodes_depend_neither_on_timing_nor_on_processes(pool: Workers):
    jobs = line_jobs("go", "stuck", "third", episodes=5)

    def play(workers: Workers) -> tuple[list, list[np.ndarray]]:
        walker = Walker()
        outcomes = list(Rollout(workers, jobs, execute=3, slots=7).run(walker))
        return summary(outcomes), [obs.values["state"].numpy() for obs in walker.asked]

    expected, batches = play(pool)
    assert not all(success for _, _, success, *_ in expected), "episodes of different lengths are needed"
    for count in (1, 3):
        with Workers(make_slow, count) as slow:
            outcomes, again = play(slow)
        assert outcomes == expected
        assert len(again) == len(batches)
        assert all(np.array_equal(one, other) for one, other in zip(again, batches, strict=True))


def test_an_episode_does_not_depend_on_the_others(pool: Workers):
    jobs = line_jobs("go", episodes=6)
    together = {item.job.index: item for item in Rollout(pool, jobs, execute=4).run(Walker())}
    alone = next(iter(Rollout(pool, jobs[3:4], execute=4).run(Walker())))
    assert summary([alone]) == summary([together[3]])


def test_histories_are_the_last_steps_and_begin_by_repeating_the_first(pool: Workers):
    terms, walker = Terms(3, ("state", "image.top"), HORIZON), Walker()
    list(Rollout(pool, line_jobs("go", episodes=1, terms=terms), execute=2).run(walker))
    clocks = [obs.values["state"][0, :, 2].tolist() for obs in walker.asked]
    assert clocks == [[max(0, now - 2), max(0, now - 1), now] for now in range(0, 2 * len(clocks), 2)]
    for obs in walker.asked:
        assert obs.values["image.top"].shape == (1, 3, 4, 6, 3)
        assert obs.values["image.top"].dtype == torch.uint8
        assert obs.values["image.top"][0, :, 0, 0, 0].tolist() == obs.values["state"][0, :, 2].tolist()


@pytest.mark.parametrize(("history", "execute", "wait"), [(1, 4, 0), (1, 4, 3), (2, 3, 2), (3, 2, 0)])
def test_pictures_are_drawn_for_the_steps_that_are_looked_at_alone(history: int, execute: int, wait: int):
    terms, walker = Terms(history, ("state", "image.top"), HORIZON, wait, (0.0,)), Walker()
    with Workers(make_counting, 1) as counting:
        list(Rollout(counting, line_jobs("go", episodes=1, terms=terms), execute=execute).run(walker))
    pictures = [obs.values["image.top"][0, :, 0, 0] for obs in walker.asked]
    each = min(history, execute)
    assert [int(item[-1, 1]) for item in pictures] == [1 + each * look for look in range(len(pictures))]
    for obs, item in zip(walker.asked, pictures, strict=True):
        assert item[:, 0].tolist() == obs.values["state"][0, :, 2].tolist()


@pytest.mark.parametrize(
    ("task", "text"),
    [
        ("raise", "RuntimeError: the line broke (line_world.py, line"),
        ("die", "exit code 7"),
        ("nan", "reward at step 0 is nan"),
    ],
)
def test_what_goes_wrong_in_an_episode_is_its_error(task: str, text: str):
    jobs = line_jobs(task, "go", episodes=8)
    with Workers(make, 2) as workers:
        outcomes = list(Rollout(workers, jobs, execute=4, slots=4).run(Walker()))
    assert len(outcomes) == len(jobs)
    bad = [item for item in outcomes if item.job.task == f"line/{task}" and item.job.seed % 2]
    assert bad
    assert all(text in (item.error or "") and not item.success for item in bad)
    if task != "die":  # A process that dies takes the other episodes in it along.
        assert all(item.success and item.error is None for item in outcomes if item not in bad)
    assert any(item.success for item in outcomes)
    assert all(item.success or item.error for item in outcomes)


def test_an_action_that_is_not_finite_is_that_episodes_error(pool: Workers):
    class Broken(Walker):
        def plan(self, obs: Observation, gen: Sequence[torch.Generator]) -> Plan:
            plan = super().plan(obs, gen)
            plan.actions[obs.values["state"][:, -1, 1] > 0, 1] = torch.nan
            return plan

    outcomes = list(Rollout(pool, line_jobs("go", episodes=8), execute=4).run(Broken()))
    wrong = [item for item in outcomes if item.initial is not None and item.initial["goal"] > 0]
    assert 0 < len(wrong) < len(outcomes)
    for item in outcomes:
        if item in wrong:
            assert item.error == "action [nan] at step 1 is not finite"
            assert item.steps == 1
        else:
            assert item.success


def test_plans_that_are_too_short_are_refused(pool: Workers):
    with Workers(make, 1) as workers, pytest.raises(KinoiseError, match=rf"at least {CHUNK + 1} actions"):
        list(Rollout(workers, line_jobs("go"), execute=CHUNK + 1).run(Walker()))


def test_a_simulator_that_cannot_be_built_says_why():
    with Workers(make, 1) as workers:
        with pytest.raises(KinoiseError, match=r"no such line\. Draw one\."):
            look(workers, "line/unbuildable")
        with pytest.raises(KinoiseError, match="Draw one"):
            Rollout(workers, line_jobs("unbuildable")).prepare()


def test_experts_play_and_their_episodes_can_be_kept(pool: Workers):
    jobs = line_jobs("go", driver=ExpertDriver(noise=0.01), keep=True)
    outcomes = list(Rollout(pool, jobs).run())
    assert all(item.success for item in outcomes)
    for item in outcomes:
        state, action = item.arrays["state"], item.arrays["action"]
        assert (state.shape, action.shape) == ((item.steps, 3), (item.steps, 1))
        assert action.dtype == np.float32
        assert np.abs(action).max() <= np.float32(0.1)
        np.testing.assert_array_equal(state[:, 2], np.arange(item.steps))
        np.testing.assert_allclose(np.diff(state[:, 0]), action[:-1, 0], atol=1e-5)
    again = list(Rollout(pool, jobs, slots=2).run())
    by_index = {item.job.index: item for item in again}
    assert all(np.array_equal(item.arrays["action"], by_index[item.job.index].arrays["action"]) for item in outcomes)


def test_a_replay_repeats_the_episode(pool: Workers):
    kept = list(Rollout(pool, line_jobs("go", keep=True), execute=4).run(Walker()))
    jobs = [Job("line/go", item.job.index, item.job.seed, TERMS, driver=ReplayDriver(item.arrays["action"])) for item in kept]
    again = list(Rollout(pool, jobs).run())
    assert sorted(summary(again)) == sorted(summary(kept))
    short = Job("line/go", 0, kept[0].job.seed, TERMS, driver=ReplayDriver(kept[0].arrays["action"][:1]))
    (outcome,) = Rollout(pool, [short]).run()
    assert outcome.error is not None


@given(
    counts=st.lists(st.integers(0, 9), min_size=1, max_size=6),
    slots=st.integers(1, 40),
    choose=st.randoms(use_true_random=False),
)
def test_every_job_is_handed_out_once_and_simulators_are_few(counts: list[int], slots: int, choose):
    jobs = [Job(f"t{task}", index, 0, TERMS) for task, count in enumerate(counts) for index in range(count)]
    schedule = Schedule(jobs, slots)
    running, handed, built = dict(schedule.first), list(schedule.first.values()), len(schedule.first)
    assert len(running) <= slots
    while running:
        slot = choose.choice(sorted(running))
        job = schedule.next(slot)
        built += job is not None and job.task != running[slot].task
        del running[slot]
        if job is not None:
            running[slot] = job
            handed.append(job)
    assert sorted(handed, key=lambda job: (job.task, job.index)) == jobs
    assert built <= sum(max(1, count) for count in counts)
    for task, count in enumerate(counts):
        assert [job.index for job in handed if job.task == f"t{task}"] == list(range(count))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_no_process_outlives_the_main_one(number: signal.Signals):
    script = (
        "import multiprocessing, sys, time\n"
        f"sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        "import line_world\n"
        "from kinoise.eval.workers import Workers\n"
        "if __name__ == '__main__':\n"
        "    with Workers(line_world.make, 2):\n"
        "        print(*(child.pid for child in multiprocessing.active_children()), flush=True)\n"
        "        time.sleep(600)\n"
    )
    main = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert main.stdout is not None
    pids = [int(word) for word in main.stdout.readline().split()]
    assert len(pids) == 2
    main.send_signal(number)
    main.wait(60)
    deadline = time.monotonic() + 60
    while any(_alive(pid) for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(_alive(pid) for pid in pids)


def _alive(pid: int) -> bool:
    """Whether the process runs; a zombie that nobody waits for does not."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


@pytest.fixture(scope="module")
def metaworld() -> Iterator[Workers]:
    with Workers(envs.make, 2) as workers:
        yield workers


def test_metaworlds_expert_solves_what_it_can_and_repeats_itself(metaworld: Workers):
    task = "metaworld/drawer-close"
    simulator = look(metaworld, task)
    terms = Terms(1, ("state",), simulator.horizon)
    jobs = [Job(task, index, episode_seed(3, task, index), terms, driver=ExpertDriver()) for index in range(2)]
    outcomes = list(Rollout(metaworld, jobs).run())
    assert [item.error for item in outcomes] == [None, None]
    assert all(item.success for item in outcomes)
    assert len({str(item.initial) for item in outcomes}) == 2
    again = list(Rollout(metaworld, jobs).run())
    assert summary(again) == summary(outcomes)
    assert [item.initial for item in again] == [item.initial for item in outcomes]


def test_a_scripted_policy_solves_metaworld_through_batched_plans(metaworld: Workers):
    task = "metaworld/drawer-close"
    env = envs.make(task)

    class Scripted:
        def plan(self, obs: Observation, gen: Sequence[torch.Generator]) -> Plan:
            rows = [env.expert().act({"state": row[-1]}) for row in obs.values["state"].numpy()]
            return Plan(torch.from_numpy(np.stack(rows).astype(np.float32))[:, None], 1 / env.spec.rate, 0)

    terms = Terms(1, ("state",), env.horizon)
    jobs = [Job(task, index, episode_seed(4, task, index), terms) for index in range(2)]
    outcomes = list(Rollout(metaworld, jobs, execute=1).run(Scripted()))
    env.close()
    assert [(item.success, item.error) for item in outcomes] == [(True, None)] * 2
