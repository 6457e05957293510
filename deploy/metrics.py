"""What a server counted, in Prometheus's text format (version 0.0.4)."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import accumulate

SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
ROWS = (1, 2, 4, 8, 16, 32, 64)


class Histogram:
    """Counts by upper bounds, the last of them infinity."""

    def __init__(self, bounds: Sequence[float | int]) -> None:
        self.bounds, self.counts, self.sum = tuple(bounds), [0] * (len(bounds) + 1), 0.0

    def add(self, value: float | int) -> None:
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value

    def lines(self, name: str) -> Iterator[str]:
        for bound, count in zip((*self.bounds, "+Inf"), accumulate(self.counts), strict=True):
            yield f'{name}_bucket{{le="{bound}"}} {count}'
        yield f"{name}_sum {self.sum:.9g}"
        yield f"{name}_count {sum(self.counts)}"


class Metrics:
    """One server's figures; written and read in the thread of its connections alone.

    `latency` is from a whole message to its answer's bytes, `planning` the plan's own part, `rows` how many questions shared a
    plan, counted for each of them.
    """

    def __init__(self) -> None:
        self.requests = 0
        self.clients = 0
        self.connections = 0
        self.errors: Counter[str] = Counter(dict.fromkeys(("unauthorized", "full", "malformed", "oversized", "planning"), 0))
        self.latency, self.planning, self.rows = Histogram(SECONDS), Histogram(SECONDS), Histogram(ROWS)

    def text(self) -> str:
        return "\n".join(self._lines()) + "\n"

    def _lines(self) -> Iterator[str]:
        for name, kind, value, about in (
            ("requests_total", "counter", self.requests, "Questions that were answered with a plan."),
            ("connections_total", "counter", self.connections, "Clients that have ever connected."),
            ("clients", "gauge", self.clients, "Clients that are connected."),
        ):
            yield from _head(name, kind, about)
            yield f"kinoise_{name} {value}"
        yield from _head("errors_total", "counter", "Connections refused, and questions that could not be answered.")
        for kind, count in self.errors.items():
            yield f'kinoise_errors_total{{kind="{kind}"}} {count}'
        for name, histogram, about in (
            ("request_seconds", self.latency, "From a whole question to its answer."),
            ("plan_seconds", self.planning, "The part of it that the policy took."),
            ("batch_rows", self.rows, "Questions that shared a plan, for each question."),
        ):
            yield from _head(name, "histogram", about)
            yield from histogram.lines(f"kinoise_{name}")


def _head(name: str, kind: str, about: str) -> Iterator[str]:
    yield f"# HELP kinoise_{name} {about}"
    yield f"# TYPE kinoise_{name} {kind}"
