"""The scene from another camera: what a model draws of it, given what the robot's own cameras see.

    python -m agent.views checkpoint=outputs/train/checkpoint data=data/lift_views out=outputs/views

Reads recorded episodes that have views from elsewhere. For each view prints the PSNR of the drawn picture against the
true one, beside that of the true picture as ids show it (the most that can be drawn) and of frames that were recorded
for training (what remembering would give); and how far off the keypoints are that the model reads when such a picture,
told with its pose, stands in the place of its camera's. Writes `report.json` and `views.png`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import hydra
import numpy as np
import torch
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf
from PIL import Image
from tqdm import tqdm

from agent.evaluation.provenance import checkpoint_identity, provenance
from agent.launch.command import RunError, clear_errors, command_line, start
from envs.data.files import write_json
from envs.data.formats.folder import open_episodes
from envs.data.settings import from_settings
from envs.types import Episode
from world_model import checkpoint
from world_model.checkpoint import Loaded
from world_model.metrics.pictures import stack, strip
from world_model.metrics.views import READINGS, Drawn, Nearest, draw_views, moments, summarize
from world_model.nn.device import choose_device
from world_model.training.sources import as_folders

PICTURES = ("drawn", "tokenized", "nearest", "recalled")


@dataclass(frozen=True)
class ViewsConfig:
    """configs/views.yaml says what each of these means."""

    checkpoint: str
    data: tuple[str, ...]
    train: tuple[str, ...]
    held_out: int | None
    episodes: int
    moments: int
    recalled: int
    rows: int
    out: str
    device: str

    def __post_init__(self) -> None:
        if not self.data:
            raise ValueError("`data` must name a folder of recorded episodes with views")
        if min(self.episodes, self.moments, self.recalled, self.rows) < 1:
            raise ValueError("episodes, moments, recalled and rows must be at least 1")
        if self.held_out is not None and self.held_out < 2:
            raise ValueError(f"`held_out` must be at least 2, or null for all episodes, got {self.held_out}")
        shared = sorted({*self.data} & {*self.train})
        if shared and self.held_out is None:
            raise ValueError(
                f"{', '.join(shared)} is in `data` and in `train`, and would be its own baseline: set `held_out` as in "
                "training, or name other folders"
            )


def read(folder: str, held_out: int | None, kept: bool, most: int, what: str) -> Iterator[Episode]:
    """Up to `most` episodes of a folder, evenly spread: those that training keeps apart (`kept`), or the others."""
    store = open_episodes(folder)
    names = store.split(held_out)[kept] if held_out else store.names()
    if not names:
        raise RunError(
            f"none of the {len(store)} episodes in {folder} is {'held out' if kept else 'for training'} with "
            f"held_out={held_out}: choose another, or held_out=null"
        )
    chosen = [names[i] for i in np.unique(np.linspace(0, len(names) - 1, min(most, len(names))).astype(int))]
    for name in tqdm(chosen, desc=f"{what} {folder}", unit="episode"):
        yield store.read(name)


def measure(config: ViewsConfig, loaded: Loaded) -> tuple[dict[str, Any], list[Drawn]]:
    """The figures by instruction and view, and what they rest on. RunError for a checkpoint that was taught no views,
    ValueError for episodes that have none or are another robot's."""
    if not loaded.meta.get("views"):
        raise RunError(
            f"checkpoint {config.checkpoint} was taught no views: train it with `view_share` above 0 on episodes that "
            "have views, such as agent.rerender writes"
        )
    model, drawn = loaded.model, []
    for folder in config.data:
        for episode in read(folder, config.held_out, True, config.episodes, "drawing"):
            loaded.spec.require(episode.spec, f"checkpoint {config.checkpoint}", f"the episodes of {folder}")
            drawn += draw_views(model, loaded.text, episode, moments(episode, config.moments))
    nearest = None
    if config.train:
        nearest = Nearest(drawn)
        for folder in config.train:
            recalled = read(folder, config.held_out, False, config.recalled, "looking through")
            nearest.look(recalled, model.layout.view_camera)
        if not nearest.found:
            missing = sorted({each.view for each in drawn})
            raise RunError(
                f"the episodes of {', '.join(config.train)} have no frames of some of the views {', '.join(missing)}: "
                "name folders that have them, or leave `train` out"
            )
    figures = summarize(drawn, nearest, loaded.spec.keypoints)
    return {"tasks": figures, "taught": loaded.meta["views"], "camera": model.layout.view_camera}, drawn


def sheet(drawn: list[Drawn], rows: int) -> Image.Image:
    """One row a moment: the given picture, then of each view of its episode what was drawn, and what is true."""
    episodes: dict[int, list[Drawn]] = {}
    for each in drawn:  # the views of one episode share their given pictures
        episodes.setdefault(id(each.given), []).append(each)
    every = [(views, m) for views in episodes.values() for m in range(len(views[0].given))]
    chosen = [every[i] for i in np.unique(np.linspace(0, len(every) - 1, min(rows, len(every))).astype(int))]
    strips = []
    for views, m in chosen:
        parts = [strip({"given": views[0].given[m : m + 1]})]
        parts += [strip({"drawn": each.drawn[m : m + 1], "true": each.true[m : m + 1]}) for each in views]
        strips.append(np.concatenate(parts, axis=1))
    return stack(strips)


def table(figures: dict[str, Any]) -> str:
    """The figures for a person."""
    pictures = [name for name in PICTURES if any(f"psnr_{name}_db" in row for row in _rows(figures))]
    lines = [
        f"{'':<34}{'PSNR, dB':<{11 * len(pictures)}}keypoints read from, cm",
        f"{'task, view (moments)':<34}" + "".join(f"{name:<11}" for name in (*pictures, *READINGS)),
    ]
    for instruction, views in figures["tasks"].items():
        for view, row in views.items():
            names = [f"psnr_{name}_db" for name in pictures] + [f"keypoint_{name}_cm" for name in READINGS]
            cells = (f"{row[name]:<11.2f}" if name in row else f"{'n/a':<11}" for name in names)
            title = f"{instruction or 'no instruction'}, {view} ({row['moments']})"
            lines.append(f"{title:<34}" + "".join(cells))
    lines.append("other: read from the drawn view of another moment, so it is what the rest of the observation tells")
    return "\n".join(lines)


def _rows(figures: dict[str, Any]) -> list[dict]:
    return [row for views in figures["tasks"].values() for row in views.values()]


@hydra.main(version_base="1.3", config_path="../configs", config_name="views")
def main(cfg: DictConfig) -> None:
    with clear_errors():
        torch.set_num_threads(1)  # two collapse when anything else runs on the machine
        raw = OmegaConf.to_container(cfg, resolve=True)
        config = from_settings(ViewsConfig, {**raw, **{name: as_folders(raw[name]) for name in ("data", "train")}})
        shipped = checkpoint_identity(config.checkpoint)
        loaded = checkpoint.load(Path(config.checkpoint), choose_device(config.device))
        figures, drawn = measure(config, loaded)
        out = Path(config.out)
        out.mkdir(parents=True, exist_ok=True)
        sheet(drawn, config.rows).save(out / "views.png")
        write_json(out / "report.json", {
            **figures, "checkpoint": shipped, "settings": asdict(config),
            "command": command_line("agent.views", HydraConfig.get().overrides.task),
            "provenance": provenance(loaded.model.device, loaded.model.precision),
        })  # fmt: skip
        print(table(figures))
        print(f"\nwritten to {out}")


if __name__ == "__main__":
    start(main)
