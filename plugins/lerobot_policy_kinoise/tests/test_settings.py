"""The settings that LeRobot's command line takes, and what is refused."""

from __future__ import annotations

from dataclasses import asdict, fields
from typing import Any

import draccus
import pytest
from kinoise.config import UsageError
from kinoise.policies import POLICIES
from kinoise.policies.imports.plugin_config import LEFT_OUT, OTHERS, THEIRS, WRITTEN
from kinoise.spec import KinoiseError
from lerobot.configs.policies import PreTrainedConfig
from lerobot.configs.types import FeatureType, NormalizationMode, PolicyFeature
from lerobot.policies.factory import make_policy_config

KINDS = ("diffusion", "mode", "discrete_vla")
STATE, ACTION = (
    {"observation.state": PolicyFeature(FeatureType.STATE, (3,))},
    {"action": PolicyFeature(FeatureType.ACTION, (2,))},
)


def decoded(kind: str, **given: Any) -> Any:
    """What a command line ends in: draccus turns its words into such a dictionary, which takes it seconds."""
    return draccus.decode(PreTrainedConfig, {"type": kind, "device": "cpu", **given})


@pytest.mark.parametrize("name", KINDS)
def test_the_defaults_are_kinoises(name):
    assert asdict(make_policy_config(f"kinoise_{name}", device="cpu").settings()) == asdict(POLICIES[name].config())


@pytest.mark.parametrize("name", KINDS)
def test_every_setting_of_kinoises_policies_can_be_given(name):
    own = {item.name for item in fields(make_policy_config(f"kinoise_{name}", device="cpu"))}
    renamed = {"name", "history", "chunk", "execute", "observations"}
    assert {item.name for item in fields(POLICIES[name].config)} - renamed <= own


@pytest.mark.parametrize("name", KINDS)
def test_every_setting_is_one_that_kinoise_reads(name):
    own = {item.name for item in fields(make_policy_config(f"kinoise_{name}", device="cpu"))}
    policys = {item.name for item in fields(POLICIES[name].config)} - {*LEFT_OUT, *THEIRS}
    assert own | {"type"} == {*WRITTEN, *OTHERS, *policys}


@pytest.mark.parametrize("name", KINDS)
def test_one_setting_leaves_the_others_of_its_part_as_they_were(name):
    changed = decoded(f"kinoise_{name}", network={"width": "64"}, decode={"steps": "9"}).settings()
    usual = POLICIES[name].config()
    usual.network.width, usual.decode.steps = 64, 9
    assert asdict(changed) == asdict(usual)


def test_lerobots_names_are_kinoises_history_chunk_and_execute():
    config = decoded("kinoise_mode", n_obs_steps="2", chunk_size=8, n_action_steps=3)
    settings = config.settings()
    assert (settings.history, settings.chunk, settings.execute) == (2, 8, 3)
    assert config.observation_delta_indices == [-1, 0]
    assert config.action_delta_indices == list(range(8))
    assert config.reward_delta_indices is None


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"n_action_steps": 20}, "n_action_steps=20"),
        ({"n_obs_steps": 0}, "n_obs_steps=0"),
        ({"normalization_mapping": {"STATE": NormalizationMode.MEAN_STD}}, "normalise themselves"),
        ({"resize_shape": (0, 5)}, "resize_shape"),
        ({"ema_max": 1.0}, "ema_max"),
        ({"simulated_delay": 12}, "simulated_delay"),
    ],
)
def test_wrong_settings_are_refused(given, words):
    with pytest.raises(ValueError, match="not available") as caught:  # LeRobot's, raised from what the policy said
        make_config(**given)
    assert isinstance(caught.value.__cause__, KinoiseError)
    assert words in str(caught.value.__cause__)


def make_config(**given: Any) -> Any:
    return make_policy_config("kinoise_mode", device="cpu", **given)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"observations": ["observation.wrist"]}, "none of the data set's"),
        ({"input_features": {}}, "nothing"),
        ({"input_features": {"observation.x": PolicyFeature(FeatureType.LANGUAGE, (1,))}}, "LANGUAGE"),
        ({"output_features": {}}, "expected 'action'"),
    ],
)
def test_wrong_features_are_refused(given, words):
    config = make_config(**{"input_features": STATE, "output_features": ACTION, **given})
    with pytest.raises(UsageError, match=words):
        config.validate_features()


def test_only_the_chosen_observations_are_used():
    both = {**STATE, "observation.images.top": PolicyFeature(FeatureType.VISUAL, (3, 40, 40))}
    config = make_config(input_features=both, output_features=ACTION, observations=["observation.state"])
    config.validate_features()
    assert list(config.input_features) == ["observation.state"]
