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
        """On poses (..., 8), NaN where nobody knew. ValueError where all are."""
        seen, counts = _distinct(poses)
        if not len(seen):
            raise ValueError(f"no episode tells where the camera `{camera}` stands")
        rotations = seen[:, ROTATION]
        # The mean of rotations is the first principal axis of their quaternions (Markley et al. 2007).
        mean = np.linalg.eigh((rotations * counts[:, None]).T @ rotations)[1][:, -1]
        mean *= 1.0 if mean[np.abs(mean).argmax()] > 0 else -1.0
        seen[:, ROTATION] *= np.where(rotations @ mean < 0, -1.0, 1.0)[:, None]
        low, high = seen.min(0) - MARGIN, seen.max(0) + MARGIN
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
    so its range holds the poses of the views of its size. episodes: gone through more than once."""
    found: list[PoseRange] = []
    for camera in cameras:
        if any(np.isfinite(e.poses[camera.name]).any() for e in episodes if camera.name in e.poses):
            found.append(PoseRange.fit(camera.name, _told(camera, episodes, with_views=not found)))
    return tuple(found)


def _told(camera: CameraSpec, episodes: Iterable[Episode], with_views: bool) -> Iterator[np.ndarray]:
    """The poses of a camera, and those of the views of its size."""
    for episode in episodes:
        if camera.name in episode.poses:
            yield episode.poses[camera.name]
        for name, view in episode.views.items() if with_views else ():
            if view.shape[1:3] == (camera.height, camera.width):
                yield episode.poses[name]


def _distinct(poses: Iterable[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """The known ones among poses (..., 8), each once for an episode, and how often it occurs: (n, 8) f64, (n,). Most
    cameras stand still, so that little is held of thousands of episodes."""
    found = [(np.zeros((0, POSE_IDS)), np.zeros(0, np.int64))]
    for pose in poses:
        flat = pose.reshape(-1, POSE_IDS).astype(np.float64)
        found.append(np.unique(flat[np.isfinite(flat).all(-1)], axis=0, return_counts=True))
    seen, counts = zip(*found, strict=True)
    return np.concatenate(seen), np.concatenate(counts)
