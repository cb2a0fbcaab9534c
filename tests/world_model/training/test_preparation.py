"""What a training is made of: a checkpoint to go on from and what may be added to it, episodes with poses and views."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from envs.data.store import EpisodeStore
from envs.sim.table import SPEC
from tests.robots import ARM, made_up
from tests.viewed import ROBOT, viewed
from tests.world_model.runs import SEEDS, go, read_config, save_tokenizer
from world_model import checkpoint, train
from world_model.tokens.images import ImageTokenizer
from world_model.training import start


@pytest.fixture
def begun(config, tmp_path) -> train.TrainConfig:
    """A training that starts from a finished one, with nothing asked for."""
    train.run(config)
    return replace(
        read_config(tmp_path, "augment=tabletop", "model=auto", "tokenizer=null"),
        start=str(Path(config.out) / "checkpoint"), out=str(tmp_path / "on"),
    )  # fmt: skip


def test_a_checkpoint_to_start_from_keeps_its_tokenizers(config, begun, tmp_path, make_episode):
    """Catches bins and texts that are fitted again on added episodes: the old weights would mean other numbers. And
    loss weights that the new training asks for and does not get."""
    EpisodeStore(tmp_path / "more").write(make_episode(9, steps=56), "episode-9")
    first = checkpoint.load(begun.start)
    weights = replace(begun.model.weights, belief=3.0)
    added = replace(begun, data=(*begun.data, str(tmp_path / "more")), model=replace(begun.model, weights=weights))
    data = train.prepare(added, torch.device("cpu"))
    assert data.model.config.weights.belief == 3.0  # what counts is this training's to say
    assert data.model.actions == first.actions and data.model.vocab == first.vocab
    for name, value in first.model.state_dict().items():
        assert torch.equal(value, data.model.state_dict()[name]), name
    changed, _ = go(added)
    assert not torch.equal(changed["token_type_embed.weight"], first.model.token_type_embed.weight)


def test_what_is_asked_for_beside_a_start_must_be_what_it_has(config, begun, tmp_path):
    """Catches `start=` that ignores `model=`, `coefs=` and the like in silence, and one that refuses what is the
    same."""
    same = replace(
        begun, model=config.model, coefs=(4, 4, 4, 2, 2, 2), chunk=8, discount=0.997, text_size=320,
        tokenizer=config.tokenizer,
    )  # fmt: skip
    train.prepare(same, torch.device("cpu"))
    save_tokenizer(tmp_path / "tok2", SPEC.cameras, seed=1)
    small = replace(begun.model, transformer=start.SMALL, smoothing=2.0)
    for change, message in (
        ({"model": small}, "`model.smoothing` is 2.0, the checkpoint has 1.2; `model.transformer.width` is 192, .* 32"),
        ({"coefs": (4, 4, 4, 0, 0, 2)}, "`coefs` is .4, 4, 4, 0, 0, 2., .* none may be taken away"),
        ({"chunk": 4}, "`chunk` is 4, .* has 8"),
        ({"discount": 0.9}, "`discount` is 0.9"), ({"text_size": 257}, "`text_size` is 257"),
        ({"tokenizer": str(tmp_path / "tok2")}, "tok2, the checkpoint has another image tokenizer"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            train.prepare(replace(begun, **change), torch.device("cpu"))


def test_a_tokenizer_that_was_trained_on_may_replace_that_of_the_start(config, begun, tmp_path):
    """Catches a model that cannot follow its tokenizer to other looks, one that goes on with the old one in silence,
    and one that loses its own weights on the way."""
    first = checkpoint.load(begun.start)
    save_tokenizer(tmp_path / "tok2", SPEC.cameras, seed=1)
    other = ImageTokenizer.load(tmp_path / "tok2")
    other.save(tmp_path / "tok2", continues=first.frames.content())
    data = train.prepare(replace(begun, tokenizer=str(tmp_path / "tok2")), torch.device("cpu"))
    assert data.model.frame_tokenizer.content() == other.content() != first.frames.content()
    for name, value in first.model.state_dict().items():
        assert name.startswith("frame_tokenizer.") or torch.equal(value, data.model.state_dict()[name]), name


def test_strides_may_be_added_to_a_start_that_has_none(begun, tmp_path):
    """Catches a shipped checkpoint that cannot learn short model steps, one that loses its weights for them, and a
    model of some strides that is taught others."""
    first, cpu = checkpoint.load(begun.start), torch.device("cpu")
    added = replace(begun, strides=(2, 4), stride_weights=(1, 1, 2))
    data = train.prepare(added, cpu)
    assert data.model.strides == (2, 4, 8) and first.model.strides == (8,)
    for name, value in first.model.state_dict().items():
        assert torch.equal(value, data.model.state_dict()[name]), name
    assert np.unique(train.draw_strides(torch.tensor([0, 0.5, 0.5]), data.model, added, None)).tolist() == [4, 8]
    with pytest.raises(ValueError, match="`stride_weights` must be .* each of the strides 2, 4, 8"):
        go(replace(added, stride_weights=(1, 1)))
    figures = train.run(added)
    assert "position_cm_stride_2" in figures and "position_cm_stride_8" in figures
    on = replace(begun, start=str(tmp_path / "on" / "checkpoint"), out=str(tmp_path / "further"))
    assert train.prepare(on, cpu).model.config.strides == (2, 4), "what the start has"
    train.prepare(replace(on, strides=(2, 4, 8)), cpu)
    for other in ((), (2,)):
        with pytest.raises(ValueError, match=r"`strides` is .*, the checkpoint has \[2, 4\]"):
            train.prepare(replace(on, strides=other), cpu)


def test_dimensions_that_did_not_move_may_be_added_to_a_start(config, tmp_path, make_episode):
    """Catches a checkpoint that can never learn to turn a hand, and one that goes on with data in which it turns and
    reads all these actions as standing still."""
    for name, turning in (("still", 0.0), ("turning", 1.0)):
        for seed in SEEDS:
            episode = make_episode(seed, steps=56)
            scale = np.where(np.arange(7) == 3, turning, 1.0).astype(np.float32)
            moved = replace(episode, action=episode.action * scale, expert=episode.expert * scale)
            EpisodeStore(tmp_path / name).write(moved, f"e{seed}")
    still = replace(config, data=(str(tmp_path / "still"),), coefs=(4, 4, 4, 0, 2, 2), out=str(tmp_path / "before"))
    train.run(still)
    start_from = str(tmp_path / "before" / "checkpoint")
    on = replace(still, data=(str(tmp_path / "turning"),), coefs="auto", start=start_from, out=str(tmp_path / "after"))
    with pytest.raises(ValueError, match="keeps nothing of drx, which moves"):
        train.prepare(on, torch.device("cpu"))
    first, data = checkpoint.load(on.start), train.prepare(replace(on, coefs=(4, 4, 4, 2, 2, 3)), torch.device("cpu"))
    actions = data.model.actions
    assert actions.coefs == data.model.layout.coefs == (4, 4, 4, 2, 2, 3)
    assert (*actions.scale[:12], *actions.scale[14:18]) == first.actions.scale
    old, new = (dict(zip(m.layout.slot_names, m.step_embed.weight.unbind(), strict=False))
                for m in (first.model, data.model))  # fmt: skip
    assert {*new} - {*old} == {"action drx 0", "action drx 1", "action drz 2"}
    assert all(torch.equal(new[name], row) for name, row in old.items())


def test_a_start_is_of_the_same_robot(begun, tmp_path):
    """Catches a model that goes on with another robot whose state has as many dimensions."""
    store = EpisodeStore(tmp_path / "other")
    for seed in SEEDS:
        store.write(made_up(ARM, seed), f"e{seed}")
    with pytest.raises(ValueError, match="the checkpoint .* and the episodes of .*different robots"):
        train.prepare(replace(begun, data=(str(store.root),)), torch.device("cpu"))


# -------------------------------------------------------------------------------------------------- cameras


@pytest.fixture
def seen_from_elsewhere(tmp_path) -> Path:
    """A folder of four episodes that tell their cameras' poses and have two views."""
    store = EpisodeStore(tmp_path / "data")
    for seed in SEEDS:
        store.write(viewed(seed, steps=24), f"episode-{seed}")
    save_tokenizer(tmp_path / "tok", ROBOT.cameras)
    return tmp_path


