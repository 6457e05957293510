"""Which cache a plan's evaluations share: what the decode settings say, held against what the plan is."""

from __future__ import annotations

import hashlib

import torch
from torch import nn

from ..spec import KinoiseError
from .core.cache import Every, FeatureCache, Fitted
from .decode import DecodeConfig
from .replan import Start

REMEDY = "Run kinoise fit-cache again, or set decode.cache=none"


def make_cache(decode: DecodeConfig, evaluations: int, start: Start) -> FeatureCache | None:
    """A new cache for a plan; None where it has none.

    A fitted schedule knows the evaluations of a full plan alone: warm starts, and plans too short of time for all steps,
    compute everything.

    Args:
        evaluations: that the sampler makes in a full plan, at most.

    Raises:
        KinoiseError: a schedule fitted for another sampler or for another number of evaluations.
    """
    if decode.cache == "none":
        return None
    if decode.cache == "every":
        return FeatureCache(Every(decode.cache_every), decode.cache_order)
    schedule = decode.schedule
    fitted, asked = (schedule.sampler, schedule.evaluations), (decode.sampler, evaluations)
    if fitted != asked:
        raise KinoiseError(
            f"the cache's schedule is for {fitted[1]} evaluations of {fitted[0]}, and decoding takes {asked[1]} of {asked[0]}. "
            + REMEDY
        )
    if start.warm:
        return None
    refresh, budget = Fitted(schedule.refresh), start.budget

    def refreshed(site: str, at: int) -> bool:
        if site not in schedule.refresh:
            raise KinoiseError(f"the cache's schedule lacks the branch {site} of this network. {REMEDY}")
        return (budget is not None and budget.cut) or refresh(site, at)

    return FeatureCache(refreshed, decode.cache_order)


def check_fit(decode: DecodeConfig, network: nn.Module) -> None:
    """Raises KinoiseError for a schedule in use that was fitted to another network."""
    if decode.cache == "fitted" and decode.schedule.weights != fingerprint(network):
        raise KinoiseError(f"the cache's schedule was fitted to other weights than this network's. {REMEDY}")


def fingerprint(network: nn.Module) -> str:
    """sha256 over a network's tensors, their names and shapes."""
    found = hashlib.sha256()
    for name, item in sorted(network.state_dict().items()):
        found.update(f"{name} {tuple(item.shape)} {item.dtype}".encode())
        found.update(item.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return found.hexdigest()
