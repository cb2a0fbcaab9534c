import threading
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest
import torch

from world_model.training import muon
from world_model.training.muon import Muon, orthogonal


@pytest.mark.parametrize(("like_adamw", "theirs"), [(False, "original"), (True, "match_rms_adamw")])
@pytest.mark.parametrize("precision", [torch.bfloat16, torch.float32])
def test_it_steps_as_torch_does(precision: torch.dtype, like_adamw: bool, theirs: str):
    """Catches another momentum, decay or scale than torch's, shapes that are mixed up, a parameter that is skipped."""
    torch.manual_seed(0)
    start = [torch.randn(shape) for shape in ((32, 48), (48, 32), (32, 48), (16, 16))]
    ours, reference = ([torch.nn.Parameter(p.clone()) for p in start] for _ in range(2))
    optimizers = (
        Muon(ours, lr=0.1, momentum=0.9, weight_decay=0.2, like_adamw=like_adamw, precision=precision),
        torch.optim.Muon(reference, lr=0.1, momentum=0.9, weight_decay=0.2, adjust_lr_fn=theirs),
    )
    for _ in range(3):
        gradients = [torch.randn(p.shape) for p in start]
        for parameters, optimizer in zip((ours, reference), optimizers, strict=True):
            for p, gradient in zip(parameters, gradients, strict=True):
                p.grad = gradient.clone()
            optimizer.step()
    for p, q, before in zip(ours, reference, start, strict=True):
        assert (p - q).norm() < 0.03 * (q - before).norm()  # theirs is in bf16


@pytest.mark.parametrize(("count", "rows", "processes"), [(5, 7, 3), (1, 4, 2), (2, 2, 4)])
def test_spread_matrices_are_made_orthogonal_whole(monkeypatch, count: int, rows: int, processes: int):
    """Catches rows of one matrix that end up in another, and processes without rows or without a matrix of their own.
    Here threads take the places of processes and a list that of the network."""
    wanted = torch.randn(count, rows, 5, generator=torch.Generator().manual_seed(0))
    parts = [*wanted.chunk(processes, dim=1)]
    parts += [wanted[:, :0]] * (processes - len(parts))
    sent, meeting = [[] for _ in range(processes)], threading.Barrier(processes, timeout=30)

    def exchange(numbers, sizes, expected, group):
        sent[group.rank()] = numbers.split(sizes)
        meeting.wait()
        arrived = [sent[i][group.rank()] for i in range(processes)]
        meeting.wait()
        assert [len(part) for part in arrived] == expected
        return torch.cat(arrived)

    def work(rank: int) -> torch.Tensor:
        group = SimpleNamespace(rank=lambda: rank, size=lambda: processes)
        return muon.orthogonal_rows(parts[rank], rows, group)

    monkeypatch.setattr(muon, "exchange", exchange)
    with ThreadPoolExecutor(processes) as pool:
        found = list(pool.map(work, range(processes)))
    assert [part.shape for part in found] == [part.shape for part in parts]
    torch.testing.assert_close(torch.cat(found, dim=1), orthogonal(wanted), rtol=1e-4, atol=1e-5)


def test_what_has_no_gradient_stays():
    """Catches decay of what was not trained, and a crash where a layer was not used."""
    used, unused = (torch.nn.Parameter(torch.ones(4, 4)) for _ in range(2))
    used.grad = torch.eye(4)
    Muon([used, unused], lr=0.1, weight_decay=0.5).step()
    assert not torch.equal(used, torch.ones(4, 4)) and torch.equal(unused, torch.ones(4, 4))


def test_orthogonal_keeps_directions_and_evens_sizes():
    """Catches an iteration that diverges or turns: singular vectors must stay, values come near 1."""
    torch.manual_seed(0)
    matrices = torch.randn(3, 24, 40) * torch.tensor([1e-3, 1.0, 1e3])[:, None, None]
    for given in (matrices, matrices.mT):
        made = orthogonal(given)
        u, _, v = torch.linalg.svd(given, full_matrices=False)
        turned = u.mT @ made @ v.mT
        values = turned.diagonal(dim1=1, dim2=2)
        assert ((values > 0.6) & (values < 1.3)).all()
        assert (turned - torch.diag_embed(values)).abs().max() < 1e-3
    assert orthogonal(torch.zeros(1, 3, 3)).isfinite().all()
