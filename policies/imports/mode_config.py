"""The settings of a run of MoDE's release as settings of ours. What these can't say is refused, with its name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from ...files import MALFORMED
from ...spec import KinoiseError
from ..core.network import NetworkConfig
from ..core.process import ProcessConfig
from ..decode import DecodeConfig
from ..encoders import FilmConfig
from ..mode import ModeConfig
from .bounds import LONGEST, shown
from .diffusion_policy import Settings
from .yaml_settings import read_yaml, resolved

SAMPLERS = {"ddim": "ddim", "euler": "ddim", "heun": "heun", "dpmpp_2m": "dpmpp_2m"}
"""Ours for theirs: Euler's step for the ODE of EDM is DDIM's."""
KNOWN = """
_target_ _recursive_ device action_dim state_dim obs_dim goal_dim embed_dim n_layers n_heads goal_conditioned goal_seq_len
obs_seq_len action_seq_len embed_pdrob attn_pdrop mlp_pdrop goal_drop linear_output use_proprio cond_router num_experts top_k
router_normalize use_goal_in_routing use_argmax causal use_shared_expert use_noise_token_as_input use_custom_attn_mask
init_style
"""
"""The network's settings; its attention is causal whatever `causal` says."""
BACKBONES = {"18": "resnet18", "34": "resnet34", "50": "resnet50"}


