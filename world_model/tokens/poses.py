"""Camera poses as bins: where a camera stands, told to the model before its picture.

A pose is eight numbers, `envs.types.POSE`. Each becomes one of the bins that states have, in a range that is fitted on
the poses of the training episodes and on those of their further views, and is much wider, because a camera that was
moved is told by its pose and would be told wrongly outside. A rotation is two quaternions, q and -q; the one nearer to
the mean of those seen is taken, so that cameras on all sides of a table have near numbers where they are near.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass

import numpy as np
import torch
from torch import Tensor

from envs.types import POSE, CameraSpec, Episode
from world_model.nn.device import constants
from world_model.tokens.vocab import STATE_BINS

POSE_IDS = len(POSE)
ROTATION = slice(3, 7)
# How far beyond the poses seen a range reaches: 15 cm; 17 degrees of any rotation, which changes no number of a
# quaternion by more; and 11 degrees of the field of view.
MARGIN = np.array([0.15] * 3 + [0.15] * 4 + [0.2])


@dataclass(frozen=True)
class PoseRange:
    """Of the poses that one camera tells. low, high: of each of its numbers (8,). mean: a unit quaternion (4,)."""

    camera: str
    low: tuple[float, ...]
    high: tuple[float, ...]
    mean: tuple[float, ...]

    @classmethod
    def fit(cls, camera: str, poses: Iterable[np.ndarray]) -> PoseRange:
        """On poses (..., 8), NaN where nobody knew; gone through twice, so that no more than one of them is held.
        ValueError where all are NaN."""
        outer = sum(known[:, ROTATION].T @ known[:, ROTATION] for known in map(_known, poses))
        if not np.any(outer):
            raise ValueError(f"no episode tells where the camera `{camera}` stands")
        # The mean of rotations is the first principal axis of their quaternions (Markley et al. 2007).
        mean = np.linalg.eigh(outer)[1][:, -1]
        mean *= 1.0 if mean[np.abs(mean).argmax()] > 0 else -1.0
        low, high = np.full(POSE_IDS, np.inf), np.full(POSE_IDS, -np.inf)
        for known in map(_known, poses):
            known[:, ROTATION] *= np.where(known[:, ROTATION] @ mean < 0, -1.0, 1.0)[:, None]
            low, high = np.vstack([known, low]).min(0), np.vstack([known, high]).max(0)
        low, high = low - MARGIN, high + MARGIN
        low[ROTATION], high[ROTATION] = low[ROTATION].clip(-1), high[ROTATION].clip(max=1)
        return cls(camera, *(tuple(np.round(each, 6).tolist()) for each in (low, high, mean)))

    def to_bins(self, poses: Tensor) -> Tensor:
        """(..., 8) f32 -> bins, below 0 or above 255 outside the range, NaN for NaN."""
        low, high, mean = (constants(each, poses.device) for each in (self.low, self.high, self.mean))
        side = torch.where((poses[..., ROTATION] * mean).sum(-1, keepdim=True) < 0, -1.0, 1.0)
        parts = (poses[..., : ROTATION.start], side * poses[..., ROTATION], poses[..., ROTATION.stop :])
        return (torch.cat(parts, dim=-1) - low) / (high - low) * (STATE_BINS - 1)

    def outside(self, poses: np.ndarray) -> dict[str, int]:
        """How many of the numbers of poses (n, 8) leave the range, by name; only what leaves it."""
        bins = self.to_bins(torch.from_numpy(poses))
        count = ((bins < 0) | (bins > STATE_BINS - 1)).sum(0).tolist()
        return {f"{self.camera}.{name}": n for name, n in zip(POSE, count, strict=True) if n}

    def to_dict(self) -> dict:
        return asdict(self)

    @classmethod
    def from_dict(cls, raw: dict) -> PoseRange:
        """The inverse of `to_dict`. ValueError for what is none."""
        ranges = {name: tuple(map(float, raw[name])) for name in ("low", "high", "mean")}
        if [len(each) for each in ranges.values()] != [POSE_IDS, POSE_IDS, 4]:
            raise ValueError(f"the range of the poses of camera {raw['camera']} is none: {raw}")
        return cls(raw["camera"], **ranges)


def fit_poses(cameras: Sequence[CameraSpec], episodes: Iterable[Episode]) -> tuple[PoseRange, ...]:
    """Ranges of the cameras that tell their pose in some episode. The first of them is the one whose place views take,
    so its range holds the poses of the views of its size. episodes: gone through several times, never held together."""
    found: list[PoseRange] = []
    for camera in cameras:
        if any(np.isfinite(e.poses[camera.name]).any() for e in episodes if camera.name in e.poses):
            found.append(PoseRange.fit(camera.name, _Told(camera, episodes, with_views=not found)))
    return tuple(found)


@dataclass(frozen=True)
class _Told:
    """The poses of a camera, and those of the views of its size; may be gone through again."""

    camera: CameraSpec
    episodes: Iterable[Episode]
    with_views: bool

    def __iter__(self) -> Iterator[np.ndarray]:
        for episode in self.episodes:
            if self.camera.name in episode.poses:
                yield episode.poses[self.camera.name]
            for name, view in episode.views.items() if self.with_views else ():
                if view.shape[1:3] == (self.camera.height, self.camera.width):
                    yield episode.poses[name]


def _known(poses: np.ndarray) -> np.ndarray:
    """Those of poses (..., 8) that are known, (n, 8) f64."""
    flat = poses.reshape(-1, POSE_IDS).astype(np.float64)
    return flat[np.isfinite(flat).all(-1)]
