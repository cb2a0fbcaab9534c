"""FetchReach and FetchPush of gymnasium-robotics: a camera that sees the block, and an expert for each."""

import gymnasium as gym
import numpy as np

CAMERA = {"distance": 0.8, "azimuth": 90.0, "elevation": -45.0, "lookat": np.array([1.34, 0.75, 0.42])}
LOOK = {"width": 64, "height": 64, "default_camera_config": CAMERA}

for name in ("FetchReach-v4", "FetchPush-v4"):
    world = {"id": f"gymnasium_robotics:{name}", "render_mode": "rgb_array", "max_episode_steps": 1000, **LOOK}
    gym.register(f"Near{name}", gym.make, max_episode_steps=50, kwargs=world)


class ReachExpert:
    execute, privileged = 1, True  # it reads the environment's own observation, the third argument

    def init(self, instruction, seed=0):
        return None

    def act(self, observation, state, scene):
        hand, thing, goal = scene.observation["observation"][:3], *list(scene.observation.values())[1:]
        move = 20 * (self.target(hand, thing, goal) - hand)  # 1 is 3 cm; the fourth action, the jaws, is blocked
        return np.append(np.clip(move, -1, 1), 0).astype(np.float32)[None], state

    def target(self, hand, thing, goal):
        return goal


class PushExpert(ReachExpert):
    def target(self, hand, block, goal):
        far = np.linalg.norm((goal - block)[:2])
        way = (goal - block)[:2] / max(far, 1e-6)
        along = (hand - block)[:2] @ way  # negative: behind the block, seen from the goal
        aside = (hand - block)[:2] - along * way
        lined, low = np.linalg.norm(aside) < 0.025, hand[2] < 0.46
        if far < 0.015 or (low and not lined and np.hypot(*(hand - block)[:2]) < 0.07):
            return np.r_[hand[:2] - 0.02 * (low and far < 0.015) * way, 0.5]  # there, or beside it: up
        if lined and low and along < -0.02:  # push, steering back onto the line
            return np.r_[hand[:2] + (min(0.04, far / 2) + max(0, -along - 0.045)) * way - 1.5 * aside, 0.42]
        return np.r_[block[:2] - 0.06 * way, 0.42 if lined and along < -0.04 else 0.5]  # over, then down behind it
