"""Commands and their settings: dataclasses composed with Hydra overrides (`key=value`)."""

from __future__ import annotations

import difflib
import logging
import os
import re
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar

from .spec import KinoiseError

Settings = TypeVar("Settings")


class UsageError(KinoiseError):
    """The command line is wrong (exit code 2)."""


def parse(
    command: str,
    schema: type[Settings],
    argv: Sequence[str],
    *,
    positional: str | None = None,
    groups: Mapping[str, Mapping[str, Any]] | None = None,
    defaults: Mapping[str, str] | None = None,
    about: str = "",
    choices: Mapping[str, Callable[[], str]] | None = None,
) -> Settings:
    """The settings that `argv` asks for, as an instance of `schema`.

    Args:
        positional: the field that an argument without `=` fills (`kinoise eval RUN`).
        groups: for a field, its named choices (dataclass instances or mappings); `field=name` takes one and
            `field.key=value` changes it. `field=FILE.yaml` reads a choice from a file whose `base:` names another.
        defaults: the choice of each group when none is named.
        choices: for a field, a function that lists what it may hold, shown by `--help`.

    Raises:
        UsageError: an unknown key, a value of the wrong type or that `schema` refuses, a missing one.
        SystemExit(0): after `--help`.
    """
    groups = dict(groups or {})
    if any(item in ("--help", "-h") for item in argv):
        print(
            _help(command, schema, positional, groups, dict(defaults or {}), _chosen(argv, groups), about, dict(choices or {}))
        )
        raise SystemExit(0)
    overrides = _overrides(command, schema, argv, positional, groups)
    return _compose(command, schema, overrides, groups, dict(defaults or {}), _chosen(overrides, groups))


def _overrides(command: str, schema: type, argv: Sequence[str], positional: str | None, groups: dict) -> list[str]:
    overrides, seen = [], False
    for item in argv:
        key, equals, value = item.partition("=")
        if not equals or "/" in key:  # a path such as runs/lr=0.1
            if item.startswith("-") or positional is None or seen:
                raise UsageError(f"'{item}': expected key=value. See kinoise {command} --help.")
            seen, key, value = True, positional, item
        elif not key.replace(".", "").isidentifier() or key.startswith("hydra."):  # Hydra's own, which would pass unchecked
            raise UsageError(f"unknown key '{key}'. See kinoise {command} --help.")
        if key in groups and value.endswith((".yaml", ".yml")):
            name = f"file_{len(groups[key])}"
            groups[key] = {**groups[key], name: preset(Path(value), groups[key])}
            value = name
        elif key in groups and value not in groups[key]:
            close = difflib.get_close_matches(value, groups[key], 1)
            hint = f" Did you mean {close[0]}?" if close else ""
            raise UsageError(f"{key}={value}: the choices are {', '.join(groups[key])} or a YAML file.{hint}")
        overrides.append(f"{key}={_quoted(schema, key, value)}")
    return overrides


def _quoted(schema: type, key: str, value: str) -> str:
    """Quotes what Hydra's grammar would take apart: paths and ids with `,`, `~`, `=` or blanks in a plain text field."""
    texts = {item.name for item in fields(schema) if item.type in ("str", "str | None", str)}  # type: ignore[arg-type]
    if key in texts and value not in ("null", "") and not re.fullmatch(r"""(['"]).*\1""", value):
        return "'" + value.replace("\\", "\\\\").replace("'", "\\'") + "'"
    return value


