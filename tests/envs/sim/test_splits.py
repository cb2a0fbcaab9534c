import pytest

from envs.sim.splits import FACTORS, FAR, SPLITS, check_split, outside, refuse_recording


def test_what_leaves_the_ranges_of_training():
    """A split that shifts nothing, or more than its name says: a table of causes would blame the wrong one."""
    assert outside("train") == outside("seen") == outside("wild") == frozenset()
    assert outside("unseen") == set(FACTORS)
    for factor in (*FACTORS, FAR):
        assert outside(f"unseen.{factor}") == {factor}


def test_places_are_seeds():
    """A split that moves within the list changes every episode of it, and of those that it pushes aside."""
    assert SPLITS[:3] == ("train", "seen", "unseen")
    assert SPLITS[3:] == (*(f"unseen.{factor}" for factor in FACTORS), "unseen.camera_far", "wild")


@pytest.mark.parametrize("split", ["tset", "unseen.colour", "unseen.", "seen.hue", ""])
def test_a_split_that_there_is_not(split):
    """A typo that evaluates on what training shows."""
    with pytest.raises(ValueError, match="split must be one of train, seen, unseen, unseen.texture"):
        check_split(split)


def test_only_wild_is_refused():
    """A guard that refuses what may be recorded, or lets through what may not."""
    for split in SPLITS[:-1]:
        refuse_recording(split)
    with pytest.raises(ValueError, match="evaluation alone"):
        refuse_recording("wild")
