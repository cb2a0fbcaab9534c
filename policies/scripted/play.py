"""Motion on the table with purposes of its own: it shows what actions do, not what is good."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from envs.types import Observation, Scene
from policies.base import Policy, SinglePolicy, ask_one
from policies.scripted.motion import ACTION_DIM, OPEN, TABLE_HEIGHT, move


@dataclass(frozen=True)
class _Purpose:
    """What play is about just now.

    rng: of this episode. left: control steps of play before another policy takes over, whose state is `then`; pending:
    (n, A), what it has still to do of its chunk. goal: (3,) m. grip: OPEN or CLOSE. patience: control steps before
    another purpose is chosen. speed: of the largest action. waits: for its jaws. off_task_steps: of play so far.
    """

    rng: np.random.Generator
    left: int
    then: Any
    pending: np.ndarray
    goal: np.ndarray | None = None
    grip: float = OPEN
    patience: int = 0
    speed: float = 1.0
    waits: bool = False
    off_task_steps: int = 0

    @property
    def late(self) -> int:
        """Decisions that passed their deadline: of the policy that takes over."""
        return getattr(self.then, "late", 0)


@dataclass(frozen=True)
class Play:
    """Goes to things or anywhere above the table, closes and opens its jaws there, carries what it got hold of; after
    a while another policy takes over, so that its way back from anywhere is seen too, or that it finds none.

    then: takes over. lasting: range of control steps of play. things: share of the ways that lead to a thing (a corner,
    the cube). jaws: chance that the jaws switch where a way ends. reach: half the sides of the box above the table, m,
    and its height. It reads the simulator's truth, as experts do.
    """

    then: Policy | SinglePolicy
    lasting: tuple[int, int] = (40, 120)
    things: float = 0.6
    jaws: float = 0.6
    reach: tuple[float, float, float] = (0.20, 0.25, 0.22)
    execute: int = 1
    privileged = True

    def init(self, instruction: str, seed: int = 0) -> _Purpose:
        """Draw how long this episode is play."""
        rng = np.random.default_rng([seed, 17])
        none = np.zeros((0, ACTION_DIM), np.float32)
        return _Purpose(rng, int(rng.integers(*self.lasting)), self.then.init(instruction, seed), none)

    def act(self, observation: Observation, state: _Purpose, scene: Scene) -> tuple[np.ndarray, _Purpose]:
        """One action, (1, A)."""
        if state.left == 0:
            if not len(state.pending):
                chunk, after = ask_one(self.then, observation, state.then, scene)
                state = replace(state, then=after, pending=chunk[: self.then.execute])
            return state.pending[:1], replace(state, pending=state.pending[1:])
        here = observation.state[:3].astype(np.float64)
        arrived = state.goal is not None and not state.waits and np.linalg.norm(state.goal - here) < 0.02
        if arrived or state.patience == 0:
            state = self._choose(here, scene, state)
        action = move(here, state.goal, state.grip, gain=2.5, limit=state.speed)
        left, patience, steps = state.left - 1, state.patience - 1, state.off_task_steps + 1
        return action[None], replace(state, left=left, patience=patience, off_task_steps=steps)

    def _choose(self, here: np.ndarray, scene: Scene, state: _Purpose) -> _Purpose:
        rng = state.rng
        if state.goal is not None and not state.waits and rng.random() < self.jaws:
            return replace(state, goal=here, grip=-state.grip, patience=int(rng.integers(5, 10)), waits=True)
        keypoints = scene.keypoints[np.isfinite(scene.keypoints).all(-1)]
        if len(keypoints) and rng.random() < self.things:
            goal = rng.choice(keypoints) + rng.normal(0, 0.012, 3)
        else:
            wide, deep, high = self.reach
            goal = np.array([rng.uniform(-wide, wide), rng.uniform(-deep, deep), TABLE_HEIGHT + rng.uniform(0, high)])
        goal[2] = max(goal[2], TABLE_HEIGHT + 0.004)
        return replace(state, goal=goal, patience=int(rng.integers(10, 30)), speed=rng.uniform(0.4, 1.0), waits=False)
