"""Lift a cube: robosuite's own task behind this project's contract."""

from __future__ import annotations

import colorsys
import xml.etree.ElementTree as ElementTree

import mujoco
import numpy as np

from envs.sim.backend import RobosuiteLift, robot_options
from envs.sim.table import SPEC, TABLE_HEIGHT
from envs.sim.tabletop import Tabletop
from envs.tasks import score
from envs.tasks.score import LIFTED, NARROW, REACHED
from envs.types import HELD_NOTHING, Scene

PLACEMENT = 0.05  # metres each way from the table's centre; robosuite's own is 0.03
HAND = 0.08  # metres around the cube that open jaws need
APART = NARROW / 2  # metres between the jaws below which there is no cube between them
OPPOSED = 0.5  # cosine of the angle to the jaws' axis within which a pad presses from its side


class Lift(Tabletop):
    """`nextstate/Lift-v0`: lift the cube.

    The cube lies anywhere within 5 cm of the table's centre at any yaw. Training cubes are red to orange with an
    edge of 40 to 46 mm; those of `unseen` are green to violet, and smaller or larger.
    """

    instruction = "lift the cube"
    subtask_names = ("reach the cube", "grasp the cube", "lift the cube")
    criterion = f"the cube's centre over {1000 * LIFTED:.0f} mm above the table (robosuite's Lift)"

    def _build(self) -> RobosuiteLift:
        return RobosuiteLift(**robot_options(SPEC.control_hz))

    def _draw(self, rng: np.random.Generator, unseen: bool) -> None:
        self._position = rng.uniform(-PLACEMENT, PLACEMENT, 2)
        self._yaw = rng.uniform(-np.pi, np.pi)
        half = rng.choice([rng.uniform(0.017, 0.019), rng.uniform(0.024, 0.0255)]) if unseen else None
        self._half = rng.uniform(0.020, 0.023) if half is None else float(half)

    def _draw_look(self, rng: np.random.Generator, unseen: bool) -> None:
        hue = rng.uniform(0.3, 0.8) if unseen else rng.uniform(-0.05, 0.08) % 1
        self._color = colorsys.hsv_to_rgb(hue, rng.uniform(0.75, 1.0), rng.uniform(0.6, 0.95))

    def _edit(self, root: ElementTree.Element) -> None:
        for name in ("cube_g0", "cube_g0_vis"):
            root.find(f".//geom[@name='{name}']").set("size", f"{self._half:.6f} {self._half:.6f} {self._half:.6f}")
        seen = root.find(".//geom[@name='cube_g0_vis']")
        del seen.attrib["material"]  # its wood is red: no other colour could be told from it
        seen.set("rgba", " ".join(f"{c:.4f}" for c in (*self._color, 1)))

    def _working_area(self) -> tuple[np.ndarray, float, float]:
        return self._position, self._half + HAND, self._yaw

    def _connect(self, rng: np.random.Generator) -> None:
        self._cube = mujoco.mj_name2id(self._model, mujoco.mjtObj.mjOBJ_BODY, "cube_main")
        pads = [f"gripper0_right_finger{finger}_pad_collision" for finger in (1, 2)]
        self._cube_geom, *self._pads = (
            mujoco.mj_name2id(self._model, mujoco.mjtObj.mjOBJ_GEOM, name) for name in ("cube_g0", *pads)
        )
        joint = mujoco.mj_name2id(self._model, mujoco.mjtObj.mjOBJ_JOINT, "cube_joint0")
        where = self._model.jnt_qposadr[joint]
        # robosuite's sampler has placed the cube too, but from a generator of its own
        self._data.qpos[where : where + 3] = [*self._position, TABLE_HEIGHT + self._half]
        self._data.qpos[where + 3 : where + 7] = [np.cos(self._yaw / 2), 0, 0, np.sin(self._yaw / 2)]

    def success(self) -> bool:
        return bool(self._world._check_success())

    @staticmethod
    def progress_in(keypoints: np.ndarray, state: np.ndarray, holding: np.ndarray) -> np.ndarray:
        return 0.95 * score.lift_progress(keypoints[..., 0, :], state[..., :3], state[..., -1], holding)

    @staticmethod
    def scene_in(keypoints: np.ndarray, state: np.ndarray, holding: bool, success: bool) -> Scene:
        return _scene(keypoints, 0 if holding else HELD_NOTHING, float(state[-1]), state[:3], state[3:6])

    def scene(self) -> Scene:
        keypoints = np.full((len(SPEC.keypoints), 3), np.nan, dtype=np.float32)
        keypoints[0] = self._data.xpos[self._cube]
        gripper, turned = self.gripper_position().astype(np.float32), self.turned().astype(np.float32)
        return _scene(keypoints, 0 if self._grasped() else HELD_NOTHING, self.opening(), gripper, turned)

    def score(self) -> dict[str, float]:
        """Height of the cube's centre above the table."""
        return {"height_mm": 1000 * float(self._data.xpos[self._cube][2] - TABLE_HEIGHT)}

    def _grasped(self) -> bool:
        """Whether the cube is between the jaws: they are apart, and each pad presses on it from its own side. Closed
        jaws that press on it from above touch it with both pads too (robosuite's test)."""
        if self.opening() < APART:
            return False
        first, second = (self._data.geom_xpos[pad] for pad in self._pads)
        axis = (second - first) / np.linalg.norm(second - first)
        return self._presses(self._pads[0], axis) and self._presses(self._pads[1], -axis)

    def _presses(self, pad: int, direction: np.ndarray) -> bool:
        """Whether a pad presses on the cube in this direction, (3,) of length 1."""
        contact = self._data.contact
        for (first, second), frame in zip(contact.geom.tolist(), contact.frame, strict=True):
            if {first, second} == {pad, self._cube_geom}:  # the normal leads from the first to the second
                if (1 if first == pad else -1) * frame[:3] @ direction > OPPOSED:
                    return True
        return False


def _scene(keypoints: np.ndarray, held: int, opening: float, gripper: np.ndarray, turned: np.ndarray) -> Scene:
    """With what is to be done next: reach, grasp, lift."""
    stage = 2 if held == 0 else int(np.linalg.norm(keypoints[0] - gripper) < REACHED)
    return Scene(keypoints, held, stage, opening, gripper, turned)
