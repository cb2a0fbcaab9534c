"""A training window as one sequence: some model steps with their parallel copies, what stands where and what sees what.

`layout.py` says how one step is written.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from world_model.nn.transformer import Segment
from world_model.tokens.layout import ACT, CAUSAL, NEXT, VIEW, Layout

if TYPE_CHECKING:
    from world_model.training.dataset import Batch


@dataclass(frozen=True)
class Sequence:
    """The static frame of S model steps with their parallel copies: what stands where and sees what. L ids in all.

    views: of how many steps, from the first on, another view is drawn. With the first step alone and the second, which
    has history, both that a model meets when it acts are there. images: whether `next` has any.
    """

    layout: Layout
    steps: int
    views: int = 0
    images: bool = True

    @property
    def next(self) -> int:
        """Length of `next`."""
        return self.layout.next if self.images else self.layout.outcome

    @property
    def next_slots(self) -> Tensor:
        return self.layout.next_slots[-self.next :]

    @cached_property
    def segments(self) -> tuple[Segment, ...]:
        """instruction, then obs, chunk, act, next of every step, then views."""
        at, segments = self.layout, [Segment(self.layout.instruction)]
        for s in range(self.steps):
            obs, before = self._seen(s)
            segments += [
                Segment(at.obs, before),
                Segment(at.chunk, (*before, obs)),
                Segment(at.act, (*before, obs), causal=False),
                Segment(self.next, (*before, obs, obs + 1), causal=False),
            ]
        for obs, before in map(self._seen, range(self.views)):
            segments.append(Segment(at.view, (*before, obs), causal=False))
        return tuple(segments)

    @staticmethod
    def _seen(step: int) -> tuple[int, tuple[int, ...]]:
        """The segment of a step's observation, and the segments before it that the step sees."""
        obs = 1 + 4 * step
        return obs, (0, obs - 4, obs - 3) if step else (0,)

    @cached_property
    def length(self) -> int:
        return sum(segment.length for segment in self.segments)

    @property
    def step(self) -> int:
        """Ids of one model step with its parallel copies."""
        return self.layout.step + self.layout.act + self.next

    @cached_property
    def slots(self) -> Tensor:
        """(L,) slot within the model step; -1 in the instruction, which has none."""
        at = self.layout
        one = torch.cat([torch.arange(at.step), at.act_slots, self.next_slots])
        return torch.cat([
            torch.full((at.instruction,), -1), one.repeat(self.steps), at.view_slots.repeat(self.views)
        ])  # fmt: skip

    @cached_property
    def token_types(self) -> Tensor:
        """(L,) CAUSAL, ACT, NEXT or VIEW."""
        at = self.layout
        one = torch.tensor([CAUSAL] * at.step + [ACT] * at.act + [NEXT] * self.next)
        views = torch.full((self.views * at.view,), VIEW)
        return torch.cat([torch.full((at.instruction,), CAUSAL), one.repeat(self.steps), views])

    def position_ids(self, first: int = 0) -> Tensor:
        """(L,) rotary positions when the window's first step is the episode's model step number `first`."""
        at, parts = self.layout, [torch.arange(self.layout.instruction)]
        for s in range(first, first + self.steps):
            causal = torch.arange(at.step)
            parts += [at.position_ids(causal, s), at.position_ids(at.act_slots, s)]
            parts.append(at.position_ids(self.next_slots, s + 1))
        parts += [at.position_ids(at.view_slots, s) for s in range(first, first + self.views)]
        return torch.cat(parts)

    def where(self, start: int, count: int) -> Tensor:
        """(S, count) indices into the sequence of `count` ids from place `start` of every model step."""
        first = self.layout.instruction + torch.arange(self.steps) * self.step + start
        return first[:, None] + torch.arange(count)

    def ids(self, batch: Batch) -> Tensor:
        """(B, L) i64."""
        at, (rows, steps) = self.layout, batch.action.shape[:2]
        if steps != self.steps:
            raise ValueError(f"a sequence of {self.steps} steps cannot hold windows of {steps}")
        if batch.view.shape[1] != self.views:
            raise ValueError(f"a sequence of {self.views} views cannot hold {batch.view.shape[1]}")
        image, state = batch.image[:, :steps], batch.state[:, :steps]  # (B, S, K), (B, S, P)
        copies = at.act_ids(rows, steps, device=image.device), at.next_ids(image, state, self.images)
        obs, chunks = at.obs_ids(image, state, batch.pose[:, :steps]), at.chunk_ids(batch.action, batch.stride)
        each = torch.cat([obs, chunks, *copies], dim=-1)  # (B, S, step)
        views = (at.view_ids(batch.view_pose).flatten(1),) if self.views else ()
        return torch.cat([batch.instruction, each.flatten(1), *views], dim=1)
