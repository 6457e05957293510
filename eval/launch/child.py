"""A job's process: `python -m kinoise.eval.launch.child PARENT COMMAND ...` is `kinoise COMMAND ...` that dies with PARENT.

Without that, a job whose Ray or Slurm process was killed would go on writing beside the one that takes its place.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1


def die_with(parent: int) -> None:
    """Has the kernel end this process with SIGTERM when `parent` ends, or does so at once when it has ended by now."""
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    if os.getppid() != parent:
        sys.exit(128 + signal.SIGTERM)


if __name__ == "__main__":
    die_with(int(sys.argv[1]))  # which outlives exec
    os.execv(sys.executable, [sys.executable, "-P", "-m", f"{__spec__.parent.partition('.')[0]}.cli", *sys.argv[2:]])
