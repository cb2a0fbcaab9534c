"""Figures are right where they can be known."""

import numpy as np
import pytest

from world_model.metrics.statistics import auc, correlation, expected_calibration_error, mean, mean_by_column


def test_auc_counts_pairs():
    """Catches ranks that favour ties, or a curve turned over."""
    score, positive = np.array([0.1, 0.4, 0.4, 0.9]), np.array([False, False, True, True])
    assert auc(score, positive) == 0.875 and auc(-score, positive) == 0.125
    assert np.isnan(auc(score, np.ones(4, bool)))


def test_calibration_and_correlation():
    """Catches a calibration error or a correlation that is computed wrongly."""
    assert expected_calibration_error(np.array([0.05, 0.95]), np.array([0.05, 0.95])) == 0
    assert expected_calibration_error(np.array([0.9, 0.9]), np.array([0.0, 1.0])) == pytest.approx(0.4)
    assert correlation(np.array([0.0, 1.0, 2.0]), np.array([0.0, 2.0, 4.0])) == 1.0
    assert correlation(np.array([1.0, 1.0]), np.array([0.0, 1.0])) == 0.0
    same = np.full(1000, 0.1, np.float32)
    assert correlation(same, np.arange(1000, dtype=np.float32)) == 0.0, "however it is rounded"


def test_nothing_has_no_figure():
    """Catches a traceback, or a 0 that looks measured, where there was nothing to measure."""
    nothing = np.zeros(0)
    assert np.isnan(correlation(nothing, nothing)) and np.isnan(expected_calibration_error(nothing, nothing))
    assert np.isnan(mean(np.array([np.nan]))) and mean(np.array([np.nan, 2.0])) == 2.0


def test_columns_leave_out_what_is_unknown():
    """Catches an unknown that counts as 0, and a column of unknowns that spoils the others."""
    values = np.array([[1.0, np.nan, np.nan], [3.0, 4.0, np.nan]], np.float32)
    first, second, third = mean_by_column(values, scale=10)
    assert (first, second) == (20, 40) and np.isnan(third)
