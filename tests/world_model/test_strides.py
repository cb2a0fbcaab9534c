"""Model steps of 1 to M control steps: what a short one says, that run time reads it as training wrote it, and that it
is learnt."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from envs.types import ActionSpec, CameraSpec, Spec, StateSpec
from tests.robots import made_up
from tests.world_model.test_model import hidden
from world_model import decoding
from world_model.metrics.windows import codes_at_stride, imagine_batch
from world_model.model import WorldModel
from world_model.tokens.sequence import Sequence
from world_model.training.dataset import EpisodeDataset, stride_shares
from world_model.training.loss import batch_losses
from world_model.training.start import continued
from world_model.types import History

STRIDES = (1, 2, 4, 8)


@pytest.fixture
def paced(world) -> WorldModel:
    """The model of other tests, and with its weights, but with strides."""
    return continued(world, replace(world.config, strides=STRIDES))


def dataset_of(world, text, episodes) -> EpisodeDataset:
    words = text.within(world.vocab.text)
    return EpisodeDataset.join([
        EpisodeDataset.of(e, world.layout, world.frame_tokenizer, world.actions, words) for e in episodes
    ])  # fmt: skip


@pytest.fixture
def windows(paced, text, make_episode):
    """Three windows whose first model step covers 1, 2 and 8 control steps, their second 2, their third 4."""
    dataset = dataset_of(paced, text, [make_episode(0, steps=64)])
    return dataset.batch(np.array([3, 20, 33]), 3, strides=np.array([[1, 2, 4], [2, 2, 4], [8, 2, 4]]))


def test_a_short_chunk_says_nothing_of_what_comes_after(paced, text, make_episode):
    """Catches a leak: the ids of n executed control steps that know of a later one, with which an imagination would
    be good in training and lost at run time."""
    episode = make_episode(0, steps=64)
    for n in STRIDES[:-1]:
        after = episode.action.copy()
        after[20 + n :] = -after[20 + n :]
        one, other = (
            dataset_of(paced, text, [replace(episode, action=a, expert=a)]).batch(
                np.array([20]), 1, strides=np.array([[n]])
            ) for a in (episode.action, after)
        )  # fmt: skip
        chunk = Sequence(paced.layout, 1).where(paced.layout.obs, paced.layout.chunk)
        ids = [Sequence(paced.layout, 1).ids(batch)[:, chunk] for batch in (one, other)]
        assert torch.equal(*ids), n
        assert torch.equal(one.expert_action, other.expert_action) and not torch.equal(one.expert, other.expert)
        assert not torch.equal(one.expert, one.expert_action)


def test_each_length_has_an_id_of_its_own_and_a_whole_chunk_keeps_its_mark(paced, world, batch):
    """Catches two lengths that the model cannot tell apart, and a whole chunk that is no longer what it was."""
    at, action = paced.layout, batch.action[:, 0]
    each = [at.chunk_ids(action, n) for n in range(1, 9)]
    assert len({int(ids[0, 0]) for ids in each}) == 8 and all(torch.equal(i[:, 1:], each[0][:, 1:]) for i in each)
    assert torch.equal(each[-1], world.layout.chunk_ids(action)) and each[-1][0, 0] == paced.vocab.marks.boa
    together = at.chunk_ids(action, torch.tensor([1, 2, 7, 8]))
    assert torch.equal(together, torch.stack([each[n - 1][row] for row, n in enumerate((1, 2, 7, 8))]))
    losses = [batch_losses(model, batch) for model in (world, paced)]
    assert torch.equal(losses[0].total, losses[1].total)


@torch.no_grad()
def test_run_time_equals_training(paced, windows):
    """Catches a stride that run time writes otherwise than training, in the history or in what is imagined, and a
    commit that forgets it."""
    observations = [(windows.image[:, s], windows.state[:, s]) for s in (0, 1)]
    cache = paced.context(windows.instruction, observations, [windows.action[:, 0]], stride=windows.stride[:, 0])
    h, sequence = hidden(paced, windows)
    at = paced.layout
    where = sequence.where(at.step + at.act, at.next)[1]
    act = h[:, sequence.where(at.step, at.act)[1]]
    value = paced._belief(act[:, : at.beliefs]).value
    torch.testing.assert_close(paced.read(cache).belief.value, value, atol=1e-5, rtol=1e-3)
    codes = list(windows.action[:, 1:].unbind(1))
    first, second = decoding.parallel(paced, cache, codes, 3, [2, 4])
    expected = paced.read_next(h[:, where], windows.image[:, 1], windows.state[:, 1])
    torch.testing.assert_close(first.hidden, expected.hidden, atol=1e-4, rtol=1e-3)

    dreamt = replace(
        windows, image=torch.cat([windows.image[:, :2], first.image_ids, first.image_ids], 1),
        state=torch.cat([windows.state[:, :2], at.to_bins(first.state).expand(-1, 2, -1)], 1),
    )  # fmt: skip
    h, _ = hidden(paced, dreamt)
    where = sequence.where(at.step + at.act, at.next)[2]
    expected = paced.read_next(h[:, where], first.image_ids[:, 0], at.to_bins(first.state[:, 0]))
    torch.testing.assert_close(second.hidden, expected.hidden, atol=1e-4, rtol=1e-3)


def test_history_of_frames_equals_history_of_ids(paced, text, windows, make_episode):
    """Catches a history that `prefill` writes otherwise than training did, alone or beside robots of another stride."""
    episode = make_episode(0, steps=64)
    words = tuple(text.within(paced.vocab.text).encode(episode.instruction))
    histories = [
        History(words, ((episode.obs(t), episode.action[t : t + n]), (episode.obs(t + n), None)))
        for t, n in ((3, 1), (20, 2), (33, 8))
    ]
    observations = [(windows.image[:, s], windows.state[:, s]) for s in (0, 1)]
    expected = paced.context(windows.instruction, observations, [windows.action[:, 0]], stride=windows.stride[:, 0])
    together = paced.prefill(histories)
    for row in range(3):
        alone = paced.prefill(histories[row : row + 1])
        for key, other, lone in zip(together.kv.keys, expected.kv.keys, alone.kv.keys, strict=True):
            torch.testing.assert_close(key[row], other[row], atol=1e-5, rtol=1e-3)
            torch.testing.assert_close(lone[0], other[row], atol=1e-5, rtol=1e-3)


@pytest.mark.parametrize("decode", ["parallel", "autoregressive"])
def test_what_is_not_executed_has_no_effect(paced, cache, candidates, decode):
    """Catches a candidate that is judged by what is never done, and strides that are told otherwise than imagined."""
    given = candidates[:, :1]
    after = given.clone()
    after[:, :, 0, 2:], after[:, :, 1, 4:] = 0.7, -0.7
    one, other = paced.imagine(cache, torch.cat([given, after], 1), decode, strides=(2, 4))[0].value
    assert torch.equal(one, other)
    found = paced.imagine(cache, given, decode, strides=(2, 8))
    assert found.strides == found[0].strides == (2, 8) and found.control_steps == (2, 10)
    torch.testing.assert_close(found.value[0, 0, 0], one[0])  # a product of other shape may round otherwise
    assert not torch.isclose(found.value[0, 0, 1], one[1])


def test_a_future_goes_on_at_its_own_pace(paced, cache, candidates):
    """Catches model steps of the model's own that cover another time than those before them."""
    given = candidates[:, :2, :1]
    for stride in (None, 8):
        assert paced.imagine(cache, given, follow=1, strides=stride).strides == (8, 8)
    there = paced.imagine(cache, given, follow=2, strides=2)
    again = paced.imagine(cache, there.actions, strides=[2, 2, 2])
    assert there.strides == (2, 2, 2) and there.actions.shape == (1, 2, 3, 8, 7)
    assert torch.equal(there.value[..., 0], again.value[..., 0])


