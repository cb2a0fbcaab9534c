"""What a camera's pose tells the model, and what it draws of the scene from another camera."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.viewed import ROBOT, viewed
from world_model import decoding
from world_model.tokens.poses import fit_poses
from world_model.training.dataset import EpisodeDataset
from world_model.training.loss import batch_losses, hidden_by_step
from world_model.training.viewpoints import Choice, Viewpoints
from world_model.types import History


def told_batch(told, poses: bool = True):
    """Four windows that draw a view, of a model that is told its cameras' poses; poses: or not."""
    model, dataset = told
    batch = dataset.batch(25 * np.arange(4) + [2, 5, 8, 0], 2, choice=Choice.all_drawn(4))
    return model, batch if poses else replace(batch, pose=batch.pose * torch.nan)


def told_cache(model, batch):
    observations = [(batch.image[:, s], batch.state[:, s], batch.pose[:, s]) for s in (0, 1)]
    return model.context(batch.instruction, observations, [batch.action[:, 0]])


@torch.no_grad()
@pytest.mark.parametrize("poses", [True, False])
def test_run_time_equals_training_where_poses_are_told(told, poses):
    """Catches a pose that is read in training and not at run time, and a second imagined step that loses it."""
    model, batch = told_batch(told, poses)
    _, act, following, view = hidden_by_step(model, batch)
    cache, at = told_cache(model, batch), model.layout
    expected = model._belief(act[:, 1, : at.beliefs])
    torch.testing.assert_close(model.read(cache).belief.value, expected.value, atol=1e-5, rtol=1e-3)
    first = next(decoding.parallel(model, cache, [batch.action[:, 1]], 4, [8]))
    torch.testing.assert_close(
        first.hidden[:, 0], model.read_next(following[:, 1], batch.image[:, 1], batch.state[:, 1]).hidden[:, 0],
        atol=1e-4, rtol=1e-3,
    )  # fmt: skip

    alone = model.context(batch.instruction, [(batch.image[:, 0], batch.state[:, 0], batch.pose[:, 0])], [])
    first, second = decoding.parallel(model, alone, list(batch.action.unbind(1)), 4, [8, 8])
    there = first.image_ids[:, 0], at.to_bins(first.state[:, 0])
    image, state = (torch.stack([x[:, 0], y, y], 1) for x, y in zip((batch.image, batch.state), there, strict=True))
    dreamt = replace(batch, image=image, state=state, pose=batch.pose[:, :1].expand(-1, 3, -1))
    expected = model.read_next(hidden_by_step(model, dreamt)[2][:, 1], *there)
    torch.testing.assert_close(second.hidden, expected.hidden, atol=1e-4, rtol=1e-3)


@torch.no_grad()
def test_a_view_at_run_time_is_that_of_training(told):
    """Catches a view that is drawn at another place, without history, or from another pose than it was taught."""
    model, batch = told_batch(told)
    view = hidden_by_step(model, batch)[3]  # (B, 2, Kv, width)
    drawn = [("left", 2), ("left", 5), ("top", 8), ("top", 0)]
    rows = [viewed(i).poses[name][t] for i, (name, t) in enumerate(drawn)]
    torch.testing.assert_close(batch.view_pose[:, 0], model.layout.poses[0].to_bins(torch.from_numpy(np.stack(rows))))
    poses = torch.from_numpy(np.stack(rows))[:, None]
    observations = [(batch.image[:, 0], batch.state[:, 0], batch.pose[:, 0])]
    alone = model.context(batch.instruction, observations, [])
    for step, cache in enumerate((alone, told_cache(model, batch))):
        expected = model.frame_tokenizer.decode_latents(model.codes(view[:, step]).mean_latents(), "front")
        assert (model.draw_view(cache, poses)[:, 0].int() - expected.int()).abs().max() <= 1
    many = model.draw_view(alone, torch.cat([poses.roll(1, 0), poses], dim=1))
    assert many.shape == (4, 2, 32, 32, 3)
    assert (many[:, 1].int() - model.draw_view(alone, poses)[:, 0].int()).abs().max() <= 1
    assert not torch.equal(many[:, 0], many[:, 1])


