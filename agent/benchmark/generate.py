"""`generate` of `transformers`, the baseline that anybody would start from, on weights that both can run.

The vision ids of a shipped model are 16.7 million, which no table holds, so the pair is compared on a model of its
own: the sizes of configs/model/S.yaml, 1024 vision ids with a row each, random weights. Costs do not depend on them.

`generate` is given what helps it: a history that is read once and expanded to a row for each candidate, logits of the
last id only, and legal ids by one addition for all rows. The history is one observation long: here an imagined
observation sees the instruction, the step before and itself; `generate` lets every id see all before it, which is the
same for the first step of an episode only. Both take the likeliest ids, so they must draw the same ones.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList, StaticCache

from envs.types import Spec
from world_model.model import ModelConfig, WorldModel
from world_model.nn.hf import to_transformers, with_vision_rows
from world_model.nn.transformer import TransformerConfig
from world_model.tokens.actions import ActionTokenizer
from world_model.tokens.images import ImageConfig, ImageTokenizer
from world_model.tokens.layout import Layout
from world_model.tokens.vocab import Vocab

SMALL = TransformerConfig(width=192, num_layers=4, num_heads=6, num_kv_heads=3, hidden=512)  # configs/model/S.yaml
LEVELS = (4, 4, 4, 4, 4)  # 1024 vision ids
TEXT_IDS = 300  # about as many as the shipped text tokenizers have
WEIGHT_SCALE = 2.0  # of the outputs of random layers, inputs being 1


def random_model(spec: Spec, actions: ActionTokenizer, sizes: TransformerConfig = SMALL) -> WorldModel:
    """A world model that `transformers` runs as it is: a row for each vision id, and nothing added to the rows.

    Its weights are random but so large that each id depends on all before it.
    """
    frames = ImageTokenizer(ImageConfig(spec.cameras, LEVELS, width=16, encoder_blocks=1, decoder_blocks=1)).eval()
    config = ModelConfig(sizes, factored=False, step_embed=False)
    vocab = Vocab.native(TEXT_IDS, frames.vision_size, len(spec.cameras))
    model = WorldModel(config, spec, vocab, frames, actions).eval()
    with torch.no_grad():
        for x in model.transformer.layers.parameters():
            if x.dim() > 1:
                x.copy_(torch.randn_like(x) * (WEIGHT_SCALE / x.shape[1] ** 0.5))
    return model


def generators(model: WorldModel, history: Tensor, actions: Tensor) -> dict[str, Callable[[], Tensor]]:
    """Ways of `transformers` to imagine what N chunks lead to: name -> a function that draws (N, obs) ids.

    model: as `random_model` makes it. history: (1, L) ids up to the observation now. actions: (N, M, A).
    """
    at, rows = model.layout, len(actions)
    theirs = to_transformers(with_vision_rows(model.transformer, model.vision).to(model.precision))
    with torch.inference_mode():
        read = theirs(history, use_cache=True).cache
    length = history.shape[1] + at.chunk
    legal = LogitsProcessorList([LegalIds(at, length, model.device)])

    def generate(cache: Any) -> Tensor:
        chunk = at.chunk_ids(model.actions.encode(actions.to(model.device)))
        ids = torch.cat([history.expand(rows, -1), chunk], dim=1)
        every = torch.ones_like(ids)  # no padding
        return theirs.generate(
            ids, attention_mask=every, max_new_tokens=at.obs, do_sample=False, logits_processor=legal,
            cache=cache,
        )[:, length:]  # fmt: skip

    def with_dynamic_cache() -> Tensor:
        cache = copy.deepcopy(read)
        cache.batch_repeat_interleave(rows)
        return generate(cache)

    def with_static_cache() -> Tensor:
        cache = StaticCache(theirs.config, max_cache_len=length + at.obs)
        for i, layer in enumerate(read.layers):
            cache.update(*(x.expand(rows, -1, -1, -1) for x in (layer.keys, layer.values)), i)
        return generate(cache)

    return {"dynamic cache": with_dynamic_cache, "static cache": with_static_cache}


class LegalIds(LogitsProcessor):
    """Leaves only what is legal at each slot of an observation. start: ids before it."""

    def __init__(self, layout: Layout, start: int, device: torch.device):
        vocab, marks = layout.vocab, layout.vocab.marks
        self.start = start
        self.mask = torch.full((layout.obs, vocab.size), float("-inf"), device=device)
        images = zip(layout.cameras.values(), marks.cameras, strict=True)
        parts = [(slots, vocab.vision, begin, end) for slots, (begin, end) in images]
        for slots, block, begin, end in [*parts, (layout.state, vocab.state, marks.bot, marks.eost)]:
            self.mask[slots.start - 1, begin] = self.mask[slots.stop, end] = 0.0
            self.mask[slots, block.lowest : block.stop] = 0.0

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """The ids so far (N, L), the logits of the next one (N, V) -> (N, V)."""
        return scores + self.mask[input_ids.shape[1] - self.start]
