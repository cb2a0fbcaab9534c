"""The score must prefer success, sooner, and with less doubt."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from agent.planning.objective import Objective


def imagined(value, success, uncertainty=None):
    value, success = torch.tensor(value), torch.tensor(success)
    unsure = torch.zeros_like(value) if uncertainty is None else torch.tensor(uncertainty)
    return SimpleNamespace(value=value, success=success, uncertainty=unsure)


def test_one_step_is_the_discounted_value():
    """Catches a horizon that is off by one chunk."""
    score = Objective(discount=0.99, uncertainty=0.0)(imagined([[0.5], [0.8]], [[0.0], [0.0]]))
    torch.testing.assert_close(score, 0.99**8 * torch.tensor([0.5, 0.8]))


def test_sooner_success_is_better_and_counts_once():
    """Catches summing success over steps, which would pay for staying in a finished state."""
    score = Objective(discount=0.99, uncertainty=0.0)(imagined([[1.0, 1.0], [0.9, 1.0]], [[1.0, 1.0], [0.0, 1.0]]))
    torch.testing.assert_close(score, torch.tensor([0.99**8, 0.99**16]))


def test_uncertainty_costs_by_its_weight():
    """Catches a penalty with the wrong sign, or one that grows with the horizon."""
    futures = imagined([[0.5, 0.5], [0.5, 0.5]], [[0.0, 0.0], [0.0, 0.0]], [[0.0, 0.0], [0.2, 0.4]])
    sure, unsure = Objective(uncertainty=2.0)(futures)
    assert float(sure - unsure) == pytest.approx(0.6, abs=1e-6)


def test_shapes_are_checked():
    """Catches a silent broadcast of (N,) against (N, H)."""
    with pytest.raises(ValueError, match=r"\(R, N, H\)"):
        Objective()(imagined([0.5, 0.5], [0.0, 0.0]))


def scenes(robots: int) -> SimpleNamespace:
    """Two futures of two model steps of each robot; the last state of each counts up."""
    futures = imagined([[[0.5, 0.5], [0.5, 0.5]]] * robots, [[[0.0, 0.0], [0.0, 0.0]]] * robots)
    futures.keypoints = torch.zeros(robots, 2, 2, 4, 3)
    futures.state, futures.held = torch.zeros(robots, 2, 2, 7), torch.tensor([[[1.0, 0.0], [0.0, 1.0]]] * robots)
    futures.state[:, :, -1] = torch.arange(7.0)
    return futures


def test_progress_is_asked_of_the_last_scene_imagined():
    """Catches a search for what is far on the way there, or for how things are now; and a hand that is told wrong."""

    def measure(keypoints: np.ndarray, state: np.ndarray, held: np.ndarray) -> np.ndarray:
        assert keypoints.shape == (3, 2, 4, 3) and state.tolist() == [[[*range(7)]] * 2] * 3
        return 0.5 * held

    without, score = Objective()(scenes(3)), Objective(progress=4.0, measure=measure)(scenes(3))
    torch.testing.assert_close(score - without, torch.tensor([[0.0, 2.0]] * 3))


def test_robots_do_not_mix():
    """Catches a sum or a mean over the wrong dimension."""
    generator = torch.Generator().manual_seed(0)
    value, success, unsure = torch.rand(3, 2, 5, 4, generator=generator)
    objective = Objective(uncertainty=0.3)
    together = objective(SimpleNamespace(value=value, success=success, uncertainty=unsure))
    for robot in range(2):
        alone = SimpleNamespace(value=value[robot], success=success[robot], uncertainty=unsure[robot])
        assert torch.equal(objective(alone), together[robot])


def test_progress_needs_a_task_that_tells_it():
    """Catches a weight that silently weighs nothing."""
    with pytest.raises(ValueError, match="progress=0"):
        Objective(progress=1.0)
