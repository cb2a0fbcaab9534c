"""Which windows of a dataset are looked at, and what the model imagines of them."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from world_model.model import Cache, Imagination, WorldModel
from world_model.training.dataset import Batch, EpisodeDataset


def longest(dataset: EpisodeDataset) -> int:
    """Whole model steps of the longest episode."""
    return int((dataset.last - np.arange(len(dataset))).max()) // dataset.layout.chunk_steps


def spread_evenly(dataset: EpisodeDataset, count: int, steps: int) -> np.ndarray:
    """Up to `count` rows, evenly spread over the dataset, from which `steps` model steps lie within the episode."""
    fits = _fitting(dataset, steps)
    return fits[np.linspace(0, len(fits) - 1, min(count, len(fits))).astype(int)]


def spread_by_episode(dataset: EpisodeDataset, count: int, steps: int) -> np.ndarray:
    """Up to `count` rows as above, but as many from a short episode as from a long one: else what fails, which lasts
    longest, is most of what is seen."""
    fits = _fitting(dataset, steps)
    each = np.split(fits, np.flatnonzero(np.diff(dataset.last[fits])) + 1)
    shares = [len(share) for share in np.array_split(np.arange(count), len(each))]
    even = [np.linspace(0, len(rows) - 1, min(n, len(rows))) for rows, n in zip(each, shares, strict=True)]
    return np.concatenate([rows[places.astype(int)] for rows, places in zip(each, even, strict=True)])


def _fitting(dataset: EpisodeDataset, steps: int) -> np.ndarray:
    chunk = dataset.layout.chunk_steps
    fits = np.flatnonzero(np.arange(len(dataset)) + steps * chunk <= dataset.last)
    if not len(fits):
        raise ValueError(
            f"no episode is {steps} model steps of {chunk} control steps long (the longest is {longest(dataset)}): "
            "look at shorter windows or record longer episodes"
        )
    return fits


def context(model: WorldModel, batch: Batch) -> Cache:
    """What is known at a window's second step, its first being history: B robots."""
    observations = [(batch.image[:, s], batch.state[:, s], batch.pose[:, s]) for s in (0, 1)]
    return model.context(batch.instruction, observations, [batch.action[:, 0]])


def imagine_batch(model: WorldModel, batch: Batch, shuffled: bool = False) -> Imagination:
    """Imagine a window's own actions from its second step on: fields (B, H, ...). shuffled: another window's."""
    codes: Tensor = batch.action[:, 1:]
    actions = model.actions.decode(codes.roll(1, 0) if shuffled else codes)  # (B, H, M, A)
    return model.imagine(context(model, batch), actions[:, None])[:, 0]
