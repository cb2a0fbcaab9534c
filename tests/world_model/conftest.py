"""A world model small enough to train in a test, on made-up episodes."""

import numpy as np
import pytest
import torch

from envs.data.store import EpisodeStore
from envs.sim.table import SPEC
from envs.types import Spec
from tests.viewed import ROBOT, viewed
from tests.world_model.runs import SEEDS, read_config, save_tokenizer
from world_model import train
from world_model.model import ModelConfig, WorldModel
from world_model.nn.transformer import TransformerConfig
from world_model.tokens.actions import ActionTokenizer
from world_model.tokens.images import ImageConfig, ImageTokenizer
from world_model.tokens.poses import PoseRange, fit_poses
from world_model.tokens.text import TextTokenizer
from world_model.tokens.vocab import Vocab
from world_model.training.dataset import Batch, EpisodeDataset

TINY = ModelConfig(TransformerConfig(width=48, num_layers=2, num_heads=4, num_kv_heads=2, hidden=96))
COEFS = (4, 4, 4, 0, 0, 2)


def build_world(
    spec: Spec, coefs: tuple[int, ...], text_size: int = 256, poses: tuple[PoseRange, ...] = ()
) -> WorldModel:
    """Untrained, but with random weights where training starts from zero, so that every path matters."""
    torch.manual_seed(0)
    frames = ImageTokenizer(ImageConfig(spec.cameras, (5, 5, 5), width=16, encoder_blocks=1, decoder_blocks=1)).eval()
    actions = ActionTokenizer.create(spec, coefs)
    vocab = Vocab.native(text_size, frames.vision_size, len(spec.cameras))
    model = WorldModel(TINY, spec, vocab, frames, actions, poses)
    torch.nn.init.normal_(model.vision.gate.weight, std=0.02)
    return model.eval()


@pytest.fixture
def make_world():
    """The function that builds a model of any robot: make_world(spec, coefs, text_size, poses)."""
    return build_world


@pytest.fixture(scope="session")
def text() -> TextTokenizer:
    return TextTokenizer.train(["fold the cloth in half", "lift the cube"])


@pytest.fixture
def world(text) -> WorldModel:
    return build_world(SPEC, COEFS, text.size)


@pytest.fixture
def dataset(world, text, make_episode) -> EpisodeDataset:
    """Four episodes of 64 control steps, tokenized."""
    words = text.within(world.vocab.text)
    return EpisodeDataset.join([
        EpisodeDataset.of(e, world.layout, world.frame_tokenizer, world.actions, words)
        for e in (make_episode(seed, steps=64) for seed in range(4))
    ])  # fmt: skip


@pytest.fixture
def batch(dataset) -> Batch:
    """Four windows of 3 model steps that lie within their episodes, one of each."""
    return dataset.batch(65 * np.arange(4) + [5, 20, 33, 12], 3)


@pytest.fixture
def cache(world, batch):
    """One robot with a step of history."""
    observations = [(batch.image[:1, s], batch.state[:1, s]) for s in (0, 1)]
    return world.context(batch.instruction[:1], observations, [batch.action[:1, 0]])


@pytest.fixture
def candidates() -> torch.Tensor:
    """Five sequences of two chunks for one robot, (1, 5, 2, 8, 7)."""
    actions = torch.from_numpy(np.random.default_rng(0).uniform(-1, 1, (1, 5, 2, 8, 7)).astype(np.float32))
    actions[..., -1] = actions[..., :1, -1].sign()
    return actions


@pytest.fixture
def told(text) -> tuple[WorldModel, EpisodeDataset]:
    """A model that is told the poses of its cameras, and four episodes of 24 control steps with two views each."""
    episodes = [viewed(seed) for seed in range(4)]
    model = build_world(ROBOT, (3, 3), text.size, fit_poses(ROBOT.cameras, episodes))
    words = text.within(model.vocab.text)
    return model, EpisodeDataset.join([
        EpisodeDataset.of(e, model.layout, model.frame_tokenizer, model.actions, words, with_views=True)
        for e in episodes
    ])  # fmt: skip


@pytest.fixture
def config(tmp_path, make_episode) -> train.TrainConfig:
    """A training of the `debug` model on four episodes."""
    store = EpisodeStore(tmp_path / "data")
    for seed in SEEDS:
        store.write(make_episode(seed, steps=56), f"episode-{seed}")
    save_tokenizer(tmp_path / "tok", SPEC.cameras)
    return read_config(tmp_path, "augment=tabletop", "coefs=[4,4,4,2,2,2]")
