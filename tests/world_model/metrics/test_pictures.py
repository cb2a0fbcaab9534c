"""Pictures for a person."""

import numpy as np

from tests.robots import ARM, made_up
from world_model.metrics import pictures
from world_model.training.dataset import EpisodeDataset, fit_ranges


def test_cameras_of_any_size_stand_side_by_side():
    """Catches a picture that cannot be made of cameras that are no squares, or of one alone."""
    views = {"a": np.full((3, 8, 16, 3), 10, np.uint8), "b": np.full((3, 24, 8, 3), 20, np.uint8)}
    both, one = pictures.strip(views), pictures.strip({"a": views["a"]})
    assert both.shape == (26, 3 * (16 + 8 + pictures.GAP), 3) and one.shape == (10, 3 * (16 + pictures.GAP), 3)
    assert (both[:8, :16] == 10).all() and (both[8:24, :16] == 0).all() and (both[:24, 16:24] == 20).all()
    assert pictures.stack([both, one], scale=2).size == (2 * both.shape[1], 2 * 36)


def test_what_is_imagined_is_shown(make_world, text):
    """Catches a robot of one camera, or of short episodes, that ends a training with a traceback."""
    episodes = [made_up(ARM, seed, steps=26) for seed in range(2)]
    world = make_world(fit_ranges(ARM, [e.state for e in episodes]), (2, 3, 0, 8), text.size)
    words = text.within(world.vocab.text)
    dataset = EpisodeDataset.join([
        EpisodeDataset.of(e, world.layout, world.frame_tokenizer, world.actions, words) for e in episodes
    ])  # fmt: skip
    shown = np.asarray(pictures.imagined(world, dataset, rows=2))
    assert shown.shape == (2 * 2 * 34 * 3, 3 * (48 + pictures.GAP) * 3, 3)  # now and two model steps ahead
    real, imagined = shown[: 32 * 3, : 48 * 3], shown[34 * 3 : 66 * 3, : 48 * 3]
    assert (real == imagined).all(), "both strips begin with now"
