"""What every task shares: the Panda on a table, its cameras, its looks, and its exact state.

A task is a subclass that builds its robosuite world, edits the MJCF, and says what success and progress are.
Physics, robot and controller (OSC_POSE at 20 Hz) are robosuite's, but for a limit of the elbow; rendering is MuJoCo's
own.
"""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from dataclasses import replace

import cv2
import gymnasium as gym
import mujoco
import numpy as np
from scipy.spatial.transform import Rotation

from envs.sim import meshes, stability
from envs.sim.backend import ManipulationEnv
from envs.sim.cameras import VIEW_SIZE, VIEWS, check_views, pose_of
from envs.sim.controller import ArmController
from envs.sim.looks import DEFAULT_LOOKS, Look, check_looks
from envs.sim.rendering import Renderer
from envs.sim.splits import EVALUATION_ONLY, SPLITS, check_split, outside
from envs.sim.state import SimState
from envs.sim.table import SPEC
from envs.types import Scene, check_action, pose_key

# Rendered this many times larger, then averaged: cheaper than multisampling. With 2 the edges are jagged, and the frame
# tokenizer spends its bits on them (0.7 dB, LOG.md).
SUPERSAMPLE = 4
POINTING_DOWN = Rotation.from_matrix([[0, 1, 0], [1, 0, 0], [0, 0, -1]])
CAMERAS = {"main": "main", "wrist": "robot0_eye_in_hand"}  # ours -> the simulator's
# What the state can be, metres and radians, for gymnasium's space: the arm is bolted down, and jaws are this wide.
# `SPEC` has the ranges that matter, which are narrower and may be left.
STATE_BOUND = np.array([2, 2, 2, np.pi, np.pi, np.pi, 0.2], np.float32)
POSE_BOUND = np.array([10, 10, 10, 1, 1, 1, 1, np.pi], np.float32)  # the same of a camera's pose
RENDER_SIZE = 256  # pixels
# How far the elbow stretches at most, radians. A Panda's arm is straight at -0.47. Where joint 4 may go beyond, to
# -0.07, an arm that once reached too far stays there for ever, for each command to come back presses the elbow further
# open: half of the folds that failed in wide looks were such arms (LOG.md). Drivers of real arms narrow limits too.
ELBOW, STRETCHED = "robot0_joint4", -0.55
# Metres and degrees from where it otherwise starts, between which the hand starts, and radians that a joint moves for
# it at most: in wide looks, and where `start` is outside training.
NEAR = ((0.0, 0.05), (0.0, 5.0), 0.06)
ELSEWHERE = ((0.05, 0.09), (5.0, 15.0), 0.15)


