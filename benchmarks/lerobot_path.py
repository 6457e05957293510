"""A LeRobot user's whole path beside kinoise's own: `python -m benchmarks.lerobot_path task=drawer-close work=FOLDER`.

Both learn from the same scripted demonstrations of one of Metaworld's tasks, seen as LeRobot's Metaworld shows it: the hand (4
numbers) and one camera. Both train `mode` with a small image network in as many updates of as many windows:

- `lerobot`: the demonstrations as a LeRobot data set, `lerobot-train --policy.type=kinoise_mode`, `lerobot-eval` in LeRobot's
  Metaworld, in an environment that holds LeRobot, kinoise and its plugin. Its torch is kinoise's, newer than LeRobot's range,
  so the two commands are called by `python -m lerobot_policy_kinoise`, as docs/lerobot.md says for that case;
- `kinoise`: `kinoise train` and `kinoise eval`.

LeRobot's Metaworld draws its initial states from numpy's global generator, two a reset, and says nothing of them: episodes
can't be paired. The difference has Newcombe's interval of two independent shares. Target: it holds 0.

`seen` compares what LeRobot's Metaworld shows with kinoise's in one state: the picture brought to the policy's size, as it is
and turned, in grey levels; the hand; the task's text. LeRobot's texts are others than the data's, which is why its policy has
`language=false`: here is one task. kinoise's own knows the one text of its data, with which it is played (the 0.19 M of 2.4 M
parameters that LeRobot's side lacks).

What a step has made lies in `work` and is not made again: a command that was stopped goes on.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from math import sqrt
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from kinoise.config import UsageError, parse, run
from kinoise.files import read_json, write_json
from kinoise.spec import KinoiseError
from omegaconf import MISSING

from .peer import environment, tail
from .peers import LEROBOT, NEEDS
from .record import write

ROOT = Path(__file__).resolve().parents[1]
PLUGIN = ROOT / "plugins" / "lerobot_policy_kinoise"
SAME = ("metaworld", "mujoco")
"""In the versions that are here: both sides play in the same simulator."""
OTHERS = ("torch", "transformers", "huggingface_hub")
"""Of kinoise's needs those that LeRobot wants in other versions."""
CAMERA, HAND = "corner4", "proprio"
NETWORK = {"encoder.backbone": "resnet10", "encoder.channels": 32}
TURNS = {"upright": (1, 1), "upside_down": (-1, 1), "mirrored": (1, -1), "turned": (-1, -1)}


@dataclass
class Settings:
    """The whole command line."""

    work: str = field(default=MISSING, metadata={"help": "where data, runs and evaluations are kept"})
    task: str = field(default="drawer-close", metadata={"help": "of Metaworld"})
    demonstrations: int = 50
    steps: int = field(default=3000, metadata={"help": "updates of the weights"})
    batch_size: int = 32
    size: int = field(default=84, metadata={"help": "of the policy's pictures, in pixels"})
    drawn: int | None = field(default=None, metadata={"help": "size in LeRobot's data set; null: the policy's"})
    episodes: int = field(default=50, metadata={"help": "per seed"})
    seeds: list[int] = field(default_factory=lambda: [1000, 2000])
    folder: str = field(default="~/.cache/kinoise/peers", metadata={"help": "where LeRobot's environment is, or is made"})
    name: str = field(default="lerobot_path", metadata={"help": "results/NAME.json"})

    def __post_init__(self) -> None:
        for name in ("demonstrations", "steps", "batch_size", "episodes", "size"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name}={getattr(self, name)}: expected at least 1")
        if not self.seeds:
            raise UsageError("seeds=[]: expected at least one")


class Step(NamedTuple):
    """A command, unless what it makes is there."""

    name: str
    makes: Path
    words: list[str]
    lerobot: bool = False


def path_environment(folder: Path) -> Path:
    """The Python of an environment with LeRobot, this checkout of kinoise and its plugin, made where there is none yet."""
    own = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    names = {_name(item) for item in NEEDS} | {*SAME, *OTHERS}
    needs = [*NEEDS, *(item for item in own if _name(item) not in names), "transformers>=4.57.1,<5"]
    needs.append("imageio-ffmpeg")  # without it LeRobot's films of an evaluation are empty files
    needs += [f"{name}=={version(name)}" for name in SAME]
    return environment(folder / "lerobot-path", (*LEROBOT, "-e", str(ROOT), "-e", str(PLUGIN)), needs)


def _name(requirement: str) -> str:
    return requirement.replace("<", "=").replace(">", "=").partition("=")[0]


