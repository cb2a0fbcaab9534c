"""The expert of FoldHalf: two corner moves, and the way back where they went wrong.

A near edge that was carried too far lies beyond the far one, and the crease with it. Dragging a corner back only makes
a bunch of the upper layer, and laying it again changes nothing. So the fold is opened again, left and then right, and
made anew. A hand high above the path of a carry is one that opens a fold; that is all it need remember.

The expert is a function of what is there now, never of hidden time: a learner that sees the same state can then learn
the same action, and any state has a label, also one that somebody else led into.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from envs.types import Observation, Scene
from policies.scripted.motion import CLOSE, OPEN, TABLE_HEIGHT, move, righted


@dataclass(frozen=True)
class FoldExpert:
    """Near left onto far left, then near right onto far right."""

    execute: int = 1
    privileged = True
    hover: float = 0.06  # metres above the corner
    # Metres, height of the arc, and metres beyond the far corner for the first and the second carry. The first one
    # drags the second corner along; this high and this far it lands within 2 to 3 cm, and one carry folds. Lower or
    # shorter leaves it 5 cm short, where it lies beside the far corner and is hard to see; higher, and it flies over.
    carry: float = 0.13
    overshoot: tuple[float, float] = (0.035, 0.020)
    overshoot_alone: float = 0.012  # of the first, where the second came along: no other carry drags it back
    laid: float = 0.06  # metres short of its far corner from which a near one is not laid at all
    beyond: tuple[float, float] = (0.04, 0.03)  # metres, left and right, from which a corner lies too far beyond
    opened: float = 0.20  # metres from the far edge to where a corner is let go that was folded wrongly
    above: float = 0.035  # metres over the path of a carry from which a hand is one that opens a fold
    ceiling: float = 0.12  # metres over the cloth at which it does
    approach_speed: float = 0.8  # of the largest action: a camera then sees the approach in more frames
    carry_speed: float = 0.8  # of the largest action; faster, and the cloth swings

    def init(self, instruction: str, seed: int = 0) -> None:
        """An expert keeps no state."""

    def act(self, observation: Observation, state: None, scene: Scene) -> tuple[np.ndarray, None]:
        """One clean action, (1, A). A hand that is tilted rights itself meanwhile."""
        return righted(self._action(scene), scene.turned)[None], None

    def _action(self, scene: Scene) -> np.ndarray:
        here, corners = scene.gripper.astype(np.float64), scene.keypoints.astype(np.float64)
        if scene.held in (0, 1):
            edge = corners[2] - corners[3]
            outward = np.array([edge[1], -edge[0], 0.0]) / max(np.linalg.norm(edge[:2]), 1e-9)
            beyond = (corners[:2] - corners[2:]) @ outward  # where the near corners lie, left and right
            far, goal = corners[2 + scene.held], corners[2 + scene.held] + self._overshoot(beyond, scene.held) * outward
            if self._went_wrong(here, goal, corners[2], outward, beyond, scene.held):
                return self._open(here, far, outward, scene.opening)
            return self._lay(here, far, goal, scene.opening)
        if scene.held >= 0 or scene.stage == 4:
            return self._move_away(here, scene.opening)
        return self._grasp(here, corners[scene.stage // 2], scene.opening)

    def _overshoot(self, beyond: np.ndarray, side: int) -> float:
        if side == 1:
            return self.overshoot[1]
        short = np.clip(-beyond[1] / 0.08, 0.0, 1.0)  # of the right one, as it comes along
        return self.overshoot_alone + (self.overshoot[0] - self.overshoot_alone) * short

    def _went_wrong(
        self, here: np.ndarray, goal: np.ndarray, far_left: np.ndarray, outward: np.ndarray, beyond: np.ndarray,
        side: int,
    ) -> bool:  # fmt: skip
        """Whether the corner that is held is to be taken back: the order in which they are laid tells most of it."""
        left, right = beyond > -self.laid
        if side == 1:
            return bool(not left)
        if not right:
            return False
        hand, path = (here - far_left) @ outward, self._height(np.linalg.norm(goal[:2] - here[:2]))
        too_far = hand > self.beyond[0] or beyond[1] > self.beyond[1]
        return bool(too_far or hand < -self.opened / 2 or here[2] - far_left[2] > path + self.above)

    def _grasp(self, here: np.ndarray, corner: np.ndarray, opening: float) -> np.ndarray:
        aside, above = np.linalg.norm(corner[:2] - here[:2]), here[2] - corner[2]
        reach = 0.016 if opening > 0.07 else 0.024  # once they close, a tremor does not open the jaws again
        if aside < reach and above < reach:
            return move(here, corner + [0, 0, 0.004], CLOSE, gain=1.5, limit=0.6)
        if opening < 0.07 and above < 0.04:  # a release must be over before the gripper leaves
            return move(here, here + [0, 0, 0.01], OPEN)
        # The closer over the corner, the lower, and straight down within reach: no threshold to hover about, and no
        # way back up that a learner with an error of a centimetre would mix with the way down.
        funnel = np.clip((aside - 0.012) / 0.024, 0.0, 1.0)
        low = above < 0.5 * self.hover and aside > 0.03  # rise first, do not sweep the cloth
        target = np.array([*(here if low else corner)[:2], corner[2] + 0.004 + funnel * self.hover])
        return move(here, target, OPEN, gain=1.5, limit=self.approach_speed)

    def _height(self, away: float) -> float:
        """Metres over the far corner on the arc of a carry, so far away from its end."""
        return 0.008 + min(self.carry, max(away - 0.01, 0.0))

    def _lay(self, here: np.ndarray, corner: np.ndarray, goal: np.ndarray, opening: float) -> np.ndarray:
        away, above = np.linalg.norm(goal[:2] - here[:2]), here[2] - corner[2]
        # The jaws need five steps to open and let go late, so they begin within a centimetre and a half and go on to
        # the goal: a learner that is a centimetre off else waits beside it for ever.
        near = 0.015 if opening < 0.01 else 0.025  # once they open, a tremor does not close them again
        if away < near and above < 0.010 + near:
            return move(here, [*goal[:2], corner[2] + 0.008], OPEN, gain=1.5, limit=0.4)
        if opening > 0.02:  # wait for the jaws to close
            return move(here, here, CLOSE)
        return self._carry(here, goal, corner[2] + self._height(away))

    def _open(self, here: np.ndarray, far: np.ndarray, outward: np.ndarray, opening: float) -> np.ndarray:
        goal, out = far - self.opened * outward, (here - far) @ outward
        away, above = np.linalg.norm(goal[:2] - here[:2]), here[2] - far[2]
        if away < 0.03 and above < 0.05:
            return move(here, [*goal[:2], far[2] + 0.03], OPEN, gain=1.5, limit=0.4)
        if opening > 0.02 and away > 0.05:  # wait for the jaws to close
            return move(here, here, CLOSE)
        if out > -0.02 and above < 0.075:  # straight up, and rather out than back, where it would seem to be laid
            aside = here + float(np.clip(0.05 - out, 0.0, 0.02)) * outward
            return move(here, [*aside[:2], far[2] + self.ceiling], CLOSE, gain=1.5, limit=self.carry_speed)
        return self._carry(here, goal, far[2] + min(self.ceiling, 0.03 + max(away - 0.02, 0.0)))

    def _carry(self, here: np.ndarray, goal: np.ndarray, height: float) -> np.ndarray:
        # lift before travelling: the horizontal step waits for the height
        behind = np.clip((height - here[2]) / 0.04, 0.0, 1.0)
        target = np.array([*(here[:2] + (goal[:2] - here[:2]) * (1 - 0.8 * behind)), height])
        return move(here, target, CLOSE, gain=1.5, limit=self.carry_speed)

    def _move_away(self, here: np.ndarray, opening: float) -> np.ndarray:
        up = 0.0 if opening < 0.065 else max(TABLE_HEIGHT + 0.14 - here[2], 0.0)
        return move(here, here + [0, 0, up], OPEN, limit=0.6)
