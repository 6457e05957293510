"""Checkpoints by whoever wants to harm: refused in one line, nothing executed, no memory taken on their word."""

from __future__ import annotations

import json
import pickle
import resource
import shutil
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from kinoise.policies.checkpoint import load_policy, save_policy
from kinoise.spec import KinoiseError
from small_policies import small

GROWTH = 200 << 10
"""KiB that refusing may take."""


class Payload:
    """Makes a file when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, tuple[str, str]]:
        return exec, (f"open({str(self.mark)!r}, 'w').close()", "")


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("sound") / "checkpoint"
    path.mkdir()
    save_policy(path, small("diffusion"), {})
    load_policy(path, device="cpu")
    return path


@pytest.fixture
def checkpoint(sound: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(sound, tmp_path / "checkpoint"))


def refused(checkpoint: Path, said: str) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(KinoiseError, match=said):
        load_policy(checkpoint, device="cpu")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < GROWTH


def pickled(file: Path, mark: Path) -> None:
    file.write_bytes(pickle.dumps({"weight": Payload(mark)}))


def by_torch(file: Path, mark: Path) -> None:
    torch.save({"weight": Payload(mark)}, file)


def zipped(file: Path, mark: Path) -> None:
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("data.pkl", pickle.dumps(Payload(mark)))


def endless_header(file: Path, mark: Path) -> None:
    file.write_bytes(struct.pack("<Q", 2**60) + b"{}")


def beyond_the_file(file: Path, mark: Path) -> None:
    header = json.dumps({"weight": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}}).encode()
    file.write_bytes(struct.pack("<Q", len(header)) + header)


def nothing(file: Path, mark: Path) -> None:
    file.write_bytes(b"")


@pytest.mark.parametrize("write", [pickled, by_torch, zipped, endless_header, beyond_the_file, nothing])
def test_weights_that_are_no_safetensors_are_refused_and_never_unpickled(
    write: Callable[[Path, Path], None], checkpoint: Path, tmp_path: Path
) -> None:
    mark = tmp_path / "executed"
    for name in ("ema.safetensors", "model.safetensors"):
        write(checkpoint / name, mark)
    refused(checkpoint, r"ema\.safetensors can't be read")
    assert not mark.exists()


def changed(checkpoint: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    file = checkpoint / "config.json"
    value = json.loads(file.read_text())
    change(value)
    file.write_text(json.dumps(value))


def nested(depth: int) -> Any:
    value: Any = 0
    for _ in range(depth):
        value = [value]
    return value


SETTINGS: list[tuple[str, Callable[[dict[str, Any]], Any], str]] = [
    ("width", lambda value: value["policy"]["network"].update(width=2**20), "do not belong together|no policy can be built"),
    ("depth", lambda value: value["policy"]["network"].update(depth=10**6), "do not belong together|no policy can be built"),
    ("chunk", lambda value: value["policy"].update(chunk=10**12), "do not belong together|no policy can be built"),
    (
        "levels",
        lambda value: value["policy"]["process"].update(kind="vp", parametrisation="eps", levels=10**9),
        "do not belong together",
    ),
    ("digits", lambda value: value["policy"]["network"].update(width=10**400), "config.json"),
    ("environment", lambda value: value["policy"].update(observations=["${oc.env:HOME}"]), "looked up elsewhere"),
    ("name", lambda value: value["policy"].update(name=["mode"]), "is unknown"),
    ("nested", lambda value: value["policy"].update(observations=nested(900)), "config.json"),
    ("rate", lambda value: value["spec"].update(rate="fast"), "'rate' has to be a number"),
    ("shape", lambda value: value["spec"]["action"].update(shape=[2**40, 2**40]), "'shape' has to be"),
    ("low", lambda value: value["spec"]["action"].update(low=nested(900)), "'low' has to be"),
    ("mean", lambda value: value["stats"]["action"].update(mean="x"), "'mean' has to be"),
    ("texts", lambda value: value.update(texts=[{}]), r"\['texts'\] are missing or damaged"),
    ("stats", lambda value: value["stats"]["action"].update(mean=[0.0]), "dimensions for a feature"),
]


@pytest.mark.parametrize(("change", "said"), [item[1:] for item in SETTINGS], ids=[item[0] for item in SETTINGS])
def test_settings_that_ask_for_too_much_or_make_no_sense_are_refused(
    change: Callable[[dict[str, Any]], Any], said: str, checkpoint: Path
) -> None:
    changed(checkpoint, change)
    refused(checkpoint, said)


@pytest.mark.parametrize("text", ["[" * 100_000, "9" * 5000, '{"format": ' + "9" * 5000 + "}", "\x00", '"'])
def test_a_config_that_json_itself_gives_up_on_is_refused(text: str, checkpoint: Path) -> None:
    (checkpoint / "config.json").write_text(text)
    refused(checkpoint, "config.json is not valid JSON")
