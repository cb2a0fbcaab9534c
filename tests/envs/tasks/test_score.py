import numpy as np
import pytest

from envs.sim.table import TABLE_HEIGHT
from envs.tasks import score

SIDE = 0.24


def flat(n: int = 9) -> np.ndarray:
    """(n, n, 3): a flat cloth, first axis from near to far."""
    x, y = np.meshgrid(np.linspace(0, SIDE, n), np.linspace(0, SIDE, n), indexing="ij")
    return np.stack([x, y, np.zeros_like(x)], axis=-1)


def folded(gap: float = 0.0) -> np.ndarray:
    """The near half laid onto the far half, `gap` metres short of it."""
    cloth = flat()
    cloth[:4] = cloth[::-1][:4]
    cloth[:4, :, 0] -= gap
    return cloth


def test_a_flat_cloth_is_not_folded():
    """A measure that pairs the wrong vertices calls anything a fold."""
    assert not score.half_folded(flat())
    assert score.pair_distances(flat())[0, 0] == pytest.approx(SIDE)


def test_a_fold_is_one_and_a_loose_one_is_not():
    """Both limits must bind: corners, and the mean over the cloth."""
    assert score.half_folded(folded()) and score.half_folded(folded(0.02))
    assert not score.half_folded(folded(0.03)), "the mean pair distance binds"
    crooked = folded()
    crooked[0, 0, 0] -= 0.06
    assert not score.half_folded(crooked), "one corner binds"


def test_the_wrong_half_is_no_fold():
    """Folding left onto right brings other pairs together."""
    cloth = flat()
    cloth[:, :4] = cloth[:, ::-1][:, :4]
    assert not score.half_folded(cloth)


def test_softgym_is_zero_at_the_start_and_one_for_a_perfect_fold():
    """A normalisation by the wrong start makes clean folds and untouched cloths look alike."""
    assert score.softgym_fold(flat(), flat()) == pytest.approx(0.0)
    assert score.softgym_fold(folded(), flat()) == pytest.approx(1.0)
    moved = folded() + [0.05, 0, 0]
    assert score.softgym_fold(moved, flat()) < 0.7, "a fold that wandered off costs"


def corners(near_left=(0, 1), near_right=(0, 0)) -> np.ndarray:
    """(4, 3) m, of a cloth whose far edge lies still; in units of its side."""
    places = [near_left, near_right, (1, 1), (1, 0)]
    return np.array([[SIDE * x, SIDE * y, 0.0] for x, y in places])


def test_progress_rises_all_the_way_to_a_fold():
    """A measure that falls where a hand must close or let go keeps a search from ever doing so."""
    flat, away = corners(), np.array([0.5, 0.5, 0.3])
    carried, laid = corners(near_left=(0.5, 1)), corners(near_left=(1, 1))
    way = [
        (flat, away, 0.0), (flat, flat[0] + [0, 0, 0.05], 0.0), (flat, flat[0], 0.0), (flat, flat[0], 1.0),
        (carried, carried[0], 1.0), (laid, laid[0], 1.0), (laid, laid[1], 0.0), (laid, laid[1], 1.0),
        (corners((1, 1), (1, 0)), away, 0.0),
    ]  # fmt: skip
    told = [float(score.fold_progress(*state)) for state in way]
    assert told == sorted(told) and len(set(told)) == len(told)
    assert 0 <= told[0] and told[-1] == pytest.approx(1.0)


def test_holding_the_wrong_place_is_no_progress():
    """Jaws closed on the middle of the cloth look like a grasp to a measure that reads the jaws alone."""
    flat, middle = corners(), np.array([0.5 * SIDE, 0.5 * SIDE, 0.0])
    assert score.fold_progress(flat, middle, 1.0) == score.fold_progress(flat, middle, 0.0)
    assert score.fold_progress(flat, flat[0], 1.0) > score.fold_progress(flat, flat[0], 0.0)


def test_progress_is_told_of_many_scenes_at_once():
    """A broadcast over the wrong dimension mixes the candidates of a search."""
    scenes = np.stack([corners(), corners(near_left=(0.5, 1))])
    hands = scenes[:, 0]
    both = score.fold_progress(scenes, hands, np.array([0.0, 1.0]))
    np.testing.assert_allclose(
        both, [score.fold_progress(scenes[0], hands[0], 0.0), score.fold_progress(scenes[1], hands[1], 1.0)]
    )


@pytest.mark.parametrize(
    ("distances", "held", "folded", "stage"),
    [
        ((0.24, 0.24), -1, False, 0), ((0.24, 0.24), 0, False, 1), ((0.01, 0.24), -1, False, 2),
        ((0.01, 0.24), 1, False, 3), ((0.01, 0.01), -1, True, 4), ((0.24, 0.24), 4, False, 4),
        ((0.24, 0.24), 2, False, 4), ((0.03, 0.02), -1, False, 0), ((0.02, 0.03), -1, False, 2),
    ],
)  # fmt: skip
def test_what_to_do_next(distances, held, folded, stage):
    """A stage out of order sends the expert to a corner that is laid already; a wrong grasp must be let go, and a bunch
    between two laid corners must be pulled out."""
    assert score.fold_stage(np.array(distances), held, folded) == stage


CUBE = np.array([0.0, 0.0, TABLE_HEIGHT + score.REST])
WIDE, AROUND = score.OPEN, 0.043  # metres between the jaws: open, and on a middling cube


def lifting(hand: tuple[float, float], opening: float = WIDE, holding: float = 0.0, up: float = 0.0) -> float:
    """Progress with a hand so far (aside, above) of a cube that is so far up, metres."""
    cube = CUBE + [0, 0, up]
    return float(score.lift_progress(cube, cube + [hand[0], 0, hand[1]], opening, holding))


def test_progress_rises_all_the_way_to_a_lift():
    """A measure that falls on the way down to the cube, or where jaws have closed on it, ends a search there."""
    way = [
        lifting((0.15, 0.2)), lifting((0.06, 0.12)), lifting((0.0, 0.05)), lifting((0.0, 0.0)),
        *(lifting((0.0, 0.0), AROUND, 1.0, up) for up in (0.0, 0.01, 0.018)),
    ]  # fmt: skip
    assert way == sorted(way) and len(set(way)) == len(way)
    assert 0 <= way[0] and way[-1] <= 1


def test_the_way_to_a_cube_is_from_above():
    """By the straight distance alone a hand that came down beside the cube pushes it over the table for ever."""
    assert lifting((0.05, 0.06)) > lifting((0.05, 0.0))
    assert lifting((0.05, 0.03)) > lifting((0.05, 0.0))
    assert lifting((0.0, 0.0)) > lifting((0.0, 0.06)) > lifting((0.05, 0.06))


def test_jaws_closed_on_nothing_are_no_grasp():
    """Both pads of closed jaws touch a cube that they press on, and a model believes in it: search then stays there."""
    on_top = (0.0, 0.025)
    assert lifting(on_top, opening=0.002, holding=1.0) <= lifting(on_top)
    assert lifting((0.05, 0.0), AROUND, 1.0) < lifting((0.05, 0.0))
    assert lifting((0.0, 0.0), AROUND, 1.0) > lifting((0.0, 0.0))
