"""Episodes as training sees them: laid end to end in memory or on disk, cut into windows of some model steps."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from envs.data.augmentation import Change
from envs.types import HELD_UNKNOWN, Episode, Spec
from world_model.tokens.actions import ActionTokenizer, scale_codes
from world_model.tokens.images import ImageTokenizer
from world_model.tokens.layout import Layout
from world_model.tokens.poses import POSE_IDS
from world_model.tokens.text import TextTokenizer
from world_model.training.copies import Copies, lay_on_disk, release
from world_model.training.viewpoints import VIEWED_STEPS, Choice, Views, told_poses

Index = np.ndarray | tuple[np.ndarray, np.ndarray | int]
PART = 1 << 16  # rows that are looked at together, where all are looked at
PICTURES = ("layout", "frames", "images", "views", "copies")  # the fields that are not one array with a line a row
UNKNOWN = -1  # in place of a flag that nobody knows
WIDER = 0.1  # of what was seen, on each side of a fitted range


@dataclass(frozen=True)
class Batch:
    """S model steps as they happened, and the observation after the last, in local numbers. Batched: (B, ...).

    Weights say what is real: `valid`, that an observation lies within its episode; `next_valid`, that the observation
    after a chunk is known; `has_expert`, that the expert was asked throughout a chunk; `view_valid`, that a view from
    elsewhere is to be drawn. V: of how many of the first model steps views are; 0 in most batches.
    """

    instruction: Tensor  # (B, I) i64, ids
    image: Tensor  # (B, S + 1, K) i64, all cameras
    state: Tensor  # (B, S + 1, P) f32, bins
    pose: Tensor  # (B, S + 1, Q) f32, bins, NaN where unknown
    value: Tensor  # (B, S + 1) f32 in [0, 1], NaN where unknown
    flags: Tensor  # (B, S + 1, 2) i64, success and held, UNKNOWN where nobody knows
    keypoints: Tensor  # (B, S + 1, 3 n) f32, bins, NaN where unknown
    stride: Tensor  # (B, S) i64, control steps from one observation to the next
    action: Tensor  # (B, S, Ka) i64, what was executed in these control steps
    expert: Tensor  # (B, S, Ka) i64, the whole chunk that is advised
    expert_action: Tensor  # (B, S, Ka) i64, its first control steps, as an executed chunk of that stride is written
    valid: Tensor  # (B, S + 1) f32
    next_valid: Tensor  # (B, S) f32
    has_expert: Tensor  # (B, S) f32
    view: Tensor  # (B, V, Kv) i64, one camera
    view_pose: Tensor  # (B, V, 8) f32, bins
    view_valid: Tensor  # (B, V) f32

    def to(self, device: torch.device) -> Batch:
        return replace(self, **{f.name: getattr(self, f.name).to(device) for f in fields(self)})


@dataclass(frozen=True)
class EpisodeDataset:
    """Episodes laid end to end, so that a training step only gathers. R observations in all.

    They are in memory (15 KiB a control step with images of 64 and 32 pixels), and images become ids when a batch is
    cut, so that each time they can be others. Or they have `copies`, whose images are ids already, and lie on disk.
    """

    layout: Layout
    frames: ImageTokenizer
    images: dict[str, np.ndarray]  # camera -> (R, h, w, 3) u8
    state: np.ndarray  # (R, P) f32, the robot's units
    pose: np.ndarray  # (R, Q) f32, `POSE` of each camera that the model is told, NaN where unknown
    value: np.ndarray  # (R,) f32, NaN where unknown
    flags: np.ndarray  # (R, 2) i8, UNKNOWN where nobody knows
    keypoints: np.ndarray  # (R, n, 3) f32, m, NaN where unknown
    action: np.ndarray  # (R, V, Ka) i16, what is executed from here on in each of the V strides of the layout
    expert: np.ndarray  # (R, V, Ka) i16, what the expert advises from here on
    has_expert: np.ndarray  # (R,) bool
    last: np.ndarray  # (R,) i64, the row of the episode's last observation
    absorbing: np.ndarray  # (R,) bool, the episode ends in success: at rest, so that padding it with rest is true
    instruction: np.ndarray  # (R, I) i32
    views: Views  # of the R moments
    copies: Copies | None = None  # in place of images

    def __len__(self) -> int:
        return len(self.last)

    @classmethod
    def of(
        cls, episode: Episode, layout: Layout, frames: ImageTokenizer, actions: ActionTokenizer, text: TextTokenizer,
        discount: float = 0.997, with_views: bool = False,
    ) -> EpisodeDataset:  # fmt: skip
        """One episode; its views take as much memory as its images. ValueError where it is of another robot than the
        layout."""
        layout.spec.require(episode.spec, "the model", f"the episode of seed {episode.seed}")
        steps, chunk = len(episode), layout.chunk_steps
        if actions.coefs != layout.coefs or actions.chunk != chunk:
            raise ValueError(
                f"the layout has {layout.coefs} coefficients of {chunk} steps, "
                f"the action tokenizer {actions.coefs} of {actions.chunk}"
            )
        executed = chunks(episode.action, chunk, episode.spec)  # (T + 1, M, A)
        advice = advised_chunks(episode.expert, chunk, episode.spec)
        has_expert = np.isfinite(advice).all((1, 2)) & (np.arange(steps + 1) < steps)
        instruction = layout.instruction_ids(text.encode(episode.instruction))
        held = np.where(episode.held == HELD_UNKNOWN, UNKNOWN, episode.held >= 0)
        return cls(
            layout=layout,
            frames=frames,
            images=episode.images,
            state=episode.state.astype(np.float32),
            pose=told_poses(episode, layout),
            value=value_to_come(episode.success, discount, episode.off_task_steps),
            flags=np.stack([episode.success, held], axis=1).astype(np.int8),
            keypoints=episode.keypoints.astype(np.float32),
            action=_codes(executed, actions, layout.strides),
            expert=_codes(np.nan_to_num(advice), actions, layout.strides),
            has_expert=has_expert,
            last=np.full(steps + 1, steps),
            absorbing=np.full(steps + 1, bool(episode.success[-1])),
            instruction=np.repeat(instruction.numpy()[None].astype(np.int32), steps + 1, axis=0),
            views=Views.of(episode, layout, with_views),
        )

    @classmethod
    def join(cls, parts: Sequence[EpisodeDataset]) -> EpisodeDataset:
        """Lay them end to end."""
        if not parts:
            raise ValueError("there are no episodes to lay end to end")
        moved = list(_end_to_end(parts))
        names = [f.name for f in fields(cls) if f.name not in PICTURES]
        joined = {name: np.concatenate([getattr(part, name) for part in moved]) for name in names}
        images = {name: np.concatenate([part.images[name] for part in moved]) for name in parts[0].images}
        views = Views.join([part.views for part in parts])
        return cls(parts[0].layout, parts[0].frames, images, views=views, **joined)

    @classmethod
    def on_disk(
        cls, parts: Iterable[EpisodeDataset], layout: Layout, frames: ImageTokenizer, copies: Copies, folder: Path
    ) -> EpisodeDataset:  # fmt: skip
        """Lay them end to end in files of `folder` that nobody else sees, one after the other. Of their images there
        are `copies`. OSError where the disk is full."""
        names = [f.name for f in fields(cls) if f.name not in PICTURES]
        laid = lay_on_disk(({name: getattr(part, name) for name in names} for part in _end_to_end(parts)), folder)
        return cls(layout, frames, {}, views=Views.none(layout, len(laid["last"])), copies=copies, **laid)

    def batch(
        self, starts: np.ndarray, steps: int, change: Change | None = None, strides: np.ndarray | None = None,
        choice: Choice | None = None, share: slice = slice(None),
    ) -> Batch:  # fmt: skip
        """The windows of `steps` model steps from rows `starts` (B,); what lies beyond an episode's end weighs 0.

        change: to other colours and places, one for each window. strides: (B, S) control steps that each model step
        covers, M where it is None; ValueError for one that the layout has not. choice: of what is told, seen and drawn
        of cameras in each window; without it all that is known is told, and nothing is drawn. share: the windows that
        are cut, of a batch that several processes share: what is in it is told by the whole.

        Where there are copies, row r of copy k is k R + r, and a change is a ValueError, for each copy has its own.
        """
        copies = self.copies
        if copies is not None:
            if change is not None:
                raise ValueError("images that are ids already cannot be changed: each copy has its own change")
            copy, starts = np.divmod(starts, len(self))
        layout, viewed = self.layout, self.views.count[starts].any()
        strides = np.full((len(starts), steps), layout.chunk_steps) if strides is None else strides
        layout.require_strides(np.unique(strides).tolist())
        starts, strides = starts[share], strides[share]
        change, choice = (None if each is None else each[share] for each in (change, choice))
        if copies is not None:
            copy = copy[share]
            change = copies.change(starts, copy)
        last = self.last[starts][:, None]
        which = np.searchsorted(layout.strides, strides)  # (B, S)
        rows = starts[:, None] + np.pad(strides.cumsum(1), ((0, 0), (1, 0)))  # (B, S + 1)
        at = np.minimum(rows, last)
        # A chunk cut short by success is followed by rest, so what it leads to is known all the same.
        next_valid = (rows[:, 1:] <= last) | ((rows[:, :-1] < last) & self.absorbing[at[:, :-1]])
        wide = torch.int64

        def gather(array: np.ndarray, index: Index, dtype: torch.dtype) -> Tensor:
            return torch.from_numpy(array[index]).to(dtype)

        images, pose = {name: array[at] for name, array in self.images.items()}, self.pose[at]
        told = layout.pose_slices

        def encode(name: str, recorded: np.ndarray, poses: np.ndarray | None) -> Tensor:
            seen = torch.from_numpy(recorded).to(self.frames.device)
            return self.frames.encode(seen if change is None else change.images(name, seen, poses))

        views, drawn = self.views.count[starts], 0
        view, view_pose = torch.zeros(len(starts), 0, 0, dtype=wide), np.zeros((len(starts), 0, POSE_IDS), np.float32)
        if choice is not None and viewed:
            place, (shown, wanted) = layout.view_camera, choice.of(views)
            own = images[place], pose[..., told[place]].copy()
            images[place], pose[..., told[place]] = self.views.seen(at, shown, *own)
            if choice.draws:
                drawn = min(VIEWED_STEPS, steps)
                recorded, view_pose = self.views.seen(at[:, :drawn], wanted, *(each[:, :drawn] for each in own))
                view = encode(place, recorded, view_pose)
        view_valid = (views > 0)[:, None] & (rows <= last)[:, :drawn] & np.isfinite(view_pose).all(-1)
        ids = [encode(name, array, pose[..., told[name]] if name in told else None) for name, array in images.items()]
        image = torch.cat(ids, dim=-1) if copies is None else copies.ids(at, copy)
        pose, view_pose = layout.pose_to_bins(torch.from_numpy(pose)), torch.from_numpy(view_pose)
        if choice is not None:
            pose = pose.masked_fill(choice.hidden[:, None, None], torch.nan)
        state, keypoints = (gather(array, at, torch.float32) for array in (self.state, self.keypoints))
        executed = gather(self.action, (at[:, :-1], which), wide)
        advised, advised_first = (gather(self.expert, (at[:, :-1], each), wide) for each in (-1, which))
        if change is not None:
            state, keypoints = change.state(state, layout.spec.positions), change.points(keypoints)
            if (reach := change.reach(layout.spec)) is not None:
                executed, advised, advised_first = (
                    scale_codes(codes, reach, layout.spec, layout.coefs) for codes in (executed, advised, advised_first)
                )
        batch = Batch(
            instruction=gather(self.instruction, starts, wide),
            image=image,
            state=layout.to_bins(state),
            pose=pose,
            value=gather(self.value, at, torch.float32),
            flags=gather(self.flags, at, wide),
            keypoints=layout.points_to_bins(keypoints),
            stride=torch.from_numpy(strides).to(wide),
            action=executed,
            expert=advised,
            expert_action=advised_first,
            valid=torch.from_numpy((rows <= last).astype(np.float32)),
            next_valid=torch.from_numpy(next_valid.astype(np.float32)),
            has_expert=torch.from_numpy((self.has_expert[at] & (rows < last))[:, :-1].astype(np.float32)),
            view=view,
            view_pose=layout.poses[0].to_bins(view_pose) if drawn else view_pose,
            view_valid=torch.from_numpy(view_valid.astype(np.float32)),
        )
        release(*(getattr(self, f.name) for f in fields(self) if f.name not in PICTURES))
        return batch

    def longest(self) -> int:
        """Control steps of the longest episode."""
        return max(int((self.last[part] - np.arange(part.start, part.stop)).max()) for part in self._parts())

    def outside(self) -> dict[str, float]:
        """Share of the values of states and poses that leave their range, by name; only what leaves it."""
        found: Counter[str] = Counter()
        for part in self._parts():
            found.update(self.layout.spec.outside(self.state[part]))
            for told in self.layout.poses:
                found.update(told.outside(self.pose[part, self.layout.pose_slices[told.camera]].copy()))
        return {name: count / len(self) for name, count in found.items()}

    def _parts(self) -> Iterator[slice]:
        """All rows, some at a time: those on disk may be more than memory holds."""
        for start in range(0, len(self), PART):
            yield slice(start, min(start + PART, len(self)))
            release(self.last, self.state, self.pose)


def _end_to_end(parts: Iterable[EpisodeDataset]) -> Iterator[EpisodeDataset]:
    """Their rows as they are when they lie after each other."""
    start = 0
    for part in parts:
        yield replace(part, last=part.last + start)
        start += len(part)


def chunks(action: np.ndarray, length: int, spec: Spec) -> np.ndarray:
    """The chunk of what is executed from each step on: (T, A) -> (T + 1, length, A). After the end the robot rests and
    its grippers keep their last command."""
    rest = spec.rest.copy()
    if len(action):
        rest[list(spec.grippers)] = action[-1, list(spec.grippers)]
    return _windows(action, rest, length)


def advised_chunks(expert: np.ndarray, length: int, spec: Spec) -> np.ndarray:
    """The chunk of what the expert advises from each step on: (T, A) -> (T + 1, length, A). After the end the last
    advice stands. It must not be rest: who cannot see yet whether the task is done would learn to wait there, and where
    it is not done, waits for ever."""
    return _windows(expert, expert[-1] if len(expert) else spec.rest, length)


def _windows(steps: np.ndarray, after: np.ndarray, length: int) -> np.ndarray:
    padded = np.concatenate([steps.astype(np.float32), np.repeat(after[None].astype(np.float32), length, axis=0)])
    return padded[np.arange(len(steps) + 1)[:, None] + np.arange(length)]


def _codes(chunks: np.ndarray, actions: ActionTokenizer, strides: tuple[int, ...]) -> np.ndarray:
    """(R, M, A) -> (R, V, Ka) i16, each chunk's first control steps of each stride."""
    codes = [actions.encode(torch.from_numpy(chunks), steps=n) for n in strides]
    return torch.stack(codes, dim=1).numpy().astype(np.int16)


