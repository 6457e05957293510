"""What a report is made from: result.json, control.json, metrics.jsonl and videos, read and checked."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import av
from av.error import FFmpegError

from ..files import read_json, sha256
from ..policies.checkpoint import resolve, weights_path
from ..spec import KinoiseError
from .text import Number

NUMBER = (int, float)
INTERVAL = {"rate": NUMBER, "low": NUMBER, "high": NUMBER, "n": int, "errors": int}
EPISODE = {"task": str, "index": int, "seed": int, "success": bool, "steps": int, "return": NUMBER, "error": (str, type(None))}
MAYBE = (*NUMBER, type(None))
QUANTILES = {"p50": MAYBE, "p95": MAYBE, "p99": MAYBE}
POLICY = {"name": str, "checkpoint": (str, type(None)), "sha256": (str, type(None)), "parameters": (int, type(None))}


class Each(NamedTuple):
    """Every item of a list, or every value of a mapping."""

    shape: Any


RESULT = {
    "versions": dict,
    "machine": dict,
    "protocol": {"name": str, "env": str, "episodes": int, "horizon": (int, dict), "seed": int, "hash": str},
    "policy": POLICY,
    "decode": {"sampler": str, "steps": int, "execute": int, "chunk": int},
    "success": INTERVAL,
    "tasks": Each(INTERVAL),
    "episodes": Each(EPISODE),
    "decode_cost": {"nfe_per_plan": MAYBE, "plan_ms": QUANTILES, "plan_ms_batch1": QUANTILES, "plan_batch": {"mean": MAYBE}},
    "env_steps_per_s": NUMBER,
    "wall_s": NUMBER,
}
CONTROL = {
    "versions": dict,
    "machine": dict,
    "policy": POLICY,
    "env": str,
    "seed": int,
    "rate": NUMBER,
    "seconds": NUMBER,
    "ticks": int,
    "missed": int,
    "period_ms": QUANTILES,
    "late_ms": QUANTILES,
    "work_ms": QUANTILES,
    "plan_ms": QUANTILES,
    "delay_steps": QUANTILES,
    "plans": int,
    "expired": int,
    "stale": int,
    "rungs": {"plan": int, "rest": int, "hold": int, "stop": int},
    "interventions": Each(int),
    "episodes": Each({"success": bool, "steps": int, "finished": bool}),
    "plans_timeline": Each({"tick": int, "delay": int, "ms": NUMBER, "outcome": str}),
}
TRAIN = {"config": dict, "versions": dict, "machine": dict, "wall_s": NUMBER}


@dataclass(frozen=True)
class Parts:
    """What a report is about; None for a part that was not made.

    Args:
        run: a training run, or one of its checkpoints.
        checkpoint: the newest.
        averaged, last: SHA-256 of its averaged weights and of its last ones.
        evaluation, control: directories of `kinoise eval` and `kinoise control`.
        train, result, loop: train.json, result.json and control.json.
    """

    run: Path
    checkpoint: Path
    averaged: str
    last: str
    evaluation: Path | None
    control: Path | None
    train: dict[str, Any] | None
    result: dict[str, Any] | None
    loop: dict[str, Any] | None


class Video(NamedTuple):
    """An mp4 as data URIs, and its last frame as a still."""

    data: str
    poster: str
    width: int
    height: int


def read_parts(run: Path, evaluation: Path | None, control: Path | None) -> Parts:
    """Arguments as in `Parts`. Raises KinoiseError when there is no checkpoint, or a file is missing or broken."""
    checkpoint, account = resolve(run), run / "train.json"
    return Parts(
        run,
        checkpoint,
        sha256(weights_path(checkpoint, ema=True)),
        sha256(weights_path(checkpoint, ema=False)),
        evaluation,
        control,
        read_record(account, TRAIN, "train") if account.is_file() else None,
        read_record(evaluation / "result.json", RESULT, "eval") if evaluation else None,
        read_record(control / "control.json", CONTROL, "control") if control else None,
    )


def read_record(path: Path, shape: Mapping[str, Any], command: str) -> dict[str, Any]:
    """The JSON object in `path`. Raises KinoiseError with every point at which it differs from `shape`.

    Args:
        shape: by key, a type, a tuple of types, a mapping of the same kind or `Each`; further keys are left alone.
        command: what writes the file.
    """
    value = read_json(path)
    problems = list(_problems(value, shape, ""))
    if problems:
        shown = "; ".join(problems[:6]) + (f"; and {len(problems) - 6} more" if len(problems) > 6 else "")
        raise KinoiseError(f"{path} is not what kinoise {command} writes: {shown}. Run kinoise {command} again.")
    return value


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The records of metrics.jsonl, in order; none when there is no such file.

    A last line without its newline is still being written, or was cut short by a kill: it is left out. Raises
    KinoiseError for any other line that is not a record of finite numbers.
    """
    if not path.is_file():
        return []
    *lines, _unfinished = path.read_text().split("\n")
    return [_record(line, f"{path}, line {index}") for index, line in enumerate(lines, 1)]


