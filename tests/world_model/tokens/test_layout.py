"""The layout, and windows cut from episodes."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from world_model.tokens.layout import ACT, CLEAN, NEXT, Sequence, Tracks, chunks, value_to_come


@pytest.fixture
def layout(world):
    return world.layout


def test_every_id_lies_in_the_block_that_its_slot_allows(world, window):
    """Catches slots, marks and blocks that do not agree about the order of a model step."""
    layout, vocab = world.layout, world.vocab
    sequence = Sequence(layout, 3)
    ids = sequence.ids(window)
    assert ids.shape == (4, sequence.length) == (4, 24 + 3 * (110 + 30 + 102))
    clean = ids[:, sequence.where(0, layout.step)]  # (B, S, 110)
    assert vocab.vision.contains(clean[..., layout.main]).all()
    assert vocab.vision.contains(clean[..., layout.wrist]).all()
    assert vocab.state.contains(clean[..., layout.state]).all()
    assert vocab.action.contains(clean[..., layout.action][..., :-1]).all()
    assert vocab.gripper.contains(clean[..., layout.action][..., -1]).all()
    marks = [clean[..., s].unique().item() for s in (0, 65, 66, 83, 84, 92, 93, 109)]
    m = vocab.marks
    assert marks == [m.bom, m.eom, m.bow, m.eow, m.bot, m.eost, m.boa, m.eoa]


def test_drafts_start_from_the_current_ids(world, window):
    """Catches drafts of the next observation that start from the observation they must predict."""
    layout, sequence = world.layout, Sequence(world.layout, 3)
    ids = sequence.ids(window)
    clean, drafts = ids[:, sequence.where(0, layout.step)], ids[:, sequence.where(140, layout.next)]
    torch.testing.assert_close(drafts[..., :87], clean[..., layout.obs_slots])
    assert (drafts[..., 87:] == world.vocab.marks.mask).all()
    assert (ids[:, sequence.where(110, layout.act)] == world.vocab.marks.mask).all()


def test_drafts_stand_where_their_targets_stand(layout):
    """Catches a draft of the next step at a position of this one."""
    sequence = Sequence(layout, 2)
    places, first = sequence.positions(), layout.instruction
    clean = [places[sequence.where(0, layout.step)[s]] for s in (0, 1)]
    following = places[sequence.where(140, layout.next)[0]]
    assert torch.equal(following[:87], clean[1][layout.obs_slots])
    assert (following[87:] == clean[1][layout.obs - 1]).all()
    act = places[sequence.where(110, layout.act)[0]]
    assert torch.equal(act[15:], clean[0][layout.action]) and (act[:15] == first + 92).all()
    assert torch.equal(sequence.positions(3)[first:], places[first:] + 3 * layout.step)


def test_pieces_kinds_and_slots_agree(layout):
    """Catches the three descriptions of a sequence drifting apart."""
    sequence = Sequence(layout, 2)
    lengths = [piece.length for piece in sequence.pieces]
    assert lengths == [24, 93, 17, 30, 102, 93, 17, 30, 102]
    kinds = sequence.kinds.split(lengths)
    assert [int(k.unique()) for k in kinds] == [CLEAN, CLEAN, CLEAN, ACT, NEXT, CLEAN, CLEAN, ACT, NEXT]
    assert sequence.pieces[5].sees == (0, 1, 2) and sequence.pieces[7].sees == (0, 1, 2, 5)
    assert len(sequence.slots) == sequence.length == sum(lengths)


def test_windows_line_up_with_the_episode(world, tracks, make_episode):
    """Catches observations, chunks and labels that are off by a step from one another."""
    episode, start = make_episode(1, steps=64), 65 + 7  # the second episode's step 7
    window = tracks.window(np.array([start]), 2)
    at = [7, 15, 23]
    state = world.layout.from_bins(window.state[0])
    np.testing.assert_allclose(state.numpy(), episode.state[at], atol=1e-5)
    decoded = world.actions.decode(window.action[0])
    executed = torch.from_numpy(np.stack([episode.action[7:15], episode.action[15:23]]))
    torch.testing.assert_close(decoded, world.actions.decode(world.actions.encode(executed)))
    np.testing.assert_array_equal(window.flags[0, :, 1].numpy(), episode.held[at] >= 0)
    assert window.here.all() and window.arrives.all() and window.advised.all()


def test_the_end_of_an_episode_is_taught_and_what_lies_beyond_is_not(tracks):
    """Catches release and rest never being seen, and padding that is learned as if it had happened."""
    success, failure = np.array([61]), np.array([65 + 61])  # three steps before the ends of episodes 0 and 1
    ended = tracks.window(success, 2)
    assert ended.here[0].tolist() == [1, 0, 0] and ended.advised[0].tolist() == [1, 0]
    assert ended.arrives[0].tolist() == [1, 0]  # success is at rest, so the step after it is known
    assert ended.flags[0, 1, 0] == 1 and ended.value[0, 1] == 1
    assert tracks.window(failure, 2).arrives[0].tolist() == [0, 0]
    assert tracks.window(failure, 2).value.eq(0).all()


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
    tracks = Tracks.of(episode, world.layout, world.frame_tokenizer, world.actions, words)
    assert not tracks.advised[3:11].any() and tracks.advised[:3].all() and tracks.advised[11:32].all()


def test_value_counts_control_steps_to_success():
    """Catches a value that is off by one or leaks backwards over a failure."""
    np.testing.assert_allclose(value_to_come(np.array([0, 0, 1, 0]), 0.5), [0.25, 0.5, 1, 0])
    np.testing.assert_allclose(value_to_come(np.array([0, 0, 1, 0]), 0.5, detour=1), [np.nan, 0.5, 1, 0])


def test_value_ids_say_which_value(layout):
    """Catches a value that is read on another scale than it was taught on, and failures that are worth something."""
    value = torch.tensor([0.5, 0.7, 0.9, 1.0, torch.nan])
    bins = layout.value_to_bins(value)
    torch.testing.assert_close(layout.worth[bins[:4].round().long()], value[:4], atol=0.02, rtol=0)
    assert bins[4].isnan() and layout.value_to_bins(torch.zeros(1)) == 0
    assert (layout.worth[:3] == 0).all() and (layout.worth[3:].diff() > 0).all() and layout.worth[-1] == 1


def test_bins_come_back(layout):
    """Catches ranges swapped between dimensions."""
    state = torch.tensor([[0.1, -0.2, 1.0, 0.5, -0.5, 0.0, 0.04]])
    torch.testing.assert_close(layout.from_bins(layout.to_bins(state)), state)
    points = torch.tensor([[[0.1, -0.2, 0.8]] * 4])
    torch.testing.assert_close(layout.points_from_bins(layout.points_to_bins(points)), points)


def test_a_long_instruction_keeps_its_marks(world, layout):
    """Catches an unknown, long instruction that pushes everything out of place."""
    marks = world.vocab.marks
    short, long = layout.instruction_ids([5, 6]), layout.instruction_ids([5] * 100)
    assert short.tolist()[:4] == [marks.bos, 5, 6, marks.eot] and short[4:].eq(marks.pad).all()
    assert len(long) == len(short) == 24 and long[-1] == marks.eot
