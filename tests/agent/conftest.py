"""What the verbs need to be tested: an environment without a simulator, and its expert."""

import gymnasium as gym
import numpy as np
import pytest

from agent import actors
from agent.actors import EnvConfig
from tests.reach import Reach

ENV_ID = "nextstate-test/Reach-v0"


class Ahead:
    """The expert of Reach: full speed ahead."""

    execute = 1

    def init(self, instruction, seed=0):
        return None

    def act(self, obs, state):
        return np.array([[1, 0, 0, 0, 0, 0, -1]], np.float32), None


@pytest.fixture
def reach(monkeypatch) -> EnvConfig:
    """The settings of this environment; its expert is known for the length of the test."""
    if ENV_ID not in gym.registry:
        gym.register(ENV_ID, Reach)
    monkeypatch.setattr(actors, "make_expert", lambda config: Ahead())
    return EnvConfig("reach", ENV_ID, "train")
