"""To and from `transformers`: the same weights say the same there and here."""

from dataclasses import replace

import pytest
import torch
from torch.testing import assert_close

pytest.importorskip("transformers", reason="needs the optional package `transformers`")

from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, Qwen3Config, Qwen3ForCausalLM

from world_model.model import WorldModel
from world_model.nn.hf import from_transformers, to_transformers, with_vision_rows
from world_model.nn.transformer import Transformer, TransformerConfig
from world_model.tokens.layout import CAUSAL

VOCAB = 60
SIZES = TransformerConfig(
    width=32, num_layers=2, num_heads=4, num_kv_heads=2, hidden=64, rope_base=5_000.0, norm_eps=1e-3
)  # nothing is a default, here or there
VARIANTS = {
    "qwen3": SIZES,
    "qwen3, head_dim of its own": replace(SIZES, head_dim=24),
    "qwen3, heads that do not divide the width": replace(SIZES, num_heads=6, head_dim=12),
    "qwen3, untied": replace(SIZES, tied=False),
    "llama": replace(SIZES, qk_norm=False),
    "llama, head_dim of its own, untied": replace(SIZES, qk_norm=False, head_dim=24, tied=False),
}


@pytest.fixture(params=VARIANTS.values(), ids=VARIANTS)
def transformer(request) -> Transformer:
    """Random in every weight, the norms' too, so that none can be lost unseen."""
    torch.manual_seed(0)
    transformer = Transformer(request.param, VOCAB)
    for x in transformer.parameters():
        torch.nn.init.normal_(x, 1.0 if x.dim() == 1 else 0.0, 0.2)
    return transformer


def ids(batch: int = 3, length: int = 40) -> torch.Tensor:
    return torch.randint(VOCAB, (batch, length), generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def our_logits(transformer: Transformer, ids: torch.Tensor) -> torch.Tensor:
    """(B, L) -> (B, L, V)."""
    h, _ = transformer(transformer.embed(ids), torch.arange(ids.shape[1]))
    return transformer.logits(h, slice(0, len(transformer.head)))


@torch.no_grad()
def test_logits_are_equal_there(transformer):
    """Catches a size, a rotary base, an epsilon or a head that is handed over wrongly."""
    theirs = to_transformers(transformer)
    assert isinstance(theirs, Qwen3ForCausalLM if transformer.config.qk_norm else LlamaForCausalLM)
    assert_close(theirs(ids()).logits, our_logits(transformer, ids()), atol=1e-4, rtol=0)


def test_weights_come_back_bit_equal(transformer):
    """Catches a weight that is lost, rounded, renamed or shared with the other model."""
    theirs = to_transformers(transformer)
    back = from_transformers(theirs)
    assert back.config == transformer.config
    assert back.state_dict().keys() == transformer.state_dict().keys()
    for name, x in transformer.state_dict().items():
        assert torch.equal(back.state_dict()[name], x), name
    before = [x.detach().clone() for x in transformer.parameters()]
    with torch.no_grad():
        for x in theirs.parameters():
            x.zero_()
    assert all(map(torch.equal, before, transformer.parameters()))
    assert all(map(torch.equal, before, back.parameters()))


@torch.no_grad()
@pytest.mark.parametrize("kind", ["qwen3", "llama"])
def test_logits_are_equal_here(kind):
    """Catches a model of theirs, with their own names and defaults, that computes something else here."""
    torch.manual_seed(0)
    sizes = dict(vocab_size=VOCAB, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
                 num_key_value_heads=2)  # fmt: skip
    if kind == "qwen3":
        theirs = Qwen3ForCausalLM(Qwen3Config(**sizes, head_dim=16)).eval()
    else:
        theirs = LlamaForCausalLM(LlamaConfig(**sizes)).eval()
    ours = from_transformers(theirs)
    assert ours.config.head_dim == (16 if kind == "qwen3" else 8)
    assert_close(our_logits(ours, ids()), theirs(ids()).logits, atol=1e-4, rtol=0)
    for name, x in to_transformers(ours).state_dict().items():
        assert torch.equal(theirs.state_dict()[name], x), name


def test_precision_is_kept():
    """Catches weights that come back in fp32, and rotary angles that are rounded with the weights."""
    transformer = Transformer(SIZES, VOCAB).to(torch.bfloat16)
    theirs = to_transformers(transformer)
    assert {x.dtype for x in theirs.parameters()} == {torch.bfloat16}
    assert theirs.model.rotary_emb.inv_freq.dtype == torch.float32
    assert {x.dtype for x in from_transformers(theirs).parameters()} == {torch.bfloat16}


def test_what_we_cannot_compute_is_refused():
    """Catches weights that load into a model which computes something else."""
    with pytest.raises(ValueError, match="this is a 'gpt2'"):
        from_transformers(GPT2LMHeadModel(GPT2Config(vocab_size=8, n_embd=8, n_layer=1, n_head=1)))
    small = dict(vocab_size=8, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1,
                 num_key_value_heads=1)  # fmt: skip
    scaled = {"rope_type": "linear", "factor": 2.0, "rope_theta": 10_000.0}
    with pytest.raises(ValueError, match="our transformer lacks: attention_bias, mlp_bias, rope_type"):
        from_transformers(LlamaForCausalLM(
            LlamaConfig(**small, attention_bias=True, mlp_bias=True, rope_parameters=scaled)
        ))  # fmt: skip


@pytest.mark.parametrize("step_embed", [False, True])
@pytest.mark.parametrize("factored", [False, True])
@torch.no_grad()
def test_a_world_model_says_the_same_there(world, batch, factored, step_embed):
    """Catches a vision table in another order, or a digit that is embedded and not read: one causal sequence of the
    instruction, an observation and a chunk, read by a world model and by `transformers`."""
    config = replace(world.config, factored=factored, step_embed=step_embed)
    torch.manual_seed(0)
    world = WorldModel(config, world.spec, world.vocab, world.frame_tokenizer, world.actions).eval()
    at, vocab = world.layout, world.vocab
    seen = at.obs_ids(batch.image[:, 0], batch.state[:, 0])
    ids = torch.cat([batch.instruction, seen, at.chunk_ids(batch.action[:, 0])], dim=1)  # (B, 134)
    slots = torch.cat([torch.full((at.instruction,), -1), torch.arange(at.step)])
    h, _ = world.run(ids, slots, CAUSAL, torch.arange(ids.shape[1]))

    theirs = to_transformers(with_vision_rows(world.transformer, world.vision))
    assert theirs.config.vocab_size == vocab.size
    given = {"inputs_embeds": world._embed(ids, slots, CAUSAL)} if step_embed else {"input_ids": ids}
    logits = theirs(**given).logits
    for block in vocab.blocks[:-1]:
        assert_close(block.select(logits), world.logits(h, block), atol=1e-4, rtol=0)
    every = torch.arange(vocab.vision.size).expand(*h.shape[:2], -1)  # (B, L, 125) local
    ours = world.codes(h[:, :, None].expand(-1, -1, vocab.vision.size, -1)).log_prob(every)
    assert_close(vocab.vision.select(logits).log_softmax(-1), ours, atol=1e-4, rtol=0)


def test_sixteen_million_vision_ids_are_refused(world):
    """Catches a table that would not fit into memory."""
    world.vision.levels = (8,) * 8
    with pytest.raises(ValueError, match="16,777,216 vision ids are too many for a row each"):
        with_vision_rows(world.transformer, world.vision)
