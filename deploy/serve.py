"""`kinoise serve`: a trained policy for robots elsewhere, over a websocket."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field

import torch
from omegaconf import MISSING

from ..config import UsageError, check_seed, parse
from ..policies.base import Policy
from ..policies.checkpoint import FRAME, identity, load_policy, resolve
from ..policies.decode import DecodeChanges
from ..policies.example import example
from ..spec import KinoiseError
from ..wire import Limits
from .clock import prompt_threads
from .messages import Served
from .server import Options, PolicyServer
from .serving import check_access, log

ABOUT = """Answers observations with plans over a websocket, in the protocol of openpi's client, until Ctrl-C or SIGTERM. On the
same port http://HOST:PORT/healthz says that it runs and /metrics how it does. With a token, clients have to send
'Authorization: Api-Key TOKEN'; token='${oc.env:NAME}' takes it from the environment, where other users don't see it."""

SMALLEST = 1 << 12

LONG = 3600.0
"""Seconds: a budget in which every plan fits, even one that has to be compiled."""


@dataclass
class Settings:
    run: str = field(default=MISSING, metadata={"help": "a run or a checkpoint"})
    host: str = field(default="127.0.0.1", metadata={"help": "address to listen on; others than loopback need a token"})
    port: int = field(default=8000, metadata={"help": "0 takes a free one and prints it"})
    token: str | None = field(default=None, metadata={"help": "what clients have to know; nothing if null"})
    insecure: bool = field(default=False, metadata={"help": "let anyone in, on any address, without a token"})
    max_bytes: int = field(default=16 << 20, metadata={"help": "of one message; of one array half of it"})
    clients: int = field(default=64, metadata={"help": "connected at once, at most"})
    batch: int = field(default=8, metadata={"help": "clients whose questions may share a plan"})
    wait_ms: float = field(default=2.0, metadata={"help": "that a question waits for others, where there are several clients"})
    seed: int = field(default=0, metadata={"help": "noise is a function of it and of the connection's number"})
    ema: bool = field(default=True, metadata={"help": "use the averaged weights"})
    frame: str | None = field(default=None, metadata={"help": FRAME})
    device: str = field(default="auto", metadata={"help": "of the policy: cpu, cuda, or auto: cuda where there is one"})
    compile: bool = field(default=False, metadata={"help": "compile plans: the first of a kind takes seconds, the others less"})
    bf16: bool = field(default=False, metadata={"help": "multiply in bfloat16, which rounds; pays for large networks"})
    threads: int | None = field(default=None, metadata={"help": "torch's threads; its own number if null"})
    decode: DecodeChanges = field(default_factory=DecodeChanges)

    def __post_init__(self) -> None:
        check_seed(self.seed)
        check_access(self.host, self.port, self.token, self.insecure)
        for name, least in (("max_bytes", SMALLEST), ("clients", 1), ("batch", 1), ("threads", 1)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise UsageError(f"{name}={value}: expected at least {least}")
        if not 0 <= self.wait_ms <= 1000:
            raise UsageError(f"wait_ms={self.wait_ms}: expected between 0 and 1000")

    def options(self) -> Options:
        limits = Limits(message=self.max_bytes, array=self.max_bytes // 2)
        return Options(self.token, self.seed, self.batch, self.wait_ms / 1e3, self.clients, limits, self.threads)


def main(argv: Sequence[str]) -> int:
    """Exit codes: 130 after SIGINT, 143 after SIGTERM, when what was being planned has been sent.

    Raises KinoiseError when the policy can't be loaded or plan, or the port can't be had.
    """
    settings = parse("serve", Settings, argv, positional="run", about=ABOUT)
    checkpoint = resolve(settings.run)
    policy = load_policy(
        checkpoint,
        ema=settings.ema,
        device=settings.device,
        decode=settings.decode.given(),
        compile=settings.compile,
        bf16=settings.bf16,
        frame=settings.frame,
    )
    served = Served.of(policy, identity(policy, checkpoint, settings.ema)["sha256"])
    for rows in range(1, settings.batch + 1) if settings.compile else {1, settings.batch}:
        warm_up(policy, rows, replan=settings.compile)
    with prompt_threads():
        return asyncio.run(_serve(PolicyServer(policy, served, settings.options(), log), settings, served))


def warm_up(policy: Policy, rows: int, replan: bool = False) -> None:
    """Plans once: a first plan allocates and compiles, and may as well fail before anyone relies on it.

    Args:
        replan: also against the clock, from that plan, and with one of its actions kept: these are compiled separately.
    """
    obs = example(policy, rows)
    try:
        gen = [torch.Generator().manual_seed(0) for _ in range(rows)]
        plan = policy.plan(obs, gen)
        if replan:
            policy.plan(obs, gen, budget=LONG)
            for prefix in (0, 1):
                policy.plan(obs, gen, previous=plan, prefix=prefix)
    except RuntimeError as error:
        raise KinoiseError(f"the policy can't plan for {rows} clients at once: {error}. Take a smaller batch=.") from error


async def _serve(server: PolicyServer, settings: Settings, served: Served) -> int:
    loop, stop, caught = asyncio.get_running_loop(), asyncio.Event(), list[int]()
    serving = asyncio.ensure_future(server.run(settings.host, settings.port, stop, lambda port: _greet(settings, port, served)))

    def end(number: int) -> None:
        """The first signal lets plans end, the second one doesn't."""
        serving.cancel() if caught else stop.set()
        caught.append(number)

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, end, number)
    with suppress(asyncio.CancelledError):
        await serving
    return 128 + caught[0]


def _greet(settings: Settings, port: int, served: Served) -> None:
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    wanted = "a token is needed" if settings.token else "no token is needed"
    print(f"serving {served.policy} of {settings.run} on ws://{host}:{port} ({wanted}); Ctrl-C ends", flush=True)
