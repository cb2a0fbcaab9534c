"""The exact state of a simulation, as a value that can be kept with an episode."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class SimState:
    """Everything that a step depends on. Physics alone is not enough: the gripper's command builds up over steps, and
    the first step of an episode differs (see `ArmController`).

    episode: what it is a state of; it can be loaded there only. Another environment that was reset to the same episode
        (task, split and seed) is as good, also in another process.
    model: what tells its physics from those of another version: the time step in s and the mass of everything in kg.
    warnings: MuJoCo's counts so far. task: what the task remembers beside the physics.
    """

    episode: str
    model: np.ndarray
    warnings: np.ndarray
    gripper_command: np.ndarray
    task: np.ndarray
    physics: np.ndarray

    def flat(self) -> np.ndarray:
        """All of it but the episode's name, (X,) f64."""
        return np.concatenate([getattr(self, name) for name in PARTS]).astype(np.float64)

    def with_values(self, flat: np.ndarray) -> SimState:
        """Another state of the same episode, from what its `flat` gave. ValueError for one of another model."""
        parts = [getattr(self, name) for name in PARTS]
        ends = np.cumsum([len(part) for part in parts])
        if flat.shape != (ends[-1],):
            raise ValueError(
                f"this is a state of another version of the model: it is {flat.shape}, where `{self.episode}` has "
                f"({ends[-1]},)"
            )
        model, *_ = cut = np.split(flat, ends[:-1])
        if not np.allclose(model, self.model, rtol=1e-9, atol=0):
            there, here = (f"{1000 * step:.6g} ms and {mass:.6g} kg" for step, mass in (model, self.model))
            raise ValueError(
                f"this is a state of another version of the model: its time step and mass are {there}, those of "
                f"`{self.episode}` are {here}"
            )
        values = {name: new.astype(old.dtype) for name, old, new in zip(PARTS, parts, cut, strict=True)}
        return SimState(self.episode, **values)


PARTS = ("model", "warnings", "gripper_command", "task", "physics")  # of a flat state, in this order
