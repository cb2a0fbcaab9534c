"""Somebody's own robot: a point that pushes itself to a mark in a picture. Nothing here knows of nextstate."""

import gymnasium as gym
import numpy as np


class Mark(gym.Env):
    metadata = {"render_modes": ["rgb_array"], "render_fps": 10}
    observation_space = gym.spaces.Dict(point=gym.spaces.Box(-1, 1, (2,)), mark=gym.spaces.Box(-1, 1, (2,)))
    action_space = gym.spaces.Box(-0.2, 0.2, (2,))

    def __init__(self, render_mode=None):
        self.render_mode = render_mode

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.point, self.mark = self.np_random.uniform(-0.9, 0.9, (2, 2)).astype(np.float32)
        return self._seen(), {}

    def step(self, action):
        self.point = np.clip(self.point + action, -1, 1).astype(np.float32)
        near = bool(np.linalg.norm(self.point - self.mark) < 0.1)
        return self._seen(), float(near), False, False, {"is_success": near}

    def render(self):
        picture = np.full((96, 96, 3), 40, np.uint8)
        for (x, y), colour in ((self.mark, (220, 60, 60)), (self.point, (240, 240, 240))):
            row, column = int(48 - 44 * y), int(48 + 44 * x)
            picture[max(row - 4, 0) : row + 4, max(column - 4, 0) : column + 4] = colour
        return picture

    def _seen(self):
        return {"point": self.point, "mark": self.mark}


gym.register("Mark-v0", Mark, max_episode_steps=40)


class Straight:
    """Goes straight to the mark: a policy, and an expert."""

    execute = 1

    def init(self, instruction, seed=0):
        return None

    def act(self, observation, state):
        point, mark = observation.state[:2], observation.state[2:]
        return np.clip(mark - point, -0.2, 0.2)[None], state
