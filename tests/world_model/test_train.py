"""Training: resuming is exact, data order is a function of the step, and the verb writes what it says."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir

from envs.data.store import EpisodeError, EpisodeStore
from world_model import checkpoint, train
from world_model.metrics import held_out
from world_model.tokens.images import FrameConfig, FrameTokenizer

CONFIGS = str(Path(__file__).parents[2] / "configs")


@pytest.fixture
def config(tmp_path, make_episode) -> train.TrainConfig:
    store = EpisodeStore(tmp_path / "data")
    for seed in range(4):
        store.write(make_episode(seed, steps=56), f"episode-{seed}")
    torch.manual_seed(0)
    FrameTokenizer(FrameConfig(levels=(5, 5, 5), width=16, encoder_blocks=1, decoder_blocks=1)).save(tmp_path / "tok")
    overrides = [
        "model=debug", f"data=[{tmp_path / 'data'}]", f"tokenizer={tmp_path / 'tok'}", f"out={tmp_path / 'out'}",
        "steps=6", "batch=3", "window=2", "held_out=2", "measured_windows=8", "loss_every=3",
        "checkpoint_seconds=0", "precision=fp32",
    ]  # fmt: skip
    with initialize_config_dir(CONFIGS, version_base=None):
        return train.to_config(compose("train", overrides))


def weights(data: train.Data) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in data.model.state_dict().items()}


def go(config: train.TrainConfig, steps: int | None = None) -> tuple[dict[str, torch.Tensor], list[float]]:
    """Train as a fresh process would, and be killed after `steps` steps of it."""
    data = train.prepare(config, torch.device("cpu"))
    losses = []
    for progress, found in train.train(config, data):
        losses.append(found["loss"])
        if progress.step == steps:
            break
    return weights(data), losses


def test_resuming_equals_never_having_stopped(config, tmp_path):
    """Catches anything that the next step depends on and that is not kept: moments, data order, randomness."""
    whole, losses = go(config)
    again = replace(config, out=str(tmp_path / "again"))
    _, first = go(again, steps=3)
    resumed, rest = go(again)
    assert first + rest == losses
    for name, value in whole.items():
        assert torch.equal(value, resumed[name]), name


def test_a_kill_while_saving_loses_one_save(config):
    """Catches a run that cannot go on because of a folder that `last` never came to name."""
    go(config, steps=2)
    out = Path(config.out)
    (out / "step-0000003").mkdir()  # what a kill between the rename and `last` leaves behind
    (out / ".step-0000004.1.tmp").mkdir()
    _, losses = go(config)
    assert len(losses) == 4 and checkpoint.last(out).name == "step-0000006" and not list(out.glob(".*.tmp"))


def test_other_settings_do_not_mix(config):
    """Catches a resumed run that silently goes on with other data or another learning rate."""
    go(config, steps=1)
    with pytest.raises(ValueError, match="other settings.*choose another `out`"):
        go(replace(config, learning_rate=1e-4))


def test_experience_is_learnt_from_and_not_imitated(config, tmp_path, make_episode):
    """Catches advice that comes in beside the demonstrations that were meant to be all there is."""
    store = EpisodeStore(tmp_path / "own")
    for seed in range(4):
        store.write(make_episode(seed, steps=56), f"own-{seed}")
    alone = train.prepare(config, torch.device("cpu")).train
    both = train.prepare(replace(config, experience=(str(tmp_path / "own"),)), torch.device("cpu")).train
    assert both.advised.sum() == alone.advised.sum() > 0
    assert len(both) == 2 * len(alone)
    losses = go(replace(config, experience=(str(tmp_path / "own"),)), steps=1)[1]
    assert np.isfinite(losses).all()


def test_only_its_own_attempts_say_what_a_state_is_worth(config, tmp_path, make_episode):
    """Catches a value that says what an expert makes of a state, or of aimless motion, and not the model."""
    store = EpisodeStore(tmp_path / "own")
    for seed in range(4):
        store.write(make_episode(seed, steps=56), f"own-{seed}")
    own = (str(tmp_path / "own"),)
    alone, others, itself = (
        train.prepare(c, torch.device("cpu")).train
        for c in (config, replace(config, experience=own), replace(config, attempts=own))
    )
    assert len(others) == len(itself) == 2 * len(alone)
    assert itself.advised.sum() == others.advised.sum() == alone.advised.sum() > 0
    assert np.isfinite(others.value).sum() < np.isfinite(itself.value).sum() == 2 * np.isfinite(alone.value).sum()


def test_frames_may_be_read_as_a_checkpoint_reads_them(config):
    """Catches a checkpoint that is refused where a tokenizer is asked for, or one that gives other ids."""
    go(config, steps=1)
    folders = (config.tokenizer, str(checkpoint.last(Path(config.out))))
    own, within = (train.frame_tokenizer(folder, torch.device("cpu")) for folder in folders)
    frames = torch.randint(256, (2, 64, 64, 3), dtype=torch.uint8)
    assert torch.equal(own.encode(frames), within.encode(frames))


def test_each_epoch_shows_every_window_once(config):
    """Catches windows that are never or twice seen, and an order that depends on more than the step."""
    rows, batch = 30, config.batch
    epoch = np.concatenate([train.batch_starts(config, rows, step) for step in range(rows // batch)])
    assert sorted(epoch) == list(range(rows))
    other = np.concatenate([train.batch_starts(config, rows, step) for step in range(rows // batch, 2 * rows // batch)])
    assert sorted(other) == list(range(rows)) and list(other) != list(epoch)
    assert list(train.batch_starts(config, rows, 7)) == list(epoch[7 * batch : 8 * batch])


def test_the_rate_warms_up_and_ends_at_zero(config):
    """Catches a schedule that jumps or never ends."""
    rates = [train.pace(config, p) for p in np.linspace(0, 1, 101)]
    peak = int(np.argmax(rates))
    assert rates[peak] == pytest.approx(1, rel=0.01) and peak <= 4
    assert 0 < rates[0] < 0.1 and rates[-1] < 1e-3 and all(np.diff(rates[peak:]) <= 0)


def test_minutes_end_training(config):
    """Catches a time budget that is not kept."""
    _, losses = go(replace(config, minutes=1e-6, steps=10**6))
    assert len(losses) == 1


def test_the_verb_writes_what_it_says(config):
    """Catches a run without figures, picture or checkpoint, and held-out episodes that are trained on."""
    figures = train.run(config)
    out = Path(config.out)
    assert json.loads((out / "metrics.json").read_text()) == figures
    assert (out / "imagined.png").stat().st_size > 1000
    loaded = checkpoint.load(out / "checkpoint")
    assert loaded.meta["instructions"] == ["fold the cloth in half"] and loaded.meta["figures"] == figures
    assert loaded.meta["episodes"] == {"train": 2, "held_out": 2}
    assert (out / "checkpoint" / "training.safetensors").exists() is False
    assert len(figures["gripper_cm"]) == held_out.AHEAD and "id_accuracy_copy" in figures
    assert "next_image_nats_shuffled" in figures and "gripper_cm" in held_out.table(figures)
    assert train.run(config) == figures  # a finished run is only measured again


def test_no_episodes_is_said_plainly(config, tmp_path):
    """Catches a traceback where the user only forgot to collect."""
    with pytest.raises(EpisodeError, match="run `python -m agent.collect` first"):
        train.prepare(replace(config, data=(str(tmp_path / "none"),)), torch.device("cpu"))


@pytest.mark.parametrize("name", ["debug", "S", "M", "L"])
def test_presets_are_sound(name):
    """Catches a preset that does not build, or that is not of the size its name says."""
    with initialize_config_dir(CONFIGS, version_base=None):
        config = train.to_config(compose("train", [f"model={name}"])).model.transformer
    per_layer = config.width * (2 * config.width + 2 * config.num_kv_heads * config.head_dim + 3 * config.hidden)
    millions = (per_layer * config.num_layers + 1500 * config.width) / 1e6
    low, high = {"debug": (0, 0.2), "S": (1.8, 2.6), "M": (6, 8), "L": (22, 30)}[name]
    assert low < millions < high, millions


def test_figures_are_right_where_they_can_be_known():
    """Catches a calibration error or a correlation that is computed wrongly."""
    assert held_out.calibration_error(np.array([0.05, 0.95]), np.array([0.05, 0.95])) == 0
    assert held_out.calibration_error(np.array([0.9, 0.9]), np.array([0.0, 1.0])) == pytest.approx(0.4)
    assert held_out.correlation(np.array([0.0, 1.0, 2.0]), np.array([0.0, 2.0, 4.0])) == 1.0


def test_a_checkpoint_to_start_from_keeps_its_tokenizers(config, tmp_path, make_episode):
    """Catches bins and texts that are fitted again on added episodes: the old weights would mean other numbers. And
    loss weights that the new training asks for and does not get."""
    figures = train.run(config)
    EpisodeStore(tmp_path / "more").write(make_episode(9, steps=56), "episode-9")
    begun = checkpoint.load(Path(config.out) / "checkpoint")
    added = replace(
        config, start=str(Path(config.out) / "checkpoint"), out=str(tmp_path / "on"), tokenizer="not read",
        data=(*config.data, str(tmp_path / "more")),
        model=replace(config.model, weights=replace(config.model.weights, belief=3.0)),
    )  # fmt: skip
    data = train.prepare(added, torch.device("cpu"))
    assert data.model.config.weights.belief == 3.0  # what counts is this training's to say
    assert data.model.actions == begun.actions and data.model.vocab == begun.vocab and len(figures)
    for name, value in begun.model.state_dict().items():
        assert torch.equal(value, data.model.state_dict()[name]), name
    changed, _ = go(added)
    assert not torch.equal(changed["kinds.weight"], begun.model.kinds.weight)
