"""Recorded episodes as pairs of what is seen and the chunk that is to follow."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from envs.data.augmentation import Change
from envs.types import Episode, Spec


@dataclass(frozen=True)
class Batch:
    """B pairs. images: each camera's (B, h, w, 3) in [-1, 1]; state (B, P), actions (B, M, A): normalized; told: (B, M)
    bool, which of the chunk's steps lie within the episode; instruction: (B,) i64."""

    images: list[Tensor]
    state: Tensor
    instruction: Tensor
    actions: Tensor
    told: Tensor

    def to(self, device: torch.device) -> tuple[list[Tensor], Tensor, Tensor, Tensor, Tensor]:
        """What a network's `loss` takes, on its device."""
        parts = (self.state, self.instruction, self.actions, self.told)
        return [image.to(device) for image in self.images], *(part.to(device) for part in parts)


@dataclass(frozen=True)
class Normal:
    """How numbers are normalized. mean, std: (P,) of the state; low, high: (A,) of actions."""

    mean: np.ndarray
    std: np.ndarray
    low: np.ndarray
    high: np.ndarray

    def state(self, state: np.ndarray) -> np.ndarray:
        """(..., P) -> mean 0, spread 1 over the training episodes."""
        return ((state - self.mean) / self.std).astype(np.float32)

    def actions(self, actions: np.ndarray) -> np.ndarray:
        """(..., A) -> [-1, 1]."""
        return (2 * (actions - self.low) / (self.high - self.low) - 1).astype(np.float32)

    def commands(self, actions: np.ndarray, spec: Spec) -> np.ndarray:
        """The inverse, within the robot's range; a gripper goes to the nearer of its ends."""
        actions = np.clip(actions, -1, 1)
        grippers = list(spec.grippers)
        actions[..., grippers] = np.where(actions[..., grippers] > 0, 1, -1)
        return ((actions + 1) / 2 * (self.high - self.low) + self.low).astype(np.float32)


@dataclass(frozen=True, eq=False)
class Windows:
    """Every step of some episodes, in memory. starts: (n,) rows that an expert labels; last: (rows,) the last row of
    each row's episode."""

    spec: Spec
    images: dict[str, Tensor]  # camera -> (rows, h, w, 3) u8
    poses: dict[str, np.ndarray]  # camera -> (rows, 8), NaN where nobody knows
    state: Tensor  # (rows, P)
    actions: Tensor  # (rows, A), NaN where nobody says
    instruction: Tensor  # (rows,)
    last: Tensor
    starts: Tensor

    @classmethod
    def of(cls, episodes: Iterable[Episode], instructions: tuple[str, ...], imitate: str) -> Windows:
        """imitate: `expert`, what the expert would have done at each step, or `action`, what was executed."""
        images, poses, state, actions, instruction, last, count = {}, {}, [], [], [], [], 0
        spec = None
        for episode in episodes:
            steps, spec = len(episode), spec or episode.spec
            for name in (camera.name for camera in spec.cameras):
                unknown = np.full((steps, 8), np.nan, np.float32)
                images.setdefault(name, []).append(episode.images[name][:-1])
                poses.setdefault(name, []).append(episode.poses[name][:-1] if name in episode.poses else unknown)
            state.append(episode.state[:-1])
            actions.append(episode.expert if imitate == "expert" else episode.action)
            instruction.append(np.full(steps, instructions.index(episode.instruction)))
            count += steps
            last.append(np.full(steps, count - 1))
        joined = torch.from_numpy(np.concatenate(actions))
        return cls(
            spec, {name: torch.from_numpy(np.concatenate(each)) for name, each in images.items()},
            {name: np.concatenate(each) for name, each in poses.items()},
            torch.from_numpy(np.concatenate(state)), joined, torch.from_numpy(np.concatenate(instruction)),
            torch.from_numpy(np.concatenate(last)), torch.isfinite(joined).all(-1).nonzero()[:, 0],
        )  # fmt: skip

    def normal(self) -> Normal:
        """From these episodes and the robot's range."""
        state = self.state.numpy().astype(np.float64)
        std = np.maximum(state.std(0), 1e-3)
        return Normal(state.mean(0), std, self.spec.action_low, self.spec.action_high)

    def batch(self, pick: Tensor, chunk: int, normal: Normal, change: Change | None = None) -> Batch:
        """The pairs of some of `starts`. change: of colours and places, one for each pair."""
        rows = self.starts[pick]
        ahead = rows[:, None] + torch.arange(chunk)
        told = ahead <= self.last[rows, None]
        actions = self.actions[torch.minimum(ahead, self.last[rows, None])]
        told = told & torch.isfinite(actions).all(-1)
        state, images = self.state[rows], []
        if change is not None:
            state, actions = change.state(state, self.spec.positions), change.actions(actions, self.spec)
        for camera in self.spec.cameras:
            seen = self.images[camera.name][rows]
            if change is not None:
                seen = change.images(camera.name, seen, self.poses[camera.name][rows.numpy()])
            images.append(seen.float() / 127.5 - 1)
        return Batch(
            images, torch.from_numpy(normal.state(state.numpy())), self.instruction[rows],
            torch.from_numpy(normal.actions(actions.nan_to_num(0).numpy())), told,
        )  # fmt: skip