def test_a_model_without_strides_takes_whole_chunks_only(world, paced, cache, candidates, make_episode, dataset):
    """Catches lengths that were never trained being imagined as if they had been."""
    message = "trained with model steps of 8 control steps, not of 2: .*train with `strides`"
    with pytest.raises(ValueError, match=message):
        world.imagine(cache, candidates, strides=2)
    obs = make_episode().obs(0)
    with pytest.raises(ValueError, match=message):
        world.prefill([History((), ((obs, np.zeros((2, 7), np.float32)), (obs, None)))])
    with pytest.raises(ValueError, match=message):
        dataset.batch(np.array([3]), 1, strides=np.array([[2]]))
    with pytest.raises(ValueError, match="2 model steps need as many strides, or one for all, got 3"):
        paced.imagine(cache, candidates, strides=(2, 2, 2))
    with pytest.raises(ValueError, match="`strides` are control steps of a chunk, so 1 to 8 each, got"):
        continued(world, replace(world.config, strides=(2, 9)))


def test_a_short_model_step_learns_to_move_less(make_world, text):
    """Catches a stride that is written but not heeded, or taught with the observation of another time. Commands that
    never change have the same ids whether two or eight of them are executed: the stride alone tells them apart."""
    hand = tuple(StateSpec(axis, -1, 1, "m") for axis in "xy")
    spec = Spec((CameraSpec("front", 8, 8),), hand, (ActionSpec("x"), ActionSpec("y")), 10.0)
    model = make_world(spec, (2, 2), text.size)
    model, episodes = continued(model, replace(model.config, strides=STRIDES)), []
    for seed, way in enumerate(np.array([[1, 0], [-1, 0], [0, 1], [0, -1]], np.float32)):
        state = 0.05 * way * np.arange(13, dtype=np.float32)[:, None]
        action = np.tile(way, (12, 1))
        episodes.append(replace(made_up(spec, seed, steps=12), state=state, action=action))
    strides = np.repeat([2, 8], 4)[:, None]
    batch = dataset_of(model, text, episodes).batch(np.tile(13 * np.arange(4) + 1, 2), 1, strides=strides)
    assert torch.equal(batch.action[:4], batch.action[4:])
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=3e-3)
    for _ in range(150):
        optimizer.zero_grad()
        batch_losses(model, batch).total.backward()
        optimizer.step()
    now = model.layout.from_bins(batch.state[:4, 0])
    cache = model.context(batch.instruction[:4], [(batch.image[:4, 0], batch.state[:4, 0])], [])
    two, eight = (
        (model.imagine_codes(cache, batch.action[:4, None], strides=n).state[:, 0, 0] - now).norm(dim=-1).mean()
        for n in (2, 8)
    )
    assert 0.05 < two < 0.15 and 0.3 < eight < 0.5, "true are 0.1 and 0.4 m"


