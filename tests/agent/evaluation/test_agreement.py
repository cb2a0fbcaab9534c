"""Figures of agreement against tables that can be counted by hand."""

import numpy as np
import pytest

from agent.evaluation import agreement
from agent.evaluation.agreement import Outcomes, figures, mean_maximum_rank_violation, with_intervals


def table(*rows: str) -> np.ndarray:
    return np.array([[c == "1" for c in row] for row in rows])


def test_figures_count_what_they_say():
    """Catches rates taken over the wrong axis, a bias of the wrong sign, and failures counted among successes."""
    real, dream = table("1111", "1100", "0000"), table("1111", "1110", "0001")
    found = figures(Outcomes(real, dream, dream.astype(float)))
    assert found["mean_difference"] == pytest.approx((0 + 0.25 + 0.25) / 3) and found["bias"] == pytest.approx(0.5 / 3)
    assert found["episodes_agree"] == 0.75 and found["episodes_auc"] == 0.75  # of the second alone
    assert found["faithful_failures"] == pytest.approx(4 / 6) and found["faithful_successes"] == 1
    assert found["mmrv"] == 0 and found["spearman"] == pytest.approx(1) and 0.9 < found["pearson"] < 1


def test_rank_violation_is_the_success_that_is_lost():
    """Catches the convention the wrong way round: what counts is true success, not what the dream says."""
    real = np.array([0.9, 0.5, 0.1])
    assert mean_maximum_rank_violation(real, np.array([0.3, 0.2, 0.1])) == 0
    assert mean_maximum_rank_violation(real, np.array([0.2, 0.3, 0.1])) == pytest.approx((0.4 + 0.4 + 0) / 3)
    assert mean_maximum_rank_violation(real, np.array([0.1, 0.2, 0.3])) == pytest.approx((0.8 + 0.4 + 0.8) / 3)


def test_what_nothing_tells_is_nan():
    """Catches an r of 1 made of one policy, or an agreement of episodes of which none is contested."""
    found = figures(Outcomes(table("11"), table("11"), np.ones((1, 2))))
    assert all(np.isnan(found[name]) for name in ("pearson", "episodes_agree", "episodes_auc", "faithful_failures"))


def test_intervals_hold_the_value(monkeypatch):
    """Catches a bootstrap of the wrong thing: with many policies it must be narrow, and hold the figure."""
    monkeypatch.setattr(agreement, "RESAMPLES", 200)
    rng = np.random.default_rng(0)
    chance = np.linspace(0, 1, 20)[:, None]
    real, dream = rng.random((20, 200)) < chance, rng.random((20, 200)) < chance
    found = with_intervals(Outcomes(real, dream, dream.astype(float)))["pearson"]
    assert found["low"] <= found["value"] <= found["high"] and found["high"] - found["low"] < 0.05
