import itertools
import math

import pytest
import torch

from envs.sim.table import SPEC
from envs.types import ActionSpec, CameraSpec, Spec
from world_model.tokens.actions import (
    ZERO_BIN,
    ActionTokenizer,
    cosine_basis,
    expected_bin,
    median_bin,
    scale_codes,
)

CHUNK = 8
COEFS = (4, 4, 4, 0, 0, 2)


def robot(*action: ActionSpec) -> Spec:
    return Spec((CameraSpec("front", 16, 16),), (), action, 10.0)


def smooth_chunks(count: int, seed: int = 0) -> torch.Tensor:
    """Chunks like those of a moving arm: an offset and a slow bend in the coded dimensions, a steady gripper."""
    rng = torch.Generator().manual_seed(seed)
    time = torch.linspace(0, 1, CHUNK)[:, None]
    offset, bend = (torch.rand(2, count, 1, 7, generator=rng) - 0.5).unbind(0)
    chunks = offset + bend * torch.cos(math.pi * time)
    chunks[..., 3:5] = 0
    chunks[..., 6] = torch.where(offset[..., 0, :1] > 0, 1.0, -1.0)
    return chunks


def test_basis_is_orthonormal():
    """Catches a missing factor in the transform, which would scale every decoded action."""
    basis = cosine_basis(CHUNK)
    assert torch.allclose(basis @ basis.T, torch.eye(CHUNK), atol=1e-6)


def test_round_trip_of_smooth_chunks():
    """Catches coefficients of one dimension being decoded into another, and bins too coarse for motion."""
    chunks = smooth_chunks(500)
    tokenizer = ActionTokenizer.fit(chunks, SPEC, COEFS)
    error = tokenizer.round_trip_error(chunks)
    assert error.coded_rms < 0.03 and max(error.rms[:3]) < 0.02 and error.clipped < 0.01
    assert error.gripper_wrong == 0
    codes = tokenizer.encode(chunks.reshape(5, 100, CHUNK, 7))
    assert codes.shape == (5, 100, tokenizer.num_ids) == (5, 100, 15)
    assert codes.min() >= 0 and codes.max() < 256 and codes[..., -1].max() < tokenizer.gripper_size


def test_codes_are_stable():
    """Catches a code that moves when it is decoded and encoded again: plans that drift by themselves."""
    tokenizer = ActionTokenizer.create(SPEC, COEFS)
    codes = tokenizer.encode(smooth_chunks(200))
    assert torch.equal(tokenizer.encode(tokenizer.decode(codes)), codes)


def test_a_few_executed_steps_are_said_as_well_as_a_whole_chunk():
    """Catches a series cut off in the wrong place: two executed control steps would be blurred by what is only held
    after them, and their errors add up over a future of many short model steps."""
    chunks = smooth_chunks(500)
    chunks[:, 1, :3] += 0.2  # a jump within what is executed
    tokenizer = ActionTokenizer.fit(chunks, SPEC, COEFS, (1, 2, 4))
    for n, most in ((1, 0.01), (2, 0.02), (4, 0.09), (8, 0.1)):
        codes = tokenizer.encode(chunks, steps=n)
        off = (tokenizer.decode(codes) - chunks)[:, :n]
        assert off[..., :3].square().mean().sqrt() < most, n
        assert not off[..., 6].any(), "the gripper keeps its command"
        later = chunks.clone()
        later[:, n:] = torch.rand_like(later[:, n:]) - 0.5
        assert torch.equal(tokenizer.encode(later, steps=n), codes), f"{n} steps say what comes after them"
    assert torch.equal(tokenizer.encode(chunks, steps=8), tokenizer.encode(chunks))
    each = torch.arange(500) % 8 + 1
    together = tokenizer.encode(chunks.reshape(5, 100, CHUNK, 7), steps=each.reshape(5, 100)).flatten(0, 1)
    assert all(torch.equal(together[each == n], tokenizer.encode(chunks[each == n], steps=n)) for n in range(1, 9))


def test_standing_still_is_exact():
    """Catches a drift of half a bin when the robot is told to wait."""
    still = torch.zeros(CHUNK, 7)
    still[:, -1] = 1
    tokenizer = ActionTokenizer.create(SPEC, COEFS)
    assert (tokenizer.encode(still)[:-1] == ZERO_BIN).all()
    assert torch.equal(tokenizer.decode(tokenizer.encode(still)), still)


