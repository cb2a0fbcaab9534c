"""What is timed is what its name says."""

from __future__ import annotations

import pytest
import torch

from agent.benchmark.contestants import AUTOREGRESSIVE, AUTOREGRESSIVE_COPIES, Products, decoders
from agent.planning.policies import ModelPolicy


@pytest.fixture
def model(untrained):
    model = ModelPolicy.load(untrained, device="cpu").model
    model.precision = torch.float32
    return model


def situation(model):
    torch.manual_seed(0)
    at = model.layout
    image, state = torch.randint(model.vocab.vision.size, (1, at.image_ids)), torch.full((1, at.state_dim), 99.0)
    cache = model.context(at.instruction_ids((1, 2))[None], [(image, state)], [])
    return cache, 2 * torch.rand(1, 3, 1, at.chunk_steps, len(model.spec.action)) - 1


def test_a_prefix_in_every_row_changes_only_the_cost(model):
    """Catches a contestant that imagines something else."""
    cache, actions = situation(model)
    found = {name: contestant.run() for name, contestant in decoders(model, cache, actions, rereading=False).items()}
    shared, copied = found[AUTOREGRESSIVE], found[AUTOREGRESSIVE_COPIES]
    assert torch.equal(shared.image_ids[0], copied.image_ids[:, 0])
    torch.testing.assert_close(shared.value[0], copied.value[:, 0], atol=1e-5, rtol=1e-4)


def test_all_products_of_a_training_step_are_seen():
    """Catches a bare loop that leaves out the products of the gradients, or takes other shapes."""
    layer, x = torch.nn.Linear(4, 6, bias=False), torch.ones(5, 4, requires_grad=True)
    with Products() as products:
        layer(x).sum().backward()
    shapes = [tuple(tuple(t.shape) for t in inputs) for _, inputs in products.calls]
    assert sorted(shapes) == sorted([((5, 4), (4, 6)), ((6, 5), (5, 4)), ((5, 6), (6, 4))])


def test_generate_draws_what_is_decoded_here(model):
    """Catches a baseline that does other work than ours: a wrong prefix, a cache that is shared wrongly between rows or
    grows from call to call, an id that is not legal where it stands."""
    pytest.importorskip("transformers", reason="needs the optional package `transformers`")
    from agent.benchmark.generate import generators, random_model
    from world_model.nn.transformer import TransformerConfig

    torch.manual_seed(0)
    tiny = TransformerConfig(width=48, num_layers=2, num_heads=4, num_kv_heads=2, hidden=96)
    small = random_model(model.spec, model.actions, tiny)
    cache, actions = situation(small)
    at = small.layout
    history = torch.cat([at.instruction_ids((1, 2))[None], at.obs_ids(cache.image, cache.state)], dim=1)
    ours = small.imagine(cache, actions, "autoregressive")
    expected = at.obs_ids(ours.image_ids[0, :, 0], at.to_bins(ours.state[0, :, 0]))
    found = generators(small, history, actions[0, :, 0])
    for run in (*found.values(), *found.values()):
        assert torch.equal(run(), expected)
