"""Windows cut from episodes, and the ranges that are fitted on them."""

from dataclasses import fields, replace

import numpy as np
import pytest
import torch

from envs.data.augmentation import Augmentation
from envs.sim.table import SPEC
from envs.types import HELD_UNKNOWN, StateSpec
from tests.robots import ARM, HANDS, made_up
from world_model.training.dataset import (
    UNKNOWN,
    EpisodeDataset,
    advised_chunks,
    chunks,
    common_spec,
    fit_ranges,
    value_to_come,
)
from world_model.training.start import continued
from world_model.training.viewpoints import Viewpoints


def dataset_of(world, text, episodes) -> EpisodeDataset:
    words = text.within(world.vocab.text)
    return EpisodeDataset.join([
        EpisodeDataset.of(e, world.layout, world.frame_tokenizer, world.actions, words) for e in episodes
    ])  # fmt: skip


def test_windows_line_up_with_the_episode(world, dataset, make_episode):
    """Catches observations, chunks and labels that are off by a step from one another."""
    episode, start = make_episode(1, steps=64), 65 + 7  # the second episode's step 7
    batch = dataset.batch(np.array([start]), 2)
    at = [7, 15, 23]
    state = world.layout.from_bins(batch.state[0])
    np.testing.assert_allclose(state.numpy(), episode.state[at], atol=1e-5)
    decoded = world.actions.decode(batch.action[0])
    executed = torch.from_numpy(np.stack([episode.action[7:15], episode.action[15:23]]))
    torch.testing.assert_close(decoded, world.actions.decode(world.actions.encode(executed)))
    np.testing.assert_array_equal(batch.flags[0, :, 1].numpy(), episode.held[at] >= 0)
    assert batch.valid.all() and batch.next_valid.all() and batch.has_expert.all()


def test_the_end_of_an_episode_is_taught_and_what_lies_beyond_is_not(dataset):
    """Catches release and rest never being seen, and padding that is learned as if it had happened."""
    success, failure = np.array([61]), np.array([65 + 61])  # three steps before the ends of episodes 0 and 1
    ended = dataset.batch(success, 2)
    assert ended.valid[0].tolist() == [1, 0, 0] and ended.has_expert[0].tolist() == [1, 0]
    assert ended.next_valid[0].tolist() == [1, 0]  # success is at rest, so the step after it is known
    assert ended.flags[0, 1, 0] == 1 and ended.value[0, 1] == 1
    assert dataset.batch(failure, 2).next_valid[0].tolist() == [0, 0]
    assert dataset.batch(failure, 2).value.eq(0).all()


def test_short_model_steps_line_up_with_the_episode(make_world, text, make_episode):
    """Catches observations and chunks whose times are not the sums of the strides before them, and an end that is
    known or unknown whatever the stride."""
    world = make_world(SPEC, (4, 4, 4, 0, 0, 2), text.size)
    world = continued(world, replace(world.config, strides=(1, 2, 4)))
    dataset = dataset_of(world, text, [make_episode(seed, steps=64) for seed in range(2)])
    episode, strides = make_episode(1, steps=64), np.array([[2, 8, 1], [4, 1, 2]])
    batch = dataset.batch(np.array([65 + 7, 65 + 20]), 3, strides=strides)
    assert batch.stride.tolist() == strides.tolist() and batch.valid.all() and batch.next_valid.all()
    for row, at in enumerate(([7, 9, 17, 18], [20, 24, 25, 27])):
        np.testing.assert_allclose(world.layout.from_bins(batch.state[row]).numpy(), episode.state[at], atol=1e-5)
        for s in range(3):
            chunk = torch.from_numpy(episode.action[at[s] : at[s] + 8])
            assert torch.equal(batch.action[row, s], world.actions.encode(chunk, steps=int(strides[row, s])))
            assert torch.equal(batch.expert_action[row, s], batch.action[row, s])
            assert torch.equal(batch.expert[row, s], world.actions.encode(chunk))
    for episode, known in ((0, [1, 1, 0]), (1, [1, 0, 0])):  # the first ends in success, three steps after the start
        ended = dataset.batch(np.array([65 * episode + 61]), 3, strides=np.array([[2, 4, 4]]))
        assert ended.valid[0].tolist() == [1, 1, 0, 0] and ended.next_valid[0].tolist() == known
        assert ended.has_expert[0].tolist() == [1, 1, 0]


