"""One GL context for the life of an environment.

A new GL context compiles the software renderer's shaders again: 0.4 s, where reading another model into a kept
one takes 0.05 s. One context draws every camera at every size.
"""

from __future__ import annotations

import atexit
import os
import sys
import weakref
from typing import Protocol

import mujoco
import numpy as np

from envs import preflight

MAX_SIZE = 512  # pixels
MAX_GEOMS = 2000

_alive: weakref.WeakSet[Renderer] = weakref.WeakSet()
_opened_by: int | None = None  # the process that opened the first GL context; a forked child inherits the number


class GLContext(Protocol):
    """What MuJoCo's contexts have in common."""

    def make_current(self) -> None:
        """Let this thread draw into it."""

    def free(self) -> None:
        """Close it."""


class Renderer:
    """Draws the models of one environment, one after the other: `load` after every compilation, then `render`."""

    def __init__(self) -> None:
        self._gl: GLContext | None = None
        self._context: mujoco.MjrContext | None = None
        self._visible = mujoco.MjvOption()
        self._visible.geomgroup[:] = 0
        self._visible.geomgroup[1] = 1  # robosuite keeps visual geoms in group 1, collision geoms in group 0
        self._visible.sitegroup[:] = 0
        self._visible.flexgroup[:] = 1
        _alive.add(self)

    def load(self, model: mujoco.MjModel) -> None:
        """Read the meshes and textures of a compiled model. Frees those of the last one.

        Raises OSError with the command that installs what is missing, RuntimeError in a process forked too late.
        """
        refuse_fork()
        if self._gl is None:
            self._gl = open_context()
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
        refuse_fork()
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


def open_context() -> GLContext:
    """A GL context without a window.

    On Linux through EGL, which needs no display, unless MUJOCO_GL says osmesa or glx. MuJoCo's own choice is not asked:
    it is made when mujoco is imported, and is a window, which a headless machine cannot open, where MUJOCO_GL was not
    set before.
    """
    global _opened_by
    # one thread draws frames this small faster than several, and leaves the others to other environments
    os.environ.setdefault("LP_NUM_THREADS", "1")
    if sys.platform != "linux" or os.environ.get("MUJOCO_GL") in ("osmesa", "glx"):
        from mujoco import GLContext as Context
    else:
        preflight.require_rendering()  # before the import, which fails with a traceback out of OpenGL
        from mujoco.egl import GLContext as Context
    _opened_by = os.getpid()
    return Context(MAX_SIZE, MAX_SIZE)


def refuse_fork() -> None:
    """Raise RuntimeError where drawing would hang for ever: in a child forked after its parent had begun to draw."""
    if _opened_by not in (None, os.getpid()):
        raise RuntimeError(
            "this process was forked from one that had begun to draw, and the locks and threads of the graphics "
            "library do not survive that. Start workers afresh: gymnasium.make_vec(..., vectorization_mode='async', "
            "vector_kwargs={'context': 'spawn'}), or multiprocessing.get_context('spawn')."
        )


def _close_all() -> None:
    for renderer in list(_alive):
        renderer.close()
