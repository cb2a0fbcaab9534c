"""A decoder-only transformer in the layout of Llama and Qwen3. Nothing here knows about robots.

Parameter names are those of `transformers`, so weights move one to one: `model.` + our name is theirs (`lm_head`
without the prefix). The sequence comes as segments that say which other segments they see, ids are told where they
stand by explicit positions, and the key-value cache is a value: passed in, never written, and what is new is handed
back.

Sources: RMSNorm (Zhang and Sennrich 2019), rotary positions (Su et al. 2021), grouped-query attention (Ainslie et
al. 2023), SwiGLU (Shazeer 2020), QK-norm (Dehghani et al. 2023).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class TransformerConfig:
    """Sizes. S, M and L of `configs/model/` hold 2, 7 and 26 million parameters with 1,500 ids."""

    width: int = 192
    num_layers: int = 4
    num_heads: int = 6
    num_kv_heads: int = 6
    hidden: int = 512  # inner width of the SwiGLU
    head_dim: int = 0  # width of a head; 0 becomes width / num_heads
    rope_base: float = 10_000.0
    norm_eps: float = 1e-5
    qk_norm: bool = True
    tied: bool = True  # the head reads with the embedding's own rows

    def __post_init__(self) -> None:
        if self.head_dim < 0 or self.head_dim % 2:
            raise ValueError(f"head_dim {self.head_dim} must be even, or 0 for width / num_heads")
        if not self.head_dim:
            if self.width % self.num_heads or (self.width // self.num_heads) % 2:
                raise ValueError(f"width {self.width} must split into {self.num_heads} heads of an even size")
            object.__setattr__(self, "head_dim", self.width // self.num_heads)
        if self.num_heads % self.num_kv_heads:
            raise ValueError(f"num_heads {self.num_heads} must be a multiple of num_kv_heads {self.num_kv_heads}")


def serve(x: Tensor, rows: int) -> Tensor:
    """(R, ...) -> (rows, ...): each of R robots for its rows / R candidates, which follow each other."""
    return x[:, None].expand(-1, rows // x.shape[0], *x.shape[1:]).flatten(0, 1)  # a view where R is 1 or `rows`


@dataclass(frozen=True)
class KV:
    """Keys and values of L ids, one (R, num_kv_heads, L, head_dim) pair a layer. Only `write` changes them, and only
    those that `allocate` made.

    mask: (R, L) bool, False for padding that nobody sees; None where there is none.
    """

    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]
    mask: Tensor | None = None

    def __len__(self) -> int:
        return self.keys[0].shape[2]

    @property
    def rows(self) -> int:
        return self.keys[0].shape[0]

    def part(self, start: int, stop: int) -> KV:
        """Ids start .. stop - 1."""
        mask = None if self.mask is None else self.mask[:, start:stop]
        return KV(tuple(k[:, :, start:stop] for k in self.keys), tuple(v[:, :, start:stop] for v in self.values), mask)

    def unmasked(self) -> KV:
        """The same without its mask, where no padding is left."""
        return KV(self.keys, self.values)

    def allocate(self, rows: int, length: int) -> KV:
        """Room for `length` ids of `rows` rows, of our sizes, to be filled by `write`."""
        def room(x: Tensor) -> Tensor:
            return x.new_empty(rows, x.shape[1], length, x.shape[3])

        return KV(tuple(map(room, self.keys)), tuple(map(room, self.values)))

    def write(self, start: int, new: KV) -> None:
        """Copy the ids of `new` to ids start, start + 1, ... of ours; one of fewer rows serves as many rows each."""
        stop = start + len(new)
        for ours, theirs in zip((*self.keys, *self.values), (*new.keys, *new.values), strict=True):
            ours[:, :, start:stop] = serve(theirs, len(ours))

    def visible(self) -> Tensor:
        """(R, L) bool."""
        ones = torch.ones(self.rows, len(self), dtype=torch.bool, device=self.keys[0].device)
        return ones if self.mask is None else self.mask


def join(parts: Sequence[KV], rows: int) -> KV:
    """One cache of `rows` rows with the ids of all parts, one after the other; a part of fewer rows serves as many
    rows each."""
    def joined(tensors: Iterable[Tensor], dim: int) -> Tensor:
        return torch.cat([serve(x, rows) for x in tensors], dim=dim)

    mask = joined([kv.visible() for kv in parts], 1) if any(kv.mask is not None for kv in parts) else None
    keys, values = zip(*(kv.keys for kv in parts), strict=True), zip(*(kv.values for kv in parts), strict=True)
    return KV(tuple(joined(layer, 2) for layer in keys), tuple(joined(layer, 2) for layer in values), mask)


@dataclass(frozen=True)
class Segment:
    """A run of ids that look at the same things: the whole cache, some whole segments of this call, and themselves.

    Attention is computed segment by segment over just those keys. A window of four model steps with their parallel
    copies would fill a (1000, 1000) mask of which nine tenths are empty; this does the full tenth only.
    """

    length: int
    sees: tuple[int, ...] = ()  # indices of segments in the same call
    causal: bool = True  # an id sees its own segment up to itself, or else the whole of it


@lru_cache(maxsize=64)
def causal_mask(length: int, before: int, device: torch.device) -> Tensor:
    """(length, before + length) bool: everything before, and the own segment up to oneself."""
    return torch.ones(length, before + length, dtype=torch.bool, device=device).tril(before)


class FewPasses(torch.autograd.Function):
    """`F.rms_norm` on a CPU, where torch takes it apart into a dozen passes over memory each way and, of bf16, a copy
    in fp32: this takes a third of its time in bf16, half of it in fp32."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        # A vector norm would save a pass, but rounds a row by its place among the others.
        scale = x.square().mean(-1, keepdim=True, dtype=torch.float32).add_(eps).rsqrt_().to(x.dtype)  # (..., 1)
        unit = x * scale
        ctx.save_for_backward(unit, scale, weight)
        return unit * weight

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        unit, scale, weight = ctx.saved_tensors
        of_weight = (grad * unit).flatten(0, -2).sum(0)
        of_unit = grad * weight
        along = (of_unit * unit).mean(-1, keepdim=True)  # what would only change the length
        return torch.addcmul(of_unit, unit, along, value=-1).mul_(scale), of_weight, None


