"""What a number of successes says."""

from __future__ import annotations

import math

Z95 = 1.959963984540054  # the normal quantile of a two-sided 95 % interval


def wilson(successes: int, n: int, z: float = Z95) -> tuple[float, float]:
    """The Wilson score interval of a success rate, as (low, high) in [0, 1]; (0, 1) when nothing was tried.

    Unlike the textbook interval it does not shrink to nothing at 0 or n successes (Wilson 1927).
    """
    if not 0 <= successes <= n:
        raise ValueError(f"successes must lie between 0 and n={n}, got {successes}")
    if n == 0:
        return 0.0, 1.0
    rate, zz = successes / n, z * z
    centre = (rate + zz / (2 * n)) / (1 + zz / n)
    half = z / (1 + zz / n) * math.sqrt(rate * (1 - rate) / n + zz / (4 * n * n))
    low = 0.0 if successes == 0 else max(0.0, centre - half)
    high = 1.0 if successes == n else min(1.0, centre + half)
    return low, high


def mcnemar(first: list[bool], second: list[bool]) -> float:
    """Two-sided exact p-value that two policies succeed equally often, from outcomes on the same seeds.

    Only the seeds on which they differ count; under the null each of them falls either way (McNemar 1947, exact).
    """
    if len(first) != len(second):
        raise ValueError(f"the same seeds are needed for both, got {len(first)} and {len(second)} outcomes")
    only_first = sum(a and not b for a, b in zip(first, second, strict=True))
    only_second = sum(b and not a for a, b in zip(first, second, strict=True))
    n, k = only_first + only_second, min(only_first, only_second)
    return min(1.0, 2 * sum(math.comb(n, i) for i in range(k + 1)) / 2**n)


def paired_difference(first: list[bool], second: list[bool], z: float = Z95) -> tuple[float, float]:
    """Interval of the difference of two success rates on the same seeds, first less second, as (low, high) in [-1, 1].

    Half an episode is added to each of the four ways in which a seed can fall (Agresti and Min 2005), so that it does
    not shrink to nothing where hardly any seed differs.
    """
    n = len(first) + 2
    only_first = sum(a and not b for a, b in zip(first, second, strict=True)) + 0.5
    only_second = sum(b and not a for a, b in zip(first, second, strict=True)) + 0.5
    centre = (only_first - only_second) / n
    half = z * math.sqrt(only_first + only_second - (only_first - only_second) ** 2 / n) / n
    return max(-1.0, centre - half), min(1.0, centre + half)
