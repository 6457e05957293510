"""Actions: `select_action`'s queue and history, chunks for LeRobot's real-time queue, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from kinoise.config import UsageError
from kinoise.spec import KinoiseError
from lerobot.policies.rtc.action_queue import ActionQueue
from lerobot.policies.rtc.configuration_rtc import RTCConfig

STATE, TASK = "observation.state", "open the drawer"


def seen(step: int, rows: int = 2) -> dict[str, Any]:
    return {STATE: torch.full((rows, 3), float(step)), "task": [TASK] * rows}


class Spy:
    """Counts a policy's plans, and keeps what they were made from."""

    def __init__(self, policy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls: list[dict[str, Any]] = []
        self.plans: list[Any] = []
        plan = policy.average.plan

        def spied(obs: Any, gen: Any, **given: Any) -> Any:
            self.calls.append({"obs": obs, **given})
            self.plans.append(plan(obs, gen, **given))
            return self.plans[-1]

        monkeypatch.setattr(policy.average, "plan", spied)


@pytest.mark.parametrize("kind", ["kinoise_diffusion", "kinoise_mode", "kinoise_discrete_vla"])
def test_the_queue_carries_out_so_many_actions_of_each_plan(kind, fresh, monkeypatch):
    policy = fresh(kind, chunk_size=6, n_action_steps=3)
    spy = Spy(policy, monkeypatch)
    actions = [policy.select_action(seen(step)) for step in range(7)]
    assert len(spy.plans) == 3
    for step, action in enumerate(actions):
        torch.testing.assert_close(action, spy.plans[step // 3].actions[:, step % 3], rtol=0, atol=0)
    assert [call["obs"].values["state"][0, 0, 0] for call in spy.calls] == [0, 3, 6]


def test_a_replan_knows_the_plan_before_and_reset_forgets_it(fresh, monkeypatch):
    policy = fresh(chunk_size=6, n_action_steps=3, decode={"warm": 0.4, "steps": 5})
    spy = Spy(policy, monkeypatch)
    for step in range(6):
        policy.select_action(seen(step))
    policy.reset()
    policy.select_action(seen(9))
    assert [call["previous"] is None for call in spy.calls] == [True, False, True]
    assert spy.calls[1]["previous"] is spy.plans[0]
    assert spy.calls[1]["elapsed"] == 3
    assert [plan.nfe for plan in spy.plans] == [5, 2, 5]


def test_a_history_is_the_last_frames_the_first_one_repeated(fresh, monkeypatch):
    policy = fresh(n_obs_steps=3, chunk_size=4, n_action_steps=1)
    spy = Spy(policy, monkeypatch)
    for step in range(4):
        policy.select_action(seen(step))
    frames = [call["obs"].values["state"][1, :, 0].tolist() for call in spy.calls]
    assert frames == [[0, 0, 0], [0, 0, 1], [0, 1, 2], [1, 2, 3]]
    policy.reset()
    assert policy.observe(seen(7))[STATE][:, :, 0].tolist() == [[7, 7, 7]] * 2


def test_the_same_seed_gives_the_same_actions(fresh):
    policy = fresh("kinoise_mode")
    chunks = []
    for _ in range(2):
        torch.manual_seed(5)
        chunks.append(policy.predict_action_chunk(seen(1)))
    assert torch.equal(*chunks)
    torch.manual_seed(6)
    assert not torch.equal(policy.predict_action_chunk(seen(1)), chunks[0])


@pytest.mark.parametrize("simulated", [0, 3], ids=["guided", "given"])
@pytest.mark.parametrize("kind", ["kinoise_diffusion", "kinoise_discrete_vla"])
def test_what_is_carried_out_meanwhile_begins_the_chunk(kind, simulated, fresh):
    policy = fresh(kind, chunk_size=8, n_action_steps=4, simulated_delay=simulated)
    with torch.inference_mode():  # as lerobot-eval calls policies
        before = policy.predict_action_chunk(seen(0, rows=1))[0, 2:] + 0.0
        torch.manual_seed(1)
        after = policy.predict_action_chunk(seen(1, rows=1), inference_delay=3, prev_chunk_left_over=before)
        torch.manual_seed(1)
        free = policy.predict_action_chunk(seen(1, rows=1))
    assert after.shape == (1, 8, 2)
    torch.testing.assert_close(after[0, :3], before[:3], rtol=0, atol=0)
    assert not torch.equal(after[:, 3:], free[:, 3:])


@pytest.mark.parametrize("history", [1, 2])
def test_lerobots_real_time_queue_meets_no_jump(history, fresh, monkeypatch):
    """Actions that leave the queue while a chunk is made are those with which that chunk begins."""
    policy, delay = fresh("kinoise_mode", n_obs_steps=history, chunk_size=8, n_action_steps=4), 2
    spy, queue = Spy(policy, monkeypatch), ActionQueue(RTCConfig(enabled=True))
    batch = policy.observe(seen(0, rows=1))
    first = policy.predict_action_chunk(batch, inference_delay=0, prev_chunk_left_over=queue.get_left_over())[0]
    queue.merge(first, first, 0, 0)
    for step in range(1, 5):
        assert queue.get() is not None
        index, left = queue.get_action_index(), queue.get_left_over()
        assert left is not None
        batch = policy.observe(seen(step, rows=1))
        chunk = policy.predict_action_chunk(batch, inference_delay=delay, prev_chunk_left_over=left)[0]
        frames = spy.calls[-1]["obs"].values["state"][0, :, 0].tolist()
        assert frames == list(range(step + 1 - history, step + 1))
        meanwhile = torch.stack([queue.get() for _ in range(delay)])
        torch.testing.assert_close(chunk[:delay], meanwhile, rtol=0, atol=0)
        queue.merge(chunk, chunk, delay, index)
        assert queue.qsize() == 8 - delay


def test_a_left_over_is_a_warm_start(fresh, monkeypatch):
    policy = fresh(chunk_size=6, n_action_steps=3, decode={"warm": 0.2, "steps": 10})
    spy = Spy(policy, monkeypatch)
    left = policy.predict_action_chunk(seen(0))[:, 1:]
    policy.predict_action_chunk(seen(1), inference_delay=0, prev_chunk_left_over=left)
    policy.predict_action_chunk(seen(1), inference_delay=2, prev_chunk_left_over=left[:, :0])
    assert [plan.nfe for plan in spy.plans] == [10, 2, 10]
    assert torch.equal(spy.calls[1]["previous"].actions, left)


def test_a_delay_longer_than_the_left_over_keeps_what_there_is(fresh):
    policy = fresh(chunk_size=6, n_action_steps=3)
    left = torch.full((1, 2, 2), 0.5)
    chunk = policy.predict_action_chunk(seen(1, rows=1), inference_delay=4, prev_chunk_left_over=left)
    torch.testing.assert_close(chunk[:, :2], left, rtol=0, atol=0)


def test_every_row_has_its_own_task(fresh):
    policy = fresh("kinoise_mode")
    texts = ["open the drawer", "push the cube to the left"]
    seen_by = policy.average.spec.language
    torch.manual_seed(0)
    both = policy.predict_action_chunk({**seen(1), "task": texts})
    torch.manual_seed(0)
    same = policy.predict_action_chunk({**seen(1), "task": texts[0]})
    assert seen_by
    torch.testing.assert_close(both[0], same[0])
    assert not torch.equal(both[1], same[1])


def test_without_language_no_task_is_needed(fresh):
    policy = fresh(language=False)
    assert policy.predict_action_chunk({STATE: torch.zeros(2, 3)}).isfinite().all()


def test_images_of_other_sizes_are_brought_to_the_policys(fresh):
    policy = fresh("kinoise_discrete_vla", observations=None, resize_shape=(32, 32))
    assert policy.average.spec.observations["image.top"].shape == (32, 32, 3)
    for size in (40, 96):
        image = torch.rand(2, 3, size, size)
        assert policy.predict_action_chunk({**seen(0), "observation.images.top": image}).isfinite().all()


def test_an_image_comes_back_as_the_bytes_that_were_recorded(fresh, monkeypatch):
    policy = fresh("kinoise_discrete_vla", observations=None)
    spy = Spy(policy, monkeypatch)
    recorded = torch.randint(0, 256, (2, 40, 40, 3), dtype=torch.uint8)
    given = recorded.permute(0, 3, 1, 2)
    for image in (given, given.float() / 255):
        policy.predict_action_chunk({**seen(0), "observation.images.top": image})
    assert all(torch.equal(call["obs"].values["image.top"][:, 0], recorded) for call in spy.calls)


@pytest.mark.parametrize("steps", [2, 8], ids=["little left", "all left"])
def test_a_delay_beyond_what_is_left_counts_as_much_as_there_is(steps, fresh, caplog):
    """A loop that plans for the longest delay it has seen goes on after one slow plan, as with LeRobot's own policies."""
    policy = fresh(chunk_size=8, n_action_steps=4)
    left, most = policy.predict_action_chunk(seen(0))[:, :steps], min(steps, 7)
    assert policy.predict_action_chunk(seen(1), inference_delay=50).isfinite().all()  # nothing is left: nothing to say
    assert "inference_delay" not in caplog.text
    for delay in (50, 8, 9):
        chunk = policy.predict_action_chunk(seen(1), inference_delay=delay, prev_chunk_left_over=left)
        torch.testing.assert_close(chunk[:, :most], left[:, :most], rtol=0, atol=0)
    assert caplog.text.count("the robot runs out of actions") == 1
    assert f"inference_delay=50: {steps} actions are left, chunks have 8: {most} of them" in caplog.text


REFUSED = {
    "noise": (UsageError, "noise", {}, {"noise": torch.zeros(1)}),
    "horizon": (UsageError, "execution_horizon", {}, {"execution_horizon": 10}),
    "negative delay": (UsageError, "inference_delay=-1", {}, {"inference_delay": -1}),
    "rows": (UsageError, "prev_chunk_left_over", {}, {"prev_chunk_left_over": torch.zeros(3, 4, 2)}),
    "one row for two": (UsageError, "prev_chunk_left_over", {}, {"prev_chunk_left_over": torch.zeros(4, 2)}),
    "NaN": (KinoiseError, "NaN", {}, {"prev_chunk_left_over": torch.full((2, 4, 2), float("nan"))}),
    "no task": (KinoiseError, "a text for each", {"task": None}, {}),
    "too few tasks": (KinoiseError, "a text for each of 2 rows", {"task": [TASK]}, {}),
    "frames": (KinoiseError, "steps of history", {STATE: torch.zeros(2, 2, 3)}, {}),
    "dimensions": (KinoiseError, "state", {STATE: torch.zeros(2, 5)}, {}),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_planned_from_is_refused(case, fresh):
    error, words, batch, given = REFUSED[case]
    with pytest.raises(error, match=words):
        fresh(chunk_size=6, n_action_steps=3).predict_action_chunk({**seen(0), **batch}, **given)


def test_what_is_missing_is_named_with_the_option_that_renames(fresh):
    with pytest.raises(KinoiseError, match=r"lacks \['observation.state'\].*--rename_map"):
        fresh().select_action({"observation.agent": torch.zeros(2, 3), "task": TASK})


def test_several_frames_need_a_time_axis_or_observe(fresh):
    policy = fresh(n_obs_steps=2)
    with pytest.raises(KinoiseError, match=r"policy\.observe"):
        policy.predict_action_chunk(seen(0))
    assert policy.predict_action_chunk(policy.observe(seen(0))).shape == (2, 12, 2)


def test_another_number_of_rows_needs_a_reset(fresh):
    policy = fresh()
    policy.select_action(seen(0, rows=2))
    with pytest.raises(KinoiseError, match="reset"):
        policy.select_action(seen(1, rows=3))


def test_an_image_out_of_range_is_refused(fresh):
    policy = fresh("kinoise_discrete_vla", observations=None)
    with pytest.raises(KinoiseError, match="from 0 to 1"):
        policy.predict_action_chunk({**seen(0), "observation.images.top": torch.full((2, 3, 40, 40), 200.0)})
