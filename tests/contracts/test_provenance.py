"""What a result says of the source that it was measured with."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from kinoise import provenance


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A commit with a source file and a result, in which the module believes itself to be."""
    (tmp_path / "benchmarks" / "results").mkdir(parents=True)
    for name in ("provenance.py", "benchmarks/results/speed.json"):
        (tmp_path / name).write_text("1\n")
    who = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false"]
    for words in (["init", "-q"], ["add", "."], [*who, "commit", "-qm", "one"]):
        subprocess.run(["git", *words], cwd=tmp_path, check=True)
    monkeypatch.setattr(provenance, "__file__", str(tmp_path / "provenance.py"))
    return tmp_path


def test_the_commit_is_dirty_when_the_source_differs_from_it(checkout: Path) -> None:
    clean = provenance.commit()
    assert clean is not None
    assert len(clean) == 40
    (checkout / "provenance.py").write_text("2\n")
    assert provenance.commit() == f"{clean}+dirty"


def test_results_and_new_files_leave_it_clean(checkout: Path) -> None:
    clean = provenance.commit()
    (checkout / "benchmarks" / "results" / "speed.json").write_text("2\n")
    (checkout / "notes.txt").write_text("3\n")
    assert provenance.commit() == clean


def test_outside_a_checkout_there_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(provenance, "__file__", str(tmp_path / "provenance.py"))
    assert provenance.commit() is None
