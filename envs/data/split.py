"""Which episodes no training sees: those of the splits that are for evaluation alone, imagined ones where nobody asked
for them, and those that are held out, which is decided by each episode's own seed, so that adding episodes moves none.

A rule that ranks the seeds of a folder (every tenth of them) moves episodes from one side to the other when the folder
grows, and what was measured on becomes what is trained on. A hash of the seed cannot. The price is that the share is
only about 1 / every, and that a small folder may hold no held-out episode at all: with n different seeds the chance of
that is (1 - 1 / every) ** n, a third of all folders of ten with `every=10`. Nothing is moved to mend that, for what is
moved would move back when the folder grows: a training then goes on without held-out figures and says so.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

EVALUATION = ("unseen", "wild")  # and what follows after a dot: `unseen.texture`


def refuse_training(split: str, of: str) -> None:
    """Raise ValueError where episodes of this split, those `of` a folder, would be trained on: what is measured there
    would no longer be unseen."""
    if split.partition(".")[0] in EVALUATION:
        raise ValueError(f"{of} are of split={split}, which is for evaluation alone: no training may see them")


def refuse_imagined(source: str, of: str, instead: str) -> None:
    """Raise ValueError where imagined episodes, those `of` a folder, would be taken for real ones. instead: what to
    do."""
    if source == "imagined":
        raise ValueError(f"{of} are imagined, source=imagined, and are never mixed with real ones unasked: {instead}")


def is_held_out(seed: int, every: int) -> bool:
    """Whether episodes of this seed are kept for measuring, as those of about one in `every` seeds are.

    All episodes of a seed are on the same side, in every folder. ValueError for `every` below 2, which would leave
    nothing to train on.
    """
    if every < 2:
        raise ValueError(f"one in `every` seeds is held out, so it must be at least 2, got {every}")
    digest = hashlib.sha256(str(int(seed)).encode()).digest()
    return int.from_bytes(digest[:8], "big") % every == 0


def split_by_seed(seeds: Mapping[str, int], every: int) -> tuple[list[str], list[str]]:
    """Names to train on, and names to measure on, of episodes whose seeds are given by name. See `is_held_out`."""
    held = {name: is_held_out(seed, every) for name, seed in seeds.items()}
    return [name for name in held if not held[name]], [name for name in held if held[name]]
