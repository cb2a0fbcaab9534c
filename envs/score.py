"""Success measures, as pure functions of positions."""

from __future__ import annotations

import numpy as np

MAX_CORNER_DISTANCE = 0.050  # metres, both corner pairs (aloha_sim's TowelFoldInHalf)
MAX_PAIR_DISTANCE = 0.025  # metres, the mean over all vertex pairs: refuses a bunched cloth
LAID = 0.038  # metres, a corner pair that needs no more work
SIDE = 0.24  # metres between the corners of a pair before the fold
NEAR = 0.1  # metres over which reaching counts most


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
