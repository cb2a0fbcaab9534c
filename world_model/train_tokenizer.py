"""Train the image tokenizer on collected episodes and measure what survives: `python -m world_model.train_tokenizer`.

Run the same command again to go on after an interruption; a run whose data or settings have changed meanwhile says what
has and stops. Writes into `out`: the tokenizer, `report.json` with the figures on held-out episodes,
`reconstruction.png` with real above reconstructed images.
"""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

import hydra
import numpy as np
import torch
from omegaconf import DictConfig, OmegaConf
from tqdm import tqdm

from envs.data.augmentation import Augmentation, Change
from envs.data.camera import project
from envs.data.files import to_json, write_json
from envs.data.fingerprint import fingerprint
from envs.data.formats.folder import Episodes
from envs.data.progress import load_progress, save_progress
from envs.data.settings import from_settings
from envs.data.store import EpisodeError
from envs.types import POSE, CameraSpec, Episode, Spec
from world_model.measure_tokenizer import BOUNDS, measure, picture, table
from world_model.nn.device import choose_device, choose_precision
from world_model.tokens.images import ImageConfig, ImageTokenizer, to_unit
from world_model.training import preparation, sources, tracking
from world_model.training.dataset import common_spec
from world_model.training.optimizers import MuonAdamW
from world_model.training.sources import Source

PROGRESS = "training.safetensors"
# Settings that change nothing about what is learnt; `data` is told by its content.
RUNTIME = ("checkpoint_seconds", "threads", "precision", "device", "wandb")
NOT_LEARNT = ("data", "start", "out", "measured_episodes", *RUNTIME)


@dataclass(frozen=True)
class TokenizerSettings:
    """The network; `ImageConfig` without the cameras, which the episodes tell."""

    levels: tuple[int, ...]
    width: int
    encoder_blocks: int
    decoder_blocks: int


@dataclass(frozen=True)
class TrainConfig:
    """configs/train_tokenizer.yaml says what each of these means."""

    data: tuple[str, ...]
    start: str | None
    out: str
    tokenizer: TokenizerSettings
    augment: Augmentation
    steps: int
    batch: int
    learning_rate: float
    warmup: int
    frames_per_episode: int
    frames_per_view: int
    held_out: int
    motion_weight: float
    object_weight: float
    object_radius: float
    measured_episodes: int
    checkpoint_seconds: float
    seed: int
    threads: int
    precision: str
    device: str
    wandb: Literal["disabled", "offline", "online"]

    def __post_init__(self) -> None:
        if not self.data:
            raise ValueError("`data` must name at least one folder of episodes")
        for name in ("steps", "batch", "frames_per_episode", "measured_episodes", "threads"):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be at least 1, got {getattr(self, name)}")
        weights = ("motion_weight", "object_weight", "object_radius")
        for name in ("frames_per_view", "warmup", *weights, "checkpoint_seconds", "seed"):
            if getattr(self, name) < 0:
                raise ValueError(f"`{name}` must be 0 or more, got {getattr(self, name)}")
        if not (math.isfinite(self.learning_rate) and self.learning_rate > 0):
            raise ValueError(f"`learning_rate` must be positive, got {self.learning_rate}")
        if self.held_out < 2:
            raise ValueError(f"`held_out` must be at least 2, got {self.held_out}")


@dataclass(frozen=True)
class Frames:
    """A sample of the training episodes' images, in memory; n moments of e episodes. One that is seen from elsewhere
    too, with a view in a camera's place, is another episode here."""

    spec: Spec
    images: dict[str, torch.Tensor]  # camera -> (n, h, w, 3) u8
    means: dict[str, torch.Tensor]  # camera -> (e, h, w, 3) u8, of each episode
    keypoints: torch.Tensor  # (n, k, 3) f32, metres, NaN where there are none
    episode: torch.Tensor  # (n,) i64
    poses: dict[str, np.ndarray]  # camera -> (n, 8) f32, `POSE`, NaN where nobody knows

    def __len__(self) -> int:
        return len(self.episode)


