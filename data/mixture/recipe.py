"""The file that describes a mixture: which data sets, how each is read, how often each is seen, whose numbers are normalised.

datasets:
  - {path: ../a.hdf5, weight: 3, filter: train, rename: {robot0_eef_pos: eef}, keys: [eef, image.front]}
  - {path: ../b, name: slow, rate: 20}
normalise: together
"""

from __future__ import annotations

import difflib
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import yaml

from ...spec import KinoiseError
from ..base import AS_IT_IS, Reading

TOGETHER, EACH = "together", "each"
SUFFIXES = (".yaml", ".yml")


@dataclass(frozen=True)
class Entry:
    """One data set of a mixture.

    Args:
        path: where it is.
        name: what the mixture calls it.
        weight: its share of the training windows, against those of the others; None where the file doesn't say.
        instruction: of its episodes that have none.
        reading: how to read it.
    """

    path: Path
    name: str
    weight: float | None = None
    instruction: str | None = None
    reading: Reading = AS_IT_IS


@dataclass(frozen=True)
class Recipe:
    """What the file says.

    Args:
        entries: at least one, whose names differ, where nothing is wrong.
        normalise: `together` or `each`, see `Mixture`.
        normalise_gripper: whether `each` holds for the gripper's dimensions too.
    """

    entries: tuple[Entry, ...]
    normalise: str = TOGETHER
    normalise_gripper: bool = False

    @property
    def weights(self) -> tuple[float, ...] | None:
        """One for each data set, 1 where only others have one; None where none has, or there is nothing to share."""
        given = [item.weight for item in self.entries]
        if len(given) == 1 or all(item is None for item in given):
            return None
        return tuple(1.0 if item is None else item for item in given)


def read_recipe(file: Path) -> tuple[Recipe, list[str]]:
    """What the file says, and everything that is wrong in it; the recipe has the entries that nothing is wrong with.

    Raises KinoiseError for a file that can't be read or lists no data sets.
    """
    value = _loaded(file)
    if not isinstance(value, dict) or not isinstance(value.get("datasets"), list) or not value["datasets"]:
        raise KinoiseError(f"{file}: expected 'datasets:' and a list of data sets under it, each with a path.")
    problems = _unknown("the mixture", value, {"datasets", *SETTINGS})
    problems += [
        f"{key}: expected {what}, came {value[key]!r}"
        for key, (what, holds) in SETTINGS.items()
        if key in value and not holds(value[key])
    ]
    entries = []
    for index, item in enumerate(value["datasets"]):
        wrong = _problems(f"datasets[{index}]", item)
        if not wrong:
            entry = _entry(item, file.parent)
            names = [other.name for other in entries]
            if entry.name in names:
                problems.append(f"several data sets are called '{entry.name}': give each a name of its own")
            if not _exists(entry.path):
                wrong.append(f"{entry.name}: {entry.path} does not exist")
            else:
                entries.append(entry)
        problems += wrong
    settings = {key: value[key] for key, (_, holds) in SETTINGS.items() if key in value and holds(value[key])}
    return Recipe(tuple(entries), **settings), list(dict.fromkeys(problems))


def _loaded(file: Path) -> Any:
    try:
        return yaml.safe_load(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise KinoiseError(f"{file} does not exist") from error
    except OSError as error:
        raise KinoiseError(f"{file} can't be read: {error.strerror}. Expected a mixture's YAML file.") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise KinoiseError(f"{file} is not valid YAML: {' '.join(str(error).split())}. Expected a mixture's file.") from error


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip()) and "\0" not in value


def _is_positive(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 < value <= sys.float_info.max


def _is_list(value: Any, holds: Callable[[Any], bool]) -> bool:
    return isinstance(value, list) and all(map(holds, value))


def _is_index(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _is_renaming(value: Any) -> bool:
    return isinstance(value, dict) and all(_is_text(item) for pair in value.items() for item in pair)


TEXT = ("text", _is_text)
NUMBER = ("a number above 0", _is_positive)
FIELDS: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "path": TEXT,
    "name": TEXT,
    "weight": NUMBER,
    "instruction": TEXT,
    "format": TEXT,
    "filter": TEXT,
    "rate": NUMBER,
    "control": TEXT,
    "gripper": ("a list of indices", lambda value: _is_list(value, _is_index)),
    "rename": ("a mapping of names to new names", _is_renaming),
    "keys": ("a list of names, at least one", lambda value: bool(value) and _is_list(value, _is_text)),
}
SETTINGS: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "normalise": (f"{TOGETHER} or {EACH}", lambda value: value in (TOGETHER, EACH)),
    "normalise_gripper": ("true or false", lambda value: isinstance(value, bool)),
}


def _problems(place: str, item: Any) -> list[str]:
    if not isinstance(item, dict) or "path" not in item:
        return [f"{place}: expected a mapping with a path, came {item!r}"]
    wrong = [
        f"{place}: {key}: expected {what}, came {item[key]!r}"
        for key, (what, holds) in FIELDS.items()
        if key in item and not holds(item[key])
    ]
    return _unknown(place, item, set(FIELDS)) + wrong


def _unknown(place: str, item: dict[Any, Any], known: set[str]) -> list[str]:
    unknown = [key for key in item if key not in known]
    if not unknown:
        return []
    close = [match for key in unknown for match in difflib.get_close_matches(str(key), known, 1)]
    hint = f". Did you mean {', '.join(close)}?" if close else ""
    return [f"{place}: unknown keys {unknown}, known are {sorted(known)}{hint}"]


def _entry(item: dict[str, Any], folder: Path) -> Entry:
    path = folder / _home(item["path"])
    name = item.get("name") or path.resolve().stem
    weight = float(item["weight"]) if "weight" in item else None
    return Entry(path, name, weight, item.get("instruction"), Reading(**dict(_reading(item))))


def _home(text: str) -> Path:
    """With `~` in full; one of nobody's stays as it is, and then doesn't exist."""
    with suppress(RuntimeError):
        return Path(text).expanduser()
    return Path(text)


def _exists(path: Path) -> bool:
    with suppress(OSError):  # too long a name, a folder that may not be looked into
        return path.exists()
    return False


def _reading(item: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    for field in fields(Reading):
        if field.name in item:
            value = item[field.name]
            yield field.name, tuple(value) if isinstance(value, list) else float(value) if field.name == "rate" else value
