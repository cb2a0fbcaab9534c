"""From where training sees the scene."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from envs.data.augmentation import Augmentation, Change
from envs.data.camera import CameraPose, project
from tests.robots import made_up
from tests.viewed import FRONT, ROBOT, draw, viewed
from world_model.training.dataset import EpisodeDataset
from world_model.training.viewpoints import VIEWED_STEPS, Choice, Viewpoints

STARTS = np.array([2, 30, 55, 80])  # a window in each of the four episodes of 25 moments


def choice(shown: list[int], wanted: list[int], hidden: bool = False, draws: bool = True) -> Choice:
    """What windows with two views show and draw: 0 their own picture, 1 and 2 the views; wanted: among the others."""
    place = torch.tensor([0.0 if n < 2 else 0.6 for n in shown])
    return Choice(
        torch.full((len(shown),), hidden), torch.tensor([n > 0 for n in shown]), place,
        torch.tensor([0.0 if n == 0 else 0.6 for n in wanted]), draws,
    )  # fmt: skip


def test_what_is_drawn_is_never_what_is_shown():
    """Catches a model that learns to copy its own picture, a view that is never chosen, and one beyond the last."""
    chosen = Viewpoints(hide=0.25, draw=0.5, swap=0.5).choose(4000, torch.Generator().manual_seed(0))
    shown, wanted = chosen.of(np.full(4000, 2))
    assert (shown != wanted).all() and set(zip(shown, wanted, strict=True)) == {
        (a, b) for a in range(3) for b in range(3) if a != b
    }
    assert 0.45 < (shown > 0).mean() < 0.55 and 0.2 < chosen.hidden.float().mean() < 0.3
    shown, wanted = chosen.of(np.zeros(4000, np.int64))
    assert not shown.any() and not wanted.any()


def test_shares_outside_0_to_1_are_refused():
    """Catches a percentage where a share is meant."""
    with pytest.raises(ValueError, match=r"swap_share.* in \[0, 1\]"):
        Viewpoints(swap=15)


def test_a_window_is_told_its_poses_and_shares_the_view(told):
    """Catches poses of another step or camera, and a wanted pose that is not that of the picture."""
    model, dataset = told
    batch = dataset.batch(STARTS, 2, choice=choice([0] * 4, [0, 1, 0, 1]))
    assert batch.view.shape == (4, VIEWED_STEPS, 16) and (batch.view_valid == 1).all()
    for i, start in enumerate(STARTS):
        episode, at = viewed(i), [start - 25 * i, start - 25 * i + 8]
        own = np.concatenate([episode.poses["front"][at], episode.poses["hand"][at]], axis=1)
        torch.testing.assert_close(batch.pose[i, :2], model.layout.pose_to_bins(torch.from_numpy(own)))
        name = ["left", "top"][i % 2]
        assert torch.equal(batch.view[i], model.frame_tokenizer.encode(torch.from_numpy(episode.views[name][at]))), name
        torch.testing.assert_close(
            batch.view_pose[i], model.layout.poses[0].to_bins(torch.from_numpy(episode.poses[name][at]))
        )


def test_a_swapped_window_shows_a_view_with_its_pose(told):
    """Catches a picture with the pose of another, a view that jumps within a window, and an own picture that is drawn
    with the pose of the view in its place."""
    model, dataset = told
    front, hand = (model.layout.image_slices[name] for name in ("front", "hand"))
    plain = dataset.batch(STARTS, 2)
    batch = dataset.batch(STARTS, 2, choice=choice([1, 2, 1, 2], [0] * 4))
    for i, start in enumerate(STARTS):
        episode, at = viewed(i), np.minimum(start - 25 * i + 8 * np.arange(3), 24)
        name = ["left", "top"][i % 2]
        seen = model.frame_tokenizer.encode(torch.from_numpy(episode.views[name][at]))
        assert torch.equal(batch.image[i][:, front], seen)
        told_pose = model.layout.poses[0].to_bins(torch.from_numpy(episode.poses[name][at]))
        torch.testing.assert_close(batch.pose[i][:, :8], told_pose)
    assert torch.equal(batch.image[..., hand], plain.image[..., hand])
    assert torch.equal(batch.pose[..., 8:], plain.pose[..., 8:])
    assert torch.equal(batch.view, plain.image[:, :2, front]), "the camera's own picture"
    torch.testing.assert_close(batch.view_pose, plain.pose[:, :2, :8])


def test_hidden_poses_are_hidden_as_a_whole(told):
    """Catches a model that is told half, or that is never told where it should be."""
    model, dataset = told
    assert dataset.batch(STARTS, 2).pose.isfinite().all()
    hidden = dataset.batch(STARTS, 2, choice=choice([1] * 4, [0] * 4, hidden=True))
    assert hidden.pose.isnan().all() and hidden.view_pose.isfinite().all()
    ids = model.layout.obs_ids(hidden.image, hidden.state, hidden.pose)
    assert (ids[..., list(model.layout.pose_slots)] == model.vocab.marks.mask).all()
    assert torch.equal(ids, model.layout.obs_ids(hidden.image, hidden.state)), "as where no pose is given"


def test_batches_without_views_carry_none(told, text):
    """Catches views that cost time in every batch, and episodes without views that are taught to draw."""
    model, dataset = told
    assert dataset.batch(STARTS, 2).view.numel() == 0
    assert dataset.batch(STARTS, 2, choice=choice([0] * 4, [0] * 4, draws=False)).view.numel() == 0
    words = text.within(model.vocab.text)
    plain = EpisodeDataset.of(made_up(ROBOT, 5), model.layout, model.frame_tokenizer, model.actions, words)
    both = EpisodeDataset.join([plain, dataset])
    starts = np.array([3, len(plain) + 3])
    batch = both.batch(starts, 2, choice=choice([1, 1], [0, 0]))
    assert batch.view_valid.tolist() == [[0, 0], [1, 1]] and batch.pose[0].isnan().all()
    alone = plain.batch(starts[:1], 2, choice=choice([1], [0]))
    assert torch.equal(alone.image[0], batch.image[0]) and alone.view.numel() == 0
    beyond = dataset.batch(np.array([24]), 2, choice=choice([0], [0]))
    assert beyond.view_valid.tolist() == [[1, 0]]


def test_views_of_another_size_or_an_unknown_place_are_left_out(told, text):
    """Catches a picture that does not fit the slots, and one that would be drawn from nowhere."""
    model, _ = told
    episode = viewed(0)
    wide = replace(episode, views={**episode.views, "top": np.zeros((25, 16, 16, 3), np.uint8)})
    lost = replace(episode, poses={**episode.poses, "left": np.full((25, 8), np.nan, np.float32)})
    for each, left in ((wide, "left"), (lost, "top")):
        found = EpisodeDataset.of(
            each, model.layout, model.frame_tokenizer, model.actions, text.within(model.vocab.text), with_views=True
        ).views
        assert found.count.tolist() == [1] * 25 and np.array_equal(found.images, each.views[left])


@pytest.mark.parametrize("name", ["front", "left", "top"])
def test_the_scene_moves_in_every_picture_by_its_own_pose(name):
    """Catches a view that is shifted by another camera's pose, and one straight from above that has no `up`: the scene
    moves, the cameras do not, so the poses that are told stay true."""
    episode = viewed(3)
    block, pose = episode.keypoints[:1, 0].astype(np.float64), episode.poses[name][:1]
    config = CameraPose((0.4, 0.4, 0.9), (0.0, 0.0, 0.0), 60.0)  # what the settings say is far off
    change = Change(torch.eye(3)[None], torch.tensor([[1.0, 0.06, -0.05, 0.0]]), {"front": config}, float(block[0, 2]))
    picture = torch.from_numpy(draw(pose, block, half=3))
    moved = change.images("front", picture, pose)
    bright = np.argwhere(moved[0, ..., 0].numpy() > 120).mean(0)
    seen = project(pose, block[None] + [0.06, -0.05, 0], 32, 32)[0, 0]
    np.testing.assert_allclose(bright, seen, atol=0.7)
    untold = change.images("front", picture, np.full((1, 8), np.nan, np.float32))
    assert torch.equal(untold, change.images("front", picture)) and not torch.equal(untold, moved)


def test_shifted_windows_keep_their_poses(told):
    """Catches a told pose that moves with the scene, and a drawn view that the shift leaves behind."""
    model, dataset = told
    config = CameraPose((0.8, 0.0, 0.8), (0.0, 0.0, 0.0), 40.0)
    augment = Augmentation(share=1.0, hue=0.0, gain=(1.0, 1.0), shift=0.1, poses={"front": config}, attached=("hand",))
    change, chosen = augment.draw(4, torch.Generator().manual_seed(0)), choice([0] * 4, [1] * 4)
    plain, moved = dataset.batch(STARTS, 2, choice=chosen), dataset.batch(STARTS, 2, change, choice=chosen)
    torch.testing.assert_close(moved.pose, plain.pose)
    torch.testing.assert_close(moved.view_pose, plain.view_pose)
    assert not torch.equal(moved.view, plain.view) and not torch.equal(moved.keypoints, plain.keypoints)
    np.testing.assert_allclose(config.pose, FRONT)
