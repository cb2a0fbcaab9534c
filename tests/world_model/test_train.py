"""Training: resuming is exact, data order is a function of the step, and the command writes what it says."""

import json
import math
import socket
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from envs.data.split import is_held_out
from envs.data.store import EpisodeError, EpisodeStore
from envs.sim.table import SPEC
from tests.robots import ARM, HANDS, made_up
from tests.world_model.runs import SEEDS, go, read_config, save_tokenizer
from world_model import checkpoint, train
from world_model.metrics import held_out
from world_model.training import start
from world_model.training.preparation import frame_tokenizer

HELD = [seed for seed in SEEDS if is_held_out(seed, 2)]


@pytest.mark.parametrize("strides", [None, (1, 2, 4)])
def test_resuming_equals_never_having_stopped(config, tmp_path, strides):
    """Catches anything that the next step depends on and that is not kept: moments, data order, randomness."""
    config = replace(config, strides=strides)
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
    dead = subprocess.Popen(["true"])
    dead.wait()
    (out / f".step-0000004.{socket.gethostname()}.{dead.pid}.0.tmp").mkdir()
    _, losses = go(config)
    assert len(losses) == 4 and checkpoint.last(out).name == "step-0000006" and not list(out.glob(".*.tmp"))


def test_other_settings_do_not_mix(config):
    """Catches a resumed run that silently goes on with another learning rate, and one that does not say what is
    another."""
    go(config, steps=1)
    with pytest.raises(ValueError, match="`learning_rate` was 0.002 and is 0.0001.*Choose another `out`"):
        go(replace(config, learning_rate=1e-4))
    with pytest.raises(ValueError, match="`model.weights.belief` was 2.0 and is 3.0"):
        weights = replace(config.model.weights, belief=3.0)
        go(replace(config, model=replace(config.model, weights=weights)))


def test_other_data_do_not_mix(config, tmp_path, make_episode):
    """Catches a resumed run that goes on though its data grew, an episode was replaced or a folder was added: nothing
    in its settings has changed."""
    go(config, steps=1)
    store = EpisodeStore(tmp_path / "data")
    store.write(make_episode(4, steps=56), "episode-4")
    with pytest.raises(ValueError, match=r"data: 1 episode \(episode-4\) added"):
        go(config)
    store.path("episode-4").unlink()
    store.write(make_episode(7, steps=56), "episode-1")
    with pytest.raises(ValueError, match=r"1 episode \(episode-1\) changed"):
        go(config)
    store.write(make_episode(1, steps=56), "episode-1")
    EpisodeStore(tmp_path / "more").write(make_episode(5, steps=56), "episode-5")
    with pytest.raises(ValueError, match="`unlabelled` had no folder"):
        go(replace(config, unlabelled=(str(tmp_path / "more"),)))
    assert len(go(config)[1]) == 5, "and goes on where everything is as it was"


def test_another_tokenizer_or_start_does_not_mix(config, tmp_path):
    """Catches a resumed run whose tokenizer, or the checkpoint it starts from, was trained again at the same path."""
    go(config, steps=1)
    save_tokenizer(tmp_path / "tok", SPEC.cameras, seed=1)
    with pytest.raises(ValueError, match="`tokenizer` names is not what it was"):
        go(config)
    save_tokenizer(tmp_path / "tok", SPEC.cameras)
    train.run(config)
    begun = replace(config, start=str(tmp_path / "out" / "checkpoint"), out=str(tmp_path / "on"))
    go(begun, steps=1)
    train.run(replace(config, seed=1, out=str(tmp_path / "other")))
    (tmp_path / "out" / "checkpoint").rename(tmp_path / "first")
    (tmp_path / "other" / "checkpoint").rename(tmp_path / "out" / "checkpoint")
    with pytest.raises(ValueError, match="`start` names is not what it was"):
        go(begun)


def test_a_folder_may_move(config, tmp_path):
    """Catches a run that is told by its paths and not by what lies under them."""
    go(config, steps=1)
    (tmp_path / "data").rename(tmp_path / "elsewhere")
    assert len(go(replace(config, data=(str(tmp_path / "elsewhere"),)))[1]) == 5


