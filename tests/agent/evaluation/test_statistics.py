import math

import pytest

from agent.evaluation.statistics import mcnemar, paired_difference, wilson


@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    [(50, 50, 0.9287, 1.0), (0, 50, 0.0, 0.0713), (28, 33, 0.6907, 0.9335), (48, 50, 0.8654, 0.9890), (0, 0, 0, 1)],
)
def test_wilson(successes, n, low, high):
    """Catches the wrong interval (the textbook one has no width at 50 of 50), a continuity correction, and rate and
    count swapped."""
    assert wilson(successes, n) == pytest.approx((low, high), abs=2e-4)


def test_wilson_is_wilsons_formula():
    """Catches another method behind the same name: Wilson (1927), computed here by hand for 15 of 148."""
    n, rate, z = 148, 15 / 148, 1.959963984540054
    centre = (rate + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * math.sqrt(rate * (1 - rate) / n + z**2 / (4 * n**2))
    assert wilson(15, 148) == pytest.approx((centre - half, centre + half), abs=1e-12)
    assert wilson(15, 148, 0.99)[1] > wilson(15, 148)[1]
    assert wilson(0, 7)[0] == 0.0 and wilson(7, 7)[1] == 1.0


def test_wilson_refuses_nonsense():
    """Catches more successes than episodes: a sign of outcomes counted twice."""
    with pytest.raises(ValueError, match="between 0 and n=3"):
        wilson(4, 3)


def test_mcnemar():
    """Catches seeds counted on which both agree, and one-sided where two-sided is said."""
    same = [True, False, True]
    assert mcnemar(same, same) == mcnemar([], []) == 1.0
    assert mcnemar([True] * 6, [False] * 6) == pytest.approx(2 / 2**6)
    assert mcnemar([True] * 5 + [False] + [True] * 90, [False] * 5 + [True] + [True] * 90) == pytest.approx(14 / 64)
    assert mcnemar([True] * 3 + [False] * 3, [False] * 3 + [True] * 3) == pytest.approx(1.0)
    with pytest.raises(ValueError, match="same seeds"):
        mcnemar([True], [True, False])


def test_paired_difference():
    """Catches the wrong sign, seeds on which both agree counted as evidence, and an interval without width."""
    same = [True] * 50
    low, high = paired_difference(same, same)
    assert low == pytest.approx(-high) and 0.02 < high < 0.06
    first, second = [True] * 80 + [False] * 20, [True] * 60 + [False] * 40
    low, high = paired_difference(first, second)
    assert 0.1 < low < 0.2 < high < 0.3  # Wald's interval for 20 discordant pairs of 100: 0.122 to 0.278
    assert paired_difference(second, first) == pytest.approx((-high, -low))
    with pytest.raises(ValueError, match="same seeds"):
        paired_difference([True], [True, False])
