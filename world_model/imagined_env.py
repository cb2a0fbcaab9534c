"""The world model as an environment: a gymnasium `VectorEnv` in which policies act in what the model imagines.

    envs = gymnasium.make_vec("world_model:nextstate/Imagined-v0", num_envs=64, checkpoint="checkpoints/nextstate-s",
                              starts="data/lift", look=2)

Every robot begins at a start, a real observation and an instruction, and goes on from it in imagination: all robots
whose turn it is are imagined in one pass. A model step covers `look` control steps, so the observation changes every
`look` steps, and stays as it is between; a policy that executes as many before it looks again loses nothing by that.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from os import PathLike, fspath
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from torch import Tensor

from envs.data.formats.folder import Episodes, open_episodes
from envs.types import HELD_NOTHING, POSE, Observation, Scene, check_action, pose_key
from world_model.checkpoint import Loaded, load
from world_model.nn.device import choose_device
from world_model.types import Belief, Cache

DEFAULT_MAX_STEPS = 400  # control steps


@dataclass(frozen=True)
class Start:
    """Where a robot begins. env_id, split: of the environment that the observation is of, where there is one; seed: of
    its episode there, None where nobody knows."""

    observation: Observation
    instruction: str
    env_id: str = ""
    split: str = "train"
    seed: int | None = None


Starts = Callable[[int], Start]  # of a seed; the same start for the same seed
# What experts read, from what is believed: keypoints (n, 3) m, state (P,), whether anything is held, and success.
SceneIn = Callable[[np.ndarray, np.ndarray, bool, bool], Scene]


@dataclass(frozen=True)
class EpisodeStarts:
    """The first observations of the episodes in some folders: of a seed the episode of that seed, or else the episode
    number `seed` modulo their count, in the order of their names. EpisodeError for a folder without any."""

    folders: tuple[str, ...]
    episodes: tuple[tuple[Episodes, str], ...] = field(init=False, compare=False)
    by_seed: Mapping[int, int] = field(init=False, compare=False)

    def __post_init__(self) -> None:
        stores = [open_episodes(folder) for folder in self.folders]
        episodes = tuple((store, name) for store in stores for name in store.names())
        object.__setattr__(self, "episodes", episodes)
        seeds = enumerate(store.read(name, states=False).seed for store, name in episodes)
        object.__setattr__(self, "by_seed", {seed: i for i, seed in reversed([*seeds])})

    def __call__(self, seed: int) -> Start:
        """The start of a seed."""
        store, name = self.episodes[self.by_seed.get(seed, seed % len(self.episodes))]
        episode = store.read(name, states=False)
        cameras = [camera.name for camera in episode.spec.cameras]
        poses = {name: episode.poses[name][0] for name in cameras if name in episode.poses}
        images = {name: episode.images[name][0] for name in cameras}
        seen = Observation(images, episode.state[0], poses)
        return Start(seen, episode.instruction, episode.env_id, episode.split, episode.seed)


def as_starts(starts: Starts | Start | Sequence[Start] | str | PathLike | Sequence[str]) -> Starts:
    """What a person may say: folders of episodes, one start or several, or a function of the seed."""
    if callable(starts):
        return starts
    if isinstance(starts, Start | str | PathLike):
        starts = [starts]
    if not starts:
        raise ValueError("an imagined environment needs `starts`: a folder of episodes, or observations to begin from")
    if all(isinstance(each, Start) for each in starts):
        return lambda seed: starts[seed % len(starts)]
    return EpisodeStarts(tuple(map(fspath, starts)))


Numbers = tuple[Tensor, Tensor, Tensor]  # an observation in numbers: image (K,), state (P,) bins, pose (Q,) bins


@dataclass(frozen=True)
class Dream:
    """One robot's episode. seen: what was imagined at each look, oldest first, now last. done: the (look, A) commands
    between them. pending: those since the last look. uncertainty: of all steps so far together."""

    instruction: str
    env_id: str
    ids: Tensor  # (I,) of the instruction
    seen: tuple[Numbers, ...]
    done: tuple[np.ndarray, ...] = ()
    pending: tuple[np.ndarray, ...] = ()
    steps: int = 0
    success: float = 0.0
    value: float = 0.0
    uncertainty: float = 0.0
    held: float = 0.0
    keypoints: np.ndarray = field(default_factory=lambda: np.zeros((0, 3), np.float32))

    def past(self, strides: Sequence[int], look: int) -> tuple[Numbers, np.ndarray] | None:
        """The longest model step that the episode is old enough for: what was seen before it, and what was done."""
        ago = [n // look for n in strides if n % look == 0 and n // look < len(self.seen)]
        return (self.seen[-ago[-1] - 1], np.concatenate(self.done[-ago[-1] :])) if ago else None


@dataclass(frozen=True)
class DreamState:
    """Everything that one robot's next step depends on. shown: the arrays of the observation that is shown now."""

    dream: Dream
    shown: Mapping[str, np.ndarray]


