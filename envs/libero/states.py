"""The initial states that LIBERO stores with each task: 50 simulator states, the same for everybody."""

from __future__ import annotations

import io
import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float64

from ...spec import KinoiseError

ADMITTED = {
    ("numpy.core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "_reconstruct"),
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    ("_codecs", "encode"),
}
"""What a pickled array is made of. The files are pickles; nothing else in one is run."""


def read_states(file: Path) -> Float64[np.ndarray, "states numbers"]:
    """Time, positions and velocities of every stored state, as robosuite flattens them.

    Raises KinoiseError for a file that is missing, damaged or holds anything but numbers.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            inside = [name for name in archive.namelist() if name.endswith("/data.pkl")]
            states = _Arrays(io.BytesIO(archive.read(inside[0]))).load()
    except Exception as error:
        reason = str(error) or type(error).__name__
        raise KinoiseError(f"{file}: expected stored initial states ({reason}). Install LIBERO again: make libero") from error
    if not isinstance(states, np.ndarray) or states.ndim != 2 or states.dtype != np.float64 or not np.isfinite(states).all():
        raise KinoiseError(f"{file}: expected an array of states in float64, came {type(states).__name__}")
    return states


class _Arrays(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in ADMITTED:
            raise pickle.UnpicklingError(f"{module}.{name}, which isn't an array")
        return super().find_class(module, name)
