"""torchvision beside a torch that it was not built for.

LeRobot imports torchvision, and a torchvision built for CUDA fails at that beside a torch built without: its import asks for
operators that only its compiled half has. LeRobot's data sets, training and evaluation use none of them.
"""

from __future__ import annotations

import importlib
import logging
import sys

import torch

ABSENT = ("nms", "qnms")
_LIBRARIES: list[torch.library.Library] = []
"""Kept: an operator lives as long as the library object that defined it."""


def lend_operators() -> None:
    """Imports torchvision, and defines the names of the operators that its import asks for where that fails without them.

    Raises whatever else torchvision's import raises; where it is absent LeRobot itself says so.
    """
    try:
        importlib.import_module("torchvision")
    except ModuleNotFoundError:
        return
    except RuntimeError as error:
        if "operator torchvision::" not in str(error):
            raise
        library = torch.library.Library("torchvision", "FRAGMENT")
        for name in ABSENT:
            library.define(f"{name}(Tensor boxes, Tensor scores, float threshold) -> Tensor")
        _LIBRARIES.append(library)
        for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
            del sys.modules[name]
        importlib.import_module("torchvision")
        logging.warning("torchvision was built for another torch: its compiled operators (%s) are missing", ", ".join(ABSENT))
