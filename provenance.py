"""Where a figure comes from: versions, commit and machine, stored beside every result."""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from . import __version__

LIBRARIES = ("torch", "numpy", "av", "gymnasium", "mujoco", "metaworld", "zarr", "hydra-core", "accelerate", "transformers")
OPTIONAL = ("gym-pusht", "pymunk", "hf-libero", "robosuite", "ogbench", "gymnasium-robotics")
SIMULATORS = ("numpy", "gymnasium", "mujoco", "metaworld", *OPTIONAL)
"""What an episode can depend on in the process that has its environment, which need not be this one."""


def origin() -> dict[str, Any]:
    """What every result carries: `kinoise` (its version), `versions`, `commit` and `machine`."""
    return {"kinoise": __version__, "versions": versions(), "commit": commit(), "machine": machine()}


def versions() -> dict[str, str]:
    """Versions of kinoise and of the installed libraries that can change a figure."""
    return {"kinoise": __version__, **_installed((*LIBRARIES, *OPTIONAL))}


def simulators() -> dict[str, str]:
    """Of these those that can change an episode: what an environment's own process says of itself."""
    return _installed(SIMULATORS)


def commit() -> str | None:
    """The source's git commit, `+dirty` when files differ from it, results apart; None outside a git checkout of kinoise."""
    root = Path(__file__).resolve().parent
    if not (root / ".git").exists():
        return None
    try:
        head = _git(root, "rev-parse", "HEAD")
        dirty = _git(root, "status", "--porcelain", "--untracked-files=no", "--", ".", ":!benchmarks/results")
    except (OSError, subprocess.CalledProcessError):
        return None
    return f"{head}+dirty" if dirty else head


def machine() -> dict[str, str | int | float | None]:
    """What the figures were measured on. `cores` are those that this process may use, `vectors` the widest instructions for
    several numbers at once that torch finds: CPUs of one name can differ in them."""
    import torch

    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return {
        "cpu": _cpu(),
        "vectors": torch.backends.cpu.get_cpu_capability(),
        "bfloat16": bfloat16(),
        "cores": len(os.sched_getaffinity(0)),
        "threads": torch.get_num_threads(),
        "memory_gib": round(memory, 1),
        "gpu": gpu,
        "os": platform.platform(),
    }


def bfloat16() -> bool | None:
    """Whether this CPU multiplies in bfloat16 itself, or only by way of float32; None where it doesn't say (not on Linux)."""
    names = _cpuinfo("flags", "Features").split()
    return bool({"avx512_bf16", "amx_bf16", "bf16"} & set(names)) if names else None


def _installed(names: Iterable[str]) -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in names:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _git(root: Path, *arguments: str) -> str:
    return subprocess.run(["git", "-C", str(root), *arguments], check=True, capture_output=True, text=True).stdout.strip()


def _cpu() -> str:
    return _cpuinfo("model name") or platform.processor()


def _cpuinfo(*names: str) -> str:
    """The first line of Linux's account of the CPU that is called one of `names`; empty without any."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return ""
    return next((line.partition(":")[2].strip() for line in lines if line.partition(":")[0].strip() in names), "")
