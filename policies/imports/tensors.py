"""Other projects' tensors under our names: every one that is asked for and no other, or an error that lists them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from ...spec import KinoiseError

SHOWN = 12
"""Names in an error, at most."""
LONGEST = 300
"""Characters about each."""


class Tensors:
    """A checkpoint's tensors, of which is kept in mind which were taken.

    Args:
        found: by their names.
        source: the file, for errors.
    """

    def __init__(self, found: Mapping[str, Tensor], source: Path) -> None:
        self._found, self.source, self._taken, self._problems = dict(found), source, set(), []

    def __contains__(self, name: str) -> bool:
        return name in self._found

    def get(self, name: str, like: Tensor) -> Tensor:
        """The tensor; one that is missing, of another shape or not finite is an error when all were asked for (`finish`)."""
        self._taken.add(name)
        item = self._found.get(name)
        if item is None or item.shape != like.shape:
            came = "is missing" if item is None else f"has shape {tuple(item.shape)}"
            self._problems.append(f"{name} {came}, expected {tuple(like.shape)}")
            return like.clone()
        item = item.to(like.dtype)
        if not item.isfinite().all():
            self._problems.append(f"{name} holds NaN or infinity")
            return like.clone()
        return item

    def finish(self, ignored: Collection[str] = ()) -> None:
        """Raises KinoiseError that lists what was missing, and what nobody asked for and isn't `ignored` (prefixes)."""
        unknown = [name for name in self._found if name not in self._taken and not name.startswith(tuple(ignored))]
        problems = [*self._problems, *(f"{name} is unknown" for name in sorted(unknown))]
        if problems:
            more = f"; and {len(problems) - SHOWN} more" if len(problems) > SHOWN else ""
            raise KinoiseError(
                f"{self.source} does not match its settings: {'; '.join(item[:LONGEST] for item in problems[:SHOWN])}{more}. "
                "It was written by another version or for another network: kinoise loads nothing in part."
            )


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """Raises KinoiseError for a file that is missing or damaged, and for what is no file."""
    try:
        return load_file(path)
    except FileNotFoundError as error:
        raise KinoiseError(f"{path} is missing: give the folder that holds it.") from error
    except (SafetensorError, OSError) as error:
        raise KinoiseError(f"{path} can't be read as safetensors ({error}): it is damaged, or another kind of file.") from error


def read_named(path: Path, own: Callable[[str], str]) -> dict[str, Tensor]:
    """The tensors of a file under the names that `own` makes of theirs.

    Raises KinoiseError as `read_safetensors` does, and for two names that become one.
    """
    result: dict[str, Tensor] = {}
    for name, item in read_safetensors(path).items():
        known = own(name)
        if known in result:
            raise KinoiseError(f"{path}: {known} is in it twice, the second time as {name}: which one counts can't be told")
        result[known] = item
    return result
