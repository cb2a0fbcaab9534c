"""The command on robosuite's Lift with an untrained model: what it prints cannot be good, but must be true."""

import json

import numpy as np
import pytest
import torch

from agent import fidelity
from agent.exploring.records import find_records
from agent.fidelity import FidelityConfig, Planned
from envs.data.files import to_json
from envs.data.store import EpisodeError
from world_model import checkpoint

RAW = {
    "env": {
        "name": "lift", "id": "nextstate/Lift-v0", "expert": "policies.scripted.lift:LiftExpert", "max_steps": 24,
    },
    "split": "seen", "seed": 3, "episodes": 3, "branched": 3, "planned": 1, "windows": 8, "ahead": 3, "stride": None,
    "out": "nowhere", "keep": False, "workers": 0, "device": "cpu", "wandb": "disabled",
}  # fmt: skip


def test_the_whole_command(untrained):
    """Catches kinds of episodes that are left out, futures without history, and figures that JSON cannot hold."""
    config = FidelityConfig.of({**RAW, "checkpoint": str(untrained)})
    assert (config.env.id, config.env.split, config.ahead) == ("nextstate/Lift-v0", "seen", 3)
    figures, dataset, watched = fidelity.measure(config, checkpoint.load(untrained, torch.device("cpu")))
    assert figures["episodes"] == {"model": 1, "perturbed": 1, "play": 1} and len(dataset) > 3 * 20
    assert len(figures["horizons"]) == 3 and figures["retrievals"] >= 3 * 8
    assert figures["retrieval_at_1"] < 0.6 and figures["planned_decisions"] == 12
    assert figures["episodes_failed"] >= 2 and figures["futures_with_uncertainty"] > 0
    told = [(one["seed"], one["kind"], one["success"]) for one in figures["by_episode"]]
    assert told == [(seen.episode.seed, seen.kind, bool(seen.episode.success[-1])) for seen in watched]
    # nothing was lifted, so all that the planner expected was too much
    assert 0 < figures["exploitation_points"] < 100
    assert json.loads(to_json(figures))["horizons"][0] == figures["horizons"][0]
    printed = fidelity.table(figures)
    assert "position cm" in printed and "copying" in printed and "chance 12.5%" in printed


def test_kept_episodes_are_opened_where_the_dream_is_worst(untrained, tmp_path):
    """Catches an episode that the page shows with another one's error, and one that cannot be opened again."""
    raw = {**RAW, "checkpoint": str(untrained), "out": str(tmp_path), "keep": True, "branched": 1, "windows": 6}
    told = fidelity.run(FidelityConfig.of(raw), "")["by_episode"]
    worst, *_, best = sorted(told, key=lambda one: -one["error"])
    records = find_records(str(tmp_path), "nextstate/Lift-v0")
    assert [len(records), records[0].seed, records[-1].seed] == [3, worst["seed"], best["seed"]]
    assert records[0].title == f"{worst['kind']}, seed {worst['seed']}: imagined {worst['error']:.2g} cm off"
    assert [record.read().seed for record in records] == [record.seed for record in records]
    (tmp_path / "fidelity.json").write_text('{"env": "nextstate/Lift-v0"}')
    with pytest.raises(EpisodeError, match="no report of agent.fidelity: it lacks 'by_episode'"):
        find_records(str(tmp_path), "nextstate/Lift-v0")


def test_exploitation_is_what_was_expected_less_what_came(untrained, monkeypatch):
    """Catches a difference the wrong way round."""
    expected, real = np.array([0.9, 0.8]), np.array([0.5, 0.8])
    monkeypatch.setattr(fidelity.fidelity, "evaluate_fidelity", lambda *_: {"by_episode": []})
    planned = [Planned(expected, real)]
    monkeypatch.setattr(fidelity, "_all", lambda job, *_: planned if isinstance(job, fidelity.PlannedJob) else [])
    monkeypatch.setattr(fidelity.EpisodeDataset, "join", lambda episodes: None)
    figures, *_ = fidelity.measure(FidelityConfig.of({**RAW, "checkpoint": str(untrained)}), checkpoint.load(untrained))
    assert figures["exploitation_points"] == 20.0 and figures["planned_decisions"] == 2


def test_wrong_settings_are_refused(untrained):
    """Catches a run of no episodes, and a setting that does not exist."""
    with pytest.raises(ValueError, match="positive"):
        FidelityConfig.of({**RAW, "checkpoint": str(untrained), "planned": 0})
    with pytest.raises(ValueError, match="typo"):
        FidelityConfig.of({**RAW, "checkpoint": str(untrained), "typo": 1})
