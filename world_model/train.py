"""Train the world model on collected episodes: `python -m world_model.train`.

Run the same command again to go on after an interruption; on a CPU the result is the same to the bit. A run whose data,
start or settings have changed meanwhile says what has and stops. Writes into `out`: `step-*`, the newest two states of
training, `last`, which names the one to go on from, `metrics.json`, `imagined.png`, and in the end `checkpoint`, the
folder to act with.

`torchrun --nproc-per-node=N -m world_model.train` trains with N processes, which share each batch and the weights. What
they leave half-finished any other number of them goes on with, or one without torchrun, and the other way round.
"""

from __future__ import annotations

import json
import math
import shutil
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Literal

import hydra
import numpy as np
import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn
from tqdm import tqdm

from envs.data.augmentation import Augmentation
from envs.data.files import to_json, write_json
from envs.data.fingerprint import digest, require_same
from envs.data.settings import from_settings
from envs.data.store import EpisodeError
from world_model import checkpoint
from world_model.checkpoint import CheckpointError
from world_model.metrics import held_out, pictures, windows
from world_model.model import WorldModel
from world_model.nn.device import choose_device, choose_precision
from world_model.tokens.images import TokenizerError
from world_model.training import plan, sharding, shards, sources, tracking
from world_model.training.dataset import stride_shares
from world_model.training.optimizers import MuonAdamW
from world_model.training.preparation import Data, meta_model, prepare
from world_model.training.sharding import Processes
from world_model.training.start import ModelSettings
from world_model.training.viewpoints import Viewpoints

# Settings that change nothing about what is learnt, and those that name what the fingerprint tells by its content.
NOT_LEARNT = ("out", "measured_windows", "log_every", "loss_every", "checkpoint_seconds", "threads", "precision",
              "device", "wandb", "dry_run")  # fmt: skip
BY_CONTENT = ("data", "unlabelled", "on_policy", "tokenizer", "start")


@dataclass(frozen=True)
class TrainConfig:
    """configs/train.yaml says what each of these means."""

    data: tuple[str, ...]
    unlabelled: tuple[str, ...]
    on_policy: tuple[str, ...]
    tokenizer: str | None
    start: str | None
    out: str
    augment: Augmentation
    model: ModelSettings
    hide_poses: float
    view_share: float
    swap_share: float
    chunk: int | None
    coefs: Literal["auto"] | tuple[int, ...]
    text_size: int | None
    discount: float | None
    strides: tuple[int, ...] | None
    stride_weights: tuple[float, ...] | None
    held_out: int
    steps: int
    minutes: float
    batch: int
    window: int
    first_steps: int
    muon_rate: float
    learning_rate: float
    warmup: float
    weight_decay: float
    clip: float
    measured_windows: int
    log_every: int
    loss_every: int
    checkpoint_seconds: float
    seed: int
    threads: int
    precision: str
    device: str
    wandb: Literal["disabled", "offline", "online"]
    dry_run: bool

    def __post_init__(self) -> None:
        if not self.data:
            raise ValueError("`data` must name at least one folder of episodes")
        for name in ("steps", "batch", "measured_windows", "log_every", "loss_every", "threads"):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be at least 1, got {getattr(self, name)}")
        for name in ("muon_rate", "learning_rate", "clip"):
            if not (math.isfinite(getattr(self, name)) and getattr(self, name) > 0):
                raise ValueError(f"`{name}` must be positive, got {getattr(self, name)}")
        for name in ("minutes", "first_steps", "weight_decay", "checkpoint_seconds", "seed"):
            if getattr(self, name) < 0:
                raise ValueError(f"`{name}` must be 0 or more, got {getattr(self, name)}")
        if self.window < 2:
            raise ValueError(f"`window` must be at least 2, for a model reads the step before too, got {self.window}")
        if self.held_out < 2:
            raise ValueError(f"`held_out` must be at least 2, got {self.held_out}")
        if not 0 <= self.warmup < 1:
            raise ValueError(f"`warmup` must be in [0, 1), a share of training, got {self.warmup}")
        if self.discount is not None and not 0 < self.discount < 1:
            raise ValueError(f"`discount` must be between 0 and 1, got {self.discount}")
        if self.chunk is not None and self.chunk < 2:
            raise ValueError(f"`chunk` must be at least 2 control steps, got {self.chunk}")
        _ = self.viewpoints  # which checks its shares

    @property
    def folders(self) -> dict[str, tuple[str, ...]]:
        """By the setting that names them, in the order in which they are read."""
        return {"data": self.data, "unlabelled": self.unlabelled, "on_policy": self.on_policy}

    @property
    def viewpoints(self) -> Viewpoints:
        """From where training sees the scene."""
        return Viewpoints(self.hide_poses, self.view_share, self.swap_share)

    @property
    def learnt(self) -> dict:
        """The settings that a half-finished run must share with the one that takes it up."""
        return {name: value for name, value in asdict(self).items() if name not in (*NOT_LEARNT, *BY_CONTENT)}


