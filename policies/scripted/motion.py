"""How experts of the tabletop move: OSC_POSE deltas and jaws."""

from __future__ import annotations

import numpy as np

ACTION_DIM = 7  # dx dy dz, drx dry drz, jaws
METRES_PER_ACTION = 0.05  # OSC_POSE: an action of 1 puts the target 5 cm ahead
RADIANS_PER_ACTION = 0.5  # and turns it by so much
TURN = slice(3, 6)  # of an action
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


def righted(action: np.ndarray, turned: np.ndarray, gain: float = 0.5, still: float = 0.03) -> np.ndarray:
    """The action (A,), and with it a hand that is `turned`, (3,) as a scene tells it, goes back to pointing down.

    still: radians, below which it is left as it is, for it trembles by a degree in any motion. The command grows from
    nothing there: a learner then has no threshold to hover about.
    """
    angle = np.linalg.norm(turned)
    righting = -gain * turned / RADIANS_PER_ACTION * max(1.0 - still / max(angle, 1e-9), 0.0)
    return np.concatenate([action[: TURN.start], righting.clip(-1, 1), action[TURN.stop :]]).astype(np.float32)
