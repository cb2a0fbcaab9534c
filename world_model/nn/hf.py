"""Weights to and from `transformers`: our transformer is their Qwen3, and without QK-norm their Llama.

    to_transformers(transformer)             their model with the same weights
    from_transformers(model)                 and back
    with_vision_rows(transformer, vision)    a world model's next-token reading as one transformer, to be handed over

`transformers` is optional and nothing else in this project imports it.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from world_model.nn.transformer import Transformer, TransformerConfig
from world_model.nn.vision_codes import VisionCodes

try:
    from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, Qwen3Config, Qwen3ForCausalLM
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        "world_model.nn.hf needs the optional package `transformers`: pip install -c constraints.txt transformers",
        name=error.name,
    ) from error

MOST_VISION_ROWS = 2**18  # beyond it a row for each vision id would be far larger than the model
MAX_POSITIONS = 32_768  # what their configuration promises; rotary positions themselves have no end


def to_transformers(transformer: Transformer) -> Qwen3ForCausalLM | LlamaForCausalLM:
    """Their model with copies of our weights, on the same device and in the same precision, ready for inference."""
    ours = transformer.config
    weights = {
        name if name.startswith("lm_head") else f"model.{name}": x for name, x in transformer.state_dict().items()
    }
    weights.setdefault("lm_head.weight", transformer.head)
    config = (Qwen3Config if ours.qk_norm else LlamaConfig)(
        vocab_size=len(transformer.head),
        hidden_size=ours.width,
        num_hidden_layers=ours.num_layers,
        num_attention_heads=ours.num_heads,
        num_key_value_heads=ours.num_kv_heads,
        intermediate_size=ours.hidden,
        head_dim=ours.head_dim,
        rope_parameters={"rope_type": "default", "rope_theta": ours.rope_base},
        rms_norm_eps=ours.norm_eps,
        tie_word_embeddings=ours.tied,
        max_position_embeddings=MAX_POSITIONS,
        bos_token_id=None,  # Llama's defaults are ordinary ids of ours: generation would end at one of them
        eos_token_id=None,
        pad_token_id=None,
    )
    model = AutoModelForCausalLM.from_config(config, dtype=transformer.head.dtype)
    model.load_state_dict(weights)
    return model.to(transformer.head.device).eval()


def from_transformers(model: Qwen3ForCausalLM | LlamaForCausalLM) -> Transformer:
    """Our transformer with copies of their weights. ValueError for a model that computes something else."""
    theirs = model.config
    if theirs.model_type not in ("qwen3", "llama"):
        raise ValueError(f"only Qwen3 and Llama have the layout of our transformer, this is a {theirs.model_type!r}")
    differs = [
        name
        for name, value, ours in (
            ("hidden_act", theirs.hidden_act, "silu"),
            ("attention_bias", theirs.attention_bias, False),
            ("mlp_bias", getattr(theirs, "mlp_bias", False), False),
            ("rope_type", theirs.rope_parameters["rope_type"], "default"),
            ("layer_types", set(getattr(theirs, "layer_types", ())) - {"full_attention"}, set()),
        )
        if value != ours
    ]
    if differs:
        raise ValueError(f"this {theirs.model_type} has what our transformer lacks: {', '.join(differs)}")
    config = TransformerConfig(
        width=theirs.hidden_size,
        num_layers=theirs.num_hidden_layers,
        num_heads=theirs.num_attention_heads,
        num_kv_heads=theirs.num_key_value_heads,
        hidden=theirs.intermediate_size,
        head_dim=theirs.head_dim,
        rope_base=theirs.rope_parameters["rope_theta"],
        norm_eps=theirs.rms_norm_eps,
        qk_norm=theirs.model_type == "qwen3",
        tied=theirs.tie_word_embeddings,
    )
    weights = {name.removeprefix("model."): x for name, x in model.state_dict().items()}
    if config.tied:
        del weights["lm_head.weight"]
    return _holding(config, weights)


@torch.no_grad()
def with_vision_rows(transformer: Transformer, vision: VisionCodes) -> Transformer:
    """A world model's transformer and vision codes as one transformer over all ids, each with a row of its own.

    The vision block comes last in the vocabulary. A vision id's row is the sum of its digits' rows, in the embedding
    and in the head alike, so factored codes give the same logits as long as there are few enough of them. Not carried
    over are the embeddings of positions within a step and of token types, which `WorldModel` adds to the rows: compare
    a model with `step_embed: false`, or hand `inputs_embeds` over. ValueError for more vision ids than a table can
    hold.
    """
    count = math.prod(vision.levels)
    if count > MOST_VISION_ROWS:
        raise ValueError(
            f"{count:,} vision ids are too many for a row each (at most {MOST_VISION_ROWS:,}): "
            "use an image tokenizer with fewer or smaller `levels`"
        )
    rows = vision.embed(torch.arange(count, device=vision.rows.device))  # (count, width)
    weights = dict(transformer.state_dict())
    for name in ("embed_tokens.weight", "lm_head.weight"):
        if name in weights:
            weights[name] = torch.cat([weights[name], rows])  # (V, width)
    return _holding(transformer.config, weights)


def _holding(config: TransformerConfig, weights: dict[str, Tensor]) -> Transformer:
    """A transformer with copies of these weights, in their precision and on their device."""
    with torch.device("meta"):  # neither memory nor random numbers for weights that are replaced
        transformer = Transformer(config, len(weights["embed_tokens.weight"]))
    transformer.load_state_dict({name: x.detach().clone() for name, x in weights.items()}, assign=True)
    return transformer.eval()
