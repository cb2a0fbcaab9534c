"""What the commands need to be tested: an environment without a simulator, its expert, and an untrained checkpoint."""

import pytest
import torch

from agent.build import EnvConfig
from envs.sim.table import SPEC
from tests.reach import OVER_THE_TABLE, REACH
from world_model import checkpoint
from world_model.model import ModelConfig, WorldModel
from world_model.nn.transformer import TransformerConfig
from world_model.tokens.actions import ActionTokenizer
from world_model.tokens.images import ImageConfig, ImageTokenizer
from world_model.tokens.text import TextTokenizer
from world_model.tokens.vocab import Vocab


@pytest.fixture
def reach() -> EnvConfig:
    """The settings of this environment and its expert."""
    return EnvConfig(name="reach", id=REACH, split="train", expert="tests.reach:Ahead")


@pytest.fixture
def over_the_table() -> EnvConfig:
    """The same, but where an untrained checkpoint can begin."""
    return EnvConfig(id=OVER_THE_TABLE, split="seen")


@pytest.fixture(scope="session")
def untrained(tmp_path_factory):
    """The folder of an untrained checkpoint for Lift."""
    return save_untrained(tmp_path_factory.mktemp("run") / "checkpoint")


def save_untrained(folder, strides=()):
    """Write an untrained checkpoint for Lift, the same every time; strides: beside the whole chunk of 8."""
    torch.manual_seed(0)
    text = TextTokenizer.train(["lift the cube"])
    frames = ImageTokenizer(ImageConfig(SPEC.cameras, (5, 5, 5), width=16, encoder_blocks=1, decoder_blocks=1)).eval()
    sizes = TransformerConfig(width=48, num_layers=1, num_heads=4, num_kv_heads=2, hidden=96)
    vocab = Vocab.native(text.size, frames.vision_size, len(SPEC.cameras))
    config = ModelConfig(sizes, strides=strides)
    model = WorldModel(config, SPEC, vocab, frames, ActionTokenizer.create(SPEC, (4, 4, 4, 0, 0, 2)))
    checkpoint.save(folder, model, text.within(vocab.text), {"instructions": ["lift the cube"], "discount": 0.9})
    return folder
