"""What is taught is learned, reaches every weight, and counts nothing that did not happen."""

from dataclasses import fields, replace

import numpy as np
import pytest
import torch

from tests.robots import ARM, HANDS, made_up
from world_model.metrics.windows import imagine_batch, spread_evenly
from world_model.training.dataset import UNKNOWN, EpisodeDataset, fit_ranges
from world_model.training.loss import FROM_EXPERT, LossWeights, batch_losses


def test_it_learns_and_its_futures_obey_the_action(world, dataset):
    """Catches a loss that does not train some part, and futures that ignore the action."""
    batch = dataset.batch(spread_evenly(dataset, 8, 5), 3)
    optimizer = torch.optim.AdamW([p for p in world.parameters() if p.requires_grad], lr=1e-2)
    first = batch_losses(world, batch).parts
    for _ in range(60):
        optimizer.zero_grad()
        losses = batch_losses(world, batch)
        losses.total.backward()
        optimizer.step()
    floor = {"state": 1.6, "action": 1.6, "expert_action": 1.6, "next_state": 1.6, "keypoints": 1.6}  # of smoothing
    for name, before in first.items():
        after = losses.parts[name]
        assert after < before - 0.25 * (before - floor.get(name, 0.0)), f"{name}: {before:.3f} -> {after:.3f}"
    true = imagine_batch(world, dataset.batch(spread_evenly(dataset, 8, 5), 5))
    other = imagine_batch(world, dataset.batch(spread_evenly(dataset, 8, 5), 5), shuffled=True)
    assert (true.state - other.state)[..., :3].norm(dim=-1).mean() > 0.005


def test_without_images_the_rest_is_taught_alike(world, batch):
    """Catches a training step without images that teaches a search nothing, or the images of the wrong places."""
    drawn, found = batch_losses(world, batch).parts, batch_losses(world, batch, images=False).parts
    assert set(drawn) - set(found) == {"next_image"}
    for name in set(found) - {"next_state", "next_value", "next_flags", "next_keypoints"}:
        torch.testing.assert_close(found[name], drawn[name])


def test_every_parameter_is_trained(world, batch):
    """Catches a part of the model that no loss reaches, and a frame tokenizer that is not frozen."""
    batch_losses(world, batch).total.backward()
    for name, parameter in world.named_parameters():
        if name.startswith("frame_tokenizer"):
            assert parameter.grad is None, name
        else:
            assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name


def test_what_lies_beyond_the_episode_weighs_nothing(world, dataset):
    """Catches padding that is learned: the loss must not depend on what fills it."""
    batch = dataset.batch(np.array([65 + 60]), 3)
    image = batch.image.clone()
    image[:, 2:] = 5
    other = replace(batch, image=image, expert=batch.expert * (batch.has_expert[..., None] > 0).long())
    for name, value in batch_losses(world, batch).parts.items():
        torch.testing.assert_close(value, batch_losses(world, other).parts[name], msg=name)


def test_a_thing_that_does_not_exist_is_known_not_to(world, batch):
    """Catches uncertainty about corners of a cloth while a cube is lifted, and an unlabelled scene that is taught."""
    points = batch.keypoints.clone()
    points[..., 3:] = torch.nan
    absent, at_nought = (replace(batch, keypoints=p) for p in (points, points.nan_to_num(0.0)))
    torch.testing.assert_close(batch_losses(world, absent).parts, batch_losses(world, at_nought).parts)
    unlabelled = replace(batch, keypoints=torch.full_like(points, torch.nan))
    assert batch_losses(world, unlabelled).parts["keypoints"] == 0


def test_what_follows_play_says_nothing_of_its_value(world, batch):
    """Catches play that is taught as if it were meant to succeed, and a NaN that reaches the loss."""
    value = batch.value.clone()
    value[:2] = torch.nan
    losses = batch_losses(world, replace(batch, value=value))
    rest = replace(batch, **{f.name: getattr(batch, f.name)[2:] for f in fields(batch)})
    assert torch.isfinite(losses.total)
    for name in ("value", "next_value"):
        torch.testing.assert_close(losses.parts[name], batch_losses(world, rest).parts[name])


def test_a_flag_that_nobody_knows_weighs_nothing(world, batch):
    """Catches a grasp that is taught as `no` where the simulator does not say."""
    flags = batch.flags.clone()
    flags[:, :, 1] = UNKNOWN
    losses = batch_losses(world, replace(batch, flags=flags))
    losses.total.backward()
    assert torch.isfinite(losses.total)
    success = torch.stack([batch.flags[..., 0], batch.flags[..., 0]], dim=-1)
    assert losses.parts["flags"] != batch_losses(world, replace(batch, flags=success)).parts["flags"]
    for first in range(len(flags)):
        known = replace(batch, **{f.name: getattr(batch, f.name)[first : first + 1] for f in fields(batch)})
        unknown = replace(known, flags=torch.full_like(known.flags, UNKNOWN))
        assert batch_losses(world, unknown).parts["flags"] == 0 < batch_losses(world, known).parts["flags"]


@pytest.mark.parametrize(("spec", "coefs"), [(ARM, (2, 3, 0, 8)), (HANDS, (4, 2))])
def test_any_robot_is_taught(make_world, text, spec, coefs):
    """Catches NaN, or terms of what the robot has not got: keypoints, grippers, an expert."""
    episodes = [made_up(spec, seed, expert=spec is HANDS) for seed in range(2)]
    world = make_world(fit_ranges(spec, [e.state for e in episodes]), coefs, text.size)
    words = text.within(world.vocab.text)
    dataset = EpisodeDataset.join([
        EpisodeDataset.of(e, world.layout, world.frame_tokenizer, world.actions, words) for e in episodes
    ])  # fmt: skip
    losses = batch_losses(world, dataset.batch(np.array([3, 50]), 2))
    losses.total.backward()
    assert torch.isfinite(losses.total) and all(torch.isfinite(value) for value in losses.parts.values())
    assert {"keypoints", "gripper"} & losses.parts.keys() == ({"keypoints", "gripper"} if spec is HANDS else set())
    assert all((losses.parts[name] > 0) == (spec is HANDS) for name in FROM_EXPERT if name in losses.parts)


def test_negative_weights_are_refused():
    """Catches a typing slip that teaches the opposite."""
    with pytest.raises(ValueError, match="0 or more"):
        LossWeights(belief=-1.0)
