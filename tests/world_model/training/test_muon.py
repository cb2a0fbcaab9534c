import pytest
import torch

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
