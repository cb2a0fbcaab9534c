"""Train the world model on collected episodes: `python -m world_model.train`.

Run the same command again to go on after an interruption; on a CPU the result is the same to the bit. Writes into
`out`: `step-*`, the newest two states of training, `last`, which names the one to go on from, `metrics.json`,
`imagined.png`, and in the end `checkpoint`, the folder to act with.
"""

from __future__ import annotations

import importlib.metadata
import json
import math
import shutil
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path

import hydra
import numpy as np
import torch
import wandb
from omegaconf import DictConfig, OmegaConf
from torch import nn
from tqdm import tqdm

from envs.data.augmentation import Augmentation
from envs.data.store import EpisodeError, EpisodeStore
from envs.types import Episode
from world_model import checkpoint
from world_model.checkpoint import CheckpointError
from world_model.metrics import held_out
from world_model.model import ModelConfig, WorldModel
from world_model.nn.device import choose_device, choose_precision
from world_model.nn.transformer import TransformerConfig
from world_model.tokens.actions import ActionTokenizer
from world_model.tokens.images import FrameTokenizer, TokenizerError, write_whole
from world_model.tokens.layout import Tracks, chunks
from world_model.tokens.text import TextTokenizer
from world_model.tokens.vocab import Vocab
from world_model.training.loss import LossWeights, window_losses
from world_model.training.muon import Muon


@dataclass(frozen=True)
class TrainConfig:
    """configs/train.yaml says what each of these means."""

    data: tuple[str, ...]
    experience: tuple[str, ...]
    attempts: tuple[str, ...]
    tokenizer: str
    start: str
    out: str
    augment: Augmentation
    model: ModelConfig
    coefs: tuple[int, ...]
    text_size: int
    discount: float
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
    wandb: str

    def __post_init__(self) -> None:
        if self.wandb not in ("disabled", "offline", "online"):
            raise ValueError("`wandb` must be disabled, offline or online")
        if min(self.steps, self.batch, self.window, self.measured_windows) < 1 or self.held_out < 2:
            raise ValueError("`held_out` must be at least 2; steps, batch, window and measured_windows positive")

    def recipe(self) -> str:
        """The settings that a half-finished run must share with the one that takes it up."""
        leave_out = ("out", "measured_windows", "log_every", "loss_every", "checkpoint_seconds", "threads",
                     "precision", "device", "wandb")  # fmt: skip
        return json.dumps({k: v for k, v in asdict(self).items() if k not in leave_out}, sort_keys=True)


# -------------------------------------------------------------------------------------------------- data


@dataclass(frozen=True)
class Data:
    """Tokenized episodes and the tokenizers that were made from the training ones."""

    train: Tracks
    held_out: Tracks
    model: WorldModel
    text: TextTokenizer
    about: dict  # for the checkpoint's meta


def prepare(config: TrainConfig, device: torch.device) -> Data:
    """Read every episode once, fit the text and action tokenizers on the training ones, build the model; or take
    all of these from the checkpoint to start from."""
    begin = checkpoint.load(config.start, device) if config.start else None
    frames = begin.frames if begin else frame_tokenizer(config.tokenizer, device)
    episodes: dict[bool, list[Episode]] = {False: [], True: []}
    for folder in (*config.data, *config.experience, *config.attempts):
        store = EpisodeStore(folder)
        for held, names in zip((False, True), store.split(config.held_out), strict=True):
            read = [store.read(name) for name in tqdm(names, desc=f"reading {folder}", unit="episode")]
            if folder not in config.data:
                read = [without_advice(episode, valued=folder in config.attempts) for episode in read]
            episodes[held] += read
    training = episodes[False]
    if not training:
        raise EpisodeError(f"no two episodes under {', '.join(config.data)}: run `python -m agent.collect` first")

    if begin:
        model, text, actions = begin.model, begin.text, begin.actions
        model.config = replace(model.config, weights=config.model.weights)  # what counts is this training's to say
    else:
        text = TextTokenizer.train([t for e in training for t in (e.instruction, *e.subtask_names)], config.text_size)
        actions = ActionTokenizer.fit(sample_chunks(training), coefs=config.coefs)
        vocab = Vocab.native(text.size, frames.vision_size, actions.chunk)
        text = text.within(vocab.text)
        torch.manual_seed(config.seed)
        model = WorldModel(config.model, vocab, frames, actions).to(device)
    train, test = (
        Tracks.join([Tracks.of(e, model.layout, frames, actions, text, config.discount) for e in episodes[held]])
        for held in (False, True)
    )
    about = {
        "instructions": sorted({e.instruction for e in training}), "env_ids": sorted({e.env_id for e in training}),
        "episodes": {"train": len(training), "held_out": len(episodes[True])}, "control_steps": len(train),
        "discount": config.discount,
        "versions": {name: importlib.metadata.version(name) for name in ("torch", "numpy", "safetensors")},
    }  # fmt: skip
    return Data(train, test, model, text, about)


