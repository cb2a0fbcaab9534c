"""Patches of other light on a scene: shadows, stains, stripes, coloured lamps, and edges where no thing ends.

They are drawn into recorded pictures. Where a fixed camera's pose is known they lie on the plane that the scene stands
on, so that all such cameras show them at one place; elsewhere, and where a camera moves with the hand, on the picture
itself, as dirt on a lens does. What they cover is tinted and keeps its own edges, so nothing that a task needs is
hidden. Random shapes over a picture are RAD's cutout (Laskin et al. 2020); here they stay while things move.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
import torch
from torch import Tensor

from envs.data.camera import plane_points

REACH = 0.25  # metres from the centre of the scene, along x and along y, within which their centres lie
SIZE = (0.01, 0.25)  # metres, half of their length and of their width
TINT = (0.35, 1.7)  # of each colour channel
EDGE = (0.02, 0.5)  # how far an edge blurs, in shares of the size
STRIPED = 0.4  # share of them
PERIOD = (0.01, 0.08)  # metres, of stripes


@dataclass(frozen=True)
class Patches:
    """k patches on each of n samples. centre, size: (n, k, 2) metres. turn: (n, k) rad. edge: (n, k). angular: (n, k)
    bool, rectangles among ellipses. period: (n, k) metres, of stripes along their length; infinite without. tint:
    (n, k, 3), what light is multiplied with; 1 where there is none."""

    centre: Tensor
    size: Tensor
    turn: Tensor
    edge: Tensor
    angular: Tensor
    period: Tensor
    tint: Tensor

    @classmethod
    def draw(cls, shown: Tensor, most: int, centre: tuple[float, float], rng: torch.Generator) -> Patches:
        """Up to `most` on each sample; none where `shown` (n,) is false. centre: of the scene, metres. rng: a CPU
        generator."""
        shape = (len(shown), most)

        def between(low: float, high: float, *more: int) -> Tensor:
            return low + (high - low) * torch.rand(*shape, *more, generator=rng)

        there = torch.arange(most) < torch.randint(1, most + 1, (len(shown), 1), generator=rng)
        tint = between(*np.log(TINT), 3).exp()
        return cls(
            centre=torch.tensor(centre) + between(-REACH, REACH, 2),
            size=between(*np.log(SIZE), 2).exp(),
            turn=between(0.0, np.pi),
            edge=between(*EDGE),
            angular=between(0.0, 1.0) < 0.5,
            period=torch.where(between(0.0, 1.0) < STRIPED, between(*np.log(PERIOD)).exp(), torch.inf),
            tint=torch.where((there & shown[:, None])[..., None], tint, 1.0),
        )

    def __getitem__(self, part: slice) -> Patches:
        """Those of some samples."""
        return Patches(**{each.name: getattr(self, each.name)[part] for each in fields(self)})

    def on_ground(self, images: Tensor, matrices: np.ndarray, ground: float) -> Tensor:
        """Pictures (n, t, h, w, 3) u8 of cameras (n, t, 3, 4), see `pose_matrix` -> the same with the patches on the
        plane z = ground, metres."""
        if np.array_equal(matrices, np.broadcast_to(matrices[:, :1], matrices.shape)):
            matrices = matrices[:, :1]  # a camera that stands still is asked once
        return self._on(images, plane_points(matrices, *images.shape[-3:-1], ground))

    def on_picture(self, images: Tensor) -> Tensor:
        """Pictures (n, t, h, w, 3) u8 -> the same with the patches on each, as if it showed 2 REACH of the ground."""
        rows, columns = (torch.linspace(-REACH, REACH, length) for length in images.shape[-3:-1])
        return self._on(images, torch.stack(torch.meshgrid(rows, columns, indexing="ij"), -1)[None, None])

    def _on(self, images: Tensor, points: Tensor) -> Tensor:
        """points: (n, t, h, w, 2) on the ground, in metres, that pixels show; n and t may be 1."""
        points = points.to(images.device).expand(len(images), -1, -1, -1, -1)
        tint = torch.ones((*points.shape[:-1], 3), device=images.device)
        for i in range(self.tint.shape[1]):
            tint *= self._tint(points, i)
        return (images.float() * tint).clamp(0, 255).round().to(torch.uint8)

    def _tint(self, points: Tensor, i: int) -> Tensor:
        """Of the i-th patch of each sample at points (n, t, h, w, 2): (n, t, h, w, 3)."""
        def each(values: Tensor) -> Tensor:
            return values[:, i].to(points.device).view(len(points), 1, 1, 1, *values.shape[2:])

        x, y = (points - each(self.centre)).unbind(-1)
        cosine, sine = each(self.turn).cos(), each(self.turn).sin()
        place = torch.stack([cosine * x + sine * y, cosine * y - sine * x], -1)
        along, across = (place / each(self.size)).unbind(-1)
        out = torch.where(each(self.angular), torch.maximum(along.abs(), across.abs()), along.hypot(across))
        inside = torch.sigmoid((1 - out) / (0.25 * each(self.edge)))  # 0.02 to 0.98 over `edge`, twice
        if self.period[:, i].isfinite().any():
            wave = torch.sin(2 * np.pi * place[..., 0] / each(self.period))  # 0 where there are no stripes
            inside = inside * torch.where(each(self.period).isinf(), 1.0, torch.sigmoid(6 * wave))
        inside = inside.nan_to_num(0.0)[..., None]
        return 1 + inside * (each(self.tint) - 1)
