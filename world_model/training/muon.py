"""Muon (Jordan et al. 2024): momentum whose steps on matrices are made orthogonal.

`torch.optim.Muon` takes one matrix at a time and always orthogonalizes in bf16. Where a processor has to emulate bf16
that is more than half of a training step, so here it is done in whichever precision is fast, matrices of one shape
together. The tests hold both to the same steps.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

QUINTIC = (3.4445, -4.7750, 2.0315)  # Jordan's: five rounds bring singular values to between about 0.7 and 1.2
ROUNDS = 5


class Muon(torch.optim.Optimizer):
    """For parameters that are matrices, with Nesterov momentum and decoupled weight decay.

    precision: what to orthogonalize in. like_adamw: scale steps to the root mean square of AdamW's (Liu et al. 2025),
    so that one learning rate serves both; else by sqrt(max(1, rows / columns)), as Jordan does.
    """

    def __init__(
        self, params: Iterable[Tensor], lr: float = 1e-3, momentum: float = 0.95, weight_decay: float = 0.0,
        like_adamw: bool = False, precision: torch.dtype = torch.float32,
    ):  # fmt: skip
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})
        self.like_adamw, self.precision = like_adamw, precision

    @torch.no_grad()
    def step(self) -> None:
        """One update of every parameter that has a gradient."""
        for group in self.param_groups:
            alike: dict[torch.Size, list[Tensor]] = {}
            for p in group["params"]:
                if p.grad is not None:
                    alike.setdefault(p.shape, []).append(p)
            for (rows, columns), params in alike.items():
                wanted = torch.stack([self._wanted(p, group["momentum"]) for p in params])
                scale = 0.2 * max(rows, columns) ** 0.5 if self.like_adamw else max(1.0, rows / columns) ** 0.5
                for p, update in zip(params, orthogonal(wanted.to(self.precision)), strict=True):
                    p.mul_(1 - group["lr"] * group["weight_decay"])
                    p.add_(update, alpha=-group["lr"] * scale)

    def _wanted(self, p: Tensor, momentum: float) -> Tensor:
        """The step that momentum would take."""
        if p not in self.state:
            self.state[p]["momentum_buffer"] = torch.zeros_like(p)
        buffer = self.state[p]["momentum_buffer"]
        buffer.lerp_(p.grad, 1 - momentum)
        return p.grad.lerp(buffer, momentum)


def orthogonal(matrices: Tensor) -> Tensor:
    """Nearly the nearest (semi-)orthogonal ones of (N, rows, columns): the same singular vectors, values about 1.

    The Newton-Schulz iteration, with coefficients that lift small singular values fastest.
    """
    if matrices.shape[1] > matrices.shape[2]:
        return orthogonal(matrices.mT).mT
    a, b, c = QUINTIC
    x = matrices / matrices.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)  # no singular value above 1
    for _ in range(ROUNDS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x
