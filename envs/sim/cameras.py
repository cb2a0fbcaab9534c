"""Where cameras are: places that pictures of the table can be taken from, and the poses of what a model holds."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import mujoco

VIEW_SIZE = 64  # pixels a side
JITTER_POSITION, JITTER_DIRECTION = 0.02, 2.0  # metres and degrees, the most that a look moves and turns a view


@dataclass(frozen=True)
class Place:
    """A camera in the world frame that looks from position to target, metres. fovy: vertical field of view, degrees.
    up: what is up in its picture."""

    position: tuple[float, float, float]
    target: tuple[float, float, float]
    fovy: float
    up: tuple[float, float, float] = (0.0, 0.0, 1.0)

    def axes(self) -> np.ndarray:
        """(3, 3), rows: right, up and backwards, as MuJoCo's and OpenGL's cameras have x, y and z."""
        back = np.subtract(self.position, self.target)
        right = np.cross(self.up, back)
        axes = np.stack([right, np.cross(back, right), back])
        return axes / np.linalg.norm(axes, axis=-1, keepdims=True)

    def moved(self, rng: np.random.Generator) -> Place:
        """A place near it: up to JITTER_POSITION away along each axis, turned by up to JITTER_DIRECTION."""
        position = np.add(self.position, rng.uniform(-1, 1, 3) * JITTER_POSITION)
        right, up, back = self.axes()
        angle, turn = rng.uniform(0, 2 * np.pi), np.tan(np.radians(JITTER_DIRECTION) * rng.uniform())
        # the picture keeps its scale: the target stays as far away
        distance = np.linalg.norm(np.subtract(self.target, self.position))
        aside = distance * turn * (np.cos(angle) * right + np.sin(angle) * up)
        return Place(tuple(position), tuple(position - distance * back + aside), self.fovy, self.up)

    def element(self, name: str) -> ElementTree.Element:
        """This camera in MJCF."""
        right, up, _ = self.axes()
        numbers = {"pos": self.position, "xyaxes": (*right, *up), "fovy": (self.fovy,)}
        text = {key: " ".join(f"{value:.9g}" for value in values) for key, values in numbers.items()}
        return ElementTree.Element("camera", {"name": name, "mode": "fixed"} | text)


# Seen from the robot the main camera is in front, at x = 0.5, and looks back at it; left and right are the picture's.
VIEWS = {
    "top": Place((0.0, 0.0, 1.6), (0.0, 0.0, 0.8), 38.0, up=(-1.0, 0.0, 0.0)),  # the main camera's up, laid down
    "left": Place((0.0, -0.65, 1.25), (0.0, 0.0, 0.85), 38.0),
    "right": Place((0.0, 0.65, 1.25), (0.0, 0.0, 0.85), 38.0),
    "front": Place((0.75, 0.0, 1.1), (0.0, 0.0, 0.85), 38.0),
    "side": Place((0.45, 0.45, 1.3), (0.0, 0.0, 0.85), 38.0),  # between front and right
}


def check_views(names: Sequence[str]) -> None:
    """Raise ValueError for a place that has no name here, and for one that is named twice."""
    unknown = [name for name in names if name not in VIEWS]
    if unknown:
        raise ValueError(f"there is no view {', '.join(unknown)}: views are {', '.join(VIEWS)}")
    if len(set(names)) != len(names):
        raise ValueError(f"a view is named twice: {', '.join(names)}")


def pose_of(model: mujoco.MjModel, camera: str) -> np.ndarray:
    """(8,) f32, `envs.types.POSE` of a camera of a compiled model, relative to the body that it is mounted on."""
    index = model.camera(camera).id
    quat = model.cam_quat[index] / np.linalg.norm(model.cam_quat[index])
    if quat[0] < 0:
        quat = -quat
    return np.array([*model.cam_pos[index], *quat, np.radians(model.cam_fovy[index])], np.float32)
