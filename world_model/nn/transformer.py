"""A decoder-only transformer in the layout of Llama and Qwen3. Nothing here knows about robots.

Parameter names are those of `transformers`, so weights move one to one: `model.` + our name is theirs (`lm_head`
without the prefix). The sequence comes as segments that say which other segments they see, ids are told where they
stand by explicit positions, and the key-value cache is a value: passed in, never written, and what is new is handed
back.

Sources: RMSNorm (Zhang and Sennrich 2019), rotary positions (Su et al. 2021), grouped-query attention (Ainslie et
al. 2023), SwiGLU (Shazeer 2020), QK-norm (Dehghani et al. 2023).
"""

from __future__ import annotations

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
    """Keys and values of L ids, one (R, num_kv_heads, L, head_dim) pair a layer. Never written in place.

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

    def then(self, *later: KV) -> KV:
        """A new cache with the ids of `later` after ours; one of fewer rows serves as many rows each."""
        parts = (self, *later)
        rows = max(kv.rows for kv in parts)
        layers = range(len(self.keys))
        mask = None
        if any(kv.mask is not None for kv in parts):
            mask = torch.cat([serve(kv.visible(), rows) for kv in parts], dim=1)
        return KV(
            tuple(torch.cat([serve(kv.keys[i], rows) for kv in parts], dim=2) for i in layers),
            tuple(torch.cat([serve(kv.values[i], rows) for kv in parts], dim=2) for i in layers),
            mask,
        )

    def visible(self) -> Tensor:
        """(R, L) bool."""
        ones = torch.ones(self.rows, len(self), dtype=torch.bool, device=self.keys[0].device)
        return ones if self.mask is None else self.mask


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


class RMSNorm(nn.Module):
    def __init__(self, width: int, eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, self.weight.shape, self.weight.to(x.dtype), self.eps)


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

    def project(self, x: Tensor, turn: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """x (B, L, width) -> queries (B, heads, L, head_dim), keys and values (B, kv_heads, L, head_dim), turned."""
        batch, length, _ = x.shape
        q = self.q_proj(x).view(batch, length, -1, self.config.head_dim)  # (B, L, heads, head_dim)
        k = self.k_proj(x).view(batch, length, -1, self.config.head_dim)  # (B, L, kv_heads, head_dim)
        v = self.v_proj(x).view(batch, length, -1, self.config.head_dim).transpose(1, 2)
        if self.config.qk_norm:
            q, k = self.q_norm(q), self.k_norm(k)
        return rotate(q.transpose(1, 2), *turn), rotate(k.transpose(1, 2), *turn), v

    def forward(
        self, x: Tensor, turn: tuple[Tensor, Tensor], segments: tuple[Segment, ...],
        past: tuple[Tensor, Tensor] | None, visible: Tensor | None,
    ) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
        """visible: (B, ids of the past + L) bool, or None where all are."""
        batch, length, _ = x.shape
        q, k, v = self.project(x, turn)
        lengths = [segment.length for segment in segments]
        qs, ks, vs = q.split(lengths, dim=2), k.split(lengths, dim=2), v.split(lengths, dim=2)
        past_k, past_v = ([], []) if past is None else ([serve(p, batch)] for p in past)
        if visible is not None:
            past_m, *ms = visible.split([visible.shape[1] - length, *lengths], dim=1)
        outs = []
        for i, segment in enumerate(segments):
            seen = [*segment.sees, i]
            keys = torch.cat(past_k + [ks[j] for j in seen], dim=2)  # (B, kv_heads, seen ids, head_dim)
            values = torch.cat(past_v + [vs[j] for j in seen], dim=2)
            mask = causal_mask(segment.length, keys.shape[2] - segment.length, x.device) if segment.causal else None
            if visible is not None:
                padding = torch.cat([past_m, *(ms[j] for j in seen)], dim=1)[:, None, None]  # (B, 1, 1, seen ids)
                mask = padding.expand(-1, -1, segment.length, -1) if mask is None else mask & padding
            outs.append(attend(qs[i], keys, values, mask))
        out = torch.cat(outs, dim=2).transpose(1, 2).reshape(batch, length, -1)  # (B, L, heads * head_dim)
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
        past: tuple[Tensor, Tensor] | None, visible: Tensor | None,
    ) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
        attended, k, v = self.self_attn(self.input_layernorm(x), turn, segments, past, visible)
        x = x + attended
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
        self, x: Tensor, positions: Tensor, segments: tuple[Segment, ...] | None = None, past: KV | None = None,
        mask: Tensor | None = None,
    ) -> tuple[Tensor, KV]:  # fmt: skip
        """Hidden states of L new ids after the ids in `past`.

        x: (B, L, width); positions: int (L,), or (R, L) where R divides B; segments: lengths add up to L, one causal
        segment by default; past: a cache seen by every segment, whose R rows serve B / R rows each; mask: (B, L) bool,
        False for new ids that are padding.
        Returns h (B, L, width) after the last norm, and the keys and values of the L new ids alone: the caller
        keeps those it wants (`past.then(new.part(...))`), so that parallel copies never enter a cache.
        """
        segments = segments or (Segment(x.shape[1]),)
        x, turn, visible = self._prepare(x, positions, segments, past, mask)
        keys, values = [], []
        for i, layer in enumerate(self.layers):
            x, k, v = layer(x, turn, segments, None if past is None else (past.keys[i], past.values[i]), visible)
            keys.append(k)
            values.append(v)
        return self.norm(x), KV(tuple(keys), tuple(values), mask)

    def remember(self, x: Tensor, positions: Tensor, past: KV | None = None, mask: Tensor | None = None) -> KV:
        """The keys and values that `forward` gives for one causal segment, without the hidden states: the last layer
        only projects."""
        segments = (Segment(x.shape[1]),)
        x, turn, visible = self._prepare(x, positions, segments, past, mask)
        keys, values = [], []
        for i, layer in enumerate(self.layers[:-1]):
            x, k, v = layer(x, turn, segments, None if past is None else (past.keys[i], past.values[i]), visible)
            keys.append(k)
            values.append(v)
        last = self.layers[-1]
        _, k, v = last.self_attn.project(last.input_layernorm(x), turn)
        return KV((*keys, k), (*values, v), mask)

    def _prepare(
        self, x: Tensor, positions: Tensor, segments: tuple[Segment, ...], past: KV | None, mask: Tensor | None
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
        if past is not None and batch % past.rows:
            raise ValueError(f"a cache of {past.rows} rows cannot serve a batch of {batch}")
        if torch.is_autocast_enabled(x.device.type):
            x = x.to(torch.get_autocast_dtype(x.device.type))
        turn = rotary(positions, self.config.head_dim, self.config.rope_base, x.dtype)
        if positions.ndim == 2:
            turn = tuple(serve(part, batch)[:, None] for part in turn)  # (B, 1, L, head_dim)
        visible = None
        if mask is not None or (past is not None and past.mask is not None):
            new = torch.ones(batch, length, dtype=torch.bool, device=x.device) if mask is None else mask
            visible = new if past is None else torch.cat([serve(past.visible(), batch), new], dim=1)
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
