"""Two ways to imagine what chunks lead to: a whole model step in one pass, or id after id.

Both take a cache of R robots and the action codes of `rows` sequences, each robot's rows / R after each other, and
yield one Imagination of one step, fields (rows, 1, ...), for every chunk. A code is (rows, Ka); None stands for the
model's own likeliest chunk.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from world_model.nn.transformer import Segment, serve
from world_model.tokens.layout import CAUSAL

if TYPE_CHECKING:
    from world_model.model import Cache, Imagination, WorldModel


def parallel(model: WorldModel, cache: Cache, codes: Sequence[Tensor | None], rows: int) -> Iterator[Imagination]:
    """Every id of the next observation at once, as an edit of this one. A pass commits the chunk and predicts what
    follows beside it; another commits what followed."""
    at, kv, step = model.layout, cache.kv, cache.step[:, None]  # step (R, 1)
    image, state = serve(cache.image, rows), serve(cache.state, rows)  # (rows, K), (rows, P)
    segments = (Segment(at.chunk), Segment(at.next, (0,), causal=False))
    obs_slots, chunk_slots = model.step_slots[: at.obs], model.step_slots[at.obs :]
    slots = torch.cat([chunk_slots, model.next_slots])
    done = None
    for code in codes:
        if done is not None:  # the next step sees the instruction and this step alone
            before = kv.part(0, at.instruction).then(kv.part(len(kv) - at.obs, len(kv)), done).unmasked()
            ids = at.obs_ids(image, state)
            kv = before.then(model.remember(ids, obs_slots, CAUSAL, at.position_ids(obs_slots, step), before))
        if code is None:
            code = model.actions.encode(model.likeliest(model.read(replace(
                cache, kv=kv, step=step[:, 0], image=image, state=state
            ))), check=False)  # fmt: skip
        ids = torch.cat([at.chunk_ids(code), at.next_ids(image, state)], dim=1)
        positions = [at.position_ids(chunk_slots, step), at.position_ids(model.next_slots, step + 1)]
        hidden, new = model.run(ids, slots, model.chunk_next_types, torch.cat(positions, dim=1), segments, kv)
        future = model.read_next(hidden[:, at.chunk :], image, state)
        yield replace(future, actions=model.actions.decode(code)[:, None])

        image, state = future.image_ids[:, 0], at.to_bins(future.state[:, 0])
        step, done = step + 1, new.part(0, at.chunk)


def autoregressive(
    model: WorldModel, cache: Cache, codes: Sequence[Tensor | None], rows: int
) -> Iterator[Imagination]:  # fmt: skip
    """Every id after the one before, the likeliest each time: the slow reference."""
    at, vocab, past, step = model.layout, model.vocab, cache.kv, cache.step[:, None]
    instruction = past.part(0, at.instruction).unmasked()
    now = past.part(len(past) - at.obs, len(past)).unmasked()
    before, marks, readout = serve(cache.image, rows), _marks(model), None
    chunk_slots = model.step_slots[at.obs :]
    for code in codes:
        if code is None:
            readout = readout or model.read(cache)
            code = model.actions.encode(model.likeliest(readout), check=False)
        done = model.remember(at.chunk_ids(code), chunk_slots, CAUSAL, at.position_ids(chunk_slots, step), past)
        past, step = instruction.then(now, done), step + 1

        ids: list[Tensor] = [torch.full_like(code[:, :1], marks[0])]  # each (rows, 1)
        spread: list[Tensor] = []  # standard deviation of each dimension of the state, bins, (rows, 1)
        for slot in range(at.obs):
            here = model.step_slots[slot : slot + 1]
            hidden, new = model.run(ids[slot], here, CAUSAL, at.position_ids(here, step), None, past)
            past = past.then(new)
            if slot + 1 == at.obs:
                break
            if slot + 1 in marks:
                ids.append(torch.full_like(ids[0], marks[slot + 1]))
            elif slot + 1 >= at.state.start:
                logits = model.logits(hidden, vocab.state)  # (rows, 1, 256)
                ids.append(vocab.state.encode(logits.argmax(-1)))
                spread.append(std_bin(logits.softmax(-1)))
            else:
                ids.append(vocab.vision.encode(model.codes(hidden).best()))
        now = past.part(len(past) - at.obs, len(past))
        past = instruction.then(past.part(at.instruction, len(past)))
        written = torch.cat(ids, dim=1)  # (rows, obs)
        image = vocab.vision.decode(torch.cat([written[:, part] for part in at.cameras.values()], dim=1))
        state = vocab.state.decode(written[:, at.state]).float()
        state_std = torch.cat(spread, dim=1) if spread else state
        readout = model.read(replace(cache, kv=past, step=step[:, 0], image=image, state=state))
        hidden = image.new_empty(*image.shape, 0)
        future = model.future(image, state, state_std, readout.belief, hidden, before)
        yield replace(future, actions=model.actions.decode(code)[:, None])
        before = image


def std_bin(probs: Tensor) -> Tensor:
    """Standard deviation of distributions over bins: (..., bins) -> (...), in bins."""
    bins = torch.arange(probs.shape[-1], device=probs.device, dtype=torch.float32)
    return (probs @ bins.square() - (probs @ bins).square()).clamp_min(0).sqrt()


def _marks(model: WorldModel) -> dict[int, int]:
    """The mark that stands at each slot of an observation that holds one."""
    at, marks = model.layout, model.vocab.marks
    found = {at.state.start - 1: marks.bot, at.state.stop: marks.eost}
    for (begin, end), slots in zip(marks.cameras, at.cameras.values(), strict=True):
        found |= {slots.start - 1: begin, slots.stop: end}
    return found
