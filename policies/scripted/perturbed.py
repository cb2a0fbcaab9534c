"""Disturbed experts: what makes data worth learning from."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from envs.types import Observation, Scene, Spec
from policies.base import SinglePolicy, ask_one


@dataclass(frozen=True)
class _Disturbance:
    """What disturbs one episode, drawn at its start, and what is under way."""

    rng: np.random.Generator
    scale: float
    hopeless: bool  # an episode that is meant to fail: failures teach the value
    noise: np.ndarray  # one for each dimension of `Perturbed.weights`, AR(1)
    expert: Any  # the expert's own state
    takeover: np.ndarray | None = None  # (A,) held while a takeover lasts
    takeover_left: int = 0
    slip: np.ndarray | None = None  # what the grippers do while a slip lasts, one each
    slip_left: int = 0
    error: np.ndarray | None = None  # (n, 3) metres, how far beside its place each keypoint is taken to be
    stage: int = -1  # of the scene in which `error` was drawn


@dataclass(frozen=True)
class Perturbed:
    """An expert whose hand is disturbed: correlated noise, takeovers, slips, and episodes that fail. Its eye can be,
    too: it then grasps beside, lays beside, and has to mend that, as whoever learns from it will.

    Recoveries come by themselves, because the expert goes on from wherever it was led. Record its clean action
    beside the executed one (`rollout(..., expert=...)`): the clean one is the label, the executed one the cause.
    """

    expert: SinglePolicy
    spec: Spec
    noise: tuple[float, float] = (0.08, 0.35)  # range of the standard deviation, drawn once an episode
    weights: tuple[float, ...] = (1.0, 1.0, 0.6)  # of the noise in the first dimensions: less in height, for the table
    takeover_weights: tuple[float, ...] = (1.0, 1.0, 1.0)  # of takeovers in the same dimensions
    correlation: float = 0.7
    takeover: float = 0.004  # chance a step of a random motion of 6 to 16 steps
    strength: float = 0.8  # of such a motion at most, in shares of half the range: large commands lead far
    # Chance a step that the jaws do the opposite of what they should for 3 to 12 steps. They let go of what they hold,
    # and they close on nothing, which a learner will do too and must know for what it is.
    slip: float = 0.005
    # Metres, standard deviation along x and y of where each keypoint is taken to be, drawn anew with each subtask and
    # about every 30 steps: an error that stays would never be mended.
    misjudged: float = 0.0
    failures: float = 0.10  # share of episodes with four times the disturbances
    floor: float = -math.inf  # metres: below it, at state dimension 2, a takeover leads up
    execute: int = 1
    privileged = True

    def init(self, instruction: str, seed: int = 0) -> _Disturbance:
        """Draw how strongly this episode is disturbed."""
        rng = np.random.default_rng([seed, 7])
        hopeless = bool(rng.random() < self.failures)
        scale = rng.uniform(*self.noise) * (2.0 if hopeless else 1.0)
        weights = self.weights[: len(self.spec.action)]
        return _Disturbance(rng, scale, hopeless, np.zeros(len(weights)), self.expert.init(instruction, seed))

    def act(self, observation: Observation, state: _Disturbance, scene: Any) -> tuple[np.ndarray, _Disturbance]:
        """The executed action, (1, A)."""
        rng, often, spec = state.rng, 4.0 if state.hopeless else 1.0, self.spec
        half, middle = (spec.action_high - spec.action_low) / 2, (spec.action_high + spec.action_low) / 2
        count, jaws = len(state.noise), list(spec.grippers)
        if self.misjudged:
            state, scene = self._misjudge(state, scene)
        clean, expert = ask_one(self.expert, observation, state.expert, scene)
        action = clean[0].copy()
        spread = state.scale * np.sqrt(1 - self.correlation**2)
        noise = self.correlation * state.noise + rng.normal(0, spread, count)
        action[:count] += noise * self.weights[:count] * half[:count]
        takeover, left = state.takeover, state.takeover_left
        slip, slip_left = state.slip, state.slip_left
        if left == 0 and rng.random() < often * self.takeover:
            takeover, left = action.copy(), int(rng.integers(6, 17))
            reach = self.strength * np.array(self.takeover_weights[:count]) * half[:count]
            takeover[:count] = middle[:count] + rng.uniform(-1, 1, count) * reach
        if slip_left == 0 and rng.random() < often * self.slip:
            slip, slip_left = 2 * middle[jaws] - clean[0, jaws], int(rng.integers(3, 13))
        if left:
            action = takeover.copy()
            if len(observation.state) > 2 and observation.state[2] < self.floor:
                action[2] = abs(action[2])
        if slip_left:
            action[jaws] = slip
        action = np.clip(action, spec.action_low, spec.action_high).astype(np.float32)
        after = replace(
            state, noise=noise, expert=expert, takeover=takeover, takeover_left=max(left - 1, 0), slip=slip,
            slip_left=max(slip_left - 1, 0),
        )  # fmt: skip
        return action[None], after

    def _misjudge(self, state: _Disturbance, scene: Scene) -> tuple[_Disturbance, Scene]:
        """The scene as it is taken to be. ValueError where nobody says what is there."""
        if scene is None:
            raise ValueError("perturb.misjudged: this environment does not say where things are (info['scene'])")
        if state.error is None or scene.stage != state.stage or state.rng.random() < 1 / 30:
            error = state.rng.normal(0, self.misjudged, scene.keypoints.shape) * [1, 1, 0]
            state = replace(state, error=error, stage=scene.stage)
        return state, replace(scene, keypoints=(scene.keypoints + state.error).astype(np.float32))