def test_unlabelled_data_are_learnt_from_and_not_imitated(config, tmp_path, make_episode):
    """Catches advice that comes in beside the demonstrations that were meant to be all there is."""
    store = EpisodeStore(tmp_path / "own")
    for seed in range(4):
        store.write(make_episode(seed, steps=56), f"own-{seed}")
    alone = train.prepare(config, torch.device("cpu")).train
    both = train.prepare(replace(config, unlabelled=(str(tmp_path / "own"),)), torch.device("cpu")).train
    assert both.has_expert.sum() == alone.has_expert.sum() > 0
    assert len(both) == 2 * len(alone)
    losses = go(replace(config, unlabelled=(str(tmp_path / "own"),)), steps=1)[1]
    assert np.isfinite(losses).all()


def test_only_on_policy_data_say_what_a_state_is_worth(config, tmp_path, make_episode):
    """Catches a value that says what an expert makes of a state, or of aimless motion, and not the model."""
    store = EpisodeStore(tmp_path / "own")
    for seed in range(4):
        store.write(make_episode(seed, steps=56), f"own-{seed}")
    own = (str(tmp_path / "own"),)
    alone, others, itself = (
        train.prepare(c, torch.device("cpu")).train
        for c in (config, replace(config, unlabelled=own), replace(config, on_policy=own))
    )
    assert len(others) == len(itself) == 2 * len(alone)
    assert itself.has_expert.sum() == others.has_expert.sum() == alone.has_expert.sum() > 0
    assert np.isfinite(others.value).sum() < np.isfinite(itself.value).sum() == 2 * np.isfinite(alone.value).sum()


def test_frames_may_be_read_as_a_checkpoint_reads_them(config):
    """Catches a checkpoint that is refused where a tokenizer is asked for, or one that gives other ids."""
    go(config, steps=1)
    folders = (config.tokenizer, str(checkpoint.last(Path(config.out))))
    own, within = (frame_tokenizer(folder, torch.device("cpu")) for folder in folders)
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


def test_the_command_writes_what_it_says(config):
    """Catches a run without figures, picture or checkpoint, and held-out episodes that are trained on."""
    figures = train.run(config)
    out = Path(config.out)
    assert json.loads((out / "metrics.json").read_text()) == figures
    assert (out / "imagined.png").stat().st_size > 1000
    loaded = checkpoint.load(out / "checkpoint")
    assert loaded.meta["instructions"] == ["fold the cloth in half"] and loaded.meta["figures"] == figures
    assert loaded.meta["episodes"] == {"train": 4 - len(HELD), "held_out": len(HELD)}
    assert loaded.meta["discount"] == 0.997 and loaded.spec == SPEC
    assert (out / "checkpoint" / "training.safetensors").exists() is False
    assert len(figures["position_cm"]) == held_out.AHEAD and "id_accuracy_copy" in figures
    assert "next_image_nats_shuffled" in figures and "position_cm" in held_out.table(figures)
    assert train.run(config) == figures  # a finished run is only measured again


def test_a_finished_checkpoint_stands_until_the_next_is_written(config, monkeypatch):
    """Catches finished work that is deleted before it is saved again: a full disk would leave nothing."""
    train.run(config)
    finished = Path(config.out) / "checkpoint"
    before, write = checkpoint.load(finished).sha256, checkpoint.save
    (Path(config.out) / "last").unlink()  # a training that begins anew in this folder

    def refuse(folder, *args, **kwargs):
        if Path(folder) == finished:
            raise checkpoint.CheckpointError("the disk is full")
        return write(folder, *args, **kwargs)

    monkeypatch.setattr(checkpoint, "save", refuse)
    with pytest.raises(checkpoint.CheckpointError):
        train.run(replace(config, seed=1))
    assert checkpoint.load(finished).sha256 == before


def test_a_finished_checkpoint_keeps_its_identity(config):
    """Catches a finished run that is called again and writes other figures into its checkpoint: whatever was made from
    that checkpoint would then refuse to go on. And one that leaves a damaged checkpoint as it is."""
    train.run(config)
    finished = Path(config.out) / "checkpoint"
    before = checkpoint.load(finished).sha256
    train.run(replace(config, measured_windows=3))
    assert checkpoint.load(finished).sha256 == before
    (finished / "text.json").write_text("{}")
    train.run(config)
    assert checkpoint.load(finished).sha256 == before


