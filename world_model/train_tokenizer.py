"""Train the frame tokenizer on collected episodes and measure what survives: `python -m world_model.train_tokenizer`.

Run the same command again to go on after an interruption. Writes into `out`: the tokenizer, `report.json` with the
figures on held-out episodes, `reconstruction.png` with real above reconstructed frames.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import hydra
import numpy as np
import safetensors
import safetensors.torch
import torch
import wandb
from omegaconf import DictConfig, OmegaConf
from PIL import Image
from tqdm import tqdm

from envs.data.augmentation import Augmentation
from envs.data.store import EpisodeError, EpisodeStore
from envs.types import Episode
from world_model.metrics.reconstruction import GATE, Fidelity, measure, passes_gate
from world_model.nn.device import choose_device, choose_precision
from world_model.tokens.images import FrameConfig, FrameTokenizer, to_unit, write_whole
from world_model.training.muon import Muon

PROGRESS = "training.safetensors"


@dataclass(frozen=True)
class TrainConfig:
    """configs/train_tokenizer.yaml says what each of these means."""

    data: tuple[str, ...]
    out: str
    tokenizer: FrameConfig
    augment: Augmentation
    steps: int
    batch: int
    learning_rate: float
    warmup: int
    frames_per_episode: int
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
    wandb: str

    def __post_init__(self) -> None:
        if self.wandb not in ("disabled", "offline", "online"):
            raise ValueError("`wandb` must be disabled, offline or online")
        if self.held_out < 2 or min(self.steps, self.batch, self.frames_per_episode, self.measured_episodes) < 1:
            raise ValueError("`held_out` must be at least 2; steps, batch and numbers of frames and episodes positive")

    def what_is_learnt(self) -> str:
        """The settings that a half-finished run must share with the one that takes it up."""
        leave_out = ("out", "measured_episodes", "checkpoint_seconds", "threads", "precision", "device", "wandb")
        return json.dumps({k: v for k, v in asdict(self).items() if k not in leave_out}, sort_keys=True)


@dataclass(frozen=True)
class Frames:
    """A sample of the training episodes' frames, in memory; n frames of e episodes."""

    main: torch.Tensor  # (n, 64, 64, 3) u8
    wrist: torch.Tensor  # (n, 32, 32, 3) u8
    keypoints: torch.Tensor  # (n, 4, 3) f32, metres, NaN where there are none
    episode: torch.Tensor  # (n,) i64
    main_mean: torch.Tensor  # (e, 64, 64, 3) u8
    wrist_mean: torch.Tensor  # (e, 32, 32, 3) u8


def split_episodes(config: TrainConfig) -> tuple[list[tuple[EpisodeStore, str]], list[tuple[EpisodeStore, str]]]:
    """(store, name) of the episodes to train on, and of those of every `held_out`-th seed to measure on."""
    train, held_out = [], []
    for folder in config.data:
        store = EpisodeStore(folder)
        for part, names in zip((train, held_out), store.split(config.held_out), strict=True):
            part += [(store, name) for name in names]
    if not train:
        raise EpisodeError(f"no two episodes under {', '.join(config.data)}: run `python -m agent.collect` first")
    return train, held_out


def load_frames(config: TrainConfig, episodes: list[tuple[EpisodeStore, str]]) -> Frames:
    """Read `frames_per_episode` frames of each episode, one at random from each equal stretch of time."""
    rng = np.random.default_rng(config.seed)
    columns: dict[str, list[np.ndarray]] = {name: [] for name in Frames.__annotations__}
    for index, (store, name) in enumerate(tqdm(episodes, desc="reading episodes", unit="episode")):
        episode = store.read(name)
        edges = np.linspace(0, len(episode.main), min(config.frames_per_episode, len(episode.main)) + 1)
        pick = rng.uniform(edges[:-1], edges[1:]).astype(int)
        columns["main"].append(episode.main[pick])
        columns["wrist"].append(episode.wrist[pick])
        columns["keypoints"].append(episode.keypoints[pick])
        columns["episode"].append(np.full(len(pick), index))
        columns["main_mean"].append(episode.main.mean(0, dtype=np.float32).astype(np.uint8)[None])
        columns["wrist_mean"].append(episode.wrist.mean(0, dtype=np.float32).astype(np.uint8)[None])
    return Frames(**{name: torch.from_numpy(np.concatenate(parts)) for name, parts in columns.items()})


