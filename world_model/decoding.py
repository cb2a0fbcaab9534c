"""Two ways to imagine what chunks lead to, a whole model step in one pass or id after id, and how chunks are drawn.

Both take a cache of R robots and the action codes of `rows` sequences, each robot's rows / R after each other, and
yield one Imagination of one step, fields (rows, 1, ...), for every chunk. A code is (rows, Ka); None stands for the
model's own likeliest chunk. Strides are control steps of each chunk that are executed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from world_model.nn.transformer import KV, Segment, join, serve
from world_model.tokens.layout import CAUSAL
from world_model.tokens.poses import POSE_IDS

if TYPE_CHECKING:
    from world_model.model import WorldModel
    from world_model.types import Cache, Imagination


def parallel(
    model: WorldModel, cache: Cache, codes: Sequence[Tensor | None], rows: int, strides: Sequence[int],
    images: bool = True,
) -> Iterator[Imagination]:
    """Every id of the next observation at once, as an edit of this one. A pass commits the chunk and predicts what
    follows beside it; another commits what followed.

    images: whether the last step is to have any; without them it is a fraction of the work.
    """
    at, step = model.layout, cache.step[:, None]  # step (R, 1)
    instruction, now = _instruction_and_now(model, cache)
    past = (cache.kv,)  # what the next ids see; its parts are never copied into one
    # (rows, K), (rows, P), (rows, Q); a camera that stands still, or that is told relative to the hand, keeps its pose
    image, state, pose = (serve(each, rows) for each in (cache.image, cache.state, cache.pose))
    wanted = slice(None if images else 0)  # of each image's ids
    obs_slots, chunk_slots = model.step_slots[: at.obs], model.step_slots[at.obs :]
    done = None
    for i, (code, stride) in enumerate(zip(codes, strides, strict=True)):
        if done is not None:  # the next step sees the instruction and this step alone
            before = (instruction, now, done)
            ids = at.obs_ids(image, state, pose)
            now = model.remember(ids, obs_slots, CAUSAL, at.position_ids(obs_slots, step), before)
            past = (*before, now)
        if code is None:
            there = replace(cache, kv=join(past, rows), step=step[:, 0], image=image, state=state, pose=pose)
            code = model.actions.encode(model.likeliest(model.read(there)), False, stride)
        drawn = images or i + 1 < len(codes)
        next_slots = model.next_slots if drawn else model.next_slots[-at.outcome :]
        ids = torch.cat([at.chunk_ids(code, stride), at.next_ids(image, state, drawn)], dim=1)
        positions = [at.position_ids(chunk_slots, step), at.position_ids(next_slots, step + 1)]
        positions = torch.cat(positions, dim=1)
        slots, types = torch.cat([chunk_slots, next_slots]), model.chunk_next_types[: ids.shape[1]]
        segments = (Segment(at.chunk), Segment(len(next_slots), (0,), causal=False))
        hidden, new = model.run(ids, slots, types, positions, segments, past, first=1)
        future = model.read_next(hidden, image, state)
        seen = {name: getattr(future, name)[:, :, wanted] for name in ("image_ids", "hidden", "before")}
        yield replace(future, actions=model.actions.decode(code)[:, None], strides=(stride,), **seen)

        image, state = future.image_ids[:, 0], at.to_bins(future.state[:, 0])
        step, done = step + 1, new.part(0, at.chunk)


def autoregressive(
    model: WorldModel, cache: Cache, codes: Sequence[Tensor | None], rows: int, strides: Sequence[int],
    images: bool = True,
) -> Iterator[Imagination]:
    """Every id after the one before, the likeliest each time: the slow reference, but not slower than it must be. What
    all candidates share is held once, and what is new is written to its place in memory that is there from the start.

    images: makes no difference, because the ids that follow are read from them.
    """
    at, vocab, step = model.layout, model.vocab, cache.step[:, None]
    instruction, now = _instruction_and_now(model, cache)
    past, shared, kept = (cache.kv,), join((instruction, now), now.rows), 0  # kept: ids of `own` from the step before
    before, marks, readout = serve(cache.image, rows), _marks(model), None
    pose = serve(cache.pose, rows)  # (rows, Q), which stays
    told_ids = at.told_ids(pose)
    told = {slot: told_ids[:, i : i + 1] for i, slot in enumerate(at.pose_slots)}
    chunk_slots = model.step_slots[at.obs :]
    own = cache.kv.allocate(rows, at.step)
    for code, stride in zip(codes, strides, strict=True):
        if code is None:
            readout = readout or model.read(cache)
            code = model.actions.encode(model.likeliest(readout), False, stride)
        own.write(kept, model.remember(
            at.chunk_ids(code, stride), chunk_slots, CAUSAL, at.position_ids(chunk_slots, step), past
        ))  # fmt: skip
        start, step = kept + at.chunk, step + 1

        ids: list[Tensor] = [torch.full_like(code[:, :1], marks[0])]  # each (rows, 1)
        spread: list[Tensor] = []  # standard deviation of each dimension of the state, bins, (rows, 1)
        for slot in range(at.obs):
            here = model.step_slots[slot : slot + 1]
            past = (shared, own.part(0, start + slot))
            hidden, new = model.run(ids[slot], here, CAUSAL, at.position_ids(here, step), past=past)
            own.write(start + slot, new)
            if slot + 1 == at.obs:
                break
            if slot + 1 in marks:
                ids.append(torch.full_like(ids[0], marks[slot + 1]))
            elif slot + 1 in told:
                ids.append(told[slot + 1])
            elif slot + 1 >= at.state.start:
                logits = model.logits(hidden, vocab.state)  # (rows, 1, 256)
                ids.append(vocab.state.encode(logits.argmax(-1)))
                spread.append(std_bin(logits.softmax(-1)))
            else:
                ids.append(vocab.vision.encode(model.codes(hidden).best()))
        written = torch.cat(ids, dim=1)  # (rows, obs)
        image = vocab.vision.decode(torch.cat([written[:, part] for part in at.cameras.values()], dim=1))
        state = vocab.state.decode(written[:, at.state]).float()
        state_std = torch.cat(spread, dim=1) if spread else state
        past = (shared, own)
        readout = model.read(replace(cache, kv=join(past, rows), step=step[:, 0], image=image, state=state, pose=pose))
        hidden = image.new_empty(*image.shape, 0)
        future = model.future(image, state, state_std, readout.belief, hidden, before)
        yield replace(future, actions=model.actions.decode(code)[:, None], strides=(stride,))

        # The next step sees the instruction and this step alone; its chunk still sees the step before.
        before, shared, kept = image, instruction, at.obs
        now, own = own.part(start, start + at.obs), own.allocate(rows, at.obs + at.step)
        own.write(0, now)


def chunks_jointly(model: WorldModel, cache: Cache, noise: Tensor, temperature: float) -> Tensor:
    """noise (R, Ka, n) in [0, 1) -> codes (R, n, Ka), read id by id as a chunk is written."""
    at, (robots, count, n) = model.layout, noise.shape
    own, codes = cache.kv.allocate(robots * n, count), []
    ids = torch.full((robots * n, 1), model.vocab.marks.boa, device=model.device)
    for i in range(count):
        here = model.step_slots[at.obs + i : at.obs + i + 1]  # an id is said by the one before it
        past = (cache.kv, own.part(0, i))
        h, new = model.run(ids, here, CAUSAL, at.position_ids(here, cache.step[:, None]), past=past)
        own.write(i, new)
        block = model.vocab.action if i < at.num_coefs else model.vocab.gripper
        probs = model.logits(h[:, 0], block).softmax(-1)  # (R n, ids)
        codes.append(draw(probs, noise[:, i].reshape(-1, 1), temperature))
        ids = block.encode(codes[-1])
    return torch.cat(codes, dim=1).unflatten(0, (robots, n))


def draw(probs: Tensor, noise: Tensor, temperature: float) -> Tensor:
    """Ids (..., n) from distributions (..., V) made sharper by a temperature below 1; noise (..., n) in [0, 1)."""
    cumulative = (probs.double() ** (1 / temperature)).cumsum(-1)
    cumulative = cumulative / cumulative[..., -1:]
    return torch.searchsorted(cumulative, noise.contiguous()).clamp_max(probs.shape[-1] - 1)


def _instruction_and_now(model: WorldModel, cache: Cache) -> tuple[KV, KV]:
    """The first and the last part of a cache, in which nothing is padding."""
    at, kv = model.layout, cache.kv
    return kv.part(0, at.instruction).unmasked(), kv.part(len(kv) - at.obs, len(kv)).unmasked()


def std_bin(probs: Tensor) -> Tensor:
    """Standard deviation of distributions over bins: (..., bins) -> (...), in bins."""
    bins = torch.arange(probs.shape[-1], device=probs.device, dtype=torch.float32)
    return (probs @ bins.square() - (probs @ bins).square()).clamp_min(0).sqrt()


def _marks(model: WorldModel) -> dict[int, int]:
    """The mark that stands at each slot of an observation that holds one."""
    at, marks = model.layout, model.vocab.marks
    found = {at.state.start - 1: marks.bot, at.state.stop: marks.eost}
    for (begin, end), (camera, slots) in zip(marks.cameras, at.cameras.items(), strict=True):
        before = POSE_IDS if camera in at.pose_slices else 0
        found |= {slots.start - before - 1: begin, slots.stop: end}
    return found
