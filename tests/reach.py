"""A small environment for tests: no simulator, a few steps, the contract of `envs.adapter`, and its expert."""

import gymnasium as gym
import numpy as np

from envs.adapter import Adapter, AdapterConfig, vector
from envs.sim.table import SPEC
from envs.types import Scene

MAX_STEPS = 12
REACH, OVER_THE_TABLE = "nextstate-test/Reach-v0", "nextstate-test/OverTheTable-v0"


class Reach(gym.Env):
    """The gripper moves along x by a tenth of the action; the task is to pass 0.5 within 12 steps.

    break_at: the step at which its state is NaN.
    """

    robot_spec = SPEC
    observation_space = gym.spaces.Dict(
        {c.name: gym.spaces.Box(0, 255, (c.height, c.width, 3), np.uint8) for c in SPEC.cameras},
        state=gym.spaces.Box(-np.inf, np.inf, (7,), np.float32),
    )
    action_space = gym.spaces.Box(-1, 1, (7,), np.float32)
    criterion = "x over 0.5 m"
    instruction = "reach"
    render_mode = "rgb_array"
    steps = 0

    def __init__(self, split: str = "seen", break_at: int = -1) -> None:
        if split not in ("train", "seen", "unseen"):
            raise ValueError(f"split must be one of train, seen, unseen, got {split!r}")
        self.split, self.break_at = split, break_at

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.x, self.steps = float(self.np_random.uniform(0, 0.05)), 0
        return self._now()

    def step(self, action):
        self.steps += 1
        self.x += 0.1 * float(action[0])
        obs, info = self._now()
        return obs, 0.1, info["success"], False, info

    def render_main(self, size):
        return np.full((size, size, 3), self.steps, np.uint8)

    def _now(self):
        state = np.zeros(7, np.float32)
        state[0] = np.nan if self.steps == self.break_at else self.x
        obs = {
            "main": np.full((64, 64, 3), self.steps, np.uint8),
            "wrist": np.full((32, 32, 3), self.steps, np.uint8),
            "state": state,
        }
        keypoints = np.full((4, 3), np.nan, np.float32)
        keypoints[0] = (self.x, 0, 0.8)
        info = {
            "success": self.x > 0.5, "progress": min(max(self.x / 0.5, 0), 1),
            "scene": Scene(keypoints, held=0 if self.x > 0.3 else -1, opening=0.04, gripper=state[:3], stage=0),
            "subtask": "go" if self.x < 0.3 else "arrive", "score": {"distance": abs(0.5 - self.x)},
        }  # fmt: skip
        return obs, info


class Ahead:
    """Its expert: full speed ahead."""

    execute = 1

    def init(self, instruction, seed=0):
        return None

    def act(self, observation, state):
        return np.array([[1, 0, 0, 0, 0, 0, -1]], np.float32), None


def reach_envs(robots: int = 1, max_steps: int = MAX_STEPS, break_at: int = -1):
    """A vector of them for the loop."""
    config = AdapterConfig(max_steps=max_steps)
    return vector([lambda: Adapter(Reach(break_at=break_at), "seen", config)] * robots)


class OverTheTable(Reach):
    """With a state that a checkpoint's ranges hold."""

    def _now(self):
        obs, info = super()._now()
        return {**obs, "state": (obs["state"] * 0.1 + (SPEC.state_low + SPEC.state_high) / 2).astype(np.float32)}, info


for _name, _env in ((REACH, Reach), (OVER_THE_TABLE, OverTheTable)):
    gym.register(_name, _env, max_episode_steps=MAX_STEPS)
