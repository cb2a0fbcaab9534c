"""The world model: one transformer over one vocabulary that proposes, imagines and judges.

    prefill(history)          what one robot has seen, as a cache
    read(cache)               what is believed now, and how the expert would act
    propose(cache, n)         n chunks
    imagine(cache, actions)   what N chunks, or sequences of H chunks, lead to

The cache is a value: nothing here keeps state between calls but the weights. What is taught stands in `loss`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from envs.types import STATE_DIM, Obs
from world_model.nn.transformer import KV, Piece, Transformer, TransformerConfig
from world_model.nn.vision_codes import CodeDistribution, VisionCodes
from world_model.tokens.actions import ActionTokenizer, expected_bin
from world_model.tokens.images import MAIN_IDS, FrameTokenizer
from world_model.tokens.layout import ACT, CLEAN, FLAGS, IMAGE_IDS, KEYPOINT_IDS, NEXT, Layout
from world_model.tokens.vocab import Block, Vocab
from world_model.training.loss import LossWeights


@dataclass(frozen=True)
class ModelConfig:
    """transformer: sizes. instruction: ids kept for the text. slots: learned embeddings of the place within a step.

    smoothing: standard deviation of ordinal targets in bins. factored: embed a vision id by its digits, or else by a
    row of its own, as pretrained tables do. copy_bias: log-odds before training that a draft of the next frame keeps
    the id it starts from.
    """

    transformer: TransformerConfig = field(default_factory=TransformerConfig)
    instruction: int = 24
    slots: bool = True
    smoothing: float = 1.2
    factored: bool = True
    copy_bias: float = 3.0
    weights: LossWeights = field(default_factory=LossWeights)

    @classmethod
    def from_dict(cls, raw: dict) -> ModelConfig:
        """The inverse of `dataclasses.asdict`."""
        return cls(**{
            **raw, "transformer": TransformerConfig(**raw["transformer"]), "weights": LossWeights(**raw["weights"])
        })  # fmt: skip

    to_dict = asdict


@dataclass(frozen=True)
class History:
    """What one robot has seen: now, and where the episode is old enough, one chunk ago.

    instruction: text ids. steps: one or two pairs of an observation and the M control steps (M, A) executed after it,
    oldest first; the last pair is now, and its chunk is None.
    """

    instruction: tuple[int, ...]
    steps: tuple[tuple[Obs, np.ndarray | None], ...]


@dataclass(frozen=True)
class Cache:
    """Keys and values of `instruction | step before (if any) | observation now`, R rows (1: shared by all candidates).

    step: number of the current model step. image: (R, 80) local ids, state: (R, P) bins of the observation now.
    """

    kv: KV
    step: int
    image: Tensor
    state: Tensor


@dataclass(frozen=True)
class Belief:
    """What the model reads out of one situation. Standard deviations are those of the ids' own distributions."""

    value: Tensor  # (R,) discount ** (control steps until success)
    value_std: Tensor  # (R,)
    success: Tensor  # (R,) probability
    held: Tensor  # (R,) probability that the gripper holds something
    keypoints: Tensor  # (R, 4, 3) m
    keypoints_std: Tensor  # (R, 4, 3) m


@dataclass(frozen=True)
class Reading:
    """One `act` pass: beliefs, and the distribution over the expert's chunk."""

    belief: Belief
    coefs: Tensor  # (R, Ka - 1, 256) probabilities of action bins
    gripper: Tensor  # (R, 2 M) probabilities of gripper codes


@dataclass(frozen=True)
class Imagination:
    """N futures of H model steps. Frames are painted only on demand: `model.frames(ids)` or `model.paint(...)`."""

    actions: Tensor  # (N, H, M, A)
    main_ids: Tensor  # (N, H, 64) local
    wrist_ids: Tensor  # (N, H, 16) local
    state: Tensor  # (N, H, P) m and rad
    value: Tensor  # (N, H)
    success: Tensor  # (N, H)
    held: Tensor  # (N, H)
    keypoints: Tensor  # (N, H, 4, 3) m
    uncertainty: Tensor  # (N, H) m, how far all keypoints together may be off, all doubts up to then added up
    hidden: Tensor  # (N, H, 80, width) what the image ids were read from; empty after causal decoding
    before: Tensor  # (N, H, 80) the ids they were drafted from


