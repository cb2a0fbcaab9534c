"""Commands that do not arrive as they were meant."""

from dataclasses import dataclass

import numpy as np
import pytest

from envs.types import Observation
from policies.disturbed import Disturbed
from tests.robots import HANDS, made_up


@dataclass(frozen=True)
class Still:
    execute: int = 2

    def init(self, instruction, seed=0):
        return 0

    def act(self, observation, state):
        return np.tile(SPEC.rest, (4, 1)), state + 1


SPEC = HANDS


def asked(policy: Disturbed, seed: int, times: int = 1) -> np.ndarray:
    episode = made_up(SPEC, 0)
    seen = Observation.stack([Observation({n: i[0] for n, i in episode.images.items()}, episode.state[0])])
    states = [policy.init("x", seed)]
    for _ in range(times):
        chunks, states = policy.act(seen, states)
    assert states[0].inner == times
    return chunks[0]


def test_grippers_arrive_and_nothing_leaves_its_range():
    """Catches jaws that open because of noise, and commands beyond what the robot takes."""
    chunk = asked(Disturbed(Still(), SPEC, noise=5.0), 0)
    grippers = list(SPEC.grippers)
    assert grippers and (chunk[:, grippers] == SPEC.rest[grippers]).all()
    assert (chunk >= SPEC.action_low).all() and (chunk <= SPEC.action_high).all() and chunk.dtype == np.float32


def test_noise_is_a_function_of_seed_and_decision():
    """Catches episodes that cannot be repeated, and noise that is the same at every decision, which is a bias."""
    policy = Disturbed(Still(), SPEC, noise=0.2)
    assert np.array_equal(asked(policy, 3), asked(policy, 3))
    assert not np.array_equal(asked(policy, 3), asked(policy, 4))
    assert not np.array_equal(asked(policy, 3), asked(policy, 3, times=2))


def test_bias_and_speed_are_shares_of_half_the_range():
    """Catches a bias in the robot's units, of which each dimension has its own."""
    moves = [i for i, part in enumerate(SPEC.action) if not part.gripper]
    half = (SPEC.action_high - SPEC.action_low) / 2
    still = asked(Disturbed(Still(), SPEC), 0)
    np.testing.assert_allclose(still, np.tile(SPEC.rest, (4, 1)), atol=1e-6)
    moved = asked(Disturbed(Still(), SPEC, bias=0.1), 0) - still
    np.testing.assert_allclose(moved[:, moves], np.tile(0.1 * half[moves], (4, 1)), atol=1e-6)
    with pytest.raises(ValueError, match="noise must be 0 or more"):
        Disturbed(Still(), SPEC, noise=-1.0)
