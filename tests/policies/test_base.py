from dataclasses import dataclass, replace

import numpy as np
import pytest

from envs.types import Obs
from policies.base import rollout
from tests.reach import Reach


@dataclass(frozen=True)
class Count:
    """What a Forward policy remembers: the control steps at which it was asked."""

    asked: tuple[int, ...] = ()
    late: int = 0


@dataclass(frozen=True)
class Forward:
    """Chunks of 8 steps ahead, numbered in the second dimension so that the test sees which were executed."""

    execute: int = 2
    speed: float = 1.0

    def init(self, instruction: str, seed: int = 0) -> Count:
        assert instruction == "reach"
        return Count()

    def act(self, obs: Obs, state: Count):
        chunk = np.zeros((8, 7), np.float64)
        chunk[:, 0], chunk[:, 1] = self.speed, np.arange(8) / 10
        return chunk, replace(state, asked=(*state.asked, int(obs.main[0, 0, 0])), late=state.late + 1)


def test_executes_the_first_steps_of_each_chunk():
    """Executing a stale chunk to its end, or asking every step: both change what `execute` means."""
    steps = []
    run = rollout(Reach(), Forward(execute=2), seed=3, on_step=steps.append)
    episode = run.episode
    assert len(episode) == 5 and len(episode.main) == 6  # 0.0x + 5 x 0.1 passes 0.5
    np.testing.assert_allclose(episode.action[:, 1], [0, 0.1, 0, 0.1, 0])
    assert steps[-1].state.asked == (0, 2, 4)
    assert [s.decided for s in steps] == [True, False, True, False, True]
    assert [s.index for s in steps] == [0, 1, 2, 3, 4] and steps[-1].info["success"]
    assert len(run.decision_seconds) == 3 and (run.decision_seconds >= 0).all() and run.late_decisions == 3


def test_what_is_recorded():
    """Labels shifted by a step against the observations: the classic off-by-one of recorders."""
    run = rollout(Reach(), Forward(), seed=3, expert=Forward(execute=1, speed=0.5))
    episode = run.episode
    x = episode.state[:, 0]
    np.testing.assert_array_equal(episode.main[:, 0, 0, 0], np.arange(6))
    np.testing.assert_array_equal(episode.expert[:, 0], np.full(5, 0.5, np.float32))
    np.testing.assert_array_equal(episode.keypoints[:, 0, 0], x)
    np.testing.assert_array_equal(episode.held, np.where(x > 0.3, 0, -1))
    assert [episode.subtask_names[i] for i in episode.subtask] == ["go" if v < 0.3 else "arrive" for v in x[:-1]]
    np.testing.assert_array_equal(episode.success, x > 0.5)
    assert (episode.seed, episode.split, episode.instruction) == (3, "seen", "reach")
    assert run.score == {"distance": pytest.approx(abs(0.5 - x[-1]), abs=1e-6)}


def test_without_expert_labels_are_nan():
    """Unlabelled steps that look like an expert who stands still."""
    assert np.isnan(rollout(Reach(), Forward(), seed=0).episode.expert).all()


def test_stops_at_the_horizon():
    """A policy that never succeeds must end by truncation."""
    episode = rollout(Reach(), Forward(speed=0.0), seed=0).episode
    assert len(episode) == 12 and not episode.success.any()


@dataclass(frozen=True)
class Astray(Forward):
    """Its first five control steps are a detour."""

    def act(self, obs, state):
        chunk, state = super().act(obs, state)
        asked = len(state.asked)
        return chunk, Away(state.asked, detour=min(2 * asked, 5))


@dataclass(frozen=True)
class Away(Count):
    detour: int = 0


def test_a_detour_takes_none_of_the_time():
    """Catches failures that only say that play lasted long: what follows it gets the whole time for the task."""
    episode = rollout(Reach(), Astray(speed=0.0), seed=0).episode
    assert episode.detour == 5 and len(episode) == 5 + 12 and not episode.success.any()
    assert rollout(Reach(), Astray(), seed=3).episode.success[-1]


def test_same_seed_same_episode():
    """A seed that does not reach the environment."""
    first, again, other = (rollout(Reach(), Forward(), seed=s).episode for s in (1, 1, 2))
    np.testing.assert_array_equal(first.state, again.state)
    assert not np.array_equal(first.state[0], other.state[0])


def test_actions_are_clipped():
    """What is recorded must be what the robot was told, not what the policy wished."""
    episode = rollout(Reach(), Forward(speed=9.0), seed=0).episode
    assert episode.action[:, 0].max() == 1.0


def test_nan_action_names_policy_and_step():
    """A NaN that reaches the simulator poisons it silently."""
    with pytest.raises(ValueError, match=r"policy Forward failed at control step 0: .*not finite"):
        rollout(Reach(), Forward(speed=np.nan), seed=0)


def test_nan_observation_names_field_and_step():
    """A broken sensor must be named at the border, not show up as a strange action."""
    with pytest.raises(ValueError, match=r"observation `state` is not finite.*control step 4"):
        rollout(Reach(break_at=4), Forward(), seed=0)


@dataclass(frozen=True)
class Single(Forward):
    def act(self, obs, state):
        return np.zeros(7), state


@dataclass(frozen=True)
class Short(Forward):
    def act(self, obs, state):
        return np.zeros((1, 7)), state


@pytest.mark.parametrize("policy", [Single(), Short()])
def test_chunk_shape(policy):
    """A single action taken for a chunk of 7 one-dimensional steps, or a chunk shorter than what is executed."""
    with pytest.raises(ValueError, match=r"control step 0: a chunk must be \(M, 7\)"):
        rollout(Reach(), policy, seed=0)
