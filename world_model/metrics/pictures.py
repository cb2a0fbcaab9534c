"""Images of several cameras side by side, for a person to look at."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from PIL import Image

from world_model.metrics.windows import imagine_batch, longest, spread_evenly
from world_model.model import WorldModel
from world_model.training.dataset import EpisodeDataset

GAP = 4  # black pixels between moments


def strip(images: Mapping[str, np.ndarray]) -> np.ndarray:
    """n moments side by side, at each of them all cameras: camera -> (n, h, w, 3) u8 -> (height, width, 3) u8."""
    tallest = max(view.shape[1] for view in images.values())
    views = [np.pad(view, ((0, 0), (0, tallest - view.shape[1]), (0, 0), (0, 0))) for view in images.values()]
    views[-1] = np.pad(views[-1], ((0, 0), (0, 0), (0, GAP), (0, 0)))
    row = np.concatenate([view for moment in zip(*views, strict=True) for view in moment], axis=1)
    return np.pad(row, ((0, 2), (0, 0), (0, 0)))


def stack(strips: Sequence[np.ndarray], scale: int = 3) -> Image.Image:
    """Strips under each other, enlarged."""
    widest = max(each.shape[1] for each in strips)
    padded = [np.pad(each, ((0, 0), (0, widest - each.shape[1]), (0, 0))) for each in strips]
    return Image.fromarray(np.concatenate(padded).repeat(scale, 0).repeat(scale, 1))


@torch.inference_mode()
def imagined(model: WorldModel, dataset: EpisodeDataset, rows: int = 4, ahead: int = 4) -> Image.Image:
    """Pairs of strips, now and up to `ahead` model steps on: what the ids of the real images show, and the imagined.
    ValueError where no episode is two model steps long."""
    ahead = max(1, min(ahead, longest(dataset) - 1))
    batch = dataset.batch(spread_evenly(dataset, rows, ahead + 1), ahead + 1).to(model.device)
    real = {name: view.cpu().numpy() for name, view in model.frames(batch.image[:, 1:]).items()}
    shown = {name: view.cpu().numpy() for name, view in model.decode_frames(imagine_batch(model, batch)).items()}
    strips = []
    for i in range(len(batch.image)):
        strips.append(strip({name: view[i] for name, view in real.items()}))
        strips.append(strip({name: np.concatenate([real[name][i, :1], view[i]]) for name, view in shown.items()}))
    return stack(strips)
