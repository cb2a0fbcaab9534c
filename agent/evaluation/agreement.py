"""How well what a model says of policies agrees with what is true of them.

Success is a table (P policies, E episodes), one in the real world and one in the dream, of the same starts.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.stats import pearsonr, spearmanr

from world_model.metrics.statistics import auc

RESAMPLES = 2000
CONTESTED = (0.2, 0.8)  # true success of policies of which single episodes can be told apart


@dataclass(frozen=True)
class Outcomes:
    """real, dream: (P, E) bool. likely: (P, E) what the dream gives for success, to rank single episodes by."""

    real: np.ndarray
    dream: np.ndarray
    likely: np.ndarray

    def of(self, policies: np.ndarray, episodes: np.ndarray) -> Outcomes:
        """Some policies and, of each, some episodes: (p,) and (p, e) indices."""
        return Outcomes(*(each[policies[:, None], episodes] for each in (self.real, self.dream, self.likely)))


def mean_maximum_rank_violation(real: np.ndarray, said: np.ndarray) -> float:
    """How much true success is lost where two policies are ranked the wrong way round, the worst for each policy, and
    the mean over policies; success rates (P,) each (SIMPLER, Li et al. 2024). 0 is best."""
    apart = np.abs(real[:, None] - real)
    swapped = (said[:, None] < said) != (real[:, None] < real)
    return float(np.max(apart * swapped, axis=1).mean())


def figures(outcomes: Outcomes) -> dict[str, float]:
    """All figures of agreement; NaN where there is nothing to tell one by.

    bias: points by which the dream is too kind. episodes_agree, episodes_auc: of policies whose true success lies in
    `CONTESTED`. faithful_failures: of the episodes that truly fail, the share that fails in the dream;
    faithful_successes alike.
    """
    real, said = outcomes.real.mean(1), outcomes.dream.mean(1)
    varied = len(real) > 1 and np.ptp(real) > 0 and np.ptp(said) > 0
    contested = (real >= CONTESTED[0]) & (real <= CONTESTED[1])
    same = outcomes.real == outcomes.dream
    rows = zip(outcomes.likely[contested], outcomes.real[contested], strict=True)
    aucs = [auc(likely, true) for likely, true in rows]
    return {
        "pearson": float(pearsonr(real, said).statistic) if varied else float("nan"),
        "spearman": float(spearmanr(real, said).statistic) if varied else float("nan"),
        "mmrv": mean_maximum_rank_violation(real, said),
        "mean_difference": float(np.abs(real - said).mean()),
        "bias": float((said - real).mean()),
        "episodes_agree": float(same[contested].mean()) if contested.any() else float("nan"),
        "episodes_auc": float(np.nanmean(aucs)) if np.isfinite(aucs).any() else float("nan"),
        "faithful_failures": float(same[~outcomes.real].mean()) if (~outcomes.real).any() else float("nan"),
        "faithful_successes": float(same[outcomes.real].mean()) if outcomes.real.any() else float("nan"),
    }


def with_intervals(
    outcomes: Outcomes, tell: Callable[[Outcomes], dict[str, float]] = figures, seed: int = 0
) -> dict[str, dict[str, float]]:
    """Each figure with the 95 % interval of a bootstrap that draws policies, and of each drawn one its episodes."""
    rng, (policies, episodes) = np.random.default_rng(seed), outcomes.real.shape
    drawn = [
        tell(outcomes.of(rng.integers(policies, size=policies), rng.integers(episodes, size=(policies, episodes))))
        for _ in range(RESAMPLES)
    ]
    found = {}
    for name, value in tell(outcomes).items():
        known = [each[name] for each in drawn if np.isfinite(each[name])]
        low, high = np.percentile(known, [2.5, 97.5]) if known else (float("nan"),) * 2
        found[name] = {"value": value, "low": float(low), "high": float(high)}
    return found
