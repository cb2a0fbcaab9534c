"""The fixed main camera: where points of the world are in its picture, and how the picture shifts with the scene."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
import torch.nn.functional as F

from envs.types import MAIN_SIZE, TABLE_HEIGHT


@dataclass(frozen=True)
class Camera:
    """The main camera, without the millimetres by which it moves between episodes. Metres, degrees."""

    position: tuple[float, float, float] = (0.50, 0.0, 1.42)
    target: tuple[float, float, float] = (0.03, 0.0, 0.83)
    fovy: float = 38.0

    @cached_property
    def matrix(self) -> np.ndarray:
        """(3, 4): homogeneous world points to homogeneous (row, column); a pixel's middle is at its integer."""
        forward = np.subtract(self.target, self.position)
        right = np.cross(forward, (0.0, 0.0, 1.0))
        up = np.cross(right, forward)
        axes = np.stack([a / np.linalg.norm(a) for a in (-up, right, forward)])
        focal = MAIN_SIZE / 2 / np.tan(np.radians(self.fovy) / 2)
        middle = (MAIN_SIZE - 1) / 2
        lens = np.array([[focal, 0, middle], [0, focal, middle], [0, 0, 1]])
        return lens @ np.hstack([axes, -axes @ np.reshape(self.position, (3, 1))])

    def project(self, points: np.ndarray) -> np.ndarray:
        """(..., 3) m -> (..., 2) row and column in pixels, NaN for NaN."""
        seen = points @ self.matrix[:, :3].T + self.matrix[:, 3]
        return seen[..., :2] / seen[..., 2:]

    def shift_scene(self, frames: torch.Tensor, shift: torch.Tensor) -> torch.Tensor:
        """What the camera would have seen with the whole scene moved over the table, robot included.

        Exact for the table's plane (a homography); what stands h above it moves h / 0.6 m too little. Frames
        (n, 64, 64, 3) u8, shift (n, 2) m in x and y -> frames; what comes into view repeats the border.
        """
        plane = torch.from_numpy(self.matrix[:, [0, 1, 3]] + self.matrix[:, [2]] * [[0, 0, TABLE_HEIGHT]])
        move = torch.eye(3, dtype=plane.dtype).repeat(len(shift), 1, 1)
        move[:, :2, 2] = -shift.cpu()
        back = (plane @ move @ plane.inverse()).float().to(frames.device)  # where a pixel's content comes from
        axis = torch.arange(MAIN_SIZE, dtype=torch.float32, device=frames.device)
        row, column = torch.meshgrid(axis, axis, indexing="ij")
        came = torch.stack([row, column, torch.ones_like(row)], dim=-1) @ back.mT[:, None]  # (n, 64, 64, 3)
        came = came[..., [1, 0]] / came[..., 2:] / (MAIN_SIZE - 1) * 2 - 1
        pictures = frames.permute(0, 3, 1, 2).float()
        moved = F.grid_sample(pictures, came, padding_mode="border", align_corners=True)
        return moved.round().to(torch.uint8).permute(0, 2, 3, 1)
