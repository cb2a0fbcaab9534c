from contextlib import closing

import numpy as np
import pytest

from agent.build import EnvConfig, PolicyConfig, make_env, make_expert, make_policy
from agent.collection.counterfactual import CHUNKS, EVERY, FIRST, KINDS, Seen, WitnessJob, watch
from envs.tasks.lift import Lift
from policies.base import rollout

LIFT = EnvConfig("lift", "nextstate/Lift-v0", "seen", {})


@pytest.fixture(scope="module")
def watched() -> tuple[Seen, object]:
    """A demonstration that was left in several ways, and the same one that was not."""
    with closing(make_env(LIFT)) as env:
        expert, policy = make_expert(LIFT), make_policy(PolicyConfig("perturbed"), LIFT, env)
        return watch(env, "perturbed", policy, expert, seed=1), rollout(env, policy, 1, expert).episode


def test_an_episode_goes_on_as_if_it_had_not_been_left(watched):
    """Catches a fork that does not put the simulator back: what follows is then another episode."""
    seen, alone = watched
    assert len(seen.forks) >= 1
    for name in ("state", "action", "main", "keypoints", "success"):
        np.testing.assert_array_equal(getattr(seen.episode, name), getattr(alone, name))


def test_a_state_is_left_in_different_ways(watched):
    """Catches eight times the same way, or ways of which nothing comes."""
    for place, fork in enumerate(watched[0].forks):
        assert fork.step == FIRST + place * EVERY
        assert fork.actions.shape == (CHUNKS, 8, 7) and np.abs(fork.actions).max() <= 1
        assert fork.main.shape == (CHUNKS, 64, 64, 3) and fork.wrist.shape == (CHUNKS, 32, 32, 3)
        ends = fork.state[:, :3]
        apart = np.linalg.norm(ends[:, None] - ends[None], axis=-1)
        assert np.median(apart[np.triu_indices(CHUNKS, 1)]) > 0.02 and len(np.unique(ends, axis=0)) == CHUNKS
        assert (np.sign(fork.actions[3, :, -1]) == -np.sign(fork.actions[0, :, -1])).all()


def test_the_first_way_is_what_the_expert_does(watched):
    """Catches chunks that start a step late: a fork taken after step t must begin with the advice for step t."""
    seen = watched[0]
    fork = seen.forks[0]
    np.testing.assert_allclose(fork.actions[0, 0], seen.episode.expert[fork.step], atol=1e-6)


def test_a_rescue_is_play_and_then_the_model(untrained, monkeypatch):
    """Catches a rescue by the expert: failures of the model's own, which its values are judged on, would be missing."""
    monkeypatch.setattr(Lift, "horizon", 20)
    (seen,) = WitnessJob(LIFT, str(untrained), first_seed=3, forked=0).work(iter([3 + KINDS.index("rescue")]))
    done, episode = seen.episode.detour, seen.episode
    assert seen.kind == "rescue" and 40 <= done < 120 and len(episode) == done + 20
    assert np.abs(episode.action[done:, :3] - episode.expert[done:, :3]).max() > 0.05
