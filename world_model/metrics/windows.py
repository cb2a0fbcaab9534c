"""Which windows of a dataset are looked at, and what the model imagines of them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from world_model.model import WorldModel
from world_model.training.dataset import Batch, EpisodeDataset
from world_model.types import FIELDS, Cache, Imagination


def longest(dataset: EpisodeDataset) -> int:
    """Whole model steps of the longest episode."""
    return dataset.longest() // dataset.layout.chunk_steps


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
    return model.context(batch.instruction, observations, [batch.action[:, 0]], stride=batch.stride[:, 0])


def codes_at_stride(dataset: EpisodeDataset, starts: np.ndarray, ahead: int, stride: int) -> Tensor:
    """What `imagine_batch` needs to imagine windows (B,) of 1 + `ahead` whole chunks in shorter model steps: the
    actions from their second step on, (B, ahead M / stride, Ka). ValueError where `stride` does not divide M."""
    at = dataset.layout
    at.require_strides([stride])
    if at.chunk_steps % stride:
        raise ValueError(f"`stride` must divide the chunk of {at.chunk_steps} control steps, got {stride}")
    rows = starts[:, None] + at.chunk_steps + stride * np.arange(ahead * at.chunk_steps // stride)
    rows = np.minimum(rows, dataset.last[starts][:, None])
    return torch.from_numpy(dataset.action[rows, at.strides.index(stride)]).long()


def imagine_batch(
    model: WorldModel, batch: Batch, shuffled: bool = False, codes: Tensor | None = None
) -> Imagination:
    """Imagine a window's own actions from its second step on: fields (B, H, ...). The window is of whole chunks.

    shuffled: another window's actions. codes: the same actions in k model steps for each one of the window, as
    `codes_at_stride` has them; what is returned is what is imagined where the window's own end.
    """
    codes = batch.action[:, 1:] if codes is None else codes.to(batch.action)
    times = codes.shape[1] // (batch.action.shape[1] - 1)  # k
    codes = codes.roll(1, 0) if shuffled else codes
    imagined = model.imagine_codes(context(model, batch), codes[:, None], strides=model.strides[-1] // times)[:, 0]
    ends = {name: getattr(imagined, name)[:, times - 1 :: times] for name in FIELDS}
    return replace(imagined, **ends, strides=(model.strides[-1],) * ends["value"].shape[1])