class Tabletop(gym.Env):
    """A gymnasium task on the table; subclasses fill in the methods of the second half.

    Observation: {"main": (64, 64, 3) u8, "wrist": (32, 32, 3) u8, "state": (P,) f32} and, unless tell_poses is False,
    where the cameras are, {"main.pose": (8,) f32, "wrist.pose": (8,) f32} as `envs.types.POSE`, relative to the world
    and to the hand. Action: (A,) in [-1, 1], OSC_POSE deltas (1 = 5 cm, 0.5 rad) and the gripper (-1 opens, 1 closes).
    `info` carries the instruction, the
    episode's `split`, `success`, `progress`, `subtask`, the task's `score`s, the privileged `scene`, and in `warnings`
    how often MuJoCo dropped contacts or constraints (`contacts_dropped`, `constraints_dropped`; empty as it should be).

    Before the first `reset` and after a `reset` that failed whatever needs an episode raises gymnasium's ResetNeeded,
    after `close` ClosedEnvironmentError; `reset` opens it again.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": SPEC.control_hz}
    instruction: str
    subtask_names: tuple[str, ...]
    criterion: str  # what success means, in words, for reports
    variant = ""  # which form of the task, where it has several
    timestep = 0.002  # seconds, a whole number of them a control step

    def __init__(
        self, split: str = "train", looks: str = DEFAULT_LOOKS, render_mode: str | None = "rgb_array",
        tell_poses: bool = True,
    ) -> None:  # fmt: skip
        """looks: what the ranges of training show, `plain` or `wide` (envs/sim/looks.py). tell_poses: whether the
        observations tell where the cameras are."""
        check_split(split)
        check_looks(looks)
        substeps = 1 / SPEC.control_hz / self.timestep
        if not np.isclose(substeps, round(substeps), rtol=0, atol=1e-9) or substeps < 0.5:
            raise ValueError(
                f"a time step of {self.timestep} s does not divide the {1 / SPEC.control_hz} s between two commands: "
                "the robot would run at another rate than it says"
            )
        if render_mode is not None and render_mode not in self.metadata["render_modes"]:
            modes = ", ".join(self.metadata["render_modes"])
            raise ValueError(f"render_mode must be one of {modes}, or None, got {render_mode!r}")
        self.split, self.looks = split, looks
        self.render_mode = render_mode
        self.robot_spec = replace(SPEC, cameras=tuple(replace(c, posed=tell_poses) for c in SPEC.cameras))
        images = {c.name: gym.spaces.Box(0, 255, (c.height, c.width, 3), np.uint8) for c in SPEC.cameras}
        poses = {pose_key(c.name): gym.spaces.Box(-POSE_BOUND, POSE_BOUND) for c in self.robot_spec.cameras if c.posed}
        state = gym.spaces.Box(-STATE_BOUND, STATE_BOUND)
        self.observation_space = gym.spaces.Dict({**images, **poses, "state": state})
        self.action_space = gym.spaces.Box(SPEC.action_low, SPEC.action_high)
        self._built: ManipulationEnv | None = None
        self._controller: ArmController | None = None
        self._episode = ""  # names the episode that is under way
        self._closed = False
        self._only_drawn = False  # a state without velocities was loaded
        self._renderer = Renderer()

    # gymnasium's interface

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[dict, dict]:
        """Start an episode. The same seed and split give the same episode, bit for bit.

        options, for this episode alone: "split", one of SPLITS, and "look", 0 (the default) for the episode's own and
        any other whole number for another one: what is seen differs (textures, colours, light, cameras) and what
        happens does not, so a state that was saved under one look can be loaded under another. ValueError for any
        other option or value.
        """
        options = dict(options or {})
        split, look = options.pop("split", self.split), options.pop("look", 0)
        check_split(split)
        if isinstance(look, bool) or not isinstance(look, int | np.integer) or not 0 <= look < 2**31:
            raise ValueError(f"the option `look` must be a whole number from 0 on, got {look!r}")
        if options:
            raise ValueError(f"reset takes the options `split` and `look`, got {', '.join(map(repr, options))}")
        super().reset(seed=seed)
        self._episode, self._closed, self._only_drawn = "", False, False
        # the split is part of the seed, so `seen` never repeats an episode of `train`
        drawn = int(self.np_random.integers(2**31))
        rng = np.random.default_rng([SPLITS.index(split), drawn])
        # from 1 on: numpy gives a list that ends in 0 the stream of the list without it
        look_rng = np.random.default_rng([SPLITS.index(split), drawn, 1 + int(look)])
        try:
            self._begin(rng, look_rng, split)
        except Exception:
            self._built = self._controller = None  # half made: what needs an episode shall say that there is none
            raise
        self._split_now = split
        self._episode = " ".join(filter(None, (type(self).__name__, self.variant, split, f"{drawn:010d}")))
        return self.observe(), self._info()

    def _begin(self, rng: np.random.Generator, look_rng: np.random.Generator, split: str) -> None:
        """Draw an episode and how it looks, compile its model and bring the simulation to its first state."""
        factors = outside(split)
        self._draw(rng, unseen="size" in factors)
        (views_rng,), (start_rng,) = look_rng.spawn(1), rng.spawn(1)  # what is drawn with these changes nothing else
        self._draw_look(look_rng, unseen="hue" in factors)
        if split in EVALUATION_ONLY:
            from envs.sim.wild import WildLook  # here alone: nothing that trains may load it (tests/test_house.py)

            look = WildLook.draw(rng, look_rng, self._working_area())
        else:
            look = Look.draw(look_rng, factors, self.looks)

        def edit(xml: str) -> str:
            root = ElementTree.fromstring(xml)
            root.find("option").set("timestep", str(self.timestep))
            elbow = root.find(f".//joint[@name='{ELBOW}']")
            elbow.set("range", f"{elbow.get('range').split()[0]} {STRETCHED}")
            root.find("worldbody").extend(place.moved(views_rng).element(name) for name, place in VIEWS.items())
            self._edit(root)
            look.apply(root)
            return meshes.cheapen(ElementTree.tostring(root, encoding="unicode"))  # last: it shrinks what was chosen

        if self._built is None:
            self._built = self._build()
        world = self._built
        world.rng = rng
        # robosuite's own `reset` also renders observables that nothing here reads; this is the part that matters
        world._xml_processors = [world.edit_model_xml, edit]
        world._load_model()
        world._initialize_sim()
        world._observables = {}
        stability.disable_reset(self._model)
        look.paint(self._model)
        self._renderer.load(self._model)
        if "start" in factors:
            world.robots[0].init_qpos = self._start_away(rng, *ELSEWHERE)
        elif self.looks == "wide":
            world.robots[0].init_qpos = self._start_away(start_rng, *NEAR)
        world._reset_internal()
        world.model_timestep = self.timestep
        self._connect(rng)
        world.sim.forward()
        self._controller = ArmController(world)
        stability.check_state(self._model, self._data, step=0)

    def step(self, action: np.ndarray) -> tuple[dict, float, bool, bool, dict]:
        """Execute one control step.

        Raises ValueError for an action that is not finite or has a wrong shape, SimulationError where the simulation
        became unstable: this episode cannot go on then, and nothing of it is worth keeping.
        """
        reward, terminated, truncated, info = self.advance(action)
        return self.observe(), reward, terminated, truncated, info

    def render(self) -> np.ndarray | None:
        """The main camera, (RENDER_SIZE, RENDER_SIZE, 3) u8; None, with a warning, without a render mode."""
        if self.render_mode is None:
            gym.logger.warn("render() shows nothing without a render mode: make it with render_mode='rgb_array'.")
            return None
        return self.render_main(RENDER_SIZE)

    def render_main(self, size: int) -> np.ndarray:
        """The main camera, (size, size, 3) u8."""
        return self._render("main", size)

    def close(self) -> None:
        """Free the rendering contexts and the simulation."""
        self._renderer.close()
        self._built = self._controller = None
        self._episode, self._closed = "", True

    # the halves of a step: where many futures are tried, drawing what nobody looks at is most of the time

    def advance(self, action: np.ndarray) -> tuple[float, bool, bool, dict]:
        """`step` without drawing what it would show: reward, terminated, truncated, info. Raises as `step` does."""
        model, data, controller = self._model, self._data, self._controller
        if np.shape(action) != (len(SPEC.action),):
            raise ValueError(f"an action must have the shape ({len(SPEC.action)},), got {np.shape(action)}")
        if self._only_drawn:
            raise ValueError("the state that was loaded is not whole: it can be drawn, and nothing follows from it")
        action = check_action(action, SPEC)
        step = self.steps() + 1
        stability.check_warnings(data, step)
        before = self.progress()
        self._before_step(action)
        for substep in range(self._substeps):
            mujoco.mj_step1(model, data)
            stability.check_warnings(data, step)  # before the controller reckons with NaN
            reading = controller.at_reset if step == 1 and substep == 0 else controller.read()
            if substep == 0:
                controller.set_goal(action, reading)
            controller.command(reading)
            mujoco.mj_step2(model, data)
        mujoco.mj_forward(model, data)
        stability.check_state(model, data, step)
        info = self._info()
        return float(info["progress"] - before), info["success"], False, info

    def observe(self) -> dict:
        """What cameras and robot show now."""
        obs = {"state": self._state()}
        for camera in self.robot_spec.cameras:
            size = camera.width
            obs[camera.name] = self._picture(CAMERAS[camera.name], size)
            if camera.posed:
                obs[pose_key(camera.name)] = pose_of(self._model, CAMERAS[camera.name])
        return obs

    def observe_views(self, names: Sequence[str]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """What can be seen now from places where the robot has no camera, `envs.sim.cameras.VIEWS`.

        Name -> picture (VIEW_SIZE, VIEW_SIZE, 3) u8 and pose (8,) f32. ValueError for an unknown name.
        """
        check_views(names)
        return {name: (self._picture(name, VIEW_SIZE), pose_of(self._model, name)) for name in names}

    # exact state

    def save_state(self) -> SimState:
        """A copy of the whole state, from which every future is the same, also in the middle of a grasp."""
        data = self._data
        physics = np.empty(mujoco.mj_stateSize(self._model, mujoco.mjtState.mjSTATE_INTEGRATION))
        mujoco.mj_getState(self._model, data, physics, mujoco.mjtState.mjSTATE_INTEGRATION)
        model = np.array([self.timestep, self._model.body_subtreemass[0]])
        command = np.broadcast_to(self._gripper.current_action, 2).copy()  # robosuite begins with one for both jaws
        warnings = data.warning.number.copy()
        return SimState(self._episode, model, warnings, command, self._task_state(), physics)

    def load_state(self, state: SimState) -> None:
        """Return to a saved state of the episode that is under way. ValueError for a state of another episode."""
        data = self._data
        if state.episode != self._episode:
            raise ValueError(
                f"this is a state of the episode `{state.episode}`, and the environment is in `{self._episode}`, whose "
                "model is another: reset it with that task, split and seed first"
            )
        self._gripper.current_action = state.gripper_command.copy()
        self._load_task_state(state.task)
        mujoco.mj_setState(self._model, data, state.physics, mujoco.mjtState.mjSTATE_INTEGRATION)
        mujoco.mj_forward(self._model, data)
        data.warning.number[:] = state.warnings
        self._only_drawn = False

    def sim_state(self, whole: bool = True) -> np.ndarray:
        """The state as an episode keeps it, (X,) f64. Where it is not to be whole, what only the next step depends on
        (velocities, accelerations) is NaN: for a cloth those are two thirds of it, and no picture shows them."""
        flat = self.save_state().flat()
        if not whole:
            flat[self._motion] = np.nan
        return flat

    def load_sim_state(self, flat: np.ndarray) -> None:
        """Return to what `sim_state` gave in the episode that is under way, under whichever look; from one that is not
        whole no step can be taken. ValueError for one of another version of the model; one of another episode cannot
        be told."""
        motion = np.isnan(flat)
        self.load_state(self.save_state().with_values(np.where(motion, 0.0, flat)))
        self._only_drawn = bool(motion.any())

    def model_xml(self) -> str:
        """The MuJoCo model of the episode that is under way."""
        return self._world.sim.model.get_xml()

    def motion_state(self, flat: np.ndarray) -> np.ndarray:
        """Time, positions and velocities (1 + nq + nv,) of a state of this episode as `sim_state` gave it: what
        robosuite takes for a state. Velocities that were not kept are 0."""
        physics = self.save_state().with_values(np.nan_to_num(flat)).physics
        return physics[: 1 + self._model.nq + self._model.nv]

    # what a task fills in

    def _build(self) -> ManipulationEnv:
        """The robosuite world, made once."""
        raise NotImplementedError

    def _draw(self, rng: np.random.Generator, unseen: bool) -> None:
        """Draw what varies between episodes: sizes, places, whatever the motion depends on. unseen: other sizes."""

    def _draw_look(self, rng: np.random.Generator, unseen: bool) -> None:
        """Draw what varies between looks of one episode: colours, nothing that the motion depends on. unseen: other
        hues."""

    def _working_area(self) -> tuple[np.ndarray, float, float]:
        """Centre (2,) in m, half the side in m, and yaw of the square on the table that the task needs for itself."""
        raise NotImplementedError

    def _edit(self, root: ElementTree.Element) -> None:
        """Write what was drawn into the MJCF tree."""

    def _connect(self, rng: np.random.Generator) -> None:
        """Look up ids in the compiled model and place the objects."""

    def _before_step(self, action: np.ndarray) -> None:
        """Whatever happens once a control step beside the robot's own motion."""

    def _task_state(self) -> np.ndarray:
        """What the task remembers beside the physics, (n,) f64 of a fixed length."""
        return np.zeros(0)

    def _load_task_state(self, state: np.ndarray) -> None:
        """Put back what `_task_state` gave."""

    def success(self) -> bool:
        """Whether the task is done now."""
        raise NotImplementedError

    @staticmethod
    def progress_in(keypoints: np.ndarray, state: np.ndarray, holding: np.ndarray) -> np.ndarray:
        """How far the task has come, 0 to below 1, from what can also be believed or imagined: keypoints (..., n, 3) in
        m, state (..., P) of the robot, holding (...) the chance that the jaws hold anything."""
        raise NotImplementedError

    @staticmethod
    def scene_in(keypoints: np.ndarray, state: np.ndarray, holding: bool, success: bool) -> Scene:
        """The scene as an expert reads it, from what can also be believed or imagined: keypoints (n, 3) in m, state
        (P,) of the robot, whether the jaws hold anything, and whether the task is done."""
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
        return float(self.progress_in(scene.keypoints, self._state(), holding))

    def steps(self) -> int:
        """Control steps of this episode so far; a state that is loaded brings its own."""
        return round(self._data.time / (self._substeps * self.timestep))

    # what tasks use

    @property
    def _world(self) -> ManipulationEnv:
        """The world of the episode that is under way, or of the one that `reset` is making."""
        if self._built is not None:
            return self._built
        if self._closed:
            raise gym.error.ClosedEnvironmentError("this environment is closed: call reset() to open it again")
        raise gym.error.ResetNeeded("there is no episode: call reset() first")

    @property
    def _substeps(self) -> int:
        return round(1 / SPEC.control_hz / self.timestep)

    @property
    def _model(self) -> mujoco.MjModel:
        return self._world.sim.model._model

    @property
    def _data(self) -> mujoco.MjData:
        return self._world.sim.data._data

    @property
    def _motion(self) -> np.ndarray:
        """Where a flat state holds velocities and accelerations: indices from its end, where the physics stand."""
        whole, found = int(mujoco.mjtState.mjSTATE_INTEGRATION), []
        for part in (mujoco.mjtState.mjSTATE_QVEL, mujoco.mjtState.mjSTATE_WARMSTART):
            below = whole & (int(part) - 1)  # the parts stand in the order of their bits
            begin, count = (mujoco.mj_stateSize(self._model, sig) for sig in (below, int(part)))
            found.append(np.arange(begin, begin + count))
        return np.concatenate(found) - mujoco.mj_stateSize(self._model, whole)

    @property
    def _gripper(self):
        return self._world.robots[0].gripper["right"]

    def gripper_position(self) -> np.ndarray:
        """The grip site, (3,) metres."""
        return self._data.site_xpos[self._grip_site].copy()

    def turned(self) -> np.ndarray:
        """From pointing straight down to how the hand points, (3,), a rotation vector in the world frame, radians."""
        orientation = Rotation.from_matrix(self._data.site_xmat[self._grip_site].reshape(3, 3))
        return (orientation * POINTING_DOWN.inv()).as_rotvec()

    def opening(self) -> float:
        """The gap between the fingers, metres."""
        left, right = self._data.qpos[self._world.robots[0]._ref_gripper_joint_pos_indexes["right"]]
        return float(left - right)

    # inside

    def _start_away(
        self, rng: np.random.Generator, metres: tuple[float, float], degrees: tuple[float, float], joint: float
    ) -> np.ndarray:
        """Joints (7,) with which the hand starts so far from where it otherwise does, and turned so much."""
        model, data, robot = self._model, mujoco.MjData(self._model), self._world.robots[0]
        joints = [model.joint(name).qposadr[0] for name in robot.robot_model.joints]
        site = model.site(robot.gripper["right"].important_sites["grip_site"]).id
        usual = np.array(robot.init_qpos)

        def pose(at: np.ndarray) -> tuple[np.ndarray, Rotation]:
            data.qpos[joints] = at
            mujoco.mj_kinematics(model, data)
            return data.site_xpos[site].copy(), Rotation.from_matrix(data.site_xmat[site].reshape(3, 3))

        position, rotation = pose(usual)
        while True:
            start = usual + rng.uniform(-joint, joint, len(usual))
            moved, turned = pose(start)
            turn = np.degrees((turned * rotation.inv()).magnitude())
            if metres[0] < np.linalg.norm(moved - position) < metres[1] and degrees[0] < turn < degrees[1]:
                return start

    @property
    def _grip_site(self) -> int:
        return self._world.robots[0].eef_site_id["right"]

    def _state(self) -> np.ndarray:
        return np.array([*self.gripper_position(), *self.turned(), self.opening()], dtype=np.float32)

    def _info(self) -> dict:
        success, scene = self.success(), self.scene()
        return {
            "instruction": self.instruction, "split": self._split_now, "success": success,
            "progress": self._progress(success, scene), "subtask": self.subtask_names[scene.stage], "scene": scene,
            "score": self.score(), "warnings": stability.dropped(self._data),
        }  # fmt: skip

    def _picture(self, camera: str, size: int) -> np.ndarray:
        """(size, size, 3) u8, drawn larger and averaged."""
        large = self._render(camera, size * SUPERSAMPLE)
        return cv2.resize(large, (size, size), interpolation=cv2.INTER_AREA)

    def _render(self, camera: str, size: int) -> np.ndarray:
        return self._renderer.render(self._data, camera, size)
