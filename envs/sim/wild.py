"""Scenes of the split `wild`: things that no training shows. Loaded by evaluation alone, when an episode of it begins.

Other objects stand on the table, patterns of other kinds than those of training (envs/sim/patterns.py) lie on table,
floor, walls and cloth, coloured light comes from the side, and the cameras have another field of view.
"""

from __future__ import annotations

import colorsys
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import cv2
import mujoco
import numpy as np

from envs.sim.looks import FLOOR, TABLE, WALLS, WIDE_CAMERA, Look, moved_camera, paint, set_surface
from envs.sim.patterns import SIZE, to_pixels
from envs.sim.table import TABLE_HEIGHT

CLOTH = "tex-cloth"
MAX_HEIGHT = 0.045  # metres; the hand passes over what is no higher while its fingers touch the table
GAP = 0.01  # metres between two objects
CONTRAST = 60  # of 255, between the mean colours of table and cloth
TRIES = 50  # of placing an object, before all of them are drawn again


@dataclass(frozen=True, eq=False)
class Distractor:
    """An object that has nothing to do with the task. size: MuJoCo's, by shape; radius: metres that it takes up."""

    shape: str
    size: tuple[float, ...]
    position: np.ndarray  # (2,) metres
    height: float  # metres from the table to its centre
    yaw: float
    radius: float

    def add_to(self, world: ElementTree.Element, name: str, colour: Sequence[float]) -> None:
        """Write it into an MJCF tree: one geom that collides and weighs, one that is seen, as robosuite has it."""
        place = f"{self.position[0]:.6f} {self.position[1]:.6f} {TABLE_HEIGHT + self.height:.6f}"
        quat = f"{np.cos(self.yaw / 2):.6f} 0 0 {np.sin(self.yaw / 2):.6f}"
        body = ElementTree.SubElement(world, "body", name=name, pos=place, quat=quat)
        ElementTree.SubElement(body, "joint", name=f"{name}_joint", type="free", damping="0.0005")
        shape = {"type": self.shape, "size": " ".join(f"{part:.6f}" for part in self.size)}
        shape["rgba"] = " ".join(f"{part:.4f}" for part in (*colour, 1))
        if self.shape == "capsule":
            shape["quat"] = "0.707107 0 0.707107 0"  # lying
        # Bits 1 and 2: robot, table and cube, and the cloth. Rolling friction keeps balls where they are.
        solid = {"group": "0", "contype": "3", "conaffinity": "3", "condim": "6", "friction": "1 0.01 0.01"}
        ElementTree.SubElement(body, "geom", shape | solid | {"name": f"{name}_g0", "density": "400"})
        seen = {"group": "1", "contype": "0", "conaffinity": "0", "mass": "0"}
        ElementTree.SubElement(body, "geom", shape | seen | {"name": f"{name}_g0_vis"})


@dataclass(frozen=True, eq=False)
class WildLook:
    """A look with objects. What can be met is drawn from the episode's generator, what is only seen from the look's."""

    look: Look
    distractors: Sequence[Distractor]
    colours: Sequence[tuple[float, float, float]]  # of each; none is as red or orange as the cube
    cloth: np.ndarray  # (SIZE, SIZE, 3) u8, where there is a cloth

    @classmethod
    def draw(
        cls, rng: np.random.Generator, look_rng: np.random.Generator, taken: tuple[np.ndarray, float, float]
    ) -> WildLook:
        """taken: centre (2,), half the side and yaw of the square that the task needs: m, m, rad."""
        distractors = draw_distractors(rng, taken)
        azimuth, elevation = look_rng.uniform(-np.pi, np.pi), np.radians(look_rng.uniform(15, 38))
        from_side = np.array([np.cos(azimuth) * np.cos(elevation), np.sin(azimuth) * np.cos(elevation)])
        hue, saturation = look_rng.uniform(), look_rng.uniform(0.3, 0.8)
        position, axes = moved_camera(look_rng, *WIDE_CAMERA)
        table, cloth = _apart(look_rng)
        look = Look(
            surfaces={TABLE: table, FLOOR: _draw_pattern(look_rng, KINDS), WALLS: _draw_pattern(look_rng, KINDS)},
            table_tint=np.ones(3),
            light=look_rng.uniform(0.8, 1.1) * np.array(colorsys.hsv_to_rgb(hue, saturation, 1)),
            light_direction=np.array([*from_side, -np.sin(elevation)]),
            camera_position=position,
            camera_axes=axes,
            camera_fovy=float(look_rng.choice([look_rng.uniform(32, 35), look_rng.uniform(42, 48)])),
            wrist_fovy=float(look_rng.choice([look_rng.uniform(62, 68), look_rng.uniform(82, 90)])),
        )
        shades = [colorsys.hsv_to_rgb(*look_rng.uniform((0.12, 0.2, 0.3), (0.9, 1, 1))) for _ in distractors]
        return cls(look, distractors, shades, cloth)

    def apply(self, root: ElementTree.Element) -> None:
        """Write objects and look into an MJCF tree."""
        self.look.apply(root)
        world, asset = root.find("worldbody"), root.find("asset")
        for index, (distractor, colour) in enumerate(zip(self.distractors, self.colours, strict=True)):
            distractor.add_to(world, f"distractor_{index}", colour)
        cloth = world.find("flexcomp")
        if cloth is not None:
            set_surface(ElementTree.SubElement(asset, "texture", name=CLOTH, type="2d"), self.cloth)
            ElementTree.SubElement(asset, "material", name="cloth_pattern", texture=CLOTH)
            cloth.set("material", "cloth_pattern")
            cloth.set("rgba", "1 1 1 1")

    def paint(self, model: mujoco.MjModel) -> None:
        """Write the patterns into the compiled model."""
        self.look.paint(model)
        if mujoco.mj_name2id(model, mujoco.mjtObj.mjOBJ_TEXTURE, CLOTH) >= 0:
            paint(model, CLOTH, self.cloth)


