"""From where training sees the scene: which windows are told their cameras' poses, which see it from elsewhere, and
what they learn to draw."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from envs.types import Episode
from world_model.tokens.layout import Layout
from world_model.tokens.poses import POSE_IDS

VIEWED_STEPS = 2  # model steps of a window for which a view is drawn: the first, without history, and the second


@dataclass(frozen=True)
class Viewpoints:
    """hide: share of the windows that are told no pose, so that a model also works where nobody knows it.

    draw: share of the batches that learn to draw what another camera would show. swap: share of the windows in which a
    view from elsewhere, with its pose, stands in the place of the camera's own picture. Both need episodes with views.
    """

    hide: float = 0.15
    draw: float = 0.0
    swap: float = 0.0

    def __post_init__(self) -> None:
        if not all(0 <= share <= 1 for share in (self.hide, self.draw, self.swap)):
            raise ValueError(f"`hide_poses`, `view_share` and `swap_share` must be in [0, 1], got {self}")

    @property
    def needs_views(self) -> bool:
        return bool(self.draw or self.swap)

    def choose(self, count: int, rng: torch.Generator) -> Choice:
        """For a batch of `count` windows. rng: a CPU generator."""
        hidden, swapped = torch.rand(2, count, generator=rng) < torch.tensor([[self.hide], [self.swap]])
        shown, wanted = torch.rand(2, count, generator=rng)
        return Choice(hidden, swapped, shown, wanted, bool(torch.rand((), generator=rng) < self.draw))


@dataclass(frozen=True)
class Choice:
    """Of n windows. hidden, swapped: (n,) bool. shown, wanted: (n,) in [0, 1), which view. draws: whether any is
    drawn."""

    hidden: Tensor
    swapped: Tensor
    shown: Tensor
    wanted: Tensor
    draws: bool

    def __getitem__(self, part: slice) -> Choice:
        """Of some of the windows; whether any is drawn stays the whole batch's."""
        return Choice(self.hidden[part], self.swapped[part], self.shown[part], self.wanted[part], self.draws)

    @classmethod
    def all_drawn(cls, count: int) -> Choice:
        """All is seen as recorded, and each window draws one of its views: to measure by."""
        none, spread = torch.zeros(count, dtype=torch.bool), (torch.arange(count) + 0.5) / count
        return cls(none, none, spread, spread, True)

    def of(self, views: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """views: (n,) i64, how many each window has beside its own picture -> which is shown and which is to be drawn,
        (n,) i64 each: 0 for its own picture, or else the view's number from 1 on. Never the same one, but where a
        window has no views."""
        shown = np.where(self.swapped.numpy() & (views > 0), 1 + (self.shown.numpy() * views).astype(np.int64), 0)
        wanted = (self.wanted.numpy() * views).astype(np.int64)
        wanted += wanted >= shown  # one of the others
        return shown, np.where(views > 0, wanted, 0)


@dataclass(frozen=True)
class Views:
    """What further cameras saw at R moments, W pictures in all. Those of a moment lie after each other, because
    episodes have different ones, or none. They are of the size of `Layout.view_camera`, whose place they take."""

    images: np.ndarray  # (W, h, w, 3) u8
    pose: np.ndarray  # (W, 8) f32, `POSE`
    first: np.ndarray  # (R,) i64, the row of the moment's first view
    count: np.ndarray  # (R,) i64, of the moment; the same throughout an episode

    @classmethod
    def of(cls, episode: Episode, layout: Layout, kept: bool = True) -> Views:
        """Of an episode of R moments, those that fit; none where they are not to be kept."""
        names = view_names(episode, layout) if kept else []
        images, pose = np.zeros((0, *layout.view_size, 3), np.uint8), np.zeros((0, POSE_IDS), np.float32)
        if names:
            images, pose = (
                np.stack([each[name] for name in names], axis=1).reshape(-1, *like.shape[1:])
                for each, like in ((episode.views, images), (episode.poses, pose))
            )
        moments = np.arange(len(episode) + 1)
        return cls(images, pose, len(names) * moments, np.full_like(moments, len(names)))

    @classmethod
    def none(cls, layout: Layout, rows: int) -> Views:
        """Of R moments without any, in no memory."""
        images, pose = np.zeros((0, *layout.view_size, 3), np.uint8), np.zeros((0, POSE_IDS), np.float32)
        return cls(images, pose, *np.broadcast_to(np.int64(0), (2, rows)))

    @classmethod
    def join(cls, parts: Sequence[Views]) -> Views:
        """Lay them end to end."""
        starts = np.cumsum([0] + [len(part.images) for part in parts[:-1]])
        first = np.concatenate([part.first + start for part, start in zip(parts, starts, strict=True)])
        images, pose = np.concatenate([part.images for part in parts]), np.concatenate([part.pose for part in parts])
        return cls(images, pose, first, np.concatenate([part.count for part in parts]))

    def seen(
        self, rows: np.ndarray, which: np.ndarray, images: np.ndarray, poses: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """What is seen at moments `rows` (B, n) from the place that `which` (B,) says, `Choice.of`.

        images (B, n, h, w, 3) u8, poses (B, n, 8) f32: of the camera itself -> the same, of that place.
        """
        images, poses, elsewhere = images.copy(), poses.copy(), which > 0
        found = self.first[rows[elsewhere]] + which[elsewhere, None] - 1
        images[elsewhere], poses[elsewhere] = self.images[found], self.pose[found]
        return images, poses


def view_names(episode: Episode, layout: Layout) -> list[str]:
    """The views of an episode that can take the place of `layout.view_camera`: of its size, with a pose that is known
    throughout."""
    return [
        name for name, view in episode.views.items()
        if view.shape[1:3] == layout.view_size and np.isfinite(episode.poses[name]).all()
    ]  # fmt: skip


def told_poses(episode: Episode, layout: Layout) -> np.ndarray:
    """(T + 1, Q) f32, the poses of the cameras that the model is told, NaN where the episode does not say."""
    unknown = np.full((len(episode) + 1, POSE_IDS), np.nan, np.float32)
    told = [episode.poses.get(pose.camera, unknown) for pose in layout.poses]
    return np.concatenate([unknown[:, :0], *told], axis=1)
