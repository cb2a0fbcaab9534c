"""The value learns what followed, and nothing else that the model says changes."""

import subprocess
import sys
from dataclasses import replace

import pytest
import torch

from envs.data.store import EpisodeError, EpisodeStore
from tests.robots import HANDS, made_up
from world_model import checkpoint, fit_value
from world_model.checkpoint import CheckpointError
from world_model.fit_value import FitValueConfig
from world_model.metrics.windows import imagine_batch, spread_by_episode
from world_model.training import sources
from world_model.training.dataset import EpisodeDataset


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
        l2_prior=1e-4, threads=1, device="cpu",
    )  # fmt: skip


def test_it_fits_the_value_and_only_the_value(config, make_episode):
    """Catches rows that move the wrong way, or another block's, and other readings than those of imagination."""
    figures = fit_value.run(config)
    before, after = (checkpoint.load(folder, torch.device("cpu")) for folder in (config.start, config.out))
    assert figures["episodes"] == 10 and after.meta["value"] == figures

    model = after.model
    dataset = EpisodeDataset.join([
        EpisodeDataset.of(make_episode(seed, steps=40), model.layout, after.frames, after.actions, after.text)
        for seed in range(10)
    ])  # fmt: skip
    batch = dataset.batch(spread_by_episode(dataset, 20, 3), 3)
    with torch.inference_mode():
        old, new = imagine_batch(before.model, batch), imagine_batch(model, batch)
    true = batch.value[:, 2:]
    assert (new.value.mean() - true.mean()).abs() < 0.3 * (old.value.mean() - true.mean()).abs()
    assert new.value[true > 0].mean() > new.value[true == 0].mean() + 0.01
    for name in ("image_ids", "state", "success", "held", "keypoints"):
        assert torch.equal(getattr(new, name), getattr(old, name)), name


def test_what_was_left_out_judges(config):
    """Catches figures of `after` that are those of the episodes fitted on: with ten episodes chance is all there is
    to learn, which looks like knowledge on them."""
    figures = fit_value.run(config)
    fitted = checkpoint.load(config.out, torch.device("cpu"))
    evidence = fit_value.gather(
        fitted.model, fit_value.read(sources.open_sources({"data": config.data}), fitted), config.windows, config.steps
    )
    block, support = fitted.model.vocab.value, fitted.model.layout.value_support
    said = fitted.model.logits(evidence.hidden, block).softmax(-1) @ support
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


def test_a_second_time_says_the_same(config, monkeypatch, tmp_path, make_episode):
    """Catches a pipeline that stops here when it is run again, and one that takes what was fitted from another start,
    other episodes or other settings for this."""
    figures = fit_value.run(config)
    monkeypatch.setattr(fit_value, "gather", None)
    assert fit_value.run(config) == figures
    with pytest.raises(ValueError, match="`l2_prior` was 0.0001 and is 1.0"):
        fit_value.run(replace(config, l2_prior=1.0))
    store = EpisodeStore(tmp_path / "data")
    kept = store.path("episode-3").read_bytes()
    store.path("episode-3").unlink()
    with pytest.raises(ValueError, match=r"data: 1 episode \(episode-3\) removed"):
        fit_value.run(config)
    store.path("episode-3").write_bytes(kept)
    start = checkpoint.load(config.start, torch.device("cpu"))
    with torch.no_grad():
        start.model.transformer.head[0] += 1  # trained again at the same path
    checkpoint.save(config.start, start.model, start.text, start.meta, replace=True)
    with pytest.raises(ValueError, match="`start` names is not what it was"):
        fit_value.run(config)


def test_another_robot_is_refused(config, tmp_path):
    """Catches a value that is fitted on what another robot did."""
    store = EpisodeStore(tmp_path / "other")
    store.write(made_up(HANDS), "e0")
    with pytest.raises(ValueError, match="the checkpoint and .*other are of different robots"):
        fit_value.run(replace(config, data=(str(store.root),)))


def test_settings_as_people_write_them(tmp_path):
    """Catches a config file whose names have drifted from the dataclass, and a traceback shown to a user."""
    command = [sys.executable, "-m", "world_model.fit_value", f"out={tmp_path}/out", f"data={tmp_path}/none"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    assert "none does not exist" in done.stderr and "Traceback" not in done.stderr
