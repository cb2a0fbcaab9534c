"""Muon and AdamW as one optimizer, whose state is all that the next step depends on."""

import torch

from world_model.training.optimizers import MuonAdamW


def network(seed: int = 0) -> torch.nn.Module:
    torch.manual_seed(seed)
    return torch.nn.Sequential(torch.nn.Linear(16, 16), torch.nn.Linear(16, 16))


def optimizer(model: torch.nn.Module) -> MuonAdamW:
    named = dict(model.named_parameters())
    matrices = {name: p for name, p in named.items() if p.dim() == 2}
    others = {name: p for name, p in named.items() if p.dim() == 1}
    return MuonAdamW(matrices, others, 0.1, 0.0, (0.9, 0.95), torch.float32)


def step(model: torch.nn.Module, by: MuonAdamW, number: int) -> None:
    data = torch.randn(8, 16, generator=torch.Generator().manual_seed(number))
    by.zero_grad()
    model(data).square().mean().backward()
    by.step(0.02, 0.01)


def test_state_is_all_that_the_next_step_needs():
    """Catches a moment, or the count of steps, that is not kept."""
    whole = network()
    by = optimizer(whole)
    for number in range(4):
        step(whole, by, number)
    first, second = network(), network(1)
    by = optimizer(first)
    for number in range(2):
        step(first, by, number)
    kept = {name: value.clone() for name, value in by.state().items()}
    second.load_state_dict(first.state_dict())
    again = optimizer(second)
    again.load_state(kept)
    for number in range(2, 4):
        step(second, again, number)
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), second.parameters(), strict=True))


def test_each_has_its_own_rate():
    """Catches a rate of one that moves what the other updates."""
    model = network()
    before = {name: p.clone() for name, p in model.named_parameters()}
    by = optimizer(model)
    model(torch.randn(8, 16)).square().mean().backward()
    by.step(0.02, 0.0)
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name]) == (parameter.dim() == 1), name
