import itertools
import math

import pytest
import torch

from world_model.tokens.actions import ZERO_BIN, ActionTokenizer, cosine_basis, expected_bin, median_bin

CHUNK = 8


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
    tokenizer = ActionTokenizer.fit(chunks)
    error = tokenizer.round_trip_error(chunks)
    assert error.pose_rms < 0.03 and max(error.rms[:3]) < 0.02 and error.clipped < 0.01
    assert error.gripper_wrong == 0
    codes = tokenizer.encode(chunks.reshape(5, 100, CHUNK, 7))
    assert codes.shape == (5, 100, tokenizer.num_ids) == (5, 100, 15)
    assert codes.min() >= 0 and codes.max() < 256 and codes[..., -1].max() < tokenizer.gripper_size


def test_codes_are_stable():
    """Catches a code that moves when it is decoded and encoded again: plans that drift by themselves."""
    tokenizer = ActionTokenizer.create()
    codes = tokenizer.encode(smooth_chunks(200))
    assert torch.equal(tokenizer.encode(tokenizer.decode(codes)), codes)


def test_standing_still_is_exact():
    """Catches a drift of half a bin when the robot is told to wait."""
    still = torch.zeros(CHUNK, 7)
    still[:, -1] = 1
    tokenizer = ActionTokenizer.create()
    assert (tokenizer.encode(still)[:-1] == ZERO_BIN).all()
    assert torch.equal(tokenizer.decode(tokenizer.encode(still)), still)


def test_gripper_with_at_most_one_switch_is_exact_and_others_are_nearest():
    """Catches an off-by-one in the switching step: a cloth let go of one step late or early."""
    tokenizer = ActionTokenizer.create()
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
    tokenizer = ActionTokenizer.create()
    codes = tokenizer.encode(smooth_chunks(20))
    coef_probs = torch.nn.functional.one_hot(codes[..., :-1], 256).float()
    gripper_probs = torch.nn.functional.one_hot(codes[..., -1], tokenizer.gripper_size).float()
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
    tokenizer = ActionTokenizer.create()
    gripper = torch.zeros(16)
    gripper[7] = 0.3  # open throughout
    gripper[0:3] = 0.7 / 3  # closing after 1, 2 or 3 steps
    coefs = torch.nn.functional.one_hot(torch.full((tokenizer.num_coefs,), 128), 256).float()
    signs = tokenizer.decode_median(coefs, gripper)[:, -1]
    assert signs.tolist() == [-1, -1, -1, 1, 1, 1, 1, 1]


def test_decoded_actions_stay_legal():
    """Catches random codes that decode to commands outside [-1, 1]."""
    tokenizer = ActionTokenizer.create()
    codes = torch.randint(0, 16, (100, tokenizer.num_ids)) * 16
    assert tokenizer.decode(codes).abs().max() <= 1


def test_bad_chunks_are_refused():
    """Catches NaN turning into a valid code, and a chunk of another action space."""
    tokenizer = ActionTokenizer.create()
    with pytest.raises(ValueError, match="NaN"):
        tokenizer.encode(torch.full((CHUNK, 7), torch.nan))
    with pytest.raises(ValueError, match="chunk must be"):
        tokenizer.encode(torch.zeros(CHUNK, 6))
    with pytest.raises(ValueError, match="15 ids"):
        tokenizer.decode(torch.zeros(3, 14))
    with pytest.raises(ValueError, match="coefs"):
        ActionTokenizer(CHUNK, (9,), (1.0,) * 9)


def test_json_round_trip():
    """Catches bins that shift between saving and loading."""
    tokenizer = ActionTokenizer.fit(smooth_chunks(100))
    assert ActionTokenizer.from_json(tokenizer.to_json()) == tokenizer
    with pytest.raises(ValueError, match="not an action tokenizer"):
        ActionTokenizer.from_json("{}")
