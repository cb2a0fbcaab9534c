"""What candidates are made from: the smooth basis, the rest of a last plan, what follows a chunk."""

import torch

from agent.planning.candidates import ActionSpace, as_chunks, dct_basis, in_shorter_steps, shift
from tests.robots import UNEVEN, aim

M = 8


def test_dct_is_orthonormal():
    """Catches a basis that changes the size of the noise with frequency."""
    basis = dct_basis(M)
    torch.testing.assert_close(basis @ basis.T, torch.eye(M), atol=1e-5, rtol=0)


def test_shift_moves_the_plan_on():
    """Catches a warm start that repeats what was already done."""
    future = torch.arange(2 * M).float()[:, None].expand(-1, 3).reshape(1, 2, M, 3)
    moved = shift(torch.cat([future, 100 + future]), 2, M)
    assert moved[0].flatten(0, 1)[:, 0].tolist() == [*range(2, 16), 15, 15]
    assert moved[1].flatten(0, 1)[:, 0].tolist() == [*range(102, 116), 115, 115]


def test_shorter_steps_execute_the_same():
    """Catches a film of a candidate that shows other actions than the candidate's, or some of them twice."""
    flat = torch.arange(4 + M).float()[None, :, None].expand(2, -1, 3)
    plans = as_chunks(flat, M, 4)  # two model steps, of which 4 control steps are executed
    finer = in_shorter_steps(plans, 4, 2)
    assert finer.shape == (2, 4, M, 3)
    assert finer[0, :, :2, 0].flatten().tolist() == [*range(8)] == plans[0, :, :4, 0].flatten().tolist()
    assert finer[0, -1, :, 0].tolist() == [*range(6, 4 + M), 3 + M, 3 + M], "what follows is the last chunk's"


def test_what_follows_a_chunk_is_rest_with_the_last_grip():
    """Catches an arm that goes on moving in the second model step, or a hand that lets go there."""
    space = ActionSpace.of(UNEVEN, 4, M)
    chunk = aim(UNEVEN, M).clone()
    chunk[:, 0], chunk[:, 3] = 0.08, 0.0
    held = space.hold(chunk[None], 3, M)
    assert held.shape == (1, 3, M, 4) and torch.equal(held[0, 0], chunk)
    torch.testing.assert_close(held[0, 1:], torch.tensor([0.08, 0.0, 2.0, 0.0]).expand(2, M, 4))


def test_short_model_steps_go_on_within_one_chunk():
    """Catches a second model step that begins anew, or rests, where the first chunk still says what to do; and a plan
    that is moved on otherwise than it was laid out."""
    space = ActionSpace.of(UNEVEN, 4, M)
    chunk = aim(UNEVEN, M).clone()
    chunk[:, 1] = 0.1 * torch.arange(M)
    held = space.hold(chunk[None], 3, 2)
    torch.testing.assert_close(held[0, 1, : M - 2], chunk[2:])
    torch.testing.assert_close(held[0, 2, : M - 4], chunk[4:])
    assert not held[0, 2, M - 4 :, 1].any()
    flat = torch.arange(2 * 2 + M).float()[:, None]
    (moved,) = shift(as_chunks(flat, M, 2)[None], 2, 2)
    assert moved[..., 0].tolist() == [[*range(2, 10)], [*range(4, 12)], [*range(6, 12), 11, 11]]
