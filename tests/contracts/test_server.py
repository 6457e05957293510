"""The policy server over real websockets: what it answers, whom it refuses, and that one client can't harm another."""

from __future__ import annotations

import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from kinoise.deploy.client import PolicyClient, ServerError, ServerTimeout
from kinoise.deploy.messages import Reader, Served
from kinoise.policies.base import Policy
from kinoise.spec import Spec
from kinoise.wire import Limits, WireError, pack, unpack
from tiny_server import TEXTS, Slow, assert_same_plan, expected, get, question, serving, small, state, talking, until
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect


@pytest.fixture(scope="module")
def policy() -> Policy:
    return small()


def test_it_says_what_it_serves_and_answers_as_the_policy_does(policy: Policy) -> None:
    with serving(policy) as (_, url), connect(url, compression=None, proxy=None) as connection:
        first = unpack(connection.recv(5), Limits(depth=8))
        assert Served.from_message(first) == Served.of(policy)
        assert Spec.from_json(first["spec"]) == policy.spec
        for wanted, seed in zip(expected(policy, [0, 1, 2]), range(3), strict=True):
            connection.send(pack(question(seed, id=f"q{seed}")))
            answer = unpack(connection.recv(5))
            assert_same_plan(answer["actions"], wanted)
            assert answer["id"] == f"q{seed}"
            assert answer["policy_timing"]["infer_ms"] > 0
            assert ("prev_total_ms" in answer["server_timing"]) == (seed > 0)


def test_an_openpi_client_needs_no_more_than_an_observation_and_a_prompt(policy: Policy) -> None:
    with serving(policy) as (_, url), talking(url) as connection:
        for key in ("state", "observation/state"):
            connection.send(pack({key: state(0).astype(np.float64), "prompt": TEXTS[0]}))
            assert set(unpack(connection.recv(5))) == {"actions", "nfe", "dt", "policy_timing", "server_timing"}


MALFORMED: list[tuple[Any, str]] = [
    ("text", "came a text"),
    (b"\xc1", "not valid"),
    (pack({}), "needs an instruction|lacks"),
    (pack({"prompt": TEXTS[0]}), r"lacks \['state'\]"),
    (pack({"state": state()}), "needs an instruction"),
    (pack(question(prompt=3)), "expected a text"),
    (pack(question(wrist=state())), "'wrist' is unknown"),
    (pack(question(**{"observation/state": state()})), "comes twice"),
    (pack({"state": [0.0] * 5, "prompt": "x"}), "expected an array of numbers, came a list"),
    (pack({"state": np.zeros(5, np.uint8), "prompt": "x"}), "expected an array of numbers, came uint8"),
    (pack({"state": np.zeros(6, np.float32), "prompt": "x"}), r"shape \[6\]; expected \[5\] or \[1, 5\]"),
    (pack({"state": np.zeros((2, 5), np.float32), "prompt": "x"}), r"shape \[2, 5\]"),
    (pack({"state": np.full(5, np.nan), "prompt": "x"}), "NaN"),
    (pack({"state": np.full(5, np.inf), "prompt": "x"}), "NaN"),
    (pack({"state": np.full(5, 1e300), "prompt": "x"}), "beyond float32"),
    (pack(question(prefix=1)), "send it as previous"),
    (pack(question(elapsed=-1)), "at least 0"),
    (pack(question(budget=0)), "budget: expected seconds, more than 0"),
    (pack(question(budget="soon")), "budget: expected seconds"),
    (pack(question(prefix=True)), "whole number"),
    (pack(question(previous=np.zeros((6, 2), np.float32))), "previous has shape"),
    (pack(question(previous=np.full((6, 3), np.nan))), "NaN"),
    (pack(question(previous=np.zeros((6, 3)), elapsed=7)), "has 6 actions"),
    (pack(question(previous=np.zeros((9, 3)), prefix=7)), "chunk of 6"),
    (pack(question(previous=np.zeros((6, 3)), previous_confidence=np.zeros(3))), "previous_confidence has shape"),
    (pack(question(id=1.5)), "id: expected"),
]


def test_a_bad_question_is_answered_in_words_and_ends_that_connection_alone(policy: Policy) -> None:
    with serving(policy) as (server, url), PolicyClient(url) as other:
        for count, (frame, said) in enumerate(MALFORMED):
            with talking(url) as connection:
                connection.send(frame)
                answer = connection.recv(5)
                assert isinstance(answer, str)
                assert re.search(said, answer), answer
                with pytest.raises(ConnectionClosed):
                    connection.recv(5)
            until(lambda count=count: server.metrics.errors.total() == count + 1)
        assert other.plan({"state": state()}, TEXTS[0]).actions.shape == (1, 6, 3)
        assert server.metrics.errors["malformed"] == len(MALFORMED)
        until(lambda: server.metrics.clients == 1)


def test_a_plan_that_fails_is_answered_in_words_and_ends_that_connection_alone() -> None:
    with serving(Slow()) as (server, url), PolicyClient(url) as other:
        with talking(url) as connection:
            connection.send(pack(question(prompt="fail")))
            assert "planning failed: ValueError: such a text" in connection.recv(10)
            with pytest.raises(ConnectionClosed, match="1011"):
                connection.recv(10)
        assert other.plan({"state": state()}, TEXTS[0]).nfe == 1
        assert server.metrics.errors["planning"] == 1


def test_a_message_beyond_the_limit_ends_that_connection_alone(policy: Policy) -> None:
    with serving(policy, limits=Limits(message=4096)) as (server, url), PolicyClient(url) as other:
        with talking(url) as connection:
            connection.send(b"\0" * 5000)
            with pytest.raises(ConnectionClosed, match="1009"):
                connection.recv(5)
        with pytest.raises(ServerError, match="too large"):
            other.plan({"state": state(0, 1, 500)}, TEXTS[0])
        assert other.plan({"state": state()}, TEXTS[0]).nfe > 0
        assert server.metrics.errors["oversized"] == 2