def pixel_weights(config: TrainConfig, frames: torch.Tensor, mean: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    """How much each pixel counts: 1, more where it differs from its episode's mean, more round the keypoints.

    frames, mean: (n, h, w, 3) in [-1, 1]; places: (n, 4, 2) pixels, or (n, 0, 2) for none -> (n, h, w), mean 1.
    """
    moved = ((frames - mean).abs().amax(-1) * 4).clamp(max=1)  # 32 grey levels are as much as any
    axis = torch.arange(frames.shape[1], device=frames.device)
    squared = (axis[:, None] - places[..., 0, None, None]) ** 2 + (axis - places[..., 1, None, None]) ** 2
    near = (squared <= config.object_radius**2).any(1)
    weight = 1 + config.motion_weight * moved + config.object_weight * near
    return weight / weight.mean()


def batch_loss(
    config: TrainConfig, tokenizer: FrameTokenizer, frames: Frames, step: int, precision: torch.dtype
) -> torch.Tensor:
    """Weighted squared error on random frames of both views. The step alone decides which, so resuming is exact."""
    device = tokenizer.device
    rng = torch.Generator().manual_seed(config.seed * 1_000_003 + step)
    pick = torch.randint(len(frames.main), (config.batch,), generator=rng)
    change, episode = config.augment.draw(config.batch, rng), frames.episode[pick]
    places = config.augment.camera.project(change.points(frames.keypoints[pick]).numpy())
    places = torch.from_numpy(np.nan_to_num(places, nan=-1e3)).float().to(device)  # far outside
    nowhere = torch.empty(config.batch, 0, 2, device=device)
    total = torch.zeros((), device=device)
    for changed, views, near in (
        (change.main, (frames.main[pick], frames.main_mean[episode]), places),
        (change.wrist, (frames.wrist[pick], frames.wrist_mean[episode]), nowhere),
    ):
        true, mean = (to_unit(changed(view.to(device))) for view in views)
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == torch.bfloat16):
            again = tokenizer(true)
        total = total + ((again.float() - true).square().mean(-1) * pixel_weights(config, true, mean, near)).mean()
    return total


class Optimizer:
    """Muon for the matrices, AdamW for the rest: at equal time a third less loss than AdamW alone."""

    def __init__(self, tokenizer: FrameTokenizer, precision: torch.dtype):
        matrices, rest = {}, {}
        for name, parameter in tokenizer.named_parameters():
            is_matrix = parameter.ndim == 2 and min(parameter.shape) >= 16
            (matrices if is_matrix else rest)[name] = parameter
        self.named = matrices | rest
        self.parts = (
            Muon(matrices.values(), weight_decay=0.01, like_adamw=True, precision=precision),
            torch.optim.AdamW(rest.values(), betas=(0.9, 0.98), weight_decay=0.01),
        )

    def step(self, rate: float) -> None:
        """One update at this learning rate; clears the gradients."""
        for part in self.parts:
            for group in part.param_groups:
                group["lr"] = rate
            part.step()
            part.zero_grad()

    def tensors(self) -> dict[str, torch.Tensor]:
        """Its memory, flat, as `optimizer/<kind>/<parameter>`."""
        states = {name: part.state[p] for part in self.parts for name, p in self.named.items() if p in part.state}
        return {f"optimizer/{kind}/{name}": value for name, state in states.items() for kind, value in state.items()}

    def take_up(self, tensors: dict[str, torch.Tensor]) -> None:
        """Continue from what `tensors` gave."""
        for key, value in tensors.items():
            kind, name = key.removeprefix("optimizer/").split("/")
            parameter = self.named[name]
            part = next(p for p in self.parts if any(parameter is q for g in p.param_groups for q in g["params"]))
            part.state[parameter][kind] = value if kind == "step" else value.to(parameter.device)


