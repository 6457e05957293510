"""LeRobot's DiffusionPolicy as settings of ours, and back. What these can't say is refused, with its name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ...spec import Feature, KinoiseError
from ..core.network import NetworkConfig
from ..core.network.config import UNetConfig
from ..core.process import ProcessConfig
from ..decode import DecodeConfig
from ..diffusion import DiffusionConfig
from ..encoders import VectorConfig

STATE, ENVIRONMENT, ACTION = "observation.state", "observation.environment_state", "action"
OBSERVATION, IMAGES = "observation.", "observation.images."
PARAMETRISATIONS = {"epsilon": "eps", "sample": "x0"}
MODES = {"IDENTITY": "none", "MIN_MAX": "minmax", "MEAN_STD": "meanstd", "QUANTILES": "quantile"}
CLIPS = {"DDPM": "belief", "DDIM": "signal"}
"""What diffusers' schedulers clamp, by LeRobot's name of them."""
LINEAR = 20
"""`linear` betas go up to LINEAR / levels, which at as many levels leaves nothing to scale: diffusers divides by 0 there."""

DEFAULTS: dict[str, Any] = {
    "n_obs_steps": 2,
    "horizon": 16,
    "n_action_steps": 8,
    "normalization_mapping": {"VISUAL": "MEAN_STD", "STATE": "MIN_MAX", "ACTION": "MIN_MAX"},
    "vision_backbone": "resnet18",
    "resize_shape": None,
    "crop_ratio": 1.0,
    "crop_shape": None,
    "use_group_norm": True,
    "spatial_softmax_num_keypoints": 32,
    "use_separate_rgb_encoder_per_camera": False,
    "down_dims": [512, 1024, 2048],
    "kernel_size": 5,
    "n_groups": 8,
    "diffusion_step_embed_dim": 128,
    "use_film_scale_modulation": True,
    "noise_scheduler_type": "DDPM",
    "num_train_timesteps": 100,
    "beta_schedule": "squaredcos_cap_v2",
    "beta_start": 0.0001,
    "beta_end": 0.02,
    "prediction_type": "epsilon",
    "clip_sample": True,
    "clip_sample_range": 1.0,
    "num_inference_steps": None,
}
"""LeRobot's, for what a config.json leaves out."""


@dataclass(frozen=True)
class Layout:
    """What LeRobot's policy observes, in the order in which its network sees it.

    Args:
        features: shapes by LeRobot's names: the state, the cameras in their order, the environment's state.
        keys: ours of each.
        action: numbers in an action.
        modes: how each is scaled, by our names of scalings; the action's too.
        ignored: features that its network doesn't look at.
    """

    features: Mapping[str, tuple[int, ...]]
    keys: Mapping[str, str]
    action: int
    modes: Mapping[str, str] = field(default_factory=dict)
    ignored: Sequence[str] = ()

    @property
    def cameras(self) -> list[str]:
        return [name for name in self.features if name not in (STATE, ENVIRONMENT)]

    @property
    def states(self) -> list[str]:
        return [name for name in self.features if name in (STATE, ENVIRONMENT)]

    @property
    def observations(self) -> dict[str, Feature]:
        """Ours, in the order of our network: states, then cameras."""
        found = {self.keys[name]: Feature(self.features[name]) for name in self.states}
        for name in self.cameras:
            _, height, width = self.features[name]
            found[self.keys[name]] = Feature((height, width, 3), "image")
        return found


def our_key(name: str) -> str:
    """`observation.images.top` is `image.top`, `observation.state` is `state`: as of its data sets."""
    return f"image.{name.removeprefix(IMAGES)}" if name.startswith(IMAGES) else name.removeprefix(OBSERVATION)


def their_name(key: str, feature: Feature) -> str:
    camera = feature.kind == "image" and key.startswith("image.")
    return f"{IMAGES}{key.removeprefix('image.')}" if camera else f"{OBSERVATION}{key}"


def read_config(value: Any, source: str) -> dict[str, Any]:
    """LeRobot's settings with its defaults. Raises KinoiseError for another policy, and for what isn't supported."""
    if not isinstance(value, dict) or value.get("type") != "diffusion":
        found = value.get("type") if isinstance(value, dict) else None
        raise KinoiseError(
            f"{source}: policy type {found!r}; kinoise imports LeRobot's 'diffusion', and the types of the plugin "
            "lerobot_policy_kinoise, 'kinoise_...'. Others can't be represented"
        )
    if not isinstance(value.get("input_features"), dict) or not isinstance(value.get("output_features"), dict):
        raise KinoiseError(
            f"{source}: input_features and output_features are missing, as before LeRobot 0.2. Load and save the policy with a "
            "newer LeRobot first"
        )
    found = {**DEFAULTS, **{key: item for key, item in value.items() if key in DEFAULTS and item is not None}}
    found |= {"input_features": value["input_features"], "output_features": value["output_features"]}
    for name, item in (*value["input_features"].items(), *value["output_features"].items()):
        shape = item.get("shape") if isinstance(item, dict) and isinstance(item.get("type"), str) else None
        if not isinstance(shape, list) or not all(type(size) is int and size > 0 for size in shape):
            raise KinoiseError(f"{source}: {name} is {item!r}: expected a type and a shape. The file is damaged")
    if found["resize_shape"] is not None and found["crop_ratio"] == 1.0:
        found["crop_shape"] = None
    _refuse(found, source)
    return found


