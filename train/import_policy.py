"""`kinoise import PATH from=lerobot out=RUN`: a model that was trained elsewhere, as a run of kinoise's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import MISSING

from ..config import UsageError, new_names, parse
from ..data import FORMATS, open_store
from ..data.hub.card import write_card
from ..eval.simulated import simulated
from ..files import link, new_directory, sha256, write_json
from ..policies.checkpoint import save_policy
from ..policies.imports import SOURCES, Robot, import_policy

CONTROLS = ("absolute", "relative", "delta")

ABOUT = """Writes RUN/checkpoints/0, which eval, control, serve, latency, calibrate and fit-cache take like any run of kinoise
train, and RUN/import.json, which says where it came from. Nothing is unpickled but tensors and plain containers, and nothing is
loaded in part: what does not fit is an error that lists it.

from=lerobot: LeRobot's DiffusionPolicy, the folder pretrained_model (0.3 and 0.4), or a policy of the plugin
lerobot_policy_kinoise. from=dp: a .ckpt of diffusion_policy's DiffusionTransformerLowdimPolicy. from=mode: a folder of MoDE's
release, with clip=, the CLIP that it was trained with. What such a checkpoint does not know about its robot comes from data=, a
data set of it, from env=, a simulator of it with the cameras= that the policy sees, size= high and wide, or from rate=,
control= and gripper=. The plugin's know all of it, but for control= where LeRobot trained them on data that don't say it.
rename= says what the robot calls what the policy observes."""


@dataclass
class Settings:
    path: str = field(default=MISSING, metadata={"help": "the checkpoint"})
    out: str = field(default=MISSING, metadata={"help": "the run to make"})
    source: str = field(default="lerobot", metadata={"help": f"what wrote it, one of {', '.join(SOURCES)}; also from="})
    data: str | None = field(default=None, metadata={"help": "demonstrations of its robot, for all that is not in it"})
    env: str | None = field(default=None, metadata={"help": "a simulator of its robot, in place of data="})
    cameras: list[str] = field(default_factory=list, metadata={"help": "of env, those that the policy sees"})
    size: int = field(default=84, metadata={"help": "height and width of their images"})
    rate: float | None = field(default=None, metadata={"help": "control steps per second, without data= and env="})
    control: str | None = field(
        default=None,
        metadata={"help": f"what actions mean, one of {', '.join(CONTROLS)}, likewise; absolute, or what it says, if null"},
    )
    gripper: list[int] | None = field(
        default=None, metadata={"help": "indices of the gripper in an action, likewise; none if null"}
    )
    clip: str | None = field(default=None, metadata={"help": "from=mode: folder of the CLIP model that it was trained with"})
    vlm: str | None = field(
        default=None,
        metadata={"help": "from=lerobot: directory or hub name of the vision-language model that a plugin's policy is around"},
    )
    rename: Any = field(default=None, metadata={"help": "the robot's names of what it observes, rename={image:image.top}"})

    def __post_init__(self) -> None:
        if self.source not in SOURCES:
            raise UsageError(f"from={self.source}: expected one of {', '.join(SOURCES)}")
        # A control may settle what the plugin's training guessed: whoever reads the checkpoint says whether it did.
        said = [f"{name}=" for name in ("rate", "gripper") if getattr(self, name) is not None]
        known = [f"{name}=" for name in ("data", "env") if getattr(self, name) is not None]
        if len(known) > 1:
            raise UsageError("data= beside env=: either says all about the robot, leave out one")
        if known and said:
            raise UsageError(f"{', '.join(said)} beside {known[0]}, which says so itself: leave out one or the other")
        if self.cameras and self.env is None:
            raise UsageError(f"cameras={self.cameras} without env=: they are a simulator's")
        if self.clip is not None and self.source != "mode":
            raise UsageError(f"clip={self.clip}: only from=mode has instructions that are CLIP's vectors")
        if self.vlm is not None and self.source != "lerobot":
            raise UsageError(f"vlm={self.vlm}: only policies of LeRobot's plugin (from=lerobot) are around such a model")
        if self.control not in (None, *CONTROLS):
            raise UsageError(f"control={self.control}: expected one of {', '.join(CONTROLS)}")
        if self.rate is not None and not self.rate > 0:
            raise UsageError(f"rate={self.rate}: expected steps a second, more than 0")


def main(argv: Sequence[str], command: str = "import") -> int:
    """`command` is what the user calls it. Raises UsageError for wrong settings, KinoiseError for what can't be imported."""
    # `from` is no name that a field of Python's can have.
    said = [f"source={item.removeprefix('from=')}" if item.startswith("from=") else item for item in argv]
    settings = parse(
        command, Settings, said, positional="path", about=ABOUT, choices={"data": lambda: f"formats: {', '.join(FORMATS)}"}
    )
    out, path = Path(settings.out), Path(settings.path).expanduser()
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UsageError(f"{out} is there already: choose another out=")
    found = import_policy(settings.source, path, robot_of(settings))
    digest = sha256(found.weights)
    about = {"from": settings.source, "path": str(path.resolve()), "sha256": digest, "notes": found.notes}
    with new_directory(out) as run:
        directory = run / "checkpoints" / str(found.updates)
        directory.mkdir(parents=True)
        save_policy(directory, found.policy, found.average)
        write_card(directory, imported=f"`{path.resolve().name}` (from={settings.source}), weights with SHA-256 `{digest}`")
        link(run / "checkpoints" / "last", directory.name)
        write_json(run / "import.json", about)
    decode = found.policy.config.decode
    for line in found.notes:
        print(f"note: {line}")
    print(f"{out}: {found.policy.parameter_count:,} parameters, plans of {found.policy.config.chunk} actions by {decode.steps}")
    print(f"steps of {decode.sampler}. kinoise calibrate {out} data=DATA says from where replans may start (decode.warm).")
    return 0


def robot_of(settings: Settings) -> Robot:
    """What the settings say about the robot: all of it in data or by a simulator, or in numbers."""
    names, like = new_names(settings.rename), None
    clip = None if settings.clip is None else Path(settings.clip).expanduser()
    if settings.data is not None:
        store = open_store(settings.data)
        like = store.spec, tuple(store.texts)
    elif settings.env is not None:
        like = simulated(settings.env, settings.cameras, settings.size)
    if like is not None:
        return Robot(like[0].rate, settings.control, like=like, rename=names, clip=clip, vlm=settings.vlm)
    return Robot(settings.rate, settings.control, tuple(settings.gripper or ()), rename=names, clip=clip, vlm=settings.vlm)
