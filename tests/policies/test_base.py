import numpy as np
import pytest

from envs.types import Observation
from policies.base import OneByOne, ask, batched


class Echo:
    """For one robot: as many rows as it is told; remembers how often it was asked."""

    execute = 1
    privileged = True

    def __init__(self, rows=lambda state: 2):
        self.rows = rows

    def init(self, instruction, seed=0):
        return seed

    def act(self, observation, state, scene):
        return np.full((self.rows(state), 3), observation.state[0] + scene), state + 1


def observations(*first):
    return Observation({"eye": np.zeros((len(first), 8, 8, 3), np.uint8)}, np.array(first, np.float32)[:, None])


def test_each_robot_keeps_its_own():
    """Catches states, observations or scenes of one robot that reach another."""
    policy = batched(Echo())
    chunks, states = ask(policy, observations(1, 2, 3), [10, 20, 30], [0.1, 0.2, 0.3])
    np.testing.assert_allclose(chunks[:, 0, 0], [1.1, 2.2, 3.3])
    assert chunks.shape == (3, 2, 3) and states == [11, 21, 31] and policy.init("", 7) == 7


def test_a_batched_policy_is_left_alone():
    """Catches a policy for many robots that is asked one by one, at B times the cost."""
    once = OneByOne(Echo())
    assert batched(once) is once


def test_chunks_of_different_lengths_are_refused():
    """Catches an error of numpy's in place of one that says whose fault it is."""
    with pytest.raises(ValueError, match="policy Echo gave chunks of different shapes"):
        batched(Echo(rows=lambda state: state)).act(observations(1, 2), [1, 2], [0, 0])
