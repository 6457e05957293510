"""kinoise's settings as draccus, LeRobot's command line, reads them."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from dataclasses import field, fields, is_dataclass, make_dataclass
from functools import partial
from typing import Any, TypeVar, get_type_hints

from kinoise.policies import PolicyConfig
from kinoise.policies.imports.plugin_config import LEFT_OUT, THEIRS

Config = TypeVar("Config")


def with_settings(default: PolicyConfig) -> Callable[[type[Config]], type[Config]]:
    """Gives a class, before it is a dataclass, a kinoise policy's settings as fields, with the values of `default`."""

    def extend(cls: type[Config]) -> type[Config]:
        for name, kind, item in _fields(default):
            if name not in LEFT_OUT:
                cls.__annotations__[THEIRS.get(name, name)] = kind
                setattr(cls, THEIRS.get(name, name), item)
        return cls

    return extend


def _fields(instance: Any) -> list[tuple[str, Any, Any]]:
    """Name, type and dataclass field of each of a dataclass's fields, with the instance's own values as defaults."""
    hints, found = get_type_hints(type(instance)), []
    for item in fields(instance):
        value = getattr(instance, item.name)
        kind = _with_defaults(value) if is_dataclass(value) else hints[item.name]
        make = kind if is_dataclass(value) else partial(deepcopy, value)
        found.append((item.name, kind, field(default_factory=make, metadata=item.metadata)))
    return found


def _with_defaults(instance: Any) -> type[Any]:
    """A subclass of the dataclass of `instance` whose defaults are the instance's own values.

    draccus builds a nested dataclass from the keys that were given and takes the others from the defaults of its *class*: with
    `--policy.network.experts=8` alone, everything in which MoDE's network differs from the default one would be lost.
    """
    cls = type(instance)
    namespace = {"__module__": __name__, "__doc__": cls.__doc__}
    return make_dataclass(cls.__name__, _fields(instance), bases=(cls,), namespace=namespace)
