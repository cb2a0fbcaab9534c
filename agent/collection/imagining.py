"""Episodes that a policy dreams, which of them are kept, and what the simulator says of them."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace

import numpy as np
from gymnasium.vector import VectorEnv

from agent.collection.replay import Replay
from envs.types import Episode, Spec, check_action
from policies.base import Policy
from policies.rollout import Step, rollout
from world_model.imagined_env import Start, Starts

# The start that the simulator shows may differ from the one that was imagined from by this much, metres and radians.
SAME = 1e-4


@dataclass(frozen=True)
class Keep:
    """Which dreams are kept, by what the model itself says at their end. success: those that succeed alone. value: at
    least this large. uncertainty: at most so many metres, of all steps together; None keeps any."""

    success: bool = True
    value: float = -math.inf
    uncertainty: float | None = None

    def __post_init__(self) -> None:
        if self.uncertainty is not None and not self.uncertainty > 0:
            raise ValueError(f"keep.uncertainty must be positive or null, got {self.uncertainty}")

    def __call__(self, dream: Dream) -> bool:
        """Whether to keep it."""
        surely = self.uncertainty is None or dream.uncertainty <= self.uncertainty
        return surely and dream.value >= self.value and (dream.success or not self.success)


@dataclass(frozen=True)
class Dream:
    """One imagined episode, its `seed` the start's, so that it is held out where the start is. number: which of all.
    value, uncertainty: the model's, at the end. seconds: of processor time."""

    number: int
    start: Start
    episode: Episode
    value: float
    uncertainty: float
    seconds: float

    @property
    def success(self) -> bool:
        """As the model reads it at the end."""
        return bool(self.episode.success[-1])


@dataclass
class _Record:
    """What the loop's `on_step` notes of each robot's episode."""

    spec: Spec
    last: Step | None = None  # of whichever robot: the loop yields an episode right after its last step
    meant: dict[int, list[np.ndarray]] = field(default_factory=dict)
    since: dict[int, int] = field(default_factory=dict)  # control steps since the last decision

    def __call__(self, step: Step) -> None:
        robot, self.last = step.robot, step
        if step.index == 0:
            self.meant[robot] = []
        self.since[robot] = 0 if step.decided else self.since[robot] + 1
        chunk = getattr(step.state, "meant", None)
        self.meant[robot].append(step.action if chunk is None else check_action(chunk[self.since[robot]], self.spec))


def dreams(envs: VectorEnv, starts: Starts, policy: Policy, numbers: Iterable[int]) -> Iterator[Dream]:
    """Imagined episodes. Their label at every step, `Episode.expert`, is what the policy meant to do there, before it
    was disturbed.

    envs: imagined, beginning at `starts`. numbers: of the episodes, which decide start and chance.
    """
    record, began = _Record(envs.get_attr("robot_spec")[0]), time.process_time()
    for run in rollout(envs, policy, numbers, on_step=record):
        number, start, info = run.episode.seed, starts(run.episode.seed), record.last.info
        meant = np.stack(record.meant[record.last.robot]).astype(np.float32)
        seed = number if start.seed is None else start.seed
        episode, spent = replace(run.episode, expert=meant, seed=seed), time.process_time() - began
        yield Dream(number, start, episode, float(info["value"]), float(info["uncertainty"]), spent)
        began = time.process_time()


def replayed(envs: VectorEnv, dream: Dream) -> Episode:
    """What the simulator makes of a dream's actions, from the same start: an ordinary episode of it, which ends where
    it succeeds or the actions do.

    envs: of one environment. ValueError where the simulator does not begin where the dream did.
    """
    start, done = dream.start, dream.episode
    if start.seed is None:
        raise ValueError("a dream from a start of no known seed cannot be replayed: set verify=none")
    (run,) = rollout(envs, Replay(done.action), [start.seed], Replay(done.expert), max_steps=len(done))
    found, wanted = run.episode.state[0], start.observation.state
    if run.episode.spec != done.spec or not np.allclose(found, wanted, rtol=0, atol=SAME):
        raise ValueError(
            f"the simulator does not begin with seed {start.seed} where the dream did (split {run.episode.split}): the "
            "starts were recorded in another task, with other `env.options`, or by another version"
        )
    return run.episode
