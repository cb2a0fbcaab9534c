"""Episodes as training sees them: laid end to end in memory, cut into windows of some model steps."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from envs.types import Episode
from world_model.tokens.actions import ActionTokenizer
from world_model.tokens.images import ImageTokenizer
from world_model.tokens.layout import Layout
from world_model.tokens.text import TextTokenizer

if TYPE_CHECKING:
    from envs.data.augmentation import Change


@dataclass(frozen=True)
class Batch:
    """S model steps as they happened, and the observation after the last, in local numbers. Batched: (B, ...).

    Weights say what is real: `valid`, that an observation lies within its episode; `next_valid`, that the observation
    after a chunk is known; `has_expert`, that the expert was asked throughout a chunk.
    """

    instruction: Tensor  # (B, I) i64, ids
    image: Tensor  # (B, S + 1, K) i64, all cameras
    state: Tensor  # (B, S + 1, P) f32, bins
    value: Tensor  # (B, S + 1) f32 in [0, 1], NaN where unknown
    flags: Tensor  # (B, S + 1, 2) i64, success and held, -1 where unknown
    keypoints: Tensor  # (B, S + 1, 3 n) f32, bins, NaN where unknown
    action: Tensor  # (B, S, Ka) i64, executed
    expert: Tensor  # (B, S, Ka) i64
    valid: Tensor  # (B, S + 1) f32
    next_valid: Tensor  # (B, S) f32
    has_expert: Tensor  # (B, S) f32

    def to(self, device: torch.device) -> Batch:
        return replace(self, **{f.name: getattr(self, f.name).to(device) for f in fields(self)})


@dataclass(frozen=True)
class EpisodeDataset:
    """Episodes laid end to end, in memory (15 KiB a control step), so that a training step only gathers. R
    observations in all. Frames become ids when a window is cut, so that each time they can be others."""

    layout: Layout
    frames: ImageTokenizer
    images: dict[str, np.ndarray]  # camera -> (R, h, w, 3) u8
    state: np.ndarray  # (R, P) f32, m and rad
    value: np.ndarray  # (R,) f32, NaN where unknown
    flags: np.ndarray  # (R, 2) i8
    keypoints: np.ndarray  # (R, n, 3) f32, m, NaN where unknown
    action: np.ndarray  # (R, Ka) i16, the chunk executed from here on
    expert: np.ndarray  # (R, Ka) i16, the chunk the expert advises from here on
    has_expert: np.ndarray  # (R,) bool
    last: np.ndarray  # (R,) i64, the row of the episode's last observation
    absorbing: np.ndarray  # (R,) bool, the episode ends in success: at rest, so that padding it with rest is true
    instruction: np.ndarray  # (R, I) i32

    def __len__(self) -> int:
        return len(self.last)

    @classmethod
    def of(
        cls, episode: Episode, layout: Layout, frames: ImageTokenizer, actions: ActionTokenizer, text: TextTokenizer,
        discount: float = 0.997,
    ) -> EpisodeDataset:  # fmt: skip
        """One episode."""
        steps, chunk = len(episode), layout.chunk_steps
        if actions.num_coefs != layout.num_coefs or actions.chunk != chunk:
            raise ValueError(
                f"the layout has {layout.num_coefs} coefficients of {chunk} steps, "
                f"the action tokenizer {actions.num_coefs} of {actions.chunk}"
            )
        executed = chunks(episode.action, chunk)  # (T + 1, M, A)
        advice = chunks(episode.expert, chunk)
        has_expert = np.isfinite(advice).all((1, 2)) & (np.arange(steps + 1) < steps)
        instruction = layout.instruction_ids(text.encode(episode.instruction))
        return cls(
            layout=layout,
            frames=frames,
            images=episode.images,
            state=episode.state.astype(np.float32),
            value=value_to_come(episode.success, discount, episode.off_task_steps),
            flags=np.stack([episode.success, episode.held >= 0], axis=1).astype(np.int8),
            keypoints=episode.keypoints.astype(np.float32),
            action=actions.encode(torch.from_numpy(executed)).numpy().astype(np.int16),
            expert=actions.encode(torch.from_numpy(np.nan_to_num(advice))).numpy().astype(np.int16),
            has_expert=has_expert,
            last=np.full(steps + 1, steps),
            absorbing=np.full(steps + 1, bool(episode.success[-1])),
            instruction=np.repeat(instruction.numpy()[None].astype(np.int32), steps + 1, axis=0),
        )

    @classmethod
    def join(cls, tracks: list[EpisodeDataset]) -> EpisodeDataset:
        """Lay them end to end."""
        if not tracks:
            raise ValueError("there are no episodes to train on")
        starts = np.cumsum([0] + [len(t) for t in tracks[:-1]])
        moved = [replace(t, last=t.last + start) for t, start in zip(tracks, starts, strict=True)]
        names = [f.name for f in fields(cls) if f.name not in ("layout", "frames", "images")]
        joined = {name: np.concatenate([getattr(t, name) for t in moved]) for name in names}
        images = {name: np.concatenate([t.images[name] for t in moved]) for name in tracks[0].images}
        return cls(tracks[0].layout, tracks[0].frames, images, **joined)

    def window(self, starts: np.ndarray, steps: int, change: Change | None = None) -> Batch:
        """The windows of `steps` model steps from rows `starts` (B,); what lies beyond an episode's end weighs 0.

        change: to other colours and places, one for each window.
        """
        chunk, last = self.layout.chunk_steps, self.last[starts][:, None]
        rows = starts[:, None] + chunk * np.arange(steps + 1)  # (B, S + 1)
        at = np.minimum(rows, last)
        # A chunk cut short by success is followed by rest, so what it leads to is known all the same.
        arrives = (rows[:, 1:] <= last) | ((rows[:, :-1] < last) & self.absorbing[at[:, :-1]])
        wide = torch.int64

        def gather(array: np.ndarray, index: np.ndarray, dtype: torch.dtype) -> Tensor:
            return torch.from_numpy(array[index]).to(dtype)

        views = [gather(array, at, torch.uint8).to(self.frames.device) for array in self.images.values()]
        state, keypoints = (gather(array, at, torch.float32) for array in (self.state, self.keypoints))
        if change is not None:
            views = [changed(view) for changed, view in zip((change.main, change.wrist), views, strict=True)]
            state, keypoints = change.points(state), change.points(keypoints)
        return Batch(
            instruction=gather(self.instruction, starts, wide),
            image=torch.cat([self.frames.encode(view) for view in views], dim=-1),
            state=self.layout.to_bins(state),
            value=gather(self.value, at, torch.float32),
            flags=gather(self.flags, at, wide),
            keypoints=self.layout.points_to_bins(keypoints),
            action=gather(self.action, at[:, :-1], wide),
            expert=gather(self.expert, at[:, :-1], wide),
            valid=torch.from_numpy((rows <= last).astype(np.float32)),
            next_valid=torch.from_numpy(arrives.astype(np.float32)),
            has_expert=torch.from_numpy((self.has_expert[at] & (rows < last))[:, :-1].astype(np.float32)),
        )


def chunks(action: np.ndarray, length: int) -> np.ndarray:
    """The chunk that begins at each step: (T, A) -> (T + 1, length, A). After the end the arm rests and the gripper
    keeps its command."""
    rest = np.zeros((length, action.shape[1]), np.float32)
    rest[:, -1] = action[-1, -1] if len(action) else -1.0
    padded = np.concatenate([action.astype(np.float32), rest])
    return padded[np.arange(len(action) + 1)[:, None] + np.arange(length)]


def value_to_come(success: np.ndarray, discount: float, off_task_steps: int = 0) -> np.ndarray:
    """discount ** (control steps until the next success), 0 if none follows. success (T + 1,) -> (T + 1,) f32.

    NaN before the end of the first `off_task_steps` control steps, which were not taken to succeed.
    """
    value, following = np.zeros(len(success), np.float32), 0.0
    for t in reversed(range(len(success))):
        following = 1.0 if success[t] else discount * following
        value[t] = following
    value[:off_task_steps] = np.nan
    return value
