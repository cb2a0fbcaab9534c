"""Statistics of a data set as LeRobot keeps them: minimum, maximum, mean, standard deviation, count and quantiles.

Of numbers they are those of every dimension (shape (n,)); of pictures those of each colour, scaled to [0, 1] (shape
(3, 1, 1)). After `lerobot/datasets/compute_stats.py`. Quantiles of one episode are exact here; those of several
episodes are the outer ones of the episodes', as there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

QUANTILES = {"q01": 0.01, "q10": 0.10, "q50": 0.50, "q90": 0.90, "q99": 0.99}
NAMES = ("min", "max", "mean", "std", "count", *QUANTILES)
PICTURES = 100  # of an episode are looked at, evenly spread

Stats = Mapping[str, np.ndarray]


def of_numbers(values: np.ndarray) -> dict[str, np.ndarray]:
    """values: (T, n) or (T,), T at least 1; f64 each, and the count as i64 (1,)."""
    values = values.reshape(len(values), -1).astype(np.float64)
    found = {"min": values.min(0), "max": values.max(0), "mean": values.mean(0), "std": values.std(0)}
    found["count"] = np.array([len(values)])
    return found | dict(zip(QUANTILES, np.quantile(values, list(QUANTILES.values()), axis=0), strict=True))


def of_pictures(frames: np.ndarray) -> dict[str, np.ndarray]:
    """frames: (T, h, w, 3) u8; f64 (3, 1, 1) each, and the count of pictures that were looked at as i64 (1,)."""
    some = frames[np.linspace(0, len(frames) - 1, min(PICTURES, len(frames))).astype(int)]
    found: dict[str, list[float]] = {name: [] for name in NAMES if name != "count"}
    grey = np.arange(256) / 255
    for channel in range(3):
        count = np.bincount(some[..., channel].reshape(-1), minlength=256)
        share = np.cumsum(count) / count.sum()
        seen, mean = np.flatnonzero(count), float(count @ grey / count.sum())
        found["min"].append(grey[seen[0]])
        found["max"].append(grey[seen[-1]])
        found["mean"].append(mean)
        found["std"].append(float(np.sqrt(count @ (grey - mean) ** 2 / count.sum())))
        for name, q in QUANTILES.items():
            found[name].append(grey[int(np.searchsorted(share, q))])
    shaped = {name: np.array(values).reshape(3, 1, 1) for name, values in found.items()}
    return shaped | {"count": np.array([len(some)])}


def together(of_episodes: Sequence[Mapping[str, Stats]]) -> dict[str, dict[str, np.ndarray]]:
    """The statistics of a data set from those of its episodes, by feature."""
    keys = dict.fromkeys(key for each in of_episodes for key in each)
    return {key: _together([each[key] for each in of_episodes if key in each]) for key in keys}


def _together(parts: Sequence[Stats]) -> dict[str, np.ndarray]:
    stacked = {name: np.stack([part[name] for part in parts]) for name in parts[0]}
    count = stacked["count"].astype(np.float64)
    weight = count.reshape(-1, *[1] * (stacked["mean"].ndim - 1)) / count.sum()
    mean = (stacked["mean"] * weight).sum(0)
    variance = ((stacked["std"] ** 2 + (stacked["mean"] - mean) ** 2) * weight).sum(0)
    found = {"min": stacked["min"].min(0), "max": stacked["max"].max(0), "mean": mean, "std": np.sqrt(variance)}
    found["count"] = stacked["count"].sum(0)
    for name, q in QUANTILES.items():
        if name in stacked:
            found[name] = stacked[name].min(0) if q <= 0.5 else stacked[name].max(0)
    return found