def test_gripper_with_at_most_one_switch_is_exact_and_others_are_nearest():
    """Catches an off-by-one in the switching step: a cloth let go of one step late or early."""
    tokenizer = ActionTokenizer.create(SPEC, COEFS)
    every = torch.tensor(list(itertools.product([-1.0, 1.0], repeat=CHUNK)))
    chunks = torch.zeros(len(every), CHUNK, 7)
    chunks[..., -1] = every
    decoded = tokenizer.decode(tokenizer.encode(chunks))[..., -1]
    switches = (every[:, 1:] != every[:, :-1]).sum(1)
    assert torch.equal(decoded[switches <= 1], every[switches <= 1])
    simple = every[switches <= 1]
    nearest = (every[:, None] != simple).sum(-1).min(1).values
    assert torch.equal((decoded != every).sum(1), nearest)
    tie = torch.zeros(CHUNK, 7)  # staying open and closing for the first four steps are both two steps off
    tie[:, -1] = torch.tensor([-1.0, -1, 1, 1, -1, -1, -1, -1])
    assert (tokenizer.decode(tokenizer.encode(tie))[:, -1] == -1).all(), "what is executed first must win"


def test_expected_bin_is_finer_than_the_mode():
    """Catches the mean over two modes, which is an action that nobody proposed."""
    bins = torch.arange(256.0)
    near, far = (torch.exp(-((bins - at) ** 2) / (2 * 1.2**2)) for at in (100.4, 200.0))
    assert abs(expected_bin(near / near.sum()).item() - 100.4) < 0.05
    both = near + 0.8 * far
    assert abs(expected_bin(both / both.sum()).item() - 100.4) < 0.05


def test_decode_median_agrees_with_decode_on_certain_codes():
    """Catches the soft and the hard read-out meaning different actions."""
    tokenizer = ActionTokenizer.create(SPEC, COEFS)
    codes = tokenizer.encode(smooth_chunks(20))
    coef_probs = torch.nn.functional.one_hot(codes[..., :-1], 256).float()
    gripper_probs = torch.nn.functional.one_hot(codes[..., -1:], tokenizer.gripper_size).float()
    assert torch.allclose(tokenizer.decode_median(coef_probs, gripper_probs), tokenizer.decode(codes), atol=1e-5)


def test_an_agent_moves_when_most_would():
    """Catches standing still because experts that wait all say the same bin: it is the likeliest, and unlikely."""
    probs = torch.zeros(256)
    probs[128] = 0.3
    probs[20:90] = 0.7 / 70
    assert 60 < median_bin(probs).item() < 90
    probs[128] = 1.5
    assert 127.5 <= median_bin(probs).item() <= 128.5
    certain = torch.nn.functional.one_hot(torch.tensor([0, 255, 17]), 256).float()
    torch.testing.assert_close(median_bin(certain), torch.tensor([0.0, 255.0, 17.0]))


def test_the_gripper_goes_with_the_majority():
    """Catches jaws that stay open because "never" is one code and "soon" is many."""
    tokenizer = ActionTokenizer.create(SPEC, COEFS)
    gripper = torch.zeros(16)
    gripper[7] = 0.3  # open throughout
    gripper[0:3] = 0.7 / 3  # closing after 1, 2 or 3 steps
    coefs = torch.nn.functional.one_hot(torch.full((tokenizer.num_coefs,), 128), 256).float()
    signs = tokenizer.decode_median(coefs, gripper[None])[:, -1]
    assert signs.tolist() == [-1, -1, -1, 1, 1, 1, 1, 1]


def test_scaled_codes_are_those_of_scaled_chunks():
    """Catches another dimension, or the gripper, that is scaled, and bins that wrap round at the end."""
    chunks = smooth_chunks(50)
    tokenizer = ActionTokenizer.fit(chunks, SPEC, COEFS)
    factor = torch.ones(50, len(SPEC.action))
    factor[:, [0, 1, 5]] = torch.linspace(0.9, 1.1, 50)[:, None]
    ours = scale_codes(tokenizer.encode(chunks), factor, SPEC, COEFS)
    theirs = tokenizer.encode(chunks * factor[:, None])
    off = (ours - theirs).abs()
    assert off.max() <= 1 and off[:, 8:12].max() == 0 and off[:, -1].max() == 0
    assert ours[:, :4].ne(tokenizer.encode(chunks)[:, :4]).any()
    far = scale_codes(tokenizer.encode(chunks)[:, None], 1000 * factor, SPEC, COEFS)[..., : sum(COEFS)]
    assert far.min() == 0 and far.max() == 255


