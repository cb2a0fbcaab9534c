"""From what is seen to a chunk of actions: an action-chunking transformer and a diffusion transformer.

Both read an observation as tokens: each camera's features, the state, the instruction. All numbers are normalized: the
state to the mean and spread of the training episodes, actions to [-1, 1] of the robot's range.

Sources: ACT (Zhao et al. 2023), with its style variable; Diffusion Policy's transformer (Chi et al. 2023).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

STRIDE = 8  # pixels a side of what one token of a camera stands for


@dataclass(frozen=True)
class NetworkConfig:
    """kind: chunk or diffusion. chunk: control steps M. latent: size of ACT's style variable. noise_steps: of the
    diffusion in training; steps: of them that acting takes."""

    kind: Literal["chunk", "diffusion"] = "chunk"
    chunk: int = 16
    width: int = 256
    heads: int = 8
    hidden: int = 1024
    encoder_layers: int = 4
    decoder_layers: int = 4
    dropout: float = 0.1
    latent: int = 32
    noise_steps: int = 100
    steps: int = 10

    def __post_init__(self) -> None:
        for name in ("chunk", "width", "heads", "hidden", "encoder_layers", "decoder_layers", "latent", "steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be at least 1, got {getattr(self, name)}")
        if self.width % self.heads or self.width % 4:
            raise ValueError(f"`width` must be a multiple of `heads` and of 4, got {self.width} and {self.heads}")
        if self.steps > self.noise_steps:
            raise ValueError(f"`steps` must be no more than `noise_steps`, got {self.steps} and {self.noise_steps}")


@dataclass(frozen=True)
class Sizes:
    """What a robot and its data fix. cameras: (height, width) each."""

    cameras: tuple[tuple[int, int], ...]
    state: int
    action: int
    instructions: int


def waves(positions: Tensor, width: int) -> Tensor:
    """Sinusoidal embedding of positions (...,) -> (..., width)."""
    frequency = torch.exp(-math.log(10_000) * torch.arange(width // 2, device=positions.device) / (width // 2))
    angle = positions[..., None].float() * frequency
    return torch.cat([angle.sin(), angle.cos()], dim=-1)


class Block(nn.Module):
    """Two convolutions beside a shortcut, at half the resolution."""

    def __init__(self, into: int, out: int):
        super().__init__()
        self.first, self.second = nn.Conv2d(into, out, 3, 2, 1, bias=False), nn.Conv2d(out, out, 3, 1, 1, bias=False)
        self.norms = nn.ModuleList(nn.GroupNorm(8, out) for _ in range(2))
        self.shortcut = nn.Conv2d(into, out, 1, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.norms[0](self.first(x)))
        return F.relu(self.norms[1](self.second(h)) + self.shortcut(x))


class Eyes(nn.Module):
    """An observation as tokens, (B, n, width)."""

    def __init__(self, config: NetworkConfig, sizes: Sizes):
        super().__init__()
        width = config.width
        self.convolutions = nn.Sequential(nn.Conv2d(3, 48, 5, 2, 2), nn.ReLU(), Block(48, 96), Block(96, width))
        self.camera = nn.Embedding(len(sizes.cameras), width)
        self.state = nn.Linear(sizes.state, width) if sizes.state else None
        self.instruction = nn.Embedding(sizes.instructions, width)
        for i, size in enumerate(sizes.cameras):
            row, column = torch.meshgrid(*(torch.arange(-(-side // STRIDE)) for side in size), indexing="ij")
            places = torch.cat([waves(row, width // 2), waves(column, width // 2)], dim=-1)
            self.register_buffer(f"places_{i}", places.flatten(0, 1), persistent=False)
        layer = nn.TransformerEncoderLayer(
            width, config.heads, config.hidden, config.dropout, F.gelu, batch_first=True, norm_first=True
        )
        self.encoder = nn.TransformerEncoder(layer, config.encoder_layers, nn.LayerNorm(width), False)

    def forward(self, images: list[Tensor], state: Tensor, instruction: Tensor, extra: Tensor | None = None) -> Tensor:
        """images: each camera's (B, h, w, 3) in [-1, 1]. state: (B, P). instruction: (B,). extra: (B, width)."""
        tokens = [self.instruction(instruction)[:, None]]
        tokens += [self.state(state)[:, None]] if self.state else []
        tokens += [] if extra is None else [extra[:, None]]
        for i, image in enumerate(images):
            features = self.convolutions(image.permute(0, 3, 1, 2)).flatten(2).transpose(1, 2)  # (B, h w / 64, width)
            tokens.append(features + getattr(self, f"places_{i}") + self.camera.weight[i])
        return self.encoder(torch.cat(tokens, dim=1))


def _decoder(config: NetworkConfig) -> nn.TransformerDecoder:
    layer = nn.TransformerDecoderLayer(
        config.width, config.heads, config.hidden, config.dropout, F.gelu, batch_first=True, norm_first=True
    )
    return nn.TransformerDecoder(layer, config.decoder_layers, nn.LayerNorm(config.width))


