"""Questions that share a plan: which do, that nobody waits in vain, and that sharing changes nobody's noise."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch
from kinoise.deploy.batching import Batcher, connection_generator
from kinoise.deploy.client import PolicyClient
from kinoise.deploy.messages import Question
from kinoise.policies.base import Policy
from tiny_server import TEXTS, Slow, expected, serving, small, state, until


def ask(batcher: Batcher, number: int, **more: Any) -> Any:
    fields = {"instruction": TEXTS[0], **more}
    return batcher.ask(Question({"state": state(number, 1)}, **fields), connection_generator(0, number))


def test_every_connection_has_its_own_noise_again_and_again() -> None:
    places = [(seed, number) for seed in (0, 1, 2**63 - 1) for number in (0, 1, 2)]
    first, second = ([torch.randn(4, generator=connection_generator(*place)) for place in places] for _ in range(2))
    for row, item in enumerate(first):
        assert [torch.equal(item, other) for other in second] == [row == other for other in range(len(second))]


def test_only_questions_with_equal_prefixes_share_a_plan() -> None:
    policy, before = Slow(), np.zeros((6, 3), np.float32)
    batcher = Batcher(policy, rows=8, wait=5.0)
    batcher.company = 5
    kinds = [{}, {"previous": before, "prefix": 2}, {}, {"previous": before, "prefix": 2}, {"previous": before, "prefix": 1}]
    futures = [ask(batcher, number, **kind) for number, kind in enumerate(kinds)]
    time.sleep(0.05)  # the first batch has gone; those left are fewer than may ask, and would be waited for
    assert batcher.close(5.0)
    assert [item.result(0).rows for item in futures] == [2, 2, 2, 2, 1]


def test_a_batch_takes_so_many_and_leaves_the_rest_for_the_next() -> None:
    policy = Slow()
    batcher = Batcher(policy, rows=3, wait=5.0)
    batcher.company = 4
    futures = [ask(batcher, number) for number in range(4)]
    assert [item.result(5).rows for item in futures[:3]] == [3, 3, 3]
    assert batcher.close(5.0)
    assert futures[3].result(1).rows == 1


def test_a_question_that_fails_spoils_no_other_and_takes_no_noise() -> None:
    batcher = Batcher(Slow(), rows=3, wait=5.0)
    batcher.company = 3
    futures = [ask(batcher, number, instruction=text) for number, text in enumerate((TEXTS[0], "fail", TEXTS[1]))]
    with pytest.raises(ValueError, match="such a text"):
        futures[1].result(5)
    for number in (0, 2):
        wanted = torch.randn(6, 3, generator=connection_generator(0, number))
        assert torch.equal(futures[number].result(5).plan.actions[0], wanted)
    assert batcher.close(1.0)


@pytest.fixture(scope="module")
def policy() -> Policy:
    return small()


def test_clients_at_once_get_what_they_would_get_alone(policy: Policy) -> None:
    count, rounds = 6, 4
    with serving(policy, wait=1.0) as (server, url):
        clients = [PolicyClient(url) for _ in range(count)]
        until(lambda: server.metrics.clients == count)

        def ask(number: int) -> list[np.ndarray]:
            seeds = [10 * number + turn for turn in range(rounds)]
            return [clients[number].plan({"state": state(seed)}, TEXTS[seed % 2]).actions[0].numpy() for seed in seeds]

        with ThreadPoolExecutor(count) as pool:
            answers = list(pool.map(ask, range(count)))
        for client in clients:
            client.close()
        assert server.metrics.rows.sum == count * count * rounds, "all waited for all"
    for number, found in enumerate(answers):
        wanted = expected(policy, [10 * number + turn for turn in range(rounds)], number)
        np.testing.assert_allclose(found, wanted, atol=1e-5, rtol=1e-4)


def test_one_client_is_not_made_to_wait(policy: Policy) -> None:
    with serving(policy, wait=5.0) as (_, url), PolicyClient(url) as client:
        assert client.plan({"state": state()}, TEXTS[0]).timing["server_wait"] < 2