def learning_rate(config: TrainConfig, step: int) -> float:
    """Linear warm-up, then a cosine down to zero."""
    if step < config.warmup:
        return config.learning_rate * (step + 1) / config.warmup
    done = (step - config.warmup) / max(1, config.steps - config.warmup)
    return config.learning_rate * (1 + np.cos(np.pi * done)) / 2


def save_progress(path: Path, config: TrainConfig, tokenizer: FrameTokenizer, optimizer: Optimizer, step: int):
    """Weights, the optimizer's memory and the number of steps done: all that the next step depends on."""
    tensors = {f"model/{name}": value for name, value in tokenizer.state_dict().items()} | optimizer.tensors()
    about = {"step": str(step), "config": config.what_is_learnt()}
    write_whole(path, safetensors.torch.save({k: v.contiguous().cpu() for k, v in tensors.items()}, about))


def load_progress(path: Path, config: TrainConfig, tokenizer: FrameTokenizer, optimizer: Optimizer) -> int:
    """Take up what `save_progress` wrote and return the steps done; 0 where there is nothing."""
    if not path.exists():
        return 0
    try:
        with safetensors.safe_open(path, "pt") as file:
            about = file.metadata()
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dictionary)
    except (safetensors.SafetensorError, OSError) as error:
        raise ValueError(f"{path} is damaged ({error}): delete it to begin this training anew") from error
    if about["config"] != config.what_is_learnt():
        raise ValueError(f"{path} belongs to a training with other settings: choose another `out` or delete it")
    tokenizer.load_state_dict({k.removeprefix("model/"): v for k, v in tensors.items() if k.startswith("model/")})
    optimizer.take_up({k: v for k, v in tensors.items() if k.startswith("optimizer/")})
    return int(about["step"])


def train(
    config: TrainConfig, tokenizer: FrameTokenizer, frames: Frames, precision: torch.dtype
) -> Iterator[tuple[int, float]]:
    """Train to the last step, saving every minute; yields (steps done, loss)."""
    optimizer = Optimizer(tokenizer, precision)
    path = Path(config.out) / PROGRESS
    start = load_progress(path, config, tokenizer, optimizer)
    tokenizer.train()
    saved = time.monotonic()
    for step in range(start, config.steps):
        loss = batch_loss(config, tokenizer, frames, step, precision)
        loss.backward()
        optimizer.step(learning_rate(config, step))
        if step + 1 == config.steps or time.monotonic() - saved > config.checkpoint_seconds:
            save_progress(path, config, tokenizer, optimizer, step + 1)
            saved = time.monotonic()
        yield step + 1, loss.item()
    tokenizer.eval()


def evaluate(config: TrainConfig, tokenizer: FrameTokenizer, episodes: list[tuple[EpisodeStore, str]]) -> dict:
    """The figures of each task on its held-out episodes: {env id: {measure: figure}}."""
    found: dict[str, Fidelity] = {}
    left: dict[str, int] = {}
    for store, name in tqdm(episodes, desc="measuring", unit="episode"):
        if left.setdefault(str(store.root), config.measured_episodes):
            left[str(store.root)] -= 1
            episode = store.read(name)
            result = measure(episode, tokenizer, config.augment.camera, stride=4)
            found[episode.env_id] = found[episode.env_id] + result if episode.env_id in found else result
    return {env_id: fidelity.figures() for env_id, fidelity in found.items()}


