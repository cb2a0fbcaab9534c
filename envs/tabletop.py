"""What every task shares: the Panda on a table, its cameras, its looks, and its exact state.

A task is a subclass that builds its robosuite world, edits the MJCF, and says what success and progress are.
Physics, robot and controller (OSC_POSE at 20 Hz, see controller.py) are robosuite's; rendering is MuJoCo's own.
"""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass
from typing import Any

import cv2
import gymnasium as gym
import mujoco
import numpy as np
import robosuite.macros as macros
from robosuite.environments.manipulation.manipulation_env import ManipulationEnv
from robosuite.utils.mjcf_utils import xml_path_completion
from scipy.spatial.transform import Rotation

from envs import meshes
from envs.controller import ArmController
from envs.rendering import Renderer
from envs.types import ACTION_DIM, CONTROL_HZ, MAIN_SIZE, STATE_DIM, WRIST_SIZE, Scene, check_action, check_finite

# Rendered this many times larger, then averaged: cheaper than multisampling. With 2 the edges are jagged, and the frame
# tokenizer spends its bits on them (0.7 dB, LOG.md).
SUPERSAMPLE = 4
POINTING_DOWN = Rotation.from_matrix([[0, 1, 0], [1, 0, 0], [0, 0, -1]])
SPLITS = ("train", "seen", "unseen")  # `seen` has the ranges of `train` and other seeds; `unseen` leaves the ranges


@dataclass(frozen=True)
class Look:
    """How a scene looks: drawn once an episode, and outside the training ranges in the split `unseen`."""

    table_texture: str
    table_tint: np.ndarray  # (3,) multiplies the texture
    light: np.ndarray  # (3,) diffuse
    light_direction: np.ndarray  # (3,)
    camera_position: np.ndarray  # (3,) metres
    camera_target: np.ndarray  # (3,) metres

    @classmethod
    def draw(cls, rng: np.random.Generator, unseen: bool) -> Look:
        """One look. The camera of the training ranges moves by millimetres, that of `unseen` by centimetres."""
        textures = ("red-wood", "gray-felt") if unseen else ("ceramic", "light-wood", "white-plaster", "gray-woodgrain")
        shift = rng.uniform(-1, 1, 3) * 0.005
        if unseen:
            shift = rng.uniform(0.01, 0.02, 3) * rng.choice([-1, 1], 3)
        brightness = rng.choice([rng.uniform(0.25, 0.4), rng.uniform(0.95, 1.1)]) if unseen else rng.uniform(0.5, 0.85)
        return cls(
            table_texture=str(rng.choice(textures)),
            table_tint=rng.uniform(0.75, 1.0, 3),
            light=np.full(3, brightness),
            light_direction=np.array([*rng.uniform(-0.4, 0.4, 2), -1.0]),
            camera_position=np.array([0.50, 0.0, 1.42]) + shift,
            camera_target=np.array([0.03, 0.0, 0.83]),
        )

    def apply(self, root: ElementTree.Element) -> None:
        """Write this look into an MJCF tree."""
        asset, world = root.find("asset"), root.find("worldbody")
        texture = asset.find("texture[@name='tex-ceramic']")
        texture.set("file", xml_path_completion(f"textures/{self.table_texture}.png"))
        asset.find("material[@name='table_ceramic']").set("rgba", _numbers([*self.table_tint, 1]))
        light = world.find("light")
        light.set("diffuse", _numbers(self.light))
        light.set("dir", _numbers(self.light_direction))
        forward = self.camera_target - self.camera_position
        right = np.cross(forward, [0, 0, 1])
        up = np.cross(right, forward)
        camera = {"name": "main", "mode": "fixed", "fovy": "38"}
        camera |= {"pos": _numbers(self.camera_position), "xyaxes": _numbers([*right, *up])}
        ElementTree.SubElement(world, "camera", camera)


@dataclass(frozen=True)
class SimState:
    """Everything that a step depends on. Physics alone is not enough: the gripper's command builds up over steps, and
    the first step of an episode differs (see `ArmController`)."""

    physics: np.ndarray
    gripper_command: np.ndarray
    steps: int
    task: Any


