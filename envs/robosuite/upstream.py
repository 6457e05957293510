"""robosuite itself: imported without noise, built as robomimic builds it, drawn from a seed, stepped.

robosuite draws initial states from numpy's global generator, and Lift's cube, of another size in each episode, while it
compiles the model anew, which takes a second. Here the global generator is lent for the draw, and the cube is changed in the
compiled model: episodes are those of robosuite's own resets from the same state of the generator.
"""

from __future__ import annotations

import importlib.util
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from jaxtyping import Float

from ...spec import KinoiseError
from ..osc import OscStepper
from ..rendering import load_mujoco

TASKS = {
    "lift": "lift the red cube off the table",
    "can": "pick up the can and put it into its bin",
    "square": "put the square nut over the square peg",
}
CLASSES = {"lift": "Lift", "can": "PickPlaceCan", "square": "NutAssemblySquare"}
"""robosuite's names."""
VERSIONS = ((1, 4), (1, 5))
"""Those that this was tried with."""
RATE = 20

# robosuite's Lift draws the cube's half sizes (m) and has it made of water.
CUBE_SIZES, CUBE_DENSITY = (0.020, 0.022), 1000.0


def robosuite_version() -> tuple[int, int]:
    """Major and minor, without importing it. Raises KinoiseError when it is not there, or another than this was written for."""
    try:
        said = version("robosuite")
    except PackageNotFoundError as error:
        raise KinoiseError(
            "robosuite is not installed here. Install it with: pip install -c constraints.txt -e '.[robosuite]'"
        ) from error
    major, minor = (int(part) for part in said.split(".")[:2])
    if (major, minor) not in VERSIONS:
        known = " and ".join(f"{first}.{second}" for first, second in VERSIONS)
        raise KinoiseError(f"robosuite {said} is installed; expected {known}. Install robosuite==1.4.0 or 1.5.1.")
    return major, minor


def load_robosuite() -> Any:
    """robosuite, imported without its log file in /tmp, its warnings, and its own choice of an OpenGL.

    Its module of settings is loaded first and changed, for the log is opened while it is imported. A user's own
    `macros_private.py` still has the last word where robosuite reads one.

    Raises KinoiseError when it can't be imported.
    """
    load_mujoco()  # sets MUJOCO_GL, which robosuite would set to egl wherever it runs
    if "robosuite" in sys.modules:
        return sys.modules["robosuite"]
    robosuite_version()
    found = importlib.util.find_spec("robosuite")
    assert found is not None
    assert found.submodule_search_locations
    folder = Path(next(iter(found.submodule_search_locations)))
    private = "robosuite.macros_private"
    stub = None if (folder / "macros_private.py").exists() else ModuleType(private)
    if stub is not None:
        sys.modules[private] = stub  # robosuite warns on standard error where there is none
    try:
        macros = _module("robosuite.macros", folder / "macros.py")
        macros.CONSOLE_LOGGING_LEVEL = "ERROR"  # type: ignore[attr-defined]
        macros.FILE_LOGGING_LEVEL = None  # type: ignore[attr-defined]
        macros.MUJOCO_GPU_RENDERING = False  # type: ignore[attr-defined]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import robosuite
        setattr(robosuite, "macros", macros)  # noqa: B010 (the import system does it only for what it loaded itself)
    except Exception as error:
        for name in [name for name in sys.modules if name.partition(".")[0] == "robosuite"]:
            del sys.modules[name]
        raise KinoiseError(f"robosuite can't be imported: {type(error).__name__}: {error}. Install it anew.") from error
    return robosuite


def build(task: str) -> Any:
    """robosuite's environment of a task: a Panda under OSC_POSE, without pictures, reset softly."""
    robosuite = load_robosuite()
    if robosuite_version() == (1, 4):
        controller = robosuite.load_controller_config(default_controller="OSC_POSE")
    else:
        controller = robosuite.load_composite_controller_config(robot="Panda")
    with _silent(), drawing(0):
        return robosuite.make(
            CLASSES[task],
            robots="Panda",
            controller_configs=controller,
            has_renderer=False,
            has_offscreen_renderer=False,
            use_camera_obs=False,
            use_object_obs=True,
            reward_shaping=False,
            control_freq=RATE,
            ignore_done=True,
            hard_reset=False,
        )


def stepper(env: Any) -> Callable[[np.ndarray], Mapping[str, np.ndarray]]:
    """What steps the environment, until its next reset, and gives robosuite's observations.

    They are those of robosuite's own `step`: with 1.5 poses of things from the gripper are one step old, in all its data.
    """
    if robosuite_version() != (1, 4):
        return lambda action: env.step(action)[0]
    osc = OscStepper(env)

    def step(action: np.ndarray) -> Mapping[str, np.ndarray]:
        osc.step(action)
        return env._get_observations(force_update=True)

    return step


@contextmanager
def drawing(seed: int) -> Iterator[None]:
    """Within it numpy's global generator begins at `seed`; afterwards it goes on as if nothing had been drawn.

    Below 2**32 it is what `np.random.seed(seed)` makes of it, with which others seed robosuite.
    """
    before, (high, low) = np.random.get_state(), divmod(seed, 2**32)
    np.random.set_state(np.random.RandomState([low, high] if high else low).get_state())
    try:
        yield
    finally:
        np.random.set_state(before)


def draw_cube(env: Any) -> Float[np.ndarray, "3"]:
    """Gives Lift's cube half sizes (m) from the global generator, in the model as in robosuite's own object."""
    size = np.array([np.random.uniform(*CUBE_SIZES) for _ in range(3)])
    mujoco, model, data = load_mujoco(), env.sim.model._model, env.sim.data._data
    body = model.body(env.cube.root_body).id
    x, y, z = size**2
    model.body_mass[body] = mass = CUBE_DENSITY * 8 * size.prod()
    model.body_inertia[body] = mass / 3 * np.array([y + z, x + z, x + y])
    for geom in range(model.body_geomadr[body], model.body_geomadr[body] + model.body_geomnum[body]):
        model.geom_size[geom] = model.geom_aabb[geom, 3:] = size
        model.geom_rbound[geom] = np.linalg.norm(size)
    first = model.body_bvhadr[body]
    model.bvh_aabb[first : first + model.body_bvhnum[body], 3:] = size
    mujoco.mj_setConst(model, data)
    env.cube.size = list(size)
    return size


def _module(name: str, path: Path) -> ModuleType:
    """Loads one module of a package without the package."""
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


@contextmanager
def _silent() -> Iterator[None]:
    """robosuite 1.5 prints where it makes parts of a robot."""
    with Path(os.devnull).open("w") as nowhere:
        before, sys.stdout = sys.stdout, nowhere
        try:
            yield
        finally:
            sys.stdout = before
