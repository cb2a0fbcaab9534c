"""A policy whose commands do not arrive as it meant them: one more policy, as good as it is let be."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from envs.types import Observation, Spec
from policies.base import Policy, SinglePolicy, ask, batched


@dataclass(frozen=True)
class DisturbedState:
    """Of one robot. inner: the policy's own. asked: how often so far. meant: (M, A) of the last chunk, as the policy
    gave it."""

    inner: Any
    seed: int
    asked: int = 0
    meant: np.ndarray | None = field(default=None, compare=False)

    @property
    def off_task_steps(self) -> int:
        return int(getattr(self.inner, "off_task_steps", 0))

    @property
    def late(self) -> int:
        return int(getattr(self.inner, "late", 0))

    @property
    def plan(self) -> Any:
        return getattr(self.inner, "plan", None)


@dataclass(frozen=True)
class Disturbed:
    """Any policy, with what is added to each of its commands but the grippers'. In shares of half the range:

    noise: standard deviation, drawn anew at every control step. bias: the same always, in every dimension. speed: what
    commands are multiplied by. The policy itself does not know.
    """

    policy: Policy | SinglePolicy
    spec: Spec
    noise: float = 0.0
    bias: float = 0.0
    speed: float = 1.0
    batched = True

    def __post_init__(self) -> None:
        if self.noise < 0 or not all(map(math.isfinite, (self.noise, self.bias, self.speed))):
            raise ValueError(f"noise must be 0 or more, and all must be finite, got {self}")

    @property
    def execute(self) -> int:
        return self.policy.execute

    @property
    def privileged(self) -> bool:
        return getattr(self.policy, "privileged", False)

    def init(self, instruction: str, seed: int = 0) -> DisturbedState:
        """The state of one robot."""
        return DisturbedState(self.policy.init(instruction, seed), seed)

    def act(
        self, observations: Observation, states: Sequence[DisturbedState], scenes: Sequence[Any] = ()
    ) -> tuple[np.ndarray, list[DisturbedState]]:
        """As `Policy.act`. The robot's seed and how often it was asked decide the noise."""
        chunks, inner = ask(batched(self.policy), observations, [state.inner for state in states], scenes)
        half = (self.spec.action_high - self.spec.action_low) / 2
        centre = (self.spec.action_high + self.spec.action_low) / 2
        moves = np.array([not part.gripper for part in self.spec.action])
        meant = (np.asarray(chunks, np.float64) - centre) / half  # (B, M, A)
        noise = np.stack([
            np.random.default_rng([state.seed, state.asked, 17]).normal(size=meant.shape[1:]) for state in states
        ])  # fmt: skip
        done = np.where(moves, self.speed * meant + self.bias + self.noise * noise, meant).clip(-1, 1)
        after = [
            replace(state, inner=each, asked=state.asked + 1, meant=np.asarray(chunk, np.float32))
            for state, each, chunk in zip(states, inner, chunks, strict=True)
        ]
        return (done * half + centre).astype(np.float32), after
