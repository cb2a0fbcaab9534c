"""The data types that every package shares. Frozen values, numpy only, no simulator.

Shape legend of the whole project
    B  batch, R robots              M  control steps a chunk
    N  candidate futures            K  vision ids of all cameras
    T  control steps of an episode  A  action dimensions
    S  model steps (one a chunk)    P  robot-state dimensions
    H  horizon in model steps       L  sequence length
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

import numpy as np

HELD_NOTHING, HELD_UNKNOWN = -1, -2

# A camera's pose relative to what it is mounted on, the world or a hand: position in metres, the rotation from its axes
# as a unit quaternion with w >= 0 (it looks along its -z and its y points up, as in MuJoCo and OpenGL), and its
# vertical field of view in radians.
POSE = ("x", "y", "z", "qw", "qx", "qy", "qz", "fovy")


def pose_key(camera: str) -> str:
    """The name of a camera's pose in an environment's observation."""
    return f"{camera}.pose"


@dataclass(frozen=True)
class CameraSpec:
    """One camera: pixels, multiples of the frame tokenizer's patch. posed: observations may tell its pose, `POSE`."""

    name: str
    height: int
    width: int
    posed: bool = field(default=False, compare=False)  # the same camera with or without


@dataclass(frozen=True)
class StateSpec:
    """One dimension of the robot's state. low, high: its range, infinite where nobody knows it before training.

    Three dimensions in metres whose names end in `.x`, `.y` and `.z` after the same prefix are a position.
    """

    name: str
    low: float = -math.inf
    high: float = math.inf
    unit: str = ""


@dataclass(frozen=True)
class ActionSpec:
    """One dimension of an action, in the robot's own units. A gripper is commanded to one of its ends, low to open."""

    name: str
    low: float = -1.0
    high: float = 1.0
    gripper: bool = False


