"""Other projects' checkpoints by whoever wants to harm: refused in one line, no memory taken and nothing looked up."""

from __future__ import annotations

import json
import pickle
import resource
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dp_workspace
import lerobot_unets
import mode_release
import pytest
import torch
from kinoise.policies.imports import Robot, bounds, export_lerobot, export_plugin, import_policy
from kinoise.policies.imports.torch_zip import plain, read_torch
from kinoise.spec import Feature, KinoiseError, Spec
from small_policies import small

GROWTH = 400 << 10
"""KiB that refusing may take."""
LONG_S = 20.0
"""Of the processor's time; what is mended here took hours."""


@pytest.fixture(autouse=True)
def _fewer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Values are counted slowly where every call's types are checked, as in tests."""
    monkeypatch.setattr(bounds, "MOST", 20_000)


def peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def refused(source: str, path: Path, robot: Robot, said: str) -> None:
    before, began = peak(), time.process_time()
    with pytest.raises(KinoiseError, match=said) as caught:
        import_policy(source, path, robot)
    assert peak() - before < GROWTH
    assert time.process_time() - began < LONG_S
    assert len(str(caught.value)) < 5000
    assert str(path) in str(caught.value)


LARGER = "do not belong together|no policy can be built|expected 1048576 at most"


@pytest.mark.parametrize(
    "settings",
    [
        {"down_dims": [8, 16384]},
        {"down_dims": [8] * 20_000},
        {"num_train_timesteps": 10**10},
        {"num_train_timesteps": 10**400},
        {"n_obs_steps": 10**8, "horizon": 2 * 10**8},
        {"kernel_size": 10**7 + 1},
        {"input_features": {"observation.state": {"type": "STATE", "shape": [10**10]}}},
        {"spatial_softmax_num_keypoints": 10**10},
    ],
    ids=lambda value: next(iter(value)),
)
def test_lerobots_settings_that_ask_for_more_than_the_weights_hold(settings: dict[str, Any], tmp_path: Path) -> None:
    export_lerobot(lerobot_unets.small(), tmp_path)
    lerobot_unets.change(tmp_path, **settings)
    for item in tmp_path.glob("policy_*"):
        item.unlink()
    lerobot_unets.change(tmp_path, normalization_mapping={})
    refused("lerobot", tmp_path, Robot(10.0), LARGER)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("policy.model.n_emb", 16384),
        ("policy.model.n_emb", 10**6),
        ("policy.model.n_layer", 10**6),
        ("policy.horizon", 10**6),
        ("policy.obs_dim", 10**10),
        ("policy.noise_scheduler.num_train_timesteps", 10**10),
        ("policy.model.p_drop_attn", 10**400),
    ],
)
def test_dp_ts_settings_that_ask_for_more_than_the_weights_hold(name: str, value: int, tmp_path: Path) -> None:
    path = tmp_path / "a.ckpt"
    dp_workspace.workspace(path, {name: value})
    refused("dp", path, Robot(20.0), f"{LARGER}|expected a (whole )?number from")


@pytest.mark.parametrize("levels", [10**9, 10**400, [10**9]])
def test_the_plugins_settings_that_ask_for_more_than_the_weights_hold(levels: Any, tmp_path: Path) -> None:
    export_plugin(small("diffusion"), tmp_path)
    path = tmp_path / "config.json"
    value = json.loads(path.read_text())
    value["process"].update(kind="vp", parametrisation="eps", levels=levels)
    path.write_text(json.dumps(value))
    refused("lerobot", tmp_path, Robot(), LARGER)


IMAGES = {key: Feature(shape, "image") for key, shape in zip(mode_release.CAMERAS, mode_release.SHAPES, strict=True)}
MODES = Spec(IMAGES, Feature((mode_release.ACTIONS,)), rate=10.0, control="delta", gripper=(6,))


@pytest.fixture
def mode(tmp_path: Path) -> tuple[Path, Robot]:
    """MoDE's settings beside weights that are few: all that is refused here is so before they are compared."""
    folder = mode_release.write(tmp_path / "mode", {"a": torch.zeros(3)})
    return folder, Robot(10.0, like=(MODES, mode_release.TEXTS), clip=folder / "clip")


