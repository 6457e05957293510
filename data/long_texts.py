"""Long texts in the episodes' `info`, such as a simulator's scene of 80 kB, which most episodes share: written once each."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

LONG = 1000
"""Letters from which on a text is long."""


def apart(episodes: Iterable[Mapping[str, Any]]) -> tuple[list[dict[str, Any]], list[str]]:
    """The entries of a file's header without the long texts in their `info`, and those texts, each once.

    An entry's `long` says which of its `info` is which text: `{"model_file": 0}`; entries without any have none.
    """
    texts: dict[str, int] = {}
    entries = []
    for entry in episodes:
        info = entry["info"]
        found = {key: value for key, value in info.items() if isinstance(value, str) and len(value) >= LONG}
        long = {key: texts.setdefault(text, len(texts)) for key, text in found.items()}
        short = {key: value for key, value in info.items() if key not in long}
        entries.append({**entry, "info": short, "long": long} if long else dict(entry))
    return entries, list(texts)


def together(entry: Mapping[str, Any], texts: Sequence[str]) -> dict[str, Any]:
    """The `info` of an entry; texts that episodes share are one object. Raises KeyError, IndexError, TypeError, ValueError or
    AttributeError for damaged ones."""
    long = {key: texts[index] for key, index in entry.get("long", {}).items()}
    return {**dict(entry["info"]), **long}
