"""The folders of episodes that a command reads."""

from dataclasses import replace

import pytest

from envs.data.split import is_held_out
from envs.data.store import EpisodeError, EpisodeStore
from tests.robots import ARM, made_up
from world_model.training.sources import as_folders, open_sources

SEEDS = range(12)


@pytest.fixture
def folder(tmp_path):
    store = EpisodeStore(tmp_path / "data")
    for seed in SEEDS:
        store.write(made_up(ARM, seed, steps=4), f"e{seed:02d}")
    return store.root


def test_a_folder_is_split_by_seed(folder):
    """Catches held-out episodes that are trained on, and a split that is not that of the whole project."""
    (source,) = open_sources({"data": [str(folder)]}, held_out=3)
    assert source.held_out == tuple(f"e{seed:02d}" for seed in SEEDS if is_held_out(seed, 3))
    assert {*source.train, *source.held_out} == {f"e{seed:02d}" for seed in SEEDS}
    assert not {*source.train} & {*source.held_out} and source.role == "data"
    assert [e.seed for e in source.each()] == [int(name[1:]) for name in source.train]
    assert open_sources({"data": [str(folder)]})[0].train == tuple(f"e{seed:02d}" for seed in SEEDS)


def test_a_folder_that_is_misspelt_or_empty_is_named(folder, tmp_path):
    """Catches one of several folders that is skipped in silence."""
    (tmp_path / "empty").mkdir()
    for wrong in ("empty", "daat"):
        with pytest.raises(EpisodeError, match=wrong):
            open_sources({"data": [str(folder)], "unlabelled": [str(tmp_path / wrong)]}, held_out=3)


def test_one_folder_needs_no_brackets():
    """Catches `data=folder` being read letter by letter."""
    assert as_folders("data/x") == ["data/x"] and as_folders(["a", "b"]) == ["a", "b"]
    assert as_folders(None) == as_folders("") == []


def test_content_tells_a_folder(folder):
    """Catches a fingerprint that does not see a changed episode."""
    before = open_sources({"data": [str(folder)]})[0].fingerprint()
    EpisodeStore(folder).write(made_up(ARM, 3, steps=5), "e03")
    after = open_sources({"data": [str(folder)]})[0].fingerprint()
    assert {name for name in before.episodes if before.episodes[name] != after.episodes[name]} == {"e03"}


def test_what_no_training_may_see_is_refused(folder):
    """Catches a split that is trained on and then called unseen, and a model that learns the world from its dreams."""
    (source,) = open_sources({"data": [str(folder)]})
    for change, message in (({"split": "wild"}, "split=wild"), ({"source": "imagined"}, "they are for policies")):
        EpisodeStore(folder).write(replace(made_up(ARM, 3, steps=4), **change), "e03")
        with pytest.raises(ValueError, match=message):
            list(source.each())
