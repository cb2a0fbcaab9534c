"""FetchReach and FetchPush of gymnasium-robotics: a camera that sees the block, and an expert for each."""

import gymnasium as gym
import numpy as np

VIEW = {"distance": 0.8, "azimuth": 90.0, "elevation": -45.0, "lookat": np.array([1.34, 0.75, 0.42])}
LOOK = {"render_mode": "rgb_array", "max_episode_steps": 1000, "width": 64, "height": 64, "default_camera_config": VIEW}

for name in ("FetchReach-v4", "FetchPush-v4"):
    gym.register(f"Near{name}", gym.make, max_episode_steps=50, kwargs={"id": f"gymnasium_robotics:{name}", **LOOK})


class ReachExpert:
    execute, privileged, speed = 1, True, 1.0  # it reads the environment's own observation, the third argument

    def init(self, instruction, seed=0):
        return None

    def act(self, observation, state, scene):
        hand, thing, goal = scene.observation["observation"][:3], *list(scene.observation.values())[1:]
        move = 20 * (self.target(hand, thing, goal) - hand)  # 1 is 3 cm; the fourth action, the jaws, is blocked
        return np.append(np.clip(move, -self.speed, self.speed), 0).astype(np.float32)[None], state

    def target(self, hand, thing, goal):
        return goal


class PushExpert(ReachExpert):  # over to behind the block, down, along: by degrees and wide, as a learner can
    speed = 0.8  # a camera then sees the way in more frames

    def target(self, hand, block, goal):
        gap, here = (goal - block)[:2], (hand - block)[:2]
        way = gap / max(np.linalg.norm(gap), 1e-6)
        aside = here - here @ way * way
        there, ahead = np.linalg.norm(gap) < 0.02, here @ way / max(np.linalg.norm(here), 1e-6)
        off = there or np.clip((0.75 + ahead) / 0.35, 0, 1)  # 0: within a cone behind it
        low = np.clip((0.47 - hand[2]) / 0.03, 0, 1)
        push = (min(0.04, np.linalg.norm(gap) / 2) + max(0, -here @ way - 0.045)) * way - 1.5 * aside
        over = (-0.07 * way - here) * (1 - low) * (not there)  # low beside the block: up first
        return np.r_[hand[:2] + over + low * (1 - off) * push, 0.42 + 0.08 * off]