@torch.no_grad()
def test_a_view_is_seen_by_nothing(told):
    """Catches views that change what else is learnt in their batch."""
    model, batch = told_batch(told)
    without = replace(batch, view=batch.view[:, :0, :0], view_pose=batch.view_pose[:, :0],
                      view_valid=batch.view_valid[:, :0])  # fmt: skip
    for seen, alone in zip(hidden_by_step(model, batch)[:3], hidden_by_step(model, without), strict=False):
        torch.testing.assert_close(seen, alone, atol=1e-6, rtol=1e-5)
    losses = batch_losses(model, batch).parts
    assert losses["view"] > 0 and "view" not in batch_losses(model, without).parts
    moved = batch_losses(model, replace(batch, view_valid=batch.view_valid * 0)).parts
    assert moved["view"] == 0


@torch.no_grad()
@pytest.mark.parametrize("decode", ["parallel", "autoregressive"])
def test_where_the_cameras_stand_changes_what_is_imagined(told, decode):
    """Catches a pose that nobody reads, and slow decoding that says a pose itself instead of keeping it."""
    model, batch = told_batch(told)
    _, untold = told_batch(told, poses=False)
    actions = model.actions.decode(batch.action)[:, None]
    one, other = (model.imagine(told_cache(model, each), actions, decode) for each in (batch, untold))
    assert not torch.allclose(one.value, other.value) and torch.isfinite(other.value).all()
    assert one.image_ids.shape == (4, 1, 2, 20)


def test_observations_tell_their_poses(told):
    """Catches a pose that is dropped on the way from an observation, and robots of which only some tell it."""
    model, _ = told
    episode = viewed(1)
    knows, silent = episode.obs(3), replace(episode.obs(3), poses={})
    image, state, pose = model.encode_observations([knows, silent])
    assert torch.equal(image[0], image[1]) and pose[1].isnan().all()
    own = torch.from_numpy(np.concatenate([episode.poses["front"][3], episode.poses["hand"][3]]))
    torch.testing.assert_close(pose[0], model.layout.pose_to_bins(own))
    cache = model.prefill([History((), ((each, None),)) for each in (knows, silent)])
    torch.testing.assert_close(cache.pose, pose, equal_nan=True)
    before = History((), ((silent, episode.action[:8]), (knows, None)))
    assert torch.equal(model.prefill([before]).pose[0], pose[0])


def test_views_that_cannot_be_drawn_are_refused(world, cache, told):
    """Catches noise from a model that knows no poses, and a view from nowhere."""
    with pytest.raises(ValueError, match="without camera poses"):
        world.draw_view(cache, torch.zeros(1, 1, 8))
    model, batch = told_batch(told)
    for poses in (torch.full((4, 1, 8), torch.nan), torch.zeros(4, 8), torch.zeros(3, 1, 8)):
        with pytest.raises(ValueError, match=r"known and of shape \(4, n, 8\)"):
            model.draw_view(told_cache(model, batch), poses)


def test_a_view_is_learnt_and_obeys_the_wanted_pose(make_world, text):
    """Catches a term that teaches nothing, and a drawing that ignores where it is wanted from, or the picture that is
    shown: both would be as likely from another place, or for another scene."""
    episodes = [viewed(seed, jitter=0.0) for seed in range(4)]  # else the scene could be told by its cameras
    model = make_world(ROBOT, (3, 3), text.size, fit_poses(ROBOT.cameras, episodes))
    dataset = EpisodeDataset.join([
        EpisodeDataset.of(
            e, model.layout, model.frame_tokenizer, model.actions, text.within(model.vocab.text), with_views=True
        ) for e in episodes
    ])  # fmt: skip
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=4e-3)
    starts, rng = 25 * np.arange(4), torch.Generator().manual_seed(0)
    for step in range(250):
        choice = Viewpoints(hide=0.0, draw=1.0).choose(4, rng)
        batch = dataset.batch(starts + step % 8, 1, choice=choice)
        loss = -model.codes(hidden_by_step(model, batch)[3]).log_prob(batch.view).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    @torch.no_grad()
    def nats(batch):
        return batch_losses(model, batch).parts["view"]

    batch = dataset.batch(starts, 1, choice=Choice.all_drawn(4))
    learnt = nats(batch)
    assert learnt < 0.6
    assert nats(replace(batch, view_pose=batch.view_pose.roll(2, 0))) > learnt + 0.3, "from where the other view is"
    assert nats(replace(batch, image=batch.image.roll(1, 0))) > learnt + 0.2, "of another scene"
