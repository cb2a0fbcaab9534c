"""What survives of an episode's images in a tokenizer: mean PSNR, ids that stay on still patches, small objects.

Mean PSNR alone hides that a small object is gone: a cube of 5 x 5 pixels is 25 of 4096. So where a camera's pose is
known, the objects at the recorded keypoints are looked for (`silhouettes`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch

from envs.data.camera import CameraPose, project
from envs.types import Episode
from world_model.metrics.images import psnr
from world_model.metrics.silhouettes import compare_objects
from world_model.tokens.images import PATCH, ImageTokenizer

STILL = 4  # grey levels: a patch of which no pixel changed by more is static
# Bounds that a good tokenizer keeps, by the end of a figure's name: at least, and at most.
AT_LEAST = {"psnr": 28.0, "outline_iou": 0.92, "still_kept": 0.95}
AT_MOST = {"object_lost": 0.02, "object_error": 1.0}


@dataclass(frozen=True)
class Reconstruction:
    """Sums over images, so that episodes can be added up; `figures` divides them."""

    sums: dict[str, float]
    counts: dict[str, int]

    def __add__(self, other: Reconstruction) -> Reconstruction:
        names = {**self.sums, **other.sums}
        return Reconstruction(
            {name: self.sums.get(name, 0.0) + other.sums.get(name, 0.0) for name in names},
            {name: self.counts.get(name, 0) + other.counts.get(name, 0) for name in names},
        )

    def figures(self) -> dict[str, float]:
        """Means of what occurred at all, and on how many images those of objects rest."""
        means = {name: self.sums[name] / self.counts[name] for name in self.sums if self.counts[name]}
        objects = [name for name in means if name.endswith(("_object_lost", "_outline_iou"))]
        return means | {f"{name}_images": self.counts[name] for name in objects}


@dataclass(frozen=True)
class Bound:
    """Of one figure. at_least: or else at most."""

    value: float
    at_least: bool

    def keeps(self, figure: float) -> bool:
        return figure >= self.value if self.at_least else figure <= self.value


def bound_of(name: str) -> Bound | None:
    """The bound of a figure such as `side_psnr`; None where it has none."""
    for bounds, at_least in ((AT_LEAST, True), (AT_MOST, False)):
        for ending, value in bounds.items():
            if name.endswith(f"_{ending}"):
                return Bound(value, at_least)
    return None


def evaluate(
    episode: Episode, tokenizer: ImageTokenizer, poses: Mapping[str, CameraPose], stride: int = 1
) -> Reconstruction:
    """All figures of one episode. poses: of the cameras in which objects are looked for; an episode's own counts where
    it tells it. stride: only every n-th image is decoded; all are encoded.

    Of each camera: psnr in dB, and still_kept, the share of static patches that keep their id. Of one whose pose is
    known also what `silhouettes.compare_objects` finds.
    """
    named = {}
    for camera in episode.spec.cameras:
        images = episode.images[camera.name]
        ids = tokenizer.encode(torch.from_numpy(images).to(tokenizer.device))
        again = tokenizer.decode(ids[::stride], camera.name).cpu().numpy()
        named[f"{camera.name}_psnr"] = psnr(images[::stride], again)
        named[f"{camera.name}_still_kept"] = still_kept(images, ids.cpu().numpy())
        if camera.name in poses and episode.spec.keypoints:
            size, points = (camera.height, camera.width), episode.keypoints[::stride]
            told = episode.poses.get(camera.name, np.full((1, 1), np.nan))[::stride]
            pose = told if np.isfinite(told).all() else poses[camera.name].pose
            places = project(pose, points, *size)  # (t, n, 2)
            found = compare_objects(images[::stride], again, places)
            named |= {f"{camera.name}_{name}": values for name, values in found.items()}
    sums = {name: float(np.sum(values)) for name, values in named.items()}
    return Reconstruction(sums, {name: len(values) for name, values in named.items()})


def still_kept(images: np.ndarray, ids: np.ndarray) -> np.ndarray:
    """Consecutive images (t, h, w, 3) and their ids (t, K) -> one 0 or 1 for each static patch."""
    change = np.abs(np.diff(images.astype(np.int16), axis=0)).max(-1)
    rows, columns = images.shape[1] // PATCH, images.shape[2] // PATCH
    change = change.reshape(-1, rows, PATCH, columns, PATCH).max((2, 4)).reshape(-1, rows * columns)
    return (ids[1:] == ids[:-1])[change <= STILL].astype(np.float32)
