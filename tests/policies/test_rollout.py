from contextlib import closing
from dataclasses import dataclass, replace

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.vector import SyncVectorEnv

from envs.adapter import Adapter, AdapterConfig, vector
from envs.types import Observation, pose_key
from policies.rollout import rollout
from tests.reach import Ahead, Reach, reach_envs


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

    def act(self, observation: Observation, state: Count):
        chunk = np.zeros((8, 7), np.float64)
        chunk[:, 0], chunk[:, 1] = self.speed, np.arange(8) / 10
        asked = (*state.asked, int(observation.images["main"][0, 0, 0]))
        return chunk, replace(state, asked=asked, late=state.late + 1)


def run(policy, seed, robots=1, **settings):
    """The rollout of one seed."""
    with closing(reach_envs(robots, **settings.pop("env", {}))) as envs:
        (only,) = rollout(envs, policy, [seed], **settings)
    return only


def test_executes_the_first_steps_of_each_chunk():
    """Executing a stale chunk to its end, or asking every step: both change what `execute` means."""
    steps = []
    done = run(Forward(execute=2), 3, on_step=steps.append)
    episode = done.episode
    assert len(episode) == 5 and len(episode.state) == 6  # 0.0x + 5 x 0.1 passes 0.5
    np.testing.assert_allclose(episode.action[:, 1], [0, 0.1, 0, 0.1, 0])
    assert steps[-1].state.asked == (0, 2, 4)
    assert [s.decided for s in steps] == [True, False, True, False, True]
    assert [s.index for s in steps] == [0, 1, 2, 3, 4] and steps[-1].info["success"]
    assert len(done.decision_seconds) == 3 and (done.decision_seconds >= 0).all() and done.late_decisions == 3


def test_what_is_recorded():
    """Labels shifted by a step against the observations: the classic off-by-one of recorders."""
    done = run(Forward(), 3, expert=Forward(execute=1, speed=0.5))
    episode = done.episode
    x = episode.state[:, 0]
    np.testing.assert_array_equal(episode.images["main"][:, 0, 0, 0], np.arange(6))
    np.testing.assert_array_equal(episode.expert[:, 0], np.full(5, 0.5, np.float32))
    np.testing.assert_array_equal(episode.keypoints[:, 0, 0], x)
    np.testing.assert_array_equal(episode.held, np.where(x > 0.3, 0, -1))
    assert [episode.subtask_names[i] for i in episode.subtask] == ["go" if v < 0.3 else "arrive" for v in x[:-1]]
    np.testing.assert_array_equal(episode.success, x > 0.5)
    assert (episode.seed, episode.split, episode.instruction) == (3, "seen", "reach")
    assert (episode.terminated, episode.truncated) == (True, False)
    assert done.score == {"distance": pytest.approx(abs(0.5 - x[-1]), abs=1e-6)}
    assert done.outside == {"gripper.x": 2, "gripper.z": 6}  # x above 0.4 at the end; z is 0 throughout


def test_without_expert_labels_are_nan():
    """Unlabelled steps that look like an expert who stands still."""
    assert np.isnan(run(Forward(), 0).episode.expert).all()


@pytest.mark.parametrize("robots", [2, 3, 8])
def test_many_robots_do_what_each_would_do_alone(robots):
    """Catches robots that get each other's observations, seeds, states, chunks or ends, and seeds that get lost."""
    with closing(reach_envs(robots)) as envs:
        runs = rollout(envs, Forward(execute=2), range(7), Forward(execute=1, speed=0.5))
        together = {run.episode.seed: run for run in runs}
    assert sorted(together) == list(range(7))
    for seed, other in together.items():
        alone = run(Forward(execute=2), seed, expert=Forward(execute=1, speed=0.5))
        for name in ("state", "action", "expert", "success", "progress", "keypoints", "reward"):
            np.testing.assert_array_equal(getattr(other.episode, name), getattr(alone.episode, name))
        assert (other.score, other.late_decisions) == (alone.score, alone.late_decisions)


@dataclass(frozen=True)
class Mixed(Forward):
    """Half the seeds never arrive."""

    def init(self, instruction, seed=0):
        return replace(Count(), late=100 * (seed % 2))

    def act(self, observation, state):
        chunk, after = super().act(observation, state)
        return (0 if state.late >= 100 else 1) * chunk, after


def test_episodes_of_different_length_side_by_side():
    """Catches a robot that starts its next episode only when all have ended, or that is cut off by another's end."""
    with closing(reach_envs(2)) as envs:
        runs = list(rollout(envs, Mixed(), range(6)))
    lengths = {r.episode.seed: len(r.episode) for r in runs}
    assert lengths[1] == lengths[3] == lengths[5] == 12 and max(lengths[s] for s in (0, 2, 4)) < 7
    assert [r.episode.seed for r in runs] != sorted(lengths), "the short ones end first"
    assert [r.episode.truncated for r in sorted(runs, key=lambda r: r.episode.seed)] == [False, True] * 3


def test_stops_at_the_limit():
    """A policy that never succeeds must end, whatever the environment says of time."""
    episode = run(Forward(speed=0.0), 0).episode
    assert len(episode) == 12 and episode.truncated and not episode.success.any()
    assert len(run(Forward(speed=0.0), 0, max_steps=5).episode) == 5