def test_chunks_end_in_rest():
    """Catches padding that moves the robot or lets go, and one that leaves the range of its actions."""
    action = np.full((3, 7), 0.5, np.float32)
    action[-1, -1] = 1.0
    found = chunks(action, 4, SPEC)
    assert found.shape == (4, 4, 7)
    np.testing.assert_array_equal(found[2], [action[2]] + 3 * [[0, 0, 0, 0, 0, 0, 1.0]])
    two = chunks(np.array([[0.5, 1.0, 2.0, 1.0]], np.float32), 2, HANDS)
    np.testing.assert_array_equal(two[1], 2 * [[0, 1.0, 0, 1.0]])
    above = replace(ARM, action=(replace(ARM.action[0], low=0.1, high=0.4),))
    np.testing.assert_allclose(chunks(np.zeros((0, 1), np.float32), 3, above), np.full((1, 3, 1), 0.1))


def test_advice_does_not_end_in_rest(world, text, make_episode):
    """Catches a model that learns to wait where it may be done: it cannot tell, and then waits for ever where it is
    not."""
    expert = np.linspace(-1, 1, 21, dtype=np.float32).reshape(3, 7)
    found = advised_chunks(expert, 4, SPEC)
    assert found.shape == (4, 4, 7)
    np.testing.assert_array_equal(found[1], expert[[1, 2, 2, 2]])
    assert advised_chunks(expert[:0], 4, SPEC).shape == (1, 4, 7)
    episode = make_episode(0, steps=32)
    moving = np.full_like(episode.expert, 0.5)
    dataset = dataset_of(world, text, [replace(episode, expert=moving)])
    np.testing.assert_array_equal(dataset.expert[:32], np.repeat(dataset.expert[:1], 32, axis=0))


def test_an_unasked_expert_teaches_nothing(world, text, make_episode):
    """Catches NaN labels reaching the loss."""
    episode = make_episode(0, steps=32)
    expert = episode.expert.copy()
    expert[10] = np.nan
    dataset = dataset_of(world, text, [replace(episode, expert=expert)])
    assert not dataset.has_expert[3:11].any() and dataset.has_expert[:3].all() and dataset.has_expert[11:32].all()


def test_what_the_simulator_does_not_say_is_unknown(world, text, make_episode):
    """Catches a grasp that is taught as `holds nothing` where nobody knows."""
    episode = make_episode(0, steps=32)
    held = episode.held.copy()
    held[:8] = HELD_UNKNOWN
    dataset = dataset_of(world, text, [replace(episode, held=held)])
    assert (dataset.flags[:8, 1] == UNKNOWN).all() and set(dataset.flags[8:, 1]) == {0, 1}