def read_checks(directory: Path) -> list[tuple[int, Number]]:
    """(update, success rate) of the evaluations that training made, `directory/<update>/result.json`, by update."""
    found = [path for path in directory.glob("*/result.json") if path.parent.name.isdigit()]
    paths = sorted(found, key=lambda path: int(path.parent.name))
    return [(int(path.parent.name), read_record(path, RESULT, "eval")["success"]["rate"]) for path in paths]


def read_video(path: Path) -> Video:
    """Raises KinoiseError when the file is missing or is not a video that can be decoded to its end."""
    try:
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            frame = None
            for frame in container.decode(stream):  # noqa: B007
                pass
    except FileNotFoundError as error:
        raise KinoiseError(f"{path} does not exist. Run the evaluation again with video=1.") from error
    except (FFmpegError, IndexError) as error:
        raise KinoiseError(f"{path} is not a video that can be read ({error}). Run the evaluation again.") from error
    if frame is None:
        raise KinoiseError(f"{path} holds no frame. Run the evaluation again.")
    return Video(_uri("video/mp4", path.read_bytes()), _uri("image/jpeg", _jpeg(frame)), frame.width, frame.height)


def _problems(value: Any, shape: Any, where: str) -> Iterable[str]:
    if isinstance(shape, Each):
        if not isinstance(value, (list, dict)):
            yield f"{where} should be a list or an object"
            return
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _problems(item, shape.shape, f"{where}[{key}]")
    elif isinstance(shape, Mapping):
        if not isinstance(value, dict):
            yield f"{where or 'the file'} should be an object"
            return
        for key, item in shape.items():
            place = f"{where}.{key}" if where else key
            if key not in value:
                yield f"{place} is missing"
            else:
                yield from _problems(value[key], item, place)
    elif not isinstance(value, shape):
        kinds = shape if isinstance(shape, tuple) else (shape,)
        yield f"{where} should be {' or '.join(kind.__name__ for kind in kinds)}, is {str(value)[:40]!r}"


def _record(line: str, where: str) -> dict[str, Any]:
    try:
        record = json.loads(line, parse_constant=_refuse)
    except ValueError as error:
        raise KinoiseError(f"{where} is not JSON ({error}): edited by hand? Remove the line.") from error
    problems = [*_problems(record, Each(NUMBER), "the line"), *_problems(record, {"step": int, "elapsed_s": NUMBER}, "")]
    if problems:
        raise KinoiseError(f"{where}: {'; '.join(problems)}: edited by hand? Remove the line.")
    return record


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not a number of JSON")


def _jpeg(frame: av.VideoFrame) -> bytes:
    encoder = av.VideoCodecContext.create("mjpeg", "w")
    encoder.width, encoder.height, encoder.pix_fmt, encoder.time_base = frame.width, frame.height, "yuvj420p", Fraction(1, 25)
    encoder.options = {"qmin": "3", "qmax": "4"}
    still = frame.reformat(format="yuvj420p")
    still.pts, still.time_base = 0, encoder.time_base
    return b"".join(bytes(packet) for packet in [*encoder.encode(still), *encoder.encode()])


def _uri(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"