def load_frames(config: TrainConfig, found: list[Source]) -> Frames:
    """Read `frames_per_episode` moments of each training episode, one at random from each equal stretch of time, and
    `frames_per_view` of each of its views, in the place of the first camera of its size.

    ValueError where episodes are of different robots.
    """
    rng = np.random.default_rng(config.seed)
    images: dict[str, list[np.ndarray]] = {}
    means: dict[str, list[np.ndarray]] = {}
    poses: dict[str, list[np.ndarray]] = {}
    keypoints, numbers, specs = [], [], []
    for source in found:
        for episode in source.each():
            specs.append((episode.spec, str(source.store.root)))
            common_spec([specs[0], specs[-1]])
            seen = [episode, *(_from_elsewhere(episode, view) for view in episode.views if config.frames_per_view)]
            for each in seen:
                count = len(each.state)
                wanted = config.frames_per_episode if each is episode else config.frames_per_view
                edges = np.linspace(0, count, min(wanted, count) + 1)
                pick = rng.uniform(edges[:-1], edges[1:]).astype(int)
                unknown = np.full((count, len(POSE)), np.nan, np.float32)
                for name, recorded in each.images.items():
                    images.setdefault(name, []).append(recorded[pick])
                    means.setdefault(name, []).append(recorded.mean(0, dtype=np.float32).astype(np.uint8)[None])
                    poses.setdefault(name, []).append(each.poses.get(name, unknown)[pick])
                keypoints.append(each.keypoints[pick])
                numbers.append(np.full(len(pick), len(numbers)))

    def joined(parts: list[np.ndarray]) -> torch.Tensor:
        return torch.from_numpy(np.concatenate(parts))

    return Frames(
        common_spec(specs), {name: joined(parts) for name, parts in images.items()},
        {name: joined(parts) for name, parts in means.items()}, joined(keypoints), joined(numbers),
        {name: np.concatenate(parts) for name, parts in poses.items()},
    )  # fmt: skip


def _from_elsewhere(episode: Episode, view: str) -> Episode:
    """The episode with a view in the place of the first camera of its size. ValueError where there is none."""
    size = episode.views[view].shape[1:3]
    camera = next((c.name for c in episode.spec.cameras if (c.height, c.width) == size), None)
    if camera is None:
        raise ValueError(
            f"the view `{view}` of the episode of seed {episode.seed} has {size[0]} x {size[1]} pixels, as no camera "
            "has: leave `frames_per_view` at 0, or draw views of a camera's size"
        )
    poses = {**episode.poses, camera: episode.poses[view]}
    return replace(episode, images={**episode.images, camera: episode.views[view]}, poses=poses)


