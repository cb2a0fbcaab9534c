"""Any gymnasium environment behind this project's contract.

    observation  {camera: (h, w, 3) u8, ..., "state": (P,) f32}, and "camera.pose": (8,) f32 of cameras that tell it
    info         instruction, success, progress, subtask, and where they exist score (numbers to report) and scene
    attributes   robot_spec, env_id, instruction, criterion, split, source, max_steps, look (control steps between two
                 observations that differ), and maybe sim_state(whole) for episodes

Our own tasks say all of this themselves. What a foreign environment does not say is settled here, by documented
defaults that `AdapterConfig` overrides; nothing about the environment has to be edited.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import cv2
import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from envs.types import POSE, ActionSpec, CameraSpec, Spec, StateSpec, pose_key

DEFAULT_IMAGE_SIZE = 64  # pixels, of what `render` shows where the observation holds no picture
DEFAULT_CONTROL_HZ = 20.0
DEFAULT_MAX_STEPS = 1000
LARGE = 1e6  # a bound beyond this is a data type's, not a robot's
SUCCESS_KEYS = ("success", "is_success")

Part = tuple[str, slice]  # of an observation's entry


@dataclass(frozen=True)
class AdapterConfig:
    """What a foreign environment leaves open. None takes the default.

    instruction: what the robot is told (the environment's `instruction`, or else its id in words).
    criterion: what success means, for reports. success: name in `info` of what says so (`success` or `is_success`, or
        else that the environment terminates).
    stop: an episode ends when it succeeds. max_steps: control steps of an episode (the registered limit, or 1000).
    image_size: pixels a side that pictures are resized to (of `render` 64; others stay as they are).
    state: keys of the observation that make up the state, in this order, parts of one as `key[0:3]`, the difference of
        two as `goal-place[0:3]` (all that are no pictures).
    positions: parts of the state, `key[0:3]` each, that are positions in metres in the world frame (none). Errors are
        then told in centimetres, and training can move the scene.
    poses: camera -> which eight numbers of the observation, `key` or `key[0:8]`, are its pose, `envs.types.POSE`, NaN
        where it is not known (none). A key that is named here is no part of the state unless `state` names it too.
    grippers: indices of the action dimensions that are grippers, which open at the low end of their range (none).
    action_low, action_high: the range of every action dimension that has none of its own.
    control_hz: control steps a second (`metadata["render_fps"]`, or 20).
    """

    instruction: str | None = None
    criterion: str | None = None
    success: str | None = None
    stop: bool = True
    max_steps: int | None = None
    image_size: int | None = None
    state: tuple[str, ...] | None = None
    positions: tuple[str, ...] = ()
    poses: Mapping[str, str] = field(default_factory=dict)
    grippers: tuple[int, ...] = ()
    action_low: float | None = None
    action_high: float | None = None
    control_hz: float | None = None


@dataclass(frozen=True, eq=False)
class RawScene:
    """What a foreign environment says, for experts: its own observation and `info`, untouched."""

    observation: Any
    info: dict[str, Any]


class Adapter(gym.Wrapper):
    """See the top of this file. Raises ValueError for an environment that has no picture, no action range, and so on,
    each with the setting that mends it."""

    source, look = "sim", 1

    def __init__(
        self, env: gym.Env, split: str, config: AdapterConfig = AdapterConfig(), own_splits: bool = False,
        env_id: str | None = None,
    ) -> None:  # fmt: skip
        """own_splits: the environment was made with the split; another one gets other seeds for each. env_id: what it
        was asked for by, where that is not in its own `spec`."""
        super().__init__(env)
        self.config, self.split, self.own_splits = config, split, own_splits
        self.own = hasattr(env.unwrapped, "robot_spec")
        registered = env.spec.max_episode_steps if env.spec else None
        self.max_steps = config.max_steps or registered or DEFAULT_MAX_STEPS
        self.env_id = env_id or (env.spec.id if env.spec else type(env.unwrapped).__name__)
        name = re.sub(r"-v\d+$", "", self.env_id.rpartition("/")[2])
        self.instruction = config.instruction or getattr(env.unwrapped, "instruction", None) or in_words(name)
        self.criterion = config.criterion or getattr(env.unwrapped, "criterion", None) or self._default_criterion()
        if self.own:
            self.robot_spec = env.unwrapped.robot_spec
            return
        self._pictures, self._numbers = sort_out(env.observation_space)
        self._pose_parts = {camera: part_of(key, self._numbers, "env.poses") for camera, key in config.poses.items()}
        posed = {key for key, _ in self._pose_parts.values()}
        state = config.state or [key for key in self._numbers if key not in posed]
        self._state_parts = [state_part(key, self._numbers) for key in state]
        self.robot_spec = self._spec()
        spec = self.robot_spec
        images = {c.name: gym.spaces.Box(0, 255, (c.height, c.width, 3), np.uint8) for c in spec.cameras}
        poses = {pose_key(c.name): gym.spaces.Box(-np.inf, np.inf, (len(POSE),)) for c in spec.cameras if c.posed}
        state = gym.spaces.Box(spec.state_low, spec.state_high, (len(spec.state),), np.float32)
        self.observation_space = gym.spaces.Dict({**images, **poses, "state": state})
        self.action_space = gym.spaces.Box(spec.action_low, spec.action_high)

    # gymnasium's interface

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[dict, dict]:
        """The same seed and split give the same episode; the splits `train` and `seen` share none."""
        if self.own:
            raw, info = self.env.reset(seed=seed, options=options)
            return raw, self._said(info)
        if seed is not None and not self.own_splits:
            seed = seed_of(self.split, seed)
        raw, info = self.env.reset(seed=seed, options=options)
        return self._observation(raw), self._info(raw, info, terminated=False)

    def step(self, action: np.ndarray) -> tuple[dict, float, bool, bool, dict]:
        """One control step."""
        if self.own:
            raw, reward, terminated, truncated, info = self.env.step(action)
            return raw, reward, terminated, truncated, self._said(info)
        space = self.env.action_space
        action = np.asarray(action, space.dtype).reshape(space.shape)
        raw, reward, terminated, truncated, info = self.env.step(action)
        told = self._info(raw, info, terminated)
        ended = bool(terminated) or (self.config.stop and told["success"])
        return self._observation(raw), float(reward), ended, bool(truncated), told

    def sim_state(self, whole: bool = True) -> np.ndarray:
        """The simulator's state, (X,) f64, whole or what of it can be seen; (0,) where the environment has no
        `sim_state` to tell it."""
        tell = getattr(self.env.unwrapped, "sim_state", None)
        return np.zeros(0) if tell is None else np.asarray(tell(whole), np.float64)

    def picture(self, size: int) -> np.ndarray:
        """The scene for people, (size, size, 3) u8: what `render` shows."""
        if self.own:
            return self.env.unwrapped.render_main(size)
        shown = self._render() if self.env.render_mode == "rgb_array" else None
        if shown is None:
            raise ValueError("this environment renders no picture: make it with render_mode=rgb_array")
        return resized(np.asarray(shown), size, size)

    def _render(self) -> np.ndarray | None:
        """gymnasium's MuJoCo renderer draws into whichever context was made last, perhaps another environment's."""
        viewer = getattr(getattr(self.env.unwrapped, "mujoco_renderer", None), "viewer", None)
        if viewer is not None:
            viewer.make_context_current()
        return self.env.render()

    def close(self) -> None:
        """Close the environment. What gymnasium's MuJoCo renderer holds is freed in its own context: freed later, in
        another environment's, it would take that one's pictures with it."""
        renderer = getattr(self.env.unwrapped, "mujoco_renderer", None)
        if getattr(renderer, "viewer", None) is not None:
            renderer.viewer.make_context_current()
            renderer.viewer.con.free()
        super().close()
        if renderer is not None:
            renderer.viewer = None  # closing twice is harmless

    # what is said of it

    def _said(self, info: dict[str, Any]) -> dict[str, Any]:
        return {**info, "instruction": self.instruction}

    def _info(self, raw: Any, info: dict[str, Any], terminated: bool) -> dict[str, Any]:
        key = self.config.success or next((key for key in SUCCESS_KEYS if key in info), None)
        success = bool(np.all(info[key])) if key in info else bool(terminated and key is None)
        progress = float(np.clip(info.get("progress", success), 0, 1))
        told = {
            "instruction": self.instruction, "success": success, "progress": progress,
            "subtask": str(info.get("subtask", self.instruction)), "scene": info.get("scene", RawScene(raw, info)),
        }  # fmt: skip
        if isinstance(info.get("score"), Mapping):
            told["score"] = {name: float(value) for name, value in info["score"].items()}
        return told

    def _default_criterion(self) -> str:
        return f"info[{self.config.success!r}]" if self.config.success else "success as the environment's `info` says"

    def _spec(self) -> Spec:
        """From the spaces, and for a picture that is not in them from one reset."""
        config, cameras = self.config, []
        for name, space in self._pictures.items():
            height, width = (config.image_size,) * 2 if config.image_size else space.shape[:2]
            cameras.append(CameraSpec(name, height, width, posed=name in config.poses))
        if not cameras:
            if self.env.render_mode != "rgb_array":
                raise ValueError(
                    "the observation holds no picture, and the environment does not render one: "
                    "make it with render_mode=rgb_array"
                )
            sides = (config.image_size or DEFAULT_IMAGE_SIZE,) * 2
            cameras = [CameraSpec("render", *sides, posed="render" in config.poses)]
        self._check_poses([camera.name for camera in cameras])
        rate = config.control_hz or self.env.metadata.get("render_fps") or DEFAULT_CONTROL_HZ
        return Spec(tuple(cameras), tuple(self._state()), self._actions(), float(rate))

    def _check_poses(self, cameras: list[str]) -> None:
        unknown = [name for name in self.config.poses if name not in cameras]
        if unknown:
            raise ValueError(f"env.poses names {', '.join(unknown)}, but the cameras are {', '.join(cameras)}")
        for camera, part in self._pose_parts.items():
            count = len(_places(part, self._numbers))
            if count != len(POSE):
                raise ValueError(
                    f"env.poses.{camera} is {count} numbers: a pose is {len(POSE)}, {', '.join(POSE)} (key[0:8] takes "
                    "eight of more)"
                )

    def _state(self) -> list[StateSpec]:
        named = {}  # key and index of what is a position -> its name
        for text in self.config.positions:
            part = part_of(text, self._numbers)
            places = _places(part, self._numbers)
            if len(places) != 3:
                raise ValueError(f"env.positions holds `{text}`: a position is three numbers, x, y and z, as key[0:3]")
            named |= {(part[0], i): f"{text}.{axis}" for i, axis in zip(places, "xyz", strict=True)}
        state = []
        for text, part, less in self._state_parts:
            key, places = part[0], _places(part, self._numbers)
            if less is not None:
                state += [StateSpec(f"{text}.{i}") for i in range(len(places))]
                continue
            for i, ends in list(enumerate(_ranges_of(self._numbers[key])))[places.start : places.stop]:
                plain = f"{key}.{i}" if self._numbers[key].shape else key
                is_position = (key, i) in named
                state.append(StateSpec(named.get((key, i), plain), *ends, unit="m" if is_position else ""))
        missing = set(named.values()) - {part.name for part in state}
        if missing:
            raise ValueError(f"env.positions names what is not in the state: {', '.join(sorted(missing))}")
        return state

    def _actions(self) -> tuple[ActionSpec, ...]:
        config, space = self.config, self.env.action_space
        if not isinstance(space, gym.spaces.Box):
            raise ValueError(f"actions must be a Box of numbers, this environment takes {space}")
        actions = []
        for i, (low, high) in enumerate(zip(space.low.ravel(), space.high.ravel(), strict=True)):
            low = low if np.isfinite(low) else config.action_low
            high = high if np.isfinite(high) else config.action_high
            if low is None or high is None:
                raise ValueError(
                    f"action dimension {i} has no range: set env.action_low and env.action_high, for instance -1 and 1"
                )
            actions.append(ActionSpec(f"action.{i}", float(low), float(high), gripper=i in config.grippers))
        unknown = [i for i in config.grippers if not 0 <= i < len(actions)]
        if unknown:
            raise ValueError(f"env.grippers={list(config.grippers)}: there are {len(actions)} action dimensions")
        return tuple(actions)

    def _observation(self, raw: Any) -> dict[str, np.ndarray]:
        flat = flatten(raw)
        obs = {}
        for camera in self.robot_spec.cameras:
            picture = flat[camera.name] if self._pictures else self._render()
            if picture is None or np.ndim(picture) != 3:
                raise ValueError(f"camera `{camera.name}` gave no picture of shape (h, w, 3): {np.shape(picture)}")
            obs[camera.name] = resized(np.asarray(picture), camera.height, camera.width)
        for camera, (key, part) in self._pose_parts.items():
            obs[pose_key(camera)] = np.ravel(flat[key])[part].astype(np.float32)

        def take(where: Part) -> np.ndarray:
            return np.ravel(flat[where[0]])[where[1]].astype(np.float64)

        parts = [take(part) if less is None else take(part) - take(less) for _, part, less in self._state_parts]
        obs["state"] = np.concatenate(parts).astype(np.float32) if parts else np.zeros(0, np.float32)
        return obs


def vector(makers: Sequence[Callable[[], gym.Env]]) -> SyncVectorEnv:
    """Several adapted environments in one process, which the loop resets itself. Close it after use."""
    return SyncVectorEnv(makers, autoreset_mode=AutoresetMode.DISABLED)


def in_words(name: str) -> str:
    """`FetchPush` -> `fetch push`."""
    return "".join(f" {c.lower()}" if c.isupper() else c for c in name).replace("_", " ").replace("-", " ").strip()


def seed_of(split: str, seed: int) -> int:
    """The reset seed of an environment that knows no splits, so that no episode of one split is met in another."""
    entropy = [int.from_bytes(split.encode(), "big"), seed]
    return int(np.random.SeedSequence(entropy).generate_state(1)[0] & 0x7FFFFFFF)


def state_part(text: str, numbers: Mapping[str, gym.Space]) -> tuple[str, Part, Part | None]:
    """`key[0:3]` or `key-other[0:3]` -> the text, what is taken, and what is taken from it. ValueError where the
    observation has no such numbers, or not as many of both."""
    first, minus, second = (text, "", "") if text in numbers else text.partition("-")
    part, less = part_of(first, numbers), part_of(second, numbers) if minus else None
    if less is not None:
        counts = [len(_places(each, numbers)) for each in (part, less)]
        if counts[0] != counts[1]:
            raise ValueError(f"env.state holds `{text}`, a difference of {counts[0]} and {counts[1]} numbers")
    return text, part, less


def part_of(key: str, numbers: Mapping[str, gym.Space], setting: str = "env.state") -> Part:
    """`key` or `key[0:3]` -> the key and its part. ValueError where the observation has no such numbers."""
    name, bracket, inside = key.partition("[")
    first, _, last = inside.removesuffix("]").partition(":")
    if name in numbers and not bracket:
        return name, slice(None)
    if name in numbers and first.isdigit() and last.isdigit():
        if int(first) < int(last) <= np.prod(numbers[name].shape):
            return name, slice(int(first), int(last))
    raise ValueError(f"{setting} holds `{key}`, but the observation has {', '.join(numbers)}; parts are key[0:3]")


def _places(part: Part, numbers: Mapping[str, gym.Space]) -> range:
    """Indices of a part within its entry, laid flat."""
    return range(*part[1].indices(int(np.prod(numbers[part[0]].shape))))


def sort_out(space: gym.Space) -> tuple[dict[str, gym.spaces.Box], dict[str, gym.Space]]:
    """The pictures and the numbers of an observation space, by name; nested names are joined by dots."""
    pictures, numbers = {}, {}
    for name, part in _leaves(space, ""):
        if isinstance(part, gym.spaces.Box) and part.dtype == np.uint8 and len(part.shape) == 3 and part.shape[-1] == 3:
            pictures[name or "image"] = part
        elif isinstance(part, gym.spaces.Box | gym.spaces.Discrete | gym.spaces.MultiBinary):
            numbers[name or "state"] = part
    return pictures, numbers


def _leaves(space: gym.Space, name: str) -> list[tuple[str, gym.Space]]:
    if isinstance(space, gym.spaces.Dict):
        return [leaf for key, part in space.items() for leaf in _leaves(part, f"{name}.{key}" if name else key)]
    return [(name, space)]


def flatten(raw: Any, name: str = "") -> dict[str, Any]:
    """The same names of an observation."""
    if isinstance(raw, Mapping):
        return {k: v for key, part in raw.items() for k, v in flatten(part, f"{name}.{key}" if name else key).items()}
    return {name or ("image" if np.ndim(raw) == 3 else "state"): raw}


def _ranges_of(space: gym.Space) -> list[tuple[float, float]]:
    """(low, high) of each number; infinite where the space says nothing that helps."""
    if isinstance(space, gym.spaces.Box):
        ends = zip(space.low.ravel().tolist(), space.high.ravel().tolist(), strict=True)
        return [(a, b) if a < b and max(abs(a), abs(b)) < LARGE else (-math.inf, math.inf) for a, b in ends]
    if isinstance(space, gym.spaces.Discrete):
        return [(float(space.start), float(space.start + max(space.n - 1, 1)))]
    return [(0.0, 1.0)] * int(np.prod(space.shape))


def resized(picture: np.ndarray, height: int, width: int) -> np.ndarray:
    """(h, w, 3) u8 -> (height, width, 3) u8: cut to the wanted proportions, then averaged down."""
    h, w = picture.shape[:2]
    if (h, w) == (height, width):
        return np.ascontiguousarray(picture)
    scale = min(h / height, w / width)
    keep_h, keep_w = math.ceil(height * scale), math.ceil(width * scale)
    top, left = (h - keep_h) // 2, (w - keep_w) // 2
    cut = np.ascontiguousarray(picture[top : top + keep_h, left : left + keep_w])
    return cv2.resize(cut, (width, height), interpolation=cv2.INTER_AREA)
