"""What goes into the world model and what comes out of it. Frozen values."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from itertools import accumulate

import numpy as np
from torch import Tensor

from envs.types import Observation
from world_model.nn.transformer import KV


@dataclass(frozen=True)
class History:
    """What one robot has seen: now, and where the episode is old enough, one model step ago.

    instruction: text ids. steps: one or two pairs of an observation and the control steps (n, A) executed after it, as
    many as a model step may cover, oldest first; the last pair is now, and its chunk is None.
    """

    instruction: tuple[int, ...]
    steps: tuple[tuple[Observation, np.ndarray | None], ...]


@dataclass(frozen=True)
class Cache:
    """Keys and values of `instruction | step before (if any) | observation now` of R robots.

    step: (R,) i64, number of the current model step. image: (R, K) local ids, state: (R, P) bins, pose: (R, Q) bins,
    NaN where unknown, of the observation now.
    """

    kv: KV
    step: Tensor
    image: Tensor
    state: Tensor
    pose: Tensor


@dataclass(frozen=True)
class Belief:
    """What the model reads out of R situations. Standard deviations are those of the ids' own distributions."""

    value: Tensor  # (R,) discount ** (control steps until success)
    value_std: Tensor  # (R,)
    success: Tensor  # (R,) probability
    held: Tensor  # (R,) probability that the gripper holds something
    keypoints: Tensor  # (R, n, 3) m
    keypoints_std: Tensor  # (R, n, 3) m


@dataclass(frozen=True)
class Readout:
    """One `act` pass: beliefs, and the distribution over the expert's chunk."""

    belief: Belief
    coefs: Tensor  # (R, sum(coefs), 256) probabilities of action bins
    gripper: Tensor  # (R, G, 2 M) probabilities of gripper codes


@dataclass(frozen=True)
class Imagination:
    """N futures of H model steps for each of R robots. Images are decoded on demand: `model.decode_frames`."""

    actions: Tensor  # (R, N, H, M, A)
    image_ids: Tensor  # (R, N, H, K) local, all cameras
    state: Tensor  # (R, N, H, P) in the robot's units
    value: Tensor  # (R, N, H), NaN where an action was not finite
    success: Tensor  # (R, N, H)
    held: Tensor  # (R, N, H)
    keypoints: Tensor  # (R, N, H, n, 3) m
    uncertainty: Tensor  # (R, N, H), standard deviations of this step and those before, added up; see `WorldModel`
    hidden: Tensor  # (R, N, H, K, width) what the image ids were read from; empty after autoregressive decoding
    before: Tensor  # (R, N, H, K) the ids of the model step before; K is 0 here and above where no images were wanted
    strides: tuple[int, ...]  # H, control steps that each model step covers

    def __getitem__(self, robots: int | slice) -> Imagination:
        """One robot's futures, fields (N, H, ...), or those of some robots."""
        return replace(self, **{name: getattr(self, name)[robots] for name in FIELDS})

    @property
    def control_steps(self) -> tuple[int, ...]:
        """H, control steps from now until what each model step shows."""
        return tuple(accumulate(self.strides))


FIELDS = tuple(f.name for f in fields(Imagination) if f.name != "strides")  # torch.compile does not read a class
