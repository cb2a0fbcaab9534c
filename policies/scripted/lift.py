"""The expert of Lift.

It is a function of what is there now, never of hidden time: a learner that sees the same state can then learn the same
action, and any state has a label, also one that somebody else led into.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from envs.types import Observation, Scene
from policies.scripted.motion import CLOSE, OPEN, leaning, move, righted


@dataclass(frozen=True)
class LiftExpert:
    """Over the cube, down a funnel around it, close, and up once both pads touch it."""

    execute: int = 1
    privileged = True
    hover: float = 0.06  # metres above the cube's centre
    speed: float = 0.7  # of the largest action: a camera then sees the approach in some twenty frames
    gain: float = 2.0  # the arm covers a quarter of the way to its target in a control step

    def init(self, instruction: str, seed: int = 0) -> None:
        """An expert keeps no state."""

    def act(self, observation: Observation, state: None, scene: Scene) -> tuple[np.ndarray, None]:
        """One clean action, (1, A). A hand that is tilted rights itself meanwhile."""
        return righted(self._action(scene), scene.turned - leaning(scene.gripper))[None], None

    def _action(self, scene: Scene) -> np.ndarray:
        here, cube = scene.gripper.astype(np.float64), scene.keypoints[0].astype(np.float64)
        if scene.held == 0:
            return move(here, here + [0, 0, 0.05], CLOSE, limit=0.5)
        aside, above = np.linalg.norm(cube[:2] - here[:2]), here[2] - cube[2]
        if aside < 0.012 and above < 0.012:
            return move(here, cube, CLOSE, self.gain, limit=0.5)
        # the closer over the cube, the lower; but with closed jaws, or low beside it, up first
        funnel = np.clip((aside - 0.008) / 0.022, 0.0, 1.0)
        if scene.opening < 0.07 and above > 0.03:
            funnel = 1.0
        low = above < 0.5 * self.hover and aside > 0.03
        target = np.array([*(here if low else cube)[:2], cube[2] + funnel * self.hover])
        return move(here, target, OPEN, self.gain, limit=self.speed)
