"""`meta/kinoise.json`: what LeRobot's files can't say of a data set that kinoise wrote (units, bounds, info, meta ...)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ... import __version__
from ...files import MALFORMED, read_json, write_json
from ...spec import Feature, KinoiseError, Spec
from ..base import Extra, features
from ..check import check_spec, extras_from_json
from ..long_texts import apart, together
from .episodes import Entry
from .layout import Info
from .sources import image_shape

OWN = "meta/kinoise.json"
FORMAT = 1


@dataclass(frozen=True)
class Own:
    """What the file holds.

    Args:
        names: our key of each feature and extra -> LeRobot's name.
        info: `Episode.info` of the entries asked for.
    """

    spec: Spec
    names: dict[str, str]
    extras: dict[str, Extra]
    info: list[dict[str, Any]]
    meta: dict[str, Any]


def write_own(
    folder: Path,
    spec: Spec,
    names: Mapping[str, str],
    extras: Mapping[str, Extra],
    episodes: Sequence[Mapping[str, Any]],
    meta: Mapping[str, Any],
) -> None:
    """Args: episodes: `{"length": steps, "info": Episode.info}` of each."""
    beside = {key: {"dtype": extra.dtype.name, "shape": list(extra.shape)} for key, extra in extras.items()}
    header = {"format": FORMAT, "kinoise": __version__, "spec": spec.to_json(), "names": dict(names), "extras": beside}
    entries, long = apart(episodes)
    write_json(folder / OWN, {**header, "episodes": entries, "long": long, "meta": dict(meta)})


def read_own(info: Info, entries: Sequence[Entry]) -> tuple[Own | None, str | None]:
    """What the file says, or why it was left aside: LeRobot's tools may have changed the data since. Neither without one."""
    file = info.root / OWN
    if not file.exists():
        return None, None
    try:
        value = read_json(file)
        if value["format"] != FORMAT:
            raise KinoiseError(f"its format is {value['format']!r}, expected {FORMAT}")
        spec = Spec.from_json(value["spec"])
        check_spec(spec)
        extras = extras_from_json(value["extras"])
        episodes, names = value["episodes"], {str(key): str(name) for key, name in value["names"].items()}
        if len(episodes) != info.total[0] or any(episodes[entry.number]["length"] != entry.length for entry in entries):
            raise KinoiseError("it was written for other episodes")
        if spec.rate != info.fps:
            raise KinoiseError(f"its rate is {spec.rate}, fps is {info.fps}")
        if names.keys() != {*features(spec), *extras}:
            raise KinoiseError("its names are not those of its features")
        for key, feature in features(spec).items():
            _check(info, names[key], feature)
        for key, extra in extras.items():
            _check(info, names[key], extra)
        info_of = [together(episodes[entry.number], value.get("long", ())) for entry in entries]
        return Own(spec, names, extras, info_of, dict(value["meta"])), None
    except (KinoiseError, *MALFORMED) as error:
        reason = str(error) if isinstance(error, KinoiseError) else repr(error)
        return None, f"{OWN}: left aside, for it does not fit the data set ({reason})"


def _check(info: Info, name: str, expected: Feature | Extra) -> None:
    """Raises KinoiseError for another shape or dtype, KeyError for a feature that isn't there."""
    item = info.features[name]
    if item.visual:
        fits = isinstance(expected, Feature) and expected.kind == "image" and image_shape(item) == expected.shape
    else:
        shape = expected.shape or (1,)
        fits = item.dtype == expected.dtype.name and item.shape == shape
    if not fits:
        raise KinoiseError(f"'{name}' is {item.dtype}{list(item.shape)}")