def test_decoded_actions_stay_legal():
    """Catches random codes that decode to commands outside [-1, 1]."""
    tokenizer = ActionTokenizer.create(SPEC, COEFS)
    codes = torch.randint(0, 16, (100, tokenizer.num_ids)) * 16
    assert tokenizer.decode(codes).abs().max() <= 1


def test_bad_chunks_are_refused():
    """Catches NaN turning into a valid code, and a chunk of another action space."""
    tokenizer = ActionTokenizer.create(SPEC, COEFS)
    with pytest.raises(ValueError, match="NaN"):
        tokenizer.encode(torch.full((CHUNK, 7), torch.nan))
    with pytest.raises(ValueError, match="NaN"):
        ActionTokenizer.fit(torch.full((1, CHUNK, 7), torch.nan), SPEC)
    with pytest.raises(ValueError, match="chunk must be"):
        tokenizer.encode(torch.zeros(CHUNK, 6))
    with pytest.raises(ValueError, match="15 ids"):
        tokenizer.decode(torch.zeros(3, 14))
    with pytest.raises(ValueError, match="coefs"):
        ActionTokenizer.create(robot(ActionSpec("x")), (9,))


def test_json_round_trip():
    """Catches bins that shift between saving and loading."""
    tokenizer = ActionTokenizer.fit(smooth_chunks(100), SPEC)
    assert ActionTokenizer.from_json(tokenizer.to_json()) == tokenizer
    with pytest.raises(ValueError, match="not an action tokenizer"):
        ActionTokenizer.from_json("{}")