def test_what_is_written_is_json(config, tmp_path, make_episode):
    """Catches a bare NaN, which other readers refuse: here nothing moves, so `changed` has nothing to measure."""
    still = make_episode(0, steps=56)
    still = replace(still, images={name: np.repeat(view[:1], 57, axis=0) for name, view in still.images.items()})
    for seed in SEEDS:
        EpisodeStore(tmp_path / "data").write(replace(still, seed=seed), f"episode-{seed}")
    figures = train.run(replace(config, augment=replace(config.augment, share=0.0)))
    assert figures["id_accuracy_changed"] == 4 * [None]

    def refuse(word):
        raise AssertionError(f"{word} is not JSON")

    for path in (Path(config.out) / "metrics.json", *Path(config.out).glob("*/meta.json")):
        json.loads(path.read_text(), parse_constant=refuse)


def test_data_that_are_not_there_are_named(config, tmp_path):
    """Catches a traceback where the user only forgot to collect, and a misspelt folder among several that is skipped
    in silence."""
    (tmp_path / "empty").mkdir()
    for wrong in ("none", "empty"):
        with pytest.raises(EpisodeError, match=rf"{wrong} .*agent.collect"):
            train.prepare(replace(config, data=(*config.data, str(tmp_path / wrong))), torch.device("cpu"))


def test_one_seed_is_said_plainly(config, tmp_path, make_episode):
    """Catches six episodes that are called `no two episodes`, and a training that ends in a traceback because none
    of its few seeds is held out."""
    for folder, seed in (("held", HELD[0]), ("kept", 1)):
        for i in range(6):
            EpisodeStore(tmp_path / folder).write(make_episode(seed, steps=56), f"episode-{i}")
    with pytest.raises(EpisodeError, match="the seeds of all 6 episodes .*are among the one in 2"):
        train.prepare(replace(config, data=(str(tmp_path / "held"),)), torch.device("cpu"))
    alone = replace(config, data=(str(tmp_path / "kept"),), loss_every=1, steps=2)
    assert "none of the 6 episodes is held out" in " ".join(train.prepare(alone, torch.device("cpu")).notes)
    figures = train.run(alone)
    assert "loss" not in figures and "held_out" not in figures["state_outside"]
    assert (Path(config.out) / "checkpoint").exists()


def test_growing_data_move_no_episode(config, tmp_path, make_episode):
    """Catches test episodes that become training episodes when a folder grows."""

    def sides() -> tuple[set[int], set[int]]:
        data = train.prepare(config, torch.device("cpu"))
        return tuple(set(dataset.state[::57, 2].tolist()) for dataset in (data.train, data.held_out))

    store = EpisodeStore(tmp_path / "data")
    for seed in SEEDS:  # the state's first z tells the episode
        episode = make_episode(seed, steps=56)
        state = episode.state.copy()
        state[0, 2] = 0.75 + 0.01 * seed
        store.write(replace(episode, state=state), f"episode-{seed}")
    before = sides()
    for seed in range(20, 26):
        store.write(make_episode(seed, steps=56), f"a-{seed}")
    after = sides()
    assert before[0] <= after[0] and before[1] <= after[1] and not before[0] & after[1]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ("window=1", "`window` must be at least 2"), ("log_every=0", "`log_every`"), ("loss_every=0", "`loss_every`"),
        ("held_out=1", "`held_out`"), ("warmup=1", "`warmup`"), ("discount=1", "`discount`"), ("chunk=1", "`chunk`"),
        ("learning_rate=0", "`learning_rate`"), ("seed=-1", "`seed`"), ("wandb=on", "`wandb`"), ("steps=x", "`steps`"),
        ("augment.share=2", "share"), ("model.weights.value=-1", "weights of the loss"), ("coefs=some", "`coefs`"),
    ],
)  # fmt: skip
def test_wrong_settings_fail_before_anything_is_read(tmp_path, wrong, message):
    """Catches a setting that fails after the last step, or in a traceback."""
    with pytest.raises(ValueError, match=message):
        read_config(tmp_path, wrong)


