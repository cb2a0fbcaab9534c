"""A chunk of M control steps as a fixed number of ids: a few DCT coefficients a dimension, and the grippers.

Smooth motion lives in the first coefficients of a cosine transform over time (the idea of FAST, Pertsch et al.
2025, without its byte-pair coding: batched planning needs every chunk to have the same length). A gripper is
one id: which way it is commanded at the start, and the step at which that changes.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from itertools import accumulate

import torch

from envs.types import Spec
from world_model.nn.device import constants
from world_model.tokens.vocab import ACTION_BINS

ZERO_BIN = ACTION_BINS // 2  # decodes to exactly 0, so that standing still stays standing still
SCALE_QUANTILE = 0.999
SCALE_MARGIN = 1.1
SMALLEST_SCALE = 0.02  # a dimension that hardly moves in the data still gets bins of finite width
LOST = 0.01  # share of a dimension's variance that its coefficients may leave out
AFTER = 0.01  # weight of a control step that is not executed, where coefficients are fitted to those that are
STILL = 1e-4  # a dimension that stays within this share of its range does not move


@lru_cache(maxsize=16)
def cosine_basis(chunk: int, device: torch.device | None = None) -> torch.Tensor:
    """The orthonormal DCT-II over `chunk` steps: (coefficient, step) f32, its inverse is its transpose."""
    with torch.inference_mode(False):  # kept, also for those who compute gradients
        step = (torch.arange(chunk, dtype=torch.float64) + 0.5) / chunk
        basis = torch.cos(math.pi * torch.arange(chunk, dtype=torch.float64)[:, None] * step) * math.sqrt(2 / chunk)
        basis[0] /= math.sqrt(2)
        return basis.float().to(device)


@lru_cache(maxsize=16)
def short_basis(chunk: int, count: int, device: torch.device | None = None) -> torch.Tensor:
    """What takes a chunk that is held after its first n control steps to the first `count` cosine coefficients that fit
    those n best, for every n: (n - 1, coefficient, step) f32. The last one is the transform itself.

    A cosine series that is cut off bends the few steps that count towards those that do not: added up over two executed
    steps of a lift, commands are off by 0.025 of a full one, over all eight by 0.018. Weighted least squares leave
    0.009 of two; what follows is held and not at rest, which would leave 0.066.
    """
    with torch.inference_mode(False):
        basis, step = cosine_basis(chunk)[:count].double(), torch.arange(chunk)
        weighted = basis * torch.where(step <= step[:, None], 1.0, AFTER)[:, None]  # (n - 1, coefficient, step)
        fit, _ = torch.linalg.solve_ex(weighted @ basis.T, weighted)
        return torch.cat([fit[:-1], basis[None]]).float().to(device)


def hold(chunks: torch.Tensor, steps: int | torch.Tensor) -> torch.Tensor:
    """Chunks (..., M, A) of which `steps` control steps, (...) or one for all, are executed: the last of them is
    commanded to the end, so that nothing is left of what would have followed."""
    index = torch.arange(chunks.shape[-2], device=chunks.device)
    if isinstance(steps, int):
        index = index.clamp_max(steps - 1)
    else:
        index = torch.minimum(index, steps[..., None] - 1)  # (..., M)
    return torch.take_along_dim(chunks, index.expand(chunks.shape[:-1])[..., None], dim=-2)


def expected_bin(probs: torch.Tensor, radius: int = 4) -> torch.Tensor:
    """Mean bin within `radius` of the likeliest one: probs (..., bins) -> (...) f32, in bins.

    Finer than the mode when targets were smoothed, and not pulled between two modes as the full mean is.
    """
    bins = torch.arange(probs.shape[-1], device=probs.device)
    near = (bins - probs.argmax(-1, keepdim=True)).abs() <= radius
    weight = probs.float() * near
    return (weight * bins).sum(-1) / weight.sum(-1).clamp_min(1e-12)


def median_bin(probs: torch.Tensor) -> torch.Tensor:
    """Median bin, between bins where it falls there: probs (..., bins) -> (...) f32, in bins.

    Experts that wait say exactly zero. That makes one bin the likeliest long before it is likely, and an agent that
    follows the likeliest bin stands still where nine in ten would go on; the median goes with the majority.
    """
    below = probs.float().cumsum(-1)  # the share up to and including a bin
    half = below[..., -1:] / 2
    at = (below < half).sum(-1, keepdim=True).clamp_max(probs.shape[-1] - 1)
    inside = (half - below.gather(-1, at)) / probs.float().gather(-1, at).clamp_min(1e-12)  # -1 .. 0
    return (at + 0.5 + inside)[..., 0]


def scale_codes(codes: torch.Tensor, factor: torch.Tensor, spec: Spec, coefs: tuple[int, ...]) -> torch.Tensor:
    """Codes (B, ..., Ka) of chunks whose commands are each multiplied by factor (B, A), to half a bin, within the
    outermost ones. Ranges of dimensions that do not keep theirs must be even about 0; grippers keep theirs."""
    others = [i for i in range(len(spec.action)) if i not in spec.grippers]
    each = factor[:, others].repeat_interleave(torch.tensor(coefs, device=factor.device), dim=1)  # (B, sum(coefs))
    each = each.view(len(codes), *[1] * (codes.ndim - 2), -1)
    bins, grippers = codes.tensor_split([sum(coefs)], dim=-1)
    bins = ((bins - ZERO_BIN) * each).round().long() + ZERO_BIN
    return torch.cat([bins.clamp(0, ACTION_BINS - 1), grippers], dim=-1)


@dataclass(frozen=True)
class RoundTrip:
    """What the code costs: error between chunks and their decoded codes, a control step, in halves of the range."""

    rms: tuple[float, ...]  # a dimension, without the grippers
    coded_rms: float  # over the dimensions that have coefficients
    gripper_wrong: float  # fraction of steps whose gripper command is not kept (0 if no chunk switches twice)
    clipped: float  # fraction of coefficients beyond the outermost bin


@dataclass(frozen=True)
class ActionTokenizer:
    """`(..., M, A) <-> (..., Ka)`: coefficient bins, dimension after dimension, then a number for each gripper.

    Actions are in the robot's own units. Inside, low..high of each dimension is [-1, 1].
    chunk: M. low, high: range of each of the A dimensions. grippers: indices of those that are grippers, commanded to
    `low` to open and to `high` to close; a command above the middle closes.
    coefs: coefficients kept for each of the other dimensions, in order. scale: largest magnitude of each kept
    coefficient; bins are even between -scale and +scale. still: what each of the other dimensions decodes to if it
    has no coefficients.
    """

    chunk: int
    low: tuple[float, ...]
    high: tuple[float, ...]
    grippers: tuple[int, ...]
    coefs: tuple[int, ...]
    scale: tuple[float, ...]
    still: tuple[float, ...]

    def __post_init__(self) -> None:
        count = len(self.low) - len(self.grippers)
        if len(self.high) != len(self.low) or not all(
            math.isfinite(a) and math.isfinite(b) and a < b for a, b in zip(self.low, self.high, strict=True)
        ):
            raise ValueError(f"every action dimension needs a finite range, got {self.low} to {self.high}")
        if len(set(self.grippers)) != len(self.grippers) or not set(self.grippers) <= set(range(len(self.low))):
            raise ValueError(f"`grippers` must be different dimensions of {len(self.low)}, got {self.grippers}")
        if len(self.coefs) != count or not all(0 <= kept <= self.chunk for kept in self.coefs):
            raise ValueError(
                f"`coefs` must keep 0 to {self.chunk} coefficients of each of {count} dimensions, got {self.coefs}"
            )
        if not self.num_ids:
            raise ValueError("a chunk needs at least one id, but no dimension moves and there is no gripper")
        if len(self.scale) != self.num_coefs or not all(math.isfinite(s) and s > 0 for s in self.scale):
            raise ValueError(f"`scale` must hold {self.num_coefs} positive numbers, got {self.scale}")
        if len(self.still) != count or not all(math.isfinite(s) for s in self.still):
            raise ValueError(f"`still` must hold {count} finite numbers, got {self.still}")

    @classmethod
    def create(cls, spec: Spec, coefs: tuple[int, ...], chunk: int = 8) -> ActionTokenizer:
        """Bins wide enough for every action in the spec's range; prefer `fit`, whose bins are finer."""
        reach = cosine_basis(chunk).abs().sum(1).tolist()
        return cls(
            chunk=chunk,
            low=tuple(part.low for part in spec.action),
            high=tuple(part.high for part in spec.action),
            grippers=spec.grippers,
            coefs=tuple(coefs),
            scale=tuple(each for count in coefs for each in reach[:count]),
            still=tuple(float(spec.rest[i]) for i, part in enumerate(spec.action) if not part.gripper),
        )

    @classmethod
    def fit(
        cls, chunks: torch.Tensor, spec: Spec, coefs: tuple[int, ...] | None = None, strides: Iterable[int] = ()
    ) -> ActionTokenizer:
        """Set coefficients and bins from chunks (n, M, A) in the robot's units.

        coefs: coefficients of each dimension that is no gripper; without it each dimension gets the fewest that leave
        out at most 1 % of its variance over steps and chunks, M at most, and one that does not move gets none.
        strides: numbers of control steps of which chunks will be said too; held commands reach further than a mean.
        Bins: all but the outermost 0.1 % of each coefficient fit, with 10 % margin.
        Raise ValueError for NaN, and where `coefs` has none for a dimension that moves, by its name.
        """
        if not len(chunks) or not torch.isfinite(chunks).all():
            raise ValueError("fit an action tokenizer to at least one chunk, without NaN or infinity")
        length = chunks.shape[-2]
        names = [part.name for part in spec.action if not part.gripper]
        full = cls.create(spec, (length,) * len(names), length)
        moving = full._others(chunks.float()).flatten(0, -2)  # (n M, dimensions)
        unit = full._others(full._to_unit(chunks)).flatten(0, -2)
        moves = [bool(d.max() - d.min() > 2 * STILL) for d in unit.unbind(-1)]
        if coefs is None:
            coefs = full._needed(chunks, moves)
        lost = [name for name, kept, moved in zip(names, coefs, moves, strict=False) if moved and not kept]
        if lost:
            raise ValueError(
                f"`coefs` {tuple(coefs)} keeps nothing of {', '.join(lost)}, which moves in the data: "
                "give it coefficients, or leave `coefs` out in a training from nothing to have them fitted"
            )
        widest = cls.create(spec, coefs, length)
        scale: tuple[float, ...] = ()
        if sum(coefs):
            said = [widest.transform(chunks), *(widest.transform(hold(chunks, n), n) for n in {*strides} - {length})]
            reach = [torch.quantile(each.abs().flatten(0, -2), SCALE_QUANTILE, dim=0) for each in said]
            found = torch.stack(reach).amax(0) * SCALE_MARGIN
            scale = tuple(min(max(f, SMALLEST_SCALE), w) for f, w in zip(found.tolist(), widest.scale, strict=True))
        return cls(length, widest.low, widest.high, widest.grippers, widest.coefs, scale,
                   tuple(moving.median(0).values.tolist()))  # fmt: skip

    def grown(self, other: ActionTokenizer) -> ActionTokenizer:
        """This tokenizer with the coefficients that `other`, of the same robot and chunk, has beyond its own. Its own
        keep their bins, so that ids keep their meaning, but for those of what did not move before."""
        own, scale = self._by_dimension(), []
        for old, new in zip(own, other._by_dimension(), strict=True):
            kept = [n if o == SMALLEST_SCALE else o for o, n in zip(old, new, strict=False)]
            scale += (*kept, *new[len(old) :])
        return replace(other, scale=tuple(scale))

    def _by_dimension(self) -> list[tuple[float, ...]]:
        """The scales of each dimension that is no gripper."""
        ends = list(accumulate(self.coefs))
        return [self.scale[end - count : end] for end, count in zip(ends, self.coefs, strict=True)]

    def _needed(self, chunks: torch.Tensor, moves: list[bool]) -> tuple[int, ...]:
        """The fewest coefficients of each dimension that leave out at most LOST of its variance; ours are all."""
        spectrum = self.transform(chunks).flatten(0, -2).double().unflatten(-1, (-1, self.chunk))  # (n, dimension, M)
        spectrum[..., 0] -= spectrum[..., 0].mean(0)  # what never changes is no motion
        energy = spectrum.square().mean(0)  # (dimension, M)
        left_out = energy.flip(-1).cumsum(-1).flip(-1) / energy.sum(-1, keepdim=True).clamp_min(1e-30)
        needed = (left_out > LOST).sum(-1)  # left_out[k]: the share without coefficients k and above
        return tuple(int(n) if moved else 0 for n, moved in zip(needed, moves, strict=True))

    @property
    def action_dim(self) -> int:
        """A."""
        return len(self.low)

    @property
    def num_coefs(self) -> int:
        """Ids of the block `action`; they come first."""
        return sum(self.coefs)

    @property
    def num_grippers(self) -> int:
        """Ids of the block `gripper`."""
        return len(self.grippers)

    @property
    def num_ids(self) -> int:
        """Ka."""
        return self.num_coefs + self.num_grippers

    @property
    def gripper_size(self) -> int:
        """Gripper codes: sign at the start (0 open, 1 close) x M + steps before it switches - 1 (M - 1: never)."""
        return 2 * self.chunk

    def encode(
        self, chunks: torch.Tensor, check: bool = True, steps: int | torch.Tensor | None = None
    ) -> torch.Tensor:
        """(..., M, A) -> (..., Ka) i64 local numbers. ValueError for a wrong shape or NaN.

        check: look for NaN, which waits for the device; without it NaN becomes the middle bin.
        steps: control steps that are executed, (...) or one for all: the code says those, and nothing of what follows
            them; None for all M.
        """
        if isinstance(steps, int) and steps == self.chunk:
            steps = None
        if steps is not None:
            chunks = hold(chunks, steps)
        if check and not torch.isfinite(chunks).all():
            raise ValueError("an action chunk holds NaN or infinity: mask such chunks before they are encoded")
        bins = (self.transform(chunks, steps) / self._step(chunks.device)).round() + ZERO_BIN
        bins = bins.nan_to_num(ZERO_BIN).clamp(0, ACTION_BINS - 1).long()
        unit = self._to_unit(chunks)
        grippers = [self._encode_gripper(unit[..., dim])[..., None] for dim in self.grippers]
        return torch.cat([bins, *grippers], -1)

    def decode(self, codes: torch.Tensor) -> torch.Tensor:
        """(..., Ka) local numbers -> (..., M, A) f32 within the range. Fractional bins are welcome."""
        if codes.shape[-1] != self.num_ids:
            raise ValueError(f"an action code has {self.num_ids} ids, got shape {tuple(codes.shape)}")
        coefs, grippers = codes.split([self.num_coefs, self.num_grippers], dim=-1)
        signs = self._gripper_signs(codes.device)[grippers.long().clamp(0, self.gripper_size - 1)]  # (..., G, M)
        return self._join(coefs, signs)

    def decode_median(self, coef_probs: torch.Tensor, gripper_probs: torch.Tensor) -> torch.Tensor:
        """Distributions -> (..., M, A): the median of each coefficient, and at each step the likelier gripper sign.

        coef_probs: (..., sum(coefs), 256); gripper_probs: (..., G, 2 M).
        """
        # the likeliest code may be "never" though switching now or soon is likelier taken together
        sign = gripper_probs.float() @ self._gripper_signs(gripper_probs.device)  # (..., G, M) expected sign
        return self._join(median_bin(coef_probs), torch.where(sign > 0, 1.0, -1.0))

    def transform(self, chunks: torch.Tensor, steps: int | torch.Tensor | None = None) -> torch.Tensor:
        """(..., M, A) -> (..., sum(coefs)): the kept cosine coefficients, dimension after dimension. steps: fit them to
        so many of the first control steps, as `encode` takes it; the others are held."""
        if chunks.shape[-2:] != (self.chunk, self.action_dim):
            raise ValueError(f"a chunk must be (..., {self.chunk}, {self.action_dim}), got {tuple(chunks.shape)}")
        others = self._others(self._to_unit(chunks))  # (..., M, dimensions)
        if steps is not None:
            fits = [short_basis(self.chunk, count, chunks.device)[steps - 1] for count in self.coefs]
            kept = [(fit @ others[..., dim, None])[..., 0] for dim, fit in enumerate(fits)]
            return torch.cat(kept, -1) if kept else chunks.new_zeros(*chunks.shape[:-2], 0)
        spectrum = cosine_basis(self.chunk, chunks.device) @ others
        kept = [spectrum[..., :count, dim] for dim, count in enumerate(self.coefs)]  # spectrum (..., M, dimensions)
        return torch.cat(kept, -1) if kept else chunks.new_zeros(*chunks.shape[:-2], 0)

    def round_trip_error(self, chunks: torch.Tensor) -> RoundTrip:
        """Encode and decode chunks (..., M, A)."""
        off = self._to_unit(self.decode(self.encode(chunks))) - self._to_unit(chunks)
        squared = self._others(off).flatten(0, -2).square().mean(0)
        coded = torch.tensor([count > 0 for count in self.coefs], dtype=torch.bool, device=chunks.device)
        wrong = off[..., list(self.grippers)].abs() > 1
        clipped = self.transform(chunks).abs() > self._step(chunks.device) * ZERO_BIN
        return RoundTrip(
            tuple(squared.sqrt().tolist()),
            squared[coded].mean().sqrt().item() if coded.any() else 0.0,
            wrong.float().mean().item() if self.grippers else 0.0,
            clipped.float().mean().item() if self.num_coefs else 0.0,
        )

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=1, sort_keys=True, allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> ActionTokenizer:
        """Raise ValueError if the text is not an action tokenizer."""
        try:
            raw = json.loads(text)
            return cls(**{name: value if name == "chunk" else tuple(value) for name, value in raw.items()})
        except (KeyError, TypeError, AttributeError, json.JSONDecodeError) as error:
            raise ValueError(f"this is not an action tokenizer: {error!r}") from error

    def _join(self, bins: torch.Tensor, signs: torch.Tensor) -> torch.Tensor:
        """Bins of coefficients (..., sum(coefs)) and signs of grippers (..., G, M) -> (..., M, A)."""
        values = (bins.float() - ZERO_BIN) * self._step(bins.device)
        basis = cosine_basis(self.chunk, bins.device)
        columns: list[torch.Tensor | None] = [None] * self.action_dim  # each (..., M) in [-1, 1]
        for i, part in zip(self._other_dims, values.split(self.coefs, -1) if self.coefs else (), strict=True):
            columns[i] = (part @ basis[: part.shape[-1]]).clamp(-1, 1)
        for i, sign in zip(self.grippers, signs.unbind(-2), strict=True):
            columns[i] = sign
        low, high = constants(self.low, bins.device), constants(self.high, bins.device)
        actions = (low + high) / 2 + torch.stack(columns, -1) * ((high - low) / 2)
        actions = actions.clamp(low, high)
        if all(self.coefs):
            return actions
        return torch.where(*self._without_coefs(bins.device), actions)

    def _without_coefs(self, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        """(A,) which dimensions have no coefficients, and what they decode to."""
        still = dict(zip(self._other_dims, zip(self.coefs, self.still, strict=True), strict=True))
        none = tuple(float(i in still and not still[i][0]) for i in range(self.action_dim))
        value = tuple(still[i][1] if i in still else 0.0 for i in range(self.action_dim))
        return constants(none, device) > 0, constants(value, device)

    @property
    def _other_dims(self) -> tuple[int, ...]:
        """Dimensions that are no grippers."""
        return tuple(i for i in range(self.action_dim) if i not in self.grippers)

    def _others(self, actions: torch.Tensor) -> torch.Tensor:
        """(..., A) -> (..., A - G), without the grippers."""
        dims = self._other_dims
        return torch.stack([actions[..., i] for i in dims], -1) if dims else actions[..., :0]

    def _to_unit(self, actions: torch.Tensor) -> torch.Tensor:
        """(..., A) in the robot's units -> in [-1, 1]."""
        low, high = constants(self.low, actions.device), constants(self.high, actions.device)
        return (actions.float() - (low + high) / 2) / ((high - low) / 2)

    def _step(self, device: torch.device) -> torch.Tensor:
        """Width of a bin of each coefficient: (sum(coefs),)."""
        return constants(self.scale, device) / (ZERO_BIN - 1)

    def _gripper_signs(self, device: torch.device) -> torch.Tensor:
        """The signs that each gripper code stands for: (2 M, M), -1 open and +1 close."""
        step = torch.arange(self.chunk, device=device)
        starts_open = torch.where(step > step[:, None], 1.0, -1.0)  # row k switches after step k; the last never
        return torch.cat([starts_open, -starts_open])

    def _encode_gripper(self, gripper: torch.Tensor) -> torch.Tensor:
        """(..., M) in [-1, 1] -> (...): the code that agrees on most steps; where two do, on the earlier ones."""
        # The weights differ by less than one whole step in sum, so they only ever break ties.
        earlier = 1 + torch.arange(self.chunk, 0, -1, device=gripper.device) / (2 * self.chunk**2)
        signs = torch.where(gripper > 0, 1.0, -1.0)
        return ((signs * earlier) @ self._gripper_signs(gripper.device).T).argmax(-1)
