"""Fold a cloth in half: a MuJoCo flex on robosuite's table."""

from __future__ import annotations

import colorsys
import xml.etree.ElementTree as ElementTree

import mujoco
import numpy as np

from envs.sim.backend import ManipulationEnv, ManipulationTask, TableArena, robot_options
from envs.sim.looks import DEFAULT_LOOKS
from envs.sim.table import SPEC, TABLE_HEIGHT
from envs.sim.tabletop import Tabletop
from envs.tasks import score
from envs.types import HELD_NOTHING, Scene

GRID = 9  # vertices along each side
CORNERS = ((0, GRID - 1), (0, 0), (GRID - 1, GRID - 1), (GRID - 1, 0))  # near left, near right, far left, far right
GRASP_RADIUS = 0.025  # metres from the grip site to the vertex that is grasped: jaws that close on cloth hold cloth
HOLD_OPENING, LOSE_OPENING = 0.020, 0.030  # metres between the jaws: tied below the one, let go above the other
HAND = 0.05  # metres around the cloth that the hand needs
PINCHED = 0.05  # metres from the grip site within which a corner counts as what closed jaws hold
RELEASED_OPENING = 0.060  # metres; a fold is done when the jaws are this far apart
AT_REST = 0.02  # m/s, the fastest vertex
TABLE_SIZE = (0.8, 0.8, 0.05)
TILES = 8  # along each side of the table


