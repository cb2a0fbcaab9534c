from contextlib import closing
from dataclasses import replace

import numpy as np
import pytest

from agent.build import EnvConfig, PolicyConfig, make_envs, make_policy
from agent.collect import CollectConfig, collect, summary
from agent.collection.branching import WAYS, BranchConfig, ReplayThenPolicy, another_way, branch, uncertainty_of
from envs.data.store import EpisodeStore
from envs.sim.table import SPEC
from envs.types import Episode
from policies.rollout import rollout
from policies.scripted.lift import LiftExpert

LIFT = EnvConfig(name="lift", id="nextstate/Lift-v0", split="train", expert="policies.scripted.lift:LiftExpert")
CONFIG = BranchConfig(forks=1)


@pytest.fixture(scope="module")
def tree() -> tuple[list[Episode], Episode]:
    """The branches of one seed with their trunk, and the trunk as it grows alone."""
    with closing(make_envs(LIFT)) as envs:
        expert, trunk = LiftExpert(), make_policy(PolicyConfig(name="perturbed"), LIFT, envs)
        branches = branch(envs, trunk, expert, 2, CONFIG)
        (alone,) = rollout(envs, trunk, [2], expert)
    return branches, alone.episode


def test_branches_share_their_past_and_nothing_else(tree):
    """Catches a state that is not restored exactly, and branches that are all the same."""
    *branches, trunk = tree[0]
    assert len(branches) == len(WAYS) == len(CONFIG.names) - 1
    start = next(i for i, state in enumerate(trunk.state) if np.array_equal(state, branches[0].state[0]))
    past = slice(start, start + CONFIG.chunk + 1)
    for episode in branches:
        for name in ("state", "keypoints"):
            np.testing.assert_array_equal(getattr(episode, name)[: CONFIG.chunk + 1], getattr(trunk, name)[past])
        for name, frames in episode.images.items():
            np.testing.assert_array_equal(frames[: CONFIG.chunk + 1], trunk.images[name][past])
    after = np.stack([episode.state[2 * CONFIG.chunk, :3] for episode in branches])
    apart = np.linalg.norm(after[:, None] - after[None], axis=-1)[np.triu_indices(len(WAYS), 1)]
    assert np.median(apart) > 0.01 and apart.min() > 1e-4


def test_the_expert_ends_a_branch(tree):
    """Catches values that speak of nobody: what follows such steps is only known if somebody goes on from there."""
    for episode in tree[0][:-1]:
        led = CONFIG.chunk + CONFIG.lasting[1]
        np.testing.assert_array_equal(episode.action[led:], episode.expert[led:])
        assert CONFIG.chunk + CONFIG.lasting[0] <= episode.off_task_steps < led
        np.testing.assert_array_equal(episode.action[episode.off_task_steps :], episode.expert[episode.off_task_steps :])
    assert tree[0][-1].off_task_steps == 0
    assert sum(episode.success[-1] for episode in tree[0]) >= 3


def test_the_trunk_is_an_ordinary_episode(tree):
    """Catches a trunk that saving its states has changed."""
    for name in ("state", "action", "success"):
        np.testing.assert_array_equal(getattr(tree[0][-1], name), getattr(tree[1], name))
    np.testing.assert_array_equal(tree[0][-1].images["main"], tree[1].images["main"])


def test_forks_are_where_the_model_is_unsure(tree):
    """Catches uncertainty that is read one chunk too early or late: the fork comes a chunk after the branch begins."""

    def uncertainty(episode):
        return np.eye(1, len(episode) + 1, 14)[0]

    with closing(make_envs(LIFT)) as envs:
        trunk = make_policy(PolicyConfig(name="perturbed"), LIFT, envs)
        *branches, whole = branch(envs, trunk, LiftExpert(), 2, CONFIG, uncertainty)
    assert np.array_equal(branches[0].state[CONFIG.chunk], whole.state[14])


def test_uncertainty_of_a_checkpoint(tree, untrained):
    """Catches uncertainty that is constant, or of another length than the episode."""
    trunk = tree[0][-1]
    found = uncertainty_of(str(untrained))(trunk)
    assert found.shape == (len(trunk) + 1,) and (found > 0).all() and np.ptp(found[8:]) > 0


def test_ways():
    """Catches a way that is not another one."""
    rng, advice = np.random.default_rng(0), np.full((3, 7), 0.5, np.float32)
    for way in WAYS:
        actions = another_way(way, advice, 6, rng, SPEC)
        assert actions.shape == (6, 7) and np.abs(actions).max() <= 1
        assert (np.sign(actions[:, -1]) == (-1 if "reversed" in way else 1)).all()
        assert np.array_equal(actions[:, :3], np.full((6, 3), 0.5)) == (way == "advice with the jaws reversed")


def test_collect_branches(tmp_path):
    """Catches names that clash, a tree that a lost branch leaves damaged for ever, and wrong counts."""
    policy = PolicyConfig(name="branch", branch={"forks": 1})
    config = CollectConfig(env=LIFT, policy=policy, seed=2, episodes=1, out=str(tmp_path / "data"), workers=0)
    recorded, store = collect(config), EpisodeStore(config.out)
    assert recorded[0].episodes == len(store) == 1 + len(WAYS)
    assert recorded[0].steps == sum(len(episode) for episode in store)
    assert "5 episodes of lift" in summary(config, recorded)
    lost = store.path(config.names(2)[1])
    before = lost.read_bytes()
    lost.unlink()
    assert collect(config) == recorded and lost.read_bytes() == before
    with pytest.raises(ValueError, match="BranchConfig has no setting `frks`"):
        collect(replace(config, policy=PolicyConfig(name="branch", branch={"frks": 1}), out=str(tmp_path / "other")))


class Counting:
    """An expert with a memory: how often it was asked."""

    execute = 1

    def init(self, instruction, seed=0):
        return 0

    def act(self, observation, state):
        return np.full((1, 7), state / 10, np.float32), state + 1


def test_who_takes_over_keeps_its_state(make_episode):
    """Catches an expert with a memory that is asked as if every step were its first."""
    policy, said = ReplayThenPolicy(np.zeros((2, 7), np.float32), Counting()), []
    state = policy.init("", 0)
    for _ in range(5):
        action, state = policy.act(make_episode(0).obs(0), state, None)
        said.append(float(action[0, 0]))
    np.testing.assert_allclose(said, [0, 0, 0, 0.1, 0.2], atol=1e-6)
    assert state.off_task_steps == 2
