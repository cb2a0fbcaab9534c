"""What the candidates of a search are made from: the action space, random numbers, and chunks to begin with.

Shapes: R robots, N candidates, H model steps of n control steps, M control steps a chunk, A action dimensions, of which
G are grippers and D are not; Np of the N are proposed by the model; I iterations; E elites.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from envs.types import Spec


def dct_basis(steps: int) -> Tensor:
    """(steps, steps) f32, rows the orthonormal DCT-II basis: coefficients = basis @ signal, signal = basis.T @ c."""
    n, k = torch.arange(steps), torch.arange(steps)[:, None]
    basis = torch.cos(math.pi / steps * (n + 0.5) * k) * math.sqrt(2 / steps)
    basis[0] /= math.sqrt(2)
    return basis


def as_chunks(actions: Tensor, chunk: int, stride: int) -> Tensor:
    """Control steps (..., (H - 1) n + M, A) -> the chunks (..., H, M, A) that begin at each n-th of them; n: stride."""
    return actions.unfold(-2, chunk, stride).transpose(-1, -2)


def shift(futures: Tensor, steps: int, stride: int) -> Tensor:
    """The rest of plans (R, H, M, A) once `steps` of them are done; the last action is repeated to fill the end.

    stride: control steps of a chunk that are executed before the next one.
    """
    flat = _in_a_row(futures, stride)
    rest = torch.cat([flat[:, steps:], flat[:, -1:].expand(-1, min(steps, flat.shape[1]), -1)], dim=1)
    return as_chunks(rest, futures.shape[-2], stride)


def in_shorter_steps(futures: Tensor, stride: int, pace: int) -> Tensor:
    """The same control steps of plans (R, H, M, A), of whose chunks `stride` are executed, as chunks of which `pace`
    are: (R, H stride / pace, M, A). pace: divides `stride`."""
    flat = _in_a_row(futures, stride)
    padded = torch.cat([flat, flat[:, -1:].expand(-1, stride - pace, -1)], dim=1)
    return as_chunks(padded, futures.shape[-2], pace)


def _in_a_row(futures: Tensor, stride: int) -> Tensor:
    """Plans (R, H, M, A) -> their control steps (R, (H - 1) n + M, A), the last chunk whole."""
    return torch.cat([futures[:, :-1, :stride].flatten(1, 2), futures[:, -1]], dim=1)


@dataclass(frozen=True)
class ActionSpace:
    """What a candidate's actions may be, as tensors on the model's device.

    poses: (D,) i64, dimensions that are no grippers.    grippers: (G,) i64.
    order: (A,) i64, puts `[poses, grippers]` back in the order of the dimensions.
    low, high, rest: (A,) f32.                           half: (D,) f32, half the range.
    free: (M, D) f32, 1 for the coefficients that noise may change, rows by frequency.
    basis: (M, M) f32, the DCT.
    """

    poses: Tensor
    grippers: Tensor
    order: Tensor
    low: Tensor
    high: Tensor
    rest: Tensor
    half: Tensor
    free: Tensor
    basis: Tensor

    @classmethod
    def of(
        cls, spec: Spec, coefs: int | Sequence[int], chunk: int, device: torch.device | str | None = None
    ) -> ActionSpace:
        """coefs: how many coefficients of a dimension may change, one number or one for each that is no gripper.

        ValueError where they are not as many, or where a dimension has no range.
        """
        grippers = list(spec.grippers)
        poses = [i for i in range(len(spec.action)) if i not in grippers]
        endless = [part.name for part in spec.action if not (math.isfinite(part.low) and math.isfinite(part.high))]
        if endless:
            raise ValueError(f"planning needs a finite range of every action dimension; {', '.join(endless)} has none")
        counts = [coefs] * len(poses) if isinstance(coefs, int) else list(coefs)
        if len(counts) != len(poses) or any(count < 0 for count in counts):
            names = ", ".join(spec.action[i].name for i in poses)
            raise ValueError(
                f"planner `coefs` must be one number of 0 or more, or one for each of the {len(poses)} action "
                f"dimensions that are no grippers ({names}), got {coefs}"
            )
        low, high, rest = (torch.from_numpy(ends) for ends in (spec.action_low, spec.action_high, spec.rest))
        tensors = (
            torch.tensor(poses, dtype=torch.int64), torch.tensor(grippers, dtype=torch.int64),
            torch.tensor([*poses, *grippers]).argsort(), low, high, rest, ((high - low) / 2)[poses],
            (torch.arange(chunk)[:, None] < torch.tensor(counts, dtype=torch.int64)).float(), dct_basis(chunk),
        )  # fmt: skip
        return cls(*(tensor.to(device) for tensor in tensors))

    def join(self, pose: Tensor, gripper: Tensor) -> Tensor:
        """(..., D) and (..., G) -> (..., A)."""
        return torch.cat([pose, gripper], dim=-1)[..., self.order]

    def clamp(self, pose: Tensor) -> Tensor:
        """(..., D) within its range."""
        return pose.clamp(self.low[self.poses], self.high[self.poses])

    def switch(self, gripper: Tensor) -> Tensor:
        """(..., G): low where it was nearer to high, and the other way round."""
        low, high = self.low[self.grippers], self.high[self.grippers]
        return torch.where(gripper > (low + high) / 2, low, high)

    def hold(self, chunks: Tensor, horizon: int, stride: int) -> Tensor:
        """(..., M, A) -> (..., H, M, A), chunks that begin `stride` control steps apart: after the first has ended the
        arm rests and grippers keep their last command."""
        last = chunks[..., -1:, :][..., self.grippers]  # (..., 1, G)
        after = self.join(self.rest[self.poses].expand(*last.shape[:-1], -1), last)  # (..., 1, A)
        after = after.expand(*after.shape[:-2], stride * (horizon - 1), -1)
        return as_chunks(torch.cat([chunks, after], dim=-2), chunks.shape[-2], stride)


@dataclass(frozen=True)
class Draws:
    """All random numbers of one search, drawn before it begins, one row an iteration.

    noise: (I, R, N, H, M, D) standard normal.
    flips: (I, R, N, G) uniform in [0, 1).    switches: (I, R, N, G) i64 in [0, n), when a gripper that flips does so.
    elites: (I, R, N) i64 in [0, E), whose grippers a candidate takes over; not used in the first iteration.
    """

    noise: Tensor
    flips: Tensor
    switches: Tensor
    elites: Tensor

    @classmethod
    def of(cls, rows: Sequence[Draws], dim: int) -> Draws:
        """Joined along a new dimension."""
        return cls(*(torch.stack([getattr(row, f.name) for row in rows], dim) for f in fields(cls)))

    def to(self, device: torch.device) -> Draws:
        return Draws(*(getattr(self, f.name).to(device) for f in fields(self)))


@dataclass(frozen=True)
class Seeds:
    """Where a search begins.

    proposed: (R, Np, H, M, A), the model's own, the likeliest first.
    rest: (R, H, M, A), what is left of the last plan.    has_rest: (R,) bool, whether there is a last plan.
    """

    proposed: Tensor
    rest: Tensor
    has_rest: Tensor
