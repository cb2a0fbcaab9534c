import ctypes
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

from envs import preflight

ROOT = Path(__file__).parents[2]


def test_this_machine_is_ready():
    """A check that complains about a machine on which rendering works."""
    assert preflight.problem(installing=False) == ""
    preflight.require()


def test_make_asks_a_bare_python():
    """Catches standard modules that `envs` hides from a script in it (`types`): some Pythons load them at start and
    hide the fault, a fresh Debian's and an activated environment's do not."""
    bare = f"PYTHON={sys.executable} -S"
    done = subprocess.run(["make", "preflight", bare], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_missing_gl_library(monkeypatch):
    """Without libEGL the user gets one line with the command, not a traceback out of OpenGL."""

    def missing(name):
        raise OSError(name)

    monkeypatch.setenv("MUJOCO_GL", "egl")
    monkeypatch.setattr(ctypes, "CDLL", missing)
    line = preflight.problem(installing=False)
    assert "libEGL.so.1" in line and "sudo apt-get install -y libegl1 libgl1-mesa-dri" in line and "\n" not in line
    with pytest.raises(OSError, match="apt-get install"):
        preflight.require()


def test_missing_driver(monkeypatch):
    """libEGL without a driver loads well and fails only when the first picture is drawn."""
    monkeypatch.setenv("MUJOCO_GL", "egl")
    monkeypatch.setenv("EGL_LOG_LEVEL", "fatal")
    script = "import sys; from envs import preflight; sys.exit(preflight.problem(False))"
    env = {**os.environ, "LIBGL_DRIVERS_PATH": "/nonexistent", "__EGL_VENDOR_LIBRARY_DIRS": "/nonexistent"}
    done = subprocess.run([sys.executable, "-c", script], env=env, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1 and "libgl1-mesa-dri" in done.stderr, done.stderr


def test_missing_venv_module(monkeypatch):
    """Debian ships Python without venv; the name of the package must be given, but only when it is needed."""
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "ensurepip" else find(name))
    assert "-venv" in preflight.problem(installing=True)
    assert preflight.problem(installing=False) == ""


def test_old_python(monkeypatch):
    """An old Python must be named before pip fails on it."""
    monkeypatch.setattr(sys, "version_info", (3, 10, 2))
    assert "3.10" in preflight.problem(installing=True)


def test_the_robosuite_that_is_named_is_the_one_that_is_tested():
    """A line that installs another version than the pinned one."""
    pins = (ROOT / "constraints.txt").read_text()
    assert preflight.ROBOSUITE_MISSING.split("--no-deps ")[1].split()[0] in pins.split()
    assert "\n" not in preflight.ROBOSUITE_MISSING
