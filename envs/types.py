"""The data types every room shares. Frozen values, numpy only, no simulator.

Shape legend of the whole project
    B  batch                        M  control steps a chunk
    N  candidate futures            K  vision ids a frame
    T  control steps of an episode  A  action dimensions (7: OSC_POSE dx dy dz, drx dry drz, gripper)
    S  model steps (one a chunk)    P  robot-state dimensions (7: position 3, rotation vector 3, opening 1)
    H  horizon in model steps       L  sequence length
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace

import numpy as np

MAIN_SIZE = 64  # pixels, height and width of the main camera
WRIST_SIZE = 32  # pixels, height and width of the wrist camera
STATE_DIM = 7
ACTION_DIM = 7
NUM_KEYPOINTS = 4  # cloth corners; a task with fewer leaves the rest NaN
CONTROL_HZ = 20
TABLE_HEIGHT = 0.8  # metres


@dataclass(frozen=True, eq=False)
class Scene:
    """What only the simulator knows. Experts and labels read it; a learned policy never does.

    keypoints: (4, 3) f32, metres in the world frame. Fold: the corners near-left, near-right, far-left,
        far-right. Lift: the cube's centre first. Unused rows are NaN.
    held: index of the keypoint that the gripper holds, -1 for nothing, 4 for a place that is no keypoint.
    stage: index of the subtask that is to be done now.
    opening: gap between the fingers, metres.
    gripper: (3,) f32, grip site in the world frame, metres.
    """

    keypoints: np.ndarray
    held: int
    stage: int
    opening: float
    gripper: np.ndarray

    def __eq__(self, other: object) -> bool:
        """Equal in every bit; an unused keypoint (NaN) equals an unused one. gymnasium's checker asks for it."""
        if not isinstance(other, Scene):
            return NotImplemented
        return all(
            np.array_equal(np.asarray(a, float), np.asarray(b, float), equal_nan=True)
            for a, b in ((getattr(self, f.name), getattr(other, f.name)) for f in fields(self))
        )


@dataclass(frozen=True)
class Obs:
    """What the robot sees. Leading batch dimensions are free, and the same for every field.

    main: (..., 64, 64, 3) u8; wrist: (..., 32, 32, 3) u8; state: (..., P) f32: gripper position in m,
    rotation vector relative to pointing down in rad, opening in m.
    scene: the simulator's truth, `None` outside simulation.
    """

    main: np.ndarray
    wrist: np.ndarray
    state: np.ndarray
    scene: Scene | None = None

    def check(self) -> Obs:
        """Raise ValueError naming the field whose shape, dtype or values are wrong; return self."""
        lead = self.state.shape[:-1]
        expect = {"main": (*lead, MAIN_SIZE, MAIN_SIZE, 3), "wrist": (*lead, WRIST_SIZE, WRIST_SIZE, 3)}
        for name, shape in expect.items():
            value = getattr(self, name)
            if value.shape != shape or value.dtype != np.uint8:
                raise ValueError(f"observation `{name}` must be uint8 {shape}, got {value.dtype} {value.shape}")
        if self.state.shape[-1] != STATE_DIM:
            raise ValueError(f"observation `state` must end in {STATE_DIM} dimensions, got {self.state.shape}")
        check_finite("observation `state`", self.state)
        return self


def check_finite(name: str, value: np.ndarray) -> np.ndarray:
    """Return value; raise ValueError with the first bad index if it holds NaN or infinity."""
    bad = ~np.isfinite(value)
    if bad.any():
        where = tuple(int(i) for i in np.argwhere(bad)[0])
        raise ValueError(f"{name} is not finite at index {where}: {value[where]}. Check the sensor or the policy.")
    return value


def check_action(action: np.ndarray) -> np.ndarray:
    """Return a (..., A) action clipped to [-1, 1]; raise ValueError for a wrong shape or NaN."""
    action = np.asarray(action, dtype=np.float32)
    if action.shape[-1:] != (ACTION_DIM,):
        raise ValueError(f"an action must end in {ACTION_DIM} dimensions, got {action.shape}")
    return np.clip(check_finite("action", action), -1.0, 1.0)


@dataclass(frozen=True)
class Episode:
    """One recorded attempt: T control steps, T + 1 observations.

    `action` is what was executed, `expert` what the expert would have done in the same state (NaN rows
    where there was none to ask). `subtask` holds for each step an index into `subtask_names`. The first `detour`
    control steps did not serve the task (play, given actions): what followed them says nothing of how good it was to
    be where they were taken.
    """

    main: np.ndarray  # (T + 1, 64, 64, 3) u8
    wrist: np.ndarray  # (T + 1, 32, 32, 3) u8
    state: np.ndarray  # (T + 1, P) f32
    action: np.ndarray  # (T, A) f32 in [-1, 1]
    expert: np.ndarray  # (T, A) f32 in [-1, 1] or NaN
    reward: np.ndarray  # (T,) f32
    success: np.ndarray  # (T + 1,) bool
    progress: np.ndarray  # (T + 1,) f32 in [0, 1]
    keypoints: np.ndarray  # (T + 1, 4, 3) f32, NaN where unused
    held: np.ndarray  # (T + 1,) i8, as in `Scene`
    subtask: np.ndarray  # (T,) i16
    subtask_names: tuple[str, ...]
    instruction: str
    env_id: str
    seed: int
    split: str = "train"
    source: str = "sim"  # sim | imagined | robot
    control_hz: int = CONTROL_HZ
    detour: int = 0
    versions: dict[str, str] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.action)

    def __post_init__(self) -> None:
        steps = len(self.action)
        shapes = {
            "main": (steps + 1, MAIN_SIZE, MAIN_SIZE, 3), "wrist": (steps + 1, WRIST_SIZE, WRIST_SIZE, 3),
            "state": (steps + 1, STATE_DIM), "action": (steps, ACTION_DIM), "expert": (steps, ACTION_DIM),
            "reward": (steps,), "success": (steps + 1,), "progress": (steps + 1,),
            "keypoints": (steps + 1, NUM_KEYPOINTS, 3), "held": (steps + 1,), "subtask": (steps,),
        }  # fmt: skip
        for name, shape in shapes.items():
            if getattr(self, name).shape != shape:
                raise ValueError(f"episode field `{name}` must have shape {shape}, got {getattr(self, name).shape}")
        for name in ("state", "action", "reward", "progress"):
            check_finite(f"episode field `{name}`", getattr(self, name))
        for name in ("action", "expert"):
            if np.nanmax(np.abs(getattr(self, name)), initial=0.0) > 1.0 + 1e-6:
                raise ValueError(f"episode field `{name}` leaves [-1, 1]")
        if steps and not 0 <= self.subtask.min() <= self.subtask.max() < len(self.subtask_names):
            raise ValueError("episode field `subtask` points outside `subtask_names`")

    def obs(self, step: int | slice) -> Obs:
        """The observation before control step `step` (a slice gives a leading time dimension)."""
        return Obs(self.main[step], self.wrist[step], self.state[step])

    @classmethod
    def array_names(cls) -> tuple[str, ...]:
        """The fields that are arrays, in the order they are kept on disk."""
        return tuple(f.name for f in fields(cls) if f.type == "np.ndarray")

    def with_versions(self, **versions: str) -> Episode:
        """A copy that also names these versions."""
        return replace(self, versions={**self.versions, **versions})
