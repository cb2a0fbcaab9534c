"""Muon (Jordan et al. 2024): momentum whose steps on matrices are made orthogonal.

`torch.optim.Muon` takes one matrix at a time and always orthogonalizes in bf16. Where a processor has to emulate bf16
that is more than half of a training step, so here it is done in whichever precision is fast, matrices of one shape
together. The tests hold both to the same steps.

A step needs whole matrices. Where their rows are spread over several processes (FSDP), each process is sent the rows of
its share of the matrices, makes those orthogonal and sends the rows back: nothing is computed twice, and no process
ever holds all of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor

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
                wanted = torch.stack([self._wanted(p, group["momentum"]).to(self.precision) for p in params])
                scale = 0.2 * max(rows, columns) ** 0.5 if self.like_adamw else max(1.0, rows / columns) ** 0.5
                mesh = params[0].device_mesh if isinstance(params[0], DTensor) else None
                updates = orthogonal_rows(wanted, rows, mesh.get_group()) if mesh else orthogonal(wanted)
                for p, update in zip(map(own_rows, params), updates, strict=True):
                    p.mul_(1 - group["lr"] * group["weight_decay"])
                    p.add_(update, alpha=-group["lr"] * scale)

    def _wanted(self, p: Tensor, momentum: float) -> Tensor:
        """The step that momentum would take, of this process's rows."""
        if p not in self.state:
            self.state[p]["momentum_buffer"] = torch.zeros_like(p)
        grad, buffer = own_rows(p.grad), own_rows(self.state[p]["momentum_buffer"])
        buffer.lerp_(grad, 1 - momentum)
        return grad.lerp(buffer, momentum)


def own_rows(x: Tensor) -> Tensor:
    """The rows that this process holds; all of them where nothing is spread."""
    return x.to_local() if isinstance(x, DTensor) else x


def orthogonal_rows(wanted: Tensor, rows: int, group: dist.ProcessGroup) -> Tensor:
    """`orthogonal` of N matrices whose rows are spread over the W processes of a group, as `torch.chunk` splits them.

    wanted: (N, rows here, columns), what this process holds -> the same of the orthogonal ones.
    """
    (count, here, columns), processes = wanted.shape, group.size()
    each = -(-rows // processes)
    held = [min(each, max(0, rows - each * i)) for i in range(processes)]  # rows of every process
    shares = [count // processes + (i < count % processes) for i in range(processes)]  # matrices that it works on
    mine = shares[group.rank()]
    away, back = [n * here * columns for n in shares], [mine * n * columns for n in held]
    arrived = exchange(wanted.flatten(), away, back, group).split(back)
    whole = torch.cat([part.view(mine, n, columns) for part, n in zip(arrived, held, strict=True)], dim=1)
    whole = orthogonal(whole) if mine else whole
    done = torch.cat([part.flatten() for part in whole.split(held, dim=1)])
    return exchange(done, back, away, group).view(count, here, columns)


def exchange(sent: Tensor, sizes: Sequence[int], expected: Sequence[int], group: dist.ProcessGroup) -> Tensor:
    """Numbers (n,), of which process i gets `sizes[i]` -> those that come from all, `expected[i]` from process i."""
    arrived = sent.new_empty(sum(expected))
    dist.all_to_all_single(arrived, sent.contiguous(), list(expected), list(sizes), group=group)
    return arrived


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
