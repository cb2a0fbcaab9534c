"""Which windows are looked at, and what is imagined of them."""

import numpy as np
import pytest
import torch

from world_model.metrics.windows import imagine_batch, longest, spread_by_episode, spread_evenly
from world_model.training.dataset import EpisodeDataset


@pytest.fixture
def uneven(world, text, make_episode) -> EpisodeDataset:
    """An episode of 200 control steps and one of 40."""
    words = text.within(world.vocab.text)
    return EpisodeDataset.join([
        EpisodeDataset.of(make_episode(0, steps=steps), world.layout, world.frame_tokenizer, world.actions, words)
        for steps in (200, 40)
    ])  # fmt: skip


def test_every_episode_counts_alike(uneven):
    """Catches a long failure that makes most of the figures."""
    starts = spread_by_episode(uneven, 10, 4)
    assert (starts < 201).sum() == (starts >= 201).sum() == 5


def test_windows_lie_within_their_episode(uneven):
    """Catches windows that run into the next episode, or that are padding."""
    starts = spread_evenly(uneven, 10**6, 5)
    assert sorted(starts) == [*range(161), 201]
    assert len(spread_evenly(uneven, 7, 5)) == 7 and longest(uneven) == 25


def test_short_episodes_are_refused(uneven):
    """Catches windows that are padding only."""
    with pytest.raises(ValueError, match=r"no episode is 26 model steps .*the longest is 25"):
        spread_evenly(uneven, 4, 26)
    with pytest.raises(ValueError, match="no episode is 26"):
        spread_by_episode(uneven, 4, 26)


@torch.inference_mode()
def test_a_window_imagines_its_own_actions(world, batch):
    """Catches robots and candidates turned round, and `shuffled` that leaves the actions as they are."""
    together = imagine_batch(world, batch)
    assert together.state.shape == (4, 2, 7)
    alone = imagine_batch(world, type(batch)(**{name: value[2:3] for name, value in vars(batch).items()}))
    torch.testing.assert_close(together.state[2:3], alone.state, atol=1e-5, rtol=1e-4)
    decoded = world.actions.decode(batch.action[:, 1:])
    torch.testing.assert_close(together.actions, decoded)
    torch.testing.assert_close(imagine_batch(world, batch, shuffled=True).actions, decoded.roll(1, 0))
    assert np.isfinite(together.value.numpy()).all()
