from contextlib import closing

import gymnasium as gym
import numpy as np
import pytest

import envs  # noqa: F401  (registers the ids)
from envs.types import TABLE_HEIGHT
from policies.base import rollout
from policies.exploration import Play, RandomPolicy
from policies.scripted.experts import CLOSE, OPEN, LiftExpert
from tests.reach import Reach


@pytest.fixture(scope="module")
def played():
    """One episode of Lift: 120 control steps of play, then the expert."""
    with closing(gym.make("nextstate/Lift-v0").unwrapped) as env:
        env.horizon = 80
        return rollout(env, Play(LiftExpert(), lasting=(120, 121)), seed=4, expert=LiftExpert()).episode


def test_play_stays_where_things_are_and_uses_its_jaws(played):
    """Catches play that drifts out of sight, and play that never touches anything."""
    here = played.state[:120, :3]
    assert (np.abs(here[:, :2]) < 0.3).all() and TABLE_HEIGHT < here[:, 2].min() < TABLE_HEIGHT + 0.06
    assert here[:, 2].max() < TABLE_HEIGHT + 0.3 and np.ptp(here, axis=0).min() > 0.1
    assert set(np.unique(played.action[:120, -1])) == {OPEN, CLOSE}
    assert np.abs(played.action - played.expert)[:120, :3].mean() > 0.1, "it does what the expert would do"


def test_the_expert_takes_over(played):
    """Catches play without an end: the ways back, which are worth most, are then missing."""
    assert played.success[-1] and len(played) > 120
    np.testing.assert_array_equal(played.action[120:], played.expert[120:])
    assert played.detour == 120


class Counts:
    """Chunks of three, of which two are done; the gripper commands say which of an episode's they are."""

    execute = 2

    def init(self, instruction, seed=0):
        return 0

    def act(self, obs, state):
        chunk = np.zeros((3, 7), np.float32)
        chunk[:, -1] = [state, state + 0.1, state + 0.2]
        return chunk, state + 0.5


def test_who_takes_over_remembers_and_does_its_chunks():
    """Catches a learned policy that forgets its history, or that looks again before its chunk is done."""
    with closing(gym.make("nextstate/Lift-v0").unwrapped) as env:
        env.horizon = 4
        episode = rollout(env, Play(Counts(), lasting=(5, 6)), seed=4).episode
    np.testing.assert_allclose(episode.action[5:, -1], [0, 0.1, 0.5, 0.6], atol=1e-6)


def test_random_motion_is_smooth_and_repeats_itself():
    """Catches white noise, of which a robot makes nothing, and a seed that is not used."""
    env = Reach()
    first, again, other = (rollout(env, RandomPolicy(), seed).episode.action for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)
    assert np.corrcoef(first[:-1, 0], first[1:, 0])[0, 1] > 0.3
