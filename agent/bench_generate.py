"""One model step imagined by `generate` of `transformers`, and by the same weights here: in parallel, and id by id.

    python -m agent.bench_generate [--candidates 64] [--repeats 5] [--precision fp32]

`generate` is how ids are ordinarily drawn from a Llama or a Qwen3, and so the baseline that anybody would start from.
It is given what helps it: a history that is read once and expanded to a row for each candidate, logits of the last id
only, and legal ids by one addition for all rows. The contestants take turns within one run, and the ids that
`generate` draws are compared with those drawn id by id here: both take the likeliest, so they must agree.

The history is one observation long. Here an imagined observation sees the instruction, the step before and itself;
`generate` lets every id see all before it, which is the same for the first step of an episode only.
"""

from __future__ import annotations

import argparse
import copy
import json
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList, StaticCache

from agent.bench import timed
from agent.verb import versions
from world_model.device import choose_device, choose_precision
from world_model.model import ModelConfig, WorldModel
from world_model.nn.hf import to_transformers, with_vision_rows
from world_model.tokens.actions import ActionTokenizer
from world_model.tokens.frames import FrameConfig, FrameTokenizer
from world_model.tokens.sequence import IMAGE_IDS, Layout
from world_model.tokens.vocab import Vocab
from world_model.transformer import TransformerConfig

TEXT_IDS = 300  # about as many as the shipped text tokenizers have
SMALL = TransformerConfig(width=192, num_layers=4, num_heads=6, num_kv_heads=3, hidden=512)  # configs/model/S.yaml
WEIGHT_SCALE = 2.0  # of the outputs of random layers, inputs being 1
PARALLEL, CAUSAL = "imagine, parallel", "imagine, token by token"


