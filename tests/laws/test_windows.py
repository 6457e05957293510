"""Windows against the definition written out step by step."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kinoise import files
from kinoise.data import Episode, EpisodeStore, open_store, write_store
from kinoise.data.windows import Windows
from kinoise.spec import Feature, KinoiseError, Spec

SPEC = Spec({"state": Feature((2,)), "image.top": Feature((2, 2, 3), "image")}, Feature((1,)), rate=10.0)


@pytest.fixture(scope="module", autouse=True)
def _no_flush():
    """Whether bytes outlive a power cut is not under test, and flushing hundreds of tiny files takes most of the time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files, "sync", lambda path: None)
        yield


def recorded(lengths: list[int], language: bool = True) -> tuple[Spec, list[Episode]]:
    rng = np.random.default_rng(len(lengths))
    spec = Spec(SPEC.observations, SPEC.action, SPEC.rate, language=language)
    return spec, [
        Episode(
            {
                "state": rng.normal(size=(steps, 2)).astype(np.float32),
                "image.top": rng.integers(0, 256, (steps, 2, 2, 3), np.uint8),
                "action": rng.normal(size=(steps, 1)).astype(np.float32),
            },
            f"task {index % 3}" if language else "",
        )
        for index, steps in enumerate(lengths)
    ]


def stored(folder: str | Path, lengths: list[int], language: bool = True) -> EpisodeStore:
    spec, items = recorded(lengths, language)
    write_store(Path(folder) / "store", spec, items, chunk_bytes=64)
    return open_store(Path(folder) / "store")


@settings(max_examples=40)
@given(
    lengths=st.lists(st.integers(1, 8), min_size=1, max_size=5),
    chunk=st.integers(1, 10),
    history=st.integers(1, 10),
    data=st.data(),
)
def test_windows_are_what_their_definition_says(lengths, chunk, history, data):
    items = recorded(lengths)[1]
    subset = data.draw(st.none() | st.permutations(range(len(lengths))).map(lambda order: order[: 1 + len(order) // 2]))
    chosen = [items[index] for index in (range(len(lengths)) if subset is None else subset)]
    where = [(item, t) for item in chosen for t in range(len(item.arrays["action"]))]
    with TemporaryDirectory() as folder:
        windows = Windows(stored(folder, lengths), chunk, history, subset)
        assert len(windows) == len(where)
        order = np.array(data.draw(st.permutations(range(len(where)))))
        batch = windows.batch(order)
    assert batch.actions.shape == (len(where), chunk, 1)
    for row, (item, t) in enumerate(where[index] for index in order):
        steps = len(item.arrays["action"])
        for slot in range(history):
            seen = max(t - history + 1 + slot, 0)
            for key, values in batch.observation.values.items():
                np.testing.assert_array_equal(values[row, slot], item.arrays[key][seen])
        for slot in range(chunk):
            np.testing.assert_array_equal(batch.actions[row, slot], item.arrays["action"][min(t + slot, steps - 1)])
            assert bool(batch.valid[row, slot]) == (t + slot < steps)
        assert batch.observation.text is not None
        assert batch.observation.texts[int(batch.observation.text[row])] == item.instruction


def test_a_batch_names_only_its_own_instructions_and_is_ready_for_torch(tmp_path):
    windows = Windows(stored(tmp_path, [3, 3, 3]), chunk=2, history=2)
    batch = windows.batch(np.array([8, 3, 4, 3]))
    assert batch.observation.texts == ("task 1", "task 2")
    assert batch.observation.text is not None
    assert batch.observation.text.tolist() == [1, 0, 0, 0]
    assert batch.observation.values["state"].dtype == batch.actions.dtype == torch.float32
    assert batch.observation.values["image.top"].dtype == torch.uint8
    assert batch.valid.dtype == torch.bool


def test_without_language_there_is_no_text(tmp_path):
    batch = Windows(stored(tmp_path, [3], language=False), chunk=1).batch(np.array([1]))
    assert batch.observation.texts == ()
    assert batch.observation.text is None


def test_windows_that_do_not_exist_are_refused(tmp_path):
    store = stored(tmp_path, [3, 2])
    windows = Windows(store, chunk=2)
    for wrong in (-1, 5):
        with pytest.raises(IndexError):
            windows.batch(np.array([0, wrong]))
    for arguments in ({"chunk": 0}, {"chunk": 1, "history": 0}):
        with pytest.raises(KinoiseError):
            Windows(store, **arguments)
    for subset in ([], [0, 0], [-1], [2]):
        with pytest.raises(KinoiseError, match="distinct indices from 0 to 1"):
            Windows(store, 1, subset=subset)