# -------------------------------------------------------------------------------------------------- training


def batch_starts(config: TrainConfig, rows: int, step: int, copies: int = 1) -> np.ndarray:
    """Which windows step number `step` learns from, (batch,): shuffled anew each epoch, which shows each in the next
    of its copies. The step alone decides."""
    epoch, place = np.divmod(step * config.batch + np.arange(config.batch), rows)
    starts = np.array([_shuffled(rows, config.seed, e)[p] for e, p in zip(epoch.tolist(), place, strict=True)], int)
    return (epoch + starts) % copies * rows + starts


@lru_cache(maxsize=2)
def _shuffled(rows: int, seed: int, epoch: int) -> np.ndarray:
    """Of half the size that it would have by itself, in the same order: it grows with the data."""
    return np.random.default_rng((seed, epoch)).permutation(np.arange(rows, dtype=np.int32))


def draw_strides(shares: Tensor, model: WorldModel, config: TrainConfig, rng: torch.Generator) -> np.ndarray:
    """(batch, window) control steps that each model step covers. shares: of each of the model's strides."""
    if len(shares) == 1:  # nothing to draw
        return np.full((config.batch, config.window), model.strides[0])
    drawn = torch.multinomial(shares, config.batch * config.window, replacement=True, generator=rng)
    return np.array(model.strides)[drawn.view(config.batch, config.window).numpy()]


def by_optimizer(model: WorldModel) -> tuple[dict[str, nn.Parameter], dict[str, nn.Parameter]]:
    """What Muon trains and what AdamW trains, by name."""
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    hidden = {name: p for name, p in trained.items() if ".layers." in name and p.dim() == 2}
    return hidden, {name: p for name, p in trained.items() if name not in hidden}


def make_optimizer(config: TrainConfig, model: WorldModel) -> MuonAdamW:
    """Muon for the matrices between hidden states, which learns as much in half the steps; AdamW for embeddings, norms
    and the gate."""
    hidden, others = by_optimizer(model)
    return MuonAdamW(
        hidden, others, muon_decay=config.weight_decay, adamw_decay=0.0, betas=(0.9, 0.95), precision=model.precision
    )


def pace(config: TrainConfig, progress: float) -> float:
    """Share of the full learning rate: linear warm-up over the first `warmup` of training, then a cosine to zero.
    progress in [0, 1]."""
    if progress < config.warmup:
        return max(progress, 1e-3) / config.warmup
    return 0.5 * (1 + math.cos(math.pi * (progress - config.warmup) / (1 - config.warmup)))


@dataclass(frozen=True)
class Progress:
    """How far training is: steps done, seconds spent in them."""

    step: int = 0
    seconds: float = 0.0

    def share(self, config: TrainConfig) -> float:
        """Of the whole training, in [0, 1]: of its time where `minutes` is set, else of its steps."""
        done = self.seconds / (60 * config.minutes) if config.minutes else self.step / config.steps
        return min(done, 1.0)


