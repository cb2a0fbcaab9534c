import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from agent.inspect import InspectConfig, inspect_checkpoint, inspect_episodes, table
from agent.launch.command import RunError
from envs.data.store import EpisodeStore
from tests.robots import ARM, HANDS, made_up


@pytest.fixture
def config(tmp_path) -> InspectConfig:
    for seed in range(4):
        EpisodeStore(tmp_path / "data").write(made_up(HANDS, seed, instruction="go"), f"{seed}")
    return InspectConfig(str(tmp_path / "data"), None, str(tmp_path / "out"))


def test_what_is_there_is_told(config):
    """Catches counts of the wrong thing, and pictures that are not written."""
    report = inspect_episodes(config)
    assert report["episodes"] == 4 and report["succeed"] == 2 and report["control_steps"] == 160
    assert report["instructions"] == {"go": 4} and report["labelled_steps"] == 0
    out = Path(config.out)
    assert json.loads((out / "report.json").read_text()) == report
    assert all((out / name).stat().st_size > 1000 for name in ("sheet.png", "histograms.png"))
    text = table(report)
    assert "left 16 x 16, right 24 x 16" in text and "a.jaw (gripper)" in text and "at 30 Hz" in text


def test_damage_and_strangers_are_faults_and_the_rest_is_read(config):
    """Catches one bad file that hides what is in the others."""
    store = EpisodeStore(config.data)
    store.write(made_up(ARM, 7), "stranger")
    path = store.path("2")
    path.write_bytes(path.read_bytes()[:100])
    episode = store.read("0")
    store.write(replace(episode, images={n: np.zeros_like(f) for n, f in episode.images.items()}), "0")
    report = inspect_episodes(config)
    said = "\n".join(report["faults"])
    assert report["episodes"] == 3 and str(path) in said and "stranger: another robot than 0" in said
    assert "0: camera `left` is black in 41 of 41 frames" in said
    for name in ("0", "1", "3", "stranger"):
        store.path(name).unlink()
    with pytest.raises(RunError, match="no episode .* can be read"):
        inspect_episodes(config)


def test_a_checkpoint_says_what_it_is(untrained):
    """Catches a checkpoint of which nobody can say what it was trained for."""
    text = inspect_checkpoint(str(untrained))
    assert "'lift the cube'" in text and "main 64 x 64" in text and "8 control steps at 20 Hz" in text


def test_one_thing_at_a_time():
    """Catches a command that does nothing because nothing was named."""
    for data, checkpoint in ((None, None), ("a", "b")):
        with pytest.raises(ValueError, match="data=FOLDER, or a checkpoint=FOLDER"):
            InspectConfig(data, checkpoint, "out")