class ImaginedEnv(VectorEnv):
    """See the top of this file.

    The contract is that of `envs.adapter`: an observation holds the cameras' pictures, `state`, and the poses that the
    model is told; `info` says instruction, success, progress (the value: the discounted nearness of success), subtask,
    scene (what is believed of it), and beside these `success_probability`, `value` and `uncertainty` (metres, all steps
    so far together). The reward is 1 where success comes, and ends the episode; `max_steps` truncates it.
    """

    metadata = {"render_modes": ["rgb_array"], "autoreset_mode": AutoresetMode.NEXT_STEP}
    criterion = "success as the model reads it in what it imagines"
    source = "imagined"

    def __init__(
        self, num_envs: int = 1, checkpoint: str | PathLike | Loaded = "checkpoints/nextstate-s",
        starts: Any = (), look: int | None = None, max_steps: int | None = None, threshold: float = 0.5,
        device: str = "auto", autoreset_mode: AutoresetMode | str = AutoresetMode.NEXT_STEP,
        render_mode: str | None = "rgb_array", scene_in: SceneIn | None = None,
    ) -> None:  # fmt: skip
        """checkpoint: folder, or what `world_model.checkpoint.load` gave. starts: as `as_starts` takes them. look:
        control steps between looks (None: the longest model step). max_steps: control steps of an episode (None: the
        limit that the environment of the starts is registered with, or 400). threshold: of the probability that counts
        as success. scene_in: the task's own (`envs.sim.tabletop`), so that its expert can act here; without it the
        scene says neither how far the jaws are apart nor what is to be done next.

        CheckpointError, EpisodeError or ValueError where one of them is wrong.
        """
        self.loaded = checkpoint if isinstance(checkpoint, Loaded) else load(checkpoint, choose_device(device))
        self.model, self.starts = self.loaded.model, as_starts(starts)
        self.look = look or self.model.strides[-1]
        self.model.layout.require_strides([self.look])
        if num_envs < 1 or not 0 < threshold < 1:
            raise ValueError(f"num_envs must be at least 1 and threshold in (0, 1), got {num_envs} and {threshold}")
        self.num_envs, self.threshold, self.render_mode, self.scene_in = num_envs, threshold, render_mode, scene_in
        self.autoreset_mode = AutoresetMode(autoreset_mode)
        self.metadata = {**self.metadata, "autoreset_mode": self.autoreset_mode}
        self.robot_spec = spec = self.model.spec
        first = self._start(0)  # wrong starts are found here
        self.env_id, self.split, self.instruction = first.env_id or "imagined", first.split, first.instruction
        self.max_steps = max_steps or _registered_limit(first.env_id) or DEFAULT_MAX_STEPS
        images = {c.name: gym.spaces.Box(0, 255, (c.height, c.width, 3), np.uint8) for c in spec.cameras}
        poses = {pose_key(c.name): gym.spaces.Box(-np.inf, np.inf, (len(POSE),)) for c in spec.cameras if c.posed}
        state = gym.spaces.Box(spec.state_low, spec.state_high, (len(spec.state),), np.float32)
        self.single_observation_space = gym.spaces.Dict({**images, **poses, "state": state})
        self.single_action_space = gym.spaces.Box(spec.action_low, spec.action_high)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self._shown = {
            name: np.zeros(space.shape, space.dtype) for name, space in self.observation_space.spaces.items()
        }
        self._dreams: list[Dream | None] = [None] * num_envs
        self._over = np.zeros(num_envs, bool)
        self._generators = [np.random.default_rng() for _ in range(num_envs)]

    # gymnasium's interface

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Begin new episodes: of all robots, or of those in `options["reset_mask"]`, (num_envs,) bool.

        seed: one for the first robot, the next for the second and so on, or one each; a robot without one goes on
        drawing its own.
        """
        seeds = [seed + i for i in range(self.num_envs)] if isinstance(seed, int) else seed or [None] * self.num_envs
        if len(seeds) != self.num_envs:
            raise ValueError(f"{self.num_envs} robots need as many seeds, got {len(seeds)}")
        mask = (options or {}).get("reset_mask", np.ones(self.num_envs, bool))
        if np.shape(mask) != (self.num_envs,) or np.asarray(mask).dtype.kind != "b" or not np.any(mask):
            raise ValueError(f"`reset_mask` must be ({self.num_envs},) bool with at least one True, got {mask}")
        infos: dict[str, Any] = {}
        self._begin({int(i): seeds[i] for i in np.flatnonzero(mask)})
        for i in np.flatnonzero(mask):
            infos = self._add_info(infos, self._info(i), int(i))
        return self._observations(), infos

    def step(
        self, actions: np.ndarray
    ) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """One control step of every robot. actions: (num_envs, A); ValueError for another shape or NaN."""
        actions = check_action(actions, self.robot_spec)
        if actions.shape != self.action_space.shape:
            raise ValueError(f"actions must be of shape {self.action_space.shape}, got {actions.shape}")
        if any(dream is None for dream in self._dreams):
            raise ValueError("the environment must be reset before its first step")
        again = self._over.copy()
        if again.any() and self.autoreset_mode is AutoresetMode.DISABLED:
            raise ValueError(f"robots {np.flatnonzero(again).tolist()} are done: reset them with `reset_mask`")
        for i in np.flatnonzero(~again):
            dream = self._dreams[i]
            self._dreams[i] = replace(dream, pending=(*dream.pending, actions[i]), steps=dream.steps + 1)
        due = [int(i) for i in np.flatnonzero(~again) if len(self._dreams[i].pending) == self.look]
        if due:
            self._imagine(due)
        if again.any():  # NEXT_STEP: their action is ignored
            self._begin({int(i): None for i in np.flatnonzero(again)})
        terminated = np.array([dream.success > self.threshold for dream in self._dreams]) & ~again
        truncated = np.array([dream.steps >= self.max_steps for dream in self._dreams]) & ~again & ~terminated
        self._over, infos = terminated | truncated, {}
        ended = np.flatnonzero(self._over) if self.autoreset_mode is AutoresetMode.SAME_STEP else []
        for i in ended:
            last = {name: array[i].copy() for name, array in self._shown.items()}
            infos = self._add_info(infos, {"final_obs": last, "final_info": self._info(i)}, int(i))
        if len(ended):
            self._begin({int(i): None for i in ended})
        for i in range(self.num_envs):
            infos = self._add_info(infos, self._info(i), i)
        return self._observations(), terminated.astype(np.float64), terminated, truncated, infos

    def render(self) -> tuple[np.ndarray, ...]:
        """What the first camera shows of each robot, (h, w, 3) u8."""
        return tuple(self._shown[self.robot_spec.cameras[0].name].copy())

    def call(self, name: str, *args: Any, **kwargs: Any) -> tuple[Any, ...]:
        """An attribute, the same of every robot, or what a method of it gives."""
        value = getattr(self, name)
        return (value(*args, **kwargs) if callable(value) else value,) * self.num_envs

    def get_attr(self, name: str) -> tuple[Any, ...]:
        """An attribute, the same of every robot."""
        return self.call(name)

    def sim_state(self, whole: bool = True) -> np.ndarray:
        """(0,): there is no simulator."""
        return np.zeros(0)

    # exact state

    def save_state(self, robot: int = 0) -> DreamState:
        """One robot's whole state, from which every future is the same. ValueError before the first reset."""
        if self._dreams[robot] is None:
            raise ValueError("the environment must be reset before its state can be saved")
        return DreamState(self._dreams[robot], {name: array[robot].copy() for name, array in self._shown.items()})

    def load_state(self, state: DreamState, robot: int = 0) -> None:
        """Let a robot go on from a saved state, also from one with which its episode had ended."""
        self._dreams[robot], self._over[robot] = state.dream, False
        for name, array in state.shown.items():
            self._shown[name][robot] = array

    # what happens

    def _start(self, seed: int) -> Start:
        start, spec = self.starts(seed), self.robot_spec
        try:
            start.observation.check(spec)
        except ValueError as error:
            raise ValueError(f"a start is not of the robot that the checkpoint was trained on: {error}") from error
        if outside := spec.outside(start.observation.state):
            raise ValueError(f"a start leaves the range that the checkpoint knows, in {', '.join(outside)}")
        return start

    @torch.no_grad()
    def _begin(self, seeds: Mapping[int, int | None]) -> None:
        """New episodes of some robots, and what the model believes of their starts."""
        model, starts = self.model, []
        for i, seed in seeds.items():
            if seed is not None:
                self._generators[i] = np.random.default_rng(seed)
            starts.append(self._start(int(self._generators[i].integers(2**31)) if seed is None else seed))
        numbers = model.encode_observations([start.observation for start in starts])
        for i, start, *now in zip(seeds, starts, *numbers, strict=True):
            ids = model.layout.instruction_ids(self.loaded.text.encode(start.instruction)).to(model.device)
            self._dreams[i] = Dream(start.instruction, start.env_id, ids, (tuple(now),))
            for name, picture in start.observation.images.items():
                self._shown[name][i] = picture
            for camera in self.robot_spec.cameras:
                if camera.posed:
                    unknown = np.full(len(POSE), np.nan, np.float32)
                    self._shown[pose_key(camera.name)][i] = start.observation.poses.get(camera.name, unknown)
            self._shown["state"][i] = start.observation.state
            self._over[i] = False
        self._believe(list(seeds), model.read(self._cache(list(seeds))).belief)

    @torch.no_grad()
    def _imagine(self, robots: list[int]) -> None:
        """One model step of these robots."""
        model = self.model
        commands = np.stack([np.stack(self._dreams[i].pending) for i in robots])  # (R, look, A)
        rest = np.broadcast_to(commands[:, -1:], (len(robots), model.actions.chunk - self.look, commands.shape[2]))
        chunks = torch.from_numpy(np.concatenate([commands, rest], axis=1))[:, None, None]  # (R, 1, 1, M, A)
        future = model.imagine(self._cache(robots), chunks, strides=self.look)[:, 0]  # fields (R, 1, ...)
        frames = model.decode_frames(future)
        states, keep = model.layout.to_bins(future.state[:, 0]), model.actions.chunk // self.look
        for row, i in enumerate(robots):
            dream = self._dreams[i]
            now = (future.image_ids[row, 0], states[row], dream.seen[-1][2])  # a camera keeps its pose
            self._dreams[i] = replace(
                dream, seen=(*dream.seen, now)[-keep - 1 :], done=(*dream.done, commands[row])[-keep:], pending=(),
                uncertainty=float(np.hypot(dream.uncertainty, future.uncertainty[row, 0].item())),
            )  # fmt: skip
            for name, pictures in frames.items():
                self._shown[name][i] = pictures[row, 0].cpu().numpy()
            self._shown["state"][i] = future.state[row, 0].cpu().numpy()
        self._believe(robots, future, 0)

    def _believe(self, robots: Sequence[int], told: Belief | Any, step: int | None = None) -> None:
        """Keep what is believed of these robots' situations."""
        for row, i in enumerate(robots):
            success, value, held, keypoints = (
                getattr(told, name)[row if step is None else (row, step)].cpu().numpy()
                for name in ("success", "value", "held", "keypoints")
            )
            self._dreams[i] = replace(
                self._dreams[i], success=float(success), value=float(value), held=float(held), keypoints=keypoints
            )

    def _cache(self, robots: Sequence[int]) -> Cache:
        """What the model knows of these robots' situations: now, and the step before where there is one."""
        model, dreams = self.model, [self._dreams[i] for i in robots]
        pasts = [dream.past(model.strides, self.look) for dream in dreams]
        now = _together([dream.seen[-1] for dream in dreams])
        before = _together([past[0] if past else dream.seen[-1] for past, dream in zip(pasts, dreams, strict=True)])
        executed = [past and past[1] for past in pasts]
        return model.remembering(torch.stack([dream.ids for dream in dreams]), now, before, executed)

    # what is said of it

    def _observations(self) -> dict[str, np.ndarray]:
        return {name: array.copy() for name, array in self._shown.items()}

    def _info(self, i: int) -> dict[str, Any]:
        dream = self._dreams[i]
        success = dream.success > self.threshold
        info = {
            "instruction": dream.instruction, "success": success, "subtask": dream.instruction,
            "progress": 1.0 if success else float(np.clip(dream.value, 0, 1)), "value": dream.value,
            "success_probability": dream.success, "uncertainty": dream.uncertainty,
        }  # fmt: skip
        return {**info, "scene": self._scene(i)} if self.robot_spec.keypoints else info

    def _scene(self, i: int) -> Scene:
        """What is believed of the scene: what is held is the keypoint next to the gripper."""
        spec, dream = self.robot_spec, self._dreams[i]
        if self.scene_in:
            success = dream.success > self.threshold
            return self.scene_in(dream.keypoints, self._shown["state"][i].copy(), dream.held > 0.5, success)
        gripper = self._shown["state"][i][list(spec.positions[0])] if spec.positions else np.full(3, np.nan, np.float32)
        away = np.linalg.norm(dream.keypoints - gripper, axis=1)
        near = int(np.nanargmin(away)) if np.isfinite(away).any() else len(away)
        held = near if dream.held > 0.5 else HELD_NOTHING
        return Scene(dream.keypoints, held, 0, float("nan"), gripper)


def _together(numbers: Sequence[Numbers]) -> Numbers:
    return tuple(map(torch.stack, zip(*numbers, strict=True)))


def _registered_limit(env_id: str) -> int | None:
    """Of the environment with this id, where it is registered here."""
    found = gym.registry.get(env_id)
    return found.max_episode_steps if found else None