def steps_of(settings: Settings, work: Path) -> list[Step]:
    """All of both paths, in order."""
    drawn = settings.drawn or settings.size
    env, seen, data = f"metaworld/{settings.task}", work / "seen", work / "lerobot"
    picture = f"image.{CAMERA}"
    names = f"rename={{state: full, {HAND}: state, {picture}: image}}"
    run_, theirs = work / "run", work / "lerobot_run" / "checkpoints" / f"{settings.steps:06d}" / "pretrained_model"
    collect = ["collect", f"env={env}", f"cameras=[{CAMERA}]", f"episodes={settings.demonstrations}"]
    source = seen if drawn == settings.size else work / "drawn"  # the same episodes, for they hang on their seeds alone
    network = [f"policy.{key}={value}" for key, value in NETWORK.items()]
    own = ["policy=mode", f"data={seen}", f"out={run_}", f"policy.observations=[{HAND},{picture}]", *network, "resume=true"]
    # LeRobot's cosine ends at 0.
    own += [f"train.steps={settings.steps}", f"train.batch_size={settings.batch_size}", "train.floor=0", "train.save_every=500"]
    found = [
        Step("collect", seen, [*collect, f"size={settings.size}", f"out={seen}"]),
        *([Step("collect larger", source, [*collect, f"size={drawn}", f"out={source}"])] if source != seen else []),
        Step("convert", data, ["convert", str(source), str(data), "format=lerobot", names, "keys=[state,image]"]),
        Step("lerobot-train", theirs / "model.safetensors", _training(settings, work, data), lerobot=True),
        Step("train", work / "trained.json", ["train", *own]),
    ]
    for seed in settings.seeds:
        out = work / f"eval_{seed}"
        words = [str(run_), f"env={env}", f"episodes={settings.episodes}", f"seed={seed}", f"out={out}", "resume=true"]
        found.append(Step(f"eval {seed}", out / "result.json", ["eval", *words]))
    for seed in settings.seeds:
        out = work / f"lerobot_eval_{seed}"
        words = ["eval", f"--policy.path={theirs}", "--policy.device=cpu", "--env.type=metaworld", f"--output_dir={out}"]
        words += [f"--env.task={settings.task}-v3", f"--eval.n_episodes={settings.episodes}", "--eval.batch_size=1"]
        found.append(Step(f"lerobot-eval {seed}", out / "eval_info.json", [*words, f"--seed={seed}"], lerobot=True))
    return found


def _training(settings: Settings, work: Path, data: Path) -> list[str]:
    """`lerobot-train`, from its last checkpoint if there is one."""
    out = work / "lerobot_run"
    last = out / "checkpoints" / "last" / "pretrained_model" / "train_config.json"
    if last.is_file():
        return ["train", f"--config_path={last}", "--resume=true"]
    words = ["train", "--dataset.repo_id=kinoise/path", f"--dataset.root={data}", f"--output_dir={out}", "--eval_freq=0"]
    words += ["--policy.type=kinoise_mode", "--policy.push_to_hub=false", "--policy.device=cpu", "--policy.language=false"]
    words += [f"--policy.{key}={value}" for key, value in NETWORK.items()]
    words += [f"--policy.resize_shape=[{settings.size},{settings.size}]", "--num_workers=0", "--save_freq=500"]
    return [*words, f"--steps={settings.steps}", f"--batch_size={settings.batch_size}", "--seed=0", "--wandb.enable=false"]


def environ(work: Path, *, lerobot: bool) -> dict[str, str]:
    """LeRobot's side finds nothing but what its environment holds; both draw by the same OpenGL."""
    from kinoise.envs.rendering import choose_opengl

    choose_opengl()
    if not lerobot:
        return dict(os.environ)
    alone = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    return alone | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(work / "hf")}


def carry_out(step: Step, work: Path, python: Path) -> None:
    """Runs the step, whose output goes to a file in `work`, and notes the seconds. Raises KinoiseError when it fails."""
    if step.makes.exists():
        print(f"{step.name}: {step.makes} is there", flush=True)
        return
    log, known = work / f"{step.name.replace(' ', '_')}.log", work / "seconds.json"
    print(f"{step.name}: see {log}", flush=True)
    module = [str(python), "-m", "lerobot_policy_kinoise"] if step.lerobot else [sys.executable, "-m", "kinoise.cli"]
    if step.name == "lerobot-train" and "--resume=true" not in step.words:
        shutil.rmtree(work / "lerobot_run", ignore_errors=True)
    started = time.perf_counter()
    try:
        with log.open("a") as out:
            words, given = [*module, *step.words], environ(work, lerobot=step.lerobot)
            done = subprocess.run(words, stdout=out, stderr=subprocess.STDOUT, env=given, cwd=work, check=False)
    finally:  # a step that is interrupted goes on later: its seconds add up
        seconds = read_json(known) if known.exists() else {}
        spent = seconds.get(step.name, 0.0) + time.perf_counter() - started
        write_json(known, {**seconds, step.name: round(spent, 1)})
    if done.returncode:
        raise KinoiseError(f"{' '.join(words)}: {tail(log.read_text(errors='replace'))}")
    if step.name == "train":
        write_json(step.makes, {"run": str(work / "run")})  # a run's folder is there before it is trained
    if not step.makes.exists():
        raise KinoiseError(f"{step.name} ended well and {step.makes} is not there: see {log}")


