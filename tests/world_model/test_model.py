"""The world model: what may influence what, that it learns, and that imagining is the same however it is asked."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from envs.types import ActionSpec, CameraSpec, Observation, Spec, StateSpec
from world_model import decoding
from world_model.model import WorldModel
from world_model.tokens.layout import CAUSAL
from world_model.tokens.sequence import Sequence
from world_model.tokens.vocab import Vocab
from world_model.training.loss import batch_losses
from world_model.types import History, Imagination


def hidden(world, batch, ids=None):
    """Hidden states (B, L, width) of a batch of windows, and its sequence."""
    sequence = Sequence(world.layout, batch.action.shape[1])
    ids = sequence.ids(batch) if ids is None else ids
    h, _ = world.run(ids, sequence.slots, sequence.token_types, sequence.position_ids(), sequence.segments)
    return h, sequence


@torch.no_grad()
def test_parallel_copies_are_invisible_to_causal_ids(world, batch):
    """Catches a parallel copy leaking into what is cached: run time has none there."""
    h, sequence = hidden(world, batch)
    ids = sequence.ids(batch)
    ids[:, sequence.token_types > 0] = world.vocab.vision.encode(1)
    other, _ = hidden(world, batch, ids)
    causal = sequence.token_types == 0
    assert torch.equal(h[:, causal], other[:, causal])
    assert not torch.allclose(h[:, ~causal], other[:, ~causal])


@torch.no_grad()
def test_the_future_does_not_leak(world, batch):
    """Catches ids that see the step they must predict."""
    h, sequence = hidden(world, batch)
    later = batch.image.clone()
    later[:, 2:] = (later[:, 2:] + 7) % world.vocab.vision.size
    other, _ = hidden(world, replace(batch, image=later, expert=batch.expert * 0))
    before = world.layout.instruction + 2 * sequence.step  # everything of the first two steps
    assert torch.equal(h[:, :before], other[:, :before])
    assert not torch.allclose(h[:, before:], other[:, before:])


@torch.no_grad()
def test_act_does_not_see_the_action_taken(world, batch):
    """Catches proposals that copy the executed action, which at run time is not there yet."""
    h, sequence = hidden(world, batch)
    other, _ = hidden(world, replace(batch, action=(batch.action + 3) % 16))
    act, following = sequence.where(110, 30), sequence.where(140, 102)
    assert torch.equal(h[:, act[0]], other[:, act[0]])
    assert not torch.allclose(h[:, following[0]], other[:, following[0]])


@torch.no_grad()
def test_a_step_sees_one_step_back(world, batch):
    """Catches training with more history than acting has."""
    one = hidden(world, batch)[0]
    old = batch.image.clone()
    old[:, 0] = (old[:, 0] + 7) % world.vocab.vision.size
    attention = Sequence(world.layout, 3).segments
    assert all(1 not in segment.sees and 2 not in segment.sees for segment in attention[9:])
    assert not torch.allclose(one, hidden(world, replace(batch, image=old))[0])


@torch.no_grad()
def test_run_time_equals_training(world, batch):
    """Catches a cache, a position or a slot that differs between the training pass and the passes of a decision."""
    h, sequence = hidden(world, batch)
    observations = [(batch.image[:, s], batch.state[:, s]) for s in (0, 1)]
    cache = world.context(batch.instruction, observations, [batch.action[:, 0]])
    act_h = h[:, sequence.where(110, 30)[1]]
    coefs = world.logits(act_h[:, 15:-1], world.vocab.action).softmax(-1)
    torch.testing.assert_close(world.read(cache).coefs, coefs, atol=1e-5, rtol=1e-3)
    torch.testing.assert_close(world.read(cache).belief.value, world._belief(act_h[:, :15]).value, atol=1e-5, rtol=1e-3)

    future = next(decoding.parallel(world, cache, [batch.action[:, 1]], len(batch.action), [8]))
    expected = world.read_next(h[:, sequence.where(140, 102)[1]], batch.image[:, 1], batch.state[:, 1])
    torch.testing.assert_close(future.state, expected.state, atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(future.hidden, expected.hidden, atol=1e-4, rtol=1e-3)
    assert torch.equal(future.image_ids, expected.image_ids)


@torch.no_grad()
def test_the_second_imagined_step_equals_training(world, batch):
    """Catches a commit that leaves out part of the imagined step, or keeps the step before the last in sight."""
    observations = [(batch.image[:, 0], batch.state[:, 0])]
    cache = world.context(batch.instruction, observations, [])
    first, second = decoding.parallel(world, cache, list(batch.action[:, :2].unbind(1)), len(batch.action), [8, 8])
    image = first.image_ids[:, 0]
    state = world.layout.to_bins(first.state[:, 0])
    dreamt = replace(
        batch, image=torch.stack([batch.image[:, 0], image, image], 1), action=batch.action[:, :2],
        stride=batch.stride[:, :2], state=torch.stack([batch.state[:, 0], state, state], 1),
    )  # fmt: skip
    h, sequence = hidden(world, dreamt)
    expected = world.read_next(h[:, sequence.where(140, 102)[1]], image, state)
    torch.testing.assert_close(second.hidden, expected.hidden, atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(second.value, expected.value, atol=1e-4, rtol=1e-3)


def taught_without_images(model: WorldModel) -> WorldModel:
    """The same weights, said to have been trained so."""
    model.config = replace(model.config, weights=replace(model.config.weights, imageless=0.5))
    return model


@torch.no_grad()
def test_a_future_without_images_equals_training(world, batch):
    """Catches a search that asks for something else than was taught: another place, or images that are still seen."""
    sequence = Sequence(world.layout, batch.action.shape[1], images=False)
    h, _ = world.run(
        sequence.ids(batch), sequence.slots, sequence.token_types, sequence.position_ids(), sequence.segments
    )
    cache = world.context(batch.instruction, [(batch.image[:, 0], batch.state[:, 0])], [])
    future = next(decoding.parallel(world, cache, [batch.action[:, 0]], len(batch.action), [8], False))
    outcome = h[:, sequence.where(140, sequence.next)[0]]
    expected = world.read_next(outcome, batch.image[:, 0], batch.state[:, 0])
    torch.testing.assert_close(future.state, expected.state, atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(future.value, expected.value, atol=1e-4, rtol=1e-3)
    assert future.image_ids.shape[-1] == 0


@torch.no_grad()
def test_only_the_last_step_goes_without_images(world, cache, candidates):
    """Catches a second imagined step that starts from an observation without images."""
    with pytest.raises(ValueError, match="imageless=0"):
        world.imagine(cache, candidates, images=False)
    drawn = world.imagine(cache, candidates)
    found = taught_without_images(world).imagine(cache, candidates, images=False)
    torch.testing.assert_close(found.value[:, :, 0], drawn.value[:, :, 0])
    assert not torch.allclose(found.value[:, :, 1], drawn.value[:, :, 1])
    assert found.image_ids.shape[-1] == 0 and found.value.shape == drawn.value.shape
    with pytest.raises(ValueError, match="without images"):
        world.decode_frames(found[0])


def test_imagining_never_writes_the_cache(world, cache, candidates):
    """Catches a planner whose second iteration starts from another situation than its first."""
    before = [t.clone() for t in (*cache.kv.keys, *cache.kv.values, cache.image, cache.state)]
    first = world.imagine(cache, candidates)
    world.imagine(cache, candidates[:, :2], decode="autoregressive")
    world.propose(cache, 3)
    for kept, now in zip(before, (*cache.kv.keys, *cache.kv.values, cache.image, cache.state), strict=True):
        assert torch.equal(kept, now)
    assert torch.equal(world.imagine(cache, candidates).value, first.value)


@pytest.mark.parametrize("decode", ["parallel", "autoregressive"])
def test_candidates_do_not_influence_each_other(world, cache, candidates, decode):
    """Catches a batch that mixes rows."""
    together = world.imagine(cache, candidates[:, :3], decode)[0]
    for row in range(3):
        alone = world.imagine(cache, candidates[:, row : row + 1], decode)[0]
        for name in ("value", "state", "uncertainty", "keypoints", "success"):
            torch.testing.assert_close(getattr(together, name)[row], getattr(alone, name)[0], atol=1e-4, rtol=1e-3)
        assert torch.equal(together.image_ids[row], alone.image_ids[0])


@pytest.mark.parametrize("decode", ["parallel", "autoregressive"])
def test_uncertainty_adds_up(world, cache, candidates, decode):
    """Catches a far future that is trusted because its last step alone looks easy."""
    found = world.imagine(cache, candidates, decode).uncertainty
    first = world.imagine(cache, candidates[:, :, :1], decode).uncertainty
    assert (found[..., 1:] > found[..., :-1]).all() and (found > 0).all()
    torch.testing.assert_close(found[..., :1], first)


@pytest.mark.parametrize("decode", ["parallel", "autoregressive"])
def test_the_model_goes_on_by_itself(world, batch, cache, candidates, decode):
    """Catches a future that goes on by another chunk than the model would choose there, or sees another past."""
    given = candidates[:, :1, :1]
    followed = world.imagine(cache, given, decode, follow=2)
    assert followed.actions.shape == (1, 1, 3, 8, 7)
    torch.testing.assert_close(followed.actions[:, :, :1], given)
    repeated = world.imagine(cache, followed.actions, decode)
    for name in ("state", "value", "success", "uncertainty"):
        torch.testing.assert_close(getattr(repeated, name), getattr(followed, name), atol=1e-4, rtol=1e-3)

    alone = world.context(batch.instruction[:1], [(cache.image, cache.state)], [])
    first = world.imagine(alone, given, decode)
    there = first.image_ids[0, :, 0], world.layout.to_bins(first.state[0, :, 0])
    observations, codes = [(cache.image, cache.state), there], [world.actions.encode(given[0, :, 0])]
    moved = world.context(batch.instruction[:1], observations, codes)
    chosen = world.imagine(alone, given, decode, follow=1).actions[0, 0, 1]
    assert (world.actions.encode(chosen) == world.actions.encode(world.propose(moved, 1)[0, 0])).all()


def test_both_decodings_agree_in_form(world, cache, candidates):
    """Catches the slow reference returning illegal ids or other shapes."""
    at_once, in_turn = world.imagine(cache, candidates), world.imagine(cache, candidates, "autoregressive")
    for name in ("image_ids", "state", "value", "success", "held", "keypoints", "uncertainty"):
        assert getattr(at_once, name).shape == getattr(in_turn, name).shape, name
    for future in (at_once, in_turn):
        assert future.image_ids.shape == (1, 5, 2, 80) and future.keypoints.shape == (1, 5, 2, 4, 3)
        assert 0 <= future.image_ids.min() <= future.image_ids.max() < world.vocab.vision.size
        assert ((0 <= future.success) & (future.success <= 1) & (0 <= future.value) & (future.value <= 1)).all()
        images = world.decode_frames(future[0], slice(0, 2))
        assert images["main"].shape == (2, 2, 64, 64, 3) and images["wrist"].shape == (2, 2, 32, 32, 3)
        assert images["main"].dtype == torch.uint8
    assert world.frames(at_once.image_ids[0, :1])["main"].shape == (1, 2, 64, 64, 3)


def test_autoregressive_decoding_reads_what_the_causal_loss_teaches(world, batch):
    """Catches the id-by-id reading being off by one from the next-token loss."""
    observations = [(batch.image[:, 0], batch.state[:, 0])]
    cache = world.context(batch.instruction, observations, [])
    future = next(decoding.autoregressive(world, cache, [batch.action[:, 0]], len(batch.action), [8]))
    image = future.image_ids[:, 0]
    state = world.layout.to_bins(future.state[:, 0])
    written = replace(
        batch, image=torch.stack([batch.image[:, 0], image, image], 1), action=batch.action[:, :2],
        stride=batch.stride[:, :2], state=torch.stack([batch.state[:, 0], state, state], 1),
    )  # fmt: skip
    h, sequence = hidden(world, written)
    said = world.codes(h[:, sequence.where(0, 64)[1]]).best()
    assert torch.equal(said, image[:, :64])


def test_an_edit_prefers_to_copy(world, cache, candidates):
    """Catches a copy gate that favours another id than the current one."""
    torch.nn.init.constant_(world.vision.gate.bias, 50.0)
    future = world.imagine(cache, candidates[:, :, :1])
    assert torch.equal(future.image_ids[0, :, 0], cache.image.expand(5, -1))


def test_history_of_frames_equals_history_of_ids(world, dataset, make_episode, text):
    """Catches `prefill` encoding other ids than training did."""
    episode, batch = make_episode(0, steps=64), dataset.batch(np.array([8]), 2)
    words = tuple(text.within(world.vocab.text).encode(episode.instruction))
    history = History(words, ((episode.obs(8), episode.action[8:16]), (episode.obs(16), None)))
    cache = world.prefill([history])
    observations = [(batch.image[:, s], batch.state[:, s]) for s in (0, 1)]
    expected = world.context(batch.instruction, observations, [batch.action[:, 0]])
    for key, other in zip(cache.kv.keys, expected.kv.keys, strict=True):
        torch.testing.assert_close(key, other, atol=1e-5, rtol=1e-3)
    first = world.prefill([History(words, ((episode.obs(0), None),))])
    assert len(first.kv) == 24 + 93 and first.step == 0
    assert world.prefill([history, history]).kv.rows == 2


def test_proposals(world, cache):
    """Catches proposals that leave the action space, ignore their seed, or whose first is not the likeliest."""

    def propose(seed: int) -> torch.Tensor:
        return world.propose(cache, 6, 1.0, [torch.Generator().manual_seed(seed)])[0]

    chunks = propose(1)
    assert chunks.shape == (6, 8, 7) and chunks.abs().max() <= 1 and chunks[1:].std(0).max() > 0
    assert torch.equal(chunks, propose(1)) and not torch.equal(chunks, propose(2))
    assert torch.equal(chunks[0], world.propose(cache, 1)[0, 0])
    assert torch.equal(chunks[:1].expand(3, -1, -1), world.propose(cache, 3, 0.0)[0])


def test_joint_proposals_know_what_was_drawn_before(world, cache):
    """Catches ids that are drawn without regard to those before them, or read at another place than they stand."""
    at = world.layout
    noise = torch.rand(1, at.num_action_ids, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    code = decoding.chunks_jointly(world, cache, noise, 1.0)[:, 0]  # (1, Ka)
    slots = world.step_slots[at.obs :]
    positions = at.position_ids(slots, cache.step[:, None])
    h, _ = world.run(at.chunk_ids(code), slots, CAUSAL, positions, past=(cache.kv,))  # all ids at once, as in training
    blocks = [world.vocab.action] * at.num_coefs + [world.vocab.gripper] * at.num_grippers
    for i, block in enumerate(blocks):
        cumulative = world.logits(h[:, i], block).softmax(-1).double().cumsum(-1)
        below, up_to = (cumulative[0, k] if k >= 0 else 0.0 for k in (code[0, i] - 1, code[0, i]))
        assert below - 1e-4 <= noise[0, i, 0] <= up_to + 1e-4, f"id {i} was drawn from another distribution"
    many = world.propose(cache, 6, 1.0, [torch.Generator().manual_seed(1)], joint=True)[0]
    assert many.shape == (6, 8, 7) and many[1:].std(0).max() > 0 and torch.equal(many[0], world.propose(cache, 1)[0, 0])


def test_bfloat16_is_close(world, cache, candidates):
    """Catches a reading that only works in float32."""
    exact: Imagination = world.imagine(cache, candidates)
    world.precision = torch.bfloat16
    rough = world.imagine(cache, candidates)
    torch.testing.assert_close(rough.value, exact.value, atol=0.05, rtol=0)
    assert (rough.state - exact.state)[..., :3].abs().max() < 0.02


def test_the_layout_of_emu3_works_too(world, batch, candidates):
    """Catches a place that assumes blocks which count upwards, or ids that start at 0."""
    torch.manual_seed(0)
    vocab = Vocab.emu3(2, world.vocab.vision.size)
    model = WorldModel(world.config, world.spec, vocab, world.frame_tokenizer, world.actions)
    instruction = torch.stack([model.layout.instruction_ids([5, 6])] * 4)
    there = replace(batch, instruction=instruction)
    losses = batch_losses(model, there)
    losses.total.backward()
    assert torch.isfinite(losses.total)
    trained = model.transformer.embed_tokens.weight.grad.abs().sum(1) > 0
    assert trained[vocab.action.ids()].all() and not trained[vocab.action.start + 1 : vocab.special.start].any()
    cache = model.context(instruction[:1], [(batch.image[:1, 0], batch.state[:1, 0])], [])
    assert model.imagine(cache, candidates).image_ids.max() < vocab.vision.size


def test_every_vision_id_can_have_its_own_row(world, batch, candidates):
    """Catches a place that takes vision ids for digits where a pretrained table would have a row each."""
    config = replace(world.config, factored=False)
    model = WorldModel(config, world.spec, world.vocab, world.frame_tokenizer, world.actions)
    assert len(model.vision.rows) == world.vocab.vision.size > len(world.vision.rows)
    batch_losses(model, batch).total.backward()
    cache = model.context(batch.instruction[:1], [(batch.image[:1, 0], batch.state[:1, 0])], [])
    future = model.imagine(cache, candidates)
    assert model.decode_frames(future[0])["main"].shape == (5, 2, 64, 64, 3)
    assert future.image_ids.max() < world.vocab.vision.size and model.vision.rows.grad.abs().sum() > 0


def test_step_embeddings_can_be_switched_off(world, batch):
    """Catches embeddings that come back by training."""
    config = replace(world.config, step_embed=False)
    model = WorldModel(config, world.spec, world.vocab, world.frame_tokenizer, world.actions)
    batch_losses(model, batch).total.backward()
    assert model.step_embed.weight.grad is None and not model.step_embed.weight.any()


def test_shape_errors_name_the_shape(world, cache, candidates, make_episode):
    """Catches wrong input that would broadcast or fail deep inside."""
    with pytest.raises(ValueError, match=r"\(R, N, H, 8, 7\), got \(1, 5, 8, 7\)"):
        world.imagine(cache, candidates[:, :, 0])
    with pytest.raises(ValueError, match="parallel"):
        world.imagine(cache, candidates, decode="fast")
    with pytest.raises(ValueError, match="1 robots cannot imagine actions of 2"):
        world.imagine(cache, candidates.repeat(2, 1, 1, 1, 1))
    obs = make_episode().obs(0)
    with pytest.raises(ValueError, match="needs the chunk"):
        world.prefill([History((), ((obs, None), (obs, None)))])
    with pytest.raises(ValueError, match="state"):
        world.prefill([History((), ((replace(obs, state=obs.state * np.nan), None),))])
    with pytest.raises(ValueError, match="at least one chunk"):
        world.propose(cache, 0)
    with pytest.raises(ValueError, match="one or two steps"):
        world.prefill([History((), ())])
    with pytest.raises(ValueError, match="one generator for each of 1 robots"):
        world.propose(cache, 2, 1.0, [torch.Generator(), torch.Generator()])


FIELDS = ("image_ids", "state", "value", "success", "held", "keypoints", "uncertainty", "actions")


@pytest.mark.parametrize("decode", ["parallel", "autoregressive"])
def test_robots_do_not_influence_each_other(world, make_episode, decode):
    """Catches a robot that acts otherwise in company: histories of one and two steps stand in one padded pass."""
    episode = make_episode(0, steps=64)
    histories = [
        History((5, 6), ((episode.obs(0), None),)),
        History((7,), ((episode.obs(8), episode.action[8:16]), (episode.obs(16), None))),
        History((5, 6), ((episode.obs(30), None),)),
    ]
    rng = np.random.default_rng(0)
    actions = torch.from_numpy(rng.uniform(-1, 1, (3, 2, 2, 8, 7)).astype(np.float32))
    horizon = 2 if decode == "parallel" else 1
    together = world.prefill(histories)
    assert together.step.tolist() == [0, 1, 0] and together.kv.mask is not None
    generators = [torch.Generator().manual_seed(seed) for seed in range(3)]
    proposed, readout = world.propose(together, 4, 1.0, generators), world.read(together)
    imagined = world.imagine(together, actions[:, :, :horizon], decode, follow=1)
    for robot, history in enumerate(histories):
        alone = world.prefill([history])
        assert alone.kv.mask is None
        torch.testing.assert_close(readout.coefs[robot], world.read(alone).coefs[0], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(readout.belief.value[robot], world.read(alone).belief.value[0], atol=1e-5, rtol=1e-5)
        own = world.propose(alone, 4, 1.0, [torch.Generator().manual_seed(robot)])
        torch.testing.assert_close(proposed[robot], own[0], atol=1e-5, rtol=1e-5)
        single = world.imagine(alone, actions[robot : robot + 1, :, :horizon], decode, follow=1)[0]
        for name in FIELDS:
            torch.testing.assert_close(getattr(imagined[robot], name), getattr(single, name), atol=1e-5, rtol=1e-5)


def test_robots_of_equal_histories_need_no_mask(world, make_episode):
    """Catches padding, and the slower attention that it needs, where nothing is to be padded."""
    episode = make_episode(0, steps=64)
    pairs = [((episode.obs(t), episode.action[t : t + 8]), (episode.obs(t + 8), None)) for t in (0, 20)]
    cache = world.prefill([History((5,), pair) for pair in pairs])
    assert cache.kv.mask is None and cache.step.tolist() == [1, 1]
    assert len(cache.kv) == 24 + 93 + 17 + 93


def test_an_action_that_is_not_finite_has_no_value(world, cache, candidates):
    """Catches NaN that is imagined as some ordinary action."""
    candidates[0, 2, 1, 3, 0] = torch.nan
    value = world.imagine(cache, candidates).value[0]
    assert value[2].isnan().all() and torch.isfinite(value[[0, 1, 3, 4]]).all()


CAMERA = CameraSpec("front", 16, 16)
HAND = tuple(StateSpec(f"hand.{axis}", -1, 1, "m") for axis in "xyz")
ROBOTS = {
    "no gripper, nothing but a camera": (Spec((CAMERA,), (), (ActionSpec("x"), ActionSpec("y")), 5.0), (2, 3)),
    "a gripper in front, joints in rad": (
        Spec((CAMERA, CameraSpec("side.top", 24, 8)), (StateSpec("elbow", -3, 3, "rad"),),
             (ActionSpec("g", 0, 85, gripper=True), ActionSpec("elbow", -3, 3)), 10.0),
        (2,),
    ),
    "two hands, three cameras": (
        Spec((CAMERA, CameraSpec("left", 24, 40), CameraSpec("right", 40, 24)), (StateSpec("torque", 0, 9), *HAND),
             (ActionSpec("x"), ActionSpec("g", gripper=True), ActionSpec("y", 0, 1), ActionSpec("h", gripper=True)),
             30.0, ("ball",), ((-1, -1, 0), (1, 1, 2))),
        (3, 2),
    ),
    "only grippers": (Spec((CAMERA,), HAND, (ActionSpec("g", gripper=True),), 10.0), ()),
}  # fmt: skip


@pytest.mark.parametrize("decode", ["parallel", "autoregressive"])
@pytest.mark.parametrize("name", ROBOTS)
def test_any_robot_is_imagined(make_world, name, decode):
    """Catches a count of cameras, grippers, dimensions or keypoints that is still taken for granted."""
    spec, coefs = ROBOTS[name]
    model = make_world(spec, coefs)
    rng = np.random.default_rng(0)
    images = {c.name: rng.integers(0, 256, (c.height, c.width, 3), np.uint8) for c in spec.cameras}
    obs = Observation(images, rng.uniform(0, 1, len(spec.state)).astype(np.float32))
    chunk = np.broadcast_to(spec.rest, (8, len(spec.action)))
    cache = model.prefill([History((1,), ((obs, None),)), History((2,), ((obs, chunk), (obs, None)))])
    actions = model.propose(cache, 3, 1.0, [torch.Generator().manual_seed(i) for i in range(2)])
    low, high = torch.from_numpy(spec.action_low), torch.from_numpy(spec.action_high)
    assert actions.shape == (2, 3, 8, len(spec.action)) and (low <= actions).all() and (actions <= high).all()
    for i in spec.grippers:
        assert ((actions[..., i] == low[i]) | (actions[..., i] == high[i])).all()

    future = model.imagine(cache, actions[:, :, None], decode, follow=1)
    assert future.value.shape == (2, 3, 2) and torch.isfinite(future.value).all()
    assert future.image_ids.shape[-1] == sum(c.height * c.width // 64 for c in spec.cameras)
    assert future.state.shape == (2, 3, 2, len(spec.state)) and future.keypoints.shape[3:] == (len(spec.keypoints), 3)
    assert (future.uncertainty > 0).all() == bool(spec.state or spec.keypoints)
    frames = {name: tuple(images.shape) for name, images in model.decode_frames(future[1]).items()}
    assert frames == {c.name: (3, 2, c.height, c.width, 3) for c in spec.cameras}


def test_uncertainty_is_in_metres_where_there_are_positions(make_world):
    """Catches shares of a range, radians or newtons added to metres."""
    spec = Spec((CAMERA,), (StateSpec("torque", 0, 9), *HAND), (ActionSpec("x"),), 5.0)
    state_std = torch.tensor([[255.0, 255 / 2, 0, 0]])  # bins
    assert make_world(spec, (2,))._uncertainty(state_std, None).item() == 1.0  # half of two metres
    spec = replace(spec, state=(StateSpec("torque", 0, 9), StateSpec("elbow", -3, 3, "rad")))
    torch.testing.assert_close(make_world(spec, (2,))._uncertainty(state_std[:, :2], None), torch.tensor([1.25]).sqrt())


def test_parts_of_different_robots_are_refused(world, make_world):
    """Catches a tokenizer of another camera or another arm under a model."""
    action = (*world.spec.action[:-1], ActionSpec("grip", 0, 1, gripper=True))
    arm = make_world(replace(world.spec, action=action), (1,) * 6)
    eye = make_world(replace(world.spec, cameras=(CAMERA, CameraSpec("b", 8, 8))), (1,) * 6)
    with pytest.raises(ValueError, match="codes ranges and grippers"):
        WorldModel(world.config, world.spec, world.vocab, world.frame_tokenizer, arm.actions)
    with pytest.raises(ValueError, match="image tokenizer is of the cameras"):
        WorldModel(world.config, world.spec, world.vocab, eye.frame_tokenizer, world.actions)


@pytest.mark.filterwarnings("ignore:Dynamo detected a call to a")
def test_imagining_is_one_graph(make_world):
    """Catches a branch on a value, an `.item()` or a copy to the host, for which a GPU would have to wait."""
    model = make_world(*ROBOTS["a gripper in front, joints in rad"])
    spec = model.spec
    images = {c.name: np.zeros((c.height, c.width, 3), np.uint8) for c in spec.cameras}
    obs, chunk = Observation(images, np.zeros(1, np.float32)), np.zeros((8, 2), np.float32)
    cache = model.prefill([History((1,), ((obs, None),)), History((2,), ((obs, chunk), (obs, None)))])
    actions = torch.rand(2, 3, 1, 8, 2)

    taught_without_images(model)

    def search(actions: torch.Tensor) -> torch.Tensor:
        further, nearer = model.imagine(cache, actions, follow=1), model.imagine(cache, actions, images=False)
        return torch.cat([further.value, nearer.value], dim=-1)

    with torch.inference_mode():
        compiled = torch.compile(search, fullgraph=True, backend="eager")(actions)
    torch.testing.assert_close(compiled, search(actions))
