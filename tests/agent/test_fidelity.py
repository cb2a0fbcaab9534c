"""The command on robosuite's Lift with an untrained model: what it prints cannot be good, but must be true."""

import json

import numpy as np
import pytest
import torch

from agent import fidelity
from agent.fidelity import FidelityConfig, Planned
from envs.data.files import to_json
from world_model import checkpoint

RAW = {
    "env": {
        "name": "lift", "id": "nextstate/Lift-v0", "expert": "policies.scripted.lift:LiftExpert", "max_steps": 24,
    },
    "split": "seen", "seed": 3, "episodes": 3, "branched": 3, "planned": 1, "windows": 8, "ahead": 3, "stride": None,
    "out": "nowhere", "workers": 0, "device": "cpu", "wandb": "disabled",
}  # fmt: skip


def test_the_whole_command(untrained):
    """Catches kinds of episodes that are left out, futures without history, and figures that JSON cannot hold."""
    config = FidelityConfig.of({**RAW, "checkpoint": str(untrained)})
    assert (config.env.id, config.env.split, config.ahead) == ("nextstate/Lift-v0", "seen", 3)
    figures, dataset = fidelity.measure(config, checkpoint.load(untrained, torch.device("cpu")))
    assert figures["episodes"] == {"model": 1, "perturbed": 1, "play": 1} and len(dataset) > 3 * 20
    assert len(figures["horizons"]) == 3 and figures["retrievals"] >= 3 * 8
    assert figures["retrieval_at_1"] < 0.6 and figures["planned_decisions"] == 12
    assert figures["episodes_failed"] == 2 and figures["futures_with_uncertainty"] > 0
    # nothing was lifted, so all that the planner expected was too much
    assert 0 < figures["exploitation_points"] < 100
    assert json.loads(to_json(figures))["horizons"][0] == figures["horizons"][0]
    printed = fidelity.table(figures)
    assert "position cm" in printed and "copying" in printed and "chance 12.5%" in printed


def test_exploitation_is_what_was_expected_less_what_came(untrained, monkeypatch):
    """Catches a difference the wrong way round."""
    expected, real = np.array([0.9, 0.8]), np.array([0.5, 0.8])
    monkeypatch.setattr(fidelity.fidelity, "evaluate_fidelity", lambda *_: {})
    planned = [Planned(expected, real)]
    monkeypatch.setattr(fidelity, "_all", lambda job, *_: planned if isinstance(job, fidelity.PlannedJob) else [])
    monkeypatch.setattr(fidelity.EpisodeDataset, "join", lambda episodes: None)
    figures, _ = fidelity.measure(FidelityConfig.of({**RAW, "checkpoint": str(untrained)}), checkpoint.load(untrained))
    assert figures["exploitation_points"] == 20.0 and figures["planned_decisions"] == 2


def test_wrong_settings_are_refused(untrained):
    """Catches a run of no episodes, and a setting that does not exist."""
    with pytest.raises(ValueError, match="positive"):
        FidelityConfig.of({**RAW, "checkpoint": str(untrained), "planned": 0})
    with pytest.raises(ValueError, match="typo"):
        FidelityConfig.of({**RAW, "checkpoint": str(untrained), "typo": 1})