class RMSNorm(nn.Module):
    def __init__(self, width: int, eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight.to(x.dtype)
        if x.device.type == "cpu":
            return FewPasses.apply(x, weight, self.eps)
        return F.rms_norm(x, weight.shape, weight, self.eps)


def rotary(positions: Tensor, head_dim: int, base: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """positions (..., L) -> cosine and sine (..., L, head_dim), in Llama's layout: the two halves turn together."""
    frequency = base ** (-torch.arange(0, head_dim, 2, device=positions.device, dtype=torch.float32) / head_dim)
    angle = positions.float()[..., None] * frequency  # (..., L, head_dim / 2)
    angle = torch.cat([angle, angle], dim=-1)  # (..., L, head_dim)
    return angle.cos().to(dtype), angle.sin().to(dtype)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn x (..., L, head_dim) by the angles of its positions."""
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat([-second, first], dim=-1) * sin


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """Softmax attention. q: (B, heads, Q, head_dim); k, v: (B, kv_heads, K, head_dim); mask: bool (Q, K) or
    (B, 1, Q, K), or None.

    At the few hundred ids that a segment sees, the fused kernel wins on a GPU, and on a CPU in fp32 without gradients
    (half the time); there in bf16 the plain products take a third of its time, and with gradients as long.
    """
    if q.device.type != "cpu" or (q.dtype == torch.float32 and not torch.is_grad_enabled()):
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=k.shape[1] != q.shape[1])
    batch, heads, length, head_dim = q.shape
    grouped = (q * head_dim**-0.5).reshape(batch, k.shape[1], -1, head_dim)  # (B, kv_heads, group * Q, head_dim)
    scores = torch.matmul(grouped, k.transpose(-2, -1)).view(batch, heads, length, -1)  # (B, heads, Q, K)
    if mask is not None:
        scores = scores + torch.zeros_like(mask, dtype=scores.dtype).masked_fill(~mask, float("-inf"))
    weights = scores.softmax(dim=-1).view(batch, k.shape[1], -1, k.shape[2])  # (B, kv_heads, group * Q, K)
    return torch.matmul(weights, v).view(batch, heads, length, head_dim)


def attend_to_parts(q: Tensor, keys: Sequence[Tensor], values: Sequence[Tensor]) -> Tensor:
    """`attend` of one id a row to keys in several parts, none of which is copied: one softmax over the scores of all.

    q: (B, heads, 1, head_dim); keys, values: (R, kv_heads, n, head_dim), where R divides B and may differ by part.
    """
    batch, heads, _, head_dim = q.shape
    kv_heads = keys[0].shape[1]
    q = (q * head_dim**-0.5).view(batch, kv_heads, -1, head_dim)  # (B, kv_heads, group, head_dim)
    scores = []
    for k in keys:  # the rows that share a part are rows of one product
        shared = q.unflatten(0, (len(k), -1)).transpose(1, 2).flatten(2, 3)  # (R, kv_heads, B / R * group, head_dim)
        part = (shared @ k.transpose(-2, -1)).unflatten(2, (batch // len(k), -1)).transpose(1, 2)
        scores.append(part.flatten(0, 1))  # (B, kv_heads, group, n)
    weights = torch.cat(scores, dim=-1).softmax(-1).split([k.shape[2] for k in keys], dim=-1)
    out = torch.zeros_like(q)
    for w, v in zip(weights, values, strict=True):
        shared = w.unflatten(0, (len(v), -1)).transpose(1, 2).flatten(2, 3)  # (R, kv_heads, B / R * group, n)
        out += (shared @ v).unflatten(2, (batch // len(v), -1)).transpose(1, 2).flatten(0, 1)
    return out.view(batch, heads, 1, head_dim)


class Attention(nn.Module):
    def __init__(self, config: TransformerConfig):
        super().__init__()
        self.config = config
        q_width, kv_width = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
        self.q_proj = nn.Linear(config.width, q_width, bias=False)
        self.k_proj = nn.Linear(config.width, kv_width, bias=False)
        self.v_proj = nn.Linear(config.width, kv_width, bias=False)
        self.o_proj = nn.Linear(q_width, config.width, bias=False)
        if config.qk_norm:
            self.q_norm = RMSNorm(config.head_dim, config.norm_eps)
            self.k_norm = RMSNorm(config.head_dim, config.norm_eps)

    def project(self, x: Tensor, turn: tuple[Tensor, Tensor], start: int = 0) -> tuple[Tensor, Tensor, Tensor]:
        """x (B, L, width) -> queries (B, heads, L - start, head_dim) of the ids from `start` on, keys and values
        (B, kv_heads, L, head_dim), queries and keys turned."""
        q, k, v = (
            proj(part).unflatten(2, (-1, self.config.head_dim))
            for proj, part in ((self.q_proj, x[:, start:]), (self.k_proj, x), (self.v_proj, x))
        )
        if self.config.qk_norm:
            q, k = self.q_norm(q), self.k_norm(k)
        q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
        return rotate(q, *(part[..., start:, :] for part in turn)), rotate(k, *turn), v

    def forward(
        self, x: Tensor, turn: tuple[Tensor, Tensor], segments: tuple[Segment, ...],
        past: Sequence[tuple[Tensor, Tensor]], visible: Tensor | None, first: int = 0,
    ) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
        """past: keys and values of its parts. visible: (B, ids of the past + L) bool, or None where all are. first: the
        first segment whose ids are asked for what they attend to."""
        batch, length, _ = x.shape
        lengths = [segment.length for segment in segments]
        start = sum(lengths[:first])
        q, k, v = self.project(x, turn, start)
        if first == len(segments):
            return x[:, length:], k, v
        if length == 1 and past and visible is None:
            out = attend_to_parts(q, [*(p[0] for p in past), k], [*(p[1] for p in past), v])
            return self.o_proj(out.transpose(1, 2).reshape(batch, 1, -1)), k, v
        qs, ks, vs = q.split(lengths[first:], dim=2), k.split(lengths, dim=2), v.split(lengths, dim=2)
        past_k, past_v = ([serve(p[i], batch) for p in past] for i in (0, 1))
        if visible is not None:
            past_m, *ms = visible.split([visible.shape[1] - length, *lengths], dim=1)
        outs = []
        for i, segment in enumerate(segments[first:], first):
            seen = [*segment.sees, i]
            keys = torch.cat(past_k + [ks[j] for j in seen], dim=2)  # (B, kv_heads, seen ids, head_dim)
            values = torch.cat(past_v + [vs[j] for j in seen], dim=2)
            mask = causal_mask(segment.length, keys.shape[2] - segment.length, x.device) if segment.causal else None
            if visible is not None:
                padding = torch.cat([past_m, *(ms[j] for j in seen)], dim=1)[:, None, None]  # (B, 1, 1, seen ids)
                mask = padding.expand(-1, -1, segment.length, -1) if mask is None else mask & padding
            outs.append(attend(qs[i - first], keys, values, mask))
        out = torch.cat(outs, dim=2).transpose(1, 2).reshape(batch, length - start, -1)  # (B, L - start, q width)
        return self.o_proj(out), k, v


class SwiGLU(nn.Module):
    def __init__(self, config: TransformerConfig):
        super().__init__()
        self.gate_proj = nn.Linear(config.width, config.hidden, bias=False)
        self.up_proj = nn.Linear(config.width, config.hidden, bias=False)
        self.down_proj = nn.Linear(config.hidden, config.width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Layer(nn.Module):
    def __init__(self, config: TransformerConfig):
        super().__init__()
        self.input_layernorm = RMSNorm(config.width, config.norm_eps)
        self.self_attn = Attention(config)
        self.post_attention_layernorm = RMSNorm(config.width, config.norm_eps)
        self.mlp = SwiGLU(config)

    def forward(
        self, x: Tensor, turn: tuple[Tensor, Tensor], segments: tuple[Segment, ...],
        past: Sequence[tuple[Tensor, Tensor]], visible: Tensor | None, first: int = 0,
    ) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
        """-> hidden states of the ids from segment `first` on, keys and values of all."""
        attended, k, v = self.self_attn(self.input_layernorm(x), turn, segments, past, visible, first)
        x = x[:, x.shape[1] - attended.shape[1] :] + attended
        return x + self.mlp(self.post_attention_layernorm(x)), k, v


class Transformer(nn.Module):
    """Ids in by `embed`, hidden states by `forward`, logits by `logits` over only the ids that are asked for."""

    def __init__(self, config: TransformerConfig, vocab_size: int):
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(vocab_size, config.width)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.num_layers))
        self.norm = RMSNorm(config.width, config.norm_eps)
        self.lm_head = None if config.tied else nn.Linear(config.width, vocab_size, bias=False)
        self._init_weights()

    def _init_weights(self) -> None:
        """Normal 0.02; what writes to the residual stream starts smaller by the number of writes (GPT-2)."""
        for name, parameter in self.named_parameters():
            if parameter.dim() < 2:
                continue
            std = 0.02
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                std /= (2 * self.config.num_layers) ** 0.5
            nn.init.normal_(parameter, std=std)

    def embed(self, ids: Tensor) -> Tensor:
        """ids (...,) -> (..., width)."""
        return self.embed_tokens(ids)

    def forward(
        self, x: Tensor, positions: Tensor, segments: tuple[Segment, ...] | None = None, past: Sequence[KV] = (),
        mask: Tensor | None = None, first: int = 0,
    ) -> tuple[Tensor, KV]:  # fmt: skip
        """Hidden states of L new ids after the ids in `past`.

        x: (B, L, width); positions: int (L,), or (R, L) where R divides B; segments: lengths add up to L, one causal
        segment by default; past: caches seen by every segment, one after the other, whose R rows serve B / R rows
        each; mask: (B, L) bool, False for new ids that are padding; first: the first segment whose hidden states are
        read. The last layer gives no more than keys and values of those before it.
        Returns h (B, ids from `first` on, width) after the last norm, and the keys and values of the L new ids alone:
        the caller keeps those it wants (`new.part(...)`), so that parallel copies never enter a cache.
        """
        segments = segments or (Segment(x.shape[1]),)
        x, turn, visible = self._prepare(x, positions, segments, past, mask)
        keys, values = [], []
        for i, layer in enumerate(self.layers):
            parts = [(kv.keys[i], kv.values[i]) for kv in past]
            x, k, v = layer(x, turn, segments, parts, visible, first if i + 1 == len(self.layers) else 0)
            keys.append(k)
            values.append(v)
        return self.norm(x), KV(tuple(keys), tuple(values), mask)

    def _prepare(
        self, x: Tensor, positions: Tensor, segments: tuple[Segment, ...], past: Sequence[KV],
        mask: Tensor | None,
    ) -> tuple[Tensor, tuple[Tensor, Tensor], Tensor | None]:
        """Check what fits what -> x, cosine and sine of its positions, which keys are seen (None: all)."""
        batch, length, _ = x.shape
        rows = len(positions) if positions.ndim == 2 else 1
        if positions.ndim > 2 or positions.shape[-1] != length or batch % rows:
            raise ValueError(
                f"x {tuple(x.shape)} needs positions ({length},) or (R, {length}) where R divides {batch}, "
                f"got {tuple(positions.shape)}"
            )
        if sum(segment.length for segment in segments) != length:
            raise ValueError(
                f"segments {[segment.length for segment in segments]} do not add up to the {length} ids of x"
            )
        for kv in past:
            if batch % kv.rows:
                raise ValueError(f"a cache of {kv.rows} rows cannot serve a batch of {batch}")
        if torch.is_autocast_enabled(x.device.type):
            x = x.to(torch.get_autocast_dtype(x.device.type))
        turn = rotary(positions, self.config.head_dim, self.config.rope_base, x.dtype)
        if positions.ndim == 2:
            turn = tuple(serve(part, batch)[:, None] for part in turn)  # (B, 1, L, head_dim)
        visible = None
        if mask is not None or any(kv.mask is not None for kv in past):
            new = torch.ones(batch, length, dtype=torch.bool, device=x.device) if mask is None else mask
            visible = torch.cat([*(serve(kv.visible(), batch) for kv in past), new], dim=1)
        return x, turn, visible

    def logits(self, h: Tensor, ids: Tensor | slice) -> Tensor:
        """h (..., width), n ids -> (..., n) f32.

        A slot of the layout decides which block of ids is legal there, so the softmax runs over that block only: it
        costs a fraction of the whole vocabulary, and nothing illegal can be said.
        """
        return F.linear(h, self.head[ids].to(h.dtype)).float()

    @property
    def head(self) -> Tensor:
        """(V, width), the rows that ids are read with."""
        return self.embed_tokens.weight if self.lm_head is None else self.lm_head.weight