def test_a_chunk_longer_than_any_episode_is_refused(config):
    """Catches a training of which no window holds a whole chunk."""
    with pytest.raises(ValueError, match="`chunk` is 60 control steps, longer than any"):
        train.prepare(replace(config, chunk=60), torch.device("cpu"))


def test_settings_as_people_write_them(tmp_path):
    """Catches `data=folder` being read letter by letter, and whole numbers that are refused as `1e3`."""
    config = read_config(tmp_path, "data=data/x", "unlabelled=data/y", "steps=1e3", "coefs=[4, 4]")
    assert config.data == ("data/x",) and config.unlabelled == ("data/y",) and config.steps == 1000
    assert config.coefs == (4, 4) and config.on_policy == ()


@pytest.mark.parametrize(("spec", "chunk"), [(ARM, 4), (HANDS, None)])
def test_any_robot(tmp_path, spec, chunk):
    """Catches a camera, a size, a dimension, a gripper, an expert or a range that is taken for granted."""
    store = EpisodeStore(tmp_path / "data")
    for seed in range(5):
        store.write(made_up(spec, seed, steps=40, expert=spec is HANDS), f"e{seed}")
    save_tokenizer(tmp_path / "tok", spec.cameras)
    config = read_config(tmp_path, "augment=tabletop", *([f"chunk={chunk}"] if chunk else []))
    figures, loaded = train.run(config), checkpoint.load(tmp_path / "out" / "checkpoint")
    assert loaded.actions.chunk == (chunk or 8) and math.isfinite(figures["loss"])
    assert all(math.isfinite(part.low) and math.isfinite(part.high) for part in loaded.spec.state)
    assert not loaded.spec.differences(spec) and ("position_cm" in figures) == (spec is HANDS)
    moving = [part.name for part in spec.action if not part.gripper]
    assert len(loaded.actions.coefs) == len(moving) and min(loaded.actions.coefs) > 0, "fitted from the data"
    assert train.run(config) == figures


def test_held_out_states_beyond_the_range_are_reported(tmp_path, capsys):
    """Catches states that are clamped in silence."""
    store = EpisodeStore(tmp_path / "data")
    for seed in range(4):
        episode = made_up(ARM, seed, steps=40)
        state = episode.state.copy()
        state[:4, 1] += 100.0 * is_held_out(seed, 2)
        store.write(replace(episode, state=state), f"e{seed}")
    save_tokenizer(tmp_path / "tok", ARM.cameras)
    figures = train.run(read_config(tmp_path, "steps=1"))
    assert figures["state_outside"]["train"] == {}
    assert figures["state_outside"]["held_out"]["joint1"] >= 4 / 41
    assert "of the state `joint1` in held-out episodes leave its range" in capsys.readouterr().err


def test_two_robots_are_refused(config, tmp_path):
    """Catches episodes of another robot, or of another rate, in one training; and frames of a tokenizer of other
    cameras."""
    EpisodeStore(tmp_path / "other").write(made_up(HANDS, 1), "e1")
    with pytest.raises(ValueError, match=r"data and .*other .*cameras main, wrist against left, right"):
        train.prepare(replace(config, unlabelled=(str(tmp_path / "other"),)), torch.device("cpu"))
    with pytest.raises(ValueError, match="is of the cameras main 64 x 64.*the episodes are of left 16 x 16"):
        train.prepare(replace(config, data=(str(tmp_path / "other"),)), torch.device("cpu"))


@pytest.mark.parametrize("name", ["debug", "S", "M", "L", "1B", "8B", "auto"])
def test_presets_are_sound(name, tmp_path):
    """Catches a preset that does not build, or that is not of the size its name says; `auto` is S."""
    config = read_config(tmp_path, f"model={name}").model.build().transformer
    per_layer = config.width * (2 * config.width + 2 * config.num_kv_heads * config.head_dim + 3 * config.hidden)
    millions = (per_layer * config.num_layers + 1500 * config.width) / 1e6
    low, high = {
        "debug": (0, 0.2), "S": (1.8, 2.6), "M": (6, 8), "L": (22, 30), "1B": (950, 1050), "8B": (7600, 8400),
        "auto": (1.8, 2.6),
    }[name]  # fmt: skip
    assert low < millions < high, millions
    if name in ("S", "auto"):
        assert config == start.SMALL
