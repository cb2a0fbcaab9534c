"""The transformer alone: what sees what, and that the cache changes nothing."""

import pytest
import torch

from world_model.nn.transformer import KV, Piece, Transformer, TransformerConfig, attend, rotary, rotate

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
    past, parts = None, []
    for start, stop in ((0, 5), (5, 6), (6, 12)):
        h, new = transformer(x[:, start:stop], places[start:stop], None, past)
        past = new if past is None else past.then(new)
        parts.append(h)
    torch.testing.assert_close(torch.cat(parts, dim=1), whole, atol=1e-5, rtol=1e-4)


def test_pieces_equal_one_masked_attention(transformer):
    """Catches a piece that sees too much or too little: the same rule written as one dense mask gives the same."""
    pieces = (Piece(4), Piece(3, (0,)), Piece(2, (0, 1), causal=False), Piece(3, (1,), causal=False))
    x, places = transformer.embed(ids()), torch.arange(12)
    mask = torch.zeros(12, 12, dtype=torch.bool)
    starts = [0, 4, 7, 9]
    for i, piece in enumerate(pieces):
        rows = slice(starts[i], starts[i] + piece.length)
        for j in piece.sees:
            mask[rows, starts[j] : starts[j] + pieces[j].length] = True
        own = torch.ones(piece.length, piece.length, dtype=torch.bool)
        mask[rows, rows] = own.tril() if piece.causal else own
    layer = transformer.layers[0].self_attn
    turn = rotary(places, CONFIG.head_dim, CONFIG.rope_base, x.dtype)
    out, k, v = layer(x, turn, pieces, None)
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
    together, _ = transformer(x[:, 6:], torch.arange(6, 12), None, prefix)
    for row in range(3):
        alone, _ = transformer(x[row : row + 1, 6:], torch.arange(6, 12), None, prefix)
        torch.testing.assert_close(together[row : row + 1], alone, atol=1e-5, rtol=1e-4)


def test_kv_is_a_value(transformer):
    """Catches `then` or `part` writing into what they were given."""
    _, kv = transformer(transformer.embed(ids(1)), torch.arange(12))
    before = [k.clone() for k in kv.keys]
    longer = kv.part(0, 4).then(kv.expand(3))
    assert len(longer) == 16 and longer.rows == 3 and isinstance(longer, KV)
    longer.keys[0].zero_()
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


def test_equals_qwen3_of_transformers(transformer):
    """Catches any other arithmetic than Qwen3's; runs only where `transformers` is installed."""
    hf = pytest.importorskip("transformers")
    config = hf.Qwen3Config(
        vocab_size=VOCAB, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, rms_norm_eps=CONFIG.norm_eps, rope_theta=CONFIG.rope_base,
        tie_word_embeddings=True, attn_implementation="eager",
    )  # fmt: skip
    theirs = hf.Qwen3ForCausalLM(config).eval()
    theirs.load_state_dict({f"model.{k}": v for k, v in transformer.state_dict().items()}, strict=False)
    h, _ = transformer(transformer.embed(ids()), torch.arange(12))
    torch.testing.assert_close(transformer.logits(h, slice(0, VOCAB)), theirs(ids()).logits, atol=1e-4, rtol=1e-3)


def test_shape_errors_name_the_shape(transformer):
    """Catches a wrong shape that would broadcast or fail deep inside."""
    x = transformer.embed(ids())
    with pytest.raises(ValueError, match=r"positions \(12,\), got \(5,\)"):
        transformer(x, torch.arange(5))
    with pytest.raises(ValueError, match=r"\[3, 4\] do not add up to the 12"):
        transformer(x, torch.arange(12), (Piece(3), Piece(4)))
    _, kv = transformer(x, torch.arange(12))
    with pytest.raises(ValueError, match="2 rows cannot serve a batch of 3"):
        transformer(transformer.embed(ids(3)), torch.arange(12), None, kv)
    with pytest.raises(ValueError, match="multiple of num_kv_heads"):
        TransformerConfig(num_heads=6, num_kv_heads=4)
