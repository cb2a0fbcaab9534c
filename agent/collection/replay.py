"""What was done, done again: recorded commands as a policy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from envs.types import Observation


@dataclass(frozen=True)
class Replay:
    """Recorded commands (T, A), one at every control step, whatever is seen."""

    actions: np.ndarray
    execute: int = 1

    def init(self, instruction: str, seed: int = 0) -> int:
        """Nothing is done."""
        return 0

    def act(self, observation: Observation, state: int, scene: Any = None) -> tuple[np.ndarray, int]:
        """The next command, (1, A). ValueError after the last."""
        if state == len(self.actions):
            raise ValueError(f"there are {state} recorded commands and the episode goes on")
        return self.actions[state][None], state + 1