def test_grippers_stand_anywhere():
    """Catches a gripper taken for motion, or the command of one hand given to the other."""
    spec = robot(ActionSpec("open", 0, 85, gripper=True), ActionSpec("x"), ActionSpec("shut", gripper=True))
    chunks = torch.zeros(16, CHUNK, 3)
    chunks[..., 1] = torch.linspace(-0.5, 0.5, CHUNK)
    for i in range(16):
        chunks[i, :, 0] = 85.0 * (torch.arange(CHUNK) > i % 8)
        chunks[i, :, 2] = 1.0 - 2 * (torch.arange(CHUNK) > i // 2)
    tokenizer = ActionTokenizer.fit(chunks, spec)
    codes = tokenizer.encode(chunks)
    assert codes.shape == (16, tokenizer.num_coefs + 2) and tokenizer.num_grippers == 2
    decoded = tokenizer.decode(codes)
    assert torch.equal(decoded[..., [0, 2]], chunks[..., [0, 2]])
    torch.testing.assert_close(decoded[..., 1], chunks[..., 1], atol=0.05, rtol=0)
    coefs, grippers = codes.split([tokenizer.num_coefs, 2], dim=-1)
    one_hot = torch.nn.functional.one_hot
    soft = tokenizer.decode_median(one_hot(coefs, 256).float(), one_hot(grippers, 16).float())
    torch.testing.assert_close(soft, decoded, atol=1e-4, rtol=1e-4)


def test_without_grippers_or_with_grippers_alone():
    """Catches a code that needs both kinds of dimensions."""
    arm = ActionTokenizer.create(robot(ActionSpec("x"), ActionSpec("y")), (3, 2))
    chunks = torch.full((2, CHUNK, 2), 0.25)
    assert arm.num_grippers == 0 and arm.encode(chunks).shape == (2, 5)
    torch.testing.assert_close(arm.decode(arm.encode(chunks)), chunks, atol=0.01, rtol=0)
    assert arm.decode_median(torch.rand(2, 5, 256), torch.rand(2, 0, 16)).shape == chunks.shape
    assert arm.round_trip_error(chunks).gripper_wrong == 0
    hand = ActionTokenizer.fit(torch.ones(4, CHUNK, 1), robot(ActionSpec("g", gripper=True)))
    assert hand.num_ids == 1 and torch.equal(hand.decode(hand.encode(torch.ones(CHUNK, 1))), torch.ones(CHUNK, 1))
    with pytest.raises(ValueError, match="no dimension moves and there is no gripper"):
        ActionTokenizer.fit(torch.zeros(4, CHUNK, 1), robot(ActionSpec("x")))


def test_actions_stay_in_the_robots_units():
    """Catches an arm that is commanded in shares of its range, or a range taken from another dimension."""
    spec = robot(ActionSpec("joint", -3.0, 3.0), ActionSpec("speed", 0.0, 250.0), ActionSpec("tilt", 10.0, 11.0))
    time = torch.linspace(0, math.pi, CHUNK)
    chunks = torch.stack([2 * torch.cos(time), 100 + 50 * torch.cos(time), 10.5 + 0.3 * torch.cos(time)], -1)
    chunks = torch.stack([chunks, chunks.flip(0)])
    tokenizer = ActionTokenizer.fit(chunks, spec)
    off = (tokenizer.decode(tokenizer.encode(chunks)) - chunks).abs().amax((0, 1))
    assert (off < torch.tensor([3.0, 125.0, 0.5]) * 0.06).all()
    wild = torch.randint(0, 256, (200, tokenizer.num_ids))
    decoded = tokenizer.decode(wild)
    assert (decoded >= torch.tensor([-3.0, 0, 10])).all() and (decoded <= torch.tensor([3.0, 250, 11])).all()


def test_a_dimension_gets_the_coefficients_that_it_needs():
    """Catches motion that the code cannot say, and ids spent on what never moves."""
    rng, n = torch.Generator().manual_seed(0), 400
    basis = cosine_basis(CHUNK)
    level = torch.randn(n, generator=rng) * 0.1
    bend = torch.randn(n, generator=rng) * 0.1
    chunks = torch.zeros(n, CHUNK, 7)
    chunks[..., 0] = level[:, None] * basis[0]  # constant within a chunk
    chunks[..., 1] = level[:, None] * basis[0] + bend[:, None] * basis[3]
    chunks[..., 2] = level[:, None] * basis[0] + 0.05 * bend[:, None] * basis[3]  # a quarter per cent of it
    chunks[..., 3] = (torch.randn(n, CHUNK, generator=rng) * 0.1).clamp(-1, 1)  # shakes
    chunks[..., 4] = 0.37  # held
    chunks[..., 5] = 0.9 + level[:, None] * 0.01 * basis[0]  # moves a little about a place of its own
    chunks[..., 6] = 1
    tokenizer = ActionTokenizer.fit(chunks, SPEC)
    assert tokenizer.coefs == (1, 4, 1, 8, 0, 1)
    assert (tokenizer.decode(tokenizer.encode(chunks))[..., 4] == chunks[..., 4]).all()
    lost = (tokenizer.decode(tokenizer.encode(chunks)) - chunks)[..., :4].square().mean((0, 1)) / 0.01 * CHUNK
    assert lost.max() < 0.05


def test_a_dimension_that_would_be_lost_is_named():
    """Catches a robot that never turns its wrist because somebody else's coefficients were taken over."""
    chunks = smooth_chunks(50)
    chunks[:, 3, 4] = 0.5
    with pytest.raises(ValueError, match="keeps nothing of dry, which moves"):
        ActionTokenizer.fit(chunks, SPEC, COEFS)
    with pytest.raises(ValueError, match="each of 6 dimensions"):
        ActionTokenizer.fit(smooth_chunks(50), SPEC, (4, 4))
    with pytest.raises(ValueError, match="finite range"):
        ActionTokenizer.create(robot(ActionSpec("x", -math.inf, math.inf)), (4,))


def test_the_code_of_the_shipped_checkpoints_is_expressible():
    """Catches a change of the code under weights that were trained with it."""
    old = ActionTokenizer(CHUNK, (-1.0,) * 7, (1.0,) * 7, (6,), COEFS, (0.5,) * 14, (0.0,) * 6)
    assert ActionTokenizer.from_json(old.to_json()) == old
    assert torch.equal(old.decode(torch.full((15,), ZERO_BIN))[:, 3:6], torch.zeros(CHUNK, 3))
