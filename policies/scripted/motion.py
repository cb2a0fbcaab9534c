"""How experts of the tabletop move: OSC_POSE deltas and jaws."""

from __future__ import annotations

import numpy as np

ACTION_DIM = 7  # dx dy dz, drx dry drz, jaws
METRES_PER_ACTION = 0.05  # OSC_POSE: an action of 1 puts the target 5 cm ahead
RADIANS_PER_ACTION = 0.5  # and turns it by so much
TURN = slice(3, 6)  # of an action
TABLE_HEIGHT = 0.8  # metres
# Of the Panda at robosuite's table, metres. Within these its elbow stays bent; at its limit (envs/sim/tabletop.py) the
# hand stops short of where it is led, and tilts.
SHOULDER = np.array([-0.56, 0.0, 1.245])
REACH = 0.80  # from there along the table, with a hand that leans
FAR, LEAN = 0.72, 2.2  # from there to the grip site: beyond, the fingers lean outward, by so many radians a metre
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


def room(here: np.ndarray, along: np.ndarray) -> float:
    """How far a hand at (3,) can go along a horizontal unit vector (3,) within REACH, in metres; 0 beyond it."""
    arm = (here - SHOULDER)[:2]
    out = arm @ along[:2]
    return max(np.sqrt(max(out**2 + REACH**2 - arm @ arm, 0.0)) - out, 0.0)


def leaning(here: np.ndarray) -> np.ndarray:
    """How a hand at (3,) should be turned, (3,) as a scene tells it: pointing down, but far out its fingers lean
    outward, so that its wrist, and with it the elbow, need not reach as far."""
    arm = here - SHOULDER
    lean = LEAN * max(np.linalg.norm(arm) - FAR, 0.0)
    return lean * np.array([arm[1], -arm[0], 0.0]) / max(np.linalg.norm(arm[:2]), 1e-9)


def righted(action: np.ndarray, off: np.ndarray, gain: float = 0.7, still: float = 0.03) -> np.ndarray:
    """The action (A,), and with it a hand that is turned `off`, (3,) a rotation vector, from how it should be, comes to
    be turned so.

    still: radians off, within which it is left as it is, for it trembles by a degree in any motion. The command grows
    from nothing there: a learner then has no threshold to hover about.
    """
    angle = np.linalg.norm(off)
    righting = -gain * off / RADIANS_PER_ACTION * max(1.0 - still / max(angle, 1e-9), 0.0)
    return np.concatenate([action[: TURN.start], righting.clip(-1, 1), action[TURN.stop :]]).astype(np.float32)