@pytest.mark.parametrize(("name", "value"), [("n_layers", 10**6), ("num_experts", 10**6)])
def test_modes_settings_that_ask_for_more_than_the_weights_hold(
    name: str, value: int, mode: tuple[Path, Robot], tmp_path: Path
) -> None:
    _, robot = mode
    mode_release.write(tmp_path / "b", {"a": torch.zeros(3)}, {f"model.model.inner_model.{name}": value})
    refused("mode", tmp_path / "b", robot, LARGER)
    mode_release.write(tmp_path / "c", {"a": torch.zeros(3)}, {"model.latent_dim": 16384})
    refused("mode", tmp_path / "c", robot, LARGER)


def doubled(times: int = 60) -> list[Any]:
    """2^times values out of as many lists, each twice in the next."""
    value: list[Any] = []
    for _ in range(times):
        value = [value, value]
    return value


def with_settings(path: Path, change: Callable[[dict[str, Any]], Any]) -> Path:
    """DP-T's checkpoint with settings that are no OmegaConf object, which could not hold them, but plain containers."""
    dp_workspace.workspace(path)
    held = torch.load(path, weights_only=False)
    from omegaconf import OmegaConf

    settings: Any = OmegaConf.to_container(held["cfg"], resolve=True)
    change(settings)
    torch.save({**held, "cfg": settings}, path)
    return path


@pytest.mark.parametrize(
    "change",
    [
        lambda value: value["policy"].update(obs_dim=doubled()),
        lambda value: value["policy"].update(obs_dim=doubled(12)),
        lambda value: value["policy"].update(obs_dim=10**5000),
        lambda value: value["policy"].update(obs_dim=["a" * 10**6] * 10),
        lambda value: value["policy"].update(_target_="a" * 10**5),
        lambda value: value["policy"]["noise_scheduler"].update(prediction_type=doubled(12)),
        lambda value: value["policy"]["noise_scheduler"].update(prediction_type=torch.zeros(3)),
        lambda value: value["task"].update(obs_keys=doubled(12)),
    ],
    ids=["shared", "less", "digits", "text", "target", "expected", "tensor", "keys"],
)
def test_settings_that_a_pickle_repeats_end_in_a_short_line(change: Callable[[dict[str, Any]], Any], tmp_path: Path) -> None:
    path = with_settings(tmp_path / "a.ckpt", change)
    like = Spec({"arm": Feature((dp_workspace.OBS,))}, Feature((dp_workspace.ACTION,)), rate=20.0), ()
    with pytest.raises(KinoiseError) as caught:
        import_policy("dp", path, Robot(20.0, like=like))
    assert len(str(caught.value)) < 1000


def test_a_state_dict_whose_names_are_none_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.ckpt"
    _, state = dp_workspace.workspace(path)
    dp_workspace.workspace(path, state_dicts={"model": {**state, 3: torch.zeros(1)}})
    refused("dp", path, Robot(20.0), "no state dict of tensors")
    dp_workspace.workspace(path, state_dicts={"model": {**state, "x" * 10**6: torch.zeros(1)}})
    refused("dp", path, Robot(20.0), "x is unknown|does not match its settings")


def test_many_tensors_over_one_storage_take_its_memory_once(tmp_path: Path) -> None:
    """As those of tied weights do."""
    numbers = torch.zeros(2 << 20)
    torch.save([numbers.view(-1)[index:] for index in range(200)], tmp_path / "a")
    before = peak()
    found = read_torch(tmp_path / "a")
    assert len(found) == 200
    assert peak() - before < GROWTH
    assert len({item.untyped_storage().data_ptr() for item in found}) == 1


def test_members_that_share_their_bytes_are_refused(tmp_path: Path) -> None:
    """Names in a zip's directory cost nothing: all can stand for the same megabytes."""
    torch.save([torch.zeros(1 << 18), torch.zeros(1)], tmp_path / "a")
    with zipfile.ZipFile(tmp_path / "a", "a") as archive:
        name = next(item for item in archive.namelist() if item.endswith("data/0"))
        for number in range(20):
            again = zipfile.ZipInfo(f"{name}{number}")
            held = archive.getinfo(name)
            for field in ("compress_size", "file_size", "header_offset", "CRC"):
                setattr(again, field, getattr(held, field))
            archive.filelist.append(again)
        archive._didModify = True  # type: ignore[attr-defined]
    with pytest.raises(KinoiseError, match="share their bytes"):
        read_torch(tmp_path / "a")


