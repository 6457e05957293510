"""Data sets by whoever wants to harm: what fuzzing found (benchmarks/fuzz.py), and what it would take longer to find."""

from __future__ import annotations

import json
import shutil
import zipfile
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from kinoise.data import FORMATS, Episode, Reading
from kinoise.data.base import episode
from kinoise.data.check import extras_from_json
from kinoise.spec import Feature, KinoiseError, Spec, Stats

SPEC = Spec({"state": Feature((3,))}, Feature((2,), low=(-1.0,) * 2, high=(1.0,) * 2), rate=10.0, language=False)


def demonstrations() -> list[Episode]:
    arrays = {"state": np.zeros((4, 3), np.float32), "action": np.zeros((4, 2), np.float32)}
    return [Episode(arrays, "", {"index": index}) for index in range(2)]


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    place = tmp_path_factory.mktemp("sound")
    names = {"kinoise": "native", "zarr": "replay", "lerobot": "lerobot"}
    for name, folder in names.items():
        FORMATS[name].write(place / folder, SPEC, demonstrations())
    return {name: place / folder for name, folder in names.items()}


def opened(name: str, path: Path) -> list[str]:
    """What is reported of a data set that can be opened; its first episode is read."""
    said: list[str] = []
    episode(FORMATS[name](path, Reading(rate=10.0), said.append), 0)
    return said


def changed(file: Path, *keys: Any, to: Any) -> None:
    value = json.loads(file.read_text())
    place = value
    for key in keys[:-1]:
        place = place[key]
    place[keys[-1]] = to
    file.write_text(json.dumps(value))


DEEP = json.loads("[" * 900 + "0" + "]" * 900)
CASES: list[tuple[str, str, tuple[Any, ...], Any, str]] = [
    ("kinoise", "kinoise.json", ("spec", "observations", "state", "low"), DEEP, "'low' has to be a list of numbers"),
    ("kinoise", "kinoise.json", ("spec", "observations", "state", "shape"), [float("inf")], "'shape' has to be"),
    ("kinoise", "kinoise.json", ("spec", "observations", "state", "shape"), [2**40, 2**40], "'shape' has to be"),
    ("kinoise", "kinoise.json", ("spec", "rate"), [10], "'rate' has to be a number"),
    ("kinoise", "kinoise.json", ("episodes", 0, "text"), 2**63, "lacks what a store needs"),
    ("kinoise", "kinoise.json", ("extras",), {"x": {"dtype": "object", "shape": []}}, "extras or meta are damaged"),
    ("kinoise", "kinoise.json", ("extras",), {"../x": {"dtype": "float32", "shape": []}}, "extras or meta are damaged"),
    ("kinoise", "data/action/.zarray", ("chunks", 0), float("inf"), "lacks shape and chunks"),
    ("zarr", "meta/episode_ends/.zarray", ("chunks", 0), float("inf"), "has damaged metadata"),
    ("zarr", "meta/episode_ends/.zarray", ("shape", 0), 10**12, "has damaged metadata: .* chunks, but"),
    ("zarr", "data/action/.zarray", ("shape",), [10**9, 10**9], "has damaged metadata: .* chunks, but"),
    ("zarr", "data/action/.zarray", ("dtype",), "(2,", "has damaged metadata"),
    ("zarr", "data/action/.zarray", ("shape",), [-1, 10**11], "has damaged metadata .*none below 0"),
    ("zarr", "data/action/.zarray", ("dimension_separator",), True, "has damaged metadata .*the separator True"),
    ("lerobot", "meta/info.json", ("features", "action", "shape"), [float("inf")], "is damaged"),
]


@pytest.mark.parametrize(
    ("name", "file", "keys", "to", "said"), CASES, ids=[f"{c[1]}-{c[2][-1]}-{n}" for n, c in enumerate(CASES)]
)
def test_metadata_that_make_no_sense_are_refused_in_one_line(
    name: str, file: str, keys: tuple[Any, ...], to: Any, said: str, sound: dict[str, Path], tmp_path: Path
) -> None:
    path = Path(shutil.copytree(sound[name], tmp_path / "store"))
    changed(path / file, *keys, to=to)
    with pytest.raises(KinoiseError, match=said):
        opened(name, path)


