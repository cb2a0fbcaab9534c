"""What survives of recorded episodes' images in an image tokenizer: `python -m world_model.measure_tokenizer`.

Reads every episode of some folders, also those of splits that no training may see (`agent.evaluate keep=true` records
them). Prints a table; writes `report.json` and `reconstruction.png` with real above reconstructed images into `out`.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import hydra
import numpy as np
import torch
from omegaconf import DictConfig, OmegaConf
from PIL import Image
from tqdm import tqdm

from envs.data.augmentation import Augmentation
from envs.data.files import to_json, write_json
from envs.data.formats.folder import Episodes, open_episodes
from envs.data.settings import from_settings
from envs.data.store import EpisodeError
from envs.types import Episode
from world_model.metrics import pictures, reconstruction
from world_model.metrics.reconstruction import Reconstruction
from world_model.nn.device import choose_device
from world_model.tokens.images import ImageTokenizer, TokenizerError
from world_model.training import sources
from world_model.training.preparation import frame_tokenizer

BOUNDS = {"at_least": reconstruction.AT_LEAST, "at_most": reconstruction.AT_MOST}
SHOWN = 6  # images of each episode in the picture
STRIDE = 4  # every n-th image is decoded


@dataclass(frozen=True)
class MeasureConfig:
    """configs/measure_tokenizer.yaml says what each of these means."""

    data: tuple[str, ...]
    tokenizer: str
    out: str
    augment: Augmentation
    episodes: int
    threads: int
    device: str

    def __post_init__(self) -> None:
        if not self.data:
            raise ValueError("`data` must name at least one folder of episodes")
        if self.episodes < 1 or self.threads < 1:
            raise ValueError(f"`episodes` and `threads` must be at least 1, got {self.episodes} and {self.threads}")


def measure(
    episodes: Sequence[tuple[Episodes, str]], tokenizer: ImageTokenizer, augment: Augmentation
) -> dict[str, dict[str, float]]:
    """The figures of each task and split, {"env id": or "env id, split": {figure: value}}. augment: knows the cameras'
    poses where the episodes do not tell them."""
    sums: dict[str, Reconstruction] = {}
    for store, name in tqdm(episodes, desc="measuring", unit="episode"):
        episode = store.read(name, states=False)
        result = reconstruction.evaluate(episode, tokenizer, augment.poses, stride=STRIDE)
        key = episode.env_id if episode.split == "train" else f"{episode.env_id}, {episode.split}"
        sums[key] = sums[key] + result if key in sums else result
    return {key: each.figures() for key, each in sums.items()}


def picture(tokenizer: ImageTokenizer, episodes: Sequence[Episode]) -> Image.Image:
    """For each episode a strip of its real images, and under it the reconstructed ones."""
    strips = []
    for episode in episodes:
        pick = np.linspace(0, len(episode.state) - 1, SHOWN).astype(int)
        real = {name: images[pick] for name, images in episode.images.items()}
        again = {}
        for name, images in real.items():
            ids = tokenizer.encode(torch.from_numpy(images).to(tokenizer.device))
            again[name] = tokenizer.decode(ids, name).cpu().numpy()
        strips += [pictures.strip(real), pictures.strip(again)]
    return pictures.stack(strips)


def table(figures: dict[str, dict[str, float]], attached: Sequence[str]) -> str:
    """One line a figure, with its bound where it has one. A camera that moves with the hand (`attached`) has none:
    hardly anything in its images is still."""
    lines, moving = [], tuple(f"{name}_" for name in attached)
    for title, values in figures.items():
        lines += ["", title]
        for name, value in values.items():
            bound = None if name.startswith(moving) else reconstruction.bound_of(name)
            kept = "kept" if bound and bound.keeps(value) else "MISSED"
            lines.append(f"  {name:24s}{value:10.3f}" + (f"  bound {bound.value:g}: {kept}" if bound else ""))
    return "\n".join(lines)


def run(config: MeasureConfig) -> dict:
    """Measure, write everything into `out`; returns the report."""
    torch.set_num_threads(config.threads)
    tokenizer = frame_tokenizer(config.tokenizer, choose_device(config.device))
    stores = [open_episodes(folder) for folder in config.data]
    chosen = [(store, name) for store in stores for name in _spread(store.names(), config.episodes)]
    report = json.loads(to_json({
        "figures": measure(chosen, tokenizer, config.augment), "bounds": BOUNDS, "episodes": len(chosen),
        "tokenizer": {"path": config.tokenizer, "content": tokenizer.content()}, "data": list(config.data),
    }))  # fmt: skip
    out = Path(config.out)
    out.mkdir(parents=True, exist_ok=True)
    shown = [store.read(store.names()[0], states=False) for store in stores]
    picture(tokenizer, shown).save(out / "reconstruction.png")
    write_json(out / "report.json", report)
    return report


def _spread(names: Sequence[str], count: int) -> list[str]:
    """At most `count` of them, evenly spread."""
    return [names[at] for at in np.linspace(0, len(names) - 1, min(count, len(names))).astype(int)]


def to_config(raw: DictConfig) -> MeasureConfig:
    values = OmegaConf.to_container(raw, resolve=True)
    return from_settings(MeasureConfig, {**values, "data": sources.as_folders(values["data"])})


@hydra.main(version_base=None, config_path="../configs", config_name="measure_tokenizer")
def main(raw: DictConfig) -> None:
    try:
        config = to_config(raw)
        report = run(config)
    except KeyboardInterrupt:
        sys.exit("measure_tokenizer: stopped")
    except (EpisodeError, TokenizerError, ValueError, OSError) as error:
        sys.exit(f"measure_tokenizer: {error}")
    print(table(report["figures"], config.augment.attached))
    print(f"\nwritten to {raw.out}")


if __name__ == "__main__":
    main()