def test_episodes_with_poses_and_views_make_a_model_that_knows_them(seen_from_elsewhere):
    """Catches ranges or slots that a checkpoint loses, views that are kept for nobody, and a run whose order of
    randomness depends on them when it is taken up again."""
    config = read_config(seen_from_elsewhere, "view_share=1", "swap_share=0.5", "hide_poses=0.5")
    whole, losses = go(config)
    again = replace(config, out=str(seen_from_elsewhere / "again"))
    _, first = go(again, steps=3)
    assert first + go(again)[1] == losses

    figures = train.run(config)
    loaded = checkpoint.load(Path(config.out) / "checkpoint")
    assert loaded.meta["views"] == ["left", "top"] and figures["loss"] > 0 and figures["view_nats"] > 0
    assert [told.camera for told in loaded.model.layout.poses] == ["front", "hand"]
    assert all(camera.posed for camera in loaded.spec.cameras)
    for name, value in whole.items():
        torch.testing.assert_close(loaded.model.state_dict()[name], value, msg=name)
    data = train.prepare(replace(config, view_share=0.0, swap_share=0.0), torch.device("cpu"))
    assert not data.train.views.count.any() and data.about["views"] == [] and data.train.pose.shape[1] == 16


def test_training_goes_on_from_a_checkpoint_without_poses(seen_from_elsewhere, tmp_path):
    """Catches weights that are lost, or moved to other slots, when cameras begin to tell where they stand."""
    untold = EpisodeStore(tmp_path / "untold")
    for seed in SEEDS:
        untold.write(replace(viewed(seed), poses={}, views={}), f"episode-{seed}")
    config = read_config(tmp_path, f"data=[{tmp_path / 'untold'}]", f"out={tmp_path / 'first'}", "steps=2")
    train.run(config)
    old = checkpoint.load(tmp_path / "first" / "checkpoint")
    assert old.model.layout.poses == () and not any(camera.posed for camera in old.spec.cameras)

    begun = replace(config, data=(str(tmp_path / "data"),), start=str(tmp_path / "first" / "checkpoint"),
                    tokenizer=None, out=str(tmp_path / "second"), view_share=1.0)  # fmt: skip
    model = train.prepare(begun, torch.device("cpu")).model
    assert [told.camera for told in model.layout.poses] == ["front", "hand"]
    rows = {name: i for i, name in enumerate(model.layout.slot_names)}
    for i, name in enumerate(old.model.layout.slot_names):
        assert torch.equal(model.step_embed.weight[rows[name]], old.model.step_embed.weight[i]), name
    assert torch.equal(model.token_type_embed.weight[:3], old.model.token_type_embed.weight)
    assert model.token_type_embed.weight[3].abs().sum() > 0
    for name, value in old.model.state_dict().items():
        assert "_embed" in name or torch.equal(model.state_dict()[name], value), name
    train.run(begun)
    told = checkpoint.load(tmp_path / "second" / "checkpoint")
    assert told.meta["views"] == ["left", "top"]

    third = replace(begun, data=config.data, start=str(tmp_path / "second" / "checkpoint"), out=str(tmp_path / "third"))
    data = train.prepare(third, torch.device("cpu"))
    assert data.model.layout.poses == told.model.layout.poses and data.about["views"] == ["left", "top"]
    assert any("nothing is learnt of other views" in note for note in data.notes)


