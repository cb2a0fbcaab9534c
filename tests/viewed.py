"""A robot whose cameras tell where they stand, and made-up episodes of it with views from elsewhere: a bright block on
a dark floor, drawn where each camera sees it."""

import math
from dataclasses import replace

import numpy as np

from envs.data.camera import CameraPose, project
from envs.types import ActionSpec, CameraSpec, Episode, Spec, StateSpec
from tests.robots import made_up

ROBOT = Spec(
    cameras=(CameraSpec("front", 32, 32, posed=True), CameraSpec("hand", 16, 16, posed=True)),
    state=tuple(StateSpec(f"hand.{axis}", -0.5, 0.5, "m") for axis in "xyz"),
    action=(ActionSpec("dx"), ActionSpec("dy"), ActionSpec("jaw", gripper=True)),
    control_hz=10, keypoints=("block",), workspace=((-0.5, -0.5, 0.0), (0.5, 0.5, 0.5)),
)  # fmt: skip
FRONT = CameraPose((0.8, 0.0, 0.8), (0.0, 0.0, 0.0), 40.0).pose.astype(np.float32)
LEFT = CameraPose((0.0, 0.8, 0.8), (0.0, 0.0, 0.0), 40.0).pose.astype(np.float32)
TOP = np.array([0, 0, 1.2, 1, 0, 0, 0, math.radians(40)], np.float32)  # straight down
IN_HAND = np.array([0.05, 0, -0.02, 0, 1, 0, 0, 1.2], np.float32)  # relative to the hand
PLACES = {"left": LEFT, "top": TOP}


def draw(pose: np.ndarray, points: np.ndarray, size: int = 32, half: int = 6) -> np.ndarray:
    """What a camera at poses (n, 8) sees of a block at points (n, 3), (n, size, size, 3) u8. half: of it, in pixels."""
    row, column = project(pose, points[:, None], size, size)[:, 0].T[..., None, None]  # (n, 1, 1) each
    away = np.maximum(abs(np.arange(size)[:, None] - row), abs(np.arange(size) - column))  # (n, size, size)
    return np.where(away[..., None] < half, (255, 200, 40), (0, 0, 60)).astype(np.uint8)


def viewed(seed: int = 0, steps: int = 24, jitter: float = 0.02, instruction: str = "") -> Episode:
    """A block that lies anywhere within 20 cm; cameras and views that stand a little elsewhere in each episode."""
    plain, rng = made_up(ROBOT, seed, steps, expert=True, instruction=instruction), np.random.default_rng(seed)
    block = np.array([*rng.uniform(-0.2, 0.2, 2), 0.02])
    points = np.repeat(block[None], steps + 1, axis=0).astype(np.float32)

    def placed(pose: np.ndarray) -> np.ndarray:
        moved = pose + np.append(rng.uniform(-jitter, jitter, 3), np.zeros(5))
        return np.repeat(moved[None], steps + 1, axis=0).astype(np.float32)

    poses = {"front": placed(FRONT), "hand": np.repeat(IN_HAND[None], steps + 1, axis=0)}
    poses |= {name: placed(pose) for name, pose in PLACES.items()}
    images = {**plain.images, "front": draw(poses["front"], points)}
    return replace(
        plain, images=images, poses=poses, views={name: draw(poses[name], points) for name in PLACES},
        keypoints=points[:, None],
    )  # fmt: skip
