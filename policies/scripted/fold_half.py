"""The expert of FoldHalf.

It is a function of what is there now, never of hidden time: a learner that sees the same state can then learn the same
action, and any state has a label, also one that somebody else led into.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from envs.types import Observation, Scene
from policies.scripted.motion import CLOSE, OPEN, leaning, move, righted, room


@dataclass(frozen=True)
class FoldExpert:
    """Two corner moves, one after the other: near left onto far left, near right onto far right."""

    execute: int = 1
    privileged = True
    hover: float = 0.06  # metres above the corner
    # Metres from a corner, away from the cloth, where it is grasped. A hand that is inside of it by half of what lies
    # between two vertices takes the one beside it, and the fold is askew; one that is as far outside still takes the
    # corner, and one that is farther takes nothing and can try again.
    outside: float = 0.005
    # Height of the arc in lengths of the cloth's edge; metres beyond the far corner and away from the other one. For
    # the first and the second carry: the first one drags the second corner along, and pulled aside by this much that
    # one lands within a centimetre whether the arc is 0.35 or 0.60 high and the hand lets go 3 or 35 mm beyond. Without
    # `aside` it lies up to 5 cm short, and from 0.7 on it flies over: a learner is to be far from both.
    carry: float = 0.48
    overshoot: tuple[float, float] = (0.024, 0.020)
    aside: tuple[float, float] = (0.025, 0.0)
    approach_speed: float = 0.8  # of the largest action: a camera then sees the approach in more frames
    carry_speed: float = 0.8  # of the largest action; faster, and the cloth swings

    def init(self, instruction: str, seed: int = 0) -> None:
        """An expert keeps no state."""

    def act(self, observation: Observation, state: None, scene: Scene) -> tuple[np.ndarray, None]:
        """One clean action, (1, A). A hand that is tilted rights itself meanwhile, and one that will have to lean leans
        on its way: turning it where it arrives pushes the corner outward."""
        action, aim = self._action(scene)
        lean = max(leaning(scene.gripper), leaning(aim), key=np.linalg.norm)
        return righted(action, scene.turned - lean)[None], None

    def _action(self, scene: Scene) -> tuple[np.ndarray, np.ndarray]:
        """The action (A,), and where it leads in the end, (3,)."""
        here, corners = scene.gripper.astype(np.float64), scene.keypoints.astype(np.float64)
        if scene.held >= 0 and scene.stage in (1, 3):
            edge = corners[2] - corners[3]
            goal = _beyond(corners[2 + scene.held], edge, self.overshoot[scene.held])
            goal += self.aside[scene.held] * edge / np.linalg.norm(edge)
            return self._lay(here, goal, scene.opening, self.carry * np.linalg.norm(edge)), goal
        if scene.held >= 0:
            return move(here, here, OPEN), here
        if scene.stage == 4:
            # Until the cloth lies still, as if the right corner had to be laid too. A hand that stays over the left one
            # hides the cloth: whoever learns from it cannot tell whether it is done, and waits there for ever.
            return self._go_over(here, corners[1], scene.opening, self.hover), corners[1]
        corner = corners[scene.stage // 2]
        away = (corner - corners.mean(axis=0)) * [1, 1, 0]
        aim = corner + self.outside * away / max(np.linalg.norm(away), 1e-6)
        return self._grasp(here, aim, scene.opening), aim

    def _grasp(self, here: np.ndarray, corner: np.ndarray, opening: float) -> np.ndarray:
        aside, above = np.linalg.norm(corner[:2] - here[:2]), here[2] - corner[2]
        reach = 0.016 if opening > 0.07 else 0.024  # once they close, a tremor does not open the jaws again
        if aside < reach and above < reach:
            return move(here, corner + [0, 0, 0.004], CLOSE, gain=1.5, limit=0.6)
        # The closer over the corner, the lower, and straight down within reach: no threshold to hover about, and no
        # way back up that a learner with an error of a centimetre would mix with the way down.
        funnel = np.clip((aside - 0.012) / 0.024, 0.0, 1.0)
        return self._go_over(here, corner, opening, funnel * self.hover)

    def _go_over(self, here: np.ndarray, corner: np.ndarray, opening: float, height: float) -> np.ndarray:
        aside, above = np.linalg.norm(corner[:2] - here[:2]), here[2] - corner[2]
        if opening < 0.07 and above < 0.04:  # a release must be over before the gripper leaves
            return move(here, here + [0, 0, 0.01], OPEN)
        low = above < 0.5 * self.hover and aside > 0.03  # rise first, do not sweep the cloth
        target = np.array([*(here if low else corner)[:2], corner[2] + 0.004 + height])
        return move(here, target, OPEN, gain=1.5, limit=self.approach_speed)

    def _lay(self, here: np.ndarray, goal: np.ndarray, opening: float, arc: float) -> np.ndarray:
        away, above = np.linalg.norm(goal[:2] - here[:2]), here[2] - goal[2]
        # The jaws need five steps to open and let go late, so they begin within two centimetres and go on to the
        # goal: a learner that is a centimetre off else waits beside it for ever.
        near = 0.020 if opening < 0.01 else 0.030  # once they open, a tremor does not close them again
        if away < near and above < 0.010 + near:
            return move(here, [*goal[:2], goal[2] + 0.008], OPEN, gain=1.5, limit=0.4)
        if opening > 0.02:  # wait for the jaws to close
            return move(here, here, CLOSE)
        height = goal[2] + 0.008 + min(arc, max(away - 0.01, 0.0))
        # lift before travelling: the horizontal step waits for the height
        behind = np.clip((height - here[2]) / 0.04, 0.0, 1.0)
        target = np.array([*(here[:2] + (goal[:2] - here[:2]) * (1 - 0.8 * behind)), height])
        return move(here, target, CLOSE, gain=1.5, limit=self.carry_speed)


def _beyond(corner: np.ndarray, far_edge: np.ndarray, overshoot: float) -> np.ndarray:
    """The place (3,) so far beyond a far corner, or less far where the arm would be stretched. far_edge: (3,) from its
    right end to its left one."""
    outward = np.array([far_edge[1], -far_edge[0], 0.0]) / np.linalg.norm(far_edge[:2])
    return corner + min(overshoot, room(corner, outward)) * outward
