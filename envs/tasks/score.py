"""Success measures, as pure functions of positions."""

from __future__ import annotations

import numpy as np

from envs.sim.table import TABLE_HEIGHT

# FoldHalf
MAX_CORNER_DISTANCE = 0.050  # metres, both corner pairs (aloha_sim's TowelFoldInHalf)
MAX_PAIR_DISTANCE = 0.025  # metres, the mean over all vertex pairs: refuses a bunched cloth
LAID = 0.038  # metres, a corner pair that needs no more work
SIDE = 0.24  # metres between the corners of a pair before the fold
NEAR = 0.1  # metres over which reaching counts most

# Lift
LIFTED = 0.04  # metres from the table to the cube's centre: robosuite's criterion
REACHED = 0.02  # metres from the grip site to the cube's centre: the jaws are around it
REST = 0.0215  # metres from the table to the centre of a middling cube that lies
NARROW = 0.034  # metres, the edge of the smallest cube
OPEN = 0.078  # metres between open jaws
HOVER = 0.06  # metres above the cube's centre at which a hand clears it
BESIDE = (0.008, 0.03)  # metres aside: within the first a hand may come straight down, beyond the second it hovers
FAR = 0.4  # metres of way at which reaching has made no progress


def pair_distances(vertices: np.ndarray) -> np.ndarray:
    """Distances of the vertices that a half fold brings together.

    vertices: (n, n, 3) metres, first axis from near to far. Returns (n // 2, n); the middle row has no partner.
    """
    half = len(vertices) // 2
    return np.linalg.norm(vertices[:half] - vertices[::-1][:half], axis=-1)


def half_folded(vertices: np.ndarray) -> bool:
    """Whether the cloth lies folded: both corner pairs close, and the whole of it without a bunch."""
    distances = pair_distances(vertices)
    corners = max(distances[0, 0], distances[0, -1])
    return bool(corners < MAX_CORNER_DISTANCE and distances.mean() < MAX_PAIR_DISTANCE)


def softgym_fold(vertices: np.ndarray, start: np.ndarray) -> float:
    """SoftGym's normalised fold performance (Lin et al. 2020): 0 as it lay, 1 for a perfect fold that drifted nowhere.

    vertices and start: (n, n, 3) metres; the near half is to land on the far half, which should stay where it was.
    """

    def performance(now: np.ndarray) -> float:
        half = len(now) // 2
        drift = np.linalg.norm(now[::-1][:half] - start[::-1][:half], axis=-1)
        return -pair_distances(now).mean() - 1.2 * drift.mean()

    return float(1.0 - performance(vertices) / performance(start))


def fold_progress(corners: np.ndarray, gripper: np.ndarray, holding: np.ndarray) -> np.ndarray:
    """How far a half fold has come, in [0, 1], from what a camera can tell: it rises from reaching for a corner to
    holding it, to carrying it, to both corners laid, and where the wrong place is held it does not.

    corners: (..., 4, 3) m, as in `Scene`; gripper: (..., 3) m; holding: (...) chance that the jaws hold anything.
    """
    apart = np.linalg.norm(corners[..., :2, :] - corners[..., 2:, :], axis=-1)  # (..., 2), left and right
    reach = np.linalg.norm(corners[..., :2, :] - gripper[..., None, :], axis=-1)
    laid = apart < LAID
    turn = np.stack([np.ones_like(laid[..., 0]), laid[..., 0]], axis=-1) & ~laid  # the side whose turn it is
    near = 1 - np.tanh(reach / NEAR)
    # The grip site is within a vertex's distance of a corner that is held.
    held = np.asarray(holding)[..., None] * np.clip(1.5 - reach / 0.04, 0, 1)
    grasp = np.where(laid, 1.0, np.maximum(0.5 * near * turn, held))
    return (0.8 * grasp + 0.2 * (1 - np.clip(apart / SIDE, 0, 1))).mean(-1)


def fold_stage(corner_distances: np.ndarray, held: int, folded: bool, done_below: float = LAID) -> int:
    """What to do next in a half fold: 0 grasp left, 1 lay left, 2 grasp right, 3 lay right, 4 move away.

    corner_distances: (2,) metres, left and right; held: as in `Scene`, near left 0 and near right 1; folded: as
    `half_folded` says. A cloth that counts as folded is let be; with both corners laid and a bunch between
    them, the worse corner is laid again.
    """
    if held in (0, 1):
        return 1 + 2 * held
    if held >= 0 or folded:
        return 4
    for side in (0, 1):
        if corner_distances[side] > done_below:
            return 2 * side
    return 2 * int(np.argmax(corner_distances))


def lift_progress(cube: np.ndarray, gripper: np.ndarray, opening: np.ndarray, holding: np.ndarray) -> np.ndarray:
    """How far lifting a cube has come, in [0, 1], from what a camera can tell: it rises from reaching over the cube to
    open jaws around it, to holding it, to having it up.

    cube: (..., 3) m, its centre; gripper: (..., 3) m; opening: (...) m between the jaws; holding: (...) chance that
    they hold anything.
    """
    # The way to the cube comes down on it from above, as the expert goes: a hand low beside it has to rise first.
    away = gripper - cube
    aside, above = np.linalg.norm(away[..., :2], axis=-1), away[..., 2]
    due = HOVER * np.clip((aside - BESIDE[0]) / (BESIDE[1] - BESIDE[0]), 0, 1)
    way = aside + np.maximum(above, due) + 2 * np.maximum(due - above, 0)
    near = np.clip(1 - way / FAR, 0, 1)
    # Closed jaws that press on a cube seem to hold something too, and so do jaws that are not where it is.
    apart = np.clip(opening / (NARROW / 2) - 1, 0, 1)
    held = holding * apart * np.clip(2 - np.linalg.norm(away, axis=-1) / REACHED, 0, 1)
    ready = np.maximum(held, np.clip(opening / OPEN, 0, 1))  # jaws that closed on nothing have to open again
    risen = np.clip((cube[..., 2] - TABLE_HEIGHT - REST) / (LIFTED - REST), 0, 1)
    return 0.3 * near + 0.1 * ready + held * (0.2 + 0.4 * risen)
