"""`kinoise import PATH from=lerobot out=RUN`: a model that was trained elsewhere, as a run of kinoise's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from omegaconf import MISSING

from ..config import UsageError, parse
from ..data import FORMATS, open_store
from ..files import link, new_directory, sha256, write_json
from ..policies.checkpoint import save_policy
from ..policies.imports import SOURCES, Robot, import_policy

CONTROLS = ("absolute", "relative", "delta")

ABOUT = """Writes RUN/checkpoints/0, which eval, control, serve, latency, calibrate and fit-cache take like any run of kinoise
train, and RUN/import.json, which says where it came from. Nothing is unpickled but tensors and plain containers, and nothing is
loaded in part: what does not fit is an error that lists it.

from=lerobot: LeRobot's DiffusionPolicy, the folder pretrained_model (0.3 and 0.4). from=dp: a .ckpt of diffusion_policy's
DiffusionTransformerLowdimPolicy. What such a checkpoint does not know about its robot comes from data=, a data set of it, or
from rate=, control= and gripper=."""


@dataclass
class Settings:
    path: str = field(default=MISSING, metadata={"help": "the checkpoint"})
    out: str = field(default=MISSING, metadata={"help": "the run to make"})
    source: str = field(default="lerobot", metadata={"help": f"what wrote it, one of {', '.join(SOURCES)}; also from="})
    data: str | None = field(default=None, metadata={"help": "demonstrations of its robot, for all that is not in it"})
    rate: float | None = field(default=None, metadata={"help": "control steps per second, without data="})
    control: str | None = field(
        default=None, metadata={"help": f"what actions mean, one of {', '.join(CONTROLS)}, without data=; absolute if null"}
    )
    gripper: list[int] | None = field(
        default=None, metadata={"help": "indices of the gripper in an action, without data=; none if null"}
    )

    def __post_init__(self) -> None:
        if self.source not in SOURCES:
            raise UsageError(f"from={self.source}: expected one of {', '.join(SOURCES)}")
        said = [f"{name}=" for name in ("rate", "control", "gripper") if getattr(self, name) is not None]
        if self.data is not None and said:
            raise UsageError(f"{', '.join(said)} beside data=, which say so themselves: leave out one or the other")
        if self.control not in (None, *CONTROLS):
            raise UsageError(f"control={self.control}: expected one of {', '.join(CONTROLS)}")
        if self.data is None and (self.rate is None or not self.rate > 0):
            raise UsageError(
                "a checkpoint does not say how often its robot is commanded: give data=, or rate= in steps a second"
            )


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
    store = None if settings.data is None else open_store(settings.data)
    robot = Robot(
        rate=store.spec.rate if store is not None else float(settings.rate or 0),
        control=settings.control or "absolute",
        gripper=tuple(settings.gripper or ()),
        like=None if store is None else (store.spec, tuple(store.texts)),
    )
    found = import_policy(settings.source, path, robot)
    with new_directory(out / "checkpoints" / "0") as directory:
        save_policy(directory, found.policy, {})
    link(out / "checkpoints" / "last", "0")
    about = {"from": settings.source, "path": str(path.resolve()), "sha256": sha256(found.weights), "notes": found.notes}
    write_json(out / "import.json", about)
    decode = found.policy.config.decode
    for line in found.notes:
        print(f"note: {line}")
    print(f"{out}: {found.policy.parameter_count:,} parameters, plans of {found.policy.config.chunk} actions by {decode.steps}")
    print(f"steps of {decode.sampler}. kinoise calibrate {out} data=DATA says from where replans may start (decode.warm).")
    return 0
