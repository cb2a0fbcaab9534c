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


def score(value, success, discount: float = 0.5, chunk: int = 1) -> list[float]:
    """With a discount so strong that the terms can be told apart."""
    return Objective(discount=discount, uncertainty=0.0)(imagined(value, success), chunk).tolist()


def test_one_step_is_the_discounted_value():
    """Catches a horizon that is off by one chunk, and success that counts beside the value which contains it."""
    assert score([[0.5], [0.8]], [[0.0], [0.0]], 0.99, 8) == pytest.approx([0.99**8 * 0.5, 0.99**8 * 0.8])
    # a value of 0.6 is the expectation of success now (0.5) and of success later or never
    assert score([[0.6]], [[0.5]]) == pytest.approx([0.5 * 0.6])
    assert score([[1.0]], [[1.0]]) == pytest.approx([0.5])


def test_two_steps_by_hand():
    """Catches a value that is weighted by success at its own step, or not by success before it."""
    # 0.4 succeed at the first step; of the 0.6 that do not, the value at the second says 0.7
    assert score([[0.9, 0.7]], [[0.4, 0.2]]) == pytest.approx([0.5 * 0.4 + 0.25 * 0.6 * 0.7])
    # control steps, not model steps, are discounted
    assert score([[0.9, 0.7]], [[0.4, 0.2]], 0.9, 2) == pytest.approx([0.9**2 * 0.4 + 0.9**4 * 0.6 * 0.7])


def test_three_steps_by_hand():
    """Catches first success that is taken for any success."""
    first, second = 0.2, 0.8 * 0.5
    expected = 0.5 * first + 0.25 * second + 0.125 * (1 - first - second) * 0.9
    assert score([[0.1, 0.2, 0.9]], [[0.2, 0.5, 0.6]]) == pytest.approx([expected])


def test_sooner_success_is_better_and_counts_once():
    """Catches summing success over steps, which would pay for staying in a finished state."""
    found = score([[1.0, 1.0], [0.9, 1.0]], [[1.0, 1.0], [0.0, 1.0]], 0.99, 8)
    assert found == pytest.approx([0.99**8, 0.99**16])


def test_a_longer_horizon_says_the_same_of_a_future_that_goes_as_the_value_says():
    """Catches a score that grows or shrinks with the horizon alone: success is due in 40 control steps, and values say
    so at every step on the way there."""
    due, gamma, chunk = 40, 0.99, 8
    for horizon in range(1, 8):
        steps = chunk * np.arange(1, horizon + 1)
        value = [[float(gamma ** max(due - step, 0)) for step in steps]]
        success = [[float(step >= due) for step in steps]]
        assert score(value, success, gamma, chunk) == pytest.approx([gamma**due], rel=1e-5)


def test_uncertainty_costs_by_its_weight():
    """Catches a penalty with the wrong sign, or one that grows with the horizon."""
    futures = imagined([[0.5, 0.5], [0.5, 0.5]], [[0.0, 0.0], [0.0, 0.0]], [[0.0, 0.0], [0.2, 0.4]])
    sure, unsure = Objective(0.997, uncertainty=2.0)(futures)
    assert float(sure - unsure) == pytest.approx(0.6, abs=1e-6)


def test_shapes_are_checked():
    """Catches a silent broadcast of (N,) against (N, H)."""
    with pytest.raises(ValueError, match=r"\(R, N, H\)"):
        Objective(0.997)(imagined([0.5, 0.5], [0.0, 0.0]))


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

    without, score = Objective(0.997)(scenes(3)), Objective(0.997, progress=4.0, measure=measure)(scenes(3))
    torch.testing.assert_close(score - without, torch.tensor([[0.0, 2.0]] * 3))


def test_robots_do_not_mix():
    """Catches a sum or a mean over the wrong dimension."""
    generator = torch.Generator().manual_seed(0)
    value, success, unsure = torch.rand(3, 2, 5, 4, generator=generator)
    objective = Objective(0.997, uncertainty=0.3)
    together = objective(SimpleNamespace(value=value, success=success, uncertainty=unsure))
    for robot in range(2):
        alone = SimpleNamespace(value=value[robot], success=success[robot], uncertainty=unsure[robot])
        assert torch.equal(objective(alone), together[robot])


def test_progress_needs_a_task_that_tells_it():
    """Catches a weight that silently weighs nothing."""
    with pytest.raises(ValueError, match="progress=0"):
        Objective(progress=1.0)


def test_a_discount_is_needed_and_is_the_values():
    """Catches a default that is silently another than the checkpoint's."""
    with pytest.raises(ValueError, match="no discount"):
        Objective()(imagined([[0.5]], [[0.0]]))
    assert Objective(uncertainty=3.0).for_value(0.9, "it") == Objective(0.9, uncertainty=3.0)
    with pytest.raises(ValueError, match=r"discount=0\.8, but the value of it .* 0\.9"):
        Objective(0.8).for_value(0.9, "it")
