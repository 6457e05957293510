"""A peer of kinoise's in an environment of its own: made once, and asked for one plan after the other over pipes."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

from kinoise.files import claimed, read_json, write_json

PIP = ("-m", "pip", "install", "--quiet", "--disable-pip-version-check")
TOLD = 400
"""Characters of what a process said that failed."""


class Absent(Exception):
    """A peer that can't be had, and why."""


def environment(folder: Path, alone: Sequence[str], needs: Sequence[str]) -> Path:
    """The Python of a virtual environment in `folder`, made unless it is there already; two processes at once make one.

    Args:
        alone: requirements, in order, that are installed without what they ask for; torch comes first, as it is here, and
            nothing else may bring another: it could be a build with gigabytes of CUDA.
        needs: what they use, which is installed with what it asks for.

    Raises:
        Absent: what pip or venv said when it failed.
    """
    import torch

    python, made = folder / "bin" / "python", folder / "made.json"
    fixed = f"torch=={torch.__version__.partition('+')[0]}"
    wanted = [fixed, *needs, *alone]
    within = folder / "constraints.txt"
    steps = [
        (sys.executable, "-m", "venv", "--clear", str(folder)),
        (str(python), *PIP, fixed),
        (str(python), *PIP, "--constraint", str(within), *needs),
        *([(str(python), *PIP, "--no-deps", *alone)] if alone else []),
    ]
    folder.mkdir(parents=True, exist_ok=True)
    with claimed(folder, "makes an environment", lambda: print(f"another process is making {folder}: waiting for it")):
        if made.exists() and read_json(made) == wanted:
            return python
        for number, step in enumerate(steps):
            done = subprocess.run(step, capture_output=True, text=True, check=False)
            if done.returncode:
                raise Absent(f"{' '.join(step[1:])}: {tail(done.stderr)}")
            if number == 0:
                within.write_text(f"{fixed}\n")
        write_json(made, wanted)
    return python


class Peer:
    """A script that plans when it is told to, in a process of its own. Use in a `with` block.

    Args:
        python: of its environment.
        script: says what it is in a line of JSON; for every line that it reads it plans once, and says how many seconds. Or
            it answers requests, see `ask`.
        settings: its only argument, as JSON.

    Raises:
        Absent: it ended before it said what it is.
    """

    def __init__(self, python: Path, script: Path, settings: dict[str, Any]) -> None:
        # A pipe that nobody reads would stop the peer when it is full.
        self._said = TemporaryFile("w+")  # noqa: SIM115 - closed by __exit__
        self._process = subprocess.Popen(
            [str(python), str(script), json.dumps(settings)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._said,
            text=True,
        )
        first = self._read()
        self.about: dict[str, Any] = json.loads(first)

    def __call__(self, number: int) -> float:
        """Seconds of one plan, by its own clock: the pipes have no part in it."""
        return float(self._said_to("plan"))

    def ask(self, what: dict[str, Any]) -> Any:
        """What a script answers that takes requests, a line of JSON each, and answers with one."""
        return json.loads(self._said_to(json.dumps(what)))

    def __enter__(self) -> Peer:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate()  # the end of its input is the end of it
        self._said.close()

    def _said_to(self, line: str) -> str:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(f"{line}\n")
            self._process.stdin.flush()
        except BrokenPipeError:  # it has ended: its last words say why
            pass
        return self._read()

    def _read(self) -> str:
        """Its next line. Raises Absent, with what it said last, when it has ended."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            self._process.communicate()
            self._said.seek(0)
            raise Absent(f"{self._process.args[1]} ended: {tail(self._said.read())}")  # type: ignore[index]
        return line


def tail(said: str) -> str:
    """The last of it, in a line."""
    return " ".join(said.split())[-TOLD:]
