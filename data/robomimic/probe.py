"""Whether HDF5 comes through a file: asked of a process of its own, which it may crash or keep for ever.

HDF5 is written in C and trusts what it reads: with damaged heaps and indices HDF5 2.0.0 was seen to loop without end. A file is
walked elsewhere first, once, so that here an error can be said. The process is kept for the next file: it takes a quarter of a
second to begin.
"""

from __future__ import annotations

import atexit
import json
import os
import secrets
import signal
import subprocess
import sys
import threading
import warnings
from pathlib import Path
from typing import Any

from ...spec import KinoiseError
from .probed import AGAIN

PROGRAM = Path(__file__).with_name("probed.py")
BASE_S, PER_S, MOST_S = 5.0, 1 << 20, 600.0
"""Seconds of the processor that a walk may take, and bytes of the file for each further one: metadata are walked at some
10 MB a second, and most of a file is not metadata."""
START_S = 60.0
"""By the clock, in which a process has to be ready: where `sys.executable` is an application with Python in it, it never is."""


class Prober:
    """Walks files in a process that is begun with the first of them and ends with this one.

    Where no such process can be had, that is warned of once, and files are read without.

    Args:
        program: what that process runs.
    """

    def __init__(self, program: Path = PROGRAM) -> None:
        self._program = program
        self._able = True
        self._forget()
        os.register_at_fork(after_in_child=self._forget)

    def _forget(self) -> None:
        """What a fork takes along is its parent's, and so is whoever holds the lock."""
        self._lock = threading.Lock()
        self._process: subprocess.Popen[str] | None = None
        self._word = ""

    def walk(self, path: Path) -> None:
        """Raises KinoiseError for a file on which HDF5 crashes or does not come to an end; all else is the reader's to say."""
        if not path.is_file():
            return
        limit = min(BASE_S + path.stat().st_size / PER_S, MOST_S)
        question = json.dumps([str(path.absolute()), limit]) + "\n"
        with self._lock:
            code = AGAIN
            while code == AGAIN and self._able:
                code = self._asked(question)
        if code in (0, AGAIN):
            return
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

    def end(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
        self._process = None

    def _asked(self, question: str) -> int:
        """0 for an answer, else the code with which the process ended; AGAIN where it was not asked."""
        try:
            if self._process is None or self._process.poll() is not None:
                self._begin()
            process = self._process
            if process is None or process.stdin is None:
                return AGAIN
            try:
                process.stdin.write(question)
                process.stdin.flush()
            except BrokenPipeError:  # it was killed while it had nothing to do
                self.end()
                return AGAIN
            if self._answered("walked"):
                return 0
            code = process.wait()
            self.end()
        except BaseException:  # Ctrl-C, say: its answer would be taken for the next file's
            self.end()
            raise
        return code

    def _begin(self) -> None:
        self._word = secrets.token_hex(8)
        command = [sys.executable, "-P", str(self._program), self._word]  # -P: files beside it are no modules
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
        try:
            self._process = subprocess.Popen(command, **pipes, text=True)
        except (OSError, TypeError, ValueError) as error:  # no interpreter there, or none named
            self._unable(str(error))
            return
        timer = threading.Timer(START_S, self._process.kill)
        timer.start()
        try:
            ready = self._answered("ready")
        finally:
            timer.cancel()
        if not ready:
            code = self._process.wait()
            self.end()
            self._unable(f"it ended with {code}")

    def _answered(self, what: str) -> bool:
        """Whether it came to that line; others, which a site's own start-up may print, are passed over."""
        assert self._process is not None
        assert self._process.stdout is not None
        return any(line.split() == [self._word, what] for line in self._process.stdout)

    def _unable(self, why: str) -> None:
        self._able = False
        warnings.warn(
            f"HDF5 files are read without a look at them by another process: {sys.executable} began none with h5py ({why}). "
            "A damaged file may crash or hang this one.",
            RuntimeWarning,
            stacklevel=2,
        )


PROBER = Prober()
atexit.register(PROBER.end)