def draw_distractors(rng: np.random.Generator, taken: tuple[np.ndarray, float, float]) -> list[Distractor]:
    """Two to five objects in sight of the main camera, beside what the task needs and beside each other."""
    while True:
        placed: list[Distractor] = []
        wanted = rng.integers(2, 6)
        for _ in range(TRIES * wanted):
            candidate = _draw_distractor(rng)
            apart = (np.linalg.norm(candidate.position - d.position) - d.radius - candidate.radius for d in placed)
            if _beside(candidate, taken) and min(apart, default=GAP) >= GAP:
                placed.append(candidate)
            if len(placed) == wanted:
                return placed


def _draw_distractor(rng: np.random.Generator) -> Distractor:
    """Anywhere in sight. None is a cube: nobody could tell then which one is meant."""
    x = rng.uniform(-0.28, 0.26)
    position = np.array([x, rng.uniform(-1, 1) * (0.20 + 0.2 * (0.26 - x))])  # the camera sees more of what is far
    yaw, top = rng.uniform(-np.pi, np.pi), MAX_HEIGHT / 2
    match str(rng.choice(["sphere", "cylinder", "capsule", "ellipsoid", "box"])):
        case "sphere":
            radius = rng.uniform(0.012, top)
            return Distractor("sphere", (radius,), position, radius, yaw, radius)
        case "cylinder":
            radius, half = rng.uniform(0.012, 0.035), rng.uniform(0.005, top)
            return Distractor("cylinder", (radius, half), position, half, yaw, radius)
        case "capsule":
            radius, half = rng.uniform(0.008, 0.018), rng.uniform(0.015, 0.035)
            return Distractor("capsule", (radius, half), position, radius, yaw, half + radius)
        case "ellipsoid":
            size = (rng.uniform(0.02, 0.04), rng.uniform(0.015, 0.025), rng.uniform(0.01, top))
            return Distractor("ellipsoid", size, position, size[2], yaw, max(size))
    size = (rng.uniform(0.03, 0.05), rng.uniform(0.012, 0.025), rng.uniform(0.004, 0.015))  # a bar, a book
    return Distractor("box", size, position, size[2], yaw, float(np.hypot(*size[:2])))


def _beside(distractor: Distractor, taken: tuple[np.ndarray, float, float]) -> bool:
    """Whether it leaves the task's square alone."""
    centre, half, yaw = taken
    x, y = distractor.position - centre
    inside = np.abs([x * np.cos(yaw) + y * np.sin(yaw), y * np.cos(yaw) - x * np.sin(yaw)])
    return bool(np.linalg.norm(np.maximum(inside - half, 0)) > distractor.radius)


