"""Camera images as ids and back: a quantized code for each patch of 8 x 8 pixels.

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

from envs.data.files import to_json, write_whole
from envs.types import CameraSpec

PATCH = 8  # pixels
IMAGES_AT_ONCE = 256  # bounds the memory of encoding a whole episode
WEIGHTS, DESCRIPTION = "tokenizer.safetensors", "tokenizer.json"


class TokenizerError(RuntimeError):
    """An image tokenizer cannot be read. The message names the file and what to do about it."""


def grid(camera: CameraSpec) -> tuple[int, int]:
    """Rows and columns of a camera's patches. ValueError for a size that patches do not fill."""
    if camera.height % PATCH or camera.width % PATCH or min(camera.height, camera.width) < PATCH:
        raise ValueError(
            f"camera `{camera.name}` has {camera.height} x {camera.width} pixels: both must be multiples of {PATCH}"
        )
    return camera.height // PATCH, camera.width // PATCH


@dataclass(frozen=True)
class ImageConfig:
    """cameras: those whose images can be decoded. levels: steps of each quantized dimension; their product is the
    number of ids. width: channels."""

    cameras: tuple[CameraSpec, ...]
    levels: tuple[int, ...] = (8, 8, 8, 8, 8, 8, 8, 8)
    width: int = 192
    encoder_blocks: int = 3
    decoder_blocks: int = 4

    def __post_init__(self) -> None:
        if not self.cameras or len({camera.name for camera in self.cameras}) != len(self.cameras):
            raise ValueError(f"`cameras` must hold at least one, with different names, got {self.cameras}")
        for camera in self.cameras:
            grid(camera)
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
    """A residual layer that also sees the neighbours and the mean of the image: (n, h, w, width) -> the same."""

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


