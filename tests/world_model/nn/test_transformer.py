"""The transformer alone: what sees what, and that the cache changes nothing."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from world_model.nn.transformer import (
    KV,
    RMSNorm,
    Segment,
    Transformer,
    TransformerConfig,
    attend,
    join,
    rotary,
    rotate,
)  # fmt: skip

CONFIG = TransformerConfig(width=32, num_layers=2, num_heads=4, num_kv_heads=2, hidden=64)
VOCAB = 50


@pytest.fixture
def transformer():
    torch.manual_seed(0)
    return Transformer(CONFIG, VOCAB)


def ids(batch: int = 2, length: int = 12, seed: int = 0) -> torch.Tensor:
    return torch.randint(VOCAB, (batch, length), generator=torch.Generator().manual_seed(seed))


def test_cached_equals_uncached(transformer):
    """Catches wrong positions, a mask off by one, or a cache that forgets."""
    x, places = transformer.embed(ids()), torch.arange(12)
    whole, _ = transformer(x, places)
    past, parts = (), []
    for start, stop in ((0, 5), (5, 6), (6, 12)):
        h, new = transformer(x[:, start:stop], places[start:stop], None, past)
        past = (*past, new)
        parts.append(h)
    torch.testing.assert_close(torch.cat(parts, dim=1), whole, atol=1e-5, rtol=1e-4)


def test_segments_equal_one_masked_attention(transformer):
    """Catches a segment that sees too much or too little: the same rule written as one dense mask gives the same."""
    segments = (Segment(4), Segment(3, (0,)), Segment(2, (0, 1), causal=False), Segment(3, (1,), causal=False))
    x, places = transformer.embed(ids()), torch.arange(12)
    mask = torch.zeros(12, 12, dtype=torch.bool)
    starts = [0, 4, 7, 9]
    for i, segment in enumerate(segments):
        rows = slice(starts[i], starts[i] + segment.length)
        for j in segment.sees:
            mask[rows, starts[j] : starts[j] + segments[j].length] = True
        own = torch.ones(segment.length, segment.length, dtype=torch.bool)
        mask[rows, rows] = own.tril() if segment.causal else own
    layer = transformer.layers[0].self_attn
    turn = rotary(places, CONFIG.head_dim, CONFIG.rope_base, x.dtype)
    out, k, v = layer(x, turn, segments, (), None)
    q = layer.q_norm(layer.q_proj(x).view(2, 12, 4, 8))
    dense = attend(rotate(q.transpose(1, 2), *turn), k, v, mask).transpose(1, 2).reshape(2, 12, 32)
    torch.testing.assert_close(out, layer.o_proj(dense), atol=1e-6, rtol=1e-5)


def test_attend_equals_the_fused_kernel():
    """Catches a wrong scale or heads grouped with the wrong keys in either way to attend on a CPU."""
    torch.manual_seed(0)
    q, k, v = torch.randn(2, 6, 5, 8), torch.randn(2, 3, 9, 8), torch.randn(2, 3, 9, 8)
    mask = torch.ones(5, 9, dtype=torch.bool).tril(4)
    fused = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=True)
    torch.testing.assert_close(attend(q, k, v, mask), fused, atol=1e-6, rtol=1e-5)
    with torch.no_grad():
        torch.testing.assert_close(attend(q, k, v, mask), fused, atol=1e-6, rtol=1e-5)


def test_shared_prefix_serves_every_row(transformer):
    """Catches a cache of one row that is not the same prefix for each of many rows."""
    x = transformer.embed(ids(3))
    _, prefix = transformer(x[:1, :6], torch.arange(6))
    together, _ = transformer(x[:, 6:], torch.arange(6, 12), None, (prefix,))
    for row in range(3):
        alone, _ = transformer(x[row : row + 1, 6:], torch.arange(6, 12), None, (prefix,))
        torch.testing.assert_close(together[row : row + 1], alone, atol=1e-5, rtol=1e-4)


def test_a_cache_of_some_rows_serves_as_many_each(transformer):
    """Catches candidates of one robot that read the past of another."""
    x = transformer.embed(ids(6))
    _, pasts = transformer(x[:2, :6], torch.arange(6))
    places = torch.stack([torch.arange(6, 12), torch.arange(16, 22)])  # each robot stands elsewhere in time
    together, new = transformer(x[:, 6:], places, None, (pasts,))
    assert join((pasts, new), 6).rows == 6
    for row in range(6):
        robot = row // 3
        _, past = transformer(x[robot : robot + 1, :6], torch.arange(6))
        alone, _ = transformer(x[row : row + 1, 6:], places[robot], None, (past,))
        torch.testing.assert_close(together[row : row + 1], alone, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
@torch.no_grad()
def test_padding_is_seen_by_nobody(transformer, precision):
    """Catches padding that leaks into what is read, through any layer, and a NaN from ids that see only padding."""
    x = transformer.embed(ids())
    mask = torch.ones(2, 12, dtype=torch.bool)
    mask[1, 3:7] = False
    places = torch.arange(12).repeat(2, 1)
    places[1, 7:] -= 4
    with torch.autocast("cpu", precision, enabled=precision != torch.float32):
        h, kv = transformer(x, places, mask=mask)
        after, _ = transformer(x[:, :2], places[:, -1:] + torch.arange(1, 3), None, (kv,))
        short = torch.cat([x[1:, :3], x[1:, 7:]], dim=1)
        alone, short_kv = transformer(short, torch.arange(8))
        after_alone, _ = transformer(x[1:, :2], torch.arange(8, 10), None, (short_kv,))
        _, remembered = transformer(x, places, mask=mask, first=1)
    tolerance = {"atol": 1e-5, "rtol": 1e-4} if precision == torch.float32 else {"atol": 0.05, "rtol": 0.05}
    torch.testing.assert_close(h[1, 7:], alone[0, 3:], **tolerance)
    torch.testing.assert_close(after[1:], after_alone, **tolerance)
    assert torch.isfinite(h).all()
    assert all(torch.equal(a, b) for a, b in zip(remembered.keys, kv.keys, strict=True))
    assert torch.equal(join((remembered.part(2, 9), kv), 2).mask, torch.cat([mask[:, 2:9], mask], dim=1))


@torch.no_grad()
def test_reading_less_gives_the_same(transformer):
    """Catches a last layer that computes other hidden states, keys or values where only some segments are read."""
    x, places, segments = transformer.embed(ids()), torch.arange(4, 12), (Segment(3), Segment(5, (0,), causal=False))
    _, past = transformer(x[:1, :4], torch.arange(4))
    whole, kv = transformer(x[:, 4:], places, segments, (past,))
    for first, start in ((1, 3), (2, 8)):  # the second segment alone, and none
        h, same = transformer(x[:, 4:], places, segments, (past,), first=first)
        assert h.shape == (2, 8 - start, CONFIG.width)
        torch.testing.assert_close(h, whole[:, start:], atol=1e-6, rtol=1e-5)
        for a, b in zip((*kv.keys, *kv.values), (*same.keys, *same.values), strict=True):
            assert torch.equal(a, b)


@pytest.mark.parametrize("heads", [(4, 2), (4, 4), (4, 1)])
@torch.no_grad()
def test_one_id_sees_a_cache_in_parts(heads):
    """Catches scores that reach the wrong row, head or part: an id that reads a shared and an own part says what it
    says after one cache of both."""
    torch.manual_seed(0)
    transformer = Transformer(replace(CONFIG, num_heads=heads[0], num_kv_heads=heads[1]), VOCAB)
    x = transformer.embed(ids(6))
    _, shared = transformer(x[:2, :4], torch.arange(4))
    _, own = transformer(x[:, 4:11], torch.arange(4, 11), None, (shared,))
    expected, _ = transformer(x[:, 4:], torch.arange(4, 12), None, (shared,))
    h, _ = transformer(x[:, 11:], torch.arange(11, 12), None, (shared, own.part(0, 3), own.part(3, 7)))
    torch.testing.assert_close(h[:, 0], expected[:, -1], atol=1e-5, rtol=1e-4)


def test_kv_is_written_only_where_it_was_allocated(transformer):
    """Catches `join`, `part` or `allocate` that share memory with what they were given, and a `write` that misses its
    place."""
    _, kv = transformer(transformer.embed(ids(1)), torch.arange(12))
    before = [k.clone() for k in kv.keys]
    wider = KV(*(tuple(t.expand(3, -1, -1, -1) for t in part) for part in (kv.keys, kv.values)))
    longer = join((kv.part(0, 4), wider), 3)
    assert len(longer) == 16 and longer.rows == 3 and isinstance(longer, KV)
    longer.keys[0].zero_()
    room = kv.allocate(3, 20)
    room.write(5, kv)
    assert room.rows == 3 and len(room) == 20
    assert all(torch.equal(a[:, :, 5:17], b.expand(3, -1, -1, -1)) for a, b in zip(room.keys, kv.keys, strict=True))
    room.keys[0].zero_()
    assert all(torch.equal(a, b) for a, b in zip(kv.keys, before, strict=True))


def test_logits_of_a_block_are_those_of_the_vocabulary(transformer):
    """Catches a head that reads the wrong rows."""
    h, _ = transformer(transformer.embed(ids()), torch.arange(12))
    torch.testing.assert_close(transformer.logits(h, slice(7, 20)), transformer.logits(h, slice(0, VOCAB))[..., 7:20])


def test_parameter_names_are_those_of_llama(transformer):
    """Catches a renamed parameter: weights must move one to one to and from Qwen3 of `transformers`."""
    names = {name for name, _ in transformer.named_parameters()}
    layer = {"input_layernorm", "post_attention_layernorm", "self_attn.q_norm", "self_attn.k_norm", "mlp.gate_proj",
             "mlp.up_proj", "mlp.down_proj", *(f"self_attn.{p}_proj" for p in "qkvo")}  # fmt: skip
    expected = {f"layers.{i}.{name}.weight" for i in range(2) for name in layer}
    assert names == expected | {"embed_tokens.weight", "norm.weight"}


def test_head_dim_of_its_own():
    """Catches heads that are still cut from the width, and a configuration of before that no longer loads."""
    sizes = {"width": 32, "num_layers": 2, "num_heads": 4, "num_kv_heads": 2, "hidden": 64}
    assert TransformerConfig(**sizes) == TransformerConfig(**sizes, head_dim=8)
    wide = Transformer(TransformerConfig(**sizes, head_dim=24), VOCAB)
    assert wide.layers[0].self_attn.q_proj.weight.shape == (96, 32)
    assert wide.layers[0].self_attn.o_proj.weight.shape == (32, 96)
    h, kv = wide(wide.embed(ids()), torch.arange(12))
    assert h.shape == (2, 12, 32) and kv.keys[0].shape == (2, 2, 12, 24)
    TransformerConfig(width=32, num_heads=3, num_kv_heads=3, head_dim=16)  # the width need not split into heads
    with pytest.raises(ValueError, match="head_dim 7 must be even"):
        TransformerConfig(width=32, num_heads=4, num_kv_heads=2, head_dim=7)


def test_shape_errors_name_the_shape(transformer):
    """Catches a wrong shape that would broadcast or fail deep inside."""
    x = transformer.embed(ids())
    with pytest.raises(ValueError, match=r"positions \(12,\) or \(R, 12\).*got \(5,\)"):
        transformer(x, torch.arange(5))
    with pytest.raises(ValueError, match=r"\[3, 4\] do not add up to the 12"):
        transformer(x, torch.arange(12), (Segment(3), Segment(4)))
    _, kv = transformer(x, torch.arange(12))
    with pytest.raises(ValueError, match="2 rows cannot serve a batch of 3"):
        transformer(transformer.embed(ids(3)), torch.arange(12), None, (kv,))
    with pytest.raises(ValueError, match="multiple of num_kv_heads"):
        TransformerConfig(num_heads=6, num_kv_heads=4)


def test_rms_norm_in_few_passes_is_torchs():
    """Catches a wrong gradient of the hand-written one, of which everything that is trained on a CPU is made."""
    torch.manual_seed(0)
    x, weight = torch.randn(3, 4, 5, 16, requires_grad=True), torch.randn(16, requires_grad=True)
    norm = RMSNorm(16, 1e-5)
    norm.weight = torch.nn.Parameter(weight.detach())
    torchs, ours = F.rms_norm(x, (16,), weight, 1e-5), norm(x)
    torch.testing.assert_close(ours, torchs)
    grad = torch.randn_like(x)
    of_x, of_weight = torch.autograd.grad(torchs, (x, weight), grad)
    again_x, again_weight = torch.autograd.grad(ours, (x, norm.weight), grad)
    torch.testing.assert_close(again_x, of_x)
    torch.testing.assert_close(again_weight, of_weight)
    tiny = norm(torch.full((2, 16), 1e-12))
    assert torch.isfinite(tiny).all()
    half = norm(x.to(torch.bfloat16))
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), torchs, rtol=0.02, atol=0.02)