@pytest.mark.parametrize(("spec", "coefs"), [(ARM, (2, 3, 0, 8)), (HANDS, (4, 2))])
def test_any_robot(make_world, text, spec, coefs):
    """Catches a camera, a size or a dimension that is written into the code."""
    episodes = [made_up(spec, seed, steps=40) for seed in range(2)]
    world = make_world(fit_ranges(spec, [e.state for e in episodes]), coefs, text.size)
    dataset = dataset_of(world, text, episodes)
    change = Augmentation(share=1.0).of(world.spec).draw(2, torch.Generator().manual_seed(0))
    batch = dataset.batch(np.array([3, 50]), 2, change)
    ids = sum(camera.height * camera.width // 64 for camera in spec.cameras)
    assert batch.image.shape == (2, 3, ids) and batch.action.shape == (2, 2, sum(coefs) + len(spec.grippers))
    assert batch.keypoints.shape == (2, 3, 3 * len(spec.keypoints)) and not batch.has_expert.any()
    assert (batch.flags[..., 1] == UNKNOWN).all()
    names = list(dataset.images)
    ends = np.cumsum([camera.height * camera.width // 64 for camera in spec.cameras])
    for name, part in zip(names, np.split(np.arange(ids), ends[:-1]), strict=True):
        frames = change.images(name, torch.from_numpy(dataset.images[name][[[3, 11, 19], [50, 58, 66]]]))
        assert torch.equal(batch.image[..., part], world.frame_tokenizer.encode(frames)), name


def test_another_robot_is_refused(world, text):
    """Catches episodes of another robot whose state happens to have as many dimensions."""
    with pytest.raises(ValueError, match="cameras main, wrist against left, right"):
        dataset_of(world, text, [made_up(HANDS)])


def test_value_counts_control_steps_to_success():
    """Catches a value that is off by one or leaks backwards over a failure."""
    np.testing.assert_allclose(value_to_come(np.array([0, 0, 1, 0]), 0.5), [0.25, 0.5, 1, 0])
    np.testing.assert_allclose(value_to_come(np.array([0, 0, 1, 0]), 0.5, off_task_steps=1), [np.nan, 0.5, 1, 0])


def test_open_ranges_are_fitted_and_known_ones_stay():
    """Catches a range that clips what was seen, an empty one of a dimension that never moves, and a known end that is
    overwritten."""
    spec = replace(ARM, state=(StateSpec("a"), StateSpec("b", low=0.0), StateSpec("c"), StateSpec("d", -1, 1)))
    seen = np.array([[-2.0, 1.0, 7.0, 5.0], [3.0, 4.0, 7.0, 6.0]], np.float32)
    a, b, c, d = fit_ranges(spec, [seen[:1], seen[1:]]).state
    assert (a.low, a.high) == pytest.approx((-2.5, 3.5)) and (b.low, b.high) == pytest.approx((0.0, 4.4))
    assert c.low < 7 < c.high and (d.low, d.high) == (-1, 1)
    below = fit_ranges(replace(spec, state=(StateSpec("b", low=10.0),)), [np.array([[1.0]])]).state[0]
    assert below.low == 10 < below.high, "all that was seen lies outside the end that is known"


def test_one_robot_for_all_episodes():
    """Catches two robots in one training, and a range that only one of two folders knows being lost."""
    known = replace(ARM, state=tuple(replace(part, low=-3.0, high=3.0) for part in ARM.state))
    assert common_spec([(ARM, "x"), (replace(known, state=(*known.state[:3], ARM.state[3])), "y")]).state[0].low == -3
    with pytest.raises(ValueError, match="data/x and data/y .*control_hz 10 against 20"):
        common_spec([(ARM, "data/x"), (replace(ARM, control_hz=20), "data/y")])


def test_what_leaves_the_range_is_counted(make_world, text):
    """Catches states that are clamped in silence."""
    episode = made_up(HANDS, steps=39)
    state = episode.state.copy()
    state[:4, 5] = 0.7
    world = make_world(HANDS, (4, 2), text.size)
    assert dataset_of(world, text, [replace(episode, state=state)]).outside() == {"b.z": 0.1}
    assert dataset_of(world, text, [episode]).outside() == {}


def test_shares_of_a_batch_are_the_batch(told):
    """Catches a share that is drawn anew or of other windows, and one without views of its own that lacks the views
    which the others draw: its loss would weigh more."""
    model, viewed = told
    dataset = replace(viewed, views=replace(viewed.views, count=np.where(np.arange(len(viewed)) < 50, 2, 0)))
    rng = torch.Generator().manual_seed(0)
    starts, strides = np.array([3, 30, 60, 90]), np.full((4, 2), model.strides[-1])
    change = Augmentation(share=1.0, noise=0.1).draw(4, rng, model.spec)
    choice = replace(Viewpoints(swap=0.5).choose(4, rng), draws=True)
    whole, *halves = (
        dataset.batch(starts, 2, change, strides, choice, share) for share in (slice(None), slice(2), slice(2, 4))
    )
    assert whole.view.shape[1] == 2 and whole.view_valid.sum() > 0 == halves[1].view_valid.sum()
    for field in fields(whole):
        parts = torch.cat([getattr(half, field.name) for half in halves])
        torch.testing.assert_close(parts, getattr(whole, field.name), rtol=0, atol=0, equal_nan=True, msg=field.name)
    with torch.no_grad():
        losses, *others = (model(batch) for batch in (whole, *halves))
    torch.testing.assert_close(losses.total, sum(other.total for other in others) / 2)
    for name, value in losses.parts.items():
        both = [sum(getattr(other, part)[name] for other in others) for part in ("sums", "counts")]
        torch.testing.assert_close(value, both[0] / both[1].clamp_min(1))