def bench_generate(
    candidates: int = 64, repeats: int = 5, threads: int = 1, device: str = "cpu", precision: str = "fp32",
    sizes: TransformerConfig = SMALL,
) -> dict[str, Any]:  # fmt: skip
    """Median seconds of every contestant, their ratios, and the share of ids that `generate` draws as we do."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    model = untrained(sizes).to(choose_device(device))
    model.precision = choose_precision(precision, model.device)
    at, generator = model.layout, torch.Generator().manual_seed(0)
    image = torch.randint(model.vocab.vision.size, (1, IMAGE_IDS), generator=generator).to(model.device)
    state = torch.randint(model.vocab.state.size, (1, at.state.stop - at.state.start), generator=generator)
    state = state.float().to(model.device)
    actions = 2 * torch.rand(candidates, 1, at.chunk_steps, model.actions.action_dim, generator=generator) - 1
    instruction = at.instruction_ids(tuple(range(8)))[None].to(model.device)
    cache = model.context(instruction, [(image, state)], [])
    history = torch.cat([instruction, at.obs_ids(image, state)], dim=1)  # (1, 117)

    contestants: dict[str, Callable[[], Any]] = {
        PARALLEL: lambda: model.imagine(cache, actions),
        CAUSAL: lambda: model.imagine(cache, actions, "causal"),
        **generating(model, history, actions),
    }
    seconds, drawn = {name: [] for name in contestants}, {}
    for repeat in range(repeats + 1):
        for name, run in contestants.items():
            took = timed(lambda name=name, run=run: drawn.update({name: run()}), model.device)
            if repeat:  # the first round warms up
                seconds[name].append(took)
    median = {name: float(np.median(values)) for name, values in seconds.items()}
    theirs = [name for name in contestants if name not in (PARALLEL, CAUSAL)]
    fastest = min(median[name] for name in theirs)
    imagined = drawn[CAUSAL]
    ours = at.obs_ids(torch.cat([imagined.main_ids, imagined.wrist_ids], dim=2)[:, 0], at.to_bins(imagined.state[:, 0]))
    return {
        "settings": {"candidates": candidates, "repeats": repeats, "threads": threads, "precision": precision},
        "device": str(model.device), "transformer": asdict(sizes), "vision_ids": model.vocab.vision.size,
        "seconds": median, "range": {name: [min(values), max(values)] for name, values in seconds.items()},
        "same_ids": {name: (drawn[name] == ours).float().mean().item() for name in theirs},
        "ratios": {
            "fastest generate / parallel": fastest / median[PARALLEL],
            "token by token / parallel": median[CAUSAL] / median[PARALLEL],
            "fastest generate / token by token": fastest / median[CAUSAL],
        },
        "versions": versions("torch", "transformers", "numpy"),
    }  # fmt: skip


def untrained(sizes: TransformerConfig = SMALL, levels: tuple[int, ...] = (4, 4, 4, 4, 4)) -> WorldModel:
    """A world model that `transformers` runs as it is: a row for each vision id, and no embeddings of slots.

    Its weights are random, since costs do not depend on them, but so large that each id depends on all before it.
    """
    frames = FrameTokenizer(FrameConfig(levels, width=16, encoder_blocks=1, decoder_blocks=1))
    config = ModelConfig(sizes, factored=False, slots=False)
    model = WorldModel(config, Vocab.native(TEXT_IDS, frames.vision_size), frames, ActionTokenizer.create()).eval()
    with torch.no_grad():
        for x in model.transformer.layers.parameters():
            if x.dim() > 1:
                x.copy_(torch.randn_like(x) * (WEIGHT_SCALE / x.shape[1] ** 0.5))
    return model


def generating(model: WorldModel, history: Tensor, actions: Tensor) -> dict[str, Callable[[], Tensor]]:
    """Ways of `transformers` to imagine what N chunks lead to: name -> a function that draws (N, 93) ids.

    model: as `untrained` makes it. history: (1, L) ids up to the observation now. actions: (N, 1, M, A) in [-1, 1].
    """
    at, rows = model.layout, len(actions)
    theirs = to_transformers(with_vision_rows(model.transformer, model.vision).to(model.precision))
    with torch.inference_mode():
        read = theirs(history, use_cache=True).cache
    length = history.shape[1] + at.chunk
    legal = LogitsProcessorList([LegalIds(at, length, model.device)])

    def generate(**cache: Any) -> Tensor:
        chunk = at.chunk_ids(model.actions.encode(actions[:, 0].to(model.device)))
        ids = torch.cat([history.expand(rows, -1), chunk], dim=1)  # (N, 134)
        every = torch.ones_like(ids)  # no padding
        return theirs.generate(
            ids, attention_mask=every, max_new_tokens=at.obs, do_sample=False, logits_processor=legal, **cache
        )[:, length:]

    def with_dynamic_cache() -> Tensor:
        cache = copy.deepcopy(read)
        cache.batch_repeat_interleave(rows)
        return generate(cache=cache)

    def with_static_cache() -> Tensor:
        cache = StaticCache(theirs.config, max_cache_len=length + at.obs)
        for i, layer in enumerate(read.layers):
            cache.update(*(x.expand(rows, -1, -1, -1) for x in (layer.keys, layer.values)), i)
        return generate(cache=cache)

    return {
        "generate, prompt in every row": generate,
        "generate, dynamic cache": with_dynamic_cache,
        "generate, static cache": with_static_cache,
    }


class LegalIds(LogitsProcessor):
    """Leaves only what is legal at each place of an observation. start: ids before it."""

    def __init__(self, layout: Layout, start: int, device: torch.device):
        vocab, marks = layout.vocab, layout.vocab.marks
        self.start = start
        self.mask = torch.full((layout.obs, vocab.size), float("-inf"), device=device)
        for part, block, begin, end in (
            (layout.main, vocab.vision, marks.bom, marks.eom),
            (layout.wrist, vocab.vision, marks.bow, marks.eow),
            (layout.state, vocab.state, marks.bot, marks.eost),
        ):
            self.mask[part.start - 1, begin] = self.mask[part.stop, end] = 0.0
            self.mask[part, block.lowest : block.stop] = 0.0

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """The ids so far (N, L), the logits of the next one (N, V) -> (N, V)."""
        return scores + self.mask[input_ids.shape[1] - self.start]


def main() -> None:
    parser = argparse.ArgumentParser(description="time imagining a model step against `generate` of transformers")
    parser.add_argument("--candidates", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", default="fp32", help="fp32, bf16 or auto")
    print(json.dumps(bench_generate(**vars(parser.parse_args())), indent=1))


if __name__ == "__main__":
    main()
