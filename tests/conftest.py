"""What every test shares: one thread, headless rendering, and made-up episodes."""

import os

# Before anything imports numpy, torch or mujoco: they read these once.
os.environ.setdefault("MUJOCO_GL", "egl")
for _name in ("OMP_NUM_THREADS", "LP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(_name, "1")

import numpy as np  # noqa: E402
import pytest  # noqa: E402

from envs.sim.table import SPEC  # noqa: E402
from envs.types import Episode  # noqa: E402


def synthetic_episode(seed: int = 0, steps: int = 24, instruction: str = "fold the cloth in half") -> Episode:
    """A made-up episode: smooth motion of the gripper and a bright square that follows it in both views."""
    rng = np.random.default_rng(seed)
    action = np.clip(np.cumsum(rng.normal(0, 0.2, (steps, 7)), axis=0), -1, 1).astype(np.float32)
    action[:, 6] = np.where(np.arange(steps) < steps // 2, 1.0, -1.0)
    state = np.zeros((steps + 1, 7), np.float32)
    state[:, 2], state[:, 6] = 0.9, 0.04
    state[1:, :3] += 0.005 * np.cumsum(action[:, :3], axis=0)
    main = np.full((steps + 1, 64, 64, 3), 60, np.uint8)
    wrist = np.full((steps + 1, 32, 32, 3), 90, np.uint8)
    for t, (x, y) in enumerate(state[:, :2]):
        row, col = int(np.clip(32 + 80 * x, 0, 56)), int(np.clip(32 + 80 * y, 0, 56))
        main[t, row : row + 8, col : col + 8] = (200, 40, 40)
        wrist[t, row // 2 : row // 2 + 4, col // 2 : col // 2 + 4] = (200, 40, 40)
    keypoints = np.repeat(rng.uniform(-0.15, 0.15, (1, 4, 3)).astype(np.float32), steps + 1, axis=0)
    keypoints[..., 2] = 0.82
    success = np.zeros(steps + 1, bool)
    success[-1] = seed % 2 == 0
    reward = np.zeros(steps, np.float32)
    reward[-1] = success[-1]
    return Episode(
        images={"main": main, "wrist": wrist}, state=state,
        action=action, expert=action.copy(), reward=reward, success=success,
        progress=np.linspace(0, 1, steps + 1, dtype=np.float32), keypoints=keypoints,
        held=np.where(np.arange(steps + 1) < steps // 2, -1, 0).astype(np.int8),
        subtask=(np.arange(steps) >= steps // 2).astype(np.int16),
        subtask_names=("grasp the near left corner", "lay it on the far left corner"),
        instruction=instruction, env_id="nextstate/FoldHalf-v0", seed=seed, spec=SPEC,
        versions={"numpy": np.__version__},
    )  # fmt: skip


@pytest.fixture
def make_episode():
    """The function that makes synthetic episodes: make_episode(seed, steps, instruction)."""
    return synthetic_episode


@pytest.fixture
def episodes() -> list[Episode]:
    """Four synthetic episodes of different lengths."""
    return [synthetic_episode(seed, steps=20 + 4 * seed) for seed in range(4)]
