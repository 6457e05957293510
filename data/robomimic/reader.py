"""robomimic's HDF5 files, and those of LIBERO and MimicGen, which have its layout.

data                      attributes: total, env_args (JSON: env_name, type, env_kwargs)
data/demo_<i>             attributes: num_samples, model_file (the simulator's scene, XML), ep_meta (JSON: lang)
data/demo_<i>/actions     [steps, action]
data/demo_<i>/obs/<key>   [steps, d], or [steps, height, width, 3] uint8
data/demo_<i>/next_obs/   the same, a step on
data/demo_<i>/rewards, dones, states, ...
mask/<filter>             names of demonstrations
"""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from jaxtyping import Int64

from ...spec import KinoiseError, Spec
from ..base import AS_IT_IS, Episode, Reading, Report, features, refuse
from ..decoded import DecodedStore
from . import env
from .layout import ACTIONS, MAGIC, NEXT_OBS, Demo, contents, elsewhere, held, readable, unreadable
from .names import Plan, array_path, common, derived, stored, wrong
from .writer import MADE, maskable, write_robomimic

EACH = ("num_samples", "model_file", "ep_meta", "kinoise")
"""A demonstration's attributes that are read."""


class RobomimicStore(DecodedStore):
    """Demonstrations in one HDF5 file, which is opened anew in every process that reads from it.

    Images called `<camera>_image` or `<camera>_rgb` are `image.<camera>`, observations in groups `<group>.<key>`. Where the
    arms' controllers take steps, actions are in [-1, 1] (robomimic's convention). `info` has `demo` (its name in the file),
    `task` (the environment), `filters`, `model_file` and `ep_meta`; `meta["robomimic"]` has `env_args` and other `attributes`.
    """

    format = "robomimic"
    _file: tuple[int, h5py.File] | None = None

    def __init__(self, path: Path, reading: Reading = AS_IT_IS, report: Report = refuse) -> None:
        """Reports demonstrations and filters that can't be used, and goes on without them.

        Raises KinoiseError for a file that is cut short or damaged, or lacks demonstrations, the rate or the filter.
        """
        self.path = Path(path)
        attributes, demos, masks, unread, links = contents(self.path, EACH, reading.filter, report)
        listed = len(demos) + links
        expected, dropped = common(demos)
        demos = self._sound(demos, {item.name: list(wrong(item, expected)) for item in demos}, report)
        header, env_args, problem_info = (
            self._json(attributes.get(name), f"data's {name}", report) for name in ("kinoise", "env_args", "problem_info")
        )
        said = {item.name: self._json(item.attributes.get("kinoise"), f"data/{item.name}'s kinoise", report) for item in demos}
        ep_meta = {
            item.name: self._json(item.attributes.get("ep_meta"), f"data/{item.name}'s ep_meta", report) for item in demos
        }
        text = {
            name: ours["text"]
            if isinstance(ours.get("text"), str)
            else env.instruction(ep_meta[name], env_args, env.kwargs(env_args), problem_info)
            for name, ours in said.items()
        }
        plan = None
        if header:
            try:
                plan = stored(header, expected, demos)
            except KinoiseError as error:
                dropped.append(f"data's attribute kinoise: not used, {error}")
        if plan is None:
            plan = self._derived(derived(expected, demos), env_args, attributes, any(text.values()), reading)
            if any(NEXT_OBS in item.groups for item in demos):
                plan.lines.append(
                    "next_obs: observations a step on, made again when written; those after the last action are lost"
                )
        self.spec, self.extras, self._paths, meta, lines = plan
        self.meta = meta or {}
        if self.spec.language:
            silent = {name: [] if text[name] else ["has no instruction, but others have. Give it one."] for name in text}
            demos = self._sound(demos, silent, report)
        self._turned = attributes.get("macros_image_convention") == "opengl"
        if self._turned:
            lines.append("macros_image_convention: images are stored bottom row first, and turned upright")
        self._names = [item.name for item in demos]
        self.lost = listed - len(demos)
        self.ends = np.cumsum([item.arrays[ACTIONS].shape[0] for item in demos], dtype=np.int64)  # type: ignore[index]
        places: dict[str, int] = {}
        self.text = np.array([places.setdefault(text[name], len(places)) for name in self._names], np.int64)
        self.texts = tuple(places)
        self.info = [self._info(item, said[item.name], ep_meta[item.name], masks, env_args.get("env_name")) for item in demos]
        self.dropped = (*dropped, *lines, *unread)

    @classmethod
    def recognises(cls, path: Path) -> bool:
        if not path.is_file():
            return False
        if path.suffix.lower() in (".hdf5", ".h5"):
            return True
        with path.open("rb") as file:
            return file.read(len(MAGIC)) == MAGIC

    @classmethod
    def write(cls, path: Path, spec: Spec, episodes: Iterable[Episode], meta: Mapping[str, Any] | None = None) -> list[str]:
        return write_robomimic(path, spec, episodes, meta or {})

    @property
    def original(self) -> Int64[np.ndarray, "episodes"]:
        numbers = (name.removeprefix("demo_") for name in self._names)
        return np.array([int(item) if item.isdecimal() else index for index, item in enumerate(numbers)], np.int64)

    def decode(self, episode: int, keys: Sequence[str]) -> dict[str, np.ndarray]:
        return {key: self._array(episode, key) for key in keys}

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_file": None}

    def _array(self, episode: int, key: str) -> np.ndarray:
        steps = int(self.ends[episode]) - int(self.ends[episode - 1] if episode else 0)
        path = f"data/{self._names[episode]}/{self._paths[key]}"
        with readable(f"{self.path}: {path}"):
            dataset = self._opened()[path]
            if not isinstance(dataset, h5py.Dataset) or elsewhere(dataset):
                raise KinoiseError(
                    f"{self.path}: {path} is no array of this file's own, and others are not read. Copy it here."
                )
            if dataset.shape[:1] != (steps,):
                raise KinoiseError(
                    f"{self.path}: {path} has shape {dataset.shape}, expected {steps} steps. Open the file anew."
                )
            array = np.asarray(held(dataset)[()])
        if key in self.extras:
            return array.astype(self.extras[key].dtype, copy=False)
        feature = features(self.spec)[key]
        if feature.kind == "image":
            return np.ascontiguousarray(array[:, ::-1]) if self._turned else array
        with np.errstate(over="ignore"):
            array = array.reshape(steps, *feature.shape).astype(feature.dtype, copy=False)
        if not np.isfinite(array).all():
            step = int(np.argwhere(~np.isfinite(array))[0, 0])
            raise KinoiseError(f"{self.path}: {path} is NaN or infinite at step {step}. Repair or remove the episode.")
        return array

    def _opened(self) -> h5py.File:
        """The file, by a handle of this process's own: HDF5 can't share one."""
        if self._file is None or self._file[0] != os.getpid():
            self._file = (os.getpid(), h5py.File(self.path, "r", locking="best-effort"))
        return self._file[1]

    def _sound(self, demos: Sequence[Demo], problems: Mapping[str, list[str]], report: Report) -> list[Demo]:
        """The demonstrations without a problem; those of the others are reported. Raises KinoiseError when none is left."""
        for item in demos:
            for problem in problems[item.name]:
                report(f"{self.path}: data/{item.name}: {problem}")
        sound = [item for item in demos if not problems[item.name]]
        if not sound:
            raise KinoiseError(f"{self.path}: none of its {len(demos)} episodes can be read.")
        return sound

    def _json(self, text: Any, place: str, report: Report) -> dict[str, Any]:
        """An attribute that holds a JSON object; an empty one for what doesn't, which is reported. NaN becomes its name."""
        if text is None:
            return {}
        try:
            found = json.loads(text, parse_constant=str)
            if isinstance(found, dict):
                return found
            said = type(found).__name__
        except (TypeError, ValueError, RecursionError) as error:
            said = unreadable(error)
        report(f"{self.path}: {place} is no JSON object: {said}")
        return {}

    def _derived(
        self, plan: Plan, env_args: dict[str, Any], attributes: dict[str, Any], language: bool, reading: Reading
    ) -> Plan:
        """`plan` with what `env_args` say. Raises KinoiseError when neither they nor the user say the rate, and for a file
        without observations."""
        if not plan.spec.observations:
            raise KinoiseError(
                f"{self.path}: its episodes hold no observations, only actions and {', '.join(plan.extras) or 'nothing else'}. "
                f"Let the simulator make them first: robomimic's dataset_states_to_obs.py."
            )
        rate = env.rate(env_args) or reading.rate
        if rate is None:
            raise KinoiseError(f"{self.path}: data's env_args hold no rate (env_kwargs.control_freq). Say it with rate=.")
        control, action = env.control(env_args), plan.spec.action
        if control == "delta" and reading.control in (None, control):
            action = replace(action, low=(-1.0,) * action.shape[0], high=(1.0,) * action.shape[0])
        spec = replace(
            plan.spec,
            action=action,
            rate=rate,
            control=control or "delta",
            gripper=env.gripper(env_args, action.shape[0]),
            language=language,
        )
        others = {name: value for name, value in attributes.items() if name not in MADE}
        kept = {
            name: value
            for name, value in others.items()
            if isinstance(value, str | int) or (isinstance(value, float) and math.isfinite(value))
        }
        lines = [f"attribute {name} of data" for name in others if name not in kept]
        if control is None:
            lines.append("env_args name no controller: actions are taken for steps, unless control= says otherwise")
        names = {
            key: plan.paths[key]
            for key, feature in plan.spec.observations.items()
            if plan.paths[key] != array_path(key, feature, plan.spec.observations)
        }
        told = {"env_args": env_args, "attributes": kept, "paths": names}
        return plan._replace(
            spec=spec,
            meta={"robomimic": {key: value for key, value in told.items() if value}},
            lines=[*plan.lines, *lines],
        )

    def _info(
        self, item: Demo, ours: dict[str, Any], ep_meta: dict[str, Any], masks: Mapping[str, set[str]], task: Any
    ) -> dict[str, Any]:
        """What is told of a demonstration; filters are the file's, in kinoise's order where that wrote the same ones."""
        inside = sorted(name for name, listed in masks.items() if item.name in listed)
        model = item.attributes.get("model_file")
        # Most demonstrations of a file share one scene: 80 kB each, which are kept once.
        info: dict[str, Any] = {"model_file": sys.intern(model)} if isinstance(model, str) else {}
        if not isinstance(ours.get("info"), dict):
            told = {"demo": item.name, "task": task, "ep_meta": ep_meta}
            return {**{key: value for key, value in told.items() if value}, **info, "filters": inside}
        info |= ours["info"]
        before = info.get("filters", [])
        if isinstance(before, list) and all(isinstance(name, str) for name in before):
            inside += [name for name in before if not maskable(name)]
            if set(before) != set(inside):
                info["filters"] = inside
        return info