def _apart(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """The patterns of table and cloth: of different kinds and colours, so that the one can be told from the other."""
    table_kind, cloth_kind = rng.permutation(len(KINDS))[:2]
    while True:
        table, cloth = (_draw_pattern(rng, KINDS[kind : kind + 1]) for kind in (table_kind, cloth_kind))
        if np.linalg.norm(table.mean((0, 1)) - cloth.mean((0, 1))) > CONTRAST:
            return table, cloth


def _draw_pattern(rng: np.random.Generator, kinds: Sequence[Callable[..., np.ndarray]]) -> np.ndarray:
    """One texture of these kinds, (SIZE, SIZE, 3) u8."""
    return kinds[rng.integers(len(kinds))](rng)


def _colours(rng: np.random.Generator, count: int) -> np.ndarray:
    """Colours (count, 3) in [0, 1] that go together: hues close to each other, or to that on the other side."""
    hues = rng.uniform() + 0.05 * rng.standard_normal(count) + 0.5 * (rng.uniform(size=count) < rng.choice([0, 0.3]))
    saturations, values = rng.uniform(0, 0.4) + rng.uniform(0, 0.5, count), rng.uniform(0.25, 1, count)
    return np.array([colorsys.hsv_to_rgb(*hsv) for hsv in zip(hues % 1, saturations, values, strict=True)])


def _leaves(rng: np.random.Generator) -> np.ndarray:
    """Shapes of all sizes over each other, each with its own shade: the statistics of a photograph (the dead leaves
    model; Lee, Mumford and Huang 2001)."""
    colours = _colours(rng, 40)
    picture = np.tile(colours[0], (SIZE, SIZE, 1))
    for _ in range(700):
        size = 60 * rng.uniform(0.02, 1) ** 1.5 + 3
        row, column = rng.uniform(-20, SIZE + 20, 2)
        colour = colours[rng.integers(len(colours))] * rng.uniform(0.7, 1.2)
        box = ((column, row), (size, size * rng.uniform(0.3, 1)), rng.uniform(0, 180))
        if rng.uniform() < 0.5:
            cv2.ellipse(picture, box, tuple(colour), -1)
        else:
            cv2.fillPoly(picture, [cv2.boxPoints(box).astype(np.int32)], tuple(colour))
    return to_pixels(cv2.GaussianBlur(picture, (3, 3), 0) + 0.03 * rng.standard_normal(picture.shape))


def _cells(rng: np.random.Generator) -> np.ndarray:
    """Stones with joints between them: the cells of random points (Worley 1996)."""
    points = rng.uniform(0, SIZE, (int(rng.integers(12, 90)), 2))
    rows, columns = np.mgrid[:SIZE, :SIZE]
    distances = np.hypot(rows[..., None] - points[:, 0], columns[..., None] - points[:, 1])
    nearest = np.partition(distances, 1, axis=-1)
    edge = np.clip((nearest[..., 1] - nearest[..., 0]) / rng.uniform(2, 8), 0, 1)[..., None]
    stones, joint = _colours(rng, len(points))[distances.argmin(-1)], _colours(rng, 1)[0]
    return to_pixels(edge * stones * (1 - 0.004 * nearest[..., :1]) + (1 - edge) * joint)


def _tartan(rng: np.random.Generator) -> np.ndarray:
    """Bands of several colours woven across each other."""
    colours = _colours(rng, 4)
    widths = rng.integers(2, 18, 12)
    sett = np.repeat(rng.integers(0, len(colours), len(widths)), widths)
    sett = np.concatenate([sett, sett[::-1]])
    line = colours[np.resize(sett, SIZE)]
    over = (np.add.outer(np.arange(SIZE), np.arange(SIZE)) // 2 % 2)[..., None]
    return to_pixels(np.where(over, line[:, None], line[None]))


def _dots(rng: np.random.Generator) -> np.ndarray:
    """Dots in rows that are set off against each other."""
    ground, *colours = _colours(rng, 4)
    picture = np.tile(ground, (SIZE, SIZE, 1))
    step = int(rng.integers(16, 48))
    for row in range(-1, SIZE // step + 2):
        for column in range(-1, SIZE // step + 2):
            centre = (int((column + 0.5 * (row % 2)) * step), row * step)
            colour = colours[rng.integers(len(colours))]
            cv2.circle(picture, centre, int(step * 0.33), tuple(colour), -1, lineType=cv2.LINE_AA)
    return to_pixels(picture)


def _rings(rng: np.random.Generator) -> np.ndarray:
    """Rings around several centres, cut off where they meet."""
    centres = rng.uniform(0, SIZE, (int(rng.integers(1, 7)), 2))
    rows, columns = np.mgrid[:SIZE, :SIZE]
    distance = np.hypot(rows[..., None] - centres[:, 0], columns[..., None] - centres[:, 1]).min(-1)
    colours = _colours(rng, int(rng.integers(2, 5)))
    return to_pixels(colours[(distance / rng.uniform(5, 18)).astype(int) % len(colours)])


def _zigzag(rng: np.random.Generator) -> np.ndarray:
    """Chevrons of several colours."""
    period, height = rng.uniform(20, 70), rng.uniform(8, 24)
    rows, columns = np.mgrid[:SIZE, :SIZE]
    fold = np.abs((columns / period) % 1 - 0.5) * period
    colours = _colours(rng, int(rng.integers(2, 5)))
    return to_pixels(colours[((rows + fold) / height).astype(int) % len(colours)])


KINDS = (_leaves, _cells, _tartan, _dots, _rings, _zigzag)