class WorldModel(nn.Module):
    """The transformer with what turns the world into ids and back. The frame tokenizer is frozen."""

    def __init__(self, config: ModelConfig, vocab: Vocab, frames: FrameTokenizer, actions: ActionTokenizer):
        super().__init__()
        self.config, self.vocab, self.actions = config, vocab, actions
        self.layout = Layout(vocab, actions.num_coefs, actions.chunk, config.instruction)
        if frames.vision_size != vocab.vision.size:
            raise ValueError(f"{frames.vision_size} frame codes do not fit a vision block of {vocab.vision.size} ids")
        self.frame_tokenizer = frames.requires_grad_(False)
        width = config.transformer.width
        self.transformer = Transformer(config.transformer, vocab.vision.lowest)  # the vision block comes last
        levels = frames.config.levels if config.factored else (frames.vision_size,)
        latents = frames.digit_latents() if config.factored else frames.codes()
        self.vision = VisionCodes(levels, latents, width, config.copy_bias)
        self.slots = nn.Embedding(self.layout.num_slots + 1, width, padding_idx=self.layout.num_slots)
        self.kinds = nn.Embedding(3, width, padding_idx=CLEAN)  # what marks a draft
        self.precision = torch.float32  # of the arithmetic, not of the weights; bfloat16 where it pays
        self._init_weights()

    @torch.no_grad()
    def _init_weights(self) -> None:
        """Near ids start near: a bin as waves of its number."""
        rows, std = self.transformer.embed_tokens.weight, 0.02
        for table in (self.slots, self.kinds):
            nn.init.normal_(table.weight, std=std)
            table.weight[table.padding_idx] = 0
        if not self.config.slots:
            self.slots.requires_grad_(False).weight.zero_()
        for block in (self.vocab.state, self.vocab.value, self.vocab.action):
            phase = torch.linspace(0, 1, block.size)[:, None] * torch.pi * 2 ** torch.arange(5.0)
            near = F.normalize(torch.cat([phase.sin(), phase.cos()], dim=1), dim=-1) @ torch.randn(10, rows.shape[1])
            rows[block.ids()] = std * (0.9 * near / near.std() + 0.45 * torch.randn_like(near))

    @property
    def device(self) -> torch.device:
        return self.kinds.weight.device

    # ---------------------------------------------------------------------------------------------- reading

    @torch.inference_mode()
    def prefill(self, *histories: History) -> Cache:
        """Read the history of one robot, or of R robots whose histories have the same length. R rows."""
        lengths = {len(history.steps) for history in histories}
        if len(lengths) != 1 or not lengths <= {1, 2}:
            raise ValueError(f"histories must all hold one or all two steps, got {[len(h.steps) for h in histories]}")
        instruction = torch.stack([self.layout.instruction_ids(h.instruction) for h in histories])
        views, codes = [], []
        for pairs in zip(*(history.steps for history in histories), strict=True):
            views.append(self.look([obs for obs, _ in pairs]))
            if len(views) < len(histories[0].steps):
                if any(chunk is None for _, chunk in pairs):
                    raise ValueError("the first of two steps needs the chunk that was executed after it")
                executed = torch.from_numpy(np.stack([chunk for _, chunk in pairs]).astype(np.float32))
                codes.append(self.actions.encode(executed).to(self.device))
        return self.context(instruction.to(self.device), views, codes)

    @torch.inference_mode()
    def context(self, instruction: Tensor, views: list[tuple[Tensor, Tensor]], codes: list[Tensor]) -> Cache:
        """The cache of what is already in numbers: instruction (R, I) ids; one or two views, oldest first, each
        image (R, 80) local and state (R, P) bins; codes: one (R, Ka) of local action ids between two views."""
        at, parts = self.layout, [instruction]
        for i, (image, state) in enumerate(views):
            parts.append(at.obs_ids(image, state))
            if i + 1 < len(views):
                parts.append(at.chunk_ids(codes[i]))
        ids = torch.cat(parts, dim=1)  # (R, L)
        slots = torch.cat([torch.full((at.instruction,), -1), torch.arange(ids.shape[1] - at.instruction) % at.step])
        _, kv = self.run(ids, slots, CLEAN, torch.arange(ids.shape[1]))
        return Cache(kv, len(views) - 1, image, state)

    def look(self, observations: list[Obs]) -> tuple[Tensor, Tensor]:
        """R observations of single robots -> image (R, 80) local ids, state (R, P) bins."""
        views = [np.stack([getattr(obs.check(), name) for obs in observations]) for name in ("main", "wrist")]
        image = torch.cat([self.frame_tokenizer.encode(torch.from_numpy(v).to(self.device)) for v in views], dim=1)
        state = torch.from_numpy(np.stack([obs.state for obs in observations]).astype(np.float32))
        return image, self.layout.to_bins(state).to(self.device)

    @torch.inference_mode()
    def read(self, cache: Cache) -> Reading:
        """What is believed now and how the expert would act, in one pass of 30 drafts."""
        at, ids = self.layout, self.layout.act_ids(cache.kv.rows).to(self.device)
        places, whole = at.places(at.act_slots, cache.step), (Piece(at.act, causal=False),)
        h, _ = self.run(ids, at.act_slots, ACT, places, whole, cache.kv)
        belief_h, action_h = h.split([at.beliefs, at.num_coefs + 1], dim=1)
        return Reading(
            belief=self._belief(belief_h),
            coefs=self.logits(action_h[:, :-1], self.vocab.action).softmax(-1),
            gripper=self.logits(action_h[:, -1], self.vocab.gripper).softmax(-1),
        )

    @torch.inference_mode()
    def propose(
        self, cache: Cache, n: int, temperature: float = 1.0, generator: torch.Generator | None = None
    ) -> Tensor:
        """(n, M, A) f32 chunks in [-1, 1] for a cache of one row: the likeliest, then n - 1 drawn id by id.

        temperature: 0 repeats the likeliest. generator: a CPU one.
        """
        if n < 1 or cache.kv.rows != 1:
            raise ValueError(f"propose at least one chunk for one robot, got n={n} and a cache of {cache.kv.rows} rows")
        reading = self.read(cache)
        best = self._likeliest(reading)  # (1, M, A)
        if n == 1 or temperature <= 0:
            return best.repeat(n, 1, 1)
        drawn = [
            torch.multinomial((probs.cpu().double() ** (1 / temperature)), n - 1, replacement=True, generator=generator)
            for probs in (*reading.coefs[0], reading.gripper[0])
        ]  # Ka x (n - 1,)
        return torch.cat([best, self.actions.decode(torch.stack(drawn, dim=1).to(self.device))])

    def _likeliest(self, reading: Reading) -> Tensor:
        """(R, M, A) f32, the chunk that is proposed first."""
        return self.actions.decode_median(reading.coefs, reading.gripper)

    @torch.inference_mode()
    def imagine(self, cache: Cache, actions: Tensor, decode: str = "parallel", follow: int = 0) -> Imagination:
        """What N sequences of H chunks lead to.

        cache: of one row (one robot, N candidates) or N rows; never changed. actions: (N, H, M, A) in [-1, 1].
        decode: `parallel`, all ids of a model step at once, or `causal`, id by id, the slow reference.
        follow: model steps beyond H in which the model acts on by its own likeliest chunks.
        """
        at = self.layout
        if actions.ndim != 4 or actions.shape[2:] != (at.chunk_steps, self.actions.action_dim):
            expected = f"(N, H, {at.chunk_steps}, {self.actions.action_dim})"
            raise ValueError(f"actions to imagine must have shape {expected}, got {tuple(actions.shape)}")
        if cache.kv.rows not in (1, len(actions)):
            raise ValueError(f"a cache of {cache.kv.rows} rows cannot imagine {len(actions)} action sequences")
        if decode not in ("parallel", "causal"):
            raise ValueError(f"decode must be `parallel` or `causal`, got {decode!r}")
        actions = actions.to(self.device, torch.float32)
        codes = [*self.actions.encode(actions).unbind(1), *[None] * follow]
        steps = list((self._draft if decode == "parallel" else self._spell)(cache, codes, len(actions)))
        joined = {f.name: torch.cat([getattr(step, f.name) for step in steps], dim=1) for f in fields(Imagination)}
        # A step takes the one before for a fact, so its own doubt leaves out how wrong that was: variances add up.
        joined["uncertainty"] = joined["uncertainty"].square().cumsum(1).sqrt()
        joined["actions"] = torch.cat([actions, joined["actions"][:, actions.shape[1] :]], dim=1)
        return Imagination(**joined)

    def _draft(self, cache: Cache, codes: list[Tensor | None], rows: int) -> Iterator[Imagination]:
        """The parallel reading: codes of chunks, (N, Ka) each, None where the model goes on by itself -> a step's
        Imagination each. A pass commits the chunk and drafts what follows beside it; another commits what followed."""
        at, kv, step, done = self.layout, cache.kv, cache.step, None
        image, state = cache.image.expand(rows, -1), cache.state.expand(rows, -1)  # (N, 80), (N, P)
        seen, doing = torch.arange(at.obs), torch.arange(at.obs, at.step)
        slots, count = torch.cat([doing, at.next_slots]), len(doing)
        kinds = torch.tensor([CLEAN] * count + [NEXT] * at.next)
        pieces = (Piece(count), Piece(at.next, (0,), causal=False))
        for code in codes:
            if done:  # the next step sees the instruction and this step alone
                before = kv.part(0, at.instruction).then(kv.part(len(kv) - at.obs, len(kv)), done)
                _, now = self.run(at.obs_ids(image, state), seen, CLEAN, at.places(seen, step), None, before)
                kv = before.then(now)
            if code is None:
                code = self.actions.encode(self._likeliest(self.read(Cache(kv, step, image, state))))
            ids = torch.cat([at.chunk_ids(code), at.next_ids(image, state)], dim=1)
            positions = torch.cat([at.places(doing, step), at.places(at.next_slots, step + 1)])
            hidden, new = self.run(ids, slots, kinds, positions, pieces, kv)
            future = self._next(hidden[:, count:], image, state)
            yield replace(future, actions=self.actions.decode(code)[:, None])

            image, state = torch.cat([future.main_ids, future.wrist_ids], dim=2)[:, 0], self._bins(future)
            step, done = step + 1, new.part(0, count)

    def _spell(self, cache: Cache, codes: list[Tensor | None], rows: int) -> Iterator[Imagination]:
        """The next-token reading: every id after the one before, the likeliest each time. As `_draft`."""
        at, vocab, marks, past = self.layout, self.vocab, self.vocab.marks, cache.kv
        instruction, now = past.part(0, at.instruction), past.part(len(past) - at.obs, len(past))
        before, reading = cache.image.expand(rows, -1), None
        mark_at = {at.main.stop: marks.eom, at.wrist.start - 1: marks.bow, at.wrist.stop: marks.eow,
                   at.state.start - 1: marks.bot, at.state.stop: marks.eost}  # fmt: skip
        for h, code in enumerate(codes):
            if code is None:
                code = self.actions.encode(self._likeliest(reading))
            slots = torch.arange(at.obs, at.step)
            _, done = self.run(at.chunk_ids(code), slots, CLEAN, at.places(slots, cache.step + h), None, past)
            past = instruction.then(now, done)

            step, ids = cache.step + h + 1, [torch.full((rows, 1), marks.bom, device=self.device)]
            for slot in range(at.obs):
                place = torch.tensor([slot])
                hidden, new = self.run(ids[slot], place, CLEAN, at.places(place, step), None, past)
                past = past.then(new)
                if slot + 1 in mark_at:
                    ids.append(torch.full_like(ids[0], mark_at[slot + 1]))
                elif slot + 1 < at.obs:
                    block = vocab.state if slot + 1 >= at.state.start else vocab.vision
                    vision = block is vocab.vision
                    local = self.codes(hidden).best() if vision else self.logits(hidden, block).argmax(-1)  # (N, 1)
                    ids.append(block.encode(local))
            now, past = past.part(len(past) - at.obs, len(past)), instruction.then(past.part(at.instruction, len(past)))
            spelled = torch.cat(ids, dim=1)  # (N, 93)
            image = vocab.vision.decode(torch.cat([spelled[:, at.main], spelled[:, at.wrist]], dim=1))
            state = vocab.state.decode(spelled[:, at.state]).float()
            reading = self.read(Cache(past, step, image, state))
            future = self._future(image, state, reading.belief, image.new_empty(*image.shape, 0), before)
            yield replace(future, actions=self.actions.decode(code)[:, None])
            before = image

    def _next(self, hidden: Tensor, image: Tensor, state: Tensor) -> Imagination:
        """Read `next` drafts: hidden (N, 102, width), the observation they edit -> one step, without actions."""
        image_h, state_h, belief_h = hidden.split([IMAGE_IDS, STATE_DIM, self.layout.beliefs], dim=1)
        ids = self.codes(image_h, image).best()  # (N, 80)
        moved = expected_bin(self.logits(state_h, self.vocab.state).softmax(-1)) - self.vocab.state.size // 2
        state = (state + moved).clamp(0, self.vocab.state.size - 1)  # (N, P) bins
        return self._future(ids, state, self._belief(belief_h), image_h, image)

    def _future(self, image: Tensor, state: Tensor, belief: Belief, hidden: Tensor, before: Tensor) -> Imagination:
        """N futures of one step, every field (N, 1, ...)."""
        step = Imagination(
            actions=state.new_empty(0), main_ids=image[:, :MAIN_IDS], wrist_ids=image[:, MAIN_IDS:],
            state=self.layout.from_bins(state), value=belief.value, success=belief.success, held=belief.held,
            keypoints=belief.keypoints, uncertainty=belief.keypoints_std.flatten(1).norm(dim=1), hidden=hidden,
            before=before,
        )  # fmt: skip
        return replace(step, **{f.name: getattr(step, f.name).unsqueeze(1) for f in fields(step)})

    def _bins(self, future: Imagination) -> Tensor:
        return self.layout.to_bins(future.state[:, 0])

    def _belief(self, h: Tensor) -> Belief:
        """h (R, 15, width). The value is a mean over all its ids, because what is asked for is an expectation of
        two different ends; a place or an angle is the mean around the likeliest id."""
        value_h, flags_h, points_h = h.split([1, FLAGS, KEYPOINT_IDS], dim=1)
        value = self.logits(value_h[:, 0], self.vocab.value).softmax(-1)  # (R, 64)
        worth = self.layout.worth.to(h.device)
        mean = value @ worth
        flags = self.logits(flags_h, self.layout.flag).softmax(-1)[..., 1]  # (R, 2)
        points = self.logits(points_h, self.vocab.state).softmax(-1)  # (R, 12, 256)
        bins = torch.arange(points.shape[-1], device=h.device, dtype=torch.float32)
        std = (points @ bins.square() - (points @ bins).square()).clamp_min(0).sqrt()  # (R, 12) bins
        origin = self.layout.points_from_bins(torch.zeros_like(std))
        return Belief(
            value=mean,
            value_std=(value @ worth.square() - mean.square()).clamp_min(0).sqrt(),
            success=flags[:, 0],
            held=flags[:, 1],
            keypoints=self.layout.points_from_bins(expected_bin(points)),
            keypoints_std=self.layout.points_from_bins(std) - origin,
        )

    # ---------------------------------------------------------------------------------------------- frames

    def frames(self, ids: Tensor) -> Tensor:
        """Local ids (..., 64 or 16) -> frames (..., h, w, 3) u8."""
        return self.frame_tokenizer.decode(ids.to(self.device))

    @torch.inference_mode()
    def paint(self, imagination: Imagination, rows: Tensor | slice = slice(None)) -> tuple[Tensor, Tensor]:
        """Frames of some futures, from the mean latent under each id's distribution: main (n, H, 64, 64, 3), wrist
        (n, H, 32, 32, 3) u8."""
        hidden, before = imagination.hidden[rows], imagination.before[rows]
        if not hidden.shape[-1]:  # spelled id by id
            return self.frames(imagination.main_ids[rows]), self.frames(imagination.wrist_ids[rows])
        latents = self.codes(hidden, before).mean_latents()  # (n, H, 80, d)
        paint = self.frame_tokenizer.decode_latents
        return paint(latents[:, :, :MAIN_IDS]), paint(latents[:, :, MAIN_IDS:])

    # ---------------------------------------------------------------------------------------------- the transformer

    def _embed(self, ids: Tensor, slots: Tensor, kinds: Tensor | int) -> Tensor:
        """ids (B, L), slots (L,) with -1 for none, kinds (L,) or one for all -> (B, L, width)."""
        slots = torch.where(slots < 0, self.layout.num_slots, slots).to(ids.device)
        kinds = torch.as_tensor(kinds).expand(len(slots)).to(ids.device)
        block, marks = self.vocab.vision, self.vocab.marks
        seen = block.contains(ids)  # each half is embedded with a harmless id where the other half stands
        plain = self.transformer.embed(ids.masked_fill(seen, marks.pad))
        vision = self.vision.embed(block.decode(ids).where(seen, 0))
        return torch.where(seen[..., None], vision, plain) + (self.slots(slots) + self.kinds(kinds))

    def run(
        self, ids: Tensor, slots: Tensor, kinds: Tensor | int, positions: Tensor,
        pieces: tuple[Piece, ...] | None = None, past: KV | None = None,
    ) -> tuple[Tensor, KV]:  # fmt: skip
        """ids (B, L) with their slots and kinds, as `_embed` takes them -> hidden states (B, L, width), new keys and
        values; positions, pieces and past as in `Transformer.forward`."""
        with self.autocast():
            return self.transformer(self._embed(ids, slots, kinds), positions.to(ids.device), pieces, past)

    def logits(self, h: Tensor, block: Block) -> Tensor:
        """h (..., width) -> (..., size) f32 over the ids of a block other than the vision block, in local order."""
        with self.autocast():
            logits = self.transformer.logits(h, slice(block.lowest, block.stop))
        return logits if block.step > 0 else logits.flip(-1)

    def codes(self, h: Tensor, current: Tensor | None = None) -> CodeDistribution:
        """h (..., width) -> the distribution over local vision ids. current (...): those that drafts started from."""
        with self.autocast():
            return self.vision.read(h, current)

    @contextmanager
    def autocast(self) -> Iterator[None]:
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == torch.bfloat16):
            yield
