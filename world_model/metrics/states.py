"""How far apart two states of a robot are, whatever its state is made of."""

from __future__ import annotations

import torch
from torch import Tensor

from envs.types import Spec

UNITS = {"m": 0.01, "rad": 0.1}  # what counts as one unit of difference, by the dimension's unit
SHARE = 0.01  # of the range, for dimensions of any other unit


def error_name(spec: Spec) -> tuple[str, float]:
    """What the figures of `state_error` are called, and what to multiply it with: `position_cm` for a robot whose
    state holds positions, or else `state_error`, in shares of the ranges."""
    return ("position_cm", 100.0) if spec.positions else ("state_error", 1.0)


def state_error(spec: Spec, state: Tensor, true: Tensor) -> Tensor:
    """States (..., P) -> (...): the mean distance between positions in m. Without positions the root mean square
    difference in shares of the ranges."""
    difference = state - true
    if spec.positions:
        distances = [difference[..., list(position)].norm(dim=-1) for position in spec.positions]
        return torch.stack(distances).mean(0)
    share = difference / torch.from_numpy(spec.state_high - spec.state_low).to(difference)
    return share.square().mean(-1).sqrt()


def moving_dims(spec: Spec) -> list[int]:
    """The dimensions in which displacement is looked at: those of positions, or all where there are none."""
    return [i for position in spec.positions for i in position] or list(range(len(spec.state)))


def unit_sizes(spec: Spec) -> Tensor:
    """(P,) f32: what counts as one unit of difference in each dimension."""
    return torch.tensor([UNITS.get(part.unit, SHARE * (part.high - part.low)) for part in spec.state])