@dataclass(frozen=True)
class Spec:
    """What a robot shows and takes: whatever the rest of the project knows of a robot, it knows from here.

    control_hz: control steps a second. keypoints: names of the places in space that the simulator tells, maybe none.
    workspace: the corners (3,) and (3,) in metres of the box in which keypoints lie.
    """

    cameras: tuple[CameraSpec, ...]
    state: tuple[StateSpec, ...]
    action: tuple[ActionSpec, ...]
    control_hz: float
    keypoints: tuple[str, ...] = ()
    workspace: tuple[tuple[float, float, float], tuple[float, float, float]] | None = None

    def __post_init__(self) -> None:
        for kind in ("cameras", "state", "action"):
            names = [part.name for part in getattr(self, kind)]
            if len(set(names)) != len(names):
                raise ValueError(f"a spec's `{kind}` must have different names, got {', '.join(names)}")
        if not self.cameras or not self.action:
            raise ValueError("a spec needs at least one camera and one action dimension")
        if not (math.isfinite(self.control_hz) and self.control_hz > 0):
            raise ValueError(f"a spec's `control_hz` must be positive, got {self.control_hz}")
        for part in (*self.state, *self.action):
            if not part.low < part.high:
                raise ValueError(f"the range of `{part.name}` must not be empty, got {part.low} to {part.high}")
        if self.keypoints and self.workspace is None:
            raise ValueError("a spec with keypoints needs the `workspace` in which they lie")

    # Ranges as arrays, and what lies where.

    @property
    def state_low(self) -> np.ndarray:
        """(P,) f32."""
        return np.array([part.low for part in self.state], np.float32)

    @property
    def state_high(self) -> np.ndarray:
        """(P,) f32."""
        return np.array([part.high for part in self.state], np.float32)

    @property
    def action_low(self) -> np.ndarray:
        """(A,) f32."""
        return np.array([part.low for part in self.action], np.float32)

    @property
    def action_high(self) -> np.ndarray:
        """(A,) f32."""
        return np.array([part.high for part in self.action], np.float32)

    @property
    def grippers(self) -> tuple[int, ...]:
        """Indices of the action dimensions that are grippers."""
        return tuple(i for i, part in enumerate(self.action) if part.gripper)

    @property
    def positions(self) -> tuple[tuple[int, int, int], ...]:
        """Indices of the state dimensions that are positions in metres, three each: of one hand, of two, or none."""
        where = {part.name: i for i, part in enumerate(self.state) if part.unit == "m"}
        prefixes = [name.removesuffix(".x") for name in where if name.endswith(".x")]
        found = [tuple(where.get(f"{prefix}.{axis}", -1) for axis in "xyz") for prefix in prefixes]
        return tuple(triple for triple in found if min(triple) >= 0)

    @property
    def rest(self) -> np.ndarray:
        """(A,) f32, the action that stands for doing nothing: 0 where the range holds it; grippers open."""
        none = np.clip(0.0, self.action_low, self.action_high).astype(np.float32)
        none[list(self.grippers)] = self.action_low[list(self.grippers)]
        return none

    def outside(self, state: np.ndarray) -> dict[str, int]:
        """How many values of state (..., P) leave the range, by the dimension's name; only what leaves it."""
        flat = state.reshape(-1, len(self.state))
        count = ((flat < self.state_low) | (flat > self.state_high)).sum(0)
        return {part.name: int(n) for part, n in zip(self.state, count, strict=True) if n}

    def with_ranges(self, low: np.ndarray, high: np.ndarray) -> Spec:
        """The same with state ranges (P,) where it says none."""
        state = tuple(
            replace(part, low=float(a) if math.isinf(part.low) else part.low,
                    high=float(b) if math.isinf(part.high) else part.high)
            for part, a, b in zip(self.state, low, high, strict=True)
        )  # fmt: skip
        return replace(self, state=state)

    # Two specs that meet.

    def differences(self, other: Spec) -> list[str]:
        """What differs, in words. Empty where both are the same robot: an unknown range differs from nothing, and a
        camera whose pose is told can do without."""
        found = []
        for kind in ("cameras", "state", "action"):
            ours, theirs = ({part.name: part for part in getattr(spec, kind)} for spec in (self, other))
            if list(ours) != list(theirs):
                found.append(f"{kind} {', '.join(ours) or 'none'} against {', '.join(theirs) or 'none'}")
                continue
            found += [f"{kind} `{name}`: {text}" for name in ours for text in _unlike(ours[name], theirs[name])]
        for name in ("control_hz", "keypoints", "workspace"):
            a, b = getattr(self, name), getattr(other, name)
            if a != b:
                found.append(f"{name} {a} against {b}")
        return found

    def require(self, other: Spec, ours: str, theirs: str) -> None:
        """ValueError where the two differ; `ours` and `theirs` name what they belong to."""
        found = self.differences(other)
        if found:
            raise ValueError(f"{ours} and {theirs} are of different robots: {'; '.join(found)}")

    # JSON, which has no infinity.

    def to_dict(self) -> dict[str, Any]:
        """As JSON takes it."""
        raw = asdict(self)
        for part in (*raw["state"], *raw["action"]):
            part |= {end: None if math.isinf(part[end]) else part[end] for end in ("low", "high")}
        return raw

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> Spec:
        """The inverse of `to_dict`. ValueError where it is no spec."""
        try:
            workspace = raw["workspace"]
            return cls(
                cameras=tuple(CameraSpec(**camera) for camera in raw["cameras"]),
                state=tuple(StateSpec(**_ranged(part)) for part in raw["state"]),
                action=tuple(ActionSpec(**_ranged(part)) for part in raw["action"]),
                control_hz=raw["control_hz"],
                keypoints=tuple(raw["keypoints"]),
                workspace=None if workspace is None else tuple(tuple(corner) for corner in workspace),
            )
        except (KeyError, TypeError) as error:
            raise ValueError(f"this is not the spec of a robot: {error!r}") from error


def _ranged(part: Mapping[str, Any]) -> dict[str, Any]:
    ends = (("low", -math.inf), ("high", math.inf))
    return {**part, **{end: unknown if part[end] is None else part[end] for end, unknown in ends}}


