"""What is taught is learned, reaches every weight, and counts nothing that did not happen."""

from dataclasses import fields, replace

import numpy as np
import torch

from world_model.metrics.held_out import foresee, pick
from world_model.training.loss import window_losses


def test_it_learns_and_its_futures_obey_the_action(world, tracks):
    """Catches a loss that does not train some part, and futures that ignore the action."""
    window = tracks.window(pick(tracks, 8), 3)
    optimizer = torch.optim.AdamW([p for p in world.parameters() if p.requires_grad], lr=1e-2)
    first = window_losses(world, window).parts
    for _ in range(60):
        optimizer.zero_grad()
        losses = window_losses(world, window)
        losses.total.backward()
        optimizer.step()
    floor = {"state": 1.6, "action": 1.6, "expert_action": 1.6, "next_state": 1.6, "keypoints": 1.6}  # of smoothing
    for name, before in first.items():
        after = losses.parts[name]
        assert after < before - 0.25 * (before - floor.get(name, 0.0)), f"{name}: {before:.3f} -> {after:.3f}"
    true = foresee(world, tracks.window(pick(tracks, 8), 5))
    other = foresee(world, tracks.window(pick(tracks, 8), 5), shuffled=True)
    assert (true.state - other.state)[..., :3].norm(dim=-1).mean() > 0.005


def test_every_parameter_is_trained(world, window):
    """Catches a part of the model that no loss reaches, and a frame tokenizer that is not frozen."""
    window_losses(world, window).total.backward()
    for name, parameter in world.named_parameters():
        if name.startswith("frame_tokenizer"):
            assert parameter.grad is None, name
        else:
            assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name


def test_what_lies_beyond_the_episode_weighs_nothing(world, tracks):
    """Catches padding that is learned: the loss must not depend on what fills it."""
    window = tracks.window(np.array([65 + 60]), 3)
    image = window.image.clone()
    image[:, 2:] = 5
    other = replace(window, image=image, expert=window.expert * (window.advised[..., None] > 0).long())
    for name, value in window_losses(world, window).parts.items():
        torch.testing.assert_close(value, window_losses(world, other).parts[name], msg=name)


def test_a_thing_that_does_not_exist_is_known_not_to(world, window):
    """Catches uncertainty about corners of a cloth while a cube is lifted, and an unlabelled scene that is taught."""
    points = window.keypoints.clone()
    points[..., 3:] = torch.nan
    absent, at_nought = (replace(window, keypoints=p) for p in (points, points.nan_to_num(0.0)))
    torch.testing.assert_close(window_losses(world, absent).parts, window_losses(world, at_nought).parts)
    unlabelled = replace(window, keypoints=torch.full_like(points, torch.nan))
    assert window_losses(world, unlabelled).parts["keypoints"] == 0


def test_what_follows_play_says_nothing_of_its_value(world, window):
    """Catches play that is taught as if it were meant to succeed, and a NaN that reaches the loss."""
    value = window.value.clone()
    value[:2] = torch.nan
    losses = window_losses(world, replace(window, value=value))
    rest = replace(window, **{f.name: getattr(window, f.name)[2:] for f in fields(window)})
    assert torch.isfinite(losses.total)
    for name in ("value", "next_value"):
        torch.testing.assert_close(losses.parts[name], window_losses(world, rest).parts[name])
