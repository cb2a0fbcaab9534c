"""The world model: what may influence what, that it learns, and that imagining is the same however it is asked."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from world_model.model import History, Imagination, WorldModel
from world_model.tokens.layout import Sequence
from world_model.tokens.vocab import Vocab
from world_model.training.loss import window_losses


def hidden(world, window, ids=None):
    """Hidden states (B, L, width) of a window, and its sequence."""
    sequence = Sequence(world.layout, window.action.shape[1])
    ids = sequence.ids(window) if ids is None else ids
    h, _ = world.run(ids, sequence.slots, sequence.kinds, sequence.positions(), sequence.pieces)
    return h, sequence


@torch.no_grad()
def test_drafts_are_invisible_to_clean_ids(world, window):
    """Catches a draft leaking into what is cached: run time has no drafts there."""
    h, sequence = hidden(world, window)
    ids = sequence.ids(window)
    ids[:, sequence.kinds > 0] = world.vocab.vision.encode(1)
    other, _ = hidden(world, window, ids)
    clean = sequence.kinds == 0
    assert torch.equal(h[:, clean], other[:, clean])
    assert not torch.allclose(h[:, ~clean], other[:, ~clean])


@torch.no_grad()
def test_the_future_does_not_leak(world, window):
    """Catches drafts or clean ids that see the step they must predict."""
    h, sequence = hidden(world, window)
    later = window.image.clone()
    later[:, 2:] = (later[:, 2:] + 7) % world.vocab.vision.size
    other, _ = hidden(world, replace(window, image=later, expert=window.expert * 0))
    before = world.layout.instruction + 2 * sequence.stride  # everything of the first two steps
    assert torch.equal(h[:, :before], other[:, :before])
    assert not torch.allclose(h[:, before:], other[:, before:])


@torch.no_grad()
def test_act_drafts_do_not_see_the_action_taken(world, window):
    """Catches proposals that copy the executed action, which at run time is not there yet."""
    h, sequence = hidden(world, window)
    other, _ = hidden(world, replace(window, action=(window.action + 3) % 16))
    act, following = sequence.where(110, 30), sequence.where(140, 102)
    assert torch.equal(h[:, act[0]], other[:, act[0]])
    assert not torch.allclose(h[:, following[0]], other[:, following[0]])


@torch.no_grad()
def test_a_step_sees_one_step_back(world, window):
    """Catches training with more history than acting has."""
    one = hidden(world, window)[0]
    old = window.image.clone()
    old[:, 0] = (old[:, 0] + 7) % world.vocab.vision.size
    attention = Sequence(world.layout, 3).pieces
    assert all(1 not in piece.sees and 2 not in piece.sees for piece in attention[9:])
    assert not torch.allclose(one, hidden(world, replace(window, image=old))[0])


@torch.no_grad()
def test_run_time_equals_training(world, window):
    """Catches a cache, a position or a slot that differs between the training pass and the passes of a decision."""
    h, sequence = hidden(world, window)
    views = [(window.image[:, s], window.state[:, s]) for s in (0, 1)]
    cache = world.context(window.instruction, views, [window.action[:, 0]])
    act_h = h[:, sequence.where(110, 30)[1]]
    coefs = world.logits(act_h[:, 15:-1], world.vocab.action).softmax(-1)
    torch.testing.assert_close(world.read(cache).coefs, coefs, atol=1e-5, rtol=1e-3)
    torch.testing.assert_close(world.read(cache).belief.value, world._belief(act_h[:, :15]).value, atol=1e-5, rtol=1e-3)

    future = next(world._draft(cache, [window.action[:, 1]], len(window.action)))
    expected = world._next(h[:, sequence.where(140, 102)[1]], window.image[:, 1], window.state[:, 1])
    torch.testing.assert_close(future.state, expected.state, atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(future.hidden, expected.hidden, atol=1e-4, rtol=1e-3)
    assert torch.equal(future.main_ids, expected.main_ids)


@torch.no_grad()
def test_the_second_imagined_step_equals_training(world, window):
    """Catches a commit that leaves out part of the imagined step, or keeps the step before the last in sight."""
    views = [(window.image[:, 0], window.state[:, 0])]
    cache = world.context(window.instruction, views, [])
    first, second = world._draft(cache, list(window.action[:, :2].unbind(1)), len(window.action))
    image = torch.cat([first.main_ids, first.wrist_ids], dim=-1)[:, 0]
    state = world.layout.to_bins(first.state[:, 0])
    dreamt = replace(
        window, image=torch.stack([window.image[:, 0], image, image], 1), action=window.action[:, :2],
        state=torch.stack([window.state[:, 0], state, state], 1),
    )  # fmt: skip
    h, sequence = hidden(world, dreamt)
    expected = world._next(h[:, sequence.where(140, 102)[1]], image, state)
    torch.testing.assert_close(second.hidden, expected.hidden, atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(second.value, expected.value, atol=1e-4, rtol=1e-3)


def test_imagining_never_writes_the_cache(world, cache, candidates):
    """Catches a planner whose second iteration starts from another situation than its first."""
    before = [t.clone() for t in (*cache.kv.keys, *cache.kv.values, cache.image, cache.state)]
    first = world.imagine(cache, candidates)
    world.imagine(cache, candidates[:2], decode="causal")
    world.propose(cache, 3)
    for kept, now in zip(before, (*cache.kv.keys, *cache.kv.values, cache.image, cache.state), strict=True):
        assert torch.equal(kept, now)
    assert torch.equal(world.imagine(cache, candidates).value, first.value)


@pytest.mark.parametrize("decode", ["parallel", "causal"])
def test_candidates_do_not_influence_each_other(world, cache, candidates, decode):
    """Catches a batch that mixes rows."""
    together = world.imagine(cache, candidates[:3], decode)
    for row in range(3):
        alone = world.imagine(cache, candidates[row : row + 1], decode)
        for name in ("value", "state", "uncertainty", "keypoints", "success"):
            torch.testing.assert_close(getattr(together, name)[row], getattr(alone, name)[0], atol=1e-4, rtol=1e-3)
        assert torch.equal(together.main_ids[row], alone.main_ids[0])


@pytest.mark.parametrize("decode", ["parallel", "causal"])
def test_doubts_add_up(world, cache, candidates, decode):
    """Catches a far future that is trusted because its last step alone looks easy."""
    doubts = world.imagine(cache, candidates, decode).uncertainty
    first = world.imagine(cache, candidates[:, :1], decode).uncertainty
    assert (doubts[:, 1:] > doubts[:, :-1]).all() and (doubts > 0).all()
    torch.testing.assert_close(doubts[:, :1], first)


@pytest.mark.parametrize("decode", ["parallel", "causal"])
def test_the_model_goes_on_by_itself(world, window, cache, candidates, decode):
    """Catches a future that goes on by another chunk than the model would choose there, or sees another past."""
    given = candidates[:1, :1]
    followed = world.imagine(cache, given, decode, follow=2)
    assert followed.actions.shape == (1, 3, 8, 7)
    torch.testing.assert_close(followed.actions[:, :1], given)
    repeated = world.imagine(cache, followed.actions, decode)
    for name in ("state", "value", "success", "uncertainty"):
        torch.testing.assert_close(getattr(repeated, name), getattr(followed, name), atol=1e-4, rtol=1e-3)

    alone = world.context(window.instruction[:1], [(cache.image, cache.state)], [])
    first = world.imagine(alone, given, decode)
    there = torch.cat([first.main_ids, first.wrist_ids], dim=-1)[:, 0], world.layout.to_bins(first.state[:, 0])
    views, codes = [(cache.image, cache.state), there], [world.actions.encode(given[:, 0])]
    moved = world.context(window.instruction[:1], views, codes)
    chosen = world.imagine(alone, given, decode, follow=1).actions[0, 1]
    assert (world.actions.encode(chosen) == world.actions.encode(world.propose(moved, 1)[0])).all()


def test_causal_and_parallel_agree_in_form(world, cache, candidates):
    """Catches the slow reference returning illegal ids or other shapes."""
    drafted, spelled = world.imagine(cache, candidates), world.imagine(cache, candidates, "causal")
    for name in ("main_ids", "wrist_ids", "state", "value", "success", "held", "keypoints", "uncertainty"):
        assert getattr(drafted, name).shape == getattr(spelled, name).shape, name
    for future in (drafted, spelled):
        assert future.main_ids.shape == (5, 2, 64) and future.keypoints.shape == (5, 2, 4, 3)
        assert 0 <= future.main_ids.min() <= future.main_ids.max() < world.vocab.vision.size
        assert ((0 <= future.success) & (future.success <= 1) & (0 <= future.value) & (future.value <= 1)).all()
        main, wrist = world.paint(future, slice(0, 2))
        assert main.shape == (2, 2, 64, 64, 3) and wrist.shape == (2, 2, 32, 32, 3) and main.dtype == torch.uint8
    assert world.frames(drafted.main_ids[0, :1]).shape == (1, 64, 64, 3)


def test_spelling_reads_what_the_causal_loss_teaches(world, window):
    """Catches the id-by-id reading being off by one from the next-token loss."""
    views = [(window.image[:, 0], window.state[:, 0])]
    cache = world.context(window.instruction, views, [])
    spelled = next(world._spell(cache, [window.action[:, 0]], len(window.action)))
    image = torch.cat([spelled.main_ids, spelled.wrist_ids], dim=-1)[:, 0]
    state = world.layout.to_bins(spelled.state[:, 0])
    written = replace(
        window, image=torch.stack([window.image[:, 0], image, image], 1), action=window.action[:, :2],
        state=torch.stack([window.state[:, 0], state, state], 1),
    )  # fmt: skip
    h, sequence = hidden(world, written)
    said = world.codes(h[:, sequence.where(0, 64)[1]]).best()
    assert torch.equal(said, spelled.main_ids[:, 0])


def test_a_draft_prefers_to_copy(world, cache, candidates):
    """Catches a copy gate that favours another id than the current one."""
    torch.nn.init.constant_(world.vision.gate.bias, 50.0)
    future = world.imagine(cache, candidates[:, :1])
    assert torch.equal(future.main_ids[:, 0], cache.image[:, :64].expand(5, -1))


def test_history_of_frames_equals_history_of_ids(world, tracks, make_episode, text):
    """Catches `prefill` encoding other ids than training did."""
    episode, window = make_episode(0, steps=64), tracks.window(np.array([8]), 2)
    words = tuple(text.within(world.vocab.text).encode(episode.instruction))
    history = History(words, ((episode.obs(8), episode.action[8:16]), (episode.obs(16), None)))
    cache = world.prefill(history)
    views = [(window.image[:, s], window.state[:, s]) for s in (0, 1)]
    expected = world.context(window.instruction, views, [window.action[:, 0]])
    for key, other in zip(cache.kv.keys, expected.kv.keys, strict=True):
        torch.testing.assert_close(key, other, atol=1e-5, rtol=1e-3)
    first = world.prefill(History(words, ((episode.obs(0), None),)))
    assert len(first.kv) == 24 + 93 and first.step == 0
    assert world.prefill(history, history).kv.rows == 2


def test_proposals(world, cache):
    """Catches proposals that leave the action space, ignore their seed, or whose first is not the likeliest."""
    chunks = world.propose(cache, 6, 1.0, torch.Generator().manual_seed(1))
    assert chunks.shape == (6, 8, 7) and chunks.abs().max() <= 1 and chunks[1:].std(0).max() > 0
    assert torch.equal(chunks, world.propose(cache, 6, 1.0, torch.Generator().manual_seed(1)))
    assert not torch.equal(chunks, world.propose(cache, 6, 1.0, torch.Generator().manual_seed(2)))
    assert torch.equal(chunks[0], world.propose(cache, 1)[0])
    assert torch.equal(chunks[:1].expand(3, -1, -1), world.propose(cache, 3, 0.0))


def test_bfloat16_is_close(world, cache, candidates):
    """Catches a reading that only works in float32."""
    exact: Imagination = world.imagine(cache, candidates)
    world.precision = torch.bfloat16
    rough = world.imagine(cache, candidates)
    torch.testing.assert_close(rough.value, exact.value, atol=0.05, rtol=0)
    assert (rough.state - exact.state)[..., :3].abs().max() < 0.02


def test_the_layout_of_emu3_works_too(world, window, candidates):
    """Catches a place that assumes blocks which count upwards, or ids that start at 0."""
    torch.manual_seed(0)
    vocab = Vocab.emu3(world.vocab.vision.size)
    model = WorldModel(world.config, vocab, world.frame_tokenizer, world.actions)
    instruction = torch.stack([model.layout.instruction_ids([5, 6])] * 4)
    there = replace(window, instruction=instruction)
    losses = window_losses(model, there)
    losses.total.backward()
    assert torch.isfinite(losses.total)
    trained = model.transformer.embed_tokens.weight.grad.abs().sum(1) > 0
    assert trained[vocab.action.ids()].all() and not trained[vocab.action.start + 1 : vocab.special.start].any()
    cache = model.context(instruction[:1], [(window.image[:1, 0], window.state[:1, 0])], [])
    assert model.imagine(cache, candidates).main_ids.max() < vocab.vision.size


def test_every_vision_id_can_have_its_own_row(world, window, candidates):
    """Catches a place that takes vision ids for digits where a pretrained table would have a row each."""
    model = WorldModel(replace(world.config, factored=False), world.vocab, world.frame_tokenizer, world.actions)
    assert len(model.vision.rows) == world.vocab.vision.size > len(world.vision.rows)
    window_losses(model, window).total.backward()
    cache = model.context(window.instruction[:1], [(window.image[:1, 0], window.state[:1, 0])], [])
    future = model.imagine(cache, candidates)
    assert model.paint(future)[0].shape == (5, 2, 64, 64, 3)
    assert future.main_ids.max() < world.vocab.vision.size and model.vision.rows.grad.abs().sum() > 0


def test_slots_can_be_switched_off(world, window):
    """Catches slot embeddings that come back by training."""
    config = replace(world.config, slots=False)
    model = WorldModel(config, world.vocab, world.frame_tokenizer, world.actions)
    window_losses(model, window).total.backward()
    assert model.slots.weight.grad is None and not model.slots.weight.any()


def test_shape_errors_name_the_shape(world, cache, candidates, make_episode):
    """Catches wrong input that would broadcast or fail deep inside."""
    with pytest.raises(ValueError, match=r"\(N, H, 8, 7\), got \(5, 8, 7\)"):
        world.imagine(cache, candidates[:, 0])
    with pytest.raises(ValueError, match="parallel"):
        world.imagine(cache, candidates, decode="fast")
    with pytest.raises(ValueError, match="NaN"):
        world.imagine(cache, candidates * torch.nan)
    obs = make_episode().obs(0)
    with pytest.raises(ValueError, match="needs the chunk"):
        world.prefill(History((), ((obs, None), (obs, None))))
    with pytest.raises(ValueError, match="state"):
        world.prefill(History((), ((replace(obs, state=obs.state * np.nan), None),)))
    with pytest.raises(ValueError, match="at least one chunk"):
        world.propose(cache, 0)
