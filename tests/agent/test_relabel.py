from dataclasses import replace

import numpy as np
import pytest

from agent.build import EnvConfig, PolicyConfig
from agent.collect import CollectConfig, collect
from agent.relabel import RelabelConfig, relabel, relabelled
from envs.data.store import EpisodeStore
from policies.scripted.lift import LiftExpert

LIFT = EnvConfig(name="lift", id="nextstate/Lift-v0", split="train", expert="policies.scripted.lift:LiftExpert")


def test_the_same_expert_gives_the_same_labels(tmp_path):
    """Catches a scene that is put together wrongly from what an episode keeps: every label would be off."""
    disturbed, out = PolicyConfig(name="perturbed"), str(tmp_path / "a")
    collect(CollectConfig(env=LIFT, policy=disturbed, seed=3, episodes=1, out=out, workers=0))
    config = RelabelConfig(LIFT, str(tmp_path / "a"), str(tmp_path / "b"))
    assert relabel(config) == 1
    (name,) = EpisodeStore(config.data).names()
    before, after = EpisodeStore(config.data).read(name), EpisodeStore(config.out).read(name)
    np.testing.assert_allclose(after.expert, before.expert, atol=1e-5)
    np.testing.assert_array_equal(after.action, before.action)
    with pytest.raises(ValueError, match="never overwritten"):
        relabel(replace(config, out=config.data))


def test_episodes_of_another_task(make_episode):
    """Catches labels for one task written into episodes of another."""
    with pytest.raises(ValueError, match="has no subtask"):
        relabelled(make_episode(0), LiftExpert(), ("something else",))
