"""Statistics of large native stores, remembered from one training to the next: counting 20 GB of pixels takes minutes."""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path

from ...files import read_json, write_json
from ...spec import KinoiseError, Stats
from ..base import EpisodeStore, features
from ..mixture.store import Mixture
from ..native import NativeStore
from ..view import View
from .content import identities, title
from .copies import CachedStore

LARGE_BYTES = 2**30
VERSION = 1


class Measured(View):
    """A native store whose statistics are kept in `folder`, for as long as its files stay untouched."""

    def __init__(self, store: NativeStore, folder: Path) -> None:
        super().__init__(store, store.spec, {})
        key = hashlib.sha256(json.dumps([VERSION, store.spec.to_json(), identities(store.path)]).encode()).hexdigest()[:16]
        self._file = folder / f"{title(store.path)}-{key}.stats.json"

    def stats(self) -> dict[str, Stats]:
        try:
            found = read_json(self._file)
            return {key: Stats.from_json(found[key]) for key in self.keys}
        except (KinoiseError, KeyError, TypeError):  # none yet, or another program wrote there: taken anew
            stats = super().stats()
            write_json(self._file, {key: item.to_json() for key, item in stats.items()})
            return stats


def measured(store: EpisodeStore, folder: Path) -> EpisodeStore:
    """The same store, with statistics that are taken once if it is large and native; views and mixtures over such ones."""
    if isinstance(store, Mixture):
        return store.replaced([measured(item, folder) for item in store.members])
    if type(store) is View:
        return View(measured(store.store, folder), store.spec, store.theirs)
    if not isinstance(store, NativeStore) or isinstance(store, CachedStore):
        return store
    step_bytes = sum(item.dtype.itemsize * math.prod(item.shape) for item in features(store.spec).values())
    return store if int(store.ends[-1]) * step_bytes < LARGE_BYTES else Measured(store, folder)
