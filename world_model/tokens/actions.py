"""A chunk of M control steps as a fixed number of ids: a few DCT coefficients a dimension, and the gripper.

Smooth motion lives in the first coefficients of a cosine transform over time (the idea of FAST, Pertsch et al.
2025, without its byte-pair coding: batched planning needs every chunk to have the same length). The gripper is
one id: which way it is commanded at the start, and the step at which that changes.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from functools import lru_cache

import torch

from world_model.tokens.vocab import ACTION_BINS

ZERO_BIN = ACTION_BINS // 2  # decodes to exactly 0, so that standing still stays standing still
SCALE_QUANTILE = 0.999
SCALE_MARGIN = 1.1
SMALLEST_SCALE = 0.02  # a dimension that never moves in the data still gets bins of finite width


@lru_cache(maxsize=4)
def cosine_basis(chunk: int) -> torch.Tensor:
    """The orthonormal DCT-II over `chunk` steps: (coefficient, step) f32, its inverse is its transpose."""
    step = (torch.arange(chunk, dtype=torch.float64) + 0.5) / chunk
    basis = torch.cos(math.pi * torch.arange(chunk, dtype=torch.float64)[:, None] * step) * math.sqrt(2 / chunk)
    basis[0] /= math.sqrt(2)
    return basis.float()


def expected_bin(probs: torch.Tensor, radius: int = 4) -> torch.Tensor:
    """Mean bin within `radius` of the likeliest one: probs (..., bins) -> (...) f32, in bins.

    Finer than the mode when targets were smoothed, and not pulled between two modes as the full mean is.
    """
    bins = torch.arange(probs.shape[-1], device=probs.device)
    near = (bins - probs.argmax(-1, keepdim=True)).abs() <= radius
    weight = probs.float() * near
    return (weight * bins).sum(-1) / weight.sum(-1).clamp_min(1e-12)


def median_bin(probs: torch.Tensor) -> torch.Tensor:
    """Median bin, between bins where it falls there: probs (..., bins) -> (...) f32, in bins.

    Experts that wait say exactly zero. That makes one bin the likeliest long before it is likely, and an agent that
    follows the likeliest bin stands still where nine in ten would go on; the median goes with the majority.
    """
    below = probs.float().cumsum(-1)  # the share up to and including a bin
    half = below[..., -1:] / 2
    at = (below < half).sum(-1, keepdim=True).clamp_max(probs.shape[-1] - 1)
    inside = (half - below.gather(-1, at)) / probs.float().gather(-1, at).clamp_min(1e-12)  # -1 .. 0
    return (at + 0.5 + inside)[..., 0]


@dataclass(frozen=True)
class RoundTrip:
    """What the code costs: error between chunks and their decoded codes, a control step, in action units."""

    rms: tuple[float, ...]  # a dimension of the pose
    pose_rms: float  # over the dimensions that are coded
    gripper_wrong: float  # fraction of steps whose gripper sign is not kept (0 if no chunk switches twice)
    clipped: float  # fraction of coefficients beyond the outermost bin


@dataclass(frozen=True)
class ActionTokenizer:
    """`(..., M, A) <-> (..., Ka)`: Ka - 1 coefficient bins, dimension after dimension, then the gripper's number.

    chunk: M. coefs: coefficients kept for each dimension of the pose; a dimension with 0 decodes to 0.
    scale: largest magnitude of each kept coefficient; bins are even between -scale and +scale.
    The last dimension of an action is the gripper, > 0 for closing; it decodes to -1 or +1.
    """

    chunk: int
    coefs: tuple[int, ...]
    scale: tuple[float, ...]

    def __post_init__(self) -> None:
        if not self.coefs or min(self.coefs) < 0 or max(self.coefs) > self.chunk or not sum(self.coefs):
            raise ValueError(f"`coefs` must keep 0 to {self.chunk} coefficients a dimension, got {self.coefs}")
        if len(self.scale) != sum(self.coefs) or not all(math.isfinite(s) and s > 0 for s in self.scale):
            raise ValueError(f"`scale` must hold {sum(self.coefs)} positive numbers, got {self.scale}")

    @classmethod
    def create(cls, chunk: int = 8, coefs: tuple[int, ...] = (4, 4, 4, 0, 0, 2)) -> ActionTokenizer:
        """Bins wide enough for every action in [-1, 1]; prefer `fit`, whose bins are finer."""
        reach = cosine_basis(chunk).abs().sum(1).tolist()
        return cls(chunk, tuple(coefs), tuple(reach[k] for count in coefs for k in range(count)))

    @classmethod
    def fit(cls, chunks: torch.Tensor, chunk: int = 8, coefs: tuple[int, ...] = (4, 4, 4, 0, 0, 2)) -> ActionTokenizer:
        """Set the bins from chunks (n, M, A): all but the outermost 0.1 % of each coefficient fit, with 10 % margin."""
        widest = cls.create(chunk, coefs)
        found = torch.quantile(widest.transform(chunks).abs().flatten(0, -2), SCALE_QUANTILE, dim=0) * SCALE_MARGIN
        scale = (min(max(f, SMALLEST_SCALE), w) for f, w in zip(found.tolist(), widest.scale, strict=True))
        return cls(chunk, tuple(coefs), tuple(scale))

    @property
    def action_dim(self) -> int:
        return len(self.coefs) + 1

    @property
    def num_coefs(self) -> int:
        """Ids of the block `action`; they come first."""
        return sum(self.coefs)

    @property
    def num_ids(self) -> int:
        """Ka: the coefficients and one id of the block `gripper`."""
        return self.num_coefs + 1

    @property
    def gripper_size(self) -> int:
        """Gripper codes: sign at the start (0 open, 1 close) x M + steps before it switches - 1 (M - 1: never)."""
        return 2 * self.chunk

    def encode(self, chunks: torch.Tensor) -> torch.Tensor:
        """(..., M, A) in [-1, 1] -> (..., Ka) i64 local numbers. ValueError for a wrong shape or NaN."""
        bins = (self.transform(chunks) / self._step(chunks.device)).round() + ZERO_BIN
        gripper = self._encode_gripper(chunks[..., -1])
        return torch.cat([bins.clamp(0, ACTION_BINS - 1).long(), gripper[..., None]], -1)

    def decode(self, codes: torch.Tensor) -> torch.Tensor:
        """(..., Ka) local numbers -> (..., M, A) f32 in [-1, 1]. Fractional bins are welcome."""
        if codes.shape[-1] != self.num_ids:
            raise ValueError(f"an action code has {self.num_ids} ids, got shape {tuple(codes.shape)}")
        values = (codes[..., :-1].float() - ZERO_BIN) * self._step(codes.device)
        basis = cosine_basis(self.chunk).to(codes.device)
        pose = [part @ basis[: part.shape[-1]] for part in values.split(self.coefs, -1)]  # A - 1 x (..., M)
        gripper = self._gripper_signs(codes.device)[codes[..., -1].long().clamp(0, self.gripper_size - 1)]
        return torch.stack([*(p.clamp(-1, 1) for p in pose), gripper], -1)

    def decode_median(self, coef_probs: torch.Tensor, gripper_probs: torch.Tensor) -> torch.Tensor:
        """Distributions -> (..., M, A): the median of each coefficient, and at each step the likelier gripper sign.

        coef_probs: (..., Ka - 1, 256); gripper_probs: (..., 2 M).
        """
        bins = median_bin(coef_probs)
        chunk = self.decode(torch.cat([bins, torch.zeros_like(bins[..., :1])], -1))
        # the likeliest code may be "never" though switching now or soon is likelier taken together
        sign = gripper_probs.float() @ self._gripper_signs(gripper_probs.device)  # (..., M) expected sign
        return torch.cat([chunk[..., :-1], torch.where(sign > 0, 1.0, -1.0)[..., None]], -1)

    def transform(self, chunks: torch.Tensor) -> torch.Tensor:
        """(..., M, A) -> (..., Ka - 1): the kept cosine coefficients, dimension after dimension."""
        if chunks.shape[-2:] != (self.chunk, self.action_dim):
            raise ValueError(f"a chunk must be (..., {self.chunk}, {self.action_dim}), got {tuple(chunks.shape)}")
        if not torch.isfinite(chunks).all():
            raise ValueError("an action chunk holds NaN or infinity: mask such chunks before they are encoded")
        spectrum = cosine_basis(self.chunk).to(chunks.device) @ chunks[..., :-1].float()  # (..., coefficient, A - 1)
        return torch.cat([spectrum[..., :count, dim] for dim, count in enumerate(self.coefs)], -1)

    def round_trip_error(self, chunks: torch.Tensor) -> RoundTrip:
        """Encode and decode chunks (..., M, A)."""
        off = self.decode(self.encode(chunks)) - chunks
        coded = torch.tensor([count > 0 for count in self.coefs], device=chunks.device)
        pose = off[..., :-1].flatten(0, -2).square().mean(0)
        wrong = (off[..., -1].abs() > 1).float().mean()
        clipped = (self.transform(chunks).abs() > self._step(chunks.device) * ZERO_BIN).float().mean()
        return RoundTrip(tuple(pose.sqrt().tolist()), pose[coded].mean().sqrt().item(), wrong.item(), clipped.item())

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=1, sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> ActionTokenizer:
        """Raise ValueError if the text is not an action tokenizer."""
        try:
            raw = json.loads(text)
            return cls(int(raw["chunk"]), tuple(raw["coefs"]), tuple(raw["scale"]))
        except (KeyError, TypeError, json.JSONDecodeError) as error:
            raise ValueError(f"this is not an action tokenizer: {error!r}") from error

    def _step(self, device: torch.device) -> torch.Tensor:
        """Width of a bin of each coefficient: (Ka - 1,)."""
        return torch.tensor(self.scale, device=device) / (ZERO_BIN - 1)

    def _gripper_signs(self, device: torch.device) -> torch.Tensor:
        """The signs that each gripper code stands for: (2 M, M), -1 open and +1 close."""
        step = torch.arange(self.chunk, device=device)
        starts_open = torch.where(step > step[:, None], 1.0, -1.0)  # row k switches after step k; the last never
        return torch.cat([starts_open, -starts_open])

    def _encode_gripper(self, gripper: torch.Tensor) -> torch.Tensor:
        """(..., M) -> (...): the code that agrees on most steps; where two do, on the earlier ones."""
        # The weights differ by less than one whole step in sum, so they only ever break ties.
        earlier = 1 + torch.arange(self.chunk, 0, -1, device=gripper.device) / (2 * self.chunk**2)
        signs = torch.where(gripper > 0, 1.0, -1.0)
        return ((signs * earlier) @ self._gripper_signs(gripper.device).T).argmax(-1)
