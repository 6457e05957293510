"""Simulators that crash, hang or return NaN under `kinoise collect`: what docs/faults.md says of them."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from kinoise.data import open_store
from kinoise.eval.attempts import BROKEN, STRIKES, Ledger
from kinoise.eval.collect import main
from kinoise.eval.demonstration import Folder, Recipe, play
from kinoise.spec import KinoiseError
from line_world import LineWorld
from mapped_worlds import POINT, write

SEED = 2
"""With it the goal of attempt 0 is to the right, where there is trouble, and that of attempt 1 is not."""
OWN_PROCESS = {"python": sys.executable, "timeout": 1}


def collect(folder: Path, trouble: str, *arguments: str, half: bool = False, **changes: Any) -> int:
    world = write(folder, POINT, gymnasium__kwargs={"trouble": trouble, "half": half}, **changes)
    settings = ["episodes=1", f"seed={SEED}", "noise=0", "workers=1", f"out={folder / 'data'}"]
    return main([f"env={world}", *settings, *arguments])


@pytest.mark.parametrize(
    ("trouble", "changes", "said"),
    [
        ("crash", {}, "died (signal SIGSEGV)"),
        ("hang", {}, "did nothing for 8 s and was ended"),
        ("nan", {}, "is not finite"),
        ("raise", {}, "the point is gone"),
        ("crash", OWN_PROCESS, "signal SIGSEGV"),
        ("hang", OWN_PROCESS, "did not answer within 1 s and was ended"),
    ],
    ids=["crash", "hang", "nan", "raise", "crash elsewhere", "hang elsewhere"],
)
def test_what_cannot_be_played_counts_as_failed_with_its_reason(
    trouble: str,
    changes: dict[str, Any],
    said: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("kinoise.eval.attempts.STRIKES", 1)  # each costs a process
    arguments = [] if "python" in changes or trouble != "hang" else ["timeout=8"]  # s, in which a process also builds its world
    assert collect(tmp_path, trouble, *arguments, half=True, **changes) == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("attempt 0 at ")]
    assert "counts as failed" in line
    assert said in line
    (kept,) = open_store(tmp_path / "data").info
    assert (kept["index"], kept["failures"]) == (1, 1)
    assert not (tmp_path / "data.partial").exists()


def test_a_simulator_that_never_plays_on_ends_the_command(tmp_path: Path) -> None:
    with pytest.raises(KinoiseError, match=rf"{BROKEN} attempts at .* and 0 succeeded\. The last: .* is not finite"):
        collect(tmp_path, "nan")
    assert not (tmp_path / "data").exists()
    reasons = [item.read_text() for item in (tmp_path / "data.partial").rglob("*.failed")]
    assert len(reasons) == BROKEN
    assert all("is not finite" in item for item in reasons)


def test_more_may_break_than_that_where_more_succeed() -> None:
    ledger = Ledger("a/b", 50, {index: True for index in range(BROKEN + 1)})
    for index in range(BROKEN + 1, 2 * BROKEN + 2):
        ledger.give_up(index, "gone")
    with pytest.raises(KinoiseError, match="The last: gone for good"):
        ledger.give_up(2 * BROKEN + 2, "gone for good")


def test_a_lost_attempt_is_made_again_first_and_given_up_in_the_end() -> None:
    ledger = Ledger("a/b", 3, {})
    found = []
    for _ in range(STRIKES):
        assert ledger.start() == 0
        found.append(ledger.lose(0))
    assert found == [False] * (STRIKES - 1) + [True]
    assert ledger.start() == 0, "until it is entered"
    ledger.give_up(0, "gone")
    assert ledger.start() == 1


def test_what_was_given_up_is_tried_when_the_command_begins_again(tmp_path: Path) -> None:
    folder, env = Folder(tmp_path), LineWorld("line/stuck")
    folder.give_up("line/stuck", 0, "a loose cable")
    assert folder.found("line/stuck") == {}
    seeds = [play(env, Recipe(seed, 0.0, (), 84), 0) for seed in range(8)]
    for success in (False, True):
        folder.write(next(item for item in seeds if item.info["success"] == success))
        assert folder.found("line/stuck") == {0: success}


class BlindWorld(LineWorld):
    """Shows NaN in the middle, and does not notice."""

    def _observation(self) -> dict[str, np.ndarray]:
        found = super()._observation()
        if self._clock == 2:
            found["state"][2] = np.nan
        return found


def test_a_demonstration_with_nan_is_none() -> None:
    with pytest.raises(KinoiseError, match="'state' is NaN or infinite at step 2"):
        play(BlindWorld("line/go"), Recipe(0, 0.0, (), 84), 0)


def test_without_an_expert_no_attempt_is_tried_again(tmp_path: Path) -> None:
    with pytest.raises(KinoiseError, match="names no expert"):
        collect(tmp_path, "none", expert=None)
    assert not list(tmp_path.rglob("*.failed"))