class ChunkTransformer(nn.Module):
    """ACT: a chunk in one pass. In training a style is read from the chunk itself, so that demonstrations that differ
    need not be averaged; acting takes the mean style, 0."""

    KL_WEIGHT = 10.0

    def __init__(self, config: NetworkConfig, sizes: Sizes):
        super().__init__()
        self.config, width = config, config.width
        self.eyes, self.decoder = Eyes(config, sizes), _decoder(config)
        self.queries = nn.Embedding(config.chunk, width)
        self.act = nn.Linear(width, sizes.action)
        self.style = nn.Linear(config.latent, width)
        layer = nn.TransformerEncoderLayer(
            width, config.heads, config.hidden, config.dropout, F.gelu, batch_first=True, norm_first=True
        )
        self.reader = nn.TransformerEncoder(layer, 2, nn.LayerNorm(width), False)
        self.of_action, self.of_state = nn.Linear(sizes.action, width), nn.Linear(max(1, sizes.state), width)
        self.summary, self.moments = nn.Embedding(1, width), nn.Linear(width, 2 * config.latent)
        self.register_buffer("times", waves(torch.arange(config.chunk), width), persistent=False)

    def forward(self, images: list[Tensor], state: Tensor, instruction: Tensor, style: Tensor | None = None) -> Tensor:
        """-> (B, M, A)."""
        style = state.new_zeros(len(instruction), self.config.latent) if style is None else style
        seen = self.eyes(images, state, instruction, self.style(style))
        queries = self.queries.weight.expand(len(seen), -1, -1)
        return self.act(self.decoder(queries, seen))

    def loss(
        self, images: list[Tensor], state: Tensor, instruction: Tensor, actions: Tensor, told: Tensor,
        generator: torch.Generator,
    ) -> Tensor:  # fmt: skip
        """Mean absolute error of what is told, and the style's divergence. actions: (B, M, A); told: (B, M) bool."""
        known = state if state.shape[1] else state.new_zeros(len(state), 1)
        tokens = [self.summary.weight.expand(len(actions), 1, -1), self.of_state(known)[:, None]]
        tokens.append(self.of_action(actions * told[..., None]) + self.times)
        unknown = F.pad(~told, (2, 0))  # the first two tokens are always there
        read = self.reader(torch.cat(tokens, dim=1), src_key_padding_mask=unknown)[:, 0]
        mean, log_variance = self.moments(read).chunk(2, dim=-1)
        noise = torch.randn(mean.shape, generator=generator).to(mean)
        chunk = self(images, state, instruction, mean + noise * (log_variance / 2).exp())
        error = ((chunk - actions).abs().mean(-1) * told).sum() / told.sum().clamp_min(1)
        divergence = -0.5 * (1 + log_variance - mean.square() - log_variance.exp()).sum(-1).mean()
        return error + self.KL_WEIGHT * divergence

    def sample(self, images: list[Tensor], state: Tensor, instruction: Tensor, noise: Tensor) -> Tensor:
        """(B, M, A); `noise` plays no part."""
        return self(images, state, instruction)


class DiffusionTransformer(nn.Module):
    """A chunk out of noise, step by step, each knowing what is seen. diffusers' schedule and steps (DDIM)."""

    def __init__(self, config: NetworkConfig, sizes: Sizes):
        super().__init__()
        try:
            from diffusers import DDIMScheduler
        except ImportError as error:
            raise ValueError("policy=diffusion needs diffusers: pip install 'nextstate[diffusion]'") from error

        self.config, width = config, config.width
        self.eyes, self.decoder = Eyes(config, sizes), _decoder(config)
        self.of_action, self.act = nn.Linear(sizes.action, width), nn.Linear(width, sizes.action)
        self.of_noise = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
        self.queries = nn.Embedding(config.chunk, width)
        self.schedule = DDIMScheduler(config.noise_steps, beta_schedule="squaredcos_cap_v2", clip_sample=True)

    def denoise(self, noisy: Tensor, when: Tensor, seen: Tensor) -> Tensor:
        """The noise in a chunk. noisy: (B, M, A); when: (B,) steps of noise."""
        tokens = self.of_action(noisy) + self.queries.weight + self.of_noise(waves(when, self.config.width))[:, None]
        return self.act(self.decoder(tokens, seen))

    def loss(
        self, images: list[Tensor], state: Tensor, instruction: Tensor, actions: Tensor, told: Tensor,
        generator: torch.Generator,
    ) -> Tensor:  # fmt: skip
        """Mean squared error of the noise, of what is told. actions: (B, M, A); told: (B, M) bool."""
        noise = torch.randn(actions.shape, generator=generator).to(actions)
        when = torch.randint(self.config.noise_steps, (len(actions),), generator=generator).to(actions.device)
        noisy = self.schedule.add_noise(actions * told[..., None], noise, when)
        error = (self.denoise(noisy, when, self.eyes(images, state, instruction)) - noise).square().mean(-1)
        return (error * told).sum() / told.sum().clamp_min(1)

    def sample(self, images: list[Tensor], state: Tensor, instruction: Tensor, noise: Tensor) -> Tensor:
        """(B, M, A) out of `noise` of that shape."""
        seen, chunk = self.eyes(images, state, instruction), noise
        self.schedule.set_timesteps(self.config.steps)
        for when in self.schedule.timesteps:
            guess = self.denoise(chunk, when.expand(len(chunk)).to(chunk.device), seen)
            chunk = self.schedule.step(guess, when, chunk).prev_sample
        return chunk


NETWORKS = {"chunk": ChunkTransformer, "diffusion": DiffusionTransformer}
