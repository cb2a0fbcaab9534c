"""The verb on robosuite's Lift with an untrained model: what it prints cannot be good, but must be true."""

import json

import numpy as np
import pytest
import torch

from agent import fidelity
from agent.actors import EnvConfig
from agent.fidelity import FidelityConfig, Planned
from envs.rigid import Lift
from world_model import checkpoint
from world_model.model import ModelConfig, WorldModel
from world_model.tokens.actions import ActionTokenizer
from world_model.tokens.frames import FrameConfig, FrameTokenizer
from world_model.tokens.text import TextTokenizer
from world_model.tokens.vocab import Vocab
from world_model.transformer import TransformerConfig

RAW = {
    "env": {"name": "lift", "id": "nextstate/Lift-v0", "options": {}}, "split": "seen", "seed": 3, "episodes": 3,
    "planned": 1, "windows": 8, "ahead": 3, "out": "nowhere", "workers": 0, "device": "cpu", "wandb": "disabled",
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """An untrained checkpoint."""
    torch.manual_seed(0)
    text = TextTokenizer.train(["lift the cube"])
    frames = FrameTokenizer(FrameConfig(levels=(5, 5, 5), width=16, encoder_blocks=1, decoder_blocks=1)).eval()
    sizes = TransformerConfig(width=48, num_layers=1, num_heads=4, num_kv_heads=2, hidden=96)
    vocab = Vocab.native(text.size, frames.vision_size)
    model = WorldModel(ModelConfig(sizes), vocab, frames, ActionTokenizer.create())
    folder = tmp_path_factory.mktemp("run") / "checkpoint"
    checkpoint.save(folder, model, text.within(vocab.text), {"instructions": ["lift the cube"], "discount": 0.9})
    return folder


def test_the_whole_verb(folder, monkeypatch):
    """Catches kinds of episodes that are left out, forks without history, and figures that JSON cannot hold."""
    monkeypatch.setattr(Lift, "horizon", 30)
    config = FidelityConfig.of({**RAW, "checkpoint": str(folder)})
    assert config.env == EnvConfig("lift", "nextstate/Lift-v0", "seen", {}) and config.ahead == 3
    figures, tracks = fidelity.measure(config, checkpoint.load(folder, torch.device("cpu")))
    assert figures["episodes"] == {"model": 1, "perturbed": 1, "play": 1} and len(tracks) > 3 * 20
    assert len(figures["horizons"]) == 3 and figures["retrievals"] >= 3 * 8
    assert figures["retrieval_at_1"] < 0.6 and figures["planned_decisions"] == 15
    # nothing was lifted, so all that the planner expected was too much
    assert 0 < figures["exploitation_points"] < 100
    written = json.loads(fidelity.to_json(figures))
    assert np.isnan(figures["value_auc"]) and written["value_auc"] is None, "nothing succeeded: there is no curve"
    assert written["horizons"][0]["gripper_cm"] == figures["horizons"][0]["gripper_cm"]
    printed = fidelity.table(figures)
    assert "gripper, cm" in printed and "chance 12.5%" in printed


def test_exploitation_is_what_was_expected_less_what_came(folder, monkeypatch):
    """Catches a comparison with the moment of the decision instead of the moment that was imagined."""
    expected, real = np.array([0.9, 0.8]), np.array([0.5, 0.8])
    monkeypatch.setattr(fidelity.ladder, "climb", lambda *_: {})
    planned = [Planned(expected, real)]
    monkeypatch.setattr(fidelity, "_all", lambda job, *_: planned if isinstance(job, fidelity.PlannedJob) else [])
    monkeypatch.setattr(fidelity.Tracks, "join", lambda tracks: None)
    figures, _ = fidelity.measure(FidelityConfig.of({**RAW, "checkpoint": str(folder)}), checkpoint.load(folder))
    assert figures["exploitation_points"] == 20.0 and figures["planned_decisions"] == 2


def test_wrong_settings_are_refused(folder):
    """Catches a run of no episodes, and a setting that does not exist."""
    with pytest.raises(ValueError, match="positive"):
        FidelityConfig.of({**RAW, "checkpoint": str(folder), "planned": 0})
    with pytest.raises(ValueError, match="typo"):
        FidelityConfig.of({**RAW, "checkpoint": str(folder), "typo": 1})