def _unlike(a: CameraSpec | StateSpec | ActionSpec, b: CameraSpec | StateSpec | ActionSpec) -> list[str]:
    found = []
    for f in fields(a):
        mine, other = getattr(a, f.name), getattr(b, f.name)
        unknown = f.name == "posed" or any(isinstance(value, float) and math.isinf(value) for value in (mine, other))
        if mine != other and not unknown:
            found.append(f"{f.name} {mine} against {other}")
    return found


@dataclass(frozen=True, eq=False)
class Scene:
    """What only the simulator knows. Experts and labels read it; a learned policy never does.

    keypoints: (n, 3) f32, metres in the world frame, those that the spec names. Unused rows are NaN.
    held: index of the keypoint that the gripper holds, -1 for nothing, n for a place that is no keypoint.
    stage: index of the subtask that is to be done now.
    opening: gap between the fingers, metres.
    gripper: (3,) f32, grip site in the world frame, metres.
    turned: (3,) f32, from pointing straight down to how the hand points, a rotation vector in the world frame, radians.
    """

    keypoints: np.ndarray
    held: int
    stage: int
    opening: float
    gripper: np.ndarray
    turned: np.ndarray = field(default_factory=lambda: np.zeros(3, np.float32))

    def __eq__(self, other: object) -> bool:
        """Equal in every bit; an unused keypoint (NaN) equals an unused one. gymnasium's checker asks for it."""
        if not isinstance(other, Scene):
            return NotImplemented
        return all(
            np.array_equal(np.asarray(a, float), np.asarray(b, float), equal_nan=True)
            for a, b in ((getattr(self, f.name), getattr(other, f.name)) for f in fields(self))
        )


@dataclass(frozen=True)
class Observation:
    """What the robot sees. Leading dimensions are free (time, robots), and the same for every field.

    images: camera name -> (..., h, w, 3) u8. state: (..., P) f32. poses: camera name -> (..., 8) f32, as `POSE`, of the
    cameras that tell it; NaN where nobody knows.
    """

    images: dict[str, np.ndarray]
    state: np.ndarray
    poses: dict[str, np.ndarray] = field(default_factory=dict)

    def check(self, spec: Spec) -> Observation:
        """Raise ValueError naming the field whose shape, dtype or values are wrong; return self."""
        lead = self.state.shape[:-1]
        if list(self.images) != [camera.name for camera in spec.cameras]:
            wanted = ", ".join(camera.name for camera in spec.cameras)
            raise ValueError(f"observation `images` must be of the cameras {wanted}, got {', '.join(self.images)}")
        for camera in spec.cameras:
            value, shape = self.images[camera.name], (*lead, camera.height, camera.width, 3)
            if value.shape != shape or value.dtype != np.uint8:
                raise ValueError(f"image `{camera.name}` must be uint8 {shape}, got {value.dtype} {value.shape}")
        if self.state.shape[-1] != len(spec.state) or self.state.dtype != np.float32:
            raise ValueError(
                f"observation `state` must be float32 with {len(spec.state)} dimensions, "
                f"got {self.state.dtype} {self.state.shape}"
            )
        check_finite("observation `state`", self.state)
        for name, pose in self.poses.items():
            check_pose(f"observation `poses` of {name}", pose, lead)
        return self

    def __getitem__(self, index: Any) -> Observation:
        """Some of the leading dimension."""
        parts = ({name: array[index] for name, array in named.items()} for named in (self.images, self.poses))
        images, poses = parts
        return Observation(images, self.state[index], poses)

    @classmethod
    def of(cls, raw: Mapping[str, np.ndarray], spec: Spec) -> Observation:
        """From an environment's, which holds `state`, a picture for each camera, and maybe its pose (`pose_key`)."""
        names = [camera.name for camera in spec.cameras]
        told = {camera.name: pose_key(camera.name) for camera in spec.cameras if camera.posed}
        poses = {name: np.asarray(raw[key], np.float32) for name, key in told.items() if key in raw}
        return cls({name: raw[name] for name in names}, np.asarray(raw["state"], np.float32), poses)

    @classmethod
    def stack(cls, observations: Sequence[Observation]) -> Observation:
        """A new leading dimension."""
        first = observations[0]
        images = {name: np.stack([obs.images[name] for obs in observations]) for name in first.images}
        poses = {name: np.stack([obs.poses[name] for obs in observations]) for name in first.poses}
        return cls(images, np.stack([obs.state for obs in observations]), poses)


