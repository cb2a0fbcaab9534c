"""Train a policy on recorded episodes, without a model of the world: `python -m policies.train policy=chunk`.

Run the same command again to go on after an interruption; a run whose data or settings have changed meanwhile says what
has and stops. Writes the policy into `out`, which `agent.evaluate policy=learned checkpoint=OUT` takes.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import hydra
import torch
from omegaconf import DictConfig, OmegaConf
from torch import nn
from tqdm import tqdm

from envs.data.augmentation import Augmentation
from envs.data.files import write_json
from envs.data.fingerprint import Folder, fingerprint
from envs.data.formats.folder import open_episodes
from envs.data.progress import load_progress, save_progress
from envs.data.settings import from_settings
from envs.data.split import refuse_imagined, refuse_training
from envs.data.store import EpisodeError
from envs.data.tracking import start_run
from envs.types import Episode
from policies.learned.networks import NETWORKS, NetworkConfig
from policies.learned.policy import LearnedPolicy, device_of, sizes
from policies.learned.windows import Normal, Windows

PROGRESS = "training.safetensors"
# Settings that change nothing about what is learnt; `data` is told by its content.
NOT_LEARNT = ("data", "out", "measured", "log_every", "checkpoint_seconds", "threads", "device", "wandb")


@dataclass(frozen=True)
class TrainConfig:
    """configs/policies_train.yaml says what each of these means."""

    policy: NetworkConfig
    augment: Augmentation
    data: tuple[str, ...]
    imitate: Literal["expert", "action"]
    imagined: bool
    held_out: int
    out: str
    steps: int
    batch: int
    learning_rate: float
    warmup: float
    weight_decay: float
    average: float
    measured: int
    log_every: int
    checkpoint_seconds: float
    seed: int
    threads: int
    device: str
    wandb: Literal["disabled", "offline", "online"]

    def __post_init__(self) -> None:
        if not self.data:
            raise ValueError("`data` must name at least one folder of episodes")
        for name in ("steps", "batch", "measured", "log_every", "threads"):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be at least 1, got {getattr(self, name)}")
        if not (self.learning_rate > 0 and self.weight_decay >= 0):
            raise ValueError("`learning_rate` must be positive, `weight_decay` 0 or more")
        if not (0 <= self.average < 1 and 0 <= self.warmup < 1):
            raise ValueError(f"`average` and `warmup` must be in [0, 1), got {self.average} and {self.warmup}")


def read(config: TrainConfig) -> tuple[list[Episode], list[Episode], list[Folder]]:
    """Training and held-out episodes, and what the folders hold. EpisodeError or ValueError where they cannot serve."""
    train, held, folders = [], [], []
    for path in config.data:
        store = open_episodes(path)
        for side, names in zip((train, held), store.split(config.held_out), strict=True):
            for name in tqdm(names, desc=f"reading {path}", unit="episode", disable=not names):
                episode = store.read(name, states=False)
                refuse_training(episode.split, f"episodes in {path}")
                if not config.imagined:
                    refuse_imagined(episode.source, f"episodes in {path}", "set imagined=true to train on them")
                if train:
                    train[0].spec.require(episode.spec, f"the episodes of {config.data[0]}", f"those of {path}")
                side.append(episode)
        folders.append(Folder("data", path, store.digests()))
    if not train:
        raise EpisodeError("nothing to train on: every episode is held out; choose another `held_out`")
    return train, held, folders


def pace(config: TrainConfig, step: int) -> float:
    """The learning rate: linear warm-up, then a cosine to zero."""
    share = step / config.steps
    if share < config.warmup:
        return config.learning_rate * max(share, 1e-3) / config.warmup
    return config.learning_rate * (1 + math.cos(math.pi * (share - config.warmup) / (1 - config.warmup))) / 2


@dataclass
class Training:
    """The network, its moving average that acts, and the optimizer."""

    network: nn.Module
    averaged: nn.Module
    optimizer: torch.optim.Optimizer
    step: int = 0

    def save(self, path: Path, made_from: dict) -> None:
        """All that the next step depends on."""
        states = self.optimizer.state_dict()["state"].items()
        moments = {f"{i}/{name}": value for i, state in states for name, value in state.items()}
        parts = {"network": self.network.state_dict(), "averaged": self.averaged.state_dict(), "optimizer": moments}
        save_progress(path, parts, self.step, made_from)

    def resume(self, path: Path, made_from: dict) -> None:
        """Take up what `save` wrote, where there is anything. ValueError where it is damaged or was made from something
        else."""
        found = load_progress(path, made_from)
        if found is None:
            return
        parts, self.step = found
        self.network.load_state_dict(parts["network"])
        self.averaged.load_state_dict(parts["averaged"])
        states: dict[int, dict] = {}
        for key, value in parts["optimizer"].items():
            i, name = key.split("/")
            states.setdefault(int(i), {})[name] = value
        self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": states})


def train(config: TrainConfig, training: Training, windows: Windows, made_from: dict) -> Iterator[float]:
    """Train to the last step, saving every now and then; yields the losses."""
    network, path, saved = training.network, Path(config.out) / PROGRESS, time.monotonic()
    normal, augment = windows.normal(), config.augment.of(windows.spec)
    device = next(network.parameters()).device
    network.train()
    while training.step < config.steps:
        # The step alone decides its data and its randomness, so that nothing else has to be kept to resume.
        rng = torch.Generator().manual_seed(config.seed * 1_000_003 + training.step)
        torch.manual_seed(config.seed * 1_000_003 + training.step)  # of dropout
        pick = torch.randint(len(windows.starts), (config.batch,), generator=rng)
        batch = windows.batch(pick, config.policy.chunk, normal, augment.draw(config.batch, rng))
        loss = network.loss(*batch.to(device), rng)
        training.optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        for group in training.optimizer.param_groups:
            group["lr"] = pace(config, training.step)
        training.optimizer.step()
        training.step += 1
        keep = min(config.average, training.step / (training.step + 10))  # early on the average would lag behind
        with torch.no_grad():
            for mean, new in zip(training.averaged.parameters(), network.parameters(), strict=True):
                mean.lerp_(new, 1 - keep)
        if not math.isfinite(loss.item()):
            raise FloatingPointError(f"the loss of step {training.step} is not finite: lower `learning_rate`")
        if training.step == config.steps or time.monotonic() - saved > config.checkpoint_seconds:
            training.save(path, made_from)
            saved = time.monotonic()
        yield loss.item()


@torch.no_grad()
def measure(config: TrainConfig, network: nn.Module, windows: Windows, normal: Normal) -> float:
    """Mean absolute error of the commands that it would give, in shares of half the range, over held-out steps."""
    network.eval()
    device, errors = next(network.parameters()).device, []
    pick = torch.linspace(0, len(windows.starts) - 1, min(config.measured, len(windows.starts))).long()
    for part in pick.split(config.batch):
        *seen, actions, told = windows.batch(part, config.policy.chunk, normal).to(device)
        noise = torch.randn(actions.shape, generator=torch.Generator().manual_seed(0)).to(device)
        away = (network.sample(*seen, noise).clamp(-1, 1) - actions).abs().mean(-1)  # (B, M)
        errors.append((away * told).sum(1) / told.sum(1).clamp_min(1))
    return float(torch.cat(errors).mean())


def run(config: TrainConfig) -> dict:
    """Train or go on, measure, write everything into `out`; returns the report."""
    torch.set_num_threads(config.threads)
    device = device_of(config.device)
    episodes, held, folders = read(config)
    instructions = tuple(sorted({e.instruction for e in (*episodes, *held)}))
    windows = Windows.of(episodes, instructions, config.imitate)
    if not len(windows.starts):
        raise EpisodeError("no episode says what an expert would do: set imitate=action to imitate what was executed")
    torch.manual_seed(config.seed)
    networks = [NETWORKS[config.policy.kind](config.policy, sizes(windows.spec, len(instructions))) for _ in range(2)]
    network, averaged = (each.to(device) for each in networks)
    averaged.load_state_dict(network.state_dict())
    optimizer = torch.optim.AdamW(network.parameters(), betas=(0.9, 0.95), weight_decay=config.weight_decay)
    training = Training(network, averaged.requires_grad_(False), optimizer)
    settings = {name: value for name, value in asdict(config).items() if name not in NOT_LEARNT}
    made_from, out = fingerprint(settings, {}, folders), Path(config.out)
    training.resume(out / PROGRESS, made_from)
    out.mkdir(parents=True, exist_ok=True)
    log, smooth = start_run(config.wandb, f"policy {config.policy.kind}", out, asdict(config)), None
    with tqdm(total=config.steps, initial=training.step, desc=f"training {config.policy.kind}", unit="step") as bar:
        for loss in train(config, training, windows, made_from):
            smooth = loss if smooth is None else 0.95 * smooth + 0.05 * loss
            bar.update(training.step - bar.n)
            if training.step % config.log_every == 0:
                bar.set_postfix(loss=f"{smooth:.4f}")
                log.log({"loss": loss, "learning_rate": pace(config, training.step)}, step=training.step)
    normal = windows.normal()
    figures = {"trained": measure(config, averaged, windows, normal)}
    if held:
        unseen = Windows.of(held, instructions, config.imitate)
        figures |= {"held_out": measure(config, averaged, unseen, normal)} if len(unseen.starts) else {}
    report = {"action_error": figures, "episodes": {"train": len(episodes), "held_out": len(held)},
              "config": asdict(config), "parameters": sum(p.numel() for p in network.parameters())}  # fmt: skip
    LearnedPolicy(averaged, windows.spec, instructions, normal).save(out, {"made_from": made_from, **figures})
    write_json(out / "report.json", report)
    log.log(figures)
    log.finish()
    return report


def to_config(raw: DictConfig) -> TrainConfig:
    values = OmegaConf.to_container(raw, resolve=True)
    data = [values["data"]] if isinstance(values["data"], str) else values["data"]
    return from_settings(TrainConfig, {**values, "data": data})


@hydra.main(version_base=None, config_path="../configs", config_name="policies_train")
def main(raw: DictConfig) -> None:
    try:
        report = run(to_config(raw))
    except KeyboardInterrupt:
        sys.exit("policies.train: stopped; run the same command again to go on")
    except (EpisodeError, FloatingPointError, ValueError, OSError) as error:
        sys.exit(f"policies.train: {error}")
    for name, value in report["action_error"].items():
        print(f"action error, {name}: {value:.4f} of half the range")
    print(f"written to {raw.out}")


if __name__ == "__main__":
    main()
