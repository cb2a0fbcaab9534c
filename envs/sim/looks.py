"""How a scene looks: textures, light and cameras. Nothing of it reaches into the physics.

`plain` looks are few: four tables, one light, cameras that hardly move. `wide` looks are what training may show beside
them, so that a model works in scenes that it has never seen (domain randomisation, Tobin et al. 2017). What a split
leaves out of training (envs/sim/splits.py) is in neither.
"""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import mujoco
import numpy as np
from scipy.spatial.transform import Rotation

from envs.sim.backend import xml_path_completion
from envs.sim.patterns import SIZE, draw_pattern
from envs.sim.splits import FAR

LOOKS = ("plain", "wide")
DEFAULT_LOOKS = "wide"  # what the checkpoint that ships was trained on

PLAIN_TEXTURES = ("ceramic", "light-wood", "white-plaster", "gray-woodgrain")
UNSEEN_TEXTURES = ("red-wood", "gray-felt")
WIDE_TEXTURES = (  # robosuite's others, but for its pictures of groceries
    *PLAIN_TEXTURES, "blue-wood", "brass-ambra", "clay", "cream-plaster", "dark-wood", "dirt", "glass", "gray-plaster",
    "green-wood", "light-gray-floor-tile", "light-gray-plaster", "metal", "pink-plaster", "steel-brushed",
    "steel-scratched", "white-bricks", "wood-tiles", "wood-varnished-panels", "yellow-plaster",
)  # fmt: skip

POSITION, TARGET = np.array([0.50, 0.0, 1.42]), np.array([0.03, 0.0, 0.83])  # metres, of the main camera
# Metres and degrees, the least and the most by which the main camera is moved and turned, in a random direction.
WIDE_CAMERA = ((0.0, 0.02), (0.0, 2.0))
UNSEEN_CAMERA = ((0.03, 0.05), (3.0, 5.0))
FAR_CAMERA = ((0.10, 0.10), (10.0, 10.0))
WIDE_WRIST = ((0.0, 0.01), (0.0, 2.0))  # the same for the wrist camera, relative to the hand
ASIDE = 0.12  # metres from TARGET at which the main camera may look at most, so that it keeps the task in sight
WIDE_LIGHT = (0.42, 0.93)  # on the table; `unseen` is darker or brighter
TABLE, FLOOR, WALLS = "tex-ceramic", "texplane", "tex-light-gray-plaster"  # robosuite's names of the textures

Surface = str | np.ndarray  # the name of one of robosuite's textures, or pixels (SIZE, SIZE, 3) u8


@dataclass(frozen=True, eq=False)
class Look:
    """How a scene looks."""

    surfaces: dict[str, Surface]  # by the name of the texture that it replaces
    table_tint: np.ndarray  # (3,) multiplies the texture
    light: np.ndarray  # (3,) diffuse
    light_direction: np.ndarray  # (3,)
    camera_position: np.ndarray  # (3,) metres
    camera_axes: np.ndarray  # (3, 3) its right, up and back as columns
    camera_fovy: float = 38.0  # degrees
    wrist_shift: np.ndarray | None = None  # (3,) metres, in the frame of the hand
    wrist_turn: np.ndarray | None = None  # (3,) a rotation vector in the camera's own frame
    wrist_fovy: float = 75.0  # degrees

    @classmethod
    def draw(cls, rng: np.random.Generator, outside: frozenset[str], looks: str) -> Look:
        """One look. outside: the factors that leave the ranges of training, which `looks` names."""
        surfaces, tint = _draw_surfaces(rng, "texture" in outside, looks)
        light, light_direction = _draw_light(rng, "light" in outside, looks)
        shift = turn = None
        if "camera" in outside:
            position, axes = moved_camera(rng, *UNSEEN_CAMERA)
        elif FAR in outside:
            position, axes = moved_camera(rng, *FAR_CAMERA)
        elif looks == "wide":
            position, axes = moved_camera(rng, *WIDE_CAMERA)
            shift, turn = away(rng, *WIDE_WRIST[0]), np.radians(away(rng, *WIDE_WRIST[1]))
        else:
            position = POSITION + rng.uniform(-1, 1, 3) * 0.005
            axes = _axes(position)
        return cls(surfaces, tint, light, light_direction, position, axes, wrist_shift=shift, wrist_turn=turn)

    def apply(self, root: ElementTree.Element) -> None:
        """Write this look into an MJCF tree. ValueError for a texture that there is not."""
        asset, world = root.find("asset"), root.find("worldbody")
        for name, surface in self.surfaces.items():
            set_surface(asset.find(f"texture[@name='{name}']"), surface)
        asset.find("material[@name='table_ceramic']").set("rgba", _numbers([*self.table_tint, 1]))
        light = world.find("light")
        light.set("diffuse", _numbers(self.light))
        light.set("dir", _numbers(self.light_direction))
        camera = {"name": "main", "mode": "fixed", "fovy": _numbers([self.camera_fovy])}
        right, up, _ = self.camera_axes.T
        camera |= {"pos": _numbers(self.camera_position), "xyaxes": _numbers([*right, *up])}
        ElementTree.SubElement(world, "camera", camera)
        wrist = world.find(".//camera[@name='robot0_eye_in_hand']")
        wrist.set("fovy", _numbers([self.wrist_fovy]))
        if self.wrist_shift is not None:
            w, *xyz = map(float, wrist.get("quat").split())
            x, y, z, w = (Rotation.from_quat([*xyz, w]) * Rotation.from_rotvec(self.wrist_turn)).as_quat()
            wrist.set("pos", _numbers(np.array([*map(float, wrist.get("pos").split())]) + self.wrist_shift))
            wrist.set("quat", _numbers([w, x, y, z]))

    def paint(self, model: mujoco.MjModel) -> None:
        """Write the surfaces that are pixels into the compiled model: no file is needed for them."""
        for name, surface in self.surfaces.items():
            if not isinstance(surface, str):
                paint(model, name, surface)