def train(
    config: TrainConfig, data: Data, processes: Processes | None = None
) -> Iterator[tuple[Progress, dict[str, float]]]:
    """Go on from what `out` holds to the end; yields progress and the losses of every step, of the whole batch.

    processes: those that share it, over which `data.model` is spread; None for this one alone.
    """
    model, out = data.model, Path(config.out)
    processes = processes or Processes(model.device)
    optimizer = make_optimizer(config, model)
    progress = resume(config, data, optimizer, processes)
    trained = [p for p in model.parameters() if p.requires_grad]
    augment, shares = config.augment.of(model.spec), stride_shares(model.strides, config.stride_weights)
    copies = data.train.copies
    saved = time.monotonic()
    model.train()
    while progress.share(config) < 1:
        began = time.monotonic()
        # The step alone decides its data and its randomness, so that nothing else has to be kept to resume.
        rng = torch.Generator().manual_seed(config.seed * 1_000_003 + progress.step)
        first = int(torch.randint(config.first_steps + 1, (), generator=rng))
        starts = batch_starts(config, len(data.train), progress.step, len(copies) if copies else 1)
        change = augment.draw(config.batch, rng, model.spec)  # where copies have theirs, only what follows is as ever
        images = bool(torch.rand((), generator=rng) >= model.config.weights.imageless)
        strides, choice = draw_strides(shares, model, config, rng), config.viewpoints.choose(config.batch, rng)
        batch = data.train.batch(
            starts, config.window, None if copies else change, strides, choice, processes.share(config.batch)
        )
        losses = model(batch.to(model.device), first, images)
        optimizer.zero_grad()
        losses.total.backward()
        nn.utils.clip_grad_norm_(trained, config.clip)
        share = pace(config, progress.share(config))
        optimizer.step(config.muon_rate * share, config.learning_rate * share)
        progress = Progress(progress.step + 1, progress.seconds + processes.agree(time.monotonic() - began))
        losses = processes.whole_batch(losses)
        if not math.isfinite(losses.total.item()):
            raise FloatingPointError(
                f"the loss of step {progress.step} is not finite: lower `learning_rate`; {out / 'last'} is untouched"
            )
        # Once in a while: save.
        if progress.share(config) >= 1 or processes.agree(time.monotonic() - saved) > config.checkpoint_seconds:
            save(config, data, optimizer, progress, processes)
            saved = time.monotonic()
        yield progress, {"loss": losses.total.item(), **{k: v.item() for k, v in losses.parts.items()}}
    model.eval()


def save(
    config: TrainConfig, data: Data, optimizer: MuonAdamW, progress: Progress, processes: Processes
) -> None:
    """A new folder with all that the next step depends on; `last` names it once it is whole."""
    folder = Path(config.out) / f"step-{progress.step:07d}"
    training = {"fingerprint": data.fingerprint, "step": progress.step, "seconds": progress.seconds}
    meta = {**data.about, "training": training}
    if processes.alone:
        if folder.exists():  # left by a run that was killed before `last` named it
            shutil.rmtree(folder)
        checkpoint.save(folder, data.model, data.text, meta, optimizer.state())
    else:
        shards.save(folder, meta, data.model, optimizer, processes)
    if processes.first:
        checkpoint.point(Path(config.out), folder)


def resume(config: TrainConfig, data: Data, optimizer: MuonAdamW, processes: Processes) -> Progress:
    """Take up what `save` wrote, by however many processes; a fresh start where there is nothing. ValueError where it
    was made from something else."""
    folder = checkpoint.last(Path(config.out))
    if folder is None:
        return Progress()
    about = checkpoint.read_meta(folder)["training"]
    require_same(about.get("fingerprint"), data.fingerprint, str(folder))
    if processes.alone and not shards.are_in(folder):
        loaded, state = checkpoint.load(folder), checkpoint.load_training(folder)
        data.model.load_state_dict(loaded.model.state_dict())
        optimizer.load_state(state)
    else:
        shards.load(folder, data.model, optimizer, processes)
    return Progress(about["step"], about["seconds"])


# -------------------------------------------------------------------------------------------------- the command


def run(config: TrainConfig) -> dict | None:
    """Train or go on, measure, write everything into `out`; returns the figures, to the first of several processes."""
    torch.set_num_threads(config.threads)
    torch.use_deterministic_algorithms(True, warn_only=True)
    device = choose_device(config.device)
    precision = choose_precision(config.precision, device)
    processes = sharding.join(device, config.batch)
    # What is to be spread need not fit one device.
    data = prepare(config, device if processes.alone else torch.device("cpu"), processes)
    out = Path(config.out)
    out.mkdir(parents=True, exist_ok=True)
    for note in data.notes:
        tqdm.write(f"train: {note}", file=sys.stderr)
    model = data.model
    model.precision = precision
    replica = sharding.shard(model, processes)
    steps = min(config.window, windows.longest(data.held_out)) if data.held_out else 0
    starts = windows.spread_evenly(data.held_out, 2 * held_out.BATCH, steps) if steps else None
    log = tracking.start("train", out, config.wandb if processes.first else "disabled", config)

    # Go!
    smooth, bar = None, tqdm(total=1000, desc="training", bar_format="{l_bar}{bar}| {elapsed} < {remaining}{postfix}")
    for progress, losses in train(config, data, processes):
        smooth = losses["loss"] if smooth is None else 0.95 * smooth + 0.05 * losses["loss"]
        bar.update(int(1000 * progress.share(config)) - bar.n)
        # Once in a while: say how it goes.
        if progress.step % config.log_every == 0:
            bar.set_postfix(step=progress.step, loss=f"{smooth:.4f}")
            log.log({f"train/{name}": value for name, value in losses.items()}, step=progress.step)
        # Once in a while: look at what was never trained on.
        if progress.step % config.loss_every == 0 and starts is not None:
            if (whole := replica.gather()) is not None:
                found = held_out.losses(whole, data.held_out, starts, steps)
                tqdm.write(summary(progress, losses, found))
                log.log({f"held_out/{name}": value for name, value in found.items()}, step=progress.step)
    bar.close()

    model.eval()
    whole = replica.gather()
    if whole is None:
        processes.end()
        return None
    data = replace(data, model=whole)
    figures = measure(config, data, steps)
    if steps > 1:
        pictures.imagined(whole, data.held_out).save(out / "imagined.png")
    write_json(out / "metrics.json", figures)
    finish(out, data, figures)
    log.log({f"final/{k}": v for k, v in figures.items() if isinstance(v, int | float)})
    log.finish()
    processes.end()
    return figures