class ImageTokenizer(nn.Module):
    """Images (..., h, w, 3) u8 <-> local ids (..., n) i64, one a patch, row by row.

    All cameras share the codes, and the encoder knows of no camera. The decoder has an embedding of each camera's
    positions. The ids of all cameras of one observation stand one after the other in the cameras' order, K in all.
    """

    def __init__(self, config: ImageConfig):
        super().__init__()
        self.config = config
        width, half = config.width, config.width // 2
        self.quantizer = FSQ(list(config.levels), return_indices=False)  # whose table of all codes would take 0.5 GB
        self.enter = nn.Linear(PATCH * PATCH * 3, width)  # the same as a convolution of stride 8
        self.encoder = nn.Sequential(*(PatchBlock(width) for _ in range(config.encoder_blocks)))
        self.to_latent = nn.Linear(width, len(config.levels))
        self.from_latent = nn.Linear(len(config.levels), width)
        positions = (torch.randn(*grid(camera), width) * 0.02 for camera in config.cameras)
        self.position_embed = nn.ParameterList(nn.Parameter(x) for x in positions)  # in the cameras' order
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
        return self.enter.weight.device

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
    def encode(self, images: torch.Tensor) -> torch.Tensor:
        """(..., h, w, 3) u8 of any camera -> (..., n) i64 local ids."""
        height, width = images.shape[-3:-1]
        if images.dtype != torch.uint8 or images.shape[-1] != 3 or height % PATCH or width % PATCH:
            raise ValueError(
                f"an image must be u8 of shape (..., h, w, 3) with multiples of {PATCH} pixels, "
                f"got {images.dtype} {tuple(images.shape)}"
            )
        flat = images.reshape(-1, height, width, 3)
        ids = _in_parts(lambda part: self._quantize(to_unit(part))[1].flatten(1), flat)
        return ids.reshape(*images.shape[:-3], -1)

    def decode(self, ids: torch.Tensor, camera: str) -> torch.Tensor:
        """(..., n) local ids of one camera -> (..., h, w, 3) u8."""
        return self.decode_latents(self.codes(ids), camera)

    def decode_all(self, ids: torch.Tensor) -> dict[str, torch.Tensor]:
        """(..., K) local ids of all cameras -> each camera's images (..., h, w, 3) u8."""
        return self.decode_all_latents(self.codes(ids))

    def decode_all_latents(self, latents: torch.Tensor) -> dict[str, torch.Tensor]:
        """(..., K, d) latents of all cameras -> each camera's images (..., h, w, 3) u8."""
        parts = latents.split([math.prod(grid(camera)) for camera in self.config.cameras], dim=-2)
        names = [camera.name for camera in self.config.cameras]
        return {name: self.decode_latents(part, name) for name, part in zip(names, parts, strict=True)}

    @torch.no_grad()
    def decode_latents(self, latents: torch.Tensor, camera: str) -> torch.Tensor:
        """(..., n, d) latents, such as the mean of `codes` under predicted probabilities -> (..., h, w, 3) u8."""
        index = self._index(camera)
        rows, columns = grid(self.config.cameras[index])
        count, dim = latents.shape[-2:]
        if (count, dim) != (rows * columns, self.latent_dim):
            raise ValueError(
                f"latents of camera `{camera}` must be (..., {rows * columns}, {self.latent_dim}), "
                f"got {tuple(latents.shape)}"
            )
        images = _in_parts(
            lambda part: to_bytes(self._reconstruct(part, index)), latents.reshape(-1, rows, columns, dim)
        )
        return images.reshape(*latents.shape[:-2], *images.shape[1:])

    def forward(self, images: torch.Tensor, camera: str) -> torch.Tensor:
        """For training: images (n, h, w, 3) in [-1, 1] -> reconstructed (n, h, w, 3), through the quantizer."""
        return self._reconstruct(self._quantize(images)[0], self._index(camera))

    def content(self) -> str:
        """sha256 of what it is, the same within a checkpoint and beside it."""
        weights = {name: value.detach().cpu().contiguous() for name, value in self.state_dict().items()}
        config = to_json(asdict(self.config), sort_keys=True).encode()
        return hashlib.sha256(config + safetensors.torch.save(weights)).hexdigest()

    def save(
        self, folder: str | os.PathLike[str], figures: dict | None = None, continues: str = ""
    ) -> None:
        """Write both files, each whole or not at all. figures: what was measured, kept beside the config. continues:
        the `content` of the tokenizer whose training went on to this one."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        weights = safetensors.torch.save({name: value.contiguous() for name, value in self.state_dict().items()})
        description = {"config": asdict(self.config), "sha256": hashlib.sha256(weights).hexdigest()}
        write_whole(folder / WEIGHTS, weights)
        write_whole(folder / DESCRIPTION, to_json({**description, "continues": continues, "figures": figures or {}}))

    @classmethod
    def load(cls, folder: str | os.PathLike[str], device: torch.device | None = None) -> ImageTokenizer:
        """Read what `save` wrote, ready for use. Raise TokenizerError naming the file that is missing or damaged."""
        folder = Path(folder)
        try:
            description = json.loads((folder / DESCRIPTION).read_bytes())
            weights = (folder / WEIGHTS).read_bytes()
            tokenizer = cls.from_config(description["config"])
            expected = description["sha256"]
        except OSError as error:
            raise TokenizerError(
                f"no image tokenizer at {error.filename}: run `python -m world_model.train_tokenizer`"
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
    def from_config(cls, config: dict) -> ImageTokenizer:
        """From the dictionary that `dataclasses.asdict(tokenizer.config)` gives; weights by `load_state_dict`."""
        cameras = tuple(CameraSpec(**camera) for camera in config["cameras"])
        return cls(ImageConfig(**{**config, "cameras": cameras, "levels": tuple(config["levels"])}))

    def _quantize(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(n, h, w, 3) in [-1, 1] -> latents (n, h/8, w/8, d) with straight-through gradient, ids (n, h/8, w/8)."""
        patches = rearrange(images, "n (h p) (w q) c -> n h w (p q c)", p=PATCH, q=PATCH)
        latents = self.to_latent(self.encoder(self.enter(patches)))
        codes, _ = self.quantizer(latents.float().flatten(1, 2))
        ids = self.quantizer.codes_to_indices(codes)
        return codes.unflatten(1, latents.shape[1:3]), ids.long().unflatten(1, latents.shape[1:3])

    def _reconstruct(self, latents: torch.Tensor, index: int) -> torch.Tensor:
        """(n, h / 8, w / 8, d) of the camera number `index` -> (n, h, w, 3) in about [-1, 1]."""
        x = self.decoder(self.expand(self.from_latent(latents) + self.position_embed[index]))
        x = self.fine(rearrange(self.refine(x), "n h w (p q c) -> n (h p) (w q) c", p=2, q=2))
        return rearrange(self.leave(x), "n h w (p q c) -> n (h p) (w q) c", p=PATCH // 2, q=PATCH // 2, c=3)

    def _index(self, camera: str) -> int:
        names = [each.name for each in self.config.cameras]
        if camera not in names:
            raise ValueError(f"the image tokenizer knows the cameras {', '.join(names)}, not {camera!r}")
        return names.index(camera)


def continued_by(folder: str | os.PathLike[str]) -> str:
    """The `content` of the tokenizer whose training went on to the one in `folder`; empty for one from nothing, and
    for one within a checkpoint."""
    path = Path(folder) / DESCRIPTION
    return json.loads(path.read_bytes()).get("continues", "") if path.exists() else ""


def to_unit(images: torch.Tensor) -> torch.Tensor:
    """u8 -> f32 in [-1, 1]."""
    return images.float() / 127.5 - 1


def to_bytes(images: torch.Tensor) -> torch.Tensor:
    """Values in about [-1, 1] -> u8."""
    return ((images.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)


def _in_parts(work: Callable[[torch.Tensor], torch.Tensor], images: torch.Tensor) -> torch.Tensor:
    return torch.cat([work(part) for part in images.split(IMAGES_AT_ONCE)])
