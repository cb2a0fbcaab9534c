"""Figures of numbers against the truth."""

from __future__ import annotations

import numpy as np
from scipy.stats import rankdata

DIGITS = 4  # that figures are rounded to


def auc(score: np.ndarray, positive: np.ndarray) -> float:
    """Chance that a positive scores above a negative, ties counting half; NaN where one kind is missing."""
    positives, negatives = int(positive.sum()), int((~positive).sum())
    if not positives or not negatives:
        return float("nan")
    wins = rankdata(score)[positive].sum() - positives * (positives + 1) / 2
    return round(float(wins / (positives * negatives)), DIGITS)


def correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Pearson's r; 0 where one of them never varies, NaN where there is nothing."""
    if not len(a):
        return float("nan")
    a, b = a.astype(np.float64), b.astype(np.float64)
    if np.std(a) < 1e-8 or np.std(b) < 1e-8:
        return 0.0
    return round(float(np.corrcoef(a, b)[0, 1]), DIGITS)


def expected_calibration_error(predicted: np.ndarray, true: np.ndarray, bins: int = 10) -> float:
    """Mean gap between what a bin of predictions in [0, 1] says and what follows (Naeini et al. 2015); NaN where there
    is nothing."""
    if not len(predicted):
        return float("nan")
    which = np.minimum((predicted * bins).astype(int), bins - 1)
    gaps = [abs(predicted[which == b].mean() - true[which == b].mean()) * (which == b).mean() for b in set(which)]
    return round(float(sum(gaps)), DIGITS)


def mean(values: np.ndarray) -> float:
    """Of what is finite; NaN where nothing is."""
    known = values[np.isfinite(values)]
    return round(float(known.mean()), DIGITS) if len(known) else float("nan")


def mean_by_column(values: np.ndarray, scale: float = 1.0) -> list[float]:
    """(n, columns) -> for each column `scale` times the mean of what is finite in it."""
    known = np.isfinite(values)
    sums = np.where(known, values, 0).sum(0, dtype=values.dtype)
    with np.errstate(invalid="ignore"):
        means = scale * (sums / known.sum(0))
    return [round(float(v), DIGITS) for v in means]
