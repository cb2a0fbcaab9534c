"""Other colours and other places: what makes a few hundred episodes enough.

Episodes differ by how they look. A model that sees few of them tells them apart by their colours and remembers where
each cloth lay, instead of looking: on held-out episodes it was 4.5 cm off where it is 1.5 cm off with other colours and
places in every batch (LOG.md). Frames are changed before they become ids, so all ids of a window tell one story.

Sources: random shifts (DrQ, Kostrikov et al. 2021; RAD, Laskin et al. 2020), here of the scene instead of the
picture, so that state and keypoints move along and stay true.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from envs.data.camera import Camera


@dataclass(frozen=True)
class Augmentation:
    """How far training strays from what was recorded.

    share: of samples whose colours change, and, drawn apart, of those whose place does.
    hue: radians, standard deviation of the turn about grey.
    gain: range of each channel's scale.
    shift: metres, the most that the scene is moved along x and y.
    camera: the main one.
    """

    share: float = 0.7
    hue: float = 0.5
    gain: tuple[float, float] = (0.7, 1.1)
    shift: float = 0.04
    camera: Camera = Camera()

    @classmethod
    def from_dict(cls, raw: dict) -> Augmentation:
        """The inverse of `dataclasses.asdict`, also from lists."""
        camera = {name: tuple(v) if isinstance(v, list) else v for name, v in raw["camera"].items()}
        return cls(**{**raw, "gain": tuple(raw["gain"]), "camera": Camera(**camera)})

    def draw(self, count: int, rng: torch.Generator) -> Change:
        """One change for each of `count` samples. rng: a CPU generator."""
        recoloured, moved = torch.rand(2, count, generator=rng) < self.share
        angle = torch.randn(count, generator=rng) * self.hue * recoloured
        low, high = self.gain
        gain = torch.where(recoloured[:, None], low + (high - low) * torch.rand(count, 3, generator=rng), 1.0)
        third = 3**-0.5  # a rotation about the grey axis, by Rodrigues' formula
        across = torch.tensor([[0, -third, third], [third, 0, -third], [-third, third, 0]])
        cosine, sine = angle.cos()[:, None, None], angle.sin()[:, None, None]
        colours = gain[:, :, None] * (cosine * torch.eye(3) + (1 - cosine) / 3 + sine * across)
        shift = (2 * torch.rand(count, 2, generator=rng) - 1) * self.shift * moved[:, None]
        return Change(colours, shift, self.camera)


@dataclass(frozen=True)
class Change:
    """What is done to each of n samples, to all frames of a sample alike.

    colours: (n, 3, 3) f32 matrices. shift: (n, 2) f32 metres along x and y.
    """

    colours: Tensor
    shift: Tensor
    camera: Camera

    def main(self, frames: Tensor) -> Tensor:
        """Frames of the main view (n, ..., 64, 64, 3) u8 -> the same shape."""
        each = frames.shape[1:-3].numel()
        shift = self.shift.repeat_interleave(each, dim=0)
        return self.wrist(self.camera.shift_scene(frames.flatten(0, -4), shift).view(frames.shape))

    def wrist(self, frames: Tensor) -> Tensor:
        """Frames (n, ..., h, w, 3) u8 -> the same shape; the hand's own camera moves with the scene."""
        colours = self.colours.to(frames.device).view(len(frames), *[1] * (frames.ndim - 3), 3, 3)
        return (frames.float() @ colours.mT).clamp(0, 255).round().to(torch.uint8)

    def points(self, points: Tensor) -> Tensor:
        """World points or states (n, ..., d) in m, x and y first -> the same shape."""
        moved = points.clone()
        moved[..., :2] += self.shift.to(points).view(len(points), *[1] * (points.ndim - 2), 2)
        return moved
