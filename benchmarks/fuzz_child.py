"""One process of `benchmarks.fuzz`: libFuzzer, by atheris, on one decoder, with what it does watched.

`python -m benchmarks.fuzz_child TARGET FOLDER PLACE INPUTS SEED SECONDS` mutates the corpus in FOLDER, for SECONDS at most, and
appends what goes wrong to FOLDER/findings.jsonl; the decoder reads, and may write, in PLACE. Exceptions but KinoiseError,
inputs that take too long or too much memory, and anything executed are noted, and it goes on; a fault in native code or a hang
ends the process, which whoever began it sees. With INPUTS 0 the corpus is replayed instead; the share of the decoder's lines
that it reaches is printed as JSON.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import resource
import sys
import tempfile
import time
import traceback
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import kinoise

from .fuzz_mutate import mutated

MODULES = {
    "wire": ("kinoise.wire",),
    "native": ("kinoise.data.native", "kinoise.data.chunks", "kinoise.data.check", "kinoise.data.long_texts", "kinoise.spec"),
    "zarr": ("kinoise.data.replay", "kinoise.data.check", "kinoise.spec"),
    "hdf5": ("kinoise.data.robomimic", "kinoise.data.check"),
    "parquet": ("kinoise.data.lerobot", "kinoise.data.check", "kinoise.spec"),
    "checkpoint": ("kinoise.policies.checkpoint", "kinoise.spec"),
    "resume": ("kinoise.train.checkpoint", "kinoise.train.optimizer", "kinoise.train.ema"),
    "torch_zip": ("kinoise.policies.imports.torch_zip", "kinoise.policies.imports.torch_pickle"),
}
"""What is instrumented: kinoise's own part of each decoder."""
WRITERS = ("writer.py", "encode.py")
CPU_S = 5.0
"""Of one input."""
HANG_S = 30
"""By the clock, which goes on while others have the core; libFuzzer ends the process then."""
GROWTH = 256 << 20
"""Bytes that one input may add to the most memory that was ever in use."""
ROOM = 4 << 30
"""Bytes of address space beyond what is taken at the start: what asks for more gets a MemoryError, not the machine's memory."""
LONGEST = 65536
AFRESH = 0.2
"""Share of JSON's mutations that begin with a sound input: libFuzzer prefers the shortest that get as far."""
FORBIDDEN = ("os.system", "os.exec", "os.posix_spawn", "os.fork", "os.forkpty", "subprocess.Popen")
FORBIDDEN += ("pickle.find_class", "socket.connect", "socket.bind")
PACKAGE = Path(kinoise.__file__).parent
PROGRAM = PACKAGE / "data/robomimic/probed.py"


class Executed(Exception):
    """An input had something run, or written elsewhere, that no decoder needs."""


