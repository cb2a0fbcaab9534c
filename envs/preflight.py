"""Is the system ready? Pure standard library, run before anything is installed: `python3 -I envs/preflight.py`.

Prints one line that says what is missing and the command that installs it, and exits with 1.
"""

from __future__ import annotations

import ctypes
import importlib.util
import os
import sys

OLDEST_PYTHON = (3, 11)
EGL_EXTENSIONS_DEVICE = 0x313F  # EGL_PLATFORM_DEVICE_EXT
MAX_DEVICES = 16
RENDERING_PACKAGES = ("libegl1", "libgl1-mesa-dri")
ROBOSUITE_MISSING = (
    "robosuite is missing. Install it with: pip install --no-deps robosuite==1.5.2 "
    "(without its dependencies: those that are needed come with this project, the rest need a compiler or an old numpy)"
)


def require() -> None:
    """Raise OSError with the one line where something of the system is missing."""
    line = problem(installing=False)
    if line:
        raise OSError(line)


def require_rendering() -> None:
    """Raise OSError with the one line where MuJoCo could not render through EGL, whatever MUJOCO_GL says."""
    reason = rendering_problem()
    if reason:
        raise OSError(advice([reason], RENDERING_PACKAGES))


def advice(missing, packages) -> str:
    """The one line."""
    return "missing: {}. Install with: sudo apt-get install -y {}".format(" and ".join(missing), " ".join(packages))


def problem(installing: bool) -> str:
    """One line that says what is missing and how to install it, or an empty string.

    installing: the virtual environment has still to be made, so Python's means to make one are needed too.
    """
    version = sys.version_info[:2]
    if version < OLDEST_PYTHON:
        return (
            "Python 3.11 or newer is needed, {} is {}.{}: `sudo apt-get install -y python3.11 python3.11-venv`, "
            "then run make with PYTHON=python3.11".format(sys.executable, *version)
        )
    missing, packages = [], []
    if installing and not (importlib.util.find_spec("venv") and importlib.util.find_spec("ensurepip")):
        missing.append("Python's venv module")
        is_default = os.path.basename(sys.executable) in ("python", "python3")
        packages.append("python3-venv" if is_default else "python{}.{}-venv".format(*version))
    reason = rendering_problem() if os.environ.get("MUJOCO_GL", "egl") == "egl" else ""
    if reason:
        missing.append(reason)
        packages += RENDERING_PACKAGES
    return advice(missing, packages) if missing else ""


def rendering_problem() -> str:
    """Why MuJoCo could not render without a screen, or an empty string: opens EGL as MuJoCo will."""
    os.environ.setdefault("EGL_LOG_LEVEL", "fatal")  # one line of ours instead of several of Mesa
    try:
        egl = ctypes.CDLL("libEGL.so.1")
    except OSError:
        return "the library libEGL.so.1 for headless rendering"
    egl.eglGetProcAddress.restype = ctypes.c_void_p
    egl.eglGetProcAddress.argtypes = [ctypes.c_char_p]
    query = egl.eglGetProcAddress(b"eglQueryDevicesEXT")
    display_of = egl.eglGetProcAddress(b"eglGetPlatformDisplayEXT")
    if not query or not display_of:
        return "an EGL library that can render without a screen"
    query = ctypes.CFUNCTYPE(ctypes.c_uint, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)(query)
    display_of = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_uint, ctypes.c_void_p, ctypes.c_void_p)(display_of)
    egl.eglInitialize.restype = ctypes.c_uint
    egl.eglInitialize.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p]
    devices, count = (ctypes.c_void_p * MAX_DEVICES)(), ctypes.c_int(0)
    if query(MAX_DEVICES, ctypes.byref(devices), ctypes.byref(count)):
        for device in devices[: count.value]:
            display = display_of(EGL_EXTENSIONS_DEVICE, device, None)
            # not terminated afterwards: the display belongs to the whole process, and MuJoCo may be using it
            if display and egl.eglInitialize(display, None, None):
                return ""
    return "a Mesa driver for headless rendering (EGL finds no device that works)"


if __name__ == "__main__":
    found = problem(installing="--installing" in sys.argv)
    if found:
        sys.exit(found)
