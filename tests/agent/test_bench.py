"""The bench on a very small model, loaded from its checkpoint."""

import torch

from agent import bench
from world_model import checkpoint
from world_model.model import ModelConfig, WorldModel
from world_model.tokens.actions import ActionTokenizer
from world_model.tokens.frames import FrameConfig, FrameTokenizer
from world_model.tokens.text import TextTokenizer
from world_model.tokens.vocab import Vocab
from world_model.transformer import TransformerConfig


def save_small_model(folder) -> None:
    torch.manual_seed(0)
    frames = FrameTokenizer(FrameConfig((3, 3), width=8, encoder_blocks=1, decoder_blocks=1))
    text = TextTokenizer.train(["lift the cube"])
    vocab = Vocab.native(text.size, frames.vision_size)
    transformer = TransformerConfig(width=16, num_layers=1, num_heads=2, num_kv_heads=2, hidden=16)
    model = WorldModel(ModelConfig(transformer), vocab, frames, ActionTokenizer.create())
    checkpoint.save(folder, model, text, {"instructions": ["lift the cube"]})


def test_every_contestant_is_timed(tmp_path):
    """Catches a contestant that crashes, a ratio of the wrong two, or policies that cannot load what was saved."""
    save_small_model(tmp_path / "model")
    report = bench.bench(bench.BenchConfig(str(tmp_path / "model"), 3, 1, 2, 2, 1, "cpu", str(tmp_path)))
    seconds, ratios = report["seconds"], report["ratios"]
    assert len(seconds) == 7 and all(value > 0 for value in seconds.values())
    assert ratios["token by token / parallel"] > 2  # 93 passes against one
    assert "3 futures" in bench.table(report)
