"""Cameras that stand still and whose pose is known: where they see points of the world, and how their images change
with the scene's place and size."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from scipy.spatial.transform import Rotation


@dataclass(frozen=True)
class CameraPose:
    """Where a camera stands and what it looks at, in metres in the world frame; z points up. fovy: its vertical field
    of view, degrees. Pixels are square, and no lens bends the image."""

    position: tuple[float, float, float]
    target: tuple[float, float, float]
    fovy: float

    def __post_init__(self) -> None:
        if not 0 < self.fovy < 180:
            raise ValueError(f"a camera's `fovy` must be between 0 and 180 degrees, got {self.fovy}")
        if self.position[:2] == self.target[:2]:
            raise ValueError("a camera that looks straight up or down has no `up`: move its `target` a millimetre")

    @property
    def pose(self) -> np.ndarray:
        """(8,) f64, the same as `envs.types.POSE` has it."""
        forward = np.subtract(self.target, self.position)
        right = np.cross(forward, (0.0, 0.0, 1.0))
        axes = np.stack([a / np.linalg.norm(a) for a in (right, np.cross(right, forward), -forward)], axis=1)
        x, y, z, w = Rotation.from_matrix(axes).as_quat(canonical=True)  # w >= 0
        return np.array([*self.position, w, x, y, z, np.radians(self.fovy)])


def pose_matrix(poses: np.ndarray, height: int, width: int) -> np.ndarray:
    """(..., 8) `envs.types.POSE`, in the world -> (..., 3, 4) f64: homogeneous world points to homogeneous row and
    column of an image of that size, NaN for NaN; a pixel's middle is at its integer."""
    poses = np.asarray(poses, np.float64)
    w, x, y, z = np.moveaxis(poses[..., 3:7], -1, 0)
    right = [1 - 2 * (y * y + z * z), 2 * (x * y + w * z), 2 * (x * z - w * y)]
    up = [2 * (x * y - w * z), 1 - 2 * (x * x + z * z), 2 * (y * z + w * x)]
    back = [2 * (x * z + w * y), 2 * (y * z - w * x), 1 - 2 * (x * x + y * y)]
    axes = np.stack([-np.stack(up, -1), np.stack(right, -1), -np.stack(back, -1)], axis=-2)  # (..., 3, 3)
    lens = np.zeros((*poses.shape[:-1], 3, 3))
    lens[..., 0, 0] = lens[..., 1, 1] = height / 2 / np.tan(poses[..., 7] / 2)
    lens[..., 0, 2], lens[..., 1, 2], lens[..., 2, 2] = (height - 1) / 2, (width - 1) / 2, 1.0
    return lens @ np.concatenate([axes, -axes @ poses[..., :3, None]], axis=-1)


def project(poses: np.ndarray, points: np.ndarray, height: int, width: int) -> np.ndarray:
    """Where cameras at poses (..., 8) see points (..., k, 3), in metres: (..., k, 2), row and column, NaN for NaN. One
    pose serves all points."""
    matrix = pose_matrix(poses, height, width)
    seen = points @ matrix[..., :3].swapaxes(-1, -2) + matrix[..., None, :, 3]
    return seen[..., :2] / seen[..., 2:]


def plane_points(matrix: np.ndarray, height: int, width: int, ground: float) -> torch.Tensor:
    """What a camera sees of the plane z = ground (m): its matrix (..., 3, 4) -> x and y in m of the point in each
    pixel, (..., h, w, 2) f32, infinite above the horizon and NaN for NaN."""
    back = np.linalg.inv(_of_plane(matrix, ground))
    pixels = np.stack([*np.meshgrid(np.arange(height), np.arange(width), indexing="ij"), np.ones((height, width))], -1)
    seen = np.einsum("...ij,hwj->...hwi", back, pixels)
    with np.errstate(divide="ignore", invalid="ignore"):
        points = np.where(seen[..., 2:] <= 0, np.inf, seen[..., :2] / seen[..., 2:])
    return torch.from_numpy(points.astype(np.float32))


def _of_plane(matrix: np.ndarray, ground: float) -> np.ndarray:
    """(..., 3, 4) of the world -> (..., 3, 3): homogeneous points of the plane z = ground to homogeneous pixels."""
    return matrix[..., [0, 1, 3]] + matrix[..., [2]] * [[0, 0, ground]]


def place_scene(images: torch.Tensor, matrix: np.ndarray, place: torch.Tensor, ground: float) -> torch.Tensor:
    """What a camera would have seen with the whole scene moved along x and y and made larger or smaller, robot
    included, and the camera not.

    Exact for the plane z = ground (a homography); of a camera c metres above it, what stands h above it moves by the
    share h / c too little. Images (n, h, w, 3) u8, matrix of the camera or of each (3, 4) or (n, 3, 4), place (n, 4) a
    scale and x, y and z in m, by which the plane comes to lie in itself, ground m -> images; what comes into view
    repeats the border.
    """
    height, width = images.shape[-3:-1]
    plane = torch.from_numpy(_of_plane(matrix, ground))
    move = torch.eye(3, dtype=plane.dtype).repeat(len(place), 1, 1)
    scale, along = place.cpu().double().split([1, 3], dim=1)
    move[:, [0, 1], [0, 1]] = 1 / scale
    move[:, :2, 2] = -along[:, :2] / scale
    back = (plane @ move @ plane.inverse()).float().to(images.device)  # where a pixel's content comes from
    rows, columns = (torch.arange(n, dtype=torch.float32, device=images.device) for n in (height, width))
    row, column = torch.meshgrid(rows, columns, indexing="ij")
    came = torch.stack([row, column, torch.ones_like(row)], dim=-1) @ back.mT[:, None]  # (n, h, w, 3)
    last = torch.tensor([width - 1, height - 1], dtype=torch.float32, device=images.device)
    came = came[..., [1, 0]] / came[..., 2:] / last * 2 - 1
    pictures = images.permute(0, 3, 1, 2).float()
    moved = F.grid_sample(pictures, came, padding_mode="border", align_corners=True)
    return moved.round().to(torch.uint8).permute(0, 2, 3, 1)
