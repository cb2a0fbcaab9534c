"""What a number of successes says. The intervals and tests are scipy's where scipy has them."""

from __future__ import annotations

import math

from scipy.stats import binomtest

Z95 = 1.959963984540054  # the normal quantile of a two-sided 95 % interval


def wilson(successes: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """The Wilson score interval of a success rate, as (low, high) in [0, 1]; (0, 1) when nothing was tried.

    Unlike the textbook interval it does not shrink to nothing at 0 or n successes (Wilson 1927).
    """
    if not 0 <= successes <= n:
        raise ValueError(f"successes must lie between 0 and n={n}, got {successes}")
    if n == 0:
        return 0.0, 1.0
    interval = binomtest(successes, n).proportion_ci(confidence, method="wilson")
    return float(interval.low), float(interval.high)


def mcnemar(first: list[bool], second: list[bool]) -> float:
    """Two-sided exact p-value that two policies succeed equally often, from outcomes on the same seeds.

    Only the seeds on which they differ count; under the null each of them falls either way (McNemar 1947, exact).
    """
    only_first, only_second = _discordant(first, second)
    differing = only_first + only_second
    return float(binomtest(only_first, differing).pvalue) if differing else 1.0


def paired_difference(first: list[bool], second: list[bool], z: float = Z95) -> tuple[float, float]:
    """Interval of the difference of two success rates on the same seeds, first less second, as (low, high) in [-1, 1].

    Half an episode is added to each of the four ways in which a seed can fall (Agresti and Min 2005), so that it does
    not shrink to nothing where hardly any seed differs. scipy has no interval for paired outcomes.
    """
    only_first, only_second = (count + 0.5 for count in _discordant(first, second))
    n = len(first) + 2
    centre = (only_first - only_second) / n
    half = z * math.sqrt(only_first + only_second - (only_first - only_second) ** 2 / n) / n
    return max(-1.0, centre - half), min(1.0, centre + half)


def _discordant(first: list[bool], second: list[bool]) -> tuple[int, int]:
    """On how many seeds only the first succeeds, and on how many only the second."""
    if len(first) != len(second):
        raise ValueError(f"the same seeds are needed for both, got {len(first)} and {len(second)} outcomes")
    pairs = list(zip(map(bool, first), map(bool, second), strict=True))
    return pairs.count((True, False)), pairs.count((False, True))
