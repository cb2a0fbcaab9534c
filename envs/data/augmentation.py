"""Other colours and other places: what makes a few hundred episodes enough.

Episodes differ by how they look. A model that sees few of them tells them apart by their colours and remembers where
each cloth lay, instead of looking: on held-out episodes it was 4.5 cm off where it is 1.5 cm off with other colours and
places in every batch (LOG.md). Images are changed before they become ids, so all ids of a window tell one story.

Colours can be changed for any robot. The scene can only be moved where every image can move with it: a fixed camera
needs its pose for that, and one that is attached to the hand moves by itself. The state must tell where the hand is, in
metres, to move along. Where a camera is neither, or there is no such position, nothing is moved at all, because an
image that stayed where the labels move would teach a lie.

Sources: random shifts (DrQ, Kostrikov et al. 2021; RAD, Laskin et al. 2020), here of the scene instead of the
image, so that state and keypoints move along and stay true.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from envs.data.camera import CameraPose, pose_matrix, shift_scene
from envs.types import Spec


@dataclass(frozen=True)
class Augmentation:
    """How far training strays from what was recorded.

    share: of samples whose colours change, and, drawn apart, of those whose place does.
    hue: radians, standard deviation of the turn about grey.
    gain: range of each channel's scale.
    shift: metres, the most that the scene is moved along x and y; 0 to leave it where it is.
    poses: of the fixed cameras, by name; where an episode tells it, its own is taken. attached: names of the cameras
    that move with the hand.
    ground: metres, height of the plane on which the scene stands, for which the shift is exact.
    noise: standard deviation of what is added to each number of the state that is no position, in shares of its range,
    the same throughout a sample: numbers that no shift changes, such as the place of a thing relative to the hand, are
    else known by heart.
    """

    share: float = 0.7
    hue: float = 0.5
    gain: tuple[float, float] = (0.7, 1.1)
    shift: float = 0.0
    poses: Mapping[str, CameraPose] = field(default_factory=dict)
    attached: tuple[str, ...] = ()
    ground: float = 0.0
    noise: float = 0.0

    def __post_init__(self) -> None:
        least = min(self.hue, self.shift, self.noise)
        if not (0 <= self.share <= 1 and least >= 0 and 0 <= self.gain[0] <= self.gain[1]):
            raise ValueError(
                "an augmentation's `share` must be in [0, 1], `hue`, `shift` and `noise` 0 or more, `gain` a range "
                f"from low to high, got share={self.share}, hue={self.hue}, shift={self.shift}, noise={self.noise}, "
                f"gain={self.gain}"
            )

    def cannot_shift(self, spec: Spec) -> str:
        """Why a robot's scene cannot be moved, in words; empty where it can."""
        unknown = [camera.name for camera in spec.cameras if camera.name not in (*self.poses, *self.attached)]
        if unknown:
            return f"the pose of camera {', '.join(unknown)} is not known"
        return "" if spec.positions else "no state says where the hand is, in metres"

    def of(self, spec: Spec) -> Augmentation:
        """What of this can be done for a robot: without the shift where its scene cannot be moved."""
        return replace(self, shift=0.0) if self.cannot_shift(spec) else self

    def draw(self, count: int, rng: torch.Generator, spec: Spec | None = None) -> Change:
        """One change for each of `count` samples. rng: a CPU generator. spec: of the robot, with finite ranges, where
        states change too."""
        recoloured, moved = torch.rand(2, count, generator=rng) < self.share
        angle = torch.randn(count, generator=rng) * self.hue * recoloured
        low, high = self.gain
        gain = torch.where(recoloured[:, None], low + (high - low) * torch.rand(count, 3, generator=rng), 1.0)
        third = 3**-0.5  # a rotation about the grey axis, by Rodrigues' formula
        across = torch.tensor([[0, -third, third], [third, 0, -third], [-third, third, 0]])
        cosine, sine = angle.cos()[:, None, None], angle.sin()[:, None, None]
        colours = gain[:, :, None] * (cosine * torch.eye(3) + (1 - cosine) / 3 + sine * across)
        shift = (2 * torch.rand(count, 2, generator=rng) - 1) * self.shift * moved[:, None]
        noise = self._noise(count, rng, spec) if self.noise and spec else None
        return Change(colours, shift, self.poses if self.shift else {}, self.ground, noise)

    def _noise(self, count: int, rng: torch.Generator, spec: Spec) -> Tensor:
        """(count, P), in the state's units."""
        spread = self.noise * torch.from_numpy(spec.state_high - spec.state_low)
        spread[[i for position in spec.positions for i in position]] = 0.0
        return torch.randn(count, len(spread), generator=rng) * spread


@dataclass(frozen=True)
class Change:
    """What is done to each of n samples, to all images of a sample alike.

    colours: (n, 3, 3) f32 matrices. shift: (n, 2) f32 metres along x and y. poses: of the cameras whose images have to
    be moved for that. ground: height of the plane on which the scene stands, metres. noise: (n, P) f32, added to the
    states, or None.
    """

    colours: Tensor
    shift: Tensor
    poses: Mapping[str, CameraPose]
    ground: float
    noise: Tensor | None = None

    def __getitem__(self, part: slice) -> Change:
        """What is done to some of the samples."""
        noise = None if self.noise is None else self.noise[part]
        return replace(self, colours=self.colours[part], shift=self.shift[part], noise=noise)

    def images(self, camera: str, images: Tensor, told: np.ndarray | None = None) -> Tensor:
        """Images of one camera (n, ..., h, w, 3) u8 -> the same shape. told: the poses (n, ..., 8) that it had then,
        NaN where nobody knows; they stay true, because it is the scene that moves, and not the camera."""
        if camera in self.poses:
            matrix = pose_matrix(self.poses[camera].pose, *images.shape[-3:-1])
            if told is not None and np.isfinite(told).any():
                own = pose_matrix(told, *images.shape[-3:-1])
                matrix = np.where(np.isfinite(own), own, matrix)
            matrix = matrix.reshape(-1, 3, 4) if matrix.ndim > 2 else matrix
            shift = self.shift.repeat_interleave(images.shape[1:-3].numel(), dim=0)
            images = shift_scene(images.flatten(0, -4), matrix, shift, self.ground).view(images.shape)
        colours = self.colours.to(images.device).view(len(images), *[1] * (images.ndim - 3), 3, 3)
        return (images.float() @ colours.mT).clamp(0, 255).round().to(torch.uint8)

    def points(self, points: Tensor) -> Tensor:
        """World points (n, ..., 3) in m -> the same shape."""
        return self._moved(points, ((0, 1, 2),))

    def state(self, state: Tensor, positions: tuple[tuple[int, int, int], ...]) -> Tensor:
        """States (n, ..., P) -> the same shape. positions: the dimensions that are positions, `Spec.positions`."""
        moved = self._moved(state, positions)
        if self.noise is None:
            return moved
        return moved + self.noise.to(moved).view(len(moved), *[1] * (moved.ndim - 2), -1)

    def _moved(self, values: Tensor, positions: tuple[tuple[int, int, int], ...]) -> Tensor:
        moved = values.clone()
        for x, y, _ in positions:
            moved[..., [x, y]] += self.shift.to(values).view(len(values), *[1] * (values.ndim - 2), 2)
        return moved