def test_histories_come_whole_from_the_client() -> None:
    policy = small(history=2)
    with serving(policy) as (_, url), PolicyClient(url) as client:
        assert client.plan({"state": state(0, 2)}, TEXTS[0]).nfe > 0
        with pytest.raises(ServerError, match=r"the policy sees 2.*The server keeps none"):
            client.plan({"state": state()}, TEXTS[0])


def test_images_go_by_the_names_that_robots_use() -> None:
    policy = small(observations=["state", "image.front"], encoder={"pool": "average"})
    read, image = Reader(policy), np.zeros((48, 48, 3), np.uint8)
    names = ("image.front", "image/front", "observation/image.front", "observation/image/front")
    for name in names:
        assert read({**question(), name: image}).values["image.front"].shape == (1, 48, 48, 3)
    for bad in (image.astype(np.float32), image[:-1], "text"):
        with pytest.raises(WireError, match=r"image\.front"):
            read({**question(), "image.front": bad})


def test_new_instructions_are_taken_until_they_would_fill_the_memory(policy: Policy) -> None:
    read = Reader(policy)
    for number in range(1024):
        read({**question(), "prompt": f"task {number}"})
    read({**question(), "prompt": "task 7"})
    with pytest.raises(WireError, match="different instructions"):
        read({**question(), "prompt": "one more"})
    assert read(question()).instruction == TEXTS[0]


def test_a_policy_without_language_takes_no_instruction() -> None:
    policy = small()
    policy.spec = replace(policy.spec, language=False)
    read = Reader(policy)
    assert read({"state": state(), "prompt": ""}).instruction == ""
    with pytest.raises(WireError, match="knows no language"):
        read(question())


def test_only_those_with_the_token_are_let_in(policy: Policy) -> None:
    with serving(policy, token="open sesame") as (server, url):
        assert get(f"{url}/healthz") == (200, "OK\n")
        for token in (None, "open sesame!", "", "open"):
            assert get(f"{url}/metrics", token)[0] == 401
            with pytest.raises(ServerError, match="token"):
                PolicyClient(url, token)
        with (
            pytest.raises(InvalidStatus, match="401"),
            talking(url, additional_headers={"Authorization": "Bearer open sesame"}),
        ):
            pass
        with (
            pytest.raises(InvalidStatus, match="401"),
            talking(url, additional_headers=[("Authorization", "Api-Key open sesame")] * 2),
        ):
            pass
        assert get(f"{url}/metrics", "open sesame")[0] == 200
        with PolicyClient(url, "open sesame") as client:
            assert client.plan({"state": state()}, TEXTS[0]).nfe > 0
        assert server.metrics.errors["unauthorized"] == 10


def test_a_web_page_is_not_let_in(policy: Policy) -> None:
    with serving(policy) as (_, url), pytest.raises(InvalidStatus, match="403"), talking(url, origin="http://example.org"):
        pass


def test_no_more_clients_than_allowed(policy: Policy) -> None:
    with serving(policy, clients=1) as (server, url), PolicyClient(url) as client:
        with pytest.raises(ServerTimeout, match="no more are taken"):
            PolicyClient(url, timeout=0.3)
        client.close()
        until(lambda: server.metrics.clients == 0)
        PolicyClient(url).close()


def test_metrics_count_what_happened(policy: Policy) -> None:
    with serving(policy) as (server, url), PolicyClient(url) as client:
        for seed in range(3):
            client.plan({"state": state(seed)}, TEXTS[0])
        with talking(url) as connection:
            connection.send("text")
            connection.recv(5)
        until(lambda: server.metrics.clients == 1)
        lines = [line for line in get(f"{url}/metrics")[1].splitlines() if not line.startswith("#")]
    found = dict(line.rsplit(" ", 1) for line in lines)
    assert found["kinoise_requests_total"] == "3"
    assert found["kinoise_clients"] == "1"
    assert found["kinoise_connections_total"] == "2"
    assert found['kinoise_errors_total{kind="malformed"}'] == "1"
    for name in ("request_seconds", "plan_seconds", "batch_rows"):
        assert found[f"kinoise_{name}_count"] == found[f'kinoise_{name}_bucket{{le="+Inf"}}'] == "3"
    assert found['kinoise_batch_rows_bucket{le="1"}'] == "3"


def test_a_server_that_ends_finishes_what_it_plans() -> None:
    policy = Slow()
    stack = serving(policy)
    _, url = stack.__enter__()
    client, idle = PolicyClient(url), PolicyClient(url)
    policy.go.clear()
    with ThreadPoolExecutor(2) as pool:
        answer = pool.submit(client.plan, {"state": state()}, TEXTS[0])
        until(lambda: bool(policy.batches))
        ending = pool.submit(stack.__exit__, None, None, None)
        until(lambda: idle._connection is not None and idle._connection.close_code == 1001)
        assert not answer.done()
        policy.go.set()
        assert answer.result(5).nfe == 1
        ending.result(5)


def test_a_plan_that_does_not_end_does_not_keep_the_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kinoise.deploy.server.PATIENCE", 0.2)
    policy = Slow()
    policy.go.clear()
    with ThreadPoolExecutor(1) as pool:
        with serving(policy) as (_, url), talking(url) as connection:
            connection.send(pack(question()))
            until(lambda: bool(policy.batches))
            waiting = pool.submit(connection.recv, 5)
        with pytest.raises(ConnectionClosed):
            waiting.result(0)
    policy.go.set()
