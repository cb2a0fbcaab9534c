"""What each split shows of a scene, as plain values.

    train, seen        the ranges of training, as `looks` has them (envs/sim/looks.py); `seen` has other seeds
    unseen             every factor outside these ranges
    unseen.<factor>    that factor alone outside, everything else as in `seen`
    unseen.camera_far  the main camera far away, everything else as in `seen`
    wild               things that no training shows: other objects, patterns, coloured light (envs/sim/wild.py)

What is outside is never shown in training, whatever `looks` says.
"""

from __future__ import annotations

# texture: of the table. light: how bright it is. hue: of cube or cloth. size: of cube or cloth. camera: where the main
# camera stands and looks. start: where the arm starts.
FACTORS = ("texture", "light", "hue", "size", "camera", "start")
FAR = "camera_far"
# The place of a split in this list is part of its seeds, so that none repeats an episode of another: append new ones.
SPLITS = ("train", "seen", "unseen", *(f"unseen.{factor}" for factor in (*FACTORS, FAR)), "wild")
EVALUATION_ONLY = ("wild",)  # no command may record these for training


def check_split(split: str) -> None:
    """Raise ValueError where there is no such split."""
    if split not in SPLITS:
        raise ValueError(f"split must be one of {', '.join(SPLITS)}, got {split!r}")


def refuse_recording(split: str) -> None:
    """Raise ValueError for a split of which nothing may be recorded to train on."""
    if split in EVALUATION_ONLY:
        raise ValueError(f"split={split} is for evaluation alone: no training may see it. Record split=train instead")


def outside(split: str) -> frozenset[str]:
    """The factors, or FAR, that a split draws outside the ranges of training."""
    kind, _, factor = split.partition(".")
    if kind != "unseen":
        return frozenset()
    return frozenset((factor,) if factor else FACTORS)
