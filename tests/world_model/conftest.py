"""A world model small enough to train in a test, on made-up episodes."""

import numpy as np
import pytest
import torch

from world_model.metrics.held_out import pick
from world_model.model import ModelConfig, WorldModel
from world_model.nn.transformer import TransformerConfig
from world_model.tokens.actions import ActionTokenizer
from world_model.tokens.images import FrameConfig, FrameTokenizer
from world_model.tokens.layout import Tracks
from world_model.tokens.text import TextTokenizer
from world_model.tokens.vocab import Vocab

TINY = ModelConfig(TransformerConfig(width=48, num_layers=2, num_heads=4, num_kv_heads=2, hidden=96))


@pytest.fixture(scope="session")
def text() -> TextTokenizer:
    return TextTokenizer.train(["fold the cloth in half", "lift the cube"])


@pytest.fixture
def world(text) -> WorldModel:
    """Untrained, but with random weights where training starts from zero, so that every path matters."""
    torch.manual_seed(0)
    frames = FrameTokenizer(FrameConfig(levels=(5, 5, 5), width=16, encoder_blocks=1, decoder_blocks=1)).eval()
    actions = ActionTokenizer.create()
    model = WorldModel(TINY, Vocab.native(text.size, frames.vision_size), frames, actions)
    torch.nn.init.normal_(model.vision.gate.weight, std=0.02)
    return model.eval()


@pytest.fixture
def tracks(world, text, make_episode) -> Tracks:
    """Four episodes of 64 control steps, tokenized."""
    words = text.within(world.vocab.text)
    return Tracks.join([
        Tracks.of(e, world.layout, world.frame_tokenizer, world.actions, words)
        for e in (make_episode(seed, steps=64) for seed in range(4))
    ])  # fmt: skip


@pytest.fixture
def window(tracks):
    """Four windows of 3 model steps that lie within their episodes."""
    return tracks.window(pick(tracks, 4), 3)


@pytest.fixture
def cache(world, window):
    """One robot with a step of history."""
    views = [(window.image[:1, s], window.state[:1, s]) for s in (0, 1)]
    return world.context(window.instruction[:1], views, [window.action[:1, 0]])


@pytest.fixture
def candidates() -> torch.Tensor:
    """Five sequences of two chunks, (5, 2, 8, 7)."""
    actions = torch.from_numpy(np.random.default_rng(0).uniform(-1, 1, (5, 2, 8, 7)).astype(np.float32))
    actions[..., -1] = actions[..., :1, -1].sign()
    return actions
