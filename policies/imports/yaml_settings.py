"""A YAML file of Hydra's by strangers: plain values, with references between them and nothing that looks elsewhere."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf

from ...spec import KinoiseError
from .bounds import DEEPEST, Budget, shown

LONGEST_FILE = 2**18
"""Characters. Those of a run are some ten thousand."""
REFERENCE = re.compile(r"\$\{(\.*)([\w.\-\[\]]*)\}")
"""`${name}`, `${group.name}`, `${names[0]}`; `${.name}` is beside the value that says it, and each further dot one level up."""
Place = tuple[Any, ...]


def read_yaml(path: Path) -> Any:
    """What the file says, with references as they stand.

    Raises:
        KinoiseError: it is too long or nested too deep, or has aliases, by which a short file can say 2^60 values.
        OSError, YAMLError, OmegaConfBaseException, ValueError: it can't be read.
    """
    with path.open(encoding="utf-8") as file:
        text = file.read(LONGEST_FILE + 1)
    if len(text) > LONGEST_FILE:
        raise KinoiseError(f"{path}: expected settings of {LONGEST_FILE} characters at most")
    depth = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > DEEPEST or isinstance(event, yaml.AliasEvent):
            raise KinoiseError(f"{path}: aliases (*name), or values nested deeper than {DEEPEST}, which Hydra never writes")
    found = OmegaConf.to_container(OmegaConf.create(text), resolve=False)
    if not isinstance(found, dict):
        raise KinoiseError(f"{path}: expected settings by their names, came {shown(found)}")
    return found


def resolved(whole: Any, place: Place) -> Any:
    """The value at `place` of `whole` with references followed; None without one.

    Raises KinoiseError for a resolver (`${oc.env:HOME}`), which would be looked up in the reader's environment, for references
    to nothing or in a circle, and for more than settings could be.
    """
    return _Resolver(whole).at(place, 0) if _found(whole, place) else None


class _Resolver:
    def __init__(self, whole: Any) -> None:
        self._whole, self._budget = whole, Budget()

    def at(self, place: Place, depth: int) -> Any:
        value: Any = self._whole
        for part in place:
            value = value[part]
        self._budget.spend(value, depth)
        if isinstance(value, dict):
            return {key: self.at((*place, key), depth + 1) for key in value}
        if isinstance(value, list):
            return [self.at((*place, index), depth + 1) for index in range(len(value))]
        return self._text(value, place, depth) if isinstance(value, str) and "${" in value else value

    def _text(self, text: str, place: Place, depth: int) -> Any:
        parts, end = [], 0
        for match in REFERENCE.finditer(text):
            found = self.at(self._target(match, place), depth + 1)
            if match[0] == text:
                return found
            parts += [text[end : match.start()], str(found)]
            self._budget.spend(parts[-1], depth)
            end = match.end()
        parts.append(text[end:])
        if any("${" in part for part in parts[::2]):
            raise KinoiseError(
                f"{'.'.join(map(str, place))} is {shown(text)}: expected a value or ${{group.name}}; whatever else would "
                "be looked up in your environment. Write the value there"
            )
        return "".join(parts)

    def _target(self, match: re.Match[str], place: Place) -> Place:
        names = [name for name in re.split(r"[.\[\]]", match[2]) if name]
        up = len(match[1])
        target = place[: max(0, len(place) - up)] if up else ()
        for name in names:
            target = (*target, int(name) if isinstance(_value(self._whole, target), list) and name.isdecimal() else name)
        if not _found(self._whole, target):
            raise KinoiseError(f"{'.'.join(map(str, place))} refers to {shown(match[0])}, which isn't there")
        return target


def _value(whole: Any, place: Place) -> Any:
    for part in place:
        inside = isinstance(whole, dict) and part in whole
        if not inside and not (isinstance(whole, list) and isinstance(part, int) and 0 <= part < len(whole)):
            return _NOTHING
        whole = whole[part]
    return whole


def _found(whole: Any, place: Place) -> bool:
    return _value(whole, place) is not _NOTHING


_NOTHING = object()
