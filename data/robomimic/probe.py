"""Whether HDF5 comes through a file: asked of a process of its own, which it may crash or keep for ever.

HDF5 is written in C and trusts what it reads: with damaged heaps and indices HDF5 2.0.0 was seen to loop without end. A file is
walked elsewhere first, once, so that here an error can be said. The process is kept for the next file: it takes a quarter of a
second to begin.
"""

from __future__ import annotations

import atexit
import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

from ...spec import KinoiseError

PROGRAM = Path(__file__).with_name("probed.py")
BASE_S, PER_S, MOST_S = 5.0, 1 << 20, 600.0
"""Seconds of the processor that a walk may take, and bytes of the file for each further one: metadata are walked at some
10 MB a second, and most of a file is not metadata."""


class Prober:
    """Walks files in a process that is begun with the first of them and ends with this one.

    Args:
        program: what that process runs.
    """

    def __init__(self, program: Path = PROGRAM) -> None:
        self._program = program
        self._lock = threading.Lock()
        self._process: subprocess.Popen[str] | None = None
        self._owner = 0

    def walk(self, path: Path) -> None:
        """Raises KinoiseError for a file on which HDF5 crashes or does not come to an end; all else is the reader's to say."""
        limit = min(BASE_S + path.stat().st_size / PER_S, MOST_S)
        with self._lock:
            process = self._running()
            assert process.stdin is not None
            assert process.stdout is not None
            try:
                process.stdin.write(json.dumps([str(path.absolute()), limit]) + "\n")
                process.stdin.flush()
                answer = process.stdout.readline()
            except BaseException:  # Ctrl-C, say: its answer would be taken for the next file's
                self.end()
                raise
            if answer:
                return
            code = process.wait()
            self.end()
        if code == -signal.SIGXCPU:
            raise KinoiseError(
                f"{path}: the HDF5 library did not come to an end with it in {limit:.0f} s of the processor: it is damaged. "
                "Copy or write it again."
            )
        how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        raise KinoiseError(
            f"{path}: the HDF5 library's process ended on it ({how}): it is damaged, or the machine lacks memory. "
            "Copy or write it again."
        )

    def _running(self) -> subprocess.Popen[str]:
        """The process of this one: what a fork has taken along is its parent's."""
        if self._process is None or self._owner != os.getpid() or self._process.poll() is not None:
            command = [sys.executable, "-P", str(self._program)]  # -P: files beside it are no modules
            pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
            self._process = subprocess.Popen(command, **pipes, text=True)
            self._owner = os.getpid()
        return self._process

    def end(self) -> None:
        if self._process is not None and self._owner == os.getpid():
            self._process.kill()
            self._process.communicate()
        self._process = None


PROBER = Prober()
atexit.register(PROBER.end)
