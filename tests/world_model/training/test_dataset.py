"""Windows cut from episodes."""

from dataclasses import replace

import numpy as np
import torch

from world_model.training.dataset import EpisodeDataset, chunks, value_to_come


def test_windows_line_up_with_the_episode(world, dataset, make_episode):
    """Catches observations, chunks and labels that are off by a step from one another."""
    episode, start = make_episode(1, steps=64), 65 + 7  # the second episode's step 7
    window = dataset.window(np.array([start]), 2)
    at = [7, 15, 23]
    state = world.layout.from_bins(window.state[0])
    np.testing.assert_allclose(state.numpy(), episode.state[at], atol=1e-5)
    decoded = world.actions.decode(window.action[0])
    executed = torch.from_numpy(np.stack([episode.action[7:15], episode.action[15:23]]))
    torch.testing.assert_close(decoded, world.actions.decode(world.actions.encode(executed)))
    np.testing.assert_array_equal(window.flags[0, :, 1].numpy(), episode.held[at] >= 0)
    assert window.valid.all() and window.next_valid.all() and window.has_expert.all()


def test_the_end_of_an_episode_is_taught_and_what_lies_beyond_is_not(dataset):
    """Catches release and rest never being seen, and padding that is learned as if it had happened."""
    success, failure = np.array([61]), np.array([65 + 61])  # three steps before the ends of episodes 0 and 1
    ended = dataset.window(success, 2)
    assert ended.valid[0].tolist() == [1, 0, 0] and ended.has_expert[0].tolist() == [1, 0]
    assert ended.next_valid[0].tolist() == [1, 0]  # success is at rest, so the step after it is known
    assert ended.flags[0, 1, 0] == 1 and ended.value[0, 1] == 1
    assert dataset.window(failure, 2).next_valid[0].tolist() == [0, 0]
    assert dataset.window(failure, 2).value.eq(0).all()


def test_chunks_end_in_rest():
    """Catches padding that moves the arm or lets go."""
    action = np.full((3, 7), 0.5, np.float32)
    action[-1, -1] = 1.0
    found = chunks(action, 4)
    assert found.shape == (4, 4, 7)
    np.testing.assert_array_equal(found[2], [action[2]] + 3 * [[0, 0, 0, 0, 0, 0, 1.0]])


def test_an_unasked_expert_teaches_nothing(world, text, make_episode):
    """Catches NaN labels reaching the loss."""
    episode = make_episode(0, steps=32)
    expert = episode.expert.copy()
    expert[10] = np.nan
    episode = replace(episode, expert=expert)
    words = text.within(world.vocab.text)
    dataset = EpisodeDataset.of(episode, world.layout, world.frame_tokenizer, world.actions, words)
    assert not dataset.has_expert[3:11].any() and dataset.has_expert[:3].all() and dataset.has_expert[11:32].all()


def test_value_counts_control_steps_to_success():
    """Catches a value that is off by one or leaks backwards over a failure."""
    np.testing.assert_allclose(value_to_come(np.array([0, 0, 1, 0]), 0.5), [0.25, 0.5, 1, 0])
    np.testing.assert_allclose(value_to_come(np.array([0, 0, 1, 0]), 0.5, off_task_steps=1), [np.nan, 0.5, 1, 0])
