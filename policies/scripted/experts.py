"""Experts that read the simulator's truth, and how they are disturbed to make data worth learning from.

An expert is a function of what is there now, never of hidden time: a learner that sees the same state can then
learn the same action, and any state has a label, also one that somebody else led into.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from envs.types import ACTION_DIM, TABLE_HEIGHT, Obs
from policies.base import Policy

METRES_PER_ACTION = 0.05  # OSC_POSE: an action of 1 puts the target 5 cm ahead
OPEN, CLOSE = -1.0, 1.0


def move(here: np.ndarray, there: np.ndarray, grip: float, gain: float = 1.0, limit: float = 1.0) -> np.ndarray:
    """One action (A,) towards a position: proportional, limited in length so that the path is straight."""
    step = gain * (there - here) / METRES_PER_ACTION
    length = np.linalg.norm(step)
    if length > limit:
        step *= limit / length
    action = np.zeros(ACTION_DIM, dtype=np.float32)
    action[:3], action[-1] = step, grip
    return action


@dataclass(frozen=True)
class FoldExpert:
    """Two corner moves, one after the other: near left onto far left, near right onto far right."""

    execute: int = 1
    hover: float = 0.06  # metres above the corner
    # Metres, height of the arc, and metres beyond the far corner for the first and the second carry. The first one
    # drags the second corner along; this high and this far it lands within 2 to 3 cm, and one carry folds. Lower or
    # shorter leaves it 5 cm short, where it lies beside the far corner and is hard to see; higher, and it flies over.
    carry: float = 0.13
    overshoot: tuple[float, float] = (0.035, 0.020)
    approach_speed: float = 0.8  # of the largest action: a camera then sees the approach in more frames
    carry_speed: float = 0.8  # of the largest action; faster, and the cloth swings

    def init(self, instruction: str, seed: int = 0) -> None:
        """An expert keeps no state."""

    def act(self, obs: Obs, state: None) -> tuple[np.ndarray, None]:
        """One clean action, (1, A)."""
        return self._action(obs)[None], None

    def _action(self, obs: Obs) -> np.ndarray:
        scene = obs.scene
        here, corners = scene.gripper.astype(np.float64), scene.keypoints.astype(np.float64)
        if scene.held >= 0 and scene.stage in (1, 3):
            overshoot = self.overshoot[scene.held]
            return self._lay(here, corners[2 + scene.held], corners[2] - corners[3], overshoot, scene.opening)
        if scene.held >= 0 or scene.stage == 4:
            return self._move_away(here, scene.opening)
        return self._grasp(here, corners[scene.stage // 2], scene.opening)

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

    def _lay(
        self, here: np.ndarray, corner: np.ndarray, far_edge: np.ndarray, overshoot: float, opening: float
    ) -> np.ndarray:
        outward = np.array([far_edge[1], -far_edge[0], 0.0]) / np.linalg.norm(far_edge[:2])
        goal = corner + overshoot * outward
        away, above = np.linalg.norm(goal[:2] - here[:2]), here[2] - corner[2]
        # The jaws need five steps to open and let go late, so they begin within a centimetre and a half and go on to
        # the goal: a learner that is a centimetre off else waits beside it for ever.
        near = 0.015 if opening < 0.01 else 0.025  # once they open, a tremor does not close them again
        if away < near and above < 0.010 + near:
            return move(here, [*goal[:2], corner[2] + 0.008], OPEN, gain=1.5, limit=0.4)
        if opening > 0.02:  # wait for the jaws to close
            return move(here, here, CLOSE)
        height = corner[2] + 0.008 + min(self.carry, max(away - 0.01, 0.0))
        # lift before travelling: the horizontal step waits for the height
        behind = np.clip((height - here[2]) / 0.04, 0.0, 1.0)
        target = np.array([*(here[:2] + (goal[:2] - here[:2]) * (1 - 0.8 * behind)), height])
        return move(here, target, CLOSE, gain=1.5, limit=self.carry_speed)

    def _move_away(self, here: np.ndarray, opening: float) -> np.ndarray:
        up = 0.0 if opening < 0.065 else max(TABLE_HEIGHT + 0.14 - here[2], 0.0)
        return move(here, here + [0, 0, up], OPEN, limit=0.6)


@dataclass(frozen=True)
class LiftExpert:
    """Over the cube, down a funnel around it, close, and up once both pads touch it."""

    execute: int = 1
    hover: float = 0.06  # metres above the cube's centre
    speed: float = 0.7  # of the largest action: a camera then sees the approach in some twenty frames
    gain: float = 2.0  # the arm covers a quarter of the way to its target in a control step

    def init(self, instruction: str, seed: int = 0) -> None:
        """An expert keeps no state."""

    def act(self, obs: Obs, state: None) -> tuple[np.ndarray, None]:
        """One clean action, (1, A)."""
        return self._action(obs)[None], None

    def _action(self, obs: Obs) -> np.ndarray:
        scene = obs.scene
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


@dataclass(frozen=True)
class _Disturbance:
    """What disturbs one episode, drawn at its start, and what is under way."""

    rng: np.random.Generator
    scale: float
    hopeless: bool  # an episode that is meant to fail: failures teach the value
    noise: np.ndarray  # (3,) AR(1)
    takeover: np.ndarray | None = None  # (A,) held while a takeover lasts
    takeover_left: int = 0
    slip: float = 0.0  # what the jaws do while a slip lasts, OPEN or CLOSE
    slip_left: int = 0


@dataclass(frozen=True)
class Perturbed:
    """An expert whose hand is disturbed: correlated noise, takeovers, slips, and episodes that fail.

    Recoveries come by themselves, because the expert goes on from wherever it was led. Record its clean action
    beside the executed one (`rollout(..., expert=...)`): the clean one is the label, the executed one the cause.
    """

    expert: Policy
    noise: tuple[float, float] = (0.08, 0.35)  # range of the standard deviation, drawn once an episode
    correlation: float = 0.7
    takeover: float = 0.004  # chance a step of a random motion of 6 to 16 steps
    # Chance a step that the jaws do the opposite of what they should for 3 to 12 steps. They let go of what they hold,
    # and they close on nothing, which a learner will do too and must know for what it is.
    slip: float = 0.005
    failures: float = 0.10  # share of episodes with four times the disturbances
    execute: int = 1

    def init(self, instruction: str, seed: int = 0) -> _Disturbance:
        """Draw how strongly this episode is disturbed."""
        rng = np.random.default_rng([seed, 7])
        hopeless = bool(rng.random() < self.failures)
        scale = rng.uniform(*self.noise) * (2.0 if hopeless else 1.0)
        return _Disturbance(rng, scale, hopeless, np.zeros(3))

    def act(self, obs: Obs, state: _Disturbance) -> tuple[np.ndarray, _Disturbance]:
        """The executed action, (1, A)."""
        rng, often = state.rng, 4.0 if state.hopeless else 1.0
        clean, _ = self.expert.act(obs, None)
        action = clean[0].copy()
        spread = state.scale * np.sqrt(1 - self.correlation**2)
        noise = self.correlation * state.noise + rng.normal(0, spread, 3)
        action[:3] += noise * [1, 1, 0.6]  # less in height: the table is near
        takeover, left = state.takeover, state.takeover_left
        slip, slip_left = state.slip, state.slip_left
        if left == 0 and rng.random() < often * self.takeover:
            takeover, left = action.copy(), int(rng.integers(6, 17))
            takeover[:3] = rng.uniform(-0.8, 0.8, 3)
        if slip_left == 0 and rng.random() < often * self.slip:
            slip, slip_left = -clean[0, -1], int(rng.integers(3, 13))
        if left:
            action = takeover.copy()
            if obs.state[2] < TABLE_HEIGHT + 0.03:
                action[2] = abs(action[2])
        if slip_left:
            action[-1] = slip
        action = np.clip(action, -1, 1).astype(np.float32)
        after = replace(
            state, noise=noise, takeover=takeover, takeover_left=max(left - 1, 0), slip=slip,
            slip_left=max(slip_left - 1, 0),
        )  # fmt: skip
        return action[None], after
