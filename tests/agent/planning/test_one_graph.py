"""The whole search in the imagination of a world model, as one graph."""

import warnings
from dataclasses import replace

import pytest
import torch

from agent.planning.candidates import ActionSpace
from agent.planning.objective import Objective
from agent.planning.planner import Planner, PlannerConfig
from agent.planning.policies import ModelPolicy
from world_model.training.start import continued


@pytest.mark.parametrize("stride", [None, 2])
def test_a_search_in_imagination_is_one_graph(untrained, stride):
    """Catches a value that is looked at within imagining or searching (`.item()`, `.cpu()`, a branch): a compiler
    stops there, and a GPU waits. Two robots, two model steps, two iterations, and one more step by the model itself."""
    torch.manual_seed(0)
    model = ModelPolicy.load(untrained, device="cpu").model
    if stride:
        model = continued(model, replace(model.config, strides=(stride,)))
    model.precision = torch.float32
    at, robots = model.layout, 2
    image = torch.randint(model.vocab.vision.size, (robots, at.image_ids))
    state = torch.randint(model.vocab.state.size, (robots, at.state_dim)).float()
    cache = model.context(at.instruction_ids((1, 2)).repeat(robots, 1), [(image, state)], [])
    budget = PlannerConfig(candidates=3, iterations=2, horizon=2, follow=1, elites=2, imagine=stride)
    planner = Planner(budget, Objective(0.997))
    generators = [torch.Generator().manual_seed(i) for i in range(robots)]
    proposed = model.propose(cache, 2, 1.0, generators)
    space = ActionSpace.of(model.spec, planner._coefs(model), at.chunk_steps)
    seeds = planner._seeds(space.hold(proposed, 2, stride or 8), [None] * robots, 2)
    draws = planner._draw(generators, seeds, space)

    def decide(cache, seeds, space, draws):
        rounds = planner.search(model, cache, seeds, space, draws)
        scores = torch.cat([one.scores for one in rounds], dim=1)
        return scores, planner.choose(scores, torch.full((robots,), scores.shape[1])), rounds[-1].imagined.image_ids

    with torch.no_grad(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Dynamo detected a call to a `functools.lru_cache`")
        expected = decide(cache, seeds, space, draws)
        compiled = torch.compile(decide, fullgraph=True, backend="aot_eager")(cache, seeds, space, draws)
    assert expected[0].shape == (robots, 6)
    torch.testing.assert_close(compiled[0], expected[0])
    assert torch.equal(compiled[1], expected[1]) and torch.equal(compiled[2], expected[2])