@dataclass(frozen=True)
class Astray(Forward):
    """Its first five control steps do not serve the task."""

    def act(self, observation, state):
        chunk, state = super().act(observation, state)
        asked = len(state.asked)
        return chunk, Away(state.asked, off_task_steps=min(2 * asked, 5))


@dataclass(frozen=True)
class Away(Count):
    off_task_steps: int = 0


def test_play_takes_none_of_the_time():
    """Catches failures that only say that play lasted long: what follows it gets the whole time for the task."""
    episode = run(Astray(speed=0.0), 0).episode
    assert episode.off_task_steps == 5 and len(episode) == 5 + 12 and not episode.success.any()
    assert run(Astray(), 3).episode.success[-1]


def test_same_seed_same_episode():
    """A seed that does not reach the environment."""
    first, again, other = (run(Forward(), s).episode for s in (1, 1, 2))
    np.testing.assert_array_equal(first.state, again.state)
    assert not np.array_equal(first.state[0], other.state[0])


def test_actions_are_cut_to_their_range_and_counted():
    """What is recorded must be what the robot was told, not what the policy wished; and nothing is cut in silence."""
    done = run(Forward(speed=9.0), 0)
    assert done.episode.action[:, 0].max() == 1.0 and done.clipped == {"dx": len(done.episode) // 2 * 2 + 2}
    assert not run(Forward(), 0).clipped


def test_nan_action_names_policy_and_step():
    """A NaN that reaches the simulator poisons it silently."""
    with pytest.raises(ValueError, match=r"policy Forward failed at control step 0: .*not finite"):
        run(Forward(speed=np.nan), 0)


def test_nan_observation_names_field_and_step():
    """A broken sensor must be named at the border, not show up as a strange action."""
    with pytest.raises(ValueError, match=r"observation `state` is not finite.*control step 4"):
        run(Forward(), 0, env={"break_at": 4})


@dataclass(frozen=True)
class SingleAction(Forward):
    def act(self, observation, state):
        return np.zeros(7), state


@dataclass(frozen=True)
class Short(Forward):
    def act(self, observation, state):
        return np.zeros((1, 7)), state


@pytest.mark.parametrize("policy", [SingleAction(), Short()])
def test_chunk_shape(policy):
    """A single action taken for a chunk of 7 one-dimensional steps, or a chunk shorter than what is executed."""
    with pytest.raises(ValueError, match=r"control step 0: a chunk must be \(M, 7\)"):
        run(policy, 0)


def test_an_environment_that_resets_itself_is_refused():
    """Catches episodes that run on into the next one, under one seed."""
    with closing(SyncVectorEnv([lambda: Adapter(Reach(), "seen")])) as envs:
        with pytest.raises(ValueError, match="autoreset_mode=DISABLED"):
            next(rollout(envs, Ahead(), [0]))


class Counted(Reach):
    """It tells a simulator's state, and where one of its cameras is: nobody knows at first."""

    robot_spec = replace(Reach.robot_spec, cameras=tuple(replace(c, posed=True) for c in Reach.robot_spec.cameras))
    observation_space = gym.spaces.Dict(
        {**Reach.observation_space, pose_key("wrist"): gym.spaces.Box(-np.inf, np.inf, (8,))}
    )

    def sim_state(self, whole):
        return np.array([self.steps, self.x, whole])

    def _now(self):
        obs, info = super()._now()
        pose = np.float32([self.steps, 0, 1, 1, 0, 0, 0, 0.7])
        return obs | {pose_key("wrist"): pose if self.steps else np.full(8, np.nan, np.float32)}, info


def test_poses_and_states_are_recorded():
    """Poses and states shifted by a step against the pictures, or another robot's; those of a robot that waits."""
    makers = [lambda: Adapter(Counted(), "seen", AdapterConfig(max_steps=12))] * 3
    with closing(vector(makers)) as envs:
        runs = list(rollout(envs, Forward(), [3, 4, 5, 6], states="whole"))
        (plain,) = rollout(envs, Forward(), [3])
        (drawn,) = rollout(envs, Forward(), [3], states="drawn")
    assert plain.episode.sim_state.size == 0 and not drawn.episode.sim_state[:, 2].any() and len(runs) == 4
    for episode in (run.episode for run in runs):
        count = np.arange(len(episode) + 1)
        np.testing.assert_array_equal(episode.sim_state[:, ::2], np.stack([count, np.ones_like(count)], axis=1))
        np.testing.assert_allclose(episode.sim_state[:, 1], episode.state[:, 0], rtol=1e-6)
        assert list(episode.poses) == ["wrist"] and np.isnan(episode.poses["wrist"][0]).all()
        np.testing.assert_array_equal(episode.poses["wrist"][1:, 0], count[1:])
    silent = run(Forward(), 3, states="whole").episode
    assert silent.sim_state.shape == (0, 0) and not silent.poses


def test_a_bad_pose_is_named():
    """A pose in another convention that is recorded as the truth."""

    class Bent(Counted):
        def _now(self):
            obs, info = super()._now()
            return obs | {pose_key("wrist"): np.float32([0, 0, 1, 2, 0, 0, 0, 0.7])}, info

    with closing(vector([lambda: Adapter(Bent(), "seen")])) as envs:
        with pytest.raises(ValueError, match="poses. of wrist must hold a unit quaternion.*control step 0"):
            list(rollout(envs, Forward(), [0]))
