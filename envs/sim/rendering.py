"""One GL context for the life of an environment.

A new GL context compiles the software renderer's shaders again: 0.4 s, where reading another model into a kept
one takes 0.05 s. One context draws every camera at every size.
"""

from __future__ import annotations

import atexit
import weakref

import mujoco
import numpy as np

MAX_SIZE = 512  # pixels
MAX_GEOMS = 2000

_alive: weakref.WeakSet[Renderer] = weakref.WeakSet()


class Renderer:
    """Draws the models of one environment, one after the other: `load` after every compilation, then `render`."""

    def __init__(self) -> None:
        self._gl: mujoco.GLContext | None = None
        self._context: mujoco.MjrContext | None = None
        self._visible = mujoco.MjvOption()
        self._visible.geomgroup[:] = 0
        self._visible.geomgroup[1] = 1  # robosuite keeps visual geoms in group 1, collision geoms in group 0
        self._visible.sitegroup[:] = 0
        self._visible.flexgroup[:] = 1
        _alive.add(self)

    def load(self, model: mujoco.MjModel) -> None:
        """Read the meshes and textures of a compiled model. Frees those of the last one."""
        if self._gl is None:
            self._gl = mujoco.GLContext(MAX_SIZE, MAX_SIZE)
            # MuJoCo ends EGL at exit, from its first context on; freeing a context after that prints a traceback,
            # and what is registered last runs first
            atexit.unregister(_close_all)
            atexit.register(_close_all)
        self._gl.make_current()
        if self._context is not None:
            self._context.free()
        model.vis.global_.offwidth = model.vis.global_.offheight = MAX_SIZE
        self._model = model
        self._context = mujoco.MjrContext(model, mujoco.mjtFontScale.mjFONTSCALE_50)
        mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN, self._context)
        self._scene = mujoco.MjvScene(model, MAX_GEOMS)
        self._scene.flags[mujoco.mjtRndFlag.mjRND_SHADOW] = 0
        self._scene.flags[mujoco.mjtRndFlag.mjRND_REFLECTION] = 0

    def render(self, data: mujoco.MjData, camera: str, size: int) -> np.ndarray:
        """What a named camera sees, (size, size, 3) u8, of the model loaded last."""
        if self._context is None:
            raise RuntimeError("load a model before rendering")
        if not 0 < size <= MAX_SIZE:
            raise ValueError(f"a frame has 1 to {MAX_SIZE} pixels a side, got {size}")
        view = mujoco.MjvCamera()
        view.type = mujoco.mjtCamera.mjCAMERA_FIXED
        view.fixedcamid = self._model.camera(camera).id
        self._gl.make_current()  # another environment of this process may have drawn since
        everything = mujoco.mjtCatBit.mjCAT_ALL
        mujoco.mjv_updateScene(self._model, data, self._visible, None, view, everything, self._scene)
        area = mujoco.MjrRect(0, 0, size, size)
        frame = np.empty((size, size, 3), np.uint8)
        mujoco.mjr_render(area, self._scene, self._context)
        mujoco.mjr_readPixels(frame, None, area, self._context)
        return frame[::-1].copy()  # GL counts rows from below

    def close(self) -> None:
        """Free everything; a later `load` starts anew."""
        if self._context is not None:
            self._gl.make_current()
            self._context.free()
            self._context = None
        if self._gl is not None:
            self._gl.free()
            self._gl = None


def _close_all() -> None:
    for renderer in list(_alive):
        renderer.close()