class SimulationError(RuntimeError):
    """The simulation became unstable: what it shows from here on is no physics, and nothing of it may be recorded."""


def check_finite(name: str, value: np.ndarray) -> np.ndarray:
    """Return value; raise ValueError with the first bad index if it holds NaN or infinity."""
    bad = ~np.isfinite(value)
    if bad.any():
        where = tuple(int(i) for i in np.argwhere(bad)[0])
        raise ValueError(f"{name} is not finite at index {where}: {value[where]}. Check the sensor or the policy.")
    return value


def check_pose(name: str, pose: np.ndarray, lead: tuple[int, ...]) -> np.ndarray:
    """Return a pose (*lead, 8) f32, `POSE`; raise ValueError for a wrong shape or type, or one that is half known."""
    if pose.shape != (*lead, len(POSE)) or pose.dtype != np.float32:
        raise ValueError(f"{name} must be float32 {(*lead, len(POSE))}, got {pose.dtype} {pose.shape}")
    known = np.isfinite(pose)
    if (known.any(-1) != known.all(-1)).any():
        raise ValueError(f"{name} must be finite, or NaN as a whole where it is not known")
    length = np.linalg.norm(pose[..., 3:7], axis=-1)
    if (np.abs(length - 1) > 1e-3).any():  # NaN, which is not known, is not compared
        raise ValueError(f"{name} must hold a unit quaternion, got one of length {np.nanmax(length):.3f}")
    return pose


def check_action(action: np.ndarray, spec: Spec) -> np.ndarray:
    """Return an action (..., A) f32 clipped to its range; raise ValueError for a wrong shape or NaN."""
    action = np.asarray(action, dtype=np.float32)
    if action.shape[-1:] != (len(spec.action),):
        raise ValueError(f"an action must end in {len(spec.action)} dimensions, got {action.shape}")
    return np.clip(check_finite("action", action), spec.action_low, spec.action_high)


