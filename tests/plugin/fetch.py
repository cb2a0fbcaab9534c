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


class PushExpert(ReachExpert):  # over the line behind the block, down, along: by degrees, as a learner can
    speed = 0.6  # a camera then sees the way in more frames

    def target(self, hand, block, goal):
        far = np.linalg.norm((goal - block)[:2])
        way = (goal - block)[:2] / max(far, 1e-6)
        along = (hand - block)[:2] @ way  # negative: behind the block, seen from the goal
        aside = (hand - block)[:2] - along * way
        off = np.clip(max((np.linalg.norm(aside) - 0.01) / 0.02, (along + 0.035) / 0.02), 0, 1)  # 0: on the line
        low = np.clip((0.47 - hand[2]) / 0.03, 0, 1)
        push = (min(0.04, far / 2) + max(0, -along - 0.045)) * way - 1.5 * aside
        over = (block[:2] - 0.06 * way - hand[:2]) * (1 - low)  # low beside the block: up first
        return np.r_[hand[:2] + over + low * (1 - off) * push, 0.42 + 0.08 * off]