class Tabletop(gym.Env):
    """A gymnasium task on the table; subclasses fill in the methods of the second half.

    Observation: {"main": (64, 64, 3) u8, "wrist": (32, 32, 3) u8, "state": (P,) f32}; action: (A,) in [-1, 1],
    OSC_POSE deltas (1 = 5 cm, 0.5 rad) and the gripper (-1 opens, 1 closes). `info` carries the instruction,
    `success`, `progress`, `subtask`, the task's `score`s and the privileged `scene`.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": CONTROL_HZ}
    instruction: str
    subtask_names: tuple[str, ...]
    criterion: str  # what success means, in words, for reports
    horizon: int
    timestep = 0.002

    def __init__(self, split: str = "train", render_mode: str = "rgb_array") -> None:
        if split not in SPLITS:
            raise ValueError(f"split must be one of {', '.join(SPLITS)}, got {split!r}")
        self.split = split
        self.render_mode = render_mode
        self.observation_space = gym.spaces.Dict(
            main=gym.spaces.Box(0, 255, (MAIN_SIZE, MAIN_SIZE, 3), np.uint8),
            wrist=gym.spaces.Box(0, 255, (WRIST_SIZE, WRIST_SIZE, 3), np.uint8),
            state=gym.spaces.Box(-np.inf, np.inf, (STATE_DIM,), np.float32),
        )
        self.action_space = gym.spaces.Box(-1.0, 1.0, (ACTION_DIM,), np.float32)
        self._world: ManipulationEnv | None = None
        self._controller: ArmController | None = None
        self._renderer = Renderer()
        self._steps = 0

    # gymnasium's interface

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[dict, dict]:
        """Start an episode. The same seed and split give the same episode, bit for bit."""
        super().reset(seed=seed)
        # the split is part of the seed, so `seen` never repeats an episode of `train`
        rng = np.random.default_rng([SPLITS.index(self.split), int(self.np_random.integers(2**31))])
        look = Look.draw(rng, unseen=self.split == "unseen")
        self._draw(rng)

        def edit(xml: str) -> str:
            root = ElementTree.fromstring(xml)
            root.find("option").set("timestep", str(self.timestep))
            look.apply(root)
            self._edit(root)
            return meshes.cheapen(ElementTree.tostring(root, encoding="unicode"))  # last: it shrinks what was chosen

        if self._world is None:
            self._world = self._build()
        world = self._world
        world.rng = rng
        # robosuite's own `reset` also renders observables that nothing here reads; this is the part that matters
        world._xml_processors = [world.edit_model_xml, edit]
        world._load_model()
        world._initialize_sim()
        world._observables = {}
        self._renderer.load(self._model)
        world._reset_internal()
        world.model_timestep = self.timestep
        self._steps = 0
        self._connect(rng)
        world.sim.forward()
        self._controller = ArmController(world)
        return self.observe(), self._info()

    def step(self, action: np.ndarray) -> tuple[dict, float, bool, bool, dict]:
        """Execute one control step. Raises ValueError for an action that is not finite or has a wrong shape."""
        reward, terminated, truncated, info = self.advance(action)
        return self.observe(), reward, terminated, truncated, info

    def render(self) -> np.ndarray:
        """The main camera at 256 pixels, (256, 256, 3) u8."""
        return self.render_main(256)

    def render_main(self, size: int) -> np.ndarray:
        """The main camera, (size, size, 3) u8."""
        return self._render("main", size)

    def close(self) -> None:
        """Free the rendering contexts and the simulation."""
        self._renderer.close()
        self._world = self._controller = None

    # the halves of a step: where many futures are tried, drawing what nobody looks at is most of the time

    def advance(self, action: np.ndarray) -> tuple[float, bool, bool, dict]:
        """`step` without drawing what it would show: reward, terminated, truncated, info."""
        if self._world is None:
            raise gym.error.ResetNeeded("call reset() before step()")
        action = check_action(action)
        before = self.progress()
        self._before_step(action)
        model, data, controller = self._model, self._data, self._controller
        for substep in range(round(1 / CONTROL_HZ / self.timestep)):
            mujoco.mj_step1(model, data)
            reading = controller.at_reset if self._steps == substep == 0 else controller.read()
            if substep == 0:
                controller.set_goal(action, reading)
            controller.command(reading)
            mujoco.mj_step2(model, data)
        mujoco.mj_forward(model, data)
        self._steps += 1
        check_finite("simulated robot state", data.qpos)
        info = self._info()
        truncated = self._steps >= self.horizon and not info["success"]
        return float(info["progress"] - before), info["success"], truncated, info

    def observe(self) -> dict:
        """What cameras and robot show now."""
        obs = {"state": self._state()}
        for name, size, camera in (("main", MAIN_SIZE, "main"), ("wrist", WRIST_SIZE, "robot0_eye_in_hand")):
            large = self._render(camera, size * SUPERSAMPLE)
            obs[name] = cv2.resize(large, (size, size), interpolation=cv2.INTER_AREA)
        return obs

    # exact state

    def save_state(self) -> SimState:
        """A copy of the whole state, from which every future is the same, also in the middle of a grasp."""
        physics = np.empty(mujoco.mj_stateSize(self._model, mujoco.mjtState.mjSTATE_INTEGRATION))
        mujoco.mj_getState(self._model, self._data, physics, mujoco.mjtState.mjSTATE_INTEGRATION)
        return SimState(physics, self._gripper.current_action.copy(), self._steps, self._task_state())

    def load_state(self, state: SimState) -> None:
        """Return to a saved state of this same episode (the same reset)."""
        self._gripper.current_action = state.gripper_command.copy()
        self._steps = state.steps
        self._load_task_state(state.task)
        mujoco.mj_setState(self._model, self._data, state.physics, mujoco.mjtState.mjSTATE_INTEGRATION)
        mujoco.mj_forward(self._model, self._data)

    # what a task fills in

    def _build(self) -> ManipulationEnv:
        """The robosuite world, made once."""
        raise NotImplementedError

    def _draw(self, rng: np.random.Generator) -> None:
        """Draw what varies between episodes."""

    def _edit(self, root: ElementTree.Element) -> None:
        """Write what was drawn into the MJCF tree."""

    def _connect(self, rng: np.random.Generator) -> None:
        """Look up ids in the compiled model and place the objects."""

    def _before_step(self, action: np.ndarray) -> None:
        """Whatever happens once a control step beside the robot's own motion."""

    def _task_state(self) -> Any:
        """What `save_state` keeps of the task itself."""

    def _load_task_state(self, state: Any) -> None:
        """Put back what `_task_state` gave."""

    def success(self) -> bool:
        """Whether the task is done now."""
        raise NotImplementedError

    @staticmethod
    def progress_in(keypoints: np.ndarray, gripper: np.ndarray, opening: np.ndarray, holding: np.ndarray) -> np.ndarray:
        """How far the task has come, 0 to below 1, from what can also be believed or imagined: keypoints (..., 4, 3),
        gripper (..., 3) and its opening (...) in m, holding (...) the chance that the jaws hold anything."""
        raise NotImplementedError

    def scene(self) -> Scene:
        """The simulator's truth."""
        raise NotImplementedError

    def score(self) -> dict[str, float]:
        """Measures to report beside success."""
        return {}

    # what follows from it

    def progress(self) -> float:
        """How far the task has come, 0 to 1."""
        return self._progress(self.success(), self.scene())

    def _progress(self, success: bool, scene: Scene) -> float:
        if success:
            return 1.0
        holding = np.float32(scene.held >= 0)
        return float(self.progress_in(scene.keypoints, scene.gripper, np.float32(scene.opening), holding))

    # what tasks use

    @property
    def _model(self) -> mujoco.MjModel:
        return self._world.sim.model._model

    @property
    def _data(self) -> mujoco.MjData:
        return self._world.sim.data._data

    @property
    def _gripper(self):
        return self._world.robots[0].gripper["right"]

    def gripper_position(self) -> np.ndarray:
        """The grip site, (3,) metres."""
        return self._data.site_xpos[self._grip_site].copy()

    def opening(self) -> float:
        """The gap between the fingers, metres."""
        left, right = self._data.qpos[self._world.robots[0]._ref_gripper_joint_pos_indexes["right"]]
        return float(left - right)

    # inside

    @property
    def _grip_site(self) -> int:
        return self._world.robots[0].eef_site_id["right"]

    def _state(self) -> np.ndarray:
        orientation = Rotation.from_matrix(self._data.site_xmat[self._grip_site].reshape(3, 3))
        turned = (orientation * POINTING_DOWN.inv()).as_rotvec()
        return np.array([*self.gripper_position(), *turned, self.opening()], dtype=np.float32)

    def _info(self) -> dict:
        success, scene = self.success(), self.scene()
        return {
            "instruction": self.instruction, "success": success, "progress": self._progress(success, scene),
            "subtask": self.subtask_names[scene.stage], "scene": scene, "score": self.score(),
        }  # fmt: skip

    def _render(self, camera: str, size: int) -> np.ndarray:
        return self._renderer.render(self._data, camera, size)


def _numbers(values) -> str:
    return " ".join(f"{value:.6g}" for value in values)


def robot_options() -> dict:
    """The robosuite arguments that all worlds share: a Panda, nothing rendered by robosuite itself."""
    macros.CONSOLE_LOGGING_LEVEL = None
    return {
        "robots": "Panda", "has_renderer": False, "has_offscreen_renderer": False, "use_camera_obs": False,
        "control_freq": CONTROL_HZ, "ignore_done": True, "hard_reset": True, "renderer": "mujoco",
    }  # fmt: skip
