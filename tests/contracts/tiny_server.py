"""A policy server in this process with a policy that plans in a millisecond, and one that plans when a test lets it."""

from __future__ import annotations

import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from kinoise.deploy.batching import connection_generator
from kinoise.deploy.messages import Served
from kinoise.deploy.server import Options, PolicyServer, background
from kinoise.policies import DiffusionPolicy, build_policy, choices
from kinoise.policies.base import Policy
from kinoise.spec import Feature, Observation, Plan, Spec, Stats
from omegaconf import OmegaConf
from websockets.sync.client import connect

TEXTS = ("open the drawer", "close the drawer")


SPEC = Spec(
    {"state": Feature((5,)), "image.front": Feature((48, 48, 3), kind="image")},
    Feature((3,), low=(-1.0,) * 3, high=(1.0,) * 3),
    rate=20.0,
    control="delta",
)


RAMP = (tuple(np.linspace(-1, 1, 257).tolist()),) * 3


STATS = {
    key: Stats((0.1,) * n, (0.5,) * n, (-1.0,) * n, (1.0,) * n, (-0.9,) * n, (0.9,) * n, 9, RAMP if key == "action" else ())
    for key, n in (("state", 5), ("image.front", 3), ("action", 3))
}


SMALL = {"network": {"width": 32, "depth": 1, "heads": 2}, "chunk": 6, "execute": 2, "observations": ["state"]}


def small(name: str = "diffusion", **over: Any) -> Policy:
    config = OmegaConf.merge(OmegaConf.structured(choices()[name]), SMALL, over)
    policy = build_policy(OmegaConf.to_object(config), SPEC, STATS, TEXTS, seed=0)
    with torch.no_grad():  # fresh weights end in zeros, which would make all plans alike
        gen = torch.Generator().manual_seed(1)
        for item in policy.parameters():
            item.add_(0.1 * torch.randn(item.shape, generator=gen))
    return policy.eval()


def state(seed: int = 0, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((*shape, 5), dtype=np.float32)


def question(seed: int = 0, **more: Any) -> dict[str, Any]:
    return {"state": state(seed), "prompt": TEXTS[seed % 2], **more}


def expected(policy: Policy, seeds: list[int], number: int = 0) -> list[np.ndarray]:
    """What the server's `number`-th connection gets for these questions, one after another, by the policy itself."""
    gen = connection_generator(0, number)
    plans = []
    for seed in seeds:
        obs = Observation(
            {"state": torch.from_numpy(state(seed))[None, None]}, (TEXTS[seed % 2],), torch.zeros(1, dtype=torch.long)
        )
        plans.append(policy.plan(obs, [gen]).actions[0].numpy())
    return plans


def assert_same_plan(actual: np.ndarray | torch.Tensor, wanted: np.ndarray) -> None:
    """To float32's last digits: matrix products in the server's thread may round otherwise than in this one."""
    np.testing.assert_allclose(actual, wanted, rtol=0, atol=1e-5)


@contextmanager
def serving(policy: Policy, port: int = 0, **options: Any) -> Iterator[tuple[PolicyServer, str]]:
    server = PolicyServer(policy, Served.of(policy), Options(**options))
    with background(server, port=port) as url:
        yield server, url


@contextmanager
def talking(url: str, **more: Any) -> Iterator[Any]:
    """A bare websocket, past the server's first message."""
    with connect(url, compression=None, proxy=None, **more) as connection:
        connection.recv(5)
        yield connection


def get(url: str, token: str | None = None) -> tuple[int, str]:
    """Status and text of a page of the server."""
    headers = {} if token is None else {"Authorization": f"Api-Key {token}"}
    request = urllib.request.Request(url.replace("ws://", "http://"), headers=headers)
    try:
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=5) as response:
            return response.status, response.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 5
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


class Slow(DiffusionPolicy):
    """Plans are noise; one waits until `go` is set, and fails at a certain instruction.

    `batches` are the rows of each, `told` is what the last was told of the plan before.
    """

    def __init__(self, **decode: Any) -> None:
        super().__init__(small(decode=decode).config, SPEC, STATS, TEXTS)
        self.eval()
        self.go, self.batches = threading.Event(), list[int]()
        self.go.set()

    def plan(self, obs: Observation, gen: Any, **told: Any) -> Plan:
        self.batches.append(obs.batch)
        self.told = told
        noise = torch.stack([torch.randn(6, 3, generator=item) for item in gen])
        assert self.go.wait(10)
        if "fail" in obs.texts:
            raise ValueError("such a text")
        return Plan(noise, dt=0.05, nfe=1)
