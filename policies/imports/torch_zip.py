"""Files of `torch.save`, read without running anything: tensors and plain containers alone.

Storages are read out of the archive, where they lie uncompressed, within their bounds; what the pickle beside them may ask for
is in torch_pickle.
"""

from __future__ import annotations

import errno
import io
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ...spec import KinoiseError
from .bounds import Budget
from .torch_pickle import LARGEST_PICKLE, SAID, Made, Reader, StandIn, Storage

ZIP = b"PK\x03\x04"
"""What an archive begins with, and what is left of one still does."""


def read_torch(path: Path) -> Any:
    """What `torch.save` wrote to `path`, with `StandIn`s for settings. Raises KinoiseError for whatever else is in it."""
    try:
        with zipfile.ZipFile(path) as archive:
            return _read(archive, path.stat().st_size)
    except FileNotFoundError as error:
        raise KinoiseError(f"{path} does not exist") from error
    except zipfile.BadZipFile as error:
        with path.open("rb") as file:
            begun = file.read(len(ZIP)) == ZIP
        if begun:
            raise KinoiseError(
                f"{path}: a zip archive that is cut short or damaged ({_said(error)}): download it again"
            ) from error
        raise KinoiseError(
            f"{path}: no zip archive, as torch.save has written since 1.6. Load and save it anew with a newer torch"
        ) from error
    except KinoiseError as error:
        raise KinoiseError(f"{path}: {error}") from error
    except OSError as error:
        if error.errno != errno.EINVAL:  # a place before the file's beginning, where bytes of it are gone
            raise
        raise KinoiseError(f"{path}: a zip archive that lacks some of its bytes: download it again") from error
    except Exception as error:  # whatever a damaged pickle makes of the reader's own stack
        raise KinoiseError(f"{path}: its pickle is damaged ({type(error).__name__}: {_said(error)})") from error


def _said(error: Exception) -> str:
    """Its text, short. What isn't text is out of the file, and may take for ever to write."""
    text = error.args[0] if error.args and isinstance(error.args[0], str) else ""
    return " ".join(text[:SAID].split())


def _read(archive: zipfile.ZipFile, size: int) -> Any:
    """Args:
    size: bytes of the archive.
    """
    members = {item.filename: item for item in archive.infolist()}
    pickles = [name for name in members if name.endswith("/data.pkl") and name.count("/") == 1]
    if len(pickles) != 1 or members[pickles[0]].file_size > LARGEST_PICKLE:
        raise KinoiseError(f"no file of torch.save with one data.pkl of at most {LARGEST_PICKLE >> 20} MiB")
    stored = all(item.compress_type == zipfile.ZIP_STORED and item.file_size <= item.compress_size for item in members.values())
    if not stored or sum(item.file_size for item in members.values()) > size:
        raise KinoiseError("its members are compressed, or share their bytes, which those of torch.save never do")
    folder, known = pickles[0].removesuffix("data.pkl"), {}

    def storage(pid: Any) -> Storage:
        if type(pid) is not tuple or len(pid) < 5 or pid[0] != "storage":
            raise KinoiseError("a storage of the file is damaged")
        _, kind, key = pid[:3]
        if not isinstance(kind, torch.dtype) or type(key) is not str:  # whatever else may take for ever to write
            raise KinoiseError("a storage of the file is damaged")
        name = f"{folder}data/{key}"
        if name not in members:
            raise KinoiseError(f"it lacks its storage {key[:SAID]}")
        if name not in known:
            known[name] = kind, bytearray(archive.read(name))
        first, data = known[name]
        if first != kind:
            raise KinoiseError(f"its storage {key[:SAID]} is of two types")
        count = len(data) // kind.itemsize
        return Storage(torch.frombuffer(data, dtype=kind, count=count) if count else torch.empty(0, dtype=kind))

    return _finished(Reader(io.BytesIO(archive.read(pickles[0])), storage).load(), {})


def _finished(value: Any, seen: dict[int, Any]) -> Any:
    """With tensors in place of `Made`, each object once however often it occurs."""
    if isinstance(value, Made):
        return value.tensor
    if not isinstance(value, (dict, list, tuple, StandIn)):
        return value
    if id(value) not in seen:
        result: Any = {} if isinstance(value, dict) else [] if isinstance(value, list) else value
        seen[id(value)] = value, result  # the value too: an object that is gone may share its id with a new one
        if isinstance(value, dict):
            result.update((key, _finished(item, seen)) for key, item in value.items())
        elif isinstance(value, list):
            result.extend(_finished(item, seen) for item in value)
        elif isinstance(value, StandIn):
            value.state = _finished(value.state, seen)
        else:
            seen[id(value)] = value, tuple(_finished(item, seen) for item in value)
    return seen[id(value)][1]


def plain(value: Any) -> Any:
    """Settings without stand-ins: OmegaConf's containers and nodes as dicts, lists and values. Others become None.

    Raises KinoiseError for more than settings could be, see `Budget`: what a pickle shares counts wherever it occurs.
    """
    return _plain(value, Budget(), 0)


def _plain(value: Any, budget: Budget, depth: int) -> Any:
    budget.spend(value, depth)
    if isinstance(value, StandIn):
        state = value.state[0] if isinstance(value.state, tuple) and value.state else value.state
        if not isinstance(state, Mapping):
            return None
        return _plain(state["_content"] if "_content" in state else state.get("_val"), budget, depth + 1)
    if isinstance(value, Mapping):
        for key in value:
            budget.spend(key, depth)
        return {key: _plain(item, budget, depth + 1) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item, budget, depth + 1) for item in value]
    return value if isinstance(value, (str, bytes, int, float)) else None
