"""Robots that are nobody's, and made-up episodes of them: what is written for one robot only fails on these."""

import math

import numpy as np
import torch

from envs.types import HELD_UNKNOWN, ActionSpec, CameraSpec, Episode, Spec, StateSpec

# One camera that is no square, four actions in their own units, nothing known of its state but names; no gripper, no
# keypoints, no instruction.
ARM = Spec(
    cameras=(CameraSpec("side", 32, 48),),
    state=tuple(StateSpec(f"joint{i}", -math.inf, math.inf, "rad") for i in range(3)) + (StateSpec("load", 0.0),),
    action=tuple(ActionSpec(f"speed{i}", -0.2 * (i + 1), 0.4) for i in range(4)),
    control_hz=10,
)
# Two hands, each with a position and a gripper between its other actions; two keypoints; two cameras.
HANDS = Spec(
    cameras=(CameraSpec("left", 16, 16), CameraSpec("right", 24, 16)),
    state=tuple(StateSpec(f"{hand}.{axis}", -0.5, 0.5, "m") for hand in ("a", "b") for axis in "xyz"),
    action=(
        ActionSpec("a.dx"), ActionSpec("a.jaw", gripper=True), ActionSpec("b.dx", -2.0, 2.0),
        ActionSpec("b.jaw", 0.0, 1.0, gripper=True),
    ),
    control_hz=30, keypoints=("knob", "cup"), workspace=((-0.5, -0.5, 0.0), (0.5, 0.5, 1.0)),
)  # fmt: skip
# Ranges unlike each other, and a hand at each end.
UNEVEN = Spec(
    (CameraSpec("camera", 8, 8),), (),
    (ActionSpec("left", 0.0, 0.08, True), ActionSpec("x", -5.0, 5.0), ActionSpec("y", 2.0, 4.0),
     ActionSpec("right", -1.0, 0.0, True)),
    control_hz=10,
)  # fmt: skip


def aim(spec: Spec, steps: int) -> torch.Tensor:
    """(steps, A): towards the upper end of every dimension."""
    low, high = torch.from_numpy(spec.action_low), torch.from_numpy(spec.action_high)
    return (low + 0.9 * (high - low)).expand(steps, -1)


def made_up(spec: Spec, seed: int = 0, steps: int = 40, expert: bool = False, instruction: str = "") -> Episode:
    """Smooth motion, images in which a bright square follows the first action. Even seeds succeed."""
    rng = np.random.default_rng(seed)
    dims, middle = len(spec.action), (spec.action_low + spec.action_high) / 2
    waves = np.sin(np.cumsum(rng.normal(0.3, 0.1, (steps, dims)), axis=0))
    action = (middle + waves * (spec.action_high - spec.action_low) / 2 * 0.9).astype(np.float32)
    for i in spec.grippers:
        action[:, i] = np.where(np.arange(steps) < steps // 2, spec.action_low[i], spec.action_high[i])
    path = np.concatenate([np.zeros((1, dims)), np.cumsum(waves, axis=0)])  # (T + 1, A)
    state = (0.02 * path[:, np.arange(len(spec.state)) % dims]).astype(np.float32)
    state = np.clip(state, spec.state_low, spec.state_high)
    images = {}
    for camera in spec.cameras:
        view = np.full((steps + 1, camera.height, camera.width, 3), 60, np.uint8)
        for t, x in enumerate(path[:, 0]):
            column = int(np.clip(camera.width / 2 + 2 * x, 0, camera.width - 6))
            view[t, 4:10, column : column + 6] = (220, 60, 60)
        images[camera.name] = view
    success = np.zeros(steps + 1, bool)
    success[-1] = seed % 2 == 0
    keypoints = np.repeat(rng.uniform(0, 0.3, (1, len(spec.keypoints), 3)), steps + 1, axis=0).astype(np.float32)
    return Episode(
        images=images, state=state, action=action,
        expert=action.copy() if expert else np.full_like(action, np.nan), reward=success[1:].astype(np.float32),
        success=success, progress=np.linspace(0, 1, steps + 1, dtype=np.float32), keypoints=keypoints,
        held=np.full(steps + 1, HELD_UNKNOWN, np.int8), subtask=np.zeros(steps, np.int16), subtask_names=("",),
        instruction=instruction, env_id="made-up", seed=seed, spec=spec,
    )  # fmt: skip