def test_strides_are_drawn_as_asked():
    """Catches weights that belong to another stride, and whole chunks that are seldom seen."""
    assert stride_shares((8,)).tolist() == [1.0]
    np.testing.assert_allclose(stride_shares(STRIDES), [1 / 6, 1 / 6, 1 / 6, 1 / 2])
    np.testing.assert_allclose(stride_shares(STRIDES, (0, 1, 1, 2)), [0, 0.25, 0.25, 0.5])
    for wrong in ((1, 1, 1), (0, 0, 0, 0), (1, 1, 1, -1)):
        with pytest.raises(ValueError, match="each of the strides 1, 2, 4, 8"):
            stride_shares(STRIDES, wrong)


@torch.inference_mode()
def test_strides_are_compared_at_equal_times(paced, text, make_episode):
    """Catches an error of two control steps beside one of eight."""
    dataset = dataset_of(paced, text, [make_episode(0, steps=64)])
    starts = np.array([3, 20])
    batch = dataset.batch(starts, 3)
    codes = codes_at_stride(dataset, starts, 2, 4)
    strides = np.array([[8, 4, 4, 4, 4]] * 2)
    assert torch.equal(codes, dataset.batch(starts, 5, strides=strides).action[:, 1:])
    assert torch.equal(codes_at_stride(dataset, starts, 2, 8), batch.action[:, 1:])
    every = paced.imagine_codes(
        paced.context(batch.instruction, [(batch.image[:, s], batch.state[:, s]) for s in (0, 1)],
                      [batch.action[:, 0]]), codes[:, None], strides=4)[:, 0]  # fmt: skip
    at_ends = imagine_batch(paced, batch, codes=codes)
    torch.testing.assert_close(at_ends.state, every.state[:, 1::2])
    assert at_ends.control_steps == (8, 16)
    with pytest.raises(ValueError, match="must divide the chunk of 8"):
        codes_at_stride(dataset_of(continued(paced, replace(paced.config, strides=(3,))), text, [make_episode(0)]),
                        starts[:1], 1, 3)  # fmt: skip
