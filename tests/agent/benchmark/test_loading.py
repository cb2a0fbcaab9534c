"""Loading from disk and from memory bring the same windows, and memory is that of a process of its own."""

from pathlib import Path

import numpy as np
import pytest
import torch

from agent.benchmark import loading
from world_model import checkpoint
from world_model.training.dataset import EpisodeDataset


@pytest.fixture
def loaded(untrained):
    return checkpoint.load(untrained, torch.device("cpu"))


def test_both_contestants_load_the_same(loaded, make_episode, tmp_path):
    """Catches a fast contestant that loads something else, or less."""
    episodes = [make_episode(seed, steps=20) for seed in range(2)]
    loading.write(tmp_path, loaded, episodes, 1)
    layout, parts = loaded.model.layout, (loaded.frames, loaded.actions, loaded.text, loaded.meta["discount"])
    memory = EpisodeDataset.join([EpisodeDataset.of(episode, layout, *parts) for episode in episodes])
    disk = loading.open_dataset(tmp_path, loaded)
    ours, theirs = (dataset.batch(np.array([3, 30]), 2) for dataset in (disk, memory))
    for name, value in vars(ours).items():
        torch.testing.assert_close(value, getattr(theirs, name), rtol=0, atol=0, equal_nan=True)
    tokens = layout.instruction + 2 * (layout.step + layout.act + layout.next)  # of a window of two steps
    for contestant in loading.contestants(loaded, memory, disk, 2, 2).values():
        contestant.run()
        assert contestant.amount == loading.BATCHES * 2 * tokens


def test_repeated_episodes_take_disk_and_not_memory(untrained, loaded, make_episode, tmp_path, monkeypatch):
    """Catches a footprint that leaves out what a batch or a folder of repeated episodes holds, as pictures in memory
    show."""
    monkeypatch.setattr(loading, "EPISODES", 50)
    held = loading.measure_memory(tmp_path, str(untrained), loaded, [make_episode(0, steps=40)], (20, 120), 2, 2)
    (few, many), pictures = (held[loading.DISK].values(), held[loading.MEMORY]["mib_of_4920_control_steps"])
    assert pictures > 0.9 * 15 * 4920 / 1024
    assert many < few + 10
    assert len(list(Path(tmp_path / "120").glob("train-*"))) == 3
