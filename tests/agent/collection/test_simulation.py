"""What robomimic is told of the simulator that episodes were recorded in."""

from dataclasses import replace

import mujoco
import numpy as np
import pytest

from agent.build import EnvConfig, PolicyConfig
from agent.collect import CollectConfig, collect
from agent.collection.simulation import Simulations
from envs.data.store import EpisodeStore
from envs.types import Episode

LIFT = EnvConfig(name="lift", id="nextstate/Lift-v0", split="train", expert="policies.scripted.lift:LiftExpert",
                 max_steps=4)  # fmt: skip


@pytest.fixture(scope="module")
def episode(tmp_path_factory) -> Episode:
    out = str(tmp_path_factory.mktemp("data"))
    collect(CollectConfig(env=LIFT, policy=PolicyConfig(name="random"), seed=3, episodes=1, out=out, workers=0))
    return next(iter(EpisodeStore(out)))


def test_model_and_states_show_what_was_recorded(episode):
    """Catches a model of another episode, and states in another order than MuJoCo's."""
    with Simulations() as simulations:
        known = simulations(episode)
    model = mujoco.MjModel.from_xml_string(known.model)
    data = mujoco.MjData(model)
    assert known.states.shape == (len(episode) + 1, 1 + model.nq + model.nv)
    cube = mujoco.mj_name2id(model, mujoco.mjtObj.mjOBJ_BODY, "cube_main")
    for state, keypoints in zip(known.states, episode.keypoints, strict=True):
        data.time, data.qpos[:], data.qvel[:] = state[0], state[1 : 1 + model.nq], state[1 + model.nq :]
        mujoco.mj_forward(model, data)
        np.testing.assert_allclose(data.xpos[cube], keypoints[0], atol=1e-4)
    assert np.allclose(np.diff(known.states[:, 0]), 1 / 20) and known.env_args["env_name"] == "Lift"
    assert known.env_args["type"] == 1 and known.env_args["env_kwargs"]["control_freq"] == 20


def test_of_others_nothing_is_made_up(episode):
    """Catches a model that is guessed."""
    with Simulations() as simulations:
        assert simulations(replace(episode, env_id="somebody/Reach-v0")) is None
        assert simulations(replace(episode, sim_state=np.zeros((0, 0)))) is None
