"""Vision ids as digits: tens of thousands of codes, embedded and predicted with a few dozen rows.

A code of the image tokenizer is one step along each quantized dimension: its digits. The embedding of an id is the sum
of its digits' rows, going in and coming out. So the logit of an id is a sum of digit logits, and a softmax over all
ids is, exactly, the product of one small softmax a digit. What is learnt of one code serves every code that shares a
digit with it, and the cost does not grow with the codebook. Infinity (Han et al. 2024) and Open-MAGVIT2 (Luo et al.
2024) factor the heads of their large codebooks likewise.

A parallel copy of the next image starts from the id that is there now, and says first whether it stays.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class VisionCodes(nn.Module):
    """The rows of the vision block. levels: steps of each digit, their product is the number of ids; `(size,)` is
    one free row an id, as pretrained tables have it. latents: (sum(levels), d), whose rows at an id's digits add up
    to what the image tokenizer decodes it from. copy_bias: log-odds before training that an id which is edited stays.
    """

    def __init__(self, levels: tuple[int, ...], latents: Tensor, width: int, copy_bias: float):
        super().__init__()
        self.levels = levels
        steps = torch.tensor((1, *levels)).cumprod(0)
        starts = torch.tensor((0, *levels)).cumsum(0)
        self.register_buffer("latents", latents.float(), persistent=False)
        self.register_buffer("strides", steps[:-1], persistent=False)  # (D,) what one step of a digit is worth
        self.register_buffer("starts", starts[:-1], persistent=False)  # (D,) its first row
        self.register_buffer("bases", torch.tensor(levels), persistent=False)
        self.rows = nn.Parameter(torch.empty(sum(levels), width))
        self.gate = nn.Linear(width, 1)
        self._init_weights(copy_bias)

    @torch.no_grad()
    def _init_weights(self, copy_bias: float) -> None:
        """Near codes start near: a random linear map of the latents, and some noise."""
        near = self.latents @ torch.randn(self.latents.shape[1], self.rows.shape[1])
        spread = 0.02 / len(self.levels) ** 0.5
        self.rows.copy_(spread * (0.9 * near / near.std() + 0.45 * torch.randn_like(near)))
        nn.init.zeros_(self.gate.weight)
        nn.init.constant_(self.gate.bias, copy_bias)

    def digits(self, ids: Tensor) -> Tensor:
        """Local ids (...) -> digits (..., D)."""
        return ids[..., None] // self.strides % self.bases

    def ids(self, digits: Tensor) -> Tensor:
        """Digits (..., D) -> local ids (...)."""
        return (digits * self.strides).sum(-1)

    def embed(self, ids: Tensor) -> Tensor:
        """Local ids (...) -> (..., width)."""
        found = F.embedding_bag(self._rows_of(ids).flatten(0, -2), self.rows, mode="sum")
        return found.view(*ids.shape, -1)

    def read(self, h: Tensor, current: Tensor | None = None) -> CodeDistribution:
        """h (..., width) -> a distribution over the ids. current (...): the ids that an edit started from."""
        logits = F.linear(h, self.rows.to(h.dtype)).float().split(self.levels, dim=-1)
        stays = None if current is None else self.gate(h)[..., 0].float()
        return CodeDistribution(self, torch.cat([part.log_softmax(-1) for part in logits], dim=-1), stays, current)

    def _rows_of(self, ids: Tensor) -> Tensor:
        return self.digits(ids) + self.starts


@dataclass(frozen=True)
class CodeDistribution:
    """P(id) = the product over its digits; for an edit, `current` with probability sigmoid(stays), and else that."""

    codes: VisionCodes
    log_digits: Tensor  # (..., sum(levels)) log-probabilities, each digit's by themselves
    stays: Tensor | None  # (...) log-odds
    current: Tensor | None  # (...) local ids

    def log_prob(self, ids: Tensor) -> Tensor:
        """Local ids (...) -> nats (...)."""
        drawn = self.log_digits.gather(-1, self.codes._rows_of(ids)).sum(-1)
        if self.stays is None:
            return drawn
        drawn = drawn + F.logsigmoid(-self.stays)
        return torch.where(ids == self.current, torch.logaddexp(drawn, F.logsigmoid(self.stays)), drawn)

    def best(self) -> Tensor:
        """The likeliest local ids (...)."""
        digits = [part.argmax(-1) for part in self.log_digits.split(self.codes.levels, dim=-1)]
        ids = self.codes.ids(torch.stack(digits, dim=-1))
        if self.current is not None:
            ids = torch.where(self.log_prob(self.current) >= self.log_prob(ids), self.current, ids)
        return ids

    def mean_latents(self) -> Tensor:
        """The mean of what the ids are decoded from, (..., d): 1 to 2 dB nearer the truth than the likeliest id."""
        drawn = self.log_digits.exp() @ self.codes.latents
        if self.stays is None:
            return drawn
        there = F.embedding_bag(self.codes._rows_of(self.current).flatten(0, -2), self.codes.latents, mode="sum")
        return torch.lerp(drawn, there.view_as(drawn), self.stays.sigmoid()[..., None])
