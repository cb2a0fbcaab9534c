"""Runs in Weights & Biases."""

from pathlib import Path

import pytest

from world_model.training import tracking


def test_a_run_is_its_folder(tmp_path, monkeypatch):
    """Catches `A/train` and `B/train` merging into one run, and a run that is another one when it is taken up."""
    a, b = (tracking.run_id("train", tmp_path / name / "train") for name in "AB")
    assert a != b and a.startswith("train-train-")
    monkeypatch.chdir(tmp_path)
    assert tracking.run_id("train", Path("A/train")) == tracking.run_id("train", Path("A/../A/train/")) == a
    assert tracking.run_id("tokenizer", Path("A/train")) != a


@pytest.mark.parametrize("name", ["a:b", "what?", "50%", "x y#1", "é"])
def test_any_folder_has_a_run(tmp_path, name):
    """Catches a name that wandb refuses, even when it is disabled."""
    out = tmp_path / name
    out.mkdir()
    assert not set(tracking.run_id("train", out)) & set("/\\#?%: ")
    tracking.start("train", out, "disabled", {"steps": 1}).finish()