class Watch:
    """Runs inputs, and notes each kind of finding once, with the first input that led to it."""

    def __init__(self, run: Callable[[bytes], None], note: Path, place: Path) -> None:
        self._run, self._note, self._place, self._armed = run, note, str(place), False
        lines = note.read_text().splitlines() if note.exists() else []
        self._seen = {json.loads(line)["kind"] for line in lines}
        self._most = _peak()
        sys.addaudithook(self._audit)

    def _audit(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self._armed:
            return
        if event == "subprocess.Popen" and str(PROGRAM) in arguments[1]:  # which walks HDF5 files, begun again after a crash
            return
        named = event == "open" and isinstance(arguments[0], str | bytes)  # rather than a pipe's descriptor
        written = named and isinstance(arguments[1], str) and set(arguments[1]) & set("wax+")
        if event in FORBIDDEN or (written and not str(arguments[0]).startswith(self._place)):
            raise Executed(f"{event} {arguments[:2]!r}"[:200])

    def __call__(self, data: bytes) -> None:
        from kinoise.spec import KinoiseError

        began, raised = time.process_time(), None
        self._armed = True
        try:
            self._run(data)
        except KinoiseError:
            pass
        except Exception as error:
            raised = error
        finally:
            self._armed = False
        if raised is not None:
            self._found(data, _kind(raised), "".join(traceback.format_exception(raised))[-2000:])
        spent, most = time.process_time() - began, _peak()
        if spent > CPU_S:
            self._found(data, "slow", f"{spent:.1f} s")
        if most > self._most + GROWTH:
            self._found(data, "memory", f"{(most - self._most) >> 20} MiB")
        self._most = max(self._most, most)

    def _found(self, data: bytes, kind: str, said: str) -> None:
        if kind in self._seen:
            return
        self._seen.add(kind)
        file = self._note.with_name(f"finding-{hashlib.sha256(data).hexdigest()[:12]}")
        file.write_bytes(data)
        with self._note.open("a") as log:
            log.write(json.dumps({"kind": kind, "input": file.name, "bytes": len(data), "said": said}) + "\n")


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10


def _kind(error: BaseException) -> str:
    """The error's type and the innermost of kinoise's own functions that it went through."""
    frames = [item for item in traceback.extract_tb(error.__traceback__) if item.filename.startswith(str(PACKAGE))]
    ours = [item for item in frames if "/benchmarks/" not in item.filename] or frames
    where = f"{Path(ours[-1].filename).relative_to(PACKAGE)}:{ours[-1].lineno} {ours[-1].name}" if ours else "?"
    return f"{type(error).__name__} in {where}"


def fuzz(name: str, folder: Path, place: Path, inputs: int, seed: int, seconds: int) -> None:
    """Does not return: libFuzzer ends the process."""
    import atheris

    with atheris.instrument_imports(include=list(MODULES[name])):
        from .fuzz_targets import TARGETS

        target = TARGETS[name]
        run = target.runner(place)
    if target.alone is not None:
        target.alone()
    watch = Watch(run, folder / "findings.jsonl", place)
    corpus = folder / "corpus"
    corpus.mkdir(exist_ok=True)
    seeds = target.seeds(place)
    for index, item in enumerate(seeds):
        (corpus / f"seed-{index}").write_bytes(item)
        watch(item)
    taken = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    resource.setrlimit(resource.RLIMIT_AS, (taken + ROOM, taken + ROOM))

    def mutate(data: bytes, most: int, number: int) -> bytes:
        rng = random.Random(number)
        data = rng.choice(seeds) if rng.random() < AFRESH else data
        found = mutated(data[1:], rng) if data and rng.random() < 0.5 else None
        return atheris.Mutate(data, most) if found is None or len(found) >= most else data[:1] + found

    runs = inputs + 1 + sum(1 for _ in corpus.iterdir())  # libFuzzer counts these too, and an empty one that it begins with
    options = {
        "runs": runs,
        "max_total_time": seconds,
        "seed": seed + 1,
        "max_len": LONGEST,
        "timeout": HANG_S,
        "rss_limit_mb": 0,
    }
    options |= {"print_final_stats": 1, "artifact_prefix": f"{folder}/", "keep_seed": 1}
    arguments = [sys.argv[0], *(f"-{key}={value}" for key, value in options.items()), str(corpus)]
    atheris.Setup(arguments, watch, **({"custom_mutator": mutate} if target.json else {}))
    atheris.Fuzz()


def reached(name: str, folder: Path, place: Path) -> dict[str, Any]:
    """Lines of the decoder's functions that the corpus comes through, of all of them; by file and in all."""
    from kinoise.spec import KinoiseError

    from .fuzz_targets import TARGETS

    run = TARGETS[name].runner(place)
    parts = tuple(str(PACKAGE.joinpath(*item.split(".")[1:])) for item in MODULES[name])
    lines: dict[str, set[int]] = defaultdict(set)

    def follow(frame: FrameType, event: str, _: Any) -> Any:
        file = frame.f_code.co_filename
        if not file.startswith(parts) or file.endswith(WRITERS):
            return None
        if event == "line":
            lines[file].add(frame.f_lineno)
        return follow

    corpus = sorted((folder / "corpus").iterdir())
    sys.settrace(follow)
    try:
        for item in corpus:
            try:
                run(item.read_bytes())
            except KinoiseError:
                pass
            except Exception:
                continue  # a finding, which was noted
    finally:
        sys.settrace(None)
    files = [file for part in parts for file in _files(Path(part)) if not file.name.endswith(WRITERS)]
    of = {str(file): _body(compile(file.read_text(), str(file), "exec")) for file in files}
    shares = {str(Path(file).relative_to(PACKAGE)): [len(lines[file] & own), len(own)] for file, own in of.items() if own}
    hit, every = (sum(item[index] for item in shares.values()) for index in (0, 1))
    return {"corpus": len(corpus), "lines": hit, "of": every, "share": round(hit / max(1, every), 3), "files": shares}


def _files(part: Path) -> list[Path]:
    return sorted(part.rglob("*.py")) if part.is_dir() else [part.with_suffix(".py")]


def _body(code: CodeType, function: bool = False) -> set[int]:
    """Lines that run when functions are called, and not when their module is imported."""
    inner = [item for item in code.co_consts if isinstance(item, CodeType)]
    own = {line for _, _, line in code.co_lines() if line and line != code.co_firstlineno} if function else set()
    return own.union(*(_body(item, function or bool(item.co_flags & 2)) for item in inner))


if __name__ == "__main__":
    _, chosen, kept, scratch, count, start, limit = sys.argv
    scratch = tempfile.mkdtemp(dir=scratch)  # of its own: the one before left its files
    if int(count):
        fuzz(chosen, Path(kept), Path(scratch), int(count), int(start), int(limit))
    print(json.dumps(reached(chosen, Path(kept), Path(scratch))))
