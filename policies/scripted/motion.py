"""How experts of the tabletop move: OSC_POSE deltas and jaws."""

from __future__ import annotations

import numpy as np

ACTION_DIM = 7  # dx dy dz, drx dry drz, jaws
METRES_PER_ACTION = 0.05  # OSC_POSE: an action of 1 puts the target 5 cm ahead
TABLE_HEIGHT = 0.8  # metres
OPEN, CLOSE = -1.0, 1.0


def move(here: np.ndarray, there: np.ndarray, grip: float, gain: float = 1.0, limit: float = 1.0) -> np.ndarray:
    """One action (A,) towards a position: proportional, limited in length so that the path is straight."""
    step = gain * (there - here) / METRES_PER_ACTION
    length = np.linalg.norm(step)
    if length > limit:
        step *= limit / length
    action = np.zeros(ACTION_DIM, dtype=np.float32)
    action[:3], action[-1] = step, grip
    return action
