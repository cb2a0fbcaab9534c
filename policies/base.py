"""The policy protocol: anything that acts, for any number of robots at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from envs.types import Observation, Scene


class Policy(Protocol):
    """Acts for B robots. Its state is passed in and out, one a robot, so nothing is remembered inside.

    A chunk holds M control steps; the loop executes the first `execute` of them before it asks again. A policy that has
    `privileged = True` is given the simulator's scenes, one a robot, as a third argument. A state may carry `late`,
    the number of its decisions so far that passed their deadline, and `off_task_steps`, how many control steps from the
    episode's start did not serve the task.
    """

    execute: int
    batched: bool = True

    def init(self, instruction: str, seed: int = 0) -> Any:
        """The state of one robot at the start of an episode."""

    def act(self, observations: Observation, states: Sequence[Any]) -> tuple[np.ndarray, list[Any]]:
        """observations (B leading), B states -> chunks (B, M, A) f32 in the robot's units, B new states."""


class SinglePolicy(Protocol):
    """A policy that is written for one robot: experts, and what people bring. `OneByOne` makes it a `Policy`.

    One with `privileged = True` also takes the scene.
    """

    execute: int

    def init(self, instruction: str, seed: int = 0) -> Any:
        """The state at the start of an episode."""

    def act(self, observation: Observation, state: Any, scene: Scene | Any = None) -> tuple[np.ndarray, Any]:
        """observation of one robot (no batch dimension), state -> chunk (M, A), new state."""


@dataclass(frozen=True)
class OneByOne:
    """A policy for one robot, asked for each robot in turn."""

    policy: SinglePolicy
    batched = True

    @property
    def execute(self) -> int:
        return self.policy.execute

    @property
    def privileged(self) -> bool:
        return getattr(self.policy, "privileged", False)

    def init(self, instruction: str, seed: int = 0) -> Any:
        """The state of one robot."""
        return self.policy.init(instruction, seed)

    def act(
        self, observations: Observation, states: Sequence[Any], scenes: Sequence[Any] | None = None
    ) -> tuple[np.ndarray, list[Any]]:
        """As `Policy.act`. ValueError where chunks of different robots have different lengths."""
        chunks, after = [], []
        for i, state in enumerate(states):
            scene = () if scenes is None else (scenes[i],)
            chunk, state = self.policy.act(observations[i], state, *scene)
            chunks.append(np.asarray(chunk))
            after.append(state)
        if len({chunk.shape for chunk in chunks}) > 1:
            shapes = ", ".join(str(chunk.shape) for chunk in chunks)
            raise ValueError(f"policy {type(self.policy).__name__} gave chunks of different shapes: {shapes}")
        return np.stack(chunks), after


def batched(policy: Policy | SinglePolicy) -> Policy:
    """The policy itself where it acts for many robots, else wrapped."""
    return policy if getattr(policy, "batched", False) else OneByOne(policy)


def ask(
    policy: Policy, observations: Observation, states: Sequence[Any], scenes: Sequence[Any]
) -> tuple[np.ndarray, list[Any]]:
    """`policy.act`, with the scenes where it may read them."""
    if getattr(policy, "privileged", False):
        return policy.act(observations, states, scenes)
    return policy.act(observations, states)


def ask_one(
    policy: Policy | SinglePolicy, observation: Observation, state: Any, scene: Scene | Any
) -> tuple[np.ndarray, Any]:
    """One robot's chunk (M, A) and new state, from whatever policy; the scene where it may read it."""
    chunks, (after,) = ask(batched(policy), Observation.stack([observation]), [state], [scene])
    return chunks[0], after
