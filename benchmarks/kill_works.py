"""The small works that `benchmarks.kills` kills: one of each command, what it may leave behind, and when two are the same.

A simulator for them is written beside: a point on a line whose steps take a few milliseconds of sleep, so that most of the
time is work that can be interrupted, and little of it the processor's.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from kinoise import envs
from kinoise.data import FORMATS, Episode, open_store, write_store
from kinoise.data.base import episode
from kinoise.deploy.trace import TraceReader
from kinoise.policies import build_policy
from kinoise.policies.checkpoint import load_policy, save_policy
from kinoise.policies.core.network import NetworkConfig
from kinoise.policies.diffusion import DiffusionConfig
from kinoise.spec import Feature, Spec, Stats
from safetensors.torch import load_file

WORLD: dict[str, Any] = {
    "gymnasium": {"id": "kinoise/Sleepy-v0", "import": "sleepy_world"},
    "instruction": "move the point to its goal",
    "rate": 20,
    "horizon": 30,
    "observations": {"state": {"names": ["place", "goal"], "unit": "m"}},
    "action": {"control": "delta", "unit": "m", "low": -0.1, "high": 0.1},
    "success": {"info": "there"},
    "expert": "sleepy_world:expert",
}
PROGRAM = """
import time
import gymnasium, numpy as np
from gymnasium import spaces

class Sleepy(gymnasium.Env):
    def __init__(self, render_mode=None):
        self.action_space = spaces.Box(-np.inf, np.inf, (1,), np.float64)
        self.observation_space = spaces.Box(-np.inf, np.inf, (2,), np.float64)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.place, self.goal = self.np_random.uniform(-1, 1, 2)
        return np.array([self.place, self.goal]), {}

    def step(self, action):
        time.sleep(SECONDS)
        self.place += float(action[0])
        return np.array([self.place, self.goal]), 0.0, False, False, {"there": bool(abs(self.place - self.goal) < 0.02)}

gymnasium.register("kinoise/Sleepy-v0", entry_point=Sleepy)

def expert(env):
    class Expert:
        def act(self, observation):
            place, goal = observation["state"]
            return np.array([np.clip(goal - place, -0.1, 0.1)])
    return Expert()
"""
STEP_S = 0.004
SPEC = Spec(
    {"state": Feature((2,), names=("place", "goal"), unit=("m",))},
    Feature((1,), unit=("m",), names=("action.0",), low=(-0.1,), high=(0.1,)),
    rate=20.0,
)
PICTURE = (64, 64, 3)
TINY = ("policy=diffusion", "policy.network.width=16", "policy.network.depth=1", "policy.network.heads=2")


class Work(ABC):
    """One command on little work.

    Args:
        place: a folder of its own, in which `prepare` puts what every run shares.
    """

    again: tuple[str, ...] = ()
    """What the command is given besides, when it goes on."""
    variants: int = 1
    """Kinds of work; that of `out=...-N` is N modulo this."""

    def __init__(self, place: Path) -> None:
        self.place = place

    @abstractmethod
    def prepare(self) -> None: ...

    @abstractmethod
    def arguments(self, out: Path) -> list[str]: ...

    def finished(self, out: Path) -> bool:
        """Whether the work is done, though its process may live."""
        return False

    @abstractmethod
    def torn(self, out: Path) -> list[str]:
        """What is there and shouldn't be so, a line each, after a kill."""

    @abstractmethod
    def result(self, out: Path) -> Any:
        """What a finished run comes to: to be equal, however often it was killed."""

    def world(self) -> str:
        (self.place / "sleepy_world.py").write_text(PROGRAM.replace("SECONDS", str(STEP_S)))
        file = self.place / "world.yaml"
        file.write_text(yaml.safe_dump(WORLD))
        return str(file)

    def policy(self) -> Path:
        """A checkpoint with fresh weights."""
        stats = {
            key: Stats((0.0,) * n, (1.0,) * n, (-1.0,) * n, (1.0,) * n, (-1.0,) * n, (1.0,) * n, 10)
            for key, n in (("state", 2), ("action", 1))
        }
        spec = envs.make(str(self.place / "world.yaml")).spec
        config = DiffusionConfig(network=NetworkConfig(width=16, depth=1, heads=2), chunk=8, execute=4)
        config.decode.steps = 2
        path = self.place / "policy"
        path.mkdir()
        save_policy(path, build_policy(config, spec, stats, (str(WORLD["instruction"]),)), {})
        return path

    def demonstrations(self, count: int, steps: int, pictures: bool) -> Path:
        rng = np.random.default_rng(0)
        seen = {"image.top": Feature(PICTURE, "image")} if pictures else {}
        spec = Spec({**SPEC.observations, **seen}, SPEC.action, rate=20.0)
        base = np.repeat(np.repeat(rng.integers(0, 256, (steps, 8, 8, 3), np.uint8), 8, 1), 8, 2)

        def episodes() -> Any:
            for index in range(count):
                arrays = {key: rng.normal(size=(steps, n)).astype(np.float32) for key, n in (("state", 2), ("action", 1))}
                arrays |= {"image.top": base + np.uint8(index)} if pictures else {}
                yield Episode(arrays, "move", {"index": index})

        path = self.place / "data"
        write_store(path, spec, episodes())
        return path


