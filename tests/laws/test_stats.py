"""Streamed statistics against numpy over the whole arrays."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from kinoise.data import Episode, EpisodeStore, open_store, stats, write_store
from kinoise.data.stats import statistics
from kinoise.spec import Feature, KinoiseError, Spec, Stats


def stored(folder: Path, state: np.ndarray, image: np.ndarray | None = None, parts: int = 3) -> EpisodeStore:
    """A store whose steps are cut into `parts` episodes of nearly the same length; the action is the state's first number."""
    observations = {"state": Feature(state.shape[1:])}
    arrays = {"state": state, "action": state[:, :1]}
    if image is not None:
        observations["image.top"] = Feature(image.shape[1:], "image")
        arrays["image.top"] = image
    pieces = [
        dict(zip(arrays, cut, strict=True)) for cut in zip(*(np.array_split(it, parts) for it in arrays.values()), strict=True)
    ]
    spec = Spec(observations, Feature((1,)), rate=10.0, language=False)
    write_store(folder / "store", spec, (Episode(piece) for piece in pieces), chunk_bytes=1000)
    return open_store(folder / "store")


@pytest.mark.parametrize("block", [1, 50, 2**24])
def test_statistics_are_numpys(block, tmp_path, monkeypatch):
    monkeypatch.setattr(stats, "BLOCK_BYTES", block)
    rng = np.random.default_rng(0)
    state = (rng.normal(size=(211, 3)) * [1, 1e-3, 50] + [0, 7, 1000]).astype(np.float32)
    image = rng.integers(0, 256, (211, 3, 2, 3), np.uint8)
    image[..., 1] //= 9
    seen = []
    found = statistics(stored(tmp_path, state, image), advance=seen.append)
    assert sum(seen) == 3 * 211
    for key, truth in (("state", state), ("image.top", image.reshape(-1, 3)), ("action", state[:, :1])):
        assert found[key].count == 211
        exact = truth.astype(np.float64)
        np.testing.assert_allclose(found[key].mean, exact.mean(0), rtol=1e-12)
        np.testing.assert_allclose(found[key].std, exact.std(0), rtol=1e-9)
        np.testing.assert_array_equal(found[key].min, exact.min(0))
        np.testing.assert_array_equal(found[key].max, exact.max(0))
        np.testing.assert_allclose(found[key].q01, np.quantile(exact, 0.01, axis=0), rtol=1e-6)
        np.testing.assert_allclose(found[key].q99, np.quantile(exact, 0.99, axis=0), rtol=1e-6)


def test_quantiles_of_actions_are_numpys_and_other_features_have_none(tmp_path):
    rng = np.random.default_rng(0)
    state = np.concatenate([rng.normal(size=(150, 2)), np.ones((61, 2))]).astype(np.float32)
    store = stored(tmp_path, state, rng.integers(0, 256, (211, 3, 2, 3), np.uint8))
    found = statistics(store)
    assert found["state"].quantiles == found["image.top"].quantiles == ()
    (quantiles,) = found["action"].quantiles
    exact = np.quantile(state[:, 0].astype(np.float64), np.linspace(0, 1, stats.QUANTILES))
    np.testing.assert_allclose(quantiles, exact, rtol=1e-5, atol=1e-6)
    assert all(np.diff(quantiles) >= 0)
    assert (quantiles[0],) == found["action"].min
    assert (quantiles[-1],) == found["action"].max
    assert quantiles[stats.QUANTILES // 2] == pytest.approx(float(np.median(state[:, 0])), abs=1e-6)
    assert store.stats() == found, "they are stored"
    assert Stats.from_json(json.loads(json.dumps(found["action"].to_json()))) == found["action"]


def test_statistics_of_an_older_kinoise_have_no_quantiles():
    value = Stats((0.0,), (1.0,), (-1.0,), (1.0,), (-1.0,), (1.0,), 9).to_json()
    del value["quantiles"]
    assert Stats.from_json(value).quantiles == ()


def test_deviation_survives_a_large_offset(tmp_path):
    """The textbook E[x^2] - E[x]^2 would lose every digit here."""
    state = (1e6 + np.tile([0.0, 0.5], 500)[:, None]).astype(np.float32)
    found = statistics(stored(tmp_path, state))["state"]
    assert found.mean == pytest.approx((1e6 + 0.25,), rel=1e-15)
    assert found.std == pytest.approx((0.25,), rel=1e-12)


def test_a_constant_dimension_is_exactly_constant(tmp_path, monkeypatch):
    monkeypatch.setattr(stats, "BLOCK_BYTES", 28)
    state = np.full((1000, 1), 0.1, np.float32)
    found = statistics(stored(tmp_path, state))["state"]
    assert found.std == (0.0,)
    assert found.mean == found.min == found.max == found.q01 == found.q99 == (float(np.float32(0.1)),)


def test_percentiles_of_what_does_not_fit_are_a_samples(tmp_path):
    state = np.random.default_rng(1).uniform(size=(20_000, 1)).astype(np.float32)
    store = stored(tmp_path, state, parts=1)

    def sampled(seed: int):
        return statistics(store, gen=np.random.default_rng(seed), exact_bytes=4 * 4000)["state"]

    exact = statistics(store)["state"]
    # Four standard errors of a percentile of 4000 uniform numbers: 4 sqrt(0.01 * 0.99 / 4000).
    assert abs(sampled(0).q01[0] - exact.q01[0]) < 6.3e-3
    assert abs(sampled(0).q99[0] - exact.q99[0]) < 6.3e-3
    assert sampled(0) == sampled(0)
    assert sampled(0).q01 != sampled(1).q01
    assert (sampled(0).mean, sampled(0).std, sampled(0).max) == (exact.mean, exact.std, exact.max)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_number_that_is_none_is_named_with_its_place(value, tmp_path):
    store = stored(tmp_path, np.zeros((30, 2), np.float32))
    # 1000-byte chunks hold all 30 steps; step 24 is the fifth of the third episode.
    file = store.path / "data" / "state" / "0.0"
    array = np.frombuffer(file.read_bytes(), "<f4").reshape(30, 2).copy()
    array[24, 1] = value
    file.write_bytes(array.tobytes())
    with pytest.raises(KinoiseError, match=r"'state' is .* in episode 2 at step 4, dimension 1"):
        open_store(store.path).stats()


def test_a_store_keeps_its_statistics(tmp_path):
    store = stored(tmp_path, np.random.default_rng(0).normal(size=(30, 2)).astype(np.float32))
    assert store.stats() is store.stats()
    assert store.stats() == statistics(store)
