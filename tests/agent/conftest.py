"""A small environment for the verbs: no simulator, a few steps, the contract of envs.tabletop."""

import gymnasium as gym
import numpy as np
import pytest

from agent import actors
from agent.actors import EnvConfig
from envs.types import Scene

ENV_ID = "nextstate-test/Reach-v0"


class Reach(gym.Env):
    """Move the gripper 0.3 m along x within 10 steps; the first action dimension is the speed."""

    action_space = gym.spaces.Box(-1, 1, (7,), np.float32)
    criterion = "x over 0.3 m"
    instruction = "reach"

    def __init__(self, split: str = "train") -> None:
        if split not in ("train", "seen", "unseen"):
            raise ValueError(f"split must be one of train, seen, unseen, got {split!r}")
        self.split = split

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.x, self.steps = float(self.np_random.uniform(0, 0.05)), 0
        return self._now()

    def step(self, action):
        self.steps += 1
        self.x += 0.05 * float(action[0])
        obs, info = self._now()
        return obs, 0.0, info["success"], self.steps >= 10 and not info["success"], info

    def _now(self):
        state = np.zeros(7, np.float32)
        state[0] = self.x
        obs = {"main": np.zeros((64, 64, 3), np.uint8), "wrist": np.zeros((32, 32, 3), np.uint8), "state": state}
        keypoints = np.full((4, 3), np.nan, np.float32)
        info = {
            "instruction": "reach", "success": self.x > 0.3, "progress": float(np.clip(self.x / 0.3, 0, 1)),
            "scene": Scene(keypoints, held=-1, opening=0.04, gripper=state[:3], stage=0), "subtask": "go",
            "score": {"distance": abs(0.3 - self.x)},
        }  # fmt: skip
        return obs, info


class Ahead:
    """The expert of Reach: full speed ahead."""

    execute = 1

    def init(self, instruction, seed=0):
        return None

    def act(self, obs, state):
        return np.array([[1, 0, 0, 0, 0, 0, -1]], np.float32), None


@pytest.fixture
def reach(monkeypatch) -> EnvConfig:
    """The settings of this environment; its expert is known for the length of the test."""
    if ENV_ID not in gym.registry:
        gym.register(ENV_ID, Reach)
    monkeypatch.setattr(actors, "make_expert", lambda config: Ahead())
    return EnvConfig("reach", ENV_ID, "train")