@pytest.mark.parametrize(
    ("name", "file"), [("kinoise", "kinoise.json"), ("zarr", "meta/episode_ends/.zarray"), ("lerobot", "meta/info.json")]
)
@pytest.mark.parametrize("text", ["[" * 100_000, '{"a": ' + "9" * 5000 + "}"])
def test_json_that_its_own_reader_gives_up_on_is_refused(
    name: str, file: str, text: str, sound: dict[str, Path], tmp_path: Path
) -> None:
    path = Path(shutil.copytree(sound[name], tmp_path / "store"))
    (path / file).write_text(text)
    with pytest.raises(KinoiseError, match="JSON"):
        opened(name, path)


def test_an_array_of_nothing_is_not_gone_through(sound: dict[str, Path], tmp_path: Path) -> None:
    path = Path(shutil.copytree(sound["zarr"], tmp_path / "store"))
    empty = shutil.copytree(path / "data/state", path / "data/empty") / ".zarray"
    changed(empty, "shape", to=[0, 10**12])
    changed(empty, "chunks", to=[1, 1])
    assert any("data/empty has 0 steps" in line for line in opened("zarr", path))


def test_an_array_beside_the_others_that_is_no_metadata_is_reported(sound: dict[str, Path], tmp_path: Path) -> None:
    path = Path(shutil.copytree(sound["zarr"], tmp_path / "store"))
    (path / "data" / "newer").mkdir()
    (path / "data" / "newer" / "zarr.json").write_text("[" * 100_000)
    assert any("newer" in line for line in opened("zarr", path))


def test_a_small_zip_with_endless_metadata_is_not_unpacked(tmp_path: Path) -> None:
    path = tmp_path / "bomb.zarr.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(".zgroup", '{"zarr_format": 2}')
        with archive.open("data/.zattrs", "w", force_zip64=True) as member:
            for _ in range(300):
                member.write(bytes(1 << 20))
    assert path.stat().st_size < 1 << 20
    with pytest.raises(KinoiseError, match="bytes of metadata"):
        opened("zarr", path)


@pytest.mark.parametrize("change", [{"shape": [True]}, {"kind": []}, {"names": [1]}, {"unit": "m"}, {"high": {}}])
def test_a_feature_is_what_it_should_be_or_refused(change: dict[str, Any]) -> None:
    value = SPEC.to_json()
    value["action"] |= change
    with pytest.raises(KinoiseError, match=f"'{next(iter(change))}' has to be"):
        Spec.from_json(value)


@pytest.mark.parametrize("change", [{"mean": 0.0}, {"count": "9"}, {"quantiles": [1.0]}, {"q01": [None]}])
def test_statistics_are_what_they_should_be_or_refused(change: dict[str, Any]) -> None:
    value = Stats((0.0,), (1.0,), (0.0,), (1.0,), (0.0,), (1.0,), 1).to_json() | change
    with pytest.raises(KinoiseError, match=f"'{next(iter(change))}' has to be"):
        Stats.from_json(value)


@pytest.mark.parametrize("dtype", ["O", "V0", "S5", "f8,f8", "(2,", "datetime64[ns]", "complex64", None])
def test_extras_are_numbers(dtype: Any) -> None:
    with pytest.raises((ValueError, TypeError, SyntaxError)):
        extras_from_json({"x": {"dtype": dtype, "shape": []}})


def test_an_hdf5_file_of_links_in_a_circle_ends(tmp_path: Path) -> None:
    path = tmp_path / "circle.hdf5"
    with h5py.File(path, "w") as file:
        demo = file.create_group("data/demo_0")
        demo["actions"] = np.zeros((4, 2))
        obs = demo.create_group("obs")
        obs["state"] = np.zeros((4, 3))
        obs["again"] = obs
    said: list[str] = []
    with pytest.raises(KinoiseError, match="none of its 1 episodes can be read"):
        FORMATS["robomimic"](path, Reading(rate=10.0), said.append)
    assert any("deeper than" in line for line in said)
