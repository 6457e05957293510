"""Images in a parquet column: a PNG each (or whatever file Pillow knows), as bytes or as a path."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from jaxtyping import UInt8
from PIL import Image, UnidentifiedImageError

from ...spec import KinoiseError
from .layout import inside

COMPRESSION = 1
"""zlib's level: camera frames become 4 to 5 times as slow to write at Pillow's own level for a tenth less space."""
TYPE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def encoded(frames: UInt8[np.ndarray, "steps height width 3"], first: int) -> pa.StructArray:
    """A column of PNG files, nothing lost; `first` is the first frame's index in its episode."""
    files, names = [], []
    for index, frame in enumerate(frames, first):
        buffer = io.BytesIO()
        Image.fromarray(frame).save(buffer, "PNG", compress_level=COMPRESSION)
        files.append(buffer.getvalue())
        names.append(f"frame-{index:06d}.png")
    return pa.StructArray.from_arrays([pa.array(files, pa.binary()), pa.array(names, pa.string())], fields=list(TYPE))


def decoded(
    column: pa.ChunkedArray, shape: tuple[int, ...], root: Path, label: str
) -> UInt8[np.ndarray, "steps height width 3"]:
    """The frames of a column. Raises KinoiseError, which starts with `label`, for one that is missing or isn't of `shape`."""
    result = None
    for step, item in enumerate(column):
        content = item.as_py()
        try:
            with Image.open(_opened(content, root, f"{label}, step {step}")) as image:
                frame = np.asarray(image.convert("RGB"))
        except (UnidentifiedImageError, OSError, SyntaxError, ValueError, TypeError, Image.DecompressionBombError) as error:
            reason = " ".join(str(error).split())[:200]
            raise KinoiseError(f"{label}: no image at step {step} ({reason}). Restore the file from its source.") from error
        if frame.shape != shape:
            raise KinoiseError(
                f"{label}: the image at step {step} is {list(frame.shape)}, expected {list(shape)} as meta/info.json says. "
                f"Convert the data set again."
            )
        if result is None:  # now that the shape is known to be true
            result = np.empty((len(column), *shape), np.uint8)
        result[step] = frame
    assert result is not None  # an episode has steps
    return result


def _opened(content: Any, root: Path, label: str) -> io.BytesIO | Path:
    if isinstance(content, bytes):
        return io.BytesIO(content)
    if not isinstance(content, dict):
        raise TypeError(f"{type(content).__name__}, expected a file's bytes or path")
    if content.get("bytes") is not None:
        return io.BytesIO(content["bytes"])
    return root / inside(root, str(content.get("path") or ""), label)
