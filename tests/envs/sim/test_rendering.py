import ctypes
import multiprocessing
import subprocess
import sys

import mujoco
import numpy as np
import pytest

from envs.sim.rendering import MAX_SIZE, Renderer

MODEL = """
<mujoco><worldbody>
  <light pos="0 0 3"/> <camera name="above" pos="0 0 2" fovy="60"/>
  <geom type="plane" size="2 2 .1" group="1" rgba=".2 .2 .2 1"/>
  <geom type="box" size=".2 .2 .2" pos="0 .5 .2" group="1" rgba="{color} 1"/>
  <geom type="box" size=".9 .9 .5" group="0" rgba="0 0 1 1"/>
</worldbody></mujoco>
"""


def scene(color: str) -> tuple[mujoco.MjModel, mujoco.MjData]:
    model = mujoco.MjModel.from_xml_string(MODEL.format(color=color))
    data = mujoco.MjData(model)
    mujoco.mj_forward(model, data)
    return model, data


@pytest.fixture
def renderer():
    renderer = Renderer()
    yield renderer
    renderer.close()


def test_the_picture_is_upright_and_shows_what_is_visual(renderer):
    """GL's rows run upwards, and robosuite's collision geoms would hide the robot."""
    model, data = scene("1 0 0")
    renderer.load(model)
    frame = renderer.render(data, "above", 64).astype(int)
    red = frame[..., 0] - frame[..., 2] > 50
    assert red.any() and np.argwhere(red)[:, 0].mean() < 32, "the box stands towards +y, the upper half"
    assert (frame[..., 2] - frame[..., 0]).max() < 50, "a collision geom is visible"


def test_another_model_replaces_the_last(renderer):
    """Textures or meshes of the last episode must not show in the next."""
    red, green = scene("1 0 0"), scene("0 1 0")
    frames = []
    for model, data in (red, green, red):
        renderer.load(model)
        frames.append(renderer.render(data, "above", 48))
    np.testing.assert_array_equal(frames[0], frames[2])
    assert (frames[1][..., 1].astype(int) - frames[1][..., 0]).max() > 50


def test_two_renderers_do_not_disturb_each_other(renderer):
    """Two environments in one process share the thread's current GL context."""
    other = Renderer()
    (red, red_data), (green, green_data) = scene("1 0 0"), scene("0 1 0")
    renderer.load(red)
    alone = renderer.render(red_data, "above", 32)
    other.load(green)
    other.render(green_data, "above", 64)
    np.testing.assert_array_equal(renderer.render(red_data, "above", 32), alone)
    other.close()
    np.testing.assert_array_equal(renderer.render(red_data, "above", 32), alone)


def test_impossible_requests_are_named(renderer):
    """A frame larger than the buffer would be cut silently."""
    with pytest.raises(RuntimeError, match="load a model"):
        renderer.render(None, "above", 32)
    model, data = scene("1 0 0")
    renderer.load(model)
    with pytest.raises(ValueError, match=str(MAX_SIZE + 1)):
        renderer.render(data, "above", MAX_SIZE + 1)


def test_leaving_without_closing_is_quiet():
    """EGL that ends before its contexts prints a page of tracebacks at the end of every program."""
    program = (
        "import mujoco; from envs.sim.rendering import Renderer; r = Renderer(); "
        "r.load(mujoco.MjModel.from_xml_string('<mujoco><worldbody/></mujoco>'))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and done.stderr == ""


def try_to_draw(answer, model, renderer) -> None:
    """In a forked child: what a renderer of its own and the parent's say."""
    for attempt in (lambda: Renderer().load(model), lambda: renderer.render(None, "above", 32)):
        try:
            attempt()
            answer.put("drawn")
        except RuntimeError as error:
            answer.put(str(error))


def test_a_fork_that_comes_too_late_is_refused(renderer):
    """A worker forked after somebody drew hangs for ever in the graphics library, and nobody learns why."""
    model, _ = scene("1 0 0")
    renderer.load(model)
    context = multiprocessing.get_context("fork")
    answer = context.SimpleQueue()
    child = context.Process(target=try_to_draw, args=(answer, model, renderer))
    child.start()
    child.join(30)
    hangs = child.is_alive()
    child.kill()
    assert not hangs
    assert all("'spawn'" in answer.get() for _ in range(2))


def test_a_missing_library_is_one_line(monkeypatch):
    """Without libEGL the first cell of a notebook ends in a traceback out of OpenGL."""

    def missing(name):
        raise OSError(name)

    monkeypatch.setenv("MUJOCO_GL", "egl")
    monkeypatch.setattr(ctypes, "CDLL", missing)
    with pytest.raises(OSError, match="sudo apt-get install -y libegl1 libgl1-mesa-dri"):
        Renderer().load(scene("1 0 0")[0])
