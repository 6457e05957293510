"""Environments whose pictures MuJoCo draws: policies' cameras, and the view for people."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import numpy as np
from jaxtyping import UInt8

from ..spec import Feature, KinoiseError, Spec
from .base import Env, Values
from .rendering import Data, Model, Renderer

VIEW_SIZE = 384


class Pictured(Env):
    """An `Env` that draws, in the process and thread that made it, what its simulator's `_data` holds.

    Args, besides `Env`'s:
        model: the compiled scene.
        render, cameras, size: as for `envs.make`.

    Attributes:
        view: the camera that people look through.
        plain, hidden: see `Renderer`.
    """

    view: ClassVar[str]
    plain: ClassVar[bool] = True
    hidden: ClassVar[Sequence[int]] = ()

    def __init__(
        self,
        task: str,
        instruction: str,
        spec: Spec,
        horizon: int,
        *,
        model: Model,
        render: bool,
        cameras: Sequence[str],
        size: int,
    ) -> None:
        super().__init__(task, instruction, spec, horizon)
        self.render_mode = "rgb_array" if render else None
        self._cameras, self._size = tuple(cameras), size
        self._renderer: Renderer | None = None
        if render or cameras:
            largest = max(size if cameras else 0, VIEW_SIZE if render else 0)
            self._renderer = Renderer(model, largest, plain=self.plain, hidden=self.hidden)

    @property
    def _data(self) -> Data:
        """The simulator's state, of the model that is drawn."""
        raise NotImplementedError

    def render(self) -> UInt8[np.ndarray, "height width 3"]:
        if self._renderer is None or self.render_mode is None:
            raise KinoiseError(f"{self.task} was made without pictures for people. Make it with render=True.")
        return self._renderer.draw(self._data, self.view, VIEW_SIZE)

    def close(self) -> None:
        if self._renderer is not None:
            self._renderer.close()
            self._renderer = None

    def _pictures(self) -> Values:
        """What the policy's cameras see; empty without any, and while nothing is `drawn`."""
        if self._renderer is None or not self.drawn:
            return {}
        return {f"image.{name}": self._renderer.draw(self._data, name, self._size) for name in self._cameras}


def image_features(cameras: Sequence[str], size: int) -> dict[str, Feature]:
    """A spec's entries for what these cameras see."""
    return {f"image.{camera}": Feature((size, size, 3), "image") for camera in cameras}
