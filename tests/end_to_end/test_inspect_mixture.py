"""`kinoise inspect` on several data sets at once, whole and damaged."""

from __future__ import annotations

import json
from pathlib import Path

import h5py
import numpy as np
import pytest
import yaml
from kinoise.cli import main
from kinoise.data import FORMATS, Episode, write_store
from kinoise.spec import Feature, Spec

SPEC = Spec({"state": Feature((3,)), "image.top": Feature((8, 8, 3), "image")}, Feature((2,)), rate=10.0)


def episodes(seed: int) -> list[Episode]:
    rng = np.random.default_rng(seed)
    return [
        Episode(
            {
                "state": rng.normal(size=(steps, 3)).astype(np.float32),
                "image.top": rng.integers(0, 256, (steps, 8, 8, 3), np.uint8),
                "action": rng.uniform(-1, 1, (steps, 2)).astype(np.float32),
            },
            "go",
        )
        for steps in (12, 9, 11)
    ]


def mixed(folder: Path, normalise: str) -> Path:
    """A native store and a robomimic file, of which one episode holds NaN."""
    write_store(folder / "a", SPEC, episodes(0))
    FORMATS["robomimic"].write(folder / "b.hdf5", SPEC, episodes(1), {})
    with h5py.File(folder / "b.hdf5", "r+") as file:
        file["data/demo_1/obs/state"][3, 1] = np.nan
    path = folder / "mixture.yaml"
    path.write_text(yaml.safe_dump({"datasets": [{"path": "a"}, {"path": "b.hdf5"}], "normalise": normalise}))
    return path


@pytest.mark.parametrize("normalise", ["together", "each"])
def test_one_bad_episode_is_named_once_and_the_others_are_described(tmp_path, capsys, normalise):
    assert main(["inspect", str(mixed(tmp_path, normalise)), "json=true", f"html={tmp_path / 'page.html'}"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["episodes"], found["left_out"]) == (5, [4])
    assert sum("demo_1" in item and "each can't be done" not in item for item in found["problems"]) == 1
    assert any("normalise: each can't be done" in item for item in found["problems"]) == (normalise == "each")
    assert not any("are in the numbers of a" in item for item in found["dropped"])
    assert (tmp_path / "page.html").exists()


def test_an_episode_is_called_by_its_data_set(tmp_path, capsys):
    path = mixed(tmp_path, "together")
    file = tmp_path / "a" / "data" / "state" / "0.0"
    rows = np.fromfile(file, np.float32)
    rows[3 * 12] = np.inf
    rows.tofile(file)
    assert main(["inspect", str(path), "json=true"]) == 0
    assert "episode 1 (episode 1 of a): 'state' is NaN" in " ".join(json.loads(capsys.readouterr().out)["problems"])


def test_a_mixtures_data_sets_are_listed_with_what_was_left_out(tmp_path, capsys):
    """One episode is lost when the file is opened, another when it is read; numbers are the files' own all the same."""
    write_store(tmp_path / "a", SPEC, episodes(0))
    bad = episodes(1)
    FORMATS["robomimic"].write(tmp_path / "b.hdf5", SPEC, [*bad, bad[0], bad[2]], {})
    with h5py.File(tmp_path / "b.hdf5", "r+") as file:
        del file["data/demo_1/obs/state"]
        file["data/demo_0/obs/state"][3, 1] = np.nan
    path = tmp_path / "mixture.yaml"
    path.write_text(yaml.safe_dump({"datasets": [{"path": "a", "weight": 3}, {"path": "b.hdf5"}]}))
    assert main(["inspect", str(path), "json=true", f"html={tmp_path / 'page.html'}"]) == 0
    found = json.loads(capsys.readouterr().out)
    (a, b), said = found["datasets"], " ".join(found["problems"])
    assert (a["name"], a["episodes"], a["left_out"], a["weight"]) == ("a", 3, 0, 3)
    assert (b["name"], b["episodes"], b["left_out"], b["weight"]) == ("b", 3, 2, 1)
    assert (found["episodes"], found["left_out"], found["lost"]) == (6, [3], 1)
    assert "episode 6 (episode 4 of b) like episode 4 (episode 2 of b)" in said
    assert found["called"][-1] == "episode 6 (episode 4 of b)"
    page = (tmp_path / "page.html").read_text()
    assert ">b</th><td>robomimic</td>" in page
    assert "2 left out" in page
    assert main(["inspect", str(path)]) == 0
    shown = capsys.readouterr().out
    assert "mixture, 6 episodes (2 left out)" in shown
    assert "b: robomimic, 3 episodes (2 left out)" in shown
    assert "weight 3" in shown


def test_nan_that_keeps_numbers_from_being_made_alike_is_told_once(tmp_path, capsys):
    path = mixed(tmp_path, "each")
    assert main(["inspect", str(path), "json=true"]) == 0
    assert sum("NaN" in item for item in json.loads(capsys.readouterr().out)["problems"]) == 1


@pytest.mark.parametrize("frames", ["0", "5000"])
def test_a_sheet_has_so_many_frames(tmp_path, capsys, frames):
    assert main(["inspect", str(tmp_path / "a"), f"frames={frames}"]) == 2
    assert "expected from 1 to 100" in capsys.readouterr().err


@pytest.mark.parametrize("rate", ["inf", "nan", "0"])
def test_a_rate_that_no_clock_has_is_refused(tmp_path, capsys, rate):
    write_store(tmp_path / "a", SPEC, episodes(0))
    assert main(["inspect", str(tmp_path / "a"), f"rate={rate}"]) == 1
    assert "expected control steps per second" in capsys.readouterr().err