def check_looks(looks: str) -> None:
    """Raise ValueError where there are no such looks."""
    if looks not in LOOKS:
        raise ValueError(f"looks must be {' or '.join(LOOKS)}, got {looks!r}")


def set_surface(texture: ElementTree.Element, surface: Surface) -> None:
    """Make a texture of an MJCF tree show a picture of robosuite's, or take the pixels that `paint` writes."""
    if isinstance(surface, str):
        file = Path(xml_path_completion(f"textures/{surface}.png"))
        if not file.is_file():
            known = ", ".join(sorted(path.stem for path in file.parent.glob("*.png")))
            raise ValueError(f"robosuite has no texture {surface!r}: it has {known}")
        texture.set("file", str(file))
        return
    texture.attrib.pop("file", None)
    for name, value in {"builtin": "checker", "width": SIZE, "height": SIZE}.items():
        texture.set(name, str(value))


def paint(model: mujoco.MjModel, name: str, pixels: np.ndarray) -> None:
    """Write pixels (SIZE, SIZE, 3) u8 into a texture of a compiled model; a cube has them on all sides."""
    texture = model.texture(name)
    start, count = texture.adr[0], texture.width[0] * texture.height[0] * texture.nchannel[0]
    model.tex_data[start : start + count].reshape(-1, *pixels.shape)[:] = pixels


def moved_camera(
    rng: np.random.Generator, metres: tuple[float, float], degrees: tuple[float, float]
) -> tuple[np.ndarray, np.ndarray]:
    """Position (3,) and axes (3, 3) of a main camera that is so much elsewhere and still sees the task."""
    while True:
        position = POSITION + away(rng, *metres)
        axes = _axes(POSITION) @ Rotation.from_rotvec(np.radians(away(rng, *degrees))).as_matrix()
        forward = -axes[:, 2]
        if forward[2] < 0:
            looks_at = position + forward * (TARGET[2] - position[2]) / forward[2]
            if np.linalg.norm(looks_at - TARGET) < ASIDE:
                return position, axes


def away(rng: np.random.Generator, least: float, most: float) -> np.ndarray:
    """A vector (3,) in a random direction, of a length between the two."""
    direction = rng.standard_normal(3)
    return rng.uniform(least, most) * direction / np.linalg.norm(direction)


def _draw_surfaces(rng: np.random.Generator, unseen: bool, looks: str) -> tuple[dict[str, Surface], np.ndarray]:
    """What lies on table and floor, and the tint of the table."""
    if unseen:
        return {TABLE: str(rng.choice(UNSEEN_TEXTURES))}, rng.uniform(0.75, 1.0, 3)
    if looks == "plain":
        return {TABLE: str(rng.choice(PLAIN_TEXTURES))}, rng.uniform(0.75, 1.0, 3)
    choose: list[Callable[[], Surface]] = [lambda: str(rng.choice(WIDE_TEXTURES)), lambda: draw_pattern(rng)]
    surfaces = {TABLE: choose[rng.integers(2)]()}
    if rng.uniform() < 0.7:  # else robosuite's floor
        surfaces[FLOOR] = choose[rng.integers(2)]()
    return surfaces, rng.uniform(0.35, 1.0, 3)


def _draw_light(rng: np.random.Generator, unseen: bool, looks: str) -> tuple[np.ndarray, np.ndarray]:
    """Diffuse light (3,) and its direction (3,)."""
    if looks == "wide" and not unseen:
        direction = np.array([*rng.uniform(-0.8, 0.8, 2), -1.0])
        low, high = WIDE_LIGHT
        slant = np.linalg.norm(direction)  # light that falls aslant is weaker on the table, and no darker than `low`
        return np.full(3, rng.uniform(low * slant, high)), direction
    brightness = rng.choice([rng.uniform(0.25, 0.4), rng.uniform(0.95, 1.1)]) if unseen else rng.uniform(0.5, 0.85)
    return np.full(3, brightness), np.array([*rng.uniform(-0.4, 0.4, 2), -1.0])


def _axes(position: np.ndarray) -> np.ndarray:
    """The axes (3, 3) of a camera that looks at TARGET and is level."""
    forward = TARGET - position
    right = np.cross(forward, [0, 0, 1])
    return np.stack([axis / np.linalg.norm(axis) for axis in (right, np.cross(right, forward), -forward)], axis=1)


def _numbers(values) -> str:
    return " ".join(f"{value:.6g}" for value in values)
