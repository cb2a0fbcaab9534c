"""How far apart two states are."""

import pytest
import torch

from envs.sim.table import SPEC
from tests.robots import ARM, HANDS
from world_model.metrics.states import error_name, moving_dims, state_error, unit_sizes


def test_positions_count_in_metres():
    """Catches a hand whose position is not looked at, and a distance over other dimensions than positions."""
    state, true = torch.zeros(7), torch.tensor([0.03, 0.0, 0.04, 9.0, 9.0, 9.0, 9.0])
    assert state_error(SPEC, state, true).item() == pytest.approx(0.05)
    both = torch.tensor([0.03, 0.0, 0.04, 0.0, 0.0, 0.01])
    assert state_error(HANDS, torch.zeros(2, 6), both).tolist() == pytest.approx([0.03, 0.03])
    assert error_name(SPEC) == ("position_cm", 100)


def test_without_positions_shares_of_ranges_count():
    """Catches radians and newtons that are added up."""
    spec = ARM.with_ranges([-1.0] * 3 + [0.0], [1.0] * 3 + [100.0])
    off = torch.tensor([0.2, 0.2, 0.2, 10.0])
    assert state_error(spec, torch.zeros(4), off).item() == pytest.approx(0.1)
    assert error_name(spec) == ("state_error", 1) and moving_dims(spec) == [0, 1, 2, 3]


def test_units():
    """Catches a unit of one kind that outweighs all others where futures are told apart by state."""
    assert unit_sizes(SPEC).tolist() == pytest.approx([0.01] * 3 + [0.1] * 3 + [0.01])
    spec = ARM.with_ranges([-1.0] * 3 + [0.0], [1.0] * 3 + [100.0])
    assert unit_sizes(spec).tolist() == pytest.approx([0.1, 0.1, 0.1, 1.0])
    assert moving_dims(SPEC) == [0, 1, 2] and moving_dims(HANDS) == [0, 1, 2, 3, 4, 5]
