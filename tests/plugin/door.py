"""robosuite's Door as a gymnasium environment (its own wrapper ignores the seed and draws nothing)."""
import gymnasium as gym
import mujoco
import numpy as np
import robosuite

SIZES = {"robot0_eef_pos": 3, "handle_pos": 3, "handle_qpos": 1, "hinge_qpos": 1}
QUIET = {"use_camera_obs": False, "has_offscreen_renderer": False, "ignore_done": True, "hard_reset": False}


class Door(gym.Env):
    metadata, render_mode = {"render_modes": ["rgb_array"], "render_fps": 20}, "rgb_array"
    observation_space = gym.spaces.Dict({name: gym.spaces.Box(-np.inf, np.inf, (n,)) for name, n in SIZES.items()})
    action_space = gym.spaces.Box(-1, 1, (7,), np.float32)

    def __init__(self, size=64, render_mode="rgb_array"):
        self.suite = robosuite.make("Door", robots="Panda", **QUIET)
        self.camera, self.shown = mujoco.MjvCamera(), mujoco.MjvOption()
        self.camera.lookat[:], self.camera.distance = (-0.15, -0.25, 1.05), 1.1
        self.camera.azimuth, self.camera.elevation, self.shown.geomgroup[0] = -140, -25, 0  # 0: collision shapes
        self.renderer = mujoco.Renderer(self.suite.sim.model._model, size, size)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.suite.rng.bit_generator.state = np.random.default_rng(self.np_random.integers(2**32)).bit_generator.state
        return self._read(self.suite.reset()), {"is_success": False}

    def step(self, action):
        seen, reward, *_ = self.suite.step(np.asarray(action, np.float64))
        return self._read(seen), reward, False, False, {"is_success": self.suite._check_success()}

    def render(self):
        self.renderer.update_scene(self.suite.sim.data._data, self.camera, self.shown)
        return self.renderer.render()

    def _read(self, seen):
        return {name: np.atleast_1d(seen[name]).astype(np.float32) for name in SIZES}


gym.register("Door-v0", Door, max_episode_steps=150)