class FoldHalf(Tabletop):
    """`nextstate/FoldHalf-v0`: bring the near edge of the cloth onto its far edge.

    grasp: "constraint" ties the nearest vertex to the gripper when the jaws close (SoftGym's picker);
        "friction" lets fingers and cloth collide and holds by friction alone, which succeeds far less often.
    """

    instruction = "fold the cloth in half"
    subtask_names = (
        "grasp the near left corner", "lay it on the far left corner",
        "grasp the near right corner", "lay it on the far right corner", "move away",
    )  # fmt: skip
    criterion = (
        f"released, at rest, both corner pairs under {1000 * score.MAX_CORNER_DISTANCE:.0f} mm "
        f"and mean pair distance under {1000 * score.MAX_PAIR_DISTANCE:.0f} mm"
    )
    timestep = 1 / 240

    def __init__(
        self, split: str = "train", grasp: str = "constraint", looks: str = DEFAULT_LOOKS,
        render_mode: str | None = "rgb_array", tell_poses: bool = True,
    ) -> None:  # fmt: skip
        if grasp not in ("constraint", "friction"):
            raise ValueError(f"grasp must be constraint or friction, got {grasp!r}")
        super().__init__(split, looks, render_mode, tell_poses)
        self.grasp = self.variant = grasp

    def _build(self) -> ManipulationEnv:
        return _ClothTable(**robot_options(SPEC.control_hz))

    def _draw(self, rng: np.random.Generator, unseen: bool) -> None:
        self._position = rng.uniform(-0.05, 0.05, 2)
        self._yaw = rng.uniform(-0.5, 0.5)
        scale = rng.choice([rng.uniform(0.84, 0.89), rng.uniform(1.06, 1.12)]) if unseen else rng.uniform(0.9, 1.05)
        self._spacing = 0.03 * scale

    def _draw_look(self, rng: np.random.Generator, unseen: bool) -> None:
        # training hues run from yellow to blue, unseen ones from purple to red
        hue = rng.uniform(0.78, 1.0) if unseen else rng.uniform(0.12, 0.68)
        self._color = colorsys.hsv_to_rgb(hue, rng.uniform(0.5, 0.9), rng.uniform(0.5, 0.95))

    def _edit(self, root: ElementTree.Element) -> None:
        # CG jitters on this cloth; an elliptic cone costs twice as much, and robosuite's impratio of 20 three times
        options = {"solver": "Newton", "iterations": "20", "tolerance": "1e-6"}
        options |= {"integrator": "implicitfast", "cone": "pyramidal", "impratio": "1"}
        for name, value in options.items():
            root.find("option").set(name, value)
        world, equality = root.find("worldbody"), root.find("equality")
        world.append(self._cloth())
        _tile_table(world.find("./body[@name='table']"))
        if self.grasp == "friction":
            for name in ("finger1", "finger2"):
                for part in ("pad_collision", "collision"):
                    geom = world.find(f".//geom[@name='gripper0_right_{name}_{part}']")
                    geom.set("contype", "3")
                    geom.set("conaffinity", "3")
        for vertex in range(GRID * GRID):
            tie = {"name": f"grasp_{vertex}", "body1": f"cloth_{vertex}", "body2": "gripper0_right_eef"}
            ElementTree.SubElement(equality, "connect", tie | {"anchor": "0 0 0", "active": "false"})

    def _working_area(self) -> tuple[np.ndarray, float, float]:
        return self._position, self._spacing * (GRID - 1) / 2 + HAND, self._yaw

    def _cloth(self) -> ElementTree.Element:
        half = self._spacing * (GRID - 1) / 2
        pose = {
            "pos": f"{self._position[0]:.6f} {self._position[1]:.6f} {TABLE_HEIGHT + 0.0045}",
            "quat": f"{np.cos(self._yaw / 2):.6f} 0 0 {np.sin(self._yaw / 2):.6f}",
        }
        shape = {"count": f"{GRID} {GRID} 1", "spacing": f"{self._spacing:.6f} {self._spacing:.6f} {half:.6f}"}
        cloth = ElementTree.Element(
            "flexcomp",
            {"name": "cloth", "type": "grid", "dim": "2", "radius": "0.004", "mass": "0.05"}
            | {"rgba": " ".join(f"{c:.4f}" for c in (*self._color, 1))} | shape | pose,
        )  # fmt: skip
        # a stiffer edge (solref 0.004) crumples; without bending the fold springs open
        ElementTree.SubElement(cloth, "edge", equality="true", solref="0.02 1")
        elasticity = {"young": "5e4", "poisson": "0.1", "thickness": "2e-3", "elastic2d": "bend", "damping": "1e-2"}
        ElementTree.SubElement(cloth, "elasticity", elasticity)
        contact = {"selfcollide": "auto", "condim": "3", "friction": "0.8", "solref": "0.01 1"}
        contact |= {"solimp": ".95 .99 .0001", "contype": "2", "conaffinity": "2"}
        ElementTree.SubElement(cloth, "contact", contact)
        return cloth

    def _connect(self, rng: np.random.Generator) -> None:
        model = self._model
        names = [f"cloth_{vertex}" for vertex in range(GRID * GRID)]
        self._bodies = np.array([mujoco.mj_name2id(model, mujoco.mjtObj.mjOBJ_BODY, name) for name in names])
        ties = [f"grasp_{vertex}" for vertex in range(GRID * GRID)]
        self._ties = np.array([mujoco.mj_name2id(model, mujoco.mjtObj.mjOBJ_EQUALITY, name) for name in ties])
        model.eq_data[self._ties, :6] = 0.0  # both anchors at the bodies' origins: vertex and grip site
        self._dofs = model.body_dofadr[self._bodies][:, None] + np.arange(3)
        model.dof_damping[self._dofs] = 0.01
        mujoco.mj_forward(model, self._data)
        self._start = self._vertices()

    def _before_step(self, action: np.ndarray) -> None:
        if self.grasp == "friction":
            return
        # the jaws hold and not the command: one wrong sign in a carry moves them by a few millimetres
        if self.opening() > LOSE_OPENING:
            self._data.eq_active[self._ties] = 0
        elif action[-1] > 0 and self._held_vertex() < 0 and self.opening() < HOLD_OPENING:
            distance = np.linalg.norm(self._data.xpos[self._bodies] - self.gripper_position(), axis=-1)
            if distance.min() < GRASP_RADIUS:
                self._data.eq_active[self._ties[distance.argmin()]] = 1

    def success(self) -> bool:
        fastest = np.linalg.norm(self._data.qvel[self._dofs], axis=-1).max()
        released = self._held_vertex() < 0 and self.opening() > RELEASED_OPENING
        return bool(released and fastest < AT_REST and score.half_folded(self._vertices()))

    @staticmethod
    def progress_in(keypoints: np.ndarray, state: np.ndarray, holding: np.ndarray) -> np.ndarray:
        return 0.95 * score.fold_progress(keypoints, state[..., :3], holding)

    @staticmethod
    def scene_in(keypoints: np.ndarray, state: np.ndarray, holding: bool, success: bool) -> Scene:
        away = np.linalg.norm(keypoints - state[:3], axis=-1)
        held = HELD_NOTHING
        if holding:  # a near corner rather than the far one on which it is being laid
            held = next((i for i in np.argsort(away[:2]) if away[i] < PINCHED), int(np.argmin(away)))
            held = held if away[held] < PINCHED else len(keypoints)
        apart = np.linalg.norm(keypoints[:2] - keypoints[2:], axis=-1)
        folded = success or bool((apart < score.MAX_CORNER_DISTANCE).all())  # nobody tells of a bunch between them
        stage = score.fold_stage(apart, held, folded)
        return Scene(keypoints, int(held), stage, float(state[-1]), state[:3], state[3:6])

    def scene(self) -> Scene:
        vertices = self._vertices()
        corners = np.array([vertices[row, column] for row, column in CORNERS], dtype=np.float32)
        held = self._held()
        stage = score.fold_stage(_corner_distances(vertices), held, score.half_folded(vertices))
        gripper, turned = self.gripper_position().astype(np.float32), self.turned().astype(np.float32)
        return Scene(corners, held, stage, self.opening(), gripper, turned)

    def score(self) -> dict[str, float]:
        vertices = self._vertices()
        distances = score.pair_distances(vertices)
        return {
            "softgym": score.softgym_fold(vertices, self._start),
            "corner_mm": 1000 * float(_corner_distances(vertices).max()),
            "pair_mm": 1000 * float(distances.mean()),
        }

    def _vertices(self) -> np.ndarray:
        """(GRID, GRID, 3) metres, first axis near to far, second right to left."""
        return self._data.xpos[self._bodies].reshape(GRID, GRID, 3)

    def _held_vertex(self) -> int:
        active = np.flatnonzero(self._data.eq_active[self._ties])
        return int(active[0]) if len(active) else -1

    def _held(self) -> int:
        """Index of the held corner, -1 for nothing, 4 for a vertex that is no corner or its neighbour."""
        if self.grasp == "friction":
            return self._pinched()
        vertex = self._held_vertex()
        if vertex < 0:
            return -1
        row, column = divmod(vertex, GRID)
        for index, corner in enumerate(CORNERS):
            if max(abs(row - corner[0]), abs(column - corner[1])) <= 1:
                return index
        return 4

    def _pinched(self) -> int:
        """The corner between closed jaws, by distance: friction leaves no flag to read."""
        if self.opening() > 0.03:
            return HELD_NOTHING
        vertices = self._vertices()
        distance = [np.linalg.norm(vertices[r, c] - self.gripper_position()) for r, c in CORNERS]
        return int(np.argmin(distance)) if min(distance) < PINCHED else HELD_NOTHING


