"""Which side an episode is on depends on its seed alone."""

import numpy as np
import pytest

from envs.data.split import is_held_out

HELD = [0, 7, 9, 10, 33, 40, 44, 51, 57, 59]  # of the first 60 seeds, one in 10, by sha256sum


def test_about_one_in_n_is_held_out():
    """Catches a hash that is not even, and seeds that follow each other being on the same side."""
    for every in (2, 10):
        held = np.array([is_held_out(seed, every) for seed in range(20_000)])
        assert abs(held.mean() * every - 1) < 0.05
        assert abs((held[1:] & held[:-1]).mean() * every**2 - 1) < 0.2


def test_sides_are_the_same_everywhere():
    """Catches a rule that changes with Python's hash seed, the version or the kind of number: test data become
    training data."""
    assert [seed for seed in range(60) if is_held_out(seed, 10)] == HELD
    assert is_held_out(HELD[0], 10) == is_held_out(np.int64(HELD[0]), 10)


def test_nothing_to_train_on_is_refused():
    """Catches `held_out: 1`, which would hold out every episode, and a division by zero."""
    for every in (1, 0):
        with pytest.raises(ValueError, match="at least 2"):
            is_held_out(3, every)
