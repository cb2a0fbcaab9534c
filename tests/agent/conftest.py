"""What the verbs need to be tested: an environment without a simulator, its expert, and an untrained checkpoint."""

import gymnasium as gym
import numpy as np
import pytest
import torch

from agent import build
from agent.build import EnvConfig
from tests.reach import Reach
from world_model import checkpoint
from world_model.model import ModelConfig, WorldModel
from world_model.nn.transformer import TransformerConfig
from world_model.tokens.actions import ActionTokenizer
from world_model.tokens.images import FrameConfig, FrameTokenizer
from world_model.tokens.text import TextTokenizer
from world_model.tokens.vocab import Vocab

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
    monkeypatch.setattr(build, "make_expert", lambda config: Ahead())
    return EnvConfig("reach", ENV_ID, "train")


@pytest.fixture(scope="session")
def untrained(tmp_path_factory):
    """The folder of an untrained checkpoint for Lift."""
    torch.manual_seed(0)
    text = TextTokenizer.train(["lift the cube"])
    frames = FrameTokenizer(FrameConfig(levels=(5, 5, 5), width=16, encoder_blocks=1, decoder_blocks=1)).eval()
    sizes = TransformerConfig(width=48, num_layers=1, num_heads=4, num_kv_heads=2, hidden=96)
    vocab = Vocab.native(text.size, frames.vision_size)
    model = WorldModel(ModelConfig(sizes), vocab, frames, ActionTokenizer.create())
    folder = tmp_path_factory.mktemp("run") / "checkpoint"
    checkpoint.save(folder, model, text.within(vocab.text), {"instructions": ["lift the cube"], "discount": 0.9})
    return folder
