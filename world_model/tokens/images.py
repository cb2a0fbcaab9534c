"""Camera frames as ids and back: a quantized code for each patch of 8 x 8 pixels.

The encoder of a patch sees nothing but that patch, so a patch that does not change keeps its id: with an
ordinary convolutional encoder a third of the background's ids flicker from frame to frame and drown what the
robot did. The decoder sees the whole grid and knows where each patch is; what the codes leave open (the table's
grain, the robot's own look) it fills in from the neighbours. The quantizer is finite scalar quantization
(Mentzer et al. 2023), so there is no codebook that could collapse, and near codes look alike.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import safetensors.torch
import torch
from einops import rearrange
from torch import nn
from vector_quantize_pytorch import FSQ

from envs.types import MAIN_SIZE, WRIST_SIZE

PATCH = 8  # pixels
MAIN_IDS = (MAIN_SIZE // PATCH) ** 2
WRIST_IDS = (WRIST_SIZE // PATCH) ** 2
FRAMES_AT_ONCE = 256  # bounds the memory of encoding a whole episode
WEIGHTS, DESCRIPTION = "tokenizer.safetensors", "tokenizer.json"


class TokenizerError(RuntimeError):
    """A frame tokenizer cannot be read. The message names the file and what to do about it."""


@dataclass(frozen=True)
class FrameConfig:
    """levels: steps of each quantized dimension; their product is the number of ids. width: channels."""

    levels: tuple[int, ...] = (8, 8, 8, 8, 8, 8, 8, 8)
    width: int = 192
    encoder_blocks: int = 3
    decoder_blocks: int = 4

    def __post_init__(self) -> None:
        if not self.levels or min(self.levels) < 3:
            raise ValueError(f"`levels` must hold at least 3 steps a dimension, got {self.levels}")
        if math.prod(self.levels) > 2**24:
            raise ValueError(f"`levels` make more ids than f32 can tell apart (2^24): {self.levels}")
        if self.width < 8 or self.width % 2:
            raise ValueError(f"`width` must be even and at least 8, got {self.width}")


class PatchBlock(nn.Module):
    """A residual layer within each patch: (..., width) -> the same."""

    def __init__(self, width: int):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.widen, self.narrow = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)
        nn.init.zeros_(self.narrow.weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.narrow(nn.functional.gelu(self.widen(self.norm(x))))


class GridBlock(nn.Module):
    """A residual layer that also sees the neighbours and the mean of the frame: (n, h, w, width) -> the same."""

    def __init__(self, width: int):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        # a 3 x 3 convolution whose weight is kept as a matrix, so that Muon can orthogonalize its updates
        self.near = nn.Parameter(torch.empty(width, 9 * width).uniform_(-1, 1) / (9 * width) ** 0.5)
        self.far = nn.Linear(width, width)
        self.mix = nn.Linear(width, width)
        nn.init.zeros_(self.mix.weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        calm = self.norm(x)
        kernel = self.near.unflatten(1, (3, 3, -1)).permute(0, 3, 1, 2)
        near = nn.functional.conv2d(calm.permute(0, 3, 1, 2), kernel, padding=1).permute(0, 2, 3, 1)  # channels last
        return x + self.mix(nn.functional.gelu(near + self.far(calm.mean((1, 2), keepdim=True))))


class FrameTokenizer(nn.Module):
    """Frames (..., h, w, 3) u8 <-> local ids (..., K) i64, row by row: 64 for the main view, 16 for the wrist's.

    Both views share the codes; the decoder tells them apart by the size of the grid.
    """

    def __init__(self, config: FrameConfig):
        super().__init__()
        self.config = config
        width, half = config.width, config.width // 2
        self.quantizer = FSQ(list(config.levels), return_indices=False)  # whose table of all codes would take 0.5 GB
        self.enter = nn.Linear(PATCH * PATCH * 3, width)  # the same as a convolution of stride 8
        self.encoder = nn.Sequential(*(PatchBlock(width) for _ in range(config.encoder_blocks)))
        self.to_latent = nn.Linear(width, len(config.levels))
        self.from_latent = nn.Linear(len(config.levels), width)
        self.main_place = nn.Parameter(torch.randn(MAIN_SIZE // PATCH, MAIN_SIZE // PATCH, width) * 0.02)
        self.wrist_place = nn.Parameter(torch.randn(WRIST_SIZE // PATCH, WRIST_SIZE // PATCH, width) * 0.02)
        self.expand = PatchBlock(width)
        self.decoder = nn.Sequential(*(GridBlock(width) for _ in range(config.decoder_blocks)))
        self.refine = nn.Sequential(nn.Linear(width, 4 * half), nn.GELU())
        self.fine = GridBlock(half)  # on a grid twice as fine
        self.leave = nn.Linear(half, (PATCH // 2) ** 2 * 3)

    @property
    def vision_size(self) -> int:
        """Number of ids."""
        return math.prod(self.config.levels)

    @property
    def device(self) -> torch.device:
        return self.main_place.device

    @property
    def latent_dim(self) -> int:
        return len(self.config.levels)

    def codes(self, ids: torch.Tensor | None = None) -> torch.Tensor:
        """Local ids (...) -> their latents (..., d) f32 within [-1, 1]; of all ids where none are given."""
        ids = torch.arange(self.vision_size, device=self.device) if ids is None else ids
        return self.quantizer.indices_to_codes(ids.flatten()).view(*ids.shape, self.latent_dim)

    def digit_latents(self) -> torch.Tensor:
        """What each digit of an id adds to its latent, (sum(levels), d) f32; the first digit counts single ids."""
        parts, worth = [], 1
        for axis, level in enumerate(self.config.levels):
            part = torch.zeros(level, self.latent_dim, device=self.device)
            part[:, axis] = self.codes(worth * torch.arange(level, device=self.device))[:, axis]
            parts.append(part)
            worth *= level
        return torch.cat(parts)

    @torch.no_grad()
    def encode(self, frames: torch.Tensor) -> torch.Tensor:
        """(..., h, w, 3) u8 -> (..., K) i64 local ids."""
        size = frames.shape[-3]
        if frames.dtype != torch.uint8 or frames.shape[-3:] not in _FRAME_SHAPES:
            raise ValueError(f"a frame must be u8 and one of {_FRAME_SHAPES}, got {frames.dtype} {tuple(frames.shape)}")
        flat = frames.reshape(-1, size, size, 3)
        ids = _in_parts(lambda part: self._quantize(to_unit(part))[1].flatten(1), flat)
        return ids.reshape(*frames.shape[:-3], -1)

    def decode(self, ids: torch.Tensor) -> torch.Tensor:
        """(..., K) local ids -> (..., h, w, 3) u8."""
        return self.decode_latents(self.codes(ids))

    @torch.no_grad()
    def decode_latents(self, latents: torch.Tensor) -> torch.Tensor:
        """(..., K, d) latents, such as the mean of `codes` under predicted probabilities -> (..., h, w, 3) u8."""
        count, dim = latents.shape[-2:]
        if count not in (MAIN_IDS, WRIST_IDS) or dim != self.latent_dim:
            raise ValueError(
                f"latents must be (..., {MAIN_IDS} or {WRIST_IDS}, {self.latent_dim}), got {tuple(latents.shape)}"
            )
        side = round(count**0.5)
        frames = _in_parts(lambda part: to_bytes(self._paint(part)), latents.reshape(-1, side, side, dim))
        return frames.reshape(*latents.shape[:-2], *frames.shape[1:])

    def forward(self, frames: torch.Tensor) -> torch.Tensor:
        """For training: frames (n, h, w, 3) in [-1, 1] -> reconstructed (n, h, w, 3), through the quantizer."""
        return self._paint(self._quantize(frames)[0])

    def save(self, folder: str | os.PathLike[str], figures: dict | None = None) -> None:
        """Write both files, each whole or not at all. figures: what was measured, kept beside the config."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        weights = safetensors.torch.save({name: value.contiguous() for name, value in self.state_dict().items()})
        description = {"config": asdict(self.config), "sha256": hashlib.sha256(weights).hexdigest()}
        write_whole(folder / WEIGHTS, weights)
        write_whole(folder / DESCRIPTION, json.dumps({**description, "figures": figures or {}}, indent=1).encode())

    @classmethod
    def load(cls, folder: str | os.PathLike[str], device: torch.device | None = None) -> FrameTokenizer:
        """Read what `save` wrote, ready for use. Raise TokenizerError naming the file that is missing or damaged."""
        folder = Path(folder)
        try:
            description = json.loads((folder / DESCRIPTION).read_bytes())
            weights = (folder / WEIGHTS).read_bytes()
            tokenizer = cls.from_config(description["config"])
            expected = description["sha256"]
        except OSError as error:
            raise TokenizerError(
                f"no frame tokenizer at {error.filename}: run `python -m world_model.train_tokenizer`"
            ) from error
        except (ValueError, KeyError, TypeError) as error:
            raise TokenizerError(f"{folder / DESCRIPTION} is damaged ({error!r}): train the tokenizer again") from error
        if hashlib.sha256(weights).hexdigest() != expected:
            raise TokenizerError(f"{folder / WEIGHTS} is damaged (its sha256 differs): train the tokenizer again")
        try:
            tokenizer.load_state_dict(safetensors.torch.load(weights))
        except RuntimeError as error:
            raise TokenizerError(
                f"{folder / WEIGHTS} does not fit the network that {DESCRIPTION} describes; it was made by another "
                "version of this code: train the tokenizer again"
            ) from error
        return tokenizer.to(device).eval()

    @classmethod
    def from_config(cls, config: dict) -> FrameTokenizer:
        """From the dictionary that `dataclasses.asdict(tokenizer.config)` gives; weights by `load_state_dict`."""
        return cls(FrameConfig(**{**config, "levels": tuple(config["levels"])}))

    def _quantize(self, frames: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(n, h, w, 3) in [-1, 1] -> latents (n, h/8, w/8, d) with straight-through gradient, ids (n, h/8, w/8)."""
        patches = rearrange(frames, "n (h p) (w q) c -> n h w (p q c)", p=PATCH, q=PATCH)
        latents = self.to_latent(self.encoder(self.enter(patches)))
        codes, _ = self.quantizer(latents.float().flatten(1, 2))
        ids = self.quantizer.codes_to_indices(codes)
        return codes.unflatten(1, latents.shape[1:3]), ids.long().unflatten(1, latents.shape[1:3])

    def _paint(self, latents: torch.Tensor) -> torch.Tensor:
        """(n, h / 8, w / 8, d) -> (n, h, w, 3) in about [-1, 1]."""
        place = self.main_place if latents.shape[1:3] == self.main_place.shape[:2] else self.wrist_place
        x = self.decoder(self.expand(self.from_latent(latents) + place))
        x = self.fine(rearrange(self.refine(x), "n h w (p q c) -> n (h p) (w q) c", p=2, q=2))
        return rearrange(self.leave(x), "n h w (p q c) -> n (h p) (w q) c", p=PATCH // 2, q=PATCH // 2, c=3)


_FRAME_SHAPES = ((MAIN_SIZE, MAIN_SIZE, 3), (WRIST_SIZE, WRIST_SIZE, 3))


def to_unit(frames: torch.Tensor) -> torch.Tensor:
    """u8 -> f32 in [-1, 1]."""
    return frames.float() / 127.5 - 1


def to_bytes(frames: torch.Tensor) -> torch.Tensor:
    """Values in about [-1, 1] -> u8."""
    return ((frames.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)


def write_whole(path: Path, content: bytes) -> None:
    """Replace a file so that a kill or a full disk leaves the old one or the new one, never a part."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise OSError(
            error.errno,
            f"cannot write {path} ({error.strerror}). What was there before is whole; "
            "free some space or mend the folder and run the same command again",
        ) from error
    finally:
        temporary.unlink(missing_ok=True)


def _in_parts(work: Callable[[torch.Tensor], torch.Tensor], frames: torch.Tensor) -> torch.Tensor:
    return torch.cat([work(part) for part in frames.split(FRAMES_AT_ONCE)])