def _chosen(argv: Sequence[str], groups: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """The member that `argv` names for each group."""
    return {key: value for key, _, value in (item.partition("=") for item in argv) if value in groups.get(key, ())}


def _compose(
    command: str, schema: type[Settings], overrides: list[str], groups: dict, defaults: dict, chosen: dict
) -> Settings:
    from hydra import compose, initialize
    from hydra.core.config_store import ConfigStore
    from hydra.core.global_hydra import GlobalHydra
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    store = ConfigStore.instance()
    first = [{name: defaults[name]} for name in groups if name in defaults]
    root = OmegaConf.structured(schema)
    for name, members in groups.items():
        for member in {chosen.get(name), defaults.get(name)} & members.keys():
            store.store(group=name, name=member, node=members[member])
    store.store(name=f"{command}_schema", node=root)
    store.store(name=command, node={"defaults": [f"{command}_schema", *first, "_self_"]})
    GlobalHydra.instance().clear()
    logging.getLogger("hydra").setLevel(logging.ERROR)
    try:
        with initialize(version_base="1.3", config_path=None):
            config = compose(config_name=command, overrides=overrides)
            missing = sorted(str(key) for key in OmegaConf.missing_keys(config))
            if missing:
                raise UsageError(
                    f"kinoise {command} needs {', '.join(f'{key}=...' for key in missing)}. See kinoise {command} --help."
                )
            return OmegaConf.to_object(config)  # type: ignore[return-value]
    except UsageError:
        raise
    except KinoiseError as error:  # a settings class that refuses its values
        raise UsageError(str(error)) from error
    except (HydraException, OmegaConfBaseException, ValueError) as error:
        nodes = [
            (root, ""),
            *((OmegaConf.create(groups[name][item]), f"{name}.") for name, item in {**defaults, **chosen}.items()),
        ]
        known = [key for node, prefix in nodes for key in _keys(node, prefix)]
        raise UsageError(_one_line(command, error, known)) from error


def _one_line(command: str, error: Exception, known: Sequence[str]) -> str:
    """What Hydra says over several lines and a chained exception, as one: the key, what is wrong, what was meant."""
    cause = str(error.__cause__ or error)
    key = re.search(r"full_key: (\S+)", cause)
    if key is None:
        text = cause.splitlines()[0].rstrip(".")
    elif cause.startswith("Key "):
        close = difflib.get_close_matches(key[1], known, 1)
        text = f"unknown key '{key[1]}'" + (f". Did you mean {close[0]}?" if close else "")
    else:
        text = f"{key[1]}: {cause.splitlines()[0]}"
    return f"{text.rstrip('.')}{'' if text.endswith('?') else '.'} See kinoise {command} --help."


def _keys(node: Any, prefix: str = "") -> list[str]:
    """The full names of a config's settings."""
    names = []
    for name, item in node.items_ex(resolve=False):
        names.append(f"{prefix}{name}")
        names += _keys(item, f"{prefix}{name}.") if hasattr(item, "items_ex") else []
    return names


def flat(value: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Nested settings as (`full.name`, value) pairs, in order."""
    for key, item in value.items():
        if isinstance(item, Mapping):
            yield from flat(item, f"{prefix}{key}.")
        else:
            yield prefix + key, item


def preset(path: Path, members: Mapping[str, Any]) -> Any:
    """A choice read from YAML: the member that its `base:` names, with the file's other keys laid over it.

    Raises KinoiseError when the file is missing, names no known base or holds a key that the base lacks.
    """
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    try:
        value = OmegaConf.to_container(OmegaConf.load(path))
    except FileNotFoundError as error:
        raise KinoiseError(f"{path} does not exist") from error
    except OSError as error:
        raise KinoiseError(f"{path} can't be read: {error.strerror}") from error
    except (YAMLError, UnicodeDecodeError) as error:
        raise KinoiseError(f"{path} is not valid YAML: {str(error).splitlines()[0]}") from error
    if not isinstance(value, dict) or value.get("base") not in list(members):
        raise KinoiseError(f"{path}: expected a line 'base: NAME' with NAME one of {', '.join(members)}")
    base = members[value.pop("base")]
    node = OmegaConf.structured(base) if is_dataclass(base) else base
    try:
        return OmegaConf.merge(node, value)
    except OmegaConfBaseException as error:
        raise KinoiseError(f"{path}: {str(error).splitlines()[0]}") from error


def _help(
    command: str,
    schema: type,
    positional: str | None,
    groups: dict,
    defaults: dict,
    chosen: dict,
    about: str,
    choices: dict,
) -> str:
    from omegaconf import OmegaConf

    usage = f"kinoise {command} {positional.upper() + ' ' if positional else ''}[key=value ...]"
    lines = [f"usage: {usage}", "", about.strip(), "", "settings (default):"]
    lines += _describe(schema, "", choices, groups)
    for name, members in groups.items():
        lines += ["", f"{name}= one of (default {defaults.get(name)}), or a YAML file with `base:`:"]
        lines += [f"  {member}" for member in members]
        shown = chosen.get(name, defaults.get(name))
        node = members.get(shown)
        if node is not None and not is_dataclass(node):  # a preset
            node = OmegaConf.to_object(node)
        if is_dataclass(node):
            lines += ["", f"{name}.* of {shown} (default), --help with {name}=... for others:"]
            lines += _describe(node, f"{name}.", {}, {})
    return "\n".join(lines)


def _describe(schema: Any, prefix: str, choices: Mapping[str, Callable[[], str]], skip: Mapping[str, Any]) -> list[str]:
    """A line for each setting of a dataclass that isn't hidden; defaults are those of `schema`, where it is an instance."""
    from omegaconf import MISSING

    lines = []
    for item in fields(schema):  # type: ignore[arg-type]
        if (item.name in skip and not prefix) or item.metadata.get("hidden"):
            continue
        default = item.default_factory() if callable(item.default_factory) else item.default
        if not isinstance(schema, type):
            default = getattr(schema, item.name)
        if is_dataclass(default) and not isinstance(default, type):
            lines += _describe(default, f"{prefix}{item.name}.", {}, {})
            continue
        shown = "required" if default == MISSING else "" if default is None else str(default)
        note = item.metadata.get("help", "")
        if item.name in choices and not prefix:
            note = f"{note}; {choices[item.name]()}" if note else choices[item.name]()
        lines.append(f"  {prefix + item.name:<34} {note}{f' ({shown})' if shown else ''}")
    return lines


def check_seed(seed: int) -> None:
    """Raises UsageError for a seed that torch's generators don't take."""
    if not 0 <= seed < 2**63:
        raise UsageError(f"seed={seed}: expected at least 0 and below 2^63")


def new_names(rename: Any) -> dict[str, str]:
    """`rename=`, whose keys are the user's own: Hydra takes such a setting only where it knows nothing about it (Any).

    Raises UsageError for anything but pairs of names.
    """
    if rename is None:
        return {}
    if not isinstance(rename, dict) or not all(isinstance(item, str) for item in rename.values()):
        raise UsageError(f"rename={rename}: expected {{old:new}} pairs, as in rename={{img:image.top,state:agent}}.")
    return {str(key): item for key, item in rename.items()}


def run(main: Callable[[Sequence[str]], int | None], argv: Sequence[str]) -> int:
    """Calls a command and turns what it raises into an exit code: 0 well, 1 failed, 2 wrong usage, 130, 141 or 143 stopped."""
    try:
        with termination():
            return main(argv) or 0
    except UsageError as error:
        print(f"kinoise: {error}", file=sys.stderr)
        return 2
    except KinoiseError as error:
        print(f"kinoise: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("kinoise: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # Whoever read the output has gone, as in `kinoise train --help | head`. Python would complain once more at its exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except (OSError, MemoryError) as error:
        # A file that may not be read, a name that is too long, too many processes: the machine's word, without our stack.
        what = f"{error.filename}: {error.strerror}" if isinstance(error, OSError) and error.filename else str(error)
        print(f"kinoise: {what or 'out of memory'}. Check paths, permissions, disk and memory.", file=sys.stderr)
        return 1


@contextmanager
def termination() -> Iterator[None]:
    """Makes SIGTERM leave the block as an exception does (exit code 143), so that temporary files and processes go too."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def leave(number: int, _: object) -> None:
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
