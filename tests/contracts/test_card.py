"""The model card: what the hub reads of it, what it says of a policy, and that nobody's own words are overwritten."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard
from kinoise.config import UsageError
from kinoise.data.hub.card import CARD, STATE, Known, edited, evaluation, write_card
from kinoise.files import sha256, write_json
from kinoise.policies import choices
from kinoise.policies.checkpoint import save_policy
from kinoise.spec import KinoiseError
from small_policies import small

SETTINGS = {"data": "/home/somebody/data/mt10", "seed": 3, "env": "metaworld/mt10", "train": {"batch_size": 128, "lr": 1e-3}}


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    place = tmp_path / "checkpoints/6000"
    place.mkdir(parents=True)
    save_policy(place, small("diffusion"), {})
    write_json(place / STATE, {"format": 1, "step": 6000, "settings": SETTINGS})
    return place


def result(checkpoint: Path, **more: Any) -> dict[str, Any]:
    return {
        "policy": {"name": "diffusion", "sha256": sha256(checkpoint / "ema.safetensors")},
        "protocol": {"env": "metaworld/mt10", "name": "metaworld", "hash": "00ff00ff00ff00ff"},
        "decode": {"sampler": "ddim", "steps": 5},
        "success": {"rate": 0.96, "low": 0.939, "high": 0.974, "n": 500, "errors": 0},
        **more,
    }


def card(checkpoint: Path) -> str:
    return (checkpoint / CARD).read_text()


def test_the_hub_reads_the_front_matter_and_a_reader_the_rest(checkpoint: Path):
    assert write_card(checkpoint)
    text = card(checkpoint)
    data = ModelCard(text).data
    assert (data.library_name, data.pipeline_tag, data.license, data.datasets) == ("kinoise", "robotics", None, None)
    assert {"robotics", "diffusion"} <= set(data.tags)
    assert data.eval_results is None
    for said in ("`mt10`: 6,000 updates of 128 windows", "| `state` | 5 |", "20 Hz", "“open the drawer”", "env=metaworld/mt10"):
        assert said in text
    assert "None has been chosen" in text
    assert "somebody" not in text


@pytest.mark.parametrize("name", list(choices()))
def test_every_policy_has_one(name: str, tmp_path: Path):
    save_policy(tmp_path, small(name), {})
    assert write_card(tmp_path)
    assert ModelCard(card(tmp_path)).data.library_name == "kinoise"


def test_evaluations_of_these_weights_stand_in_the_hubs_own_shape(checkpoint: Path, tmp_path: Path):
    write_json(tmp_path / "eval/result.json", result(checkpoint))
    found = evaluation(tmp_path / "eval", checkpoint)
    write_card(checkpoint, Known("me/reach", "apache-2.0", ("me/mt10",), (found,)))
    data = ModelCard(card(checkpoint)).data
    (item,) = data.eval_results
    assert (data.model_name, data.license, data.datasets, data.metrics) == (
        "reach",
        "apache-2.0",
        ["me/mt10"],
        ["success_rate"],
    )
    assert (item.task_type, item.dataset_name, item.metric_type, item.metric_value) == (
        "robotics",
        "metaworld/mt10",
        "success_rate",
        0.96,
    )
    assert "| metaworld/mt10 | 0.960 | 0.939 to 0.974 | 500 | 0 | ddim, 5 steps | metaworld, `00ff00ff00ff00ff` |" in card(
        checkpoint
    )
    assert "kinoise pull me/reach POLICY" in card(checkpoint)

    write_json(tmp_path / "other/result.json", result(checkpoint, policy={"sha256": "0" * 64}))
    with pytest.raises(KinoiseError, match="of other weights"):
        evaluation(tmp_path / "other", checkpoint)
    write_json(tmp_path / "other/result.json", {"policy": {"sha256": "0" * 64}})
    with pytest.raises(KinoiseError, match="not what kinoise eval writes"):
        evaluation(tmp_path / "other", checkpoint)


def test_a_card_that_somebody_edited_is_left_alone(checkpoint: Path):
    assert write_card(checkpoint)
    assert not edited(card(checkpoint))
    (checkpoint / CARD).write_text(card(checkpoint).replace("None has been chosen", "Ask me"))
    before = card(checkpoint)
    assert edited(before)
    assert not write_card(checkpoint, Known(license="mit"))
    assert card(checkpoint) == before
    (checkpoint / CARD).write_text("# mine\n")
    assert not write_card(checkpoint)


def test_what_an_earlier_card_says_stays_where_nothing_else_is_known(checkpoint: Path):
    write_card(checkpoint, Known("me/a", "mit", ("me/data",)))
    (checkpoint / STATE).unlink()  # as in a checkpoint from the hub
    assert write_card(checkpoint, Known("me/b"))
    data = ModelCard(card(checkpoint)).data
    assert (data.license, data.datasets) == ("mit", ["me/data"])
    assert "`mt10`: 6,000 updates of 128 windows" in card(checkpoint)
    assert "kinoise pull me/b POLICY" in card(checkpoint)


def test_what_it_was_imported_from_is_still_said_when_it_is_pushed(checkpoint: Path):
    (checkpoint / STATE).unlink()
    write_card(checkpoint, imported="`theirs` (from=lerobot)")
    assert write_card(checkpoint, Known("me/b"))
    assert "- Imported from `theirs` (from=lerobot).\n" in card(checkpoint)
    assert "hold the same weights" in card(checkpoint)
    assert "updates of" not in card(checkpoint)


def test_a_checkpoint_of_another_kind_has_no_card_of_ours(tmp_path: Path):
    (tmp_path / "config.json").write_text(json.dumps({"type": "act"}))
    assert not write_card(tmp_path)
    assert not (tmp_path / CARD).exists()


def test_a_damaged_checkpoint_is_said(checkpoint: Path):
    config = json.loads((checkpoint / "config.json").read_text())
    write_json(checkpoint / "config.json", {**config, "spec": {}})
    with pytest.raises(KinoiseError, match="damaged"):
        write_card(checkpoint)


@pytest.mark.parametrize("wrong", [{"license": "MIT License"}, {"datasets": ("/home/me/data",)}])
def test_names_that_the_hub_can_not_have_are_refused(wrong: dict[str, Any]):
    with pytest.raises(UsageError):
        Known(**wrong)
