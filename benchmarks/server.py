"""What a policy costs behind `kinoise serve`: `python -m benchmarks.server RUN` (loopback, one thread on each side).

One client's plan beside the same plan in this process, alternating: what the wire, the checks and the threads add. Target: at
most 2 ms at the median. Then the plans a second of eight clients at once beside those of one, alternating: what sharing plans
gains. Target: at least 3 times as many. The server runs in a process of its own, the clients in threads of this one; each asks
again as soon as it is answered. `rows` is how much of that the policy has to give: its plans a second by eights beside those
one by one, in this process.
"""

from __future__ import annotations

import re
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np
import torch
from kinoise.deploy.client import PolicyClient
from kinoise.deploy.clock import prompt_threads
from kinoise.policies.base import Policy
from kinoise.policies.checkpoint import load_policy, resolve
from kinoise.policies.example import example

from .record import milliseconds, ratio, write

ROUNDS = 300
CLIENTS = 8
TURNS = 10
SECONDS = 1.0


@contextmanager
def serving(run: Path) -> Iterator[str]:
    """The URL of the command, run with its defaults and one thread."""
    command = [sys.executable, "-m", "kinoise.cli", "serve", str(run), "port=0", "threads=1", "device=cpu"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            found = re.search(r"ws://\S+:\d+", line)
            if found is None:
                sys.exit(f"the server did not start: {line}")
            yield found[0]
        finally:
            process.terminate()


def question(policy: Policy) -> tuple[dict[str, np.ndarray], str]:
    obs = example(policy)
    return {key: item[0].numpy() for key, item in obs.values.items()}, obs.texts[0]


def latency(policy: Policy, url: str) -> dict:
    """Seconds of a plan here and there, round by round."""
    obs, gen, asked = example(policy), [torch.Generator().manual_seed(0)], question(policy)
    times: dict[str, list[float]] = {"here": [], "served": []}
    with PolicyClient(url) as client:
        sides = {"here": lambda: policy.plan(obs, gen), "served": lambda: client.plan(*asked)}
        for turn in range(30 + ROUNDS):
            for name, side in sides.items():
                started = time.perf_counter()
                side()
                if turn >= 30:
                    times[name].append(time.perf_counter() - started)
    added = np.subtract(times["served"], times["here"]).tolist()
    return {"here_ms": milliseconds(times["here"]), "served_ms": milliseconds(times["served"]), "added_ms": milliseconds(added)}


def rate(url: str, clients: int, asked: tuple[dict[str, np.ndarray], str]) -> float:
    """Plans a second that so many clients get together."""
    with ExitStack() as stack, ThreadPoolExecutor(clients) as pool:
        connected = [stack.enter_context(PolicyClient(url)) for _ in range(clients)]
        began = time.perf_counter()

        def ask(client: PolicyClient) -> int:
            count = 0
            while time.perf_counter() < began + SECONDS:
                client.plan(*asked)
                count += 1
            return count

        return sum(pool.map(ask, connected)) / (time.perf_counter() - began)


def throughput(policy: Policy, url: str) -> dict:
    rates: dict[int, list[float]] = {1: [], CLIENTS: []}
    for _ in range(TURNS):
        for clients, found in rates.items():
            found.append(rate(url, clients, question(policy)))
    medians = {f"plans_per_s_{clients}": round(float(np.median(found)), 1) for clients, found in rates.items()}
    return {**medians, **ratio(rates[CLIENTS], rates[1])}


def rows(policy: Policy) -> dict:
    """Plans a second by eights beside one by one, in this process."""
    one, seconds = example(policy), {1: list[float](), CLIENTS: list[float]()}
    for turn in range(10 + ROUNDS // 3):
        for count, found in seconds.items():
            obs, gens = one.rows([0] * count), [torch.Generator().manual_seed(row) for row in range(count)]
            started = time.perf_counter()
            policy.plan(obs, gens)
            if turn >= 10:
                found.append((time.perf_counter() - started) / count)
    return ratio(seconds[1], seconds[CLIENTS])


def main(runs: list[str]) -> None:
    if len(runs) != 1:
        sys.exit("usage: python -m benchmarks.server RUN")
    torch.set_num_threads(1)
    policy = load_policy(runs[0], device="cpu")
    with serving(Path(runs[0])) as url, prompt_threads():
        figures = {"latency": latency(policy, url), "throughput": throughput(policy, url), "rows": rows(policy)}
    what = {"policy": policy.config.name, "parameters": policy.parameter_count, "checkpoint": resolve(runs[0]).name}
    write("server", {"targets": {"added_ms": 2.0, "ratio": 3.0}, "clients": CLIENTS, **what, **figures})


if __name__ == "__main__":
    main(sys.argv[1:])