def _refuse(value: Mapping[str, Any], source: str) -> None:
    for key, default in DEFAULTS.items():
        item = value[key]
        kind = (int,) if default is None and "steps" in key else (list,) if default is None else (type(default),)
        whole = isinstance(item, (int, *kind) if float in kind else kind) and isinstance(item, bool) == (bool in kind)
        whole &= not isinstance(item, list) or all(type(part) is int and part > 0 for part in item)
        if item is not None and not (whole and (type(item) is not int or item > 0)):
            raise KinoiseError(f"{source}: {key}={item!r}: expected something like {default!r}. The file is damaged")
    linear = value["beta_schedule"] == "linear"
    levels = value["num_train_timesteps"]
    standard = (
        linear
        and levels > LINEAR
        and abs(value["beta_start"] * levels - 0.1) < 1e-9
        and abs(value["beta_end"] * levels - 20) < 1e-9
    )
    problems = {
        f"vision_backbone={value['vision_backbone']}: resnet18 and resnet34 alone": (
            value["vision_backbone"] not in ("resnet18", "resnet34")
        ),
        f"beta_schedule={value['beta_schedule']} from {value['beta_start']} to {value['beta_end']}: squaredcos_cap_v2, "
        f"and linear from {0.1 / levels:g} to {20 / levels:g} alone": (
            value["beta_schedule"] != "squaredcos_cap_v2" and not standard
        ),
        f"crop_ratio={value['crop_ratio']}: above 0, and 1 at most": not 0 < value["crop_ratio"] <= 1,
        f"prediction_type={value['prediction_type']}: epsilon and sample alone": (
            value["prediction_type"] not in PARAMETRISATIONS
        ),
        f"noise_scheduler_type={value['noise_scheduler_type']}: DDPM and DDIM alone": (
            value["noise_scheduler_type"] not in CLIPS
        ),
        f"num_inference_steps={value['num_inference_steps']}: the {levels} levels of num_train_timesteps at most": (
            (value["num_inference_steps"] or 0) > levels
        ),
        f"output_features={sorted(value['output_features'])}: 'action' alone": list(value["output_features"]) != [ACTION],
    }
    wrong = [text for text, bad in problems.items() if bad]
    if wrong:
        raise KinoiseError(f"{source}: not supported: {'; '.join(wrong)}")


def layout(value: Mapping[str, Any], renamed: Mapping[str, str], modes: Mapping[str, str], source: str) -> Layout:
    """Args:
        renamed: LeRobot's name of an observation -> the name under which the policy knows it (its processor's rename_map).
        modes: LeRobot's scaling of each feature that has statistics.

    Raises KinoiseError for features that DiffusionPolicy doesn't take.
    """
    given = {**value["input_features"], **value["output_features"]}
    features = {name: (item["type"], tuple(item["shape"])) for name, item in given.items()}
    _, action = features.pop(ACTION)
    cameras = [name for name, (kind, _) in features.items() if kind == "VISUAL"]
    used = [name for name in (STATE, *cameras, ENVIRONMENT) if name in features]
    bent = [name for name in used if len(features[name][1]) != (3 if name in cameras else 1)]
    if STATE not in features or len(action) != 1 or bent:
        raise KinoiseError(f"{source}: expected '{STATE}', a vector, and cameras of 3 x height x width; came {features}")
    before = {own: name for name, own in renamed.items()}
    keys = {name: our_key(before.get(name, name)) for name in used}
    unknown = {mode for mode in modes.values() if mode not in MODES}
    if unknown:
        raise KinoiseError(f"{source}: not supported: normalisation {sorted(unknown)}; kinoise knows {', '.join(MODES)}")
    scalings = {name: MODES[modes.get(name, "IDENTITY")] for name in (*used, ACTION)}
    if len({scalings[name] for name in cameras}) > 1:
        raise KinoiseError(f"{source}: cameras scaled differently: {scalings}")
    ignored = [name for name in features if name not in used]
    return Layout({name: features[name][1] for name in used}, keys, action[0], scalings, ignored)


def settings(value: Mapping[str, Any], found: Layout) -> DiffusionConfig:
    """Ours, for settings that `read_config` has checked."""
    past, levels = value["n_obs_steps"] - 1, value["num_train_timesteps"]
    ddim = value["noise_scheduler_type"] == "DDIM"
    image = found.modes[found.cameras[0]] if found.cameras else "none"
    return DiffusionConfig(
        observations=list(found.keys[name] for name in (*found.states, *found.cameras)),
        history=value["n_obs_steps"],
        past=past,
        chunk=value["horizon"] - past,
        execute=value["n_action_steps"],
        goal_dropout=0.0,
        actions=found.modes[ACTION],
        process=ProcessConfig(
            kind="vp",
            parametrisation=PARAMETRISATIONS[value["prediction_type"]],
            levels=levels,
            betas=value["beta_schedule"],
            spacing="leading",
            clip=float(value["clip_sample_range"]) if value["clip_sample"] else None,
            clips=CLIPS[value["noise_scheduler_type"]],
        ),
        network=NetworkConfig(
            kind="unet",
            positions=levels,
            unet=UNetConfig(
                widths=list(value["down_dims"]),
                kernel=value["kernel_size"],
                groups=value["n_groups"],
                embedding=value["diffusion_step_embed_dim"],
                film_scale=value["use_film_scale_modulation"],
            ),
        ),
        vector=VectorConfig(
            state=found.modes[STATE],
            states={found.keys[ENVIRONMENT]: found.modes[ENVIRONMENT]} if ENVIRONMENT in found.features else {},
            image=image,
            resize=None if value["resize_shape"] is None else list(value["resize_shape"]),
            crop=None if value["crop_shape"] is None else list(value["crop_shape"]),
            backbone=value["vision_backbone"],
            norm="group" if value["use_group_norm"] else "batch",
            shared_cameras=not value["use_separate_rgb_encoder_per_camera"],
            keypoints=value["spatial_softmax_num_keypoints"],
            language=False,
        ),
        decode=DecodeConfig(sampler="ddim" if ddim else "ddpm", steps=value["num_inference_steps"] or levels),
    )