@dataclass(frozen=True)
class Episode:
    """One recorded attempt: T control steps, T + 1 observations.

    `action` is what was executed, `expert` what the expert would have done in the same state (NaN rows where there
    was none to ask). `subtask` holds for each step an index into `subtask_names`. The first `off_task_steps` control
    steps did not serve the task (play, given actions): what followed them says nothing of how good it was to be where
    they were taken.

    What a simulator can add, all of it optional: `poses` of the cameras, `views` of the same moments from places where
    the robot has no camera, and the whole state of the simulation, from which everything can be drawn again.
    """

    images: dict[str, np.ndarray]  # camera name -> (T + 1, h, w, 3) u8
    state: np.ndarray  # (T + 1, P) f32
    action: np.ndarray  # (T, A) f32 within the spec's range
    expert: np.ndarray  # (T, A) f32 within the spec's range, or NaN
    reward: np.ndarray  # (T,) f32
    success: np.ndarray  # (T + 1,) bool
    progress: np.ndarray  # (T + 1,) f32 in [0, 1]
    keypoints: np.ndarray  # (T + 1, n, 3) f32, NaN where unused
    held: np.ndarray  # (T + 1,) i8, as in `Scene`; HELD_UNKNOWN where the simulator does not say
    subtask: np.ndarray  # (T,) i16
    subtask_names: tuple[str, ...]
    instruction: str
    env_id: str
    seed: int
    spec: Spec
    poses: dict[str, np.ndarray] = field(default_factory=dict)  # camera or view name -> (T + 1, 8) f32, `POSE`
    views: dict[str, np.ndarray] = field(default_factory=dict)  # view name -> (T + 1, h, w, 3) u8
    sim_state: np.ndarray = field(default_factory=lambda: np.zeros((0, 0)))  # (T + 1, X) f64, or (0, 0)
    split: str = "train"
    source: str = "sim"  # sim | imagined | robot | human, who drove the simulator by hand
    off_task_steps: int = 0
    terminated: bool = False  # the environment ended it
    truncated: bool = False  # a step limit ended it
    versions: dict[str, str] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.action)

    def __post_init__(self) -> None:
        steps, spec = len(self.action), self.spec
        self.obs(slice(None)).check(spec)
        expected = {
            "state": ((steps + 1, len(spec.state)), np.float32), "action": ((steps, len(spec.action)), np.float32),
            "expert": ((steps, len(spec.action)), np.float32), "reward": ((steps,), np.float32),
            "success": ((steps + 1,), np.bool_), "progress": ((steps + 1,), np.float32),
            "keypoints": ((steps + 1, len(spec.keypoints), 3), np.float32), "held": ((steps + 1,), np.int8),
            "subtask": ((steps,), np.int16),
        }  # fmt: skip
        if self.sim_state.size:
            expected["sim_state"] = ((steps + 1, self.sim_state.shape[-1]), np.float64)
        for name, (shape, dtype) in expected.items():
            value = getattr(self, name)
            if value.shape != shape or value.dtype != dtype:
                raise ValueError(
                    f"episode field `{name}` must be {np.dtype(dtype).name} {shape}, got {value.dtype} {value.shape}"
                )
        for name in ("action", "reward", "progress"):
            check_finite(f"episode field `{name}`", getattr(self, name))
        for name in ("action", "expert"):
            value = getattr(self, name)
            slack = 1e-6 * np.maximum(1.0, np.abs(spec.action_high))
            outside = (value < spec.action_low - slack) | (value > spec.action_high + slack)
            if outside.any():
                dim = spec.action[int(np.argwhere(outside)[0, 1])]
                raise ValueError(f"episode field `{name}` leaves the range of `{dim.name}`, {dim.low} to {dim.high}")
        if steps and not 0 <= self.subtask.min() <= self.subtask.max() < len(self.subtask_names):
            raise ValueError("episode field `subtask` points outside `subtask_names`")
        for name, view in self.views.items():
            if view.ndim != 4 or view.shape[::3] != (steps + 1, 3) or view.dtype != np.uint8:
                raise ValueError(f"view `{name}` must be uint8 ({steps + 1}, h, w, 3), got {view.dtype} {view.shape}")
        unplaced, unknown = set(self.views) - set(self.poses), set(self.poses) - set(self.views) - set(self.images)
        if unplaced or unknown:
            raise ValueError(
                "episode field `poses` must hold every view and nothing that is neither view nor camera: "
                f"{', '.join(sorted(unplaced | unknown))}"
            )
        for name, pose in self.poses.items():
            check_pose(f"episode field `poses` of {name}", pose, (steps + 1,))
        for name, kind in (("seed", int), ("off_task_steps", int), ("terminated", bool), ("truncated", bool)):
            if type(getattr(self, name)) is not kind:
                raise ValueError(f"episode field `{name}` must be a plain {kind.__name__}, got {getattr(self, name)!r}")

    def obs(self, step: int | slice) -> Observation:
        """The observation before control step `step` (a slice gives a leading time dimension)."""
        poses = {name: pose[step] for name, pose in self.poses.items() if name in self.images}
        return Observation({name: image[step] for name, image in self.images.items()}, self.state[step], poses)

    @classmethod
    def array_names(cls) -> tuple[str, ...]:
        """The fields that are single arrays, in the order they are kept on disk."""
        return tuple(f.name for f in fields(cls) if f.type == "np.ndarray")

    def with_versions(self, **versions: str) -> Episode:
        """A copy that also names these versions."""
        return replace(self, versions={**self.versions, **versions})