def frame_tokenizer(folder: str, device: torch.device) -> FrameTokenizer:
    """What `train_tokenizer` wrote, or the one within a checkpoint."""
    if (Path(folder) / "manifest.json").exists():
        return checkpoint.load(folder, device).frames
    return FrameTokenizer.load(folder, device)


def without_advice(episode: Episode, valued: bool) -> Episode:
    """What followed which action can still be learnt from it, but no longer what an expert would have done; nor what
    it is worth to be there, unless it is an attempt of the model's own (`valued`): others may go on better or worse."""
    detour = episode.detour if valued else len(episode)
    return replace(episode, expert=np.full_like(episode.expert, np.nan), detour=detour)


def sample_chunks(episodes: list[Episode], most: int = 50_000) -> torch.Tensor:
    """Executed and advised chunks (n, M, A) to fit the action bins on."""
    every = [chunks(a, 8)[:-1] for e in episodes for a in (e.action, e.expert)]
    found = np.concatenate([c[np.isfinite(c).all((1, 2))] for c in every])
    return torch.from_numpy(found[:: max(1, len(found) // most)])


def batch_starts(config: TrainConfig, rows: int, step: int) -> np.ndarray:
    """Which windows step number `step` learns from, (batch,): shuffled anew each epoch. The step alone decides."""
    place = step * config.batch + np.arange(config.batch)
    return np.array([_shuffled(rows, config.seed, int(p // rows))[p % rows] for p in place])


@lru_cache(maxsize=2)
def _shuffled(rows: int, seed: int, epoch: int) -> np.ndarray:
    return np.random.default_rng((seed, epoch)).permutation(rows)


# -------------------------------------------------------------------------------------------------- training


def make_optimizers(config: TrainConfig, model: WorldModel) -> tuple[torch.optim.Optimizer, ...]:
    """Muon for the matrices between hidden states, which learns as much in half the steps; AdamW for embeddings, norms
    and the gate."""
    trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    hidden = [p for name, p in trained if ".layers." in name and p.dim() == 2]
    others = [p for name, p in trained if not (".layers." in name and p.dim() == 2)]
    return (
        Muon(hidden, lr=config.muon_rate, weight_decay=config.weight_decay, precision=model.precision),
        torch.optim.AdamW(others, lr=config.learning_rate, betas=(0.9, 0.95), weight_decay=0.0),
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


def train(config: TrainConfig, data: Data) -> Iterator[tuple[Progress, dict[str, float]]]:
    """Go on from what `out` holds to the end; yields progress and the losses of every step."""
    model, out = data.model, Path(config.out)
    optimizers = make_optimizers(config, model)
    progress = resume(config, model, optimizers)
    trained = [p for p in model.parameters() if p.requires_grad]
    saved = time.monotonic()
    model.train()
    while progress.share(config) < 1:
        began = time.monotonic()
        # The step alone decides its data and its randomness, so that nothing else has to be kept to resume.
        rng = torch.Generator().manual_seed(config.seed * 1_000_003 + progress.step)
        first = int(torch.randint(config.first_steps + 1, (), generator=rng))
        starts, change = batch_starts(config, len(data.train), progress.step), config.augment.draw(config.batch, rng)
        window = data.train.window(starts, config.window, change)
        losses = window_losses(model, window.to(model.device), first)
        model.zero_grad(set_to_none=True)
        losses.total.backward()
        nn.utils.clip_grad_norm_(trained, config.clip)
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = optimizer.defaults["lr"] * pace(config, progress.share(config))
            optimizer.step()
        progress = Progress(progress.step + 1, progress.seconds + time.monotonic() - began)
        if not math.isfinite(losses.total.item()):
            raise FloatingPointError(
                f"the loss of step {progress.step} is not finite: lower `learning_rate`; {out / 'last'} is untouched"
            )
        # Once in a while: save.
        if progress.share(config) >= 1 or time.monotonic() - saved > config.checkpoint_seconds:
            save(config, data, optimizers, progress)
            saved = time.monotonic()
        yield progress, {"loss": losses.total.item(), **{k: v.item() for k, v in losses.parts.items()}}
    model.eval()


def save(config: TrainConfig, data: Data, optimizers: tuple[torch.optim.Optimizer, ...], progress: Progress) -> None:
    """A new folder with all that the next step depends on; `last` names it once it is whole."""
    folder = Path(config.out) / f"step-{progress.step:07d}"
    moments = {
        f"{key}/{name}": value
        for name, p in data.model.named_parameters() for optimizer in optimizers if p in optimizer.state
        for key, value in optimizer.state[p].items()
    }  # fmt: skip
    meta = {**data.about, "training": {"recipe": config.recipe(), "step": progress.step, "seconds": progress.seconds}}
    if folder.exists():  # left by a run that was killed before `last` named it
        shutil.rmtree(folder)
    checkpoint.save(folder, data.model, data.text, meta, moments)
    checkpoint.point(Path(config.out), folder)


def resume(config: TrainConfig, model: WorldModel, optimizers: tuple[torch.optim.Optimizer, ...]) -> Progress:
    """Take up what `save` wrote; a fresh start where there is nothing."""
    folder = checkpoint.last(Path(config.out))
    if folder is None:
        return Progress()
    loaded, moments = checkpoint.load(folder), checkpoint.load_training(folder)
    about = loaded.meta["training"]
    if about["recipe"] != config.recipe():
        raise ValueError(f"{folder} belongs to a training with other settings: choose another `out` or delete it")
    if loaded.vocab != model.vocab or loaded.actions != model.actions:
        raise ValueError(f"{folder} was trained on other episodes than these: choose another `out` or delete it")
    model.load_state_dict(loaded.model.state_dict())
    owner = {p: optimizer for optimizer in optimizers for group in optimizer.param_groups for p in group["params"]}
    parameters = dict(model.named_parameters())
    for label, value in moments.items():
        key, name = label.split("/")
        p = parameters[name]
        owner[p].state[p][key] = value if value.dim() == 0 else value.to(p.device)
    return Progress(about["step"], about["seconds"])


# -------------------------------------------------------------------------------------------------- the verb


def run(config: TrainConfig) -> dict:
    """Train or go on, measure, write everything into `out`; returns the figures."""
    torch.set_num_threads(config.threads)
    torch.use_deterministic_algorithms(True, warn_only=True)
    out = Path(config.out)
    out.mkdir(parents=True, exist_ok=True)
    device = choose_device(config.device)
    precision = choose_precision(config.precision, device)
    data = prepare(config, device)
    model = data.model
    model.precision = precision
    starts = held_out.pick(data.held_out, 2 * held_out.BATCH, config.window)
    log = wandb.init(
        project="nextstate", job_type="train", id=f"train-{out.resolve().name}", resume="allow", mode=config.wandb,
        dir=str(out), config=asdict(config),
    )  # fmt: skip

    # Go!
    smooth, bar = None, tqdm(total=1000, desc="training", bar_format="{l_bar}{bar}| {elapsed} < {remaining}{postfix}")
    for progress, losses in train(config, data):
        smooth = losses["loss"] if smooth is None else 0.95 * smooth + 0.05 * losses["loss"]
        bar.update(int(1000 * progress.share(config)) - bar.n)
        # Once in a while: say how it goes.
        if progress.step % config.log_every == 0:
            bar.set_postfix(step=progress.step, loss=f"{smooth:.4f}")
            log.log({f"train/{name}": value for name, value in losses.items()}, step=progress.step)
        # Once in a while: look at what was never trained on.
        if progress.step % config.loss_every == 0:
            found = held_out.losses(model, data.held_out, starts, config.window)
            tqdm.write(summary(progress, losses, found))
            log.log({f"held_out/{name}": value for name, value in found.items()}, step=progress.step)
    bar.close()

    model.eval()
    starts = held_out.pick(data.held_out, config.measured_windows, config.window)
    figures = {
        **held_out.losses(model, data.held_out, starts, config.window),
        **held_out.measure(model, data.held_out, config.measured_windows),
    }
    held_out.picture(model, data.held_out).save(out / "imagined.png")
    write_whole(out / "metrics.json", json.dumps(figures, indent=1).encode())
    last = checkpoint.load(checkpoint.last(out))
    shutil.rmtree(out / "checkpoint", ignore_errors=True)
    checkpoint.save(out / "checkpoint", model, data.text, {**last.meta, "figures": figures})
    log.log({f"final/{k}": v for k, v in figures.items() if not isinstance(v, list)})
    log.finish()
    return figures


def summary(progress: Progress, losses: dict[str, float], found: dict[str, float]) -> str:
    names = ("next_image", "next_state", "expert_action", "value")
    shown = "  ".join(f"{name} {losses[name]:.3f}/{found[f'{name}_nats']:.3f}" for name in names)
    shuffled = found["next_image_nats_shuffled"]
    return f"step {progress.step:6d}  trained/held out: {shown}  next_image, shuffled actions {shuffled:.3f}"


def to_config(raw: DictConfig) -> TrainConfig:
    values = OmegaConf.to_container(raw, resolve=True)
    model, augment = values.pop("model"), values.pop("augment")
    transformer, weights = TransformerConfig(**model.pop("transformer")), LossWeights(**model.pop("weights"))
    lists = {name: tuple(values[name]) for name in ("data", "experience", "attempts", "coefs")}
    return TrainConfig(
        **{**values, **lists},
        augment=Augmentation.from_dict(augment),
        model=ModelConfig(**model, transformer=transformer, weights=weights),
    )


@hydra.main(version_base=None, config_path="../configs", config_name="train")
def main(raw: DictConfig) -> None:
    try:
        figures = run(to_config(raw))
    except KeyboardInterrupt:
        sys.exit("train: stopped; run the same command again to go on")
    except (EpisodeError, CheckpointError, TokenizerError, FloatingPointError, ValueError, OSError) as error:
        sys.exit(f"train: {error}")
    print(held_out.table(figures))
    print(f"\nwritten to {raw.out}")


if __name__ == "__main__":
    main()