def seen(settings: Settings, work: Path, python: Path) -> dict[str, Any]:
    """How what LeRobot's Metaworld shows differs from kinoise's in the same state."""
    import torch
    import torch.nn.functional as F
    from kinoise import envs

    env = envs.make(f"metaworld/{settings.task}", cameras=(CAMERA,), size=settings.drawn or settings.size)
    ours, _ = env.reset(seed=settings.seeds[0])
    text, out = env.instruction, work / "seen.npz"
    told = {"task": f"{settings.task}-v3", "rand_vec": env.initial()["rand_vec"], "out": str(out)}
    env.close()
    words = [str(python), str(Path(__file__).parent / "lerobot_sees.py"), json.dumps(told)]
    done = subprocess.run(words, capture_output=True, text=True, env=environ(work, lerobot=True), check=False)
    if done.returncode:
        raise KinoiseError(f"{' '.join(words[:2])}: {tail(done.stderr)}")
    with np.load(out) as theirs:
        size, text_there, horizon = theirs["pixels"].shape[0], str(theirs["task"]), int(theirs["horizon"])
        pixels, hand, seconds = theirs["pixels"], theirs["agent_pos"], float(theirs["seconds"])

    def small(picture: np.ndarray) -> np.ndarray:
        """As the plugin brings it to size."""
        x = torch.from_numpy(picture.copy()).permute(2, 0, 1)[None].float()
        x = F.interpolate(x, (settings.size, settings.size), mode="bilinear", antialias=True, align_corners=False)
        return x[0].permute(1, 2, 0).numpy()

    own, other = small(ours[f"image.{CAMERA}"]), small(pixels)
    gaps = {name: float(np.abs(own[::rows, ::columns] - other).mean()) for name, (rows, columns) in TURNS.items()}
    return {
        "picture_difference": gaps,
        "hand_difference": float(np.abs(ours[HAND] - hand).max()),
        "text": {"lerobot": text_there, "kinoise": text},
        "lerobot_size": size,
        "lerobot_horizon": horizon,
        "lerobot_picture_s": round(seconds, 3),
    }


def independent(first: Sequence[bool], second: Sequence[bool]) -> dict[str, float]:
    """How much more often the first succeeds, of two samples that aren't paired.

    Newcombe's method 10 for independent shares (Newcombe 1998, Statistics in Medicine 17:873): their Wilson intervals, joined.
    """
    from kinoise.eval.metrics import wilson

    a, b = (wilson(sum(item), len(item)) for item in (first, second))
    value = a.rate - b.rate
    below = sqrt((a.rate - a.low) ** 2 + (b.high - b.rate) ** 2)
    above = sqrt((a.high - a.rate) ** 2 + (b.rate - b.low) ** 2)
    return {"value": value, "low": value - below, "high": value + above}


def outcomes(settings: Settings, work: Path) -> dict[str, list[list[bool]]]:
    """By path and seed, which episodes succeeded."""
    found: dict[str, list[list[bool]]] = {"lerobot": [], "kinoise": []}
    for seed in settings.seeds:
        info = read_json(work / f"lerobot_eval_{seed}" / "eval_info.json")
        found["lerobot"].append([bool(item) for task in info["per_task"] for item in task["metrics"]["successes"]])
        result = read_json(work / f"eval_{seed}" / "result.json")
        found["kinoise"].append([item["success"] for item in result["episodes"]])
    return found


def figures(found: dict[str, list[list[bool]]]) -> dict[str, Any]:
    """Both rates, and their difference."""
    from kinoise.eval.metrics import wilson

    table: dict[str, Any] = {}
    pooled = {name: [value for part in parts for value in part] for name, parts in found.items()}
    for name, own in pooled.items():
        by_seed = [sum(part) / len(part) for part in found[name]]
        table[name] = {"success": wilson(sum(own), len(own))._asdict(), "n": len(own), "by_seed": by_seed}
    difference = independent(pooled["lerobot"], pooled["kinoise"])
    return {**table, "difference": difference, "equal": difference["low"] <= 0 <= difference["high"]}


def main(argv: Sequence[str]) -> int:
    settings = parse("lerobot_path", Settings, argv, about=__doc__ or "")
    work = Path(settings.work).expanduser().resolve()
    work.mkdir(parents=True, exist_ok=True)
    kept = ("task", "demonstrations", "steps", "batch_size", "size", "drawn", "episodes")
    how, noted = {name: getattr(settings, name) for name in kept}, work / "settings.json"
    if noted.exists() and read_json(noted) != how:
        raise UsageError(f"{work} was begun with {read_json(noted)}: go on with these, or take another work=")
    write_json(noted, how)
    python = path_environment(Path(settings.folder).expanduser())
    shown = seen(settings, work, python)
    print(json.dumps(shown, indent=2), flush=True)
    for step in steps_of(settings, work):
        carry_out(step, work, python)
    seconds = read_json(work / "seconds.json")
    write(
        settings.name, {**how, "seeds": settings.seeds, "seen": shown, "seconds": seconds, **figures(outcomes(settings, work))}
    )
    return 0


if __name__ == "__main__":
    sys.exit(run(main, sys.argv[1:]))
