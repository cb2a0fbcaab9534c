"""The moments of one viewer's two worlds: a tree that grows where a person goes on from.

Every moment is a value, in the simulator as in the dream, so that any of them can be gone back to and gone on from.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from envs.types import Observation, Scene

if TYPE_CHECKING:
    from agent.planning.planner import Plan
    from world_model.imagined_env import DreamState

MAX_MOMENTS = 3000  # of one viewer, in all branches; a moment of a cloth takes about 50 kB


class TimelineFull(ValueError):
    """There is no room for further moments."""


@dataclass(frozen=True)
class Real:
    """The simulator at one moment. info: the environment's. saved: its exact state, None where it tells none, and then
    actions are replayed. simulated: the state as an episode keeps it, (X,) f64. reward: of the step that led here."""

    info: dict[str, Any]
    saved: Any
    simulated: np.ndarray
    reward: float = 0.0

    @property
    def scene(self) -> Scene | None:
        """The simulator's truth, where it tells it as ours do."""
        scene = self.info.get("scene")
        return scene if isinstance(scene, Scene) else None


@dataclass(frozen=True)
class Thought:
    """What the model believes of one world at one moment. keypoints: (n, 3) m. uncertainty: metres, of all imagined
    steps so far together; None where it looked at the simulator's own picture, which it does not doubt."""

    value: float
    success: float
    held: float
    keypoints: np.ndarray
    uncertainty: float | None = None


@dataclass(frozen=True)
class Moment:
    """Both worlds after the same actions. step: control steps since the start. action: (A,) f32, the last of them,
    None at the start. by: who chose it. seen: what the model believes of the simulator's picture, None where it has not
    looked. plan: the decision whose last executed step this is, without what was imagined for it."""

    id: int
    parent: int | None
    step: int
    action: np.ndarray | None
    by: str
    real: Real
    dream: DreamState
    seen: Thought | None = None
    plan: Plan | None = None

    @property
    def fresh(self) -> bool:
        """Whether the dream has caught up: a model step covers several control steps, and it looks only after all."""
        return not self.dream.dream.pending

    @property
    def dreamt(self) -> Thought:
        """What the model believes of its dream, as of when it looked last."""
        dream = self.dream.dream
        return Thought(dream.value, dream.success, dream.held, dream.keypoints, dream.uncertainty)


@dataclass
class Timeline:
    """All moments of an episode and its branches. scene_look: which of the looks that the episode can be shown under, 0
    for its own, the only one where an environment has no others. observations: what the robot sees at those moments at
    which anybody asked; drawing it takes longer than the step itself."""

    split: str
    seed: int
    instruction: str
    scene_look: int = 0
    limit: int = MAX_MOMENTS
    moments: list[Moment] = field(default_factory=list)
    observations: dict[int, Observation] = field(default_factory=dict)

    def __getitem__(self, index: int) -> Moment:
        if not 0 <= index < len(self.moments):
            raise ValueError(f"there is no moment {index}: this time line has those from 0 to {len(self.moments) - 1}")
        return self.moments[index]

    def start(self, real: Real, dream: DreamState) -> Moment:
        """The first moment."""
        self.moments.append(Moment(0, None, 0, None, "start", real, dream))
        return self.moments[0]

    def require_room(self, steps: int) -> None:
        """TimelineFull where so many moments are too many."""
        if len(self.moments) + steps > self.limit:
            raise TimelineFull(f"the time line is full ({self.limit} moments): save what you want to keep, and reset")

    def add(self, parent: int, action: np.ndarray, by: str, real: Real, dream: DreamState) -> Moment:
        """The moment one control step later."""
        step = self[parent].step + 1
        self.moments.append(Moment(len(self.moments), parent, step, action, by, real, dream))
        return self.moments[-1]

    def tell(self, index: int, seen: Thought | None = None, plan: Plan | None = None) -> Moment:
        """Add to a moment what was found out about it."""
        moment = self[index]
        self.moments[index] = replace(moment, seen=seen or moment.seen, plan=plan or moment.plan)
        return self.moments[index]

    def path(self, index: int) -> list[Moment]:
        """The moments from the start to this one."""
        found = [self[index]]
        while found[-1].parent is not None:
            found.append(self.moments[found[-1].parent])
        return found[::-1]

    def actions(self, index: int) -> np.ndarray:
        """(T, A) f32, what leads from the start to this moment."""
        path = self.path(index)[1:]
        return np.stack([moment.action for moment in path]) if path else np.zeros((0, 0), np.float32)


def drift_cm(real: Real, state: np.ndarray, moment: Moment, position: Sequence[int] | None) -> dict[str, float]:
    """How far the dream has drifted from the simulator, centimetres: of the `gripper`, and of the `objects`, the mean
    over the keypoints that there are. Only what both tell.

    state: (P,), the robot's in the simulator. position: where in it and in the dream's the hand's position stands.
    """
    found = {}
    if position is not None:
        where = list(position)
        found["gripper"] = 100 * float(np.linalg.norm(state[where] - moment.dream.shown["state"][where]))
    scene, believed = real.scene, moment.dream.dream.keypoints
    if scene is not None and len(believed) == len(scene.keypoints):
        away = np.linalg.norm(scene.keypoints - believed, axis=1)
        if np.isfinite(away).any():
            found["objects"] = 100 * float(np.nanmean(away))
    return found