def pixel_weights(config: TrainConfig, images: torch.Tensor, mean: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    """How much each pixel counts: 1, more where it differs from its episode's mean, more round the keypoints.

    images, mean: (n, h, w, 3) in [-1, 1]; places: (n, k, 2) pixels, or (n, 0, 2) for none -> (n, h, w), mean 1.
    """
    moved = ((images - mean).abs().amax(-1) * 4).clamp(max=1)  # 32 grey levels are as much as any
    rows, columns = (torch.arange(size, device=images.device) for size in images.shape[1:3])
    squared = (rows[:, None] - places[..., 0, None, None]) ** 2 + (columns - places[..., 1, None, None]) ** 2
    near = (squared <= config.object_radius**2).any(1)
    weight = 1 + config.motion_weight * moved + config.object_weight * near
    return weight / weight.mean()


def keypoint_places(
    augment: Augmentation, camera: CameraSpec, change: Change, keypoints: torch.Tensor, told: np.ndarray | None = None
) -> torch.Tensor:
    """Where a camera sees keypoints (n, k, 3) after a change: (n, k, 2) pixels, far outside for those that are not
    there; none, (n, 0, 2), for a camera that the settings do not know. told: its poses then (n, 8), NaN where nobody
    knows, and the settings' stands in."""
    if camera.name not in augment.poses:
        return torch.empty(len(keypoints), 0, 2)
    points = change.points(keypoints).numpy()
    places = project(augment.poses[camera.name].pose, points, camera.height, camera.width)
    if told is not None and np.isfinite(told).any():
        own = project(told, points, camera.height, camera.width)
        places = np.where(np.isfinite(told).all(-1)[:, None, None], own, places)
    return torch.from_numpy(np.nan_to_num(places, nan=-1e3)).float()


def batch_loss(
    config: TrainConfig, tokenizer: ImageTokenizer, frames: Frames, step: int, precision: torch.dtype
) -> torch.Tensor:
    """Weighted squared error on random images of all cameras. The step alone decides which, so resuming is exact."""
    device = tokenizer.device
    rng = torch.Generator().manual_seed(config.seed * 1_000_003 + step)
    pick = torch.randint(len(frames), (config.batch,), generator=rng)
    augment = config.augment.of(frames.spec)
    change, episode = augment.draw(config.batch, rng), frames.episode[pick]
    total = torch.zeros((), device=device)
    for camera in frames.spec.cameras:
        name, told = camera.name, frames.poses[camera.name][pick.numpy()]
        views = (frames.images[name][pick], frames.means[name][episode])
        true, mean = (to_unit(change.images(name, view.to(device), told)) for view in views)
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == torch.bfloat16):
            again = tokenizer(true, name)
        places = keypoint_places(augment, camera, change, frames.keypoints[pick], told).to(device)
        weights = pixel_weights(config, true, mean, places)
        total = total + ((again.float() - true).square().mean(-1) * weights).mean()
    return total


def make_optimizer(tokenizer: ImageTokenizer, precision: torch.dtype) -> MuonAdamW:
    """Muon for the matrices, AdamW for the rest: at equal time a third less loss than AdamW alone."""
    named = dict(tokenizer.named_parameters())
    matrices = {name: p for name, p in named.items() if p.ndim == 2 and min(p.shape) >= 16}
    others = {name: p for name, p in named.items() if name not in matrices}
    return MuonAdamW(
        matrices, others, muon_decay=0.01, adamw_decay=0.01, betas=(0.9, 0.98), precision=precision, like_adamw=True
    )


def learning_rate(config: TrainConfig, step: int) -> float:
    """Linear warm-up, then a cosine down to zero."""
    if step < config.warmup:
        return config.learning_rate * (step + 1) / config.warmup
    done = (step - config.warmup) / max(1, config.steps - config.warmup)
    return config.learning_rate * (1 + np.cos(np.pi * done)) / 2


def train(
    config: TrainConfig, tokenizer: ImageTokenizer, frames: Frames, precision: torch.dtype, made_from: dict
) -> Iterator[tuple[int, float]]:
    """Train to the last step, saving every now and then; yields (steps done, loss)."""
    optimizer = make_optimizer(tokenizer, precision)
    path = Path(config.out) / PROGRESS
    kept, start = load_progress(path, made_from) or ({}, 0)
    if kept:
        tokenizer.load_state_dict(kept["model"])
        optimizer.load_state(kept["optimizer"])
    tokenizer.train()
    saved = time.monotonic()
    for step in range(start, config.steps):
        loss = batch_loss(config, tokenizer, frames, step, precision)
        optimizer.zero_grad()
        loss.backward()
        rate = learning_rate(config, step)
        optimizer.step(rate, rate)
        if not math.isfinite(loss.item()):
            raise FloatingPointError(f"the loss of step {step + 1} is not finite: lower `learning_rate`")
        if step + 1 == config.steps or time.monotonic() - saved > config.checkpoint_seconds:
            save_progress(path, {"model": tokenizer.state_dict(), "optimizer": optimizer.state()}, step + 1, made_from)
            saved = time.monotonic()
        yield step + 1, loss.item()
    tokenizer.eval()