def picture(tokenizer: FrameTokenizer, episodes: list[Episode], scale: int = 3) -> Image.Image:
    """For each episode a strip of its real frames, and under it the reconstructed ones; the wrist view beside."""
    rows = []
    for episode in episodes:
        pick = np.linspace(0, len(episode.main) - 1, 6).astype(int)
        views = [torch.from_numpy(frames[pick]).to(tokenizer.device) for frames in (episode.main, episode.wrist)]
        for shown in (views, [tokenizer.decode(tokenizer.encode(view)) for view in views]):
            main, wrist = (view.cpu().numpy() for view in shown)
            wrist = np.pad(wrist, ((0, 0), (0, main.shape[1] - wrist.shape[1]), (0, 0), (0, 0)))
            rows.append(np.concatenate([*main, *wrist], 1))
    return Image.fromarray(np.concatenate(rows).repeat(scale, 0).repeat(scale, 1))


def print_table(report: dict) -> None:
    """One line a figure, with its bound where it has one."""
    for env_id, figures in report["figures"].items():
        print(f"\n{env_id}")
        kept = passes_gate(figures)
        for name, value in figures.items():
            bound = f"  gate {GATE[name]:g}: {'kept' if kept[name] else 'MISSED'}" if name in kept else ""
            print(f"  {name:18s}{value:10.3f}{bound}")


def run(config: TrainConfig) -> dict:
    """Train or go on, measure, write everything into `out`; returns the report."""
    torch.set_num_threads(config.threads)
    torch.manual_seed(config.seed)
    device = choose_device(config.device)
    precision = choose_precision(config.precision, device)
    out = Path(config.out)
    out.mkdir(parents=True, exist_ok=True)
    training, held_out = split_episodes(config)
    frames = load_frames(config, training)
    tokenizer = FrameTokenizer(config.tokenizer).to(device)
    log = wandb.init(
        project="nextstate", job_type="train_tokenizer", id=f"tokenizer-{out.resolve().name}", resume="allow",
        mode=config.wandb, dir=str(out), config=asdict(config),
    )  # fmt: skip
    began = time.monotonic()
    with tqdm(total=config.steps, desc="training", unit="step") as bar:
        for done, loss in train(config, tokenizer, frames, precision):
            bar.update(done - bar.n)
            if done % 20 == 0 or done == config.steps:
                bar.set_postfix(loss=f"{loss:.4f}")
                log.log({"loss": loss, "learning_rate": learning_rate(config, done)}, step=done)
    seconds = time.monotonic() - began
    report = {
        "figures": evaluate(config, tokenizer, held_out), "gate": GATE, "config": asdict(config),
        "episodes": {"train": len(training), "held_out": len(held_out)}, "frames": len(frames.main),
        "training_seconds_this_run": round(seconds, 1),
    }  # fmt: skip
    first = {str(store.root): (store, name) for store, name in reversed(held_out)}
    picture(tokenizer, [store.read(name) for store, name in first.values()]).save(out / "reconstruction.png")
    tokenizer.save(out, report["figures"])
    write_whole(out / "report.json", json.dumps(report, indent=1).encode())
    log.log(report["figures"])
    log.finish()
    return report


def to_config(raw: DictConfig) -> TrainConfig:
    values = OmegaConf.to_container(raw, resolve=True)
    tokenizer, augment = values.pop("tokenizer"), values.pop("augment")
    return TrainConfig(
        **{**values, "data": tuple(values["data"])},
        tokenizer=FrameConfig(**{**tokenizer, "levels": tuple(tokenizer["levels"])}),
        augment=Augmentation.from_dict(augment),
    )


@hydra.main(version_base=None, config_path="../configs", config_name="train_tokenizer")
def main(raw: DictConfig) -> None:
    try:
        report = run(to_config(raw))
    except (EpisodeError, ValueError, OSError) as error:
        sys.exit(f"train_tokenizer: {error}")
    print_table(report)
    print(f"\nwritten to {raw.out}")


if __name__ == "__main__":
    main()
