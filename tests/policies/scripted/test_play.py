from contextlib import closing

import numpy as np
import pytest

from agent.build import EnvConfig, make_envs
from envs.sim.table import TABLE_HEIGHT
from policies.rollout import rollout
from policies.scripted.lift import LiftExpert
from policies.scripted.motion import CLOSE, OPEN
from policies.scripted.play import Play

LIFT = EnvConfig(id="nextstate/Lift-v0", split="train")


@pytest.fixture(scope="module")
def played():
    """One episode of Lift: 120 control steps of play, then the expert."""
    with closing(make_envs(LIFT)) as envs:
        (run,) = rollout(envs, Play(LiftExpert(), lasting=(120, 121)), [5], LiftExpert(), max_steps=80)
    return run.episode


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
    assert played.off_task_steps == 120


class Counts:
    """Chunks of three, of which two are done; the gripper commands say which of an episode's they are."""

    execute = 2

    def init(self, instruction, seed=0):
        return 0

    def act(self, observation, state):
        chunk = np.zeros((3, 7), np.float32)
        chunk[:, -1] = [state, state + 0.1, state + 0.2]
        return chunk, state + 0.5


def test_who_takes_over_remembers_and_does_its_chunks():
    """Catches a learned policy that forgets its history, or that looks again before its chunk is done."""
    with closing(make_envs(LIFT)) as envs:
        (run,) = rollout(envs, Play(Counts(), lasting=(5, 6)), [4], max_steps=4)
    np.testing.assert_allclose(run.episode.action[5:, -1], [0, 0.1, 0.5, 0.6], atol=1e-6)
