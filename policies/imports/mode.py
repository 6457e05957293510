"""Checkpoints of MoDE's release (Reuss et al. 2024, arXiv 2412.12953; MoDE_Diffusion_Policy) as policies of ours.

A folder as its evaluation reads it: `.hydra/config.yaml`, the run's settings, and `model_cleaned.safetensors`, the agent's
weights. CLIP, whose vectors are its goals, is not asked for again once the policy is made.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor

from ...spec import Feature, KinoiseError, Spec, SpecMismatch, Stats
from .. import build_policy
from ..bounded import held_by, no_larger
from ..encoders import FilmConfig
from ..encoders.image import STAGES
from ..mode import ModeConfig
from .bounds import shown
from .clip import clip_vectors
from .mode_config import AgentSettings, read_settings
from .robot import Imported, Robot
from .tensors import Tensors, read_named

WEIGHTS = ("model_cleaned.safetensors", "model.safetensors")
INNER, CAMERAS = "model.inner_model", ("static_resnet", "gripper_resnet")
ALIASES = {
    "img_encoder_image_primary.": "static_resnet.",
    "img_encoder_image_secondary.": "static_resnet.",
    "img_encoder_image_wrist.": "gripper_resnet.",
}
"""Beginnings of names in some files of the release, from pretraining, and what its own loader takes them for."""
IGNORED = ("language_goal.", f"{INNER}.gripper_embed.")
"""CLIP itself, and a matrix that its network has and does not use."""
TRACKED = "num_batches_tracked"
"""How often a batch norm was trained, which files may lack."""
PLAIN = {
    "network.actions": "action_emb",
    "network.noise.layers.0": "sigma_emb",
    "network.noise.layers.1": "sigma_linear",
    "network.norm": "ln.g",
    "network.head": "out",
    "observe.goal": "goal_emb",
    "observe.seen": "tok_emb",
}
LAYER = {
    "norms.0": "ln_1.g",
    "norms.1": "ln_2.g",
    "attention.out.weight": "attn.c_proj.weight",
    "attention.query_norm": "attn.q_norm.g",
    "attention.key_norm": "attn.k_norm.g",
}
EXPERTS = {"w_in_EHD": "mlp.0.project.weight", "b_in_EH": "mlp.0.project.bias", "w_out_EDH": "mlp.2.weight"}
ROUTERS = {"w_in_LHD": "mlp.0.weight", "b_in_LH": "mlp.0.bias", "w_out_LEH": "mlp.3.weight", "b_out_LE": "mlp.3.bias"}


def import_mode(folder: Path, robot: Robot) -> Imported:
    """A policy out of `folder`; its instructions are those of the robot's data or simulator, as vectors by `robot.clip`.

    Raises KinoiseError for files that are missing or damaged, settings that kinoise hasn't, a robot without images,
    instructions or CLIP, one that is commanded otherwise, and tensors that don't fit (listed).
    """
    source = read_settings(folder)
    config, cameras = source.policy(), source.cameras()
    weights = next((folder / name for name in WEIGHTS if (folder / name).is_file()), folder / WEIGHTS[0])
    spec, texts = _robot(robot, source, cameras, config.film.sizes)
    if robot.clip is None:
        raise KinoiseError(
            f"{folder}: its goals are CLIP's vectors of instructions: give clip=, a folder with the CLIP that it was trained "
            f"with ({shown(source.get('model.language_goal.model_name', 'unknown'))}) as transformers writes it"
        )
    found = read_named(weights, _canonical)
    tensors = Tensors(found, weights)
    stats: dict[str, Stats] = dict.fromkeys(spec.observations, _stats(config.film))
    stats["action"] = _unscaled(spec.action_dim)
    with no_larger(held_by(found), weights, source.path):
        policy = build_policy(config, spec, stats, texts)
    state = _weights(tensors, policy.state_dict(), config)
    tensors.finish(IGNORED)
    state["observe.texts.table"] = clip_vectors(robot.clip, texts, config.film.condition)
    policy.load_state_dict(state)
    notes = [f"its cameras, static and gripper, are {' and '.join(spec.observations)}; it knows {len(texts)} instructions"]
    if config.film.flip:
        notes.append(
            "it was trained on LIBERO's pictures, which lie upside down: it turns those of the robot, as film.flip says"
        )
    return Imported(policy.eval(), weights, notes)


def _robot(robot: Robot, source: AgentSettings, cameras: list[str], sizes: list[int]) -> tuple[Spec, tuple[str, ...]]:
    """The spec of a policy that sees these cameras, static first, and its instructions."""
    if robot.like is None or not robot.like[1] or not robot.like[0].language:
        raise KinoiseError(
            f"{source.path}: its policy is told instructions, and knows those alone that it was imported with: "
            "give data= or env= that have some"
        )
    keys, data = robot.keys(cameras), robot.like[0]
    known = {key: item for key, item in data.observations.items() if item.kind == "image"}
    features = {key: known.get(key, Feature((size, size, 3), "image")) for key, size in zip(keys, sizes, strict=True)}
    spec, texts = robot.spec(features, source.integer("model.model.inner_model.action_dim"))
    actions = source.get("datamodule.observation_space.actions", [])
    if isinstance(actions, list) and "rel_actions" in actions and spec.control != "delta":
        raise SpecMismatch(
            f"the policy's actions are steps (rel_actions), the robot's are {spec.control}: expected control=delta"
        )
    return spec, texts


def _stats(film: FilmConfig) -> Stats:
    """Of pictures, as the release scales them."""
    mean, std = (tuple(255 * item for item in part) for part in (film.mean, film.deviation))
    low, high = (0.0,) * 3, (255.0,) * 3
    return Stats(mean, std, low, high, low, high, count=1)


def _unscaled(size: int) -> Stats:
    """Of actions that the network gives as they are carried out, in [-1, 1]."""
    low, high = (-1.0,) * size, (1.0,) * size
    return Stats((0.0,) * size, (0.5,) * size, low, high, low, high, count=1)


def _canonical(name: str) -> str:
    begin = next((alias for alias in ALIASES if name.startswith(alias)), "")
    return ALIASES.get(begin, "") + name.removeprefix(begin)


def _weights(found: Tensors, expected: Mapping[str, Tensor], config: ModeConfig) -> dict[str, Tensor]:
    """Our tensors, `expected` by name and shape, out of theirs; without the instructions' vectors."""
    position = expected["network.position"]
    # Theirs has one table: the instruction's place, then the actions', the first of which is the cameras' too.
    table = found.get(f"{INNER}.pos_emb", position.new_empty(1, 1 + len(position), position.shape[-1]))[0]
    result = {"observe.place": table[:2], "network.position": table[1:]}
    for name, like in expected.items():
        if name in result or name == "observe.texts.table":
            continue
        last, theirs = name.rpartition(".")[2], _theirs(name, config)
        if last == TRACKED:
            result[name] = found.get(theirs[0], like) if theirs[0] in found else like
        elif last in EXPERTS or last in ROUTERS:
            result[name] = torch.stack([found.get(one, item) for one, item in zip(theirs, like, strict=True)])
        elif name.endswith(("network.film.weight", "network.film.bias")):
            rows = [len(like) * stage // sum(STAGES) for stage in STAGES]
            result[name] = torch.cat([found.get(one, item) for one, item in zip(theirs, like.split(rows), strict=True)])
            if last == "bias":  # theirs scale by what the map gives, ours by one more: the same map less one
                for part in result[name].split(rows):
                    part.unflatten(0, (2, 2, -1))[:, 0] -= 1
        else:
            result[name] = torch.cat([found.get(one, item) for one, item in zip(theirs, like.chunk(len(theirs)), strict=True)])
    return {name: item.contiguous() for name, item in result.items()}


def _theirs(name: str, config: ModeConfig) -> list[str]:
    """Their tensors that one of ours is made of, in order."""
    place, _, rest = name.partition(".")
    module, _, kind = name.rpartition(".")
    if name == "network.norm" or module in PLAIN:
        return [f"{INNER}.{PLAIN[name]}" if name in PLAIN else f"{INNER}.{PLAIN[module]}.{kind}"]
    if place == "observe":
        _, index, own = rest.split(".", 2)
        return list(_seen(own, CAMERAS[int(index)]))
    if rest.startswith("routers."):
        return [f"{INNER}.blocks.{layer}.router.router.{ROUTERS[kind]}" for layer in range(config.network.depth)]
    _, index, own = rest.split(".", 2)
    block = f"{INNER}.blocks.{index}"
    if own.startswith("experts."):
        return [f"{block}.experts.expert_{expert}.{EXPERTS[kind]}" for expert in range(config.network.experts)]
    if own.startswith("attention.into."):
        return [f"{block}.attn.{part}.{kind}" for part in ("query", "key", "value")]
    return [f"{block}.{LAYER[own]}"]


def _seen(name: str, camera: str) -> Iterator[str]:
    """The same of a camera's network: ResNet-18 has the names of torchvision's, the others those of timm's."""
    module, _, kind = name.rpartition(".")
    first, *path = module.split(".")
    if first == "network":  # ResNet-18
        first, *path = path
        if first == "film":
            yield from (f"{camera}.film_module{stage}.modulation.1.{kind}" for stage in range(1, 1 + len(STAGES)))
        elif first == "out":
            yield f"{camera}.fc.{kind}"
        elif first == "blocks":
            path[:1] = map(str, divmod(int(path[0]), 2))  # two blocks a stage
    else:
        camera = f"{camera}.resnet"
    if first == "stem":
        yield f"{camera}.{('conv1', 'bn1')[int(path[0])]}.{kind}"
    elif first == "films":
        yield from (f"{camera.removesuffix('.resnet')}.film{int(path[0]) + 1}.{part}.{kind}" for part in ("gamma", "beta"))
    elif first in ("blocks", "stages"):
        stage, block, branch, number = path
        layer, place = f"{camera}.layer{int(stage) + 1}.{block}", int(number)
        own = f"downsample.{place}" if branch == "skip" else f"{('conv', 'bn')[place % 3]}{place // 3 + 1}"
        yield f"{layer}.{own}.{kind}"