@pytest.mark.parametrize(
    "data",
    [
        b"\x80\x05\x96" + (600 << 20).to_bytes(8, "little") + b".",
        pickle.dumps([]) + b"\0" * (5 << 20),
    ],
    ids=["bytearray", "long"],
)
def test_pickles_that_claim_memory_are_refused(data: bytes, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a", "w") as archive:
        archive.writestr("archive/data.pkl", data)
    before = peak()
    with pytest.raises(KinoiseError, match=r"bytearray|at most 4 MiB"):
        read_torch(tmp_path / "a")
    assert peak() - before < GROWTH


def test_settings_that_hold_themselves_or_lie_too_deep_are_refused() -> None:
    deep: Any = 0
    for _ in range(5000):
        deep = [deep]
    inside: list[Any] = []
    inside.append(inside)
    for value in (deep, inside, doubled()):
        with pytest.raises(KinoiseError, match="nested deeper than 64"):
            plain(value)


def yaml(folder: Path, text: str) -> Path:
    (folder / ".hydra" / "config.yaml").write_text(text)
    return folder


def laughing(reference: str) -> str:
    lines = [f"a{number}: [{reference % (number - 1)}, {reference % (number - 1)}]" for number in range(1, 60)]
    return "\n".join(["a0: [x]", *lines, f"model: {{b: {reference % 59}}}"])


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("model: &a {b: 1}\nother: *a\n", "aliases"),
        ("a: &a [x, x]\n" + "".join(f"a{i}: &a{i} [*a, *a]\n" for i in range(60)), "aliases"),
        (laughing('"${a%d}"'), "more than 20000 values"),
        ("a0: xx\n" + "".join(f'a{i}: "${{a{i - 1}}}${{a{i - 1}}}"\n' for i in range(1, 60)) + "model: ${a59}", "more than"),
        ("model: {a: '${model}'}", "more than 20000 values|nested"),
        ("model: {a: '${model.a}'}", "nested"),
        ("model: {a: '${b}'}", "isn't there"),
        ("[" * 3000, "nested deeper"),
        ("a: " + "x" * (1 << 19), "characters at most"),
        ("model: {embed_dim: 0x" + "f" * 9000 + "}", "_target_"),
    ],
)
def test_yaml_that_says_more_than_it_holds_is_refused(text: str, said: str, mode: tuple[Path, Robot]) -> None:
    refused("mode", yaml(mode[0], text), mode[1], said)


@pytest.mark.parametrize("name", ["oc.env:KINOISE_SECRET", "oc.env:KINOISE_SECRET,x", "oc.decode:${oc.env:KINOISE_SECRET}"])
@pytest.mark.parametrize("form", ["${%s}", "a-${%s}", "${%s}-${model.latent_dim}"])
def test_the_environment_is_not_looked_up(
    name: str, form: str, mode: tuple[Path, Robot], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("KINOISE_SECRET", "hush")
    changes = {"datamodule.observation_space.rgb_obs": [form % name, "b"]}
    mode_release.write(tmp_path / "b", {"a": torch.zeros(3)}, changes)
    with pytest.raises(KinoiseError, match="looked up in your environment") as caught:
        import_policy("mode", tmp_path / "b", mode[1])
    assert "hush" not in str(caught.value)


def test_references_of_all_kinds_are_followed(mode: tuple[Path, Robot]) -> None:
    from kinoise.policies.imports.mode_config import read_settings

    text = """
    size: 3
    model:
      whole: ${size}
      beside: ${.whole}
      inner: {above: '${..whole}', item: '${names[1]}', dotted: '${names.0}', text: '${names[0]}-${size}', box: '${.own}',
              own: [1]}
    names: [a, b]
    other: ${oc.env:HOME}
    """
    found = read_settings(yaml(mode[0], text)).value["model"]
    assert found["whole"] == found["beside"] == found["inner"]["above"] == 3
    assert (found["inner"]["item"], found["inner"]["dotted"], found["inner"]["text"]) == ("b", "a", "a-3")
    assert found["inner"]["box"] == [1]


def test_what_is_refused_above_is_refused_for_its_settings(mode: tuple[Path, Robot]) -> None:
    """Without a change, MoDE's settings come as far as to be compared with the weights."""
    refused("mode", *mode, "loads nothing in part")
