from contextlib import closing
from dataclasses import replace

import numpy as np
import pytest

from agent.build import EnvConfig, PolicyConfig, make_envs, make_policy
from agent.collection.counterfactual import CHUNKS, EVERY, FIRST, KINDS, CounterfactualJob, Watched, watch
from policies.rollout import rollout
from policies.scripted.lift import LiftExpert

LIFT = EnvConfig(name="lift", id="nextstate/Lift-v0", split="seen", expert="policies.scripted.lift:LiftExpert")


@pytest.fixture(scope="module")
def watched() -> tuple[Watched, object]:
    """A demonstration of which some states were followed several ways, and the same one without."""
    with closing(make_envs(LIFT)) as envs:
        expert, policy = LiftExpert(), make_policy(PolicyConfig(name="perturbed"), LIFT, envs)
        seen = watch(envs, "perturbed", policy, expert, seed=1)
        (alone,) = rollout(envs, policy, [1], expert)
    return seen, alone.episode


def test_an_episode_goes_on_as_if_it_had_not_been_left(watched):
    """Catches a rollout that does not put the simulator back: what follows is then another episode."""
    seen, alone = watched
    assert len(seen.futures) >= 1
    for name in ("state", "action", "keypoints", "success"):
        np.testing.assert_array_equal(getattr(seen.episode, name), getattr(alone, name))
    np.testing.assert_array_equal(seen.episode.images["main"], alone.images["main"])


def test_a_state_is_left_in_different_ways(watched):
    """Catches eight times the same way, or ways of which nothing comes."""
    for place, future in enumerate(watched[0].futures):
        assert future.step == FIRST + place * EVERY
        assert future.actions.shape == (CHUNKS, 8, 7) and np.abs(future.actions).max() <= 1
        assert {n: i.shape[:3] for n, i in future.observations.images.items()} == {
            "main": (CHUNKS, 64, 64), "wrist": (CHUNKS, 32, 32)
        }  # fmt: skip
        ends = future.observations.state[:, :3]
        apart = np.linalg.norm(ends[:, None] - ends[None], axis=-1)
        assert np.median(apart[np.triu_indices(CHUNKS, 1)]) > 0.02 and len(np.unique(ends, axis=0)) == CHUNKS
        assert (np.sign(future.actions[3, :, -1]) == -np.sign(future.actions[0, :, -1])).all()


def test_the_first_way_is_what_the_expert_does(watched):
    """Catches chunks that start a step late: futures taken after step t must begin with the advice for step t."""
    seen = watched[0]
    future = seen.futures[0]
    np.testing.assert_allclose(future.actions[0, 0], seen.episode.expert[future.step], atol=1e-6)


def test_a_rescue_is_play_and_then_the_model(untrained):
    """Catches a rescue by the expert: failures of the model's own, which its values are judged on, would be missing."""
    job = CounterfactualJob(replace(LIFT, max_steps=20), str(untrained), first_seed=3, branched=0)
    (seen,) = job.work(iter([3 + KINDS.index("rescue")]))
    done, episode = seen.episode.off_task_steps, seen.episode
    assert seen.kind == "rescue" and 40 <= done < 120 and len(episode) == done + 20
    assert np.abs(episode.action[done:, :3] - episode.expert[done:, :3]).max() > 0.05
