"""The layout of a sequence."""

import hashlib
from dataclasses import replace

import pytest
import torch

from envs.types import ActionSpec, CameraSpec, Spec, StateSpec
from world_model.tokens.layout import ACT, CAUSAL, NEXT, VIEW, Layout
from world_model.tokens.poses import PoseRange
from world_model.tokens.sequence import Sequence
from world_model.tokens.vocab import Vocab


@pytest.fixture
def layout(world):
    return world.layout


def test_every_id_lies_in_the_block_that_its_slot_allows(world, batch):
    """Catches slots, marks and blocks that do not agree about the order of a model step."""
    layout, vocab = world.layout, world.vocab
    sequence = Sequence(layout, 3)
    ids = sequence.ids(batch)
    assert ids.shape == (4, sequence.length) == (4, 24 + 3 * (110 + 30 + 102))
    causal = ids[:, sequence.where(0, layout.step)]  # (B, S, 110)
    assert [slots.stop - slots.start for slots in layout.cameras.values()] == [64, 16]
    for slots in layout.cameras.values():
        assert vocab.vision.contains(causal[..., slots]).all()
    assert vocab.state.contains(causal[..., layout.state]).all()
    assert vocab.action.contains(causal[..., layout.action][..., :-1]).all()
    assert vocab.gripper.contains(causal[..., layout.action][..., -1]).all()
    marks = [causal[..., s].unique().item() for s in (0, 65, 66, 83, 84, 92, 93, 109)]
    m = vocab.marks
    assert marks == [*m.cameras[0], *m.cameras[1], m.bot, m.eost, m.boa, m.eoa]


def test_parallel_copies_start_from_the_current_ids(world, batch):
    """Catches copies of the next observation that start from the observation they must predict."""
    layout, sequence = world.layout, Sequence(world.layout, 3)
    ids = sequence.ids(batch)
    causal, copies = ids[:, sequence.where(0, layout.step)], ids[:, sequence.where(140, layout.next)]
    torch.testing.assert_close(copies[..., :87], causal[..., layout.obs_slots])
    assert (copies[..., 87:] == world.vocab.marks.mask).all()
    assert (ids[:, sequence.where(110, layout.act)] == world.vocab.marks.mask).all()


def test_parallel_copies_stand_where_their_targets_stand(layout):
    """Catches a copy of the next step at a position of this one."""
    sequence = Sequence(layout, 2)
    places, first = sequence.position_ids(), layout.instruction
    causal = [places[sequence.where(0, layout.step)[s]] for s in (0, 1)]
    following = places[sequence.where(140, layout.next)[0]]
    assert torch.equal(following[:87], causal[1][layout.obs_slots])
    assert (following[87:] == causal[1][layout.obs - 1]).all()
    act = places[sequence.where(110, layout.act)[0]]
    assert torch.equal(act[15:], causal[0][layout.action]) and (act[:15] == first + 92).all()
    assert torch.equal(sequence.position_ids(3)[first:], places[first:] + 3 * layout.step)


def test_segments_token_types_and_slots_agree(layout):
    """Catches the three descriptions of a sequence drifting apart."""
    sequence = Sequence(layout, 2)
    lengths = [segment.length for segment in sequence.segments]
    assert lengths == [24, 93, 17, 30, 102, 93, 17, 30, 102]
    types = sequence.token_types.split(lengths)
    assert [int(k.unique()) for k in types] == [CAUSAL, CAUSAL, CAUSAL, ACT, NEXT, CAUSAL, CAUSAL, ACT, NEXT]
    assert sequence.segments[5].sees == (0, 1, 2) and sequence.segments[7].sees == (0, 1, 2, 5)
    assert len(sequence.slots) == sequence.length == sum(lengths)


def test_value_ids_say_which_value(layout):
    """Catches a value that is read on another scale than it was taught on, and failures that are worth something."""
    value = torch.tensor([0.5, 0.7, 0.9, 1.0, torch.nan])
    bins = layout.value_to_bins(value)
    torch.testing.assert_close(layout.value_support[bins[:4].round().long()], value[:4], atol=0.02, rtol=0)
    assert bins[4].isnan() and layout.value_to_bins(torch.zeros(1)) == 0
    support = layout.value_support
    assert (support[:3] == 0).all() and (support[3:].diff() > 0).all() and support[-1] == 1


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


def test_any_robot_has_a_layout():
    """Catches a length that counts on two cameras, one gripper, a state or keypoints."""
    cameras = (CameraSpec("a", 16, 24), CameraSpec("b", 8, 8), CameraSpec("c", 32, 8))
    action = tuple(ActionSpec(str(i), gripper=i in (0, 3)) for i in range(4))
    bare = Layout(Spec(cameras, (), action, 10.0), Vocab.native(256, 100, 3), coefs=(2, 3), instruction=8)
    assert bare.image_ids == 6 + 1 + 4 and bare.image_slices["c"] == slice(7, 11)
    assert list(bare.cameras.values()) == [slice(1, 7), slice(9, 10), slice(12, 16)]
    assert bare.obs == 11 + 6 + 2 and bare.chunk == 5 + 2 + 2 and bare.beliefs == 3 and bare.next == 11 + 3
    ids = bare.obs_ids(torch.arange(11), torch.zeros(0))
    assert len(ids) == bare.obs and torch.equal(ids[bare.obs_slots], bare.vocab.vision.encode(torch.arange(11)))
    chunk = bare.chunk_ids(torch.tensor([1, 2, 3, 4, 5, 6, 7]))
    assert bare.vocab.gripper.decode(chunk[6:8]).tolist() == [6, 7]
    assert bare.points_to_bins(torch.zeros(2, 0, 3)).shape == (2, 0)
    assert bare.points_from_bins(torch.zeros(2, 0)).shape == (2, 0, 3)