def finish(out: Path, data: Data, figures: dict) -> None:
    """Write the checkpoint to act with. One that this very training wrote before stays as it is: what was made from it
    tells it by its content."""
    meta, folder = checkpoint.read_meta(checkpoint.last(out)), out / "checkpoint"
    training = {**meta["training"], "fingerprint": digest(data.fingerprint)}
    try:
        if folder.exists() and checkpoint.load(folder).meta.get("training") == training:
            return
    except CheckpointError as error:
        tqdm.write(f"train: {error}. It is written again", file=sys.stderr)
    meta = {**meta, "training": training, "figures": figures}
    checkpoint.save(folder, data.model, data.text, meta, replace=True)


def measure(config: TrainConfig, data: Data, steps: int) -> dict:
    """The figures of the trained model on held-out episodes, as JSON keeps them: null where nothing is known.

    steps: model steps of the windows whose losses are taken; 0 where no held-out episode has any.
    """
    figures: dict = {}
    if steps:
        starts = windows.spread_evenly(data.held_out, config.measured_windows, steps)
        figures |= held_out.losses(data.model, data.held_out, starts, steps)
    if steps > 1:
        figures |= held_out.evaluate(data.model, data.held_out, config.measured_windows)
    sides = {"train": data.train, "held_out": data.held_out}
    figures["state_outside"] = {name: dataset.outside() for name, dataset in sides.items() if dataset}
    return json.loads(to_json(figures))


def summary(progress: Progress, losses: dict[str, float], found: dict[str, float]) -> str:
    names = ("next_image", "next_state", "expert_action", "value")
    both = {name: (losses[name], found[f"{name}_nats"]) for name in names if name in losses and f"{name}_nats" in found}
    shown = "  ".join(f"{name} {trained:.3f}/{unseen:.3f}" for name, (trained, unseen) in both.items())
    shuffled = found["next_image_nats_shuffled"]
    return f"step {progress.step:6d}  trained/held out: {shown}  next_image, shuffled actions {shuffled:.3f}"


def dry_run(config: TrainConfig) -> str:
    """What a training would take, in words, without taking it."""
    precision = choose_precision(config.precision, choose_device(config.device))
    return plan.describe(meta_model(config), by_optimizer, precision)


def to_config(raw: DictConfig) -> TrainConfig:
    values = OmegaConf.to_container(raw, resolve=True)
    folders = {name: sources.as_folders(values[name]) for name in ("data", "unlabelled", "on_policy")}
    return from_settings(TrainConfig, {**values, **folders})


@hydra.main(version_base=None, config_path="../configs", config_name="train")
def main(raw: DictConfig) -> None:
    try:
        with sharding.first_speaks():
            config = to_config(raw)
            if config.dry_run:
                print(dry_run(config))
                return
            figures = run(config)
    except KeyboardInterrupt:
        sharding.leave("train: stopped; run the same command again to go on")
    except (EpisodeError, CheckpointError, TokenizerError, FloatingPointError, ValueError, OSError) as error:
        sharding.leave(f"train: {error}")
    if figures is not None:
        print(held_out.table(figures))
        print(f"\nwritten to {raw.out}")


if __name__ == "__main__":
    main()
