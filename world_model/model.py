"""The world model: one transformer over one vocabulary that proposes, imagines and judges.

    forward(batch)            the loss of a batch of training windows
    prefill(histories)        what each of R robots has seen, as a cache
    read(cache)               what is believed now, and how the expert would act
    propose(cache, n)         n chunks for each robot
    imagine(cache, actions)   what N sequences of H chunks of each robot lead to
    draw_view(cache, poses)   what further cameras would show now

The cache is a value: nothing here keeps state between calls but the weights. What is taught stands in
`training/loss.py`, how a future is decoded in `decoding.py`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from envs.types import Observation, Spec
from world_model import decoding
from world_model.decoding import std_bin
from world_model.nn.transformer import KV, Segment, Transformer, TransformerConfig
from world_model.nn.vision_codes import CodeDistribution, VisionCodes
from world_model.tokens.actions import ActionTokenizer, expected_bin
from world_model.tokens.images import ImageTokenizer
from world_model.tokens.layout import ACT, CAUSAL, FLAGS, NEXT, VIEW, Layout
from world_model.tokens.poses import POSE_IDS, PoseRange
from world_model.tokens.vocab import Block, Vocab
from world_model.training.loss import Losses, LossWeights, batch_losses
from world_model.types import FIELDS, Belief, Cache, History, Imagination, Readout

if TYPE_CHECKING:
    from world_model.training.dataset import Batch

# Candidates in a pass of parallel decoding on a CPU: what lies between the layers then stays in the processor's cache
# and in memory that is used again, which makes 64 candidates a fifth faster.
CPU_ROWS = 16


@dataclass(frozen=True)
class ModelConfig:
    """transformer: sizes. instruction: ids kept for the text. step_embed: learned embeddings of the position within a
    model step.

    smoothing: standard deviation of ordinal targets in bins. factored: embed a vision id by its digits, or else by a
    row of its own, as pretrained tables do. copy_bias: log-odds before training that an id of the next image stays
    what it is now. strides: control steps that a model step may cover, beside the M of a whole chunk.
    """

    transformer: TransformerConfig = field(default_factory=TransformerConfig)
    instruction: int = 24
    step_embed: bool = True
    smoothing: float = 1.2
    factored: bool = True
    copy_bias: float = 3.0
    strides: tuple[int, ...] = ()
    weights: LossWeights = field(default_factory=LossWeights)

    @classmethod
    def from_dict(cls, raw: dict) -> ModelConfig:
        """The inverse of `dataclasses.asdict`."""
        return cls(**{
            **raw, "transformer": TransformerConfig(**raw["transformer"]), "weights": LossWeights(**raw["weights"]),
            "strides": tuple(raw.get("strides", ())),
        })  # fmt: skip

    to_dict = asdict


class WorldModel(nn.Module):
    """The transformer with what turns the world into ids and back. The image tokenizer is frozen.

    The uncertainty of a model step is the standard deviation of all keypoints together, in metres. Without keypoints
    it is that of the state's positions, in metres; without positions that of the whole state, in shares of its ranges.
    """

    def __init__(
        self, config: ModelConfig, spec: Spec, vocab: Vocab, frames: ImageTokenizer, actions: ActionTokenizer,
        poses: tuple[PoseRange, ...] = (),
    ):  # fmt: skip
        """poses: of the cameras whose pose the model is told, whatever the spec says of who could tell it."""
        super().__init__()
        told = [pose.camera for pose in poses]
        spec = replace(spec, cameras=tuple(replace(c, posed=c.name in told) for c in spec.cameras))
        self.config, self.spec, self.vocab, self.actions = config, spec, vocab, actions
        self.layout = at = Layout(
            spec, vocab, actions.coefs, actions.chunk, config.instruction, config.strides, poses
        )  # fmt: skip
        _check_parts(spec, vocab, frames, actions)
        self.frame_tokenizer = frames.requires_grad_(False)
        width = config.transformer.width
        self.transformer = Transformer(config.transformer, vocab.vision.lowest)  # the vision block comes last
        levels = frames.config.levels if config.factored else (frames.vision_size,)
        latents = frames.digit_latents() if config.factored else frames.codes()
        self.vision = VisionCodes(levels, latents, width, config.copy_bias)
        self.step_embed = nn.Embedding(at.num_slots + 1, width, padding_idx=at.num_slots)
        # What marks a parallel copy; views can be drawn where poses are told.
        self.token_type_embed = nn.Embedding(VIEW + 1 if poses else VIEW, width, padding_idx=CAUSAL)
        self.precision = torch.float32  # of the arithmetic, not of the weights; bfloat16 where it pays
        for name, value in (
            ("step_slots", torch.arange(at.step)), ("act_slots", at.act_slots), ("next_slots", at.next_slots),
            ("view_slots", at.view_slots),
            ("chunk_next_types", torch.tensor([CAUSAL] * at.chunk + [NEXT] * at.next)),
            ("value_support", at.value_support),
        ):  # fmt: skip
            self.register_buffer(name, value, persistent=False)
        self._init_weights()

    @torch.no_grad()
    def _init_weights(self) -> None:
        """Near ids start near: a bin as waves of its number."""
        rows, std = self.transformer.embed_tokens.weight, 0.02
        for table in (self.step_embed, self.token_type_embed):
            nn.init.normal_(table.weight, std=std)
            table.weight[table.padding_idx] = 0
        if not self.config.step_embed:
            self.step_embed.requires_grad_(False).weight.zero_()
        for block in (self.vocab.state, self.vocab.value, self.vocab.action):
            phase = torch.linspace(0, 1, block.size)[:, None] * torch.pi * 2 ** torch.arange(5.0)
            near = F.normalize(torch.cat([phase.sin(), phase.cos()], dim=1), dim=-1) @ torch.randn(10, rows.shape[1])
            rows[block.ids()] = std * (0.9 * near / near.std() + 0.45 * torch.randn_like(near))

    @property
    def strides(self) -> tuple[int, ...]:
        """Control steps that a model step may cover, in order; the last is M."""
        return self.layout.strides

    @property
    def device(self) -> torch.device:
        return self.token_type_embed.weight.device

    def forward(self, batch: Batch, first: int = 0, images: bool = True) -> Losses:
        """What a batch of windows teaches: `batch_losses`. Through here, so that parameters which are spread over
        several processes are gathered around it."""
        return batch_losses(self, batch, first, images)

    # ---------------------------------------------------------------------------------------------- reading

    @torch.no_grad()
    def prefill(self, histories: Sequence[History]) -> Cache:
        """Read the histories of R robots in one pass; some may hold one step and others two."""
        lengths = [len(history.steps) for history in histories]
        if not lengths or not set(lengths) <= {1, 2}:
            raise ValueError(f"histories must hold one or two steps each, got {lengths}")
        instruction = torch.stack([self.layout.instruction_ids(h.instruction) for h in histories]).to(self.device)
        now = self.encode_observations([history.steps[-1][0] for history in histories])
        if max(lengths) == 1:
            return self.context(instruction, [now], [])
        # Where there is no step before, something must stand in its place; it is padding that nobody sees.
        before = self.encode_observations([history.steps[0][0] for history in histories])
        if any(len(history.steps) == 2 and history.steps[0][1] is None for history in histories):
            raise ValueError("the first of two steps needs the chunk that was executed after it")
        return self.remembering(instruction, now, before, [h.steps[0][1] for h in histories])

    @torch.no_grad()
    def remembering(
        self, instruction: Tensor, now: tuple[Tensor, ...], before: tuple[Tensor, ...],
        executed: Sequence[np.ndarray | None],
    ) -> Cache:  # fmt: skip
        """The cache of R robots, of which some remember a step: as `context`, with the control steps (n, A) executed
        between the two observations, None for a robot that has none before now, whose `before` may be anything."""
        has = [each is not None for each in executed]
        if not any(has):
            return self.context(instruction, [now], [])
        chunk = self.actions.chunk
        nothing = np.broadcast_to(self.spec.rest, (chunk, len(self.spec.action)))
        executed = [nothing if each is None else each for each in executed]
        steps = [len(each) for each in executed]
        self.layout.require_strides(steps)
        stride = None if min(steps) == chunk else torch.tensor(steps)
        full = np.stack([np.pad(each, ((0, chunk - len(each)), (0, 0))) for each in executed]).astype(np.float32)
        code = self.actions.encode(torch.from_numpy(full), steps=stride).to(self.device)
        has_past = None if all(has) else torch.tensor(has, device=self.device)
        stride = None if stride is None else stride.to(self.device)
        return self.context(instruction, [before, now], [code], has_past, stride)

    @torch.no_grad()
    def context(
        self, instruction: Tensor, observations: Sequence[tuple[Tensor, ...]], codes: Sequence[Tensor],
        has_past: Tensor | None = None, stride: int | Tensor | None = None,
    ) -> Cache:  # fmt: skip
        """The cache of what is already in numbers.

        instruction: (R, I) ids. observations: one or two, oldest first, each image (R, K) local, state (R, P) bins and,
        where poses are known, pose (R, Q) bins. codes: one (R, Ka) of local action ids between two observations.
        has_past: (R,) bool, which of the robots have the first of two observations; all of them where it is None.
        stride: control steps between them, one number or (R,); None for M.
        """
        at, parts = self.layout, [instruction]
        for i, seen in enumerate(observations):
            parts.append(at.obs_ids(*seen))
            if i + 1 < len(observations):
                parts.append(at.chunk_ids(codes[i], stride))
        ids = torch.cat(parts, dim=1)  # (R, L)
        positions = torch.arange(ids.shape[1], device=ids.device)
        in_steps = positions - at.instruction
        slots = torch.where(in_steps < 0, -1, in_steps % at.step)
        step, mask = torch.full_like(ids[:, 0], len(observations) - 1), None
        if has_past is not None:
            step, missing = has_past.long(), ~has_past[:, None]
            mask = ~(missing & (in_steps >= 0) & (in_steps < at.step))  # (R, L)
            positions = positions - at.step * (missing & (in_steps >= at.step))  # (R, L): now is their first step
        image, state, *pose = observations[-1]
        return Cache(
            self.remember(ids, slots, CAUSAL, positions, mask=mask), step, image, state, *(pose or [at.untold(image)])
        )

    def encode_observations(self, observations: Sequence[Observation]) -> tuple[Tensor, Tensor, Tensor]:
        """Of R robots, one each -> image (R, K) local ids, state (R, P) and pose (R, Q) bins, NaN where unknown.
        ValueError for what the spec is not."""
        seen = Observation.stack([replace(obs.check(self.spec), poses={}) for obs in observations])
        images = [torch.from_numpy(seen.images[camera.name]).to(self.device) for camera in self.spec.cameras]
        image = torch.cat([self.frame_tokenizer.encode(each) for each in images], dim=1)
        at = self.layout
        unknown = np.full(POSE_IDS, np.nan, np.float32)
        told = [[obs.poses.get(pose.camera, unknown) for pose in at.poses] for obs in observations]
        pose = at.pose_to_bins(torch.from_numpy(np.array(told, np.float32)).flatten(1))  # (R, Q)
        return image, at.to_bins(torch.from_numpy(seen.state)).to(self.device), pose.to(self.device)

    @torch.no_grad()
    def read(self, cache: Cache) -> Readout:
        """What is believed now and how the expert would act, in one pass."""
        at = self.layout
        ids = at.act_ids(cache.kv.rows, device=self.device)
        positions = at.position_ids(self.act_slots, cache.step[:, None])
        h, _ = self.run(ids, self.act_slots, ACT, positions, (Segment(at.act, causal=False),), (cache.kv,))
        belief_h, coefs_h, gripper_h = h.split([at.beliefs, at.num_coefs, at.num_grippers], dim=1)
        return Readout(
            belief=self._belief(belief_h),
            coefs=self.logits(coefs_h, self.vocab.action).softmax(-1),
            gripper=self.logits(gripper_h, self.vocab.gripper).softmax(-1),
        )

    @torch.no_grad()
    def propose(
        self, cache: Cache, n: int, temperature: float = 1.0, generators: Sequence[torch.Generator] | None = None,
        joint: bool = False,
    ) -> Tensor:  # fmt: skip
        """(R, n, M, A) f32 chunks in the robot's units: the likeliest, then n - 1 that are drawn.

        temperature: 0 repeats the likeliest. generators: a CPU one for each robot. joint: draw the ids of a chunk one
        after the other, each knowing those before it, in as many passes; else each from its own distribution, in one
        pass, which mixes modes where there are several.
        """
        at, rows = self.layout, cache.kv.rows
        if n < 1 or (generators is not None and len(generators) != rows):
            raise ValueError(
                f"propose at least one chunk, with one generator for each of {rows} robots, got n={n} and "
                f"{'none' if generators is None else len(generators)}"
            )
        readout = self.read(cache)
        best = self.likeliest(readout)[:, None]  # (R, 1, M, A)
        if n == 1 or temperature <= 0:
            return best.repeat(1, n, 1, 1)
        # Only random numbers come from the CPU; what is drawn with them is what `torch.multinomial` would draw there.
        noise = torch.stack([
            torch.rand(at.num_action_ids, n - 1, dtype=torch.float64, generator=generator)
            for generator in generators or [None] * rows
        ]).to(self.device)  # (R, Ka, n - 1)
        if joint:
            codes = decoding.chunks_jointly(self, cache, noise, temperature)
        else:
            shares = noise.split([at.num_coefs, at.num_grippers], dim=1)
            parts = zip((readout.coefs, readout.gripper), shares, strict=True)
            drawn = torch.cat([decoding.draw(*part, temperature) for part in parts], dim=1)  # (R, Ka, n - 1)
            codes = drawn.transpose(1, 2)
        return torch.cat([best, self.actions.decode(codes)], dim=1)

    def likeliest(self, readout: Readout) -> Tensor:
        """(R, M, A) f32, the chunk that is proposed first."""
        return self.actions.decode_median(readout.coefs, readout.gripper)

    @torch.no_grad()
    def imagine(
        self, cache: Cache, actions: Tensor, decode: str = "parallel", follow: int = 0,
        strides: int | Sequence[int] | None = None, images: bool = True,
    ) -> Imagination:  # fmt: skip
        """What N sequences of H chunks of each of R robots lead to.

        cache: of R rows; never changed. actions: (R, N, H, M, A) in the robot's units; a sequence that holds NaN has
        the value NaN. decode: `parallel`, all ids of a model step at once, or `autoregressive`, id by id, the slow
        reference. follow: model steps beyond H in which the model acts on by its own likeliest chunks. strides: control
        steps of each chunk that are executed before the next, and so what a model step covers: one number, one for each
        of H + follow, or None for all M. What follows them in a chunk has no effect. images: whether any are wanted; a
        search needs none, and parallel decoding then leaves out those of the last step. ValueError where the model was
        not taught that.
        """
        if actions.ndim != 5 or actions.shape[3:] != (self.actions.chunk, self.actions.action_dim):
            expected = f"(R, N, H, {self.actions.chunk}, {self.actions.action_dim})"
            raise ValueError(f"actions to imagine must have shape {expected}, got {tuple(actions.shape)}")
        horizon = actions.shape[2]
        each = self._strides(strides, horizon + follow)
        actions = actions.to(self.device, torch.float32)
        codes = [self.actions.encode(actions[:, :, h], False, each[h]) for h in range(horizon)]
        imagined = self.imagine_codes(cache, torch.stack(codes, dim=2), decode, follow, each, images)
        unsound = ~torch.isfinite(actions).flatten(2).all(-1)  # (R, N)
        return replace(
            imagined, actions=torch.cat([actions, imagined.actions[:, :, horizon:]], dim=2),
            value=imagined.value.masked_fill(unsound[..., None], torch.nan),
        )  # fmt: skip

    @torch.no_grad()
    def imagine_codes(
        self, cache: Cache, codes: Tensor, decode: str = "parallel", follow: int = 0,
        strides: int | Sequence[int] | None = None, images: bool = True,
    ) -> Imagination:  # fmt: skip
        """As `imagine`, of chunks in numbers already: codes (R, N, H, Ka), each said of its stride alone."""
        robots, candidates, horizon = codes.shape[:3]
        if cache.kv.rows != robots:
            raise ValueError(f"a cache of {cache.kv.rows} robots cannot imagine actions of {robots}")
        decoders = {"parallel": decoding.parallel, "autoregressive": decoding.autoregressive}
        if decode not in decoders:
            raise ValueError(f"decode must be one of {', '.join(decoders)}, got {decode!r}")
        if not (images or self.imagines_without_images):
            raise ValueError("this model was trained with `model.weights.imageless=0`: imagine with images=True")
        each = self._strides(strides, horizon + follow)
        together = max(1, CPU_ROWS // robots) if decode == "parallel" and self.device.type == "cpu" else candidates
        blocks = []
        for block in codes.split(together, dim=1):
            chunks = [*block.flatten(0, 1).unbind(1), *[None] * follow]
            steps = list(decoders[decode](self, cache, chunks, block.shape[0] * block.shape[1], each, images))
            blocks.append({
                name: torch.cat([getattr(step, name) for step in steps], dim=1).unflatten(0, block.shape[:2])
                for name in FIELDS
            })  # fmt: skip
        joined = {name: torch.cat([block[name] for block in blocks], dim=1) for name in blocks[0]}
        # A step takes the one before for a fact, so its own uncertainty leaves out how wrong that was: variances add.
        joined["uncertainty"] = joined["uncertainty"].square().cumsum(2).sqrt()
        return Imagination(**joined, strides=each)

    def _strides(self, strides: int | Sequence[int] | None, steps: int) -> tuple[int, ...]:
        """One for each of so many model steps. ValueError where it is another number of them, or of another length."""
        strides = self.actions.chunk if strides is None else strides
        each = (strides,) * steps if isinstance(strides, int) else tuple(strides)
        if len(each) != steps:
            raise ValueError(f"{steps} model steps need as many strides, or one for all, got {len(each)}")
        self.layout.require_strides(each)
        return each

    @property
    def imagines_without_images(self) -> bool:
        """Whether it was taught to say what a future is worth without drawing it."""
        return self.config.weights.imageless > 0

    def read_next(self, hidden: Tensor, image: Tensor, state: Tensor) -> Imagination:
        """Read `next`: hidden (N, next or outcome, width), the observation that it edits -> one step, without actions;
        of an outcome without images, too."""
        at, bins = self.layout, self.vocab.state
        drawn = hidden.shape[1] - at.outcome
        image_h, state_h, belief_h = hidden.split([drawn, at.state_dim, at.beliefs], dim=1)
        image = image[:, :drawn]
        ids = self.codes(image_h, image).best()  # (N, K)
        probs = self.logits(state_h, bins).softmax(-1)  # (N, P, 256)
        moved = expected_bin(probs) - bins.size // 2
        state = (state + moved).clamp(0, bins.size - 1)  # (N, P) bins
        return self.future(ids, state, std_bin(probs), self._belief(belief_h), image_h, image)

    def future(
        self, image: Tensor, state: Tensor, state_std: Tensor, belief: Belief, hidden: Tensor, before: Tensor
    ) -> Imagination:
        """N futures of one step, every field (N, 1, ...). state, state_std: (N, P) bins."""
        step = Imagination(
            actions=state.new_empty(0), image_ids=image, state=self.layout.from_bins(state), value=belief.value,
            success=belief.success, held=belief.held, keypoints=belief.keypoints,
            uncertainty=self._uncertainty(state_std, belief), hidden=hidden, before=before, strides=(),
        )  # fmt: skip
        return replace(step, **{name: getattr(step, name).unsqueeze(1) for name in FIELDS})

    def _uncertainty(self, state_std: Tensor, belief: Belief) -> Tensor:
        """(N,), as the class says."""
        if self.spec.keypoints:
            return belief.keypoints_std.flatten(1).norm(dim=1)
        share = state_std / (self.vocab.state.size - 1)  # (N, P) of the range
        positions = [i for position in self.spec.positions for i in position]
        if not positions:
            return share.norm(dim=1)
        metres = [share[:, i] * (self.spec.state[i].high - self.spec.state[i].low) for i in positions]
        return torch.stack(metres, dim=1).norm(dim=1)

    def _belief(self, h: Tensor) -> Belief:
        """h (R, beliefs, width). The value is a mean over all its ids, because what is asked for is an expectation of
        two different ends; a place or an angle is the mean around the likeliest id."""
        value_h, flags_h, points_h = h.split([1, FLAGS, self.layout.keypoint_ids], dim=1)
        value = self.logits(value_h[:, 0], self.vocab.value).softmax(-1)  # (R, 64)
        mean = value @ self.value_support
        flags = self.logits(flags_h, self.layout.flag).softmax(-1)[..., 1]  # (R, 2)
        points = self.logits(points_h, self.vocab.state).softmax(-1)  # (R, 3 n, 256)
        std = std_bin(points)  # (R, 3 n) bins
        origin = self.layout.points_from_bins(torch.zeros_like(std))
        return Belief(
            value=mean,
            value_std=(value @ self.value_support.square() - mean.square()).clamp_min(0).sqrt(),
            success=flags[:, 0],
            held=flags[:, 1],
            keypoints=self.layout.points_from_bins(expected_bin(points)),
            keypoints_std=self.layout.points_from_bins(std) - origin,
        )

    # ---------------------------------------------------------------------------------------------- images

    def frames(self, ids: Tensor) -> dict[str, Tensor]:
        """Local ids (..., K) of all cameras -> each camera's images (..., h, w, 3) u8."""
        return self.frame_tokenizer.decode_all(ids.to(self.device))

    @torch.no_grad()
    def draw_view(self, cache: Cache, poses: Tensor) -> Tensor:
        """What further cameras would show now, in one pass: poses (R, n, 8) f32, `envs.types.POSE`, of n of them for
        each robot -> (R, n, h, w, 3) u8, images of the size of `layout.view_camera`, from the mean latents.

        ValueError where the model is told no poses, or a pose is not known.
        """
        at = self.layout
        if not at.poses:
            raise ValueError("this model was trained without camera poses, so it cannot draw the scene from elsewhere")
        if poses.ndim != 3 or poses.shape[::2] != (cache.kv.rows, POSE_IDS) or not torch.isfinite(poses).all():
            raise ValueError(
                f"poses to draw from must be known and of shape ({cache.kv.rows}, n, {POSE_IDS}), got "
                f"{tuple(poses.shape)}"
            )
        bins = at.poses[0].to_bins(poses.to(self.device, torch.float32)).flatten(0, 1)
        positions, segments = at.position_ids(self.view_slots, cache.step[:, None]), (Segment(at.view, causal=False),)
        h, _ = self.run(at.view_ids(bins), self.view_slots, VIEW, positions, segments, (cache.kv,))
        latents = self.codes(h[:, POSE_IDS:]).mean_latents()  # (R n, Kv, d)
        return self.frame_tokenizer.decode_latents(latents, at.view_camera).unflatten(0, poses.shape[:2])

    @torch.no_grad()
    def decode_frames(self, imagination: Imagination, rows: Tensor | slice = slice(None)) -> dict[str, Tensor]:
        """Images of some of one robot's futures, (N, H, ...) as `imagination[robot]` has them, from the mean latent
        under each id's distribution -> each camera's (n, H, h, w, 3) u8. ValueError where none were imagined."""
        hidden, before = imagination.hidden[rows], imagination.before[rows]
        if not before.shape[-1]:
            raise ValueError("these futures were imagined without images: imagine them with images=True")
        if not hidden.shape[-1]:  # decoded id by id
            return self.frames(imagination.image_ids[rows])
        return self.frame_tokenizer.decode_all_latents(self.codes(hidden, before).mean_latents())  # (n, H, K, d)

    # ---------------------------------------------------------------------------------------------- the transformer

    def _embed(self, ids: Tensor, slots: Tensor, token_types: Tensor | int) -> Tensor:
        """ids (B, L), slots (L,) with -1 for none, token types (L,) or one for all -> (B, L, width)."""
        slots = torch.where(slots < 0, self.layout.num_slots, slots).to(ids.device)
        if isinstance(token_types, int):
            token_types = torch.full_like(slots, token_types)
        block, marks = self.vocab.vision, self.vocab.marks
        seen = block.contains(ids)  # each half is embedded with a harmless id where the other half stands
        plain = self.transformer.embed(ids.masked_fill(seen, marks.pad))
        vision = self.vision.embed(block.decode(ids).where(seen, 0))
        added = self.step_embed(slots) + self.token_type_embed(token_types.to(ids.device))
        return torch.where(seen[..., None], vision, plain) + added

    def run(
        self, ids: Tensor, slots: Tensor, token_types: Tensor | int, positions: Tensor,
        segments: tuple[Segment, ...] | None = None, past: Sequence[KV] = (), mask: Tensor | None = None,
        first: int = 0,
    ) -> tuple[Tensor, KV]:  # fmt: skip
        """ids (B, L) with their slots and token types, as `_embed` takes them -> hidden states (B, L, width), new keys
        and values; the others as in `Transformer.forward`."""
        with self.autocast():
            x = self._embed(ids, slots, token_types)
            return self.transformer(x, positions.to(ids.device), segments, past, mask, first)

    def remember(
        self, ids: Tensor, slots: Tensor, token_types: Tensor | int, positions: Tensor, past: Sequence[KV] = (),
        mask: Tensor | None = None,
    ) -> KV:  # fmt: skip
        """The keys and values of one causal segment, as `run` gives them but cheaper: no hidden state is read."""
        return self.run(ids, slots, token_types, positions, past=past, mask=mask, first=1)[1]

    def logits(self, h: Tensor, block: Block) -> Tensor:
        """h (..., width) -> (..., size) f32 over the ids of a block other than the vision block, in local order."""
        with self.autocast():
            logits = self.transformer.logits(h, slice(block.lowest, block.stop))
        return logits if block.step > 0 else logits.flip(-1)

    def codes(self, h: Tensor, current: Tensor | None = None) -> CodeDistribution:
        """h (..., width) -> the distribution over local vision ids. current (...): those that an edit started from."""
        with self.autocast():
            return self.vision.read(h, current)

    @contextmanager
    def autocast(self) -> Iterator[None]:
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == torch.bfloat16):
            yield


def _check_parts(spec: Spec, vocab: Vocab, frames: ImageTokenizer, actions: ActionTokenizer) -> None:
    """ValueError where the tokenizers are of another robot or of another size than the vocabulary."""
    if frames.vision_size != vocab.vision.size:
        raise ValueError(f"{frames.vision_size} image codes do not fit a vision block of {vocab.vision.size} ids")
    if frames.config.cameras != spec.cameras:
        raise ValueError(f"the image tokenizer is of the cameras {frames.config.cameras}, the robot has {spec.cameras}")
    coded = (actions.low, actions.high, actions.grippers)
    theirs = (tuple(part.low for part in spec.action), tuple(part.high for part in spec.action), spec.grippers)
    if coded != theirs:
        raise ValueError(f"the action tokenizer codes ranges and grippers {coded}, the robot has {theirs}")
    if actions.gripper_size != vocab.gripper.size:
        raise ValueError(f"{actions.gripper_size} gripper codes do not fit a block of {vocab.gripper.size} ids")
