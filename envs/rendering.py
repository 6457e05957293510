"""Pictures of MuJoCo scenes without a screen: which OpenGL to use, and settings that a CPU can render quickly."""

from __future__ import annotations

import atexit
import os
import sys
import warnings
import weakref
from collections.abc import Sequence
from ctypes.util import find_library
from typing import Any

import numpy as np
from jaxtyping import UInt8

from ..spec import KinoiseError

Model = Any  # mujoco.MjModel: MuJoCo has no type stubs
Data = Any  # mujoco.MjData

VARIABLE = "MUJOCO_GL"
REMEDY = (
    "Install an OpenGL that needs no display (Debian, Ubuntu: apt install libegl1 libgl1-mesa-dri, or libosmesa6) and set "
    f"{VARIABLE}=egl or {VARIABLE}=osmesa before Python starts."
)
MAX_GEOMS = 2000


def choose_opengl() -> None:
    """Sets MUJOCO_GL, unless it is set, to what this machine has: egl, else osmesa, else none at all.

    MuJoCo reads it once, when it is first imported, and without it asks for a display on Linux. With `disable` it imports
    everywhere, so that simulators without pictures need no OpenGL.
    """
    if not os.environ.get(VARIABLE) and sys.platform.startswith("linux"):
        os.environ[VARIABLE] = "egl" if find_library("EGL") else "osmesa" if find_library("OSMesa") else "disable"


def load_mujoco() -> Any:
    """MuJoCo, imported once OpenGL is chosen.

    Raises KinoiseError, with the remedy, when the value that MUJOCO_GL came with stops MuJoCo from being imported.
    """
    choose_opengl()
    try:
        import mujoco
    except Exception as error:
        raise KinoiseError(f"MuJoCo can't be imported: {_blame(error)}. {REMEDY}") from error
    return mujoco


def unstable(data: Data) -> bool:
    """Whether MuJoCo met numbers it could not go on with, upon which it resets the world and says nothing."""
    kinds = load_mujoco().mjtWarning
    return any(data.warning[int(kind)].number for kind in (kinds.mjWARN_BADQPOS, kinds.mjWARN_BADQVEL, kinds.mjWARN_BADQACC))


class Renderer:
    """Draws a model's cameras into memory.

    To be used by the thread that made it.

    Args:
        model: compiled; its visual settings are changed, nothing else.
        size: the largest side of a picture, in pixels.
        plain: without shadows, reflections and multisampling, which makes it up to nine times faster on a CPU; else with those
            that the model asks for.
        hidden: groups of geometries that are not drawn.

    Raises:
        KinoiseError: there is no OpenGL context to be had; with the remedy.
    """

    def __init__(self, model: Model, size: int, *, plain: bool = True, hidden: Sequence[int] = ()) -> None:
        mujoco = self._mujoco = load_mujoco()
        if plain:
            model.vis.quality.offsamples = 0
            model.vis.quality.shadowsize = 0
        model.vis.global_.offwidth = model.vis.global_.offheight = size
        self._gl: Any = None
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # GLFW's, of which the error says enough
                self._gl = mujoco.GLContext.__new__(mujoco.GLContext)
                self._gl._context = None  # its destructor reads this, and would complain where the constructor failed
                self._gl.__init__(size, size)
                self._gl.make_current()
                self._context = mujoco.MjrContext(model, mujoco.mjtFontScale.mjFONTSCALE_100.value)
        except Exception as error:
            raise KinoiseError(f"no OpenGL context for pictures: {_blame(error)}. {REMEDY}") from error
        mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN.value, self._context)
        self._scene = mujoco.MjvScene(model, maxgeom=MAX_GEOMS)
        for flag in (mujoco.mjtRndFlag.mjRND_SHADOW, mujoco.mjtRndFlag.mjRND_REFLECTION) if plain else ():
            self._scene.flags[flag] = False
        self._model, self._options, self._camera = model, mujoco.MjvOption(), mujoco.MjvCamera()
        self._options.geomgroup[list(hidden)] = 0
        self._camera.type = mujoco.mjtCamera.mjCAMERA_FIXED
        # MuJoCo ends OpenGL at exit; a context that is still there by then complains on standard error.
        atexit.register(_close, weakref.ref(self))

    def place(self, data: Data) -> None:
        """Moves what is drawn to where the joints are. Needed where positions were set without a step since."""
        self._mujoco.mj_kinematics(self._model, data)
        self._mujoco.mj_camlight(self._model, data)

    def draw(self, data: Data, camera: str, size: int) -> UInt8[np.ndarray, "size size 3"]:
        """What `camera` sees, row 0 at the top. A camera of the world that was mounted upside down is turned by 180 degrees."""
        mujoco = self._mujoco
        self._gl.make_current()
        index = self._model.camera(camera).id
        self._camera.fixedcamid = index
        mujoco.mjv_updateScene(
            self._model, data, self._options, None, self._camera, mujoco.mjtCatBit.mjCAT_ALL.value, self._scene
        )
        view = mujoco.MjrRect(0, 0, size, size)
        mujoco.mjr_render(view, self._scene, self._context)
        pixels = np.empty((size, size, 3), np.uint8)
        mujoco.mjr_readPixels(pixels, None, view, self._context)
        upside_down = self._model.cam_bodyid[index] == 0 and data.cam_xmat[index, 7] < 0
        # OpenGL's row 0 is at the bottom; seen by a camera on its head, it is the top already and left is right.
        return np.ascontiguousarray(pixels[:, ::-1] if upside_down else pixels[::-1])

    def close(self) -> None:
        """Frees the OpenGL context."""
        if self._gl is not None:
            # What is freed are names in the current context: another renderer's, unless this one's is made current.
            self._gl.make_current()
            self._context.free()
            self._gl.free()
            self._gl = None


def _close(renderer: weakref.ref[Renderer]) -> None:
    if (item := renderer()) is not None:
        item.close()


def _blame(error: Exception) -> str:
    reason = (str(error).strip().splitlines() or ["no reason given"])[0].rstrip(".")
    return f"{VARIABLE}={os.environ.get(VARIABLE, '(unset)')} ({type(error).__name__}: {reason})"