def stride_shares(strides: tuple[int, ...], weights: Sequence[float] | None = None) -> Tensor:
    """How often each of a layout's strides is drawn, (V,) f32, adding up to 1. weights: in the order of the strides;
    None draws M half of the time, for that is how actions are advised and far futures imagined, and the others alike.

    ValueError where there are not as many.
    """
    if weights is None:
        others = len(strides) - 1
        weights = [*[0.5 / others] * others, 0.5] if others else [1.0]
    if len(weights) != len(strides) or min(weights) < 0 or not 0 < sum(weights) < math.inf:
        raise ValueError(
            f"`stride_weights` must be a number of 0 or more for each of the strides {', '.join(map(str, strides))} "
            f"(the whole chunk is always one), not all 0, got {list(weights)}"
        )
    return torch.tensor(weights) / sum(weights)


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


def common_spec(specs: Sequence[tuple[Spec, str]]) -> Spec:
    """The one robot that all of these are of, each with the name of what it belongs to. A range that one leaves open
    is another's. ValueError that names what differs."""
    (common, first), *others = specs
    for spec, name in others:
        common.require(spec, first, name)
        common = common.with_ranges(*([getattr(part, end) for part in spec.state] for end in ("low", "high")))
    return common


def fit_ranges(spec: Spec, states: Iterable[np.ndarray]) -> Spec:
    """The spec with a range for every state dimension: where it leaves one open, what is seen in states (R, P), wider
    by a tenth on each side and never empty."""
    # Where one end is known, what is seen begins or ends there at the least, so that the other end lies beyond it.
    known = [np.where(np.isfinite(ends), ends, np.nan).astype(np.float64) for ends in (spec.state_low, spec.state_high)]
    low, high = np.fmin(*known), np.fmax(*known)
    for state in states:
        flat = state.reshape(-1, len(spec.state))
        low, high = np.fmin.reduce(np.vstack([flat, low])), np.fmax.reduce(np.vstack([flat, high]))
    size = np.maximum(np.abs(low), np.abs(high))
    moves = high - low > 1e-6 * size
    margin = np.where(moves, WIDER * (high - low), np.maximum(1e-3 * size, 1e-3))
    return spec.with_ranges(low - margin, high + margin)