def test_poses_outside_the_range_of_the_start_are_told(seen_from_elsewhere, tmp_path):
    """Catches a camera that moved across the room and is told at the edge of its range in silence."""
    config = read_config(tmp_path, "steps=1")
    train.run(config)
    far = EpisodeStore(tmp_path / "far")
    for seed in SEEDS:
        episode = viewed(seed)
        moved = {**episode.poses, "front": episode.poses["front"] + np.float32([3, 0, 0, 0, 0, 0, 0, 0])}
        far.write(replace(episode, poses=moved), f"episode-{seed}")
    begun = replace(config, data=(str(tmp_path / "far"),), start=str(tmp_path / "out" / "checkpoint"), tokenizer=None,
                    out=str(tmp_path / "again"))  # fmt: skip
    notes = train.prepare(begun, torch.device("cpu")).notes
    assert any("100.00% of the values of the pose `front.x` in training" in note for note in notes), notes


def test_views_cannot_stand_for_a_camera_on_the_hand(seen_from_elsewhere):
    """Catches pictures from the room that are told as if they came from the hand, or moved with it."""
    config = read_config(seen_from_elsewhere, "view_share=0.5", "augment.attached=[front]")
    with pytest.raises(ValueError, match="views .* camera front, which moves with the hand"):
        train.prepare(config, torch.device("cpu"))
