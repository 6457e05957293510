"""The process at the other end: makes one environment, then does what it is asked, a message at a time."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from importlib.metadata import distributions
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

from ...provenance import simulators
from ...spec import KinoiseError
from ...wire import pack, unpack
from ..base import Env, Expert
from ..mapped import MappedEnv
from ..mapping import parse
from ..named import described
from ..register import make
from .process import GRACE_S, LIMITS

PLAIN = (bool, int, float, str, np.bool_, np.integer, np.floating)
"""What of an `info` is sent."""


def serve(descriptor: int) -> None:
    """Answers until the socket's other end is closed; ends a moment later in any case, also in the middle of a step."""
    connection, host = Connection(descriptor), Host()
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        while True:
            connection.send_bytes(_reply(host, connection.recv_bytes(LIMITS.message)))
    except (EOFError, OSError):
        host.close()


def _reply(host: Host, data: bytes) -> bytes:
    try:
        return pack(host.answer(unpack(data, LIMITS)))
    except KinoiseError as error:
        return pack({"error": str(error)})
    except Exception as error:
        return pack({"error": described(error)})


def _end_with_parent() -> None:
    os.read(0, 1)  # returns at the pipe's end; Python's own stdin has a lock that its shutdown would wait for
    time.sleep(GRACE_S)
    os._exit(1)


class Host:
    """One environment, and its expert."""

    def __init__(self) -> None:
        self._env: Env | None = None
        self._expert: Expert | None = None
        self._number, self._asked = 0, False

    def answer(self, message: Mapping[str, Any]) -> dict[str, Any]:
        """Does what `call` names. Raises what that raises."""
        call = message.get("call")
        if call == "versions":
            return {"versions": {item.name: item.version for item in distributions()}}
        if call == "make":
            return self._make(message)
        env = self._env
        if env is None:
            raise KinoiseError(f"call={call}: no environment has been made")
        if call in ("reset", "step"):
            env.drawn = message.get("drawn", True)
        if call == "reset":
            env.horizon = message["horizon"]
            observation, info = env.reset(seed=message["seed"], options=message["options"])
            found = {"observation": observation, "info": _plain(info), "initial": env.initial()}
            return found | {"instruction": env.instruction}  # a perturbation may say it in other words each time
        if call == "step":
            observation, reward, terminated, truncated, info = env.step(message["action"])
            found = {"observation": observation, "reward": float(reward), "info": _plain(info)}
            return found | {"terminated": bool(terminated), "truncated": bool(truncated)}
        if call == "render":
            return {"picture": env.render()}
        if call == "expert":
            self._expert = env.expert()
            self._number += 1
            return {"number": self._number}
        if call == "act":
            if self._expert is None or message["number"] != self._number:
                raise KinoiseError(f"{env.task}: this expert is gone, since another was made. Call expert() again.")
            return {"action": np.asarray(self._expert.act(message["observation"]), np.float32)}
        raise KinoiseError(f"unknown call {call!r}")

    def close(self) -> None:
        if self._env is not None:
            self._env.close()
        self._env = None

    def _make(self, message: Mapping[str, Any]) -> dict[str, Any]:
        if self._asked:  # a server has checked what the first was to be, and passes the rest on unread
            raise KinoiseError("a process makes one environment: connect once more for another")
        self._asked = True
        task, options = message["task"], {"render": message["render"], "cameras": message["cameras"], "size": message["size"]}
        if message.get("mapping") is not None:
            env = MappedEnv(parse(task, {**message["mapping"], "python": None}), **options)
        else:
            env = make(task, **options, perturb=message["perturb"])
        self._env, idle = env, None
        with suppress(KinoiseError):  # not every action vector has one
            idle = env.idle_action()
        said = {"spec": env.spec.to_json(), "instruction": env.instruction, "horizon": env.horizon}
        said |= {"stored": env.stored, "settle": env.settle}
        return {**said, "meta": env.meta(), "idle": idle, "versions": simulators()}


def _plain(info: Mapping[str, Any]) -> dict[str, Any]:
    return {key: item for key, item in info.items() if isinstance(item, PLAIN)}
