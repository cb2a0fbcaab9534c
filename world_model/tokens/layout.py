"""How an episode is written as one sequence of ids, and which ids each training window teaches.

    BOS instruction EOT                                                        padded to a fixed length
    then for each model step, one every M control steps:
      obs    [BOM main EOM] [BOW wrist EOW] [BOT state EOST]                   clean, causal
      chunk  [BOA action EOA]                                                  clean, causal: what was executed
      act    value, success, held, keypoints | action                          drafts, from MASK
      next   main wrist state | value, success, held, keypoints                drafts, from the current ids

The drafts are DiDA's noisy copies (Emu3.5): they stand at the positions of what they stand for, see all clean ids
before it and each other in both directions, and are seen by no clean id. `act` drafts read the expert's chunk and
what is believed now; `next` drafts read the next observation as an edit of this one, in one pass. Beliefs have no
clean copy, so nothing can lean on a value that would be missing at run time. A step sees the instruction, the step
before and itself, which is what is known at run time.

Every piece has a fixed place, so a sequence needs no mask and no padding but the instruction's, whose PAD ids are
ids like any other.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from envs.data.augmentation import Change
from envs.types import NUM_KEYPOINTS, STATE_DIM, Episode
from world_model.nn.transformer import Piece
from world_model.tokens.actions import ActionTokenizer
from world_model.tokens.images import MAIN_IDS, WRIST_IDS, FrameTokenizer
from world_model.tokens.text import TextTokenizer
from world_model.tokens.vocab import Block, Vocab

IMAGE_IDS = MAIN_IDS + WRIST_IDS  # the main view's ids, then the wrist's
KEYPOINT_IDS = NUM_KEYPOINTS * 3
FLAGS = 2  # success, held
CLEAN, ACT, NEXT = 0, 1, 2  # kinds of ids: two kinds of drafts

# Metres, radians, metres. Fixed, so that a state means the same id in every data set.
STATE_LOW = (-0.4, -0.4, 0.7, -1.0, -1.0, -1.0, 0.0)
STATE_HIGH = (0.4, 0.4, 1.4, 1.0, 1.0, 1.0, 0.09)

# Value ids are even in value ** (1 / VALUE_CURVE): fine near success, where each control step tells, coarse far off.
VALUE_CURVE = 0.3
# Smoothed targets spread "never" over the lowest ids, which all read as 0; they begin 300 control steps from success.
NEVER_IDS = 3


@dataclass(frozen=True)
class Layout:
    """Where everything stands. Lengths in ids, slots counted from the start of a model step.

    num_coefs: action ids without the gripper's. instruction: ids kept for `BOS text EOT` and its padding.
    """

    vocab: Vocab
    num_coefs: int = 14
    chunk_steps: int = 8  # M
    instruction: int = 24
    state_low: tuple[float, ...] = STATE_LOW
    state_high: tuple[float, ...] = STATE_HIGH

    # Slots of a clean model step, in order.
    @property
    def main(self) -> slice:
        return slice(1, 1 + MAIN_IDS)

    @property
    def wrist(self) -> slice:
        return slice(self.main.stop + 2, self.main.stop + 2 + WRIST_IDS)

    @property
    def state(self) -> slice:
        return slice(self.wrist.stop + 2, self.wrist.stop + 2 + STATE_DIM)

    @property
    def obs(self) -> int:
        """Length of the observation: 93."""
        return self.state.stop + 1

    @property
    def action(self) -> slice:
        return slice(self.obs + 1, self.obs + 1 + self.num_coefs + 1)

    @property
    def step(self) -> int:
        """Length of a clean model step: 110."""
        return self.action.stop + 1

    @property
    def chunk(self) -> int:
        """Length of the action segment with its marks: 17."""
        return self.step - self.obs

    # Drafts. Beliefs have slots after the clean ones and stand at the position of the observation's last mark.
    @property
    def beliefs(self) -> int:
        return 1 + FLAGS + KEYPOINT_IDS

    @property
    def act(self) -> int:
        return self.beliefs + self.num_coefs + 1

    @property
    def next(self) -> int:
        return IMAGE_IDS + STATE_DIM + self.beliefs

    @property
    def num_slots(self) -> int:
        return self.step + self.beliefs

    @cached_property
    def flag(self) -> Block:
        """NO and YES as a block of two."""
        marks = self.vocab.marks
        return Block("flag", marks.no, 2, marks.yes - marks.no)

    @cached_property
    def obs_slots(self) -> Tensor:
        """Slots of the ids of an observation without its marks, (87,): main, wrist, state."""
        return torch.cat([torch.arange(s.start, s.stop) for s in (self.main, self.wrist, self.state)])

    @cached_property
    def act_slots(self) -> Tensor:
        beliefs = torch.arange(self.step, self.num_slots)
        return torch.cat([beliefs, torch.arange(self.action.start, self.action.stop)])

    @cached_property
    def next_slots(self) -> Tensor:
        return torch.cat([self.obs_slots, torch.arange(self.step, self.num_slots)])

    def places(self, slots: Tensor, step: int) -> Tensor:
        """Rotary positions of slots of model step `step`."""
        inside = torch.where(slots < self.step, slots, self.obs - 1)
        return self.instruction + step * self.step + inside

    # Ids from local numbers. Leading dimensions are free.
    def instruction_ids(self, text: list[int] | tuple[int, ...]) -> Tensor:
        """Ids of a text -> (instruction,) i64: `BOS text EOT`, padded; a text too long loses its end."""
        marks = self.vocab.marks
        ids = [marks.bos, *list(text)[: self.instruction - 2], marks.eot]
        return torch.tensor(ids + [marks.pad] * (self.instruction - len(ids)))

    def obs_ids(self, image: Tensor, state: Tensor) -> Tensor:
        """image (..., 80) local, state (..., P) in bins -> (..., 93) ids."""
        vocab, marks = self.vocab, self.vocab.marks
        vision = vocab.vision.encode(image)
        return self._segments(
            (marks.bom, vision[..., :MAIN_IDS], marks.eom),
            (marks.bow, vision[..., MAIN_IDS:], marks.eow),
            (marks.bot, self.state_ids(state), marks.eost),
        )

    def chunk_ids(self, action: Tensor) -> Tensor:
        """action (..., Ka) local -> (..., 17) ids."""
        vocab, marks = self.vocab, self.vocab.marks
        ids = torch.cat([vocab.action.encode(action[..., :-1]), vocab.gripper.encode(action[..., -1:])], dim=-1)
        return self._segments((marks.boa, ids, marks.eoa))

    def act_ids(self, *lead: int) -> Tensor:
        """(*lead, act) ids: nothing is known yet."""
        return torch.full((*lead, self.act), self.vocab.marks.mask)

    def next_ids(self, image: Tensor, state: Tensor) -> Tensor:
        """The current observation, image (..., 80) local and state (..., P) in bins -> (..., next) ids."""
        masks = image.new_full((*image.shape[:-1], self.beliefs), self.vocab.marks.mask)
        return torch.cat([self.vocab.vision.encode(image), self.state_ids(state), masks], dim=-1)

    def state_ids(self, state: Tensor) -> Tensor:
        block = self.vocab.state
        return block.encode(state.round().clamp(0, block.size - 1).long())

    # Numbers that have an order live in float bins; ids are the rounded ones.
    def to_bins(self, state: Tensor) -> Tensor:
        """(..., P) f32 in m and rad -> bins."""
        low, high = state.new_tensor(self.state_low), state.new_tensor(self.state_high)
        return (state - low) / (high - low) * (self.vocab.state.size - 1)

    def from_bins(self, bins: Tensor) -> Tensor:
        low, high = bins.new_tensor(self.state_low), bins.new_tensor(self.state_high)
        return low + bins / (self.vocab.state.size - 1) * (high - low)

    def points_to_bins(self, points: Tensor) -> Tensor:
        """(..., 4, 3) m -> (..., 12) bins; NaN stays NaN."""
        low, high = points.new_tensor(self.state_low[:3]), points.new_tensor(self.state_high[:3])
        return ((points - low) / (high - low) * (self.vocab.state.size - 1)).flatten(-2)

    def points_from_bins(self, bins: Tensor) -> Tensor:
        low, high = bins.new_tensor(self.state_low[:3]), bins.new_tensor(self.state_high[:3])
        return low + bins.unflatten(-1, (-1, 3)) / (self.vocab.state.size - 1) * (high - low)

    def value_to_bins(self, value: Tensor) -> Tensor:
        """(...) in [0, 1] -> bins; NaN stays NaN."""
        return value ** (1 / VALUE_CURVE) * (self.vocab.value.size - 1)

    @cached_property
    def worth(self) -> Tensor:
        """(64,) f32, the value that each id stands for."""
        worth = torch.linspace(0, 1, self.vocab.value.size) ** VALUE_CURVE
        worth[:NEVER_IDS] = 0
        return worth

    @staticmethod
    def _segments(*segments: tuple[int, Tensor, int]) -> Tensor:
        """Each (mark, ids, mark), joined."""
        parts = []
        for begin, ids, end in segments:
            parts += [ids.new_full((*ids.shape[:-1], 1), begin), ids, ids.new_full((*ids.shape[:-1], 1), end)]
        return torch.cat(parts, dim=-1)


@dataclass(frozen=True)
class Sequence:
    """The static frame of S model steps with their drafts: what stands where and sees what. L ids in all."""

    layout: Layout
    steps: int

    @cached_property
    def pieces(self) -> tuple[Piece, ...]:
        """instruction, then obs, chunk, act, next of every step."""
        at, pieces = self.layout, [Piece(self.layout.instruction)]
        for s in range(self.steps):
            obs = 1 + 4 * s
            before = (0, obs - 4, obs - 3) if s else (0,)
            pieces += [
                Piece(at.obs, before),
                Piece(at.chunk, (*before, obs)),
                Piece(at.act, (*before, obs), causal=False),
                Piece(at.next, (*before, obs, obs + 1), causal=False),
            ]
        return tuple(pieces)

    @cached_property
    def length(self) -> int:
        return sum(piece.length for piece in self.pieces)

    @property
    def stride(self) -> int:
        """Ids of one model step with its drafts."""
        return self.layout.step + self.layout.act + self.layout.next

    @cached_property
    def slots(self) -> Tensor:
        """(L,) slot within the model step; -1 in the instruction, which has none."""
        at = self.layout
        one = torch.cat([torch.arange(at.step), at.act_slots, at.next_slots])
        return torch.cat([torch.full((at.instruction,), -1), one.repeat(self.steps)])

    @cached_property
    def kinds(self) -> Tensor:
        """(L,) CLEAN, ACT or NEXT."""
        at = self.layout
        one = torch.tensor([CLEAN] * at.step + [ACT] * at.act + [NEXT] * at.next)
        return torch.cat([torch.full((at.instruction,), CLEAN), one.repeat(self.steps)])

    def positions(self, first: int = 0) -> Tensor:
        """(L,) rotary positions when the window's first step is the episode's model step number `first`."""
        at, parts = self.layout, [torch.arange(self.layout.instruction)]
        for s in range(first, first + self.steps):
            clean = torch.arange(at.step)
            parts += [at.places(clean, s), at.places(at.act_slots, s), at.places(at.next_slots, s + 1)]
        return torch.cat(parts)

    def where(self, start: int, count: int) -> Tensor:
        """(S, count) indices into the sequence of `count` ids from place `start` of every model step."""
        first = self.layout.instruction + torch.arange(self.steps) * self.stride + start
        return first[:, None] + torch.arange(count)

    def ids(self, window: Window) -> Tensor:
        """(B, L) i64."""
        at, (batch, steps) = self.layout, window.action.shape[:2]
        if steps != self.steps:
            raise ValueError(f"a sequence of {self.steps} steps cannot hold a window of {steps}")
        image, state = window.image[:, :steps], window.state[:, :steps]  # (B, S, 80), (B, S, P)
        drafts = at.act_ids(batch, steps).to(image.device), at.next_ids(image, state)
        each = torch.cat([at.obs_ids(image, state), at.chunk_ids(window.action), *drafts], dim=-1)  # (B, S, stride)
        return torch.cat([window.instruction, each.flatten(1)], dim=1)


@dataclass(frozen=True)
class Window:
    """S model steps as they happened, and the observation after the last, in local numbers. Batched: (B, ...).

    Weights say what is real: `here`, that an observation lies within its episode; `arrives`, that the observation
    after a chunk is known; `advised`, that the expert was asked throughout a chunk.
    """

    instruction: Tensor  # (B, I) i64, ids
    image: Tensor  # (B, S + 1, 80) i64, main view then wrist
    state: Tensor  # (B, S + 1, P) f32, bins
    value: Tensor  # (B, S + 1) f32 in [0, 1], NaN where unknown
    flags: Tensor  # (B, S + 1, 2) i64, success and held
    keypoints: Tensor  # (B, S + 1, 12) f32, bins, NaN where unknown
    action: Tensor  # (B, S, Ka) i64, executed
    expert: Tensor  # (B, S, Ka) i64
    here: Tensor  # (B, S + 1) f32
    arrives: Tensor  # (B, S) f32
    advised: Tensor  # (B, S) f32

    def to(self, device: torch.device) -> Window:
        return replace(self, **{f.name: getattr(self, f.name).to(device) for f in fields(self)})


@dataclass(frozen=True)
class Tracks:
    """Episodes laid end to end, in memory (15 KiB a control step), so that a training step only gathers. R
    observations in all. Frames become ids when a window is cut, so that each time they can be others."""

    layout: Layout
    frames: FrameTokenizer
    main: np.ndarray  # (R, 64, 64, 3) u8
    wrist: np.ndarray  # (R, 32, 32, 3) u8
    state: np.ndarray  # (R, P) f32, m and rad
    value: np.ndarray  # (R,) f32, NaN where unknown
    flags: np.ndarray  # (R, 2) i8
    keypoints: np.ndarray  # (R, 4, 3) f32, m, NaN where unknown
    action: np.ndarray  # (R, Ka) i16, the chunk executed from here on
    expert: np.ndarray  # (R, Ka) i16, the chunk the expert advises from here on
    advised: np.ndarray  # (R,) bool
    last: np.ndarray  # (R,) i64, the row of the episode's last observation
    settled: np.ndarray  # (R,) bool, the episode ends in success: at rest, so that padding it with rest is true
    instruction: np.ndarray  # (R, I) i32

    def __len__(self) -> int:
        return len(self.last)

    @classmethod
    def of(
        cls, episode: Episode, layout: Layout, frames: FrameTokenizer, actions: ActionTokenizer, text: TextTokenizer,
        discount: float = 0.997,
    ) -> Tracks:  # fmt: skip
        """One episode."""
        steps, chunk = len(episode), layout.chunk_steps
        if actions.num_coefs != layout.num_coefs or actions.chunk != chunk:
            raise ValueError(
                f"the layout has {layout.num_coefs} coefficients of {chunk} steps, "
                f"the action tokenizer {actions.num_coefs} of {actions.chunk}"
            )
        executed = chunks(episode.action, chunk)  # (T + 1, M, A)
        advice = chunks(episode.expert, chunk)
        advised = np.isfinite(advice).all((1, 2)) & (np.arange(steps + 1) < steps)
        instruction = layout.instruction_ids(text.encode(episode.instruction))
        return cls(
            layout=layout,
            frames=frames,
            main=episode.main,
            wrist=episode.wrist,
            state=episode.state.astype(np.float32),
            value=value_to_come(episode.success, discount, episode.detour),
            flags=np.stack([episode.success, episode.held >= 0], axis=1).astype(np.int8),
            keypoints=episode.keypoints.astype(np.float32),
            action=actions.encode(torch.from_numpy(executed)).numpy().astype(np.int16),
            expert=actions.encode(torch.from_numpy(np.nan_to_num(advice))).numpy().astype(np.int16),
            advised=advised,
            last=np.full(steps + 1, steps),
            settled=np.full(steps + 1, bool(episode.success[-1])),
            instruction=np.repeat(instruction.numpy()[None].astype(np.int32), steps + 1, axis=0),
        )

    @classmethod
    def join(cls, tracks: list[Tracks]) -> Tracks:
        """Lay them end to end."""
        if not tracks:
            raise ValueError("there are no episodes to train on")
        starts = np.cumsum([0] + [len(t) for t in tracks[:-1]])
        moved = [replace(t, last=t.last + start) for t, start in zip(tracks, starts, strict=True)]
        names = [f.name for f in fields(cls) if f.name not in ("layout", "frames")]
        joined = {name: np.concatenate([getattr(t, name) for t in moved]) for name in names}
        return cls(tracks[0].layout, tracks[0].frames, **joined)

    def window(self, starts: np.ndarray, steps: int, change: Change | None = None) -> Window:
        """The windows of `steps` model steps from rows `starts` (B,); what lies beyond an episode's end weighs 0.

        change: to other colours and places, one for each window.
        """
        chunk, last = self.layout.chunk_steps, self.last[starts][:, None]
        rows = starts[:, None] + chunk * np.arange(steps + 1)  # (B, S + 1)
        at = np.minimum(rows, last)
        # A chunk cut short by success is followed by rest, so what it leads to is known all the same.
        arrives = (rows[:, 1:] <= last) | ((rows[:, :-1] < last) & self.settled[at[:, :-1]])
        wide = torch.int64

        def gather(array: np.ndarray, index: np.ndarray, dtype: torch.dtype) -> Tensor:
            return torch.from_numpy(array[index]).to(dtype)

        views = [gather(array, at, torch.uint8).to(self.frames.device) for array in (self.main, self.wrist)]
        state, keypoints = (gather(array, at, torch.float32) for array in (self.state, self.keypoints))
        if change is not None:
            views = [changed(view) for changed, view in zip((change.main, change.wrist), views, strict=True)]
            state, keypoints = change.points(state), change.points(keypoints)
        return Window(
            instruction=gather(self.instruction, starts, wide),
            image=torch.cat([self.frames.encode(view) for view in views], dim=-1),
            state=self.layout.to_bins(state),
            value=gather(self.value, at, torch.float32),
            flags=gather(self.flags, at, wide),
            keypoints=self.layout.points_to_bins(keypoints),
            action=gather(self.action, at[:, :-1], wide),
            expert=gather(self.expert, at[:, :-1], wide),
            here=torch.from_numpy((rows <= last).astype(np.float32)),
            arrives=torch.from_numpy(arrives.astype(np.float32)),
            advised=torch.from_numpy((self.advised[at] & (rows < last))[:, :-1].astype(np.float32)),
        )


def chunks(action: np.ndarray, length: int) -> np.ndarray:
    """The chunk that begins at each step: (T, A) -> (T + 1, length, A). After the end the arm rests and the gripper
    keeps its command."""
    rest = np.zeros((length, action.shape[1]), np.float32)
    rest[:, -1] = action[-1, -1] if len(action) else -1.0
    padded = np.concatenate([action.astype(np.float32), rest])
    return padded[np.arange(len(action) + 1)[:, None] + np.arange(length)]


def value_to_come(success: np.ndarray, discount: float, detour: int = 0) -> np.ndarray:
    """discount ** (control steps until the next success), 0 if none follows. success (T + 1,) -> (T + 1,) f32.

    NaN before the end of the first `detour` control steps, which were not taken to succeed.
    """
    value, following = np.zeros(len(success), np.float32), 0.0
    for t in reversed(range(len(success))):
        following = 1.0 if success[t] else discount * following
        value[t] = following
    value[:detour] = np.nan
    return value