def same_store(path: Path) -> list[Any]:
    """What a data set holds, for comparison."""
    store = open_store(path)
    found: list[Any] = [store.spec, store.texts, store.text.tolist(), store.info]
    for index in range(len(store.ends)):
        found += [(key, array.tobytes()) for key, array in sorted(episode(store, index).arrays.items())]
    return found


class Collect(Work):
    def prepare(self) -> None:
        self._world = self.world()

    def arguments(self, out: Path) -> list[str]:
        return ["collect", f"env={self._world}", "episodes=40", "workers=2", f"out={out}"]

    def finished(self, out: Path) -> bool:
        return out.exists()

    def torn(self, out: Path) -> list[str]:
        found = [] if not out.exists() else _refused(lambda: same_store(out))
        for file in out.with_name(f"{out.name}.partial").glob("*/[0-9]*.npz"):
            found += _refused(lambda file=file: dict(np.load(file, allow_pickle=False)))
        return found

    def result(self, out: Path) -> Any:
        return {str(item.relative_to(out)): item.read_bytes() for item in sorted(out.rglob("*")) if item.is_file()}


class Convert(Work):
    """To each format in turn."""

    formats = ("zarr", "robomimic", "lerobot")
    variants = len(formats)

    def prepare(self) -> None:
        self._data = self.demonstrations(30, 40, pictures=True)

    def _format(self, out: Path) -> str:
        return self.formats[int(out.name.rpartition("-")[2]) % self.variants]

    def arguments(self, out: Path) -> list[str]:
        return ["convert", str(self._data), str(out), f"format={self._format(out)}"]

    def finished(self, out: Path) -> bool:
        return out.exists()

    def torn(self, out: Path) -> list[str]:
        return _refused(lambda: self.result(out)) if out.exists() else []

    def result(self, out: Path) -> Any:
        store = FORMATS[self._format(out)](out)
        arrays = [episode(store, index).arrays for index in range(len(store.ends))]
        return [sorted((key, array.tobytes()) for key, array in item.items()) for item in arrays]


class Cache(Work):
    """The decoded copy that training begins with."""

    def prepare(self) -> None:
        data = self.demonstrations(150, 40, pictures=True)
        store = open_store(data)
        self._source = self.place / "source.zarr"
        FORMATS["zarr"].write(self._source, store.spec, (episode(store, index) for index in range(len(store.ends))))

    def arguments(self, out: Path) -> list[str]:
        settings = ("train.steps=1", "train.batch_size=2", "train.tensorboard=false", "policy.observations=[state]")
        where = (f"data={self._source}", f"out={out / 'run'}", f"cache={out / 'cache'}")
        return ["train", *TINY, *settings, *where]

    again = ("resume=true",)

    def _copies(self, out: Path) -> list[Path]:
        return [item for item in (out / "cache").glob("[!.]*") if item.is_dir()]

    def finished(self, out: Path) -> bool:
        return bool(self._copies(out))

    def torn(self, out: Path) -> list[str]:
        return [line for copy in self._copies(out) for line in _refused(lambda copy=copy: same_store(copy))]

    def result(self, out: Path) -> Any:
        (copy,) = self._copies(out)
        return {str(item.relative_to(copy)): item.read_bytes() for item in sorted(copy.rglob("*")) if item.is_file()}