class _ClothTable(ManipulationEnv):
    """An empty robosuite table; the cloth is added to its MJCF."""

    def _load_model(self) -> None:
        super()._load_model()
        robot = self.robots[0].robot_model
        robot.set_base_xpos(robot.base_xpos_offset["table"](TABLE_SIZE[0]))
        arena = TableArena(table_full_size=TABLE_SIZE, table_offset=(0, 0, TABLE_HEIGHT))
        arena.set_origin([0, 0, 0])
        self.model = ManipulationTask(mujoco_arena=arena, mujoco_robots=[robot])

    def reward(self, action=None) -> float:
        return 0.0

    def _check_success(self) -> bool:
        return False


def _tile_table(table: ElementTree.Element) -> None:
    """Give the cloth small bodies to lie on: MuJoCo caps a body and a flex at 50 contacts, and the vertices that
    get none sink and jitter."""
    width = TABLE_SIZE[0] / TILES
    for column in range(TILES):
        for row in range(TILES):
            x, y = (index * width + (width - TABLE_SIZE[0]) / 2 for index in (column, row))
            body = ElementTree.SubElement(table, "body", name=f"tile_{column}_{row}", pos=f"{x:.6f} {y:.6f} 0")
            size = f"{width / 2:.6f} {width / 2:.6f} {TABLE_SIZE[2] / 2:.6f}"
            tile = {"type": "box", "group": "0", "contype": "2", "conaffinity": "2", "friction": "0.8 0.005 0.0001"}
            ElementTree.SubElement(body, "geom", tile | {"size": size})


def _corner_distances(vertices: np.ndarray) -> np.ndarray:
    """(2,) metres between near and far corner, left and right."""
    return np.linalg.norm(vertices[0, [-1, 0]] - vertices[-1, [-1, 0]], axis=-1)
