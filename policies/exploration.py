"""Motion without a purpose, for any robot."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from envs.types import Observation, Spec


@dataclass(frozen=True)
class RandomPolicy:
    """Smooth random motion: an AR(1) walk of the action, the grippers switching now and then."""

    spec: Spec
    execute: int = 1

    def init(self, instruction: str, seed: int = 0) -> tuple[np.random.Generator, np.ndarray]:
        """A generator and the last action, in shares of half the range."""
        return np.random.default_rng([seed, 11]), np.zeros(len(self.spec.action))

    def act(
        self, observation: Observation, state: tuple[np.random.Generator, np.ndarray]
    ) -> tuple[np.ndarray, tuple[np.random.Generator, np.ndarray]]:
        """The next actions, (execute, A)."""
        (rng, walk), spec, walks = state, self.spec, []
        for _ in range(self.execute):
            last, walk = walk, 0.8 * walk + rng.normal(0, 0.4, len(walk))
            for i in spec.grippers:
                switch = rng.random() < 0.05 or last[i] == 0
                walk[i] = rng.choice([-1.0, 1.0]) if switch else last[i]
            walks.append(walk)
        low, high = spec.action_low, spec.action_high
        actions = np.clip((high + low) / 2 + np.stack(walks) * (high - low) / 2, low, high)
        return actions.astype(np.float32), (rng, walk)