def test_a_state_without_a_range_and_another_vocabulary_are_refused(layout):
    """Catches ids of infinity, and a camera without marks."""
    state = (*layout.spec.state, StateSpec("torque"))
    with pytest.raises(ValueError, match="finite range.*not known of torque"):
        Layout(replace(layout.spec, state=state), layout.vocab, layout.coefs)
    with pytest.raises(ValueError, match="marks for 1 cameras, the robot has 2"):
        Layout(layout.spec, Vocab.native(256, 100, 1), layout.coefs)


def test_values_outside_the_range_take_the_outermost_ids(layout):
    """Catches a state id of another block."""
    state = torch.tensor([9.0, -9, 0, 0, 0, 0, 1])
    ids = layout.state_ids(layout.to_bins(state))
    assert layout.vocab.state.decode(ids)[[0, 1, 6]].tolist() == [255, 0, 255]


def test_without_poses_the_layout_is_that_of_the_checkpoints_that_ship(world, batch):
    """Catches a change for cameras that tell their pose which moves anything for those that do not."""
    sequence, digest = Sequence(world.layout, 3), hashlib.sha256()
    batch = replace(
        batch, instruction=batch.instruction * 0, image=torch.arange(4 * 4 * 80).view(4, 4, 80) % 125,
        state=torch.arange(4.0 * 4 * 7).view(4, 4, 7), action=torch.arange(4 * 3 * 15).view(4, 3, 15) % 16,
    )  # fmt: skip
    for tensor in (sequence.ids(batch), sequence.position_ids(2), sequence.slots, sequence.token_types):
        digest.update(tensor.numpy().tobytes())
    for segment in sequence.segments:
        digest.update(repr((segment.length, segment.sees, segment.causal)).encode())
    assert digest.hexdigest() == "e5b5b78d31dcd24b0f902b4fdec2ddf30d1ed756767140db748fef45fa353319"
    assert len(world.token_type_embed.weight) == 3 and world.layout.view == 0


def test_a_pose_stands_between_its_cameras_first_mark_and_its_image(told):
    """Catches poses that push other slots out of place, or that stand before another camera's image."""
    model, dataset = told
    at, marks, vocab = model.layout, model.vocab.marks, model.vocab
    batch = dataset.batch(torch.tensor([3, 30]).numpy(), 2)
    ids = at.obs_ids(batch.image[:, 0], batch.state[:, 0], batch.pose[:, 0])
    assert ids.shape == (2, at.obs) and at.obs == (1 + 8 + 16 + 1) + (1 + 8 + 4 + 1) + (1 + 3 + 1)
    assert [ids[0, s].item() for s in (0, 25, 26, 39, 40, 44)] == [*marks.cameras[0], *marks.cameras[1], marks.bot,
                                                                    marks.eost]  # fmt: skip
    assert at.pose_slots == (*range(1, 9), *range(27, 35))
    told_ids = ids[:, list(at.pose_slots)]
    assert torch.equal(vocab.state.decode(told_ids), batch.pose[:, 0].round().clamp(0, 255).long())
    for slots in at.cameras.values():
        assert vocab.vision.contains(ids[:, slots]).all()
    assert [at.slot_names[i] for i in (1, 9, 34)] == ["front pose x", "front 0", "hand pose fovy"]
    assert len(set(at.slot_names)) == at.num_slots


def test_views_come_last_and_stand_where_the_camera_stands(told):
    """Catches a view that sees what is not known yet, that something else sees, or that stands at another step."""
    model, _ = told
    at, sequence, plain = model.layout, Sequence(model.layout, 3, 2), Sequence(model.layout, 3)
    assert sequence.segments[: len(plain.segments)] == plain.segments
    first, second = sequence.segments[-2:]
    assert (first.sees, second.sees) == ((0, 1), (0, 1, 2, 5)) and first.length == at.view == 8 + 16
    assert not (first.causal or second.causal)
    assert sequence.length == plain.length + 2 * at.view == len(sequence.slots) == len(sequence.token_types)
    assert (sequence.token_types[plain.length :] == VIEW).all() and not (plain.token_types == VIEW).any()
    causal = sequence.position_ids(2)[sequence.where(0, at.step)]
    assert torch.equal(sequence.position_ids(2)[plain.length :].view(2, -1), causal[:2, at.view_slots])
    assert at.view_slots.tolist() == list(range(1, 25))


def test_only_cameras_that_tell_a_pose_have_its_range(told):
    """Catches a spec and ranges that do not agree: slots of one camera would hold another's pose."""
    at = told[0].layout
    with pytest.raises(ValueError, match="no other camera"):
        Layout(at.spec, at.vocab, at.coefs, poses=at.poses[:1])
    with pytest.raises(ValueError, match="no other camera"):
        Layout(at.spec, at.vocab, at.coefs, poses=(at.poses[0], PoseRange("back", *[(0.0,) * 8] * 2, (0.0,) * 4)))