class Train(Work):
    again = ("resume=true",)

    def prepare(self) -> None:
        self._data = self.demonstrations(10, 30, pictures=False)

    def arguments(self, out: Path) -> list[str]:
        settings = ("train.steps=300", "train.batch_size=8", "train.save_every=15", "train.log_every=5", "train.keep=3")
        return ["train", *TINY, *settings, "train.warmup=2", "train.tensorboard=false", f"data={self._data}", f"out={out}"]

    def finished(self, out: Path) -> bool:
        return (out / "train.json").exists()

    def torn(self, out: Path) -> list[str]:
        found = []
        for item in (out / "checkpoints").glob("[0-9]*"):
            found += _refused(lambda item=item: load_policy(item, device="cpu"))
            found += _refused(lambda item=item: load_file(item / "training_state" / "optimizer.safetensors"))
        last = out / "checkpoints" / "last"
        return found + ([f"{last} leads nowhere"] if last.is_symlink() and not last.exists() else [])

    def result(self, out: Path) -> Any:
        newest = out / "checkpoints" / "last"
        names = ("config.json", "model.safetensors", "ema.safetensors", "training_state/optimizer.safetensors")
        lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
        losses = [(line["step"], line["loss"]) for line in lines]
        return {name: (newest / name).read_bytes() for name in names}, losses, sorted(p.name for p in newest.parent.iterdir())


class Eval(Work):
    again = ("resume=true",)

    def prepare(self) -> None:
        self._world, self.policy_path = self.world(), self.policy()

    def arguments(self, out: Path) -> list[str]:
        settings = ("episodes=60", "workers=2", "slots=4", "device=cpu")
        return ["eval", str(self.policy_path), f"env={self._world}", *settings, f"out={out}"]

    def finished(self, out: Path) -> bool:
        return (out / "result.json").exists()

    def torn(self, out: Path) -> list[str]:
        found = _refused(lambda: json.loads((out / "result.json").read_text())) if (out / "result.json").exists() else []
        ledger = out / "episodes.jsonl"
        lines = ledger.read_text().split("\n")[1:-1] if ledger.exists() else []  # the last is cut short, or empty
        for line in lines:
            found += _refused(lambda line=line: json.loads(line))
        return found

    def result(self, out: Path) -> Any:
        value = json.loads((out / "result.json").read_text())
        counts = Counter((json.loads(line)["task"], json.loads(line)["index"]) for line in _ledger(out))
        twice = [key for key, count in counts.items() if count > 1]
        return value["protocol"], value["success"], value["episodes"], len(counts), twice


class Control(Work):
    """Does not go on, since time does not: the same command begins anew, and what a killed run leaves is told apart."""

    seconds = 3

    def prepare(self) -> None:
        self._world, self.policy_path = self.world(), self.policy()

    def arguments(self, out: Path) -> list[str]:
        settings = ("rate=20", f"seconds={self.seconds}", "trace=true", "inference=process", "device=cpu")
        return ["control", str(self.policy_path), f"env={self._world}", *settings, f"out={out}"]

    def finished(self, out: Path) -> bool:
        return (out / "control.json").exists()

    def torn(self, out: Path) -> list[str]:
        found = _refused(lambda: json.loads((out / "control.json").read_text())) if self.finished(out) else []
        trace = out / "control.trace"
        whole = trace.exists() and trace.stat().st_size > 1 << 12  # a header that is cut short is said to be
        return found + (_refused(lambda: _events(trace)) if whole else [])

    def result(self, out: Path) -> Any:
        value = json.loads((out / "control.json").read_text())
        return value["ended_by"], value["errors"], value["ticks"] + value["missed"], value["plans"] > 0, value["trace"]["lost"]


def _ledger(out: Path) -> list[str]:
    return (out / "episodes.jsonl").read_text().splitlines()[1:]


def _events(trace: Path) -> int:
    with TraceReader(trace) as reader:
        return sum(1 for _ in reader.events())


def _refused(read: Any) -> list[str]:
    """What is said of something that can't be read; nothing where it can."""
    try:
        read()
    except Exception as error:
        return [f"{type(error).__name__}: {error}"[:300]]
    return []


WORKS: dict[str, type[Work]] = {
    "collect": Collect,
    "convert": Convert,
    "cache": Cache,
    "train": Train,
    "eval": Eval,
    "control": Control,
}
