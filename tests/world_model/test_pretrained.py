"""Checkpoints in the hub's format, without a network."""

import json
from pathlib import Path

import pytest
from huggingface_hub import HfApi

from world_model import checkpoint
from world_model.checkpoint import CheckpointError
from world_model.pretrained import FILES, Pretrained


@pytest.fixture
def folder(told, text, tmp_path) -> Path:
    checkpoint.save(tmp_path / "model", told[0], text, {"instructions": ["lift the cube"], "discount": 0.99})
    return tmp_path / "model"


def report(folder: Path, sha256: str, seeds: int) -> None:
    outcomes = [{"seed": seed, "success": True} for seed in range(seeds)]
    folder.mkdir(exist_ok=True)
    (folder / f"{seeds}.json").write_text(json.dumps({
        "success_rate": 1.0, "ci95": [0.5, 1.0], "episodes": seeds, "outcomes": outcomes, "split": "seen",
        "policy": "planner", "env": {"id": "nextstate/Lift-v0"}, "command": "c", "checkpoint": {"sha256": sha256},
    }))  # fmt: skip


def test_what_is_saved_is_the_same_checkpoint(folder, tmp_path):
    """Catches a checkpoint that is another one after a round trip, and a card with the figures of another one."""
    model = Pretrained.from_pretrained(folder)
    report(tmp_path / "reports", model.loaded.sha256, 17)
    report(tmp_path / "reports", "0" * 64, 23)
    model.save_pretrained(tmp_path / "saved", reports=tmp_path / "reports")
    again = Pretrained.from_pretrained(tmp_path / "saved")
    assert again.loaded.sha256 == model.loaded.sha256
    card = (tmp_path / "saved" / "README.md").read_text()
    assert "17 of 17" in card and "23 of 23" not in card and "lift the cube" in card and model.loaded.sha256 in card
    assert checkpoint.load(tmp_path / "saved").spec == model.loaded.spec  # the card is in nobody's way


def test_it_is_pushed_as_it_is(folder, monkeypatch):
    """Catches an upload that lacks a file."""
    sent = {}

    def upload(self, *, repo_id, folder_path, **kwargs):
        sent[repo_id] = {path.name for path in Path(folder_path).iterdir()}

    monkeypatch.setattr(HfApi, "upload_folder", upload)
    monkeypatch.setattr(HfApi, "create_repo", lambda self, repo_id, **kwargs: type("Repo", (), {"repo_id": repo_id}))
    Pretrained.from_pretrained(folder).push_to_hub("me/mine", private=True)
    assert sent == {"me/mine": {*FILES, "README.md"}}


def test_what_is_not_there_is_said_without_asking_the_network(tmp_path):
    """Catches a misspelt folder that is looked for on the hub for a minute."""
    for name in ("me/nothing", str(tmp_path / "nothing")):
        with pytest.raises(CheckpointError, match="no folder .*nothing.*local_files_only=False"):
            Pretrained.from_pretrained(name, cache_dir=tmp_path / "cache")
