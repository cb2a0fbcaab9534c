"""Trainings small enough for tests: settings, tokenizers, and how far a run came."""

from pathlib import Path

import torch
from hydra import compose, initialize_config_dir

from world_model import train
from world_model.tokens.images import ImageConfig, ImageTokenizer

CONFIGS = str(Path(__file__).parents[2] / "configs")
SEEDS = range(4)  # of the episodes that the `config` of the tests names


def save_tokenizer(folder: Path, cameras, seed: int = 0) -> None:
    torch.manual_seed(seed)
    ImageTokenizer(ImageConfig(cameras, (5, 5, 5), width=16, encoder_blocks=1, decoder_blocks=1)).save(folder)


def settings(tmp_path: Path) -> list[str]:
    """On the command line of a training of what lies in `tmp_path`."""
    return [
        "model=debug", f"data=[{tmp_path / 'data'}]", f"tokenizer={tmp_path / 'tok'}", f"out={tmp_path / 'out'}",
        "steps=6", "batch=3", "window=2", "held_out=2", "measured_windows=8", "loss_every=3",
        "checkpoint_seconds=0", "precision=fp32",
    ]  # fmt: skip


def read_config(tmp_path: Path, *overrides: str) -> train.TrainConfig:
    with initialize_config_dir(CONFIGS, version_base=None):
        return train.to_config(compose("train", [*settings(tmp_path), *overrides]))


def weights(data: train.Data) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in data.model.state_dict().items()}


def go(config: train.TrainConfig, steps: int | None = None) -> tuple[dict[str, torch.Tensor], list[float]]:
    """Train as a fresh process would, and be killed after `steps` steps of it."""
    data = train.prepare(config, torch.device("cpu"))
    losses = []
    for progress, found in train.train(config, data):
        losses.append(found["loss"])
        if progress.step == steps:
            break
    return weights(data), losses
