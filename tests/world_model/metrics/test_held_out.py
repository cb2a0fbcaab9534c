"""Which windows are looked at."""

from world_model.metrics.held_out import spread
from world_model.tokens.layout import Tracks


def test_every_episode_counts_alike(world, text, make_episode):
    """Catches a long failure that makes most of the figures."""
    words = text.within(world.vocab.text)
    long, short = (
        Tracks.of(make_episode(0, steps=steps), world.layout, world.frame_tokenizer, world.actions, words)
        for steps in (200, 40)
    )
    starts = spread(Tracks.join([long, short]), 10)
    assert (starts < len(long)).sum() == (starts >= len(long)).sum() == 5
