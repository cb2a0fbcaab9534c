"""How a scene looks: textures, light and camera, drawn once an episode."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass

import numpy as np

from envs.sim.backend import xml_path_completion


@dataclass(frozen=True)
class Look:
    """How a scene looks: drawn once an episode, and outside the training ranges in the split `unseen`."""

    table_texture: str
    table_tint: np.ndarray  # (3,) multiplies the texture
    light: np.ndarray  # (3,) diffuse
    light_direction: np.ndarray  # (3,)
    camera_position: np.ndarray  # (3,) metres
    camera_target: np.ndarray  # (3,) metres

    @classmethod
    def draw(cls, rng: np.random.Generator, unseen: bool) -> Look:
        """One look. The camera of the training ranges moves by millimetres, that of `unseen` by centimetres."""
        textures = ("red-wood", "gray-felt") if unseen else ("ceramic", "light-wood", "white-plaster", "gray-woodgrain")
        shift = rng.uniform(-1, 1, 3) * 0.005
        if unseen:
            shift = rng.uniform(0.01, 0.02, 3) * rng.choice([-1, 1], 3)
        brightness = rng.choice([rng.uniform(0.25, 0.4), rng.uniform(0.95, 1.1)]) if unseen else rng.uniform(0.5, 0.85)
        return cls(
            table_texture=str(rng.choice(textures)),
            table_tint=rng.uniform(0.75, 1.0, 3),
            light=np.full(3, brightness),
            light_direction=np.array([*rng.uniform(-0.4, 0.4, 2), -1.0]),
            camera_position=np.array([0.50, 0.0, 1.42]) + shift,
            camera_target=np.array([0.03, 0.0, 0.83]),
        )

    def apply(self, root: ElementTree.Element) -> None:
        """Write this look into an MJCF tree."""
        asset, world = root.find("asset"), root.find("worldbody")
        texture = asset.find("texture[@name='tex-ceramic']")
        texture.set("file", xml_path_completion(f"textures/{self.table_texture}.png"))
        asset.find("material[@name='table_ceramic']").set("rgba", _numbers([*self.table_tint, 1]))
        light = world.find("light")
        light.set("diffuse", _numbers(self.light))
        light.set("dir", _numbers(self.light_direction))
        forward = self.camera_target - self.camera_position
        right = np.cross(forward, [0, 0, 1])
        up = np.cross(right, forward)
        camera = {"name": "main", "mode": "fixed", "fovy": "38"}
        camera |= {"pos": _numbers(self.camera_position), "xyaxes": _numbers([*right, *up])}
        ElementTree.SubElement(world, "camera", camera)


def _numbers(values) -> str:
    return " ".join(f"{value:.6g}" for value in values)