def held_out_names(found: list[Source]) -> list[tuple[Episodes, str]]:
    """(store, name) of the held-out episodes."""
    return [(source.store, name) for source in found for name in source.held_out]


def run(config: TrainConfig) -> dict:
    """Train or go on, measure, write everything into `out`; returns the report."""
    torch.set_num_threads(config.threads)
    torch.manual_seed(config.seed)
    device = choose_device(config.device)
    precision = choose_precision(config.precision, device)
    out = Path(config.out)
    found = sources.open_sources({"data": config.data}, config.held_out)
    training, held_out = sum(len(s.train) for s in found), held_out_names(found)
    if not training:
        raise EpisodeError(sources.why_nothing_to_train(found, config.held_out))
    if not held_out:
        tqdm.write(f"train_tokenizer: {sources.why_nothing_held_out(found, config.held_out)}", file=sys.stderr)
    settings = {name: value for name, value in asdict(config).items() if name not in NOT_LEARNT}
    started = preparation.frame_tokenizer(config.start, device) if config.start else None
    files = {"start": started.content()} if started else {}
    made_from = fingerprint(settings, files, [source.fingerprint() for source in found])
    frames = load_frames(config, found)
    network = ImageConfig(frames.spec.cameras, **asdict(config.tokenizer))
    if started and started.config != network:
        raise ValueError(f"the images of {config.start} are read by {started.config}, and these need {network}")
    tokenizer = (started or ImageTokenizer(network).to(device)).requires_grad_(True)  # a checkpoint's is frozen
    out.mkdir(parents=True, exist_ok=True)
    log = tracking.start("tokenizer", out, config.wandb, config)
    began = time.monotonic()
    with tqdm(total=config.steps, desc="training", unit="step") as bar:
        for done, loss in train(config, tokenizer, frames, precision, made_from):
            bar.update(done - bar.n)
            if done % 20 == 0 or done == config.steps:
                bar.set_postfix(loss=f"{loss:.4f}")
                log.log({"loss": loss, "learning_rate": learning_rate(config, done)}, step=done)
    tokenizer.eval()
    seconds = time.monotonic() - began
    measured = [(s.store, name) for s in found for name in s.held_out[: config.measured_episodes]]
    report = json.loads(to_json({
        "figures": measure(measured, tokenizer, config.augment), "bounds": BOUNDS, "config": asdict(config),
        "episodes": {"train": training, "held_out": len(held_out)}, "frames": len(frames),
        "training_seconds_this_run": round(seconds, 1),
    }))  # fmt: skip
    first = {str(store.root): (store, name) for store, name in reversed(held_out)}
    if first:
        picture(tokenizer, [store.read(name) for store, name in first.values()]).save(out / "reconstruction.png")
    tokenizer.save(out, report["figures"], files.get("start", ""))
    write_json(out / "report.json", report)
    log.log(report["figures"])
    log.finish()
    return report


def to_config(raw: DictConfig) -> TrainConfig:
    values = OmegaConf.to_container(raw, resolve=True)
    return from_settings(TrainConfig, {**values, "data": sources.as_folders(values["data"])})


@hydra.main(version_base=None, config_path="../configs", config_name="train_tokenizer")
def main(raw: DictConfig) -> None:
    try:
        config = to_config(raw)
        report = run(config)
    except KeyboardInterrupt:
        sys.exit("train_tokenizer: stopped; run the same command again to go on")
    except (EpisodeError, FloatingPointError, ValueError, OSError) as error:
        sys.exit(f"train_tokenizer: {error}")
    print(table(report["figures"], config.augment.attached))
    print(f"\nwritten to {raw.out}")


if __name__ == "__main__":
    main()
