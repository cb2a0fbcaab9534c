"""The value learns what followed, and nothing else that the model says changes."""

from dataclasses import replace

import pytest
import torch

from envs.data.store import EpisodeError, EpisodeStore
from world_model import checkpoint, fit_value
from world_model.checkpoint import CheckpointError
from world_model.fit_value import FitValueConfig
from world_model.metrics.held_out import foresee, spread
from world_model.tokens.layout import Tracks


@pytest.fixture
def config(world, text, make_episode, tmp_path) -> FitValueConfig:
    """A model on disk, and ten episodes of which every second one succeeds."""
    store = EpisodeStore(tmp_path / "data")
    for seed in range(10):
        store.write(make_episode(seed, steps=40), f"episode-{seed}")
    meta = {"instructions": ["fold the cloth in half"], "discount": 0.997}
    checkpoint.save(tmp_path / "start", world, text.within(world.vocab.text), meta)
    return FitValueConfig(
        data=(str(tmp_path / "data"),), start=str(tmp_path / "start"), out=str(tmp_path / "out"), windows=3, steps=3,
        pull=1e-4, threads=1, device="cpu",
    )  # fmt: skip


def test_it_fits_the_value_and_only_the_value(config, make_episode):
    """Catches rows that move the wrong way, or another block's, and other readings than those of imagination."""
    figures = fit_value.run(config)
    before, after = (checkpoint.load(folder, torch.device("cpu")) for folder in (config.start, config.out))
    assert figures["episodes"] == 10 and after.meta["value"] == figures

    model = after.model
    tracks = Tracks.join([
        Tracks.of(make_episode(seed, steps=40), model.layout, after.frames, after.actions, after.text)
        for seed in range(10)
    ])  # fmt: skip
    window = tracks.window(spread(tracks, 20, 3), 3)
    with torch.inference_mode():
        old, new = foresee(before.model, window), foresee(model, window)
    true = window.value[:, 2:]
    assert (new.value.mean() - true.mean()).abs() < 0.3 * (old.value.mean() - true.mean()).abs()
    assert new.value[true > 0].mean() > new.value[true == 0].mean() + 0.01
    for name in ("main_ids", "state", "success", "held", "keypoints"):
        assert torch.equal(getattr(new, name), getattr(old, name)), name


def test_what_was_left_out_judges(config):
    """Catches figures of `after` that are those of the episodes fitted on: with ten episodes chance is all there is
    to learn, which looks like knowledge on them."""
    figures = fit_value.run(config)
    fitted = checkpoint.load(config.out, torch.device("cpu"))
    evidence = fit_value.gather(fitted.model, fit_value.read(config.data, fitted), config.windows, config.steps)
    block, worth = fitted.model.vocab.value, fitted.model.layout.worth
    said = fitted.model.logits(evidence.hidden, block).softmax(-1) @ worth
    assert fit_value.judge(said.detach(), evidence)["correlation"] > figures["after"]["correlation"] + 0.05


def test_it_refuses(config, make_episode, tmp_path):
    """Catches a value that never doubts because nothing failed, an overwritten checkpoint, and an empty folder."""
    store = EpisodeStore(tmp_path / "won")
    for seed in (0, 2):
        store.write(make_episode(seed, steps=40), f"episode-{seed}")
    with pytest.raises(EpisodeError, match="all end alike"):
        fit_value.run(replace(config, data=(str(tmp_path / "won"),)))
    with pytest.raises(EpisodeError, match="agent.collect"):
        fit_value.run(replace(config, data=(str(tmp_path / "none"),)))
    with pytest.raises(CheckpointError, match="another one"):
        fit_value.run(replace(config, out=config.start))


def test_a_second_time_says_the_same(config, monkeypatch):
    """Catches a pipeline that stops here when it is run again, and one that takes another recipe's checkpoint."""
    figures = fit_value.run(config)
    monkeypatch.setattr(fit_value, "gather", None)
    assert fit_value.run(config) == figures
    with pytest.raises(CheckpointError, match="another one"):
        fit_value.run(replace(config, pull=1.0))
