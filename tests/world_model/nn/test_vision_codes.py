import pytest
import torch

from world_model.nn.vision_codes import VisionCodes

LEVELS = (5, 3, 4)
SIZE = 60


@pytest.fixture(params=[LEVELS, (SIZE,)], ids=["digits", "rows"])
def codes(request) -> VisionCodes:
    torch.manual_seed(0)
    codes = VisionCodes(request.param, torch.randn(sum(request.param), 3), width=16, copy_bias=1.0)
    torch.nn.init.normal_(codes.rows)
    torch.nn.init.normal_(codes.gate.weight)
    return codes


def everything(codes: VisionCodes) -> torch.Tensor:
    """The row of every id, (SIZE, width)."""
    return codes.embed(torch.arange(SIZE))


def test_digits_and_ids_are_inverse():
    """Catches two ids that share all digits, or digits of another order than the quantizer's."""
    codes = VisionCodes(LEVELS, torch.zeros(12, 3), width=4, copy_bias=0.0)
    ids = torch.arange(SIZE).view(6, 10)
    digits = codes.digits(ids)
    assert (digits < torch.tensor(LEVELS)).all() and len(digits.flatten(0, 1).unique(dim=0)) == SIZE
    assert torch.equal(codes.ids(digits), ids) and codes.digits(torch.tensor(1)).tolist() == [1, 0, 0]


def test_it_is_the_softmax_over_the_whole_table(codes):
    """Catches a product of digits that is not the distribution that the rows mean."""
    h = torch.randn(7, 16)
    expected = (h @ everything(codes).T).log_softmax(-1)  # (7, SIZE)
    found = codes.read(h[:, None].expand(-1, SIZE, -1)).log_prob(torch.arange(SIZE).expand(7, -1))
    torch.testing.assert_close(found, expected)
    assert torch.equal(codes.read(h).best(), expected.argmax(-1))


def test_an_edit_is_a_mixture_of_staying_and_the_softmax(codes):
    """Catches probabilities that do not add up to one, and a `best` or a mean that forgets the id that is there."""
    h, current = torch.randn(40, 16), torch.arange(40)
    stays = codes.gate(h)[:, 0].sigmoid()
    expected = (1 - stays[:, None]) * (h @ everything(codes).T).softmax(-1)
    expected[torch.arange(40), current] += stays
    edit = codes.read(h, current)
    ids = edit.best()
    assert torch.equal(ids, expected.argmax(-1)) and 0 < (ids == current).float().mean() < 1
    target = (current + 1) % SIZE
    torch.testing.assert_close(edit.log_prob(target).exp(), expected[torch.arange(40), target])
    latents = torch.nn.functional.embedding_bag(
        codes.digits(torch.arange(SIZE)) + codes.starts, codes.latents, mode="sum"
    )
    torch.testing.assert_close(edit.mean_latents(), expected @ latents)


def test_codes_that_are_near_start_near():
    """Catches an initialization in which neighbouring steps of a quantizer are strangers."""
    torch.manual_seed(0)
    latents = torch.linspace(-1, 1, 8)[:, None]
    rows = VisionCodes((8,), latents, width=192, copy_bias=0.0).embed(torch.arange(8))
    near = torch.nn.functional.cosine_similarity(rows[0], rows[1], dim=0)
    far = torch.nn.functional.cosine_similarity(rows[0], rows[7], dim=0)
    assert near > 0.4 and far < 0
