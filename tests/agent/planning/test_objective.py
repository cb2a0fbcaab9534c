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
    with pytest.raises(ValueError, match=r"\(N, H\)"):
        Objective()(imagined([0.5, 0.5], [0.0, 0.0]))


def test_progress_is_asked_of_the_last_scene_imagined():
    """Catches a search for what is far on the way there, or for how things are now; and a hand that is told wrong."""
    futures = imagined([[0.5, 0.5], [0.5, 0.5]], [[0.0, 0.0], [0.0, 0.0]])
    futures.keypoints = torch.zeros(2, 2, 4, 3)
    futures.state, futures.held = torch.zeros(2, 2, 7), torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    futures.state[:, -1] = torch.arange(7.0)  # position, rotation, opening

    def measure(keypoints: np.ndarray, gripper: np.ndarray, opening: np.ndarray, holding: np.ndarray) -> np.ndarray:
        assert keypoints.shape == (2, 4, 3)
        assert gripper.tolist() == [[0, 1, 2]] * 2 and opening.tolist() == [6, 6]
        return 0.5 * holding

    without, score = Objective()(futures), Objective(progress=4.0, measure=measure)(futures)
    torch.testing.assert_close(score - without, torch.tensor([0.0, 2.0]))


def test_progress_needs_a_task_that_tells_it():
    """Catches a weight that silently weighs nothing."""
    with pytest.raises(ValueError, match="progress=0"):
        Objective(progress=1.0)