class AgentSettings(Settings):
    """The run's settings: `model` is the agent's, `datamodule` the data's."""

    def policy(self) -> ModeConfig:
        """Ours. Raises KinoiseError for what kinoise can't do."""
        inner, goal = "model.model.inner_model", "model.language_goal"
        for name, known in (
            ("model", "MoDEAgent"),
            ("model.model", "GCDenoiser"),
            (inner, "MoDeDiT"),
            (goal, "LangClip"),
        ):
            target = f"{name}._target_"
            self._expect(target, self.name(target), (known,), None)
        self.only(inner, KNOWN.split(), "MoDE's release")
        # Where a setting is missing, the release's own default counts.
        for name, known, default in (
            ("model.use_proprio", False, False),
            ("model.use_text_not_embedding", True, True),
            (f"{inner}.use_proprio", False, False),
            (f"{inner}.goal_conditioned", True, None),
            (f"{inner}.linear_output", True, True),
            (f"{inner}.cond_router", True, True),
            (f"{inner}.router_normalize", True, True),
            (f"{inner}.use_goal_in_routing", False, False),
            (f"{inner}.use_shared_expert", False, False),
            (f"{inner}.use_custom_attn_mask", False, False),
        ):
            self._expect(name, None, (known,), default)
        for name in ("goal_seq_len", "obs_seq_len"):
            self._expect(f"{inner}.{name}", None, (1,), None)
        chunk, condition = self.integer("model.act_window_size", 10, most=LONGEST), self.integer("model.cond_dim", 512)
        self._expect(f"{inner}.action_seq_len", None, (chunk,), None)
        self._expect(f"{inner}.goal_dim", None, (condition,), None)
        kind = self.get("model.resnet_type", "18")
        backbone = self._expect("model.resnet_type", str(kind) if type(kind) is int else kind, tuple(BACKBONES), None)
        grid = self._expect("model.noise_scheduler", None, ("exponential", "karras"), "exponential")
        sampler = self._expect("model.sampler_type", None, tuple(SAMPLERS), "ddim")
        scaled = [self.camera(name) for name in ("rgb_static", "rgb_gripper")]
        if scaled[0][1:] != scaled[1][1:]:
            raise KinoiseError(f"{self.path}: its cameras are scaled differently, which kinoise can't do: {scaled}")
        return ModeConfig(
            chunk=chunk,
            execute=self.integer("model.multistep", 10),
            goal_dropout=self.number(f"{inner}.goal_drop", 0.1),
            actions="none",
            process=ProcessConfig(
                kind="edm",
                parametrisation="F",
                sigma_min=self.number("model.sigma_min", 0.001),
                sigma_max=self.number("model.sigma_max", 80.0),
                sigma_data=self.number("model.model.sigma_data", 1.0),
                grid=grid,
            ),
            network=NetworkConfig(
                kind="mode",
                width=self.integer(f"{inner}.embed_dim"),
                depth=self.integer(f"{inner}.n_layers"),
                heads=self.integer(f"{inner}.n_heads"),
                ff=4.0,
                noise_token=self._expect(f"{inner}.use_noise_token_as_input", None, (True, False), True),
                noise_attention=True,
                adaptive_norm=False,
                noise_embedding="linear",
                causal=True,
                dropout=self.number(f"{inner}.mlp_pdrop", 0.1),
                experts=self.integer(f"{inner}.num_experts", 4),
                top_k=self.integer(f"{inner}.top_k", 2),
                balance=self.number("model.entropy_gamma", 0.0),
                moe_residual="normalised",
            ),
            film=FilmConfig(
                backbone=BACKBONES[backbone],
                condition=condition,
                sizes=[size for size, _, _ in scaled],
                mean=scaled[0][1],
                deviation=scaled[0][2],
                flip=self.name("datamodule._target_") == "LiberoDataModule",
            ),
            decode=DecodeConfig(sampler=SAMPLERS[sampler], steps=self.integer("model.num_sampling_steps", 10)),
        )

    def camera(self, name: str) -> tuple[int, list[float], list[float]]:
        """Its pictures' shorter side in pixels, and the mean and deviation that they are scaled by."""
        place = f"datamodule.transforms.val.{name}"
        steps = self.get(place, None)
        try:
            found = {str(step["_target_"]).rpartition(".")[2]: step for step in steps}
            resize, scale = found["Resize"], found["Normalize"]
            if [*found] == ["Resize", "ScaleImageTensor", "Normalize"] and set(resize) == {"_target_", "size", "antialias"}:
                size, mean, deviation = resize["size"], *([float(item) for item in scale[key]] for key in ("mean", "std"))
                if resize["antialias"] is True and type(size) is int and size <= LONGEST and len(mean) == len(deviation) == 3:
                    return size, mean, deviation
        except MALFORMED:
            pass  # said below, with all others
        raise KinoiseError(
            f"{self.path}: cfg.{place} is {shown(steps)}; kinoise imports Resize of the shorter side with antialias, "
            "ScaleImageTensor and Normalize, in this order, alone"
        )

    def cameras(self) -> list[str]:
        """Its names of the static camera and of the gripper's."""
        names = self.get("datamodule.observation_space.rgb_obs", ["rgb_static", "rgb_gripper"])
        if not isinstance(names, list) or len(names) != 2 or not all(isinstance(name, str) for name in names):
            raise KinoiseError(f"{self.path}: cfg.datamodule.observation_space.rgb_obs is {shown(names)}: expected two cameras")
        return names


def read_settings(folder: Path) -> AgentSettings:
    """What Hydra kept of the run. Raises KinoiseError for a folder without it, and for what is no such file."""
    path = next((folder / name for name in (".hydra/config.yaml", "hydra/config.yaml") if (folder / name).is_file()), None)
    if path is None:
        raise KinoiseError(
            f"{folder}: no .hydra/config.yaml there. Give the folder of MoDE's release that holds it beside its weights"
        )
    try:
        whole = read_yaml(path)
        # The rest of the file is about training, and names places on a disk elsewhere.
        value: dict[str, Any] = {"model": resolved(whole, ("model",))}
        data = {key: resolved(whole, ("datamodule", key)) for key in ("_target_", "transforms", "observation_space")}
        value["datamodule"] = {key: item for key, item in data.items() if item is not None}
    except (OSError, KinoiseError, YAMLError, OmegaConfBaseException, *MALFORMED) as error:
        said = " ".join(str(error).split())[:400]
        raise KinoiseError(
            f"{path}: not Hydra's settings of MoDE, model and datamodule ({type(error).__name__}: {said})"
        ) from error
    return AgentSettings(value, path)
