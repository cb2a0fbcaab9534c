"""The simulator of recorded episodes, as robomimic wants to know it: arguments, model and states."""

from __future__ import annotations

import json
from contextlib import ExitStack, closing
from types import TracebackType
from typing import TYPE_CHECKING

import numpy as np

from envs.types import Episode

if TYPE_CHECKING:
    from envs.adapter import Adapter
    from envs.data.formats.robomimic_writer import Simulation

ROBOSUITE = {"nextstate/Lift-v0": "Lift"}  # of our environments, those that robosuite has too, and their name there


class Simulations:
    """Tells the simulation of an episode, None where it kept no states or is of no environment of ours.

    Used within `with`: the environments stay open, one of each id.
    """

    def __init__(self) -> None:
        self._opened, self._envs = ExitStack(), {}

    def __enter__(self) -> Simulations:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self._opened.close()

    def __call__(self, episode: Episode) -> Simulation | None:
        if not (episode.sim_state.size and episode.env_id.startswith("nextstate/")):
            return None
        from envs.data.formats.robomimic_writer import GYM, Simulation

        world = self._env(episode.env_id).unwrapped
        world.reset(seed=episode.seed, options={"split": episode.split})
        name, hz = ROBOSUITE.get(episode.env_id), episode.spec.control_hz
        args = {"env_name": episode.env_id, "type": GYM, "env_kwargs": {"control_freq": hz}}
        if name:
            args = self._robosuite(name, hz)
        states = np.stack([world.motion_state(flat) for flat in episode.sim_state])
        return Simulation(args, world.model_xml(), states)

    def _env(self, env_id: str) -> Adapter:
        if env_id not in self._envs:
            from agent.build import EnvConfig, make_env  # and MuJoCo, which other formats do without

            self._envs[env_id] = self._opened.enter_context(closing(make_env(EnvConfig(id=env_id, split="train"))))
        return self._envs[env_id]

    def _robosuite(self, name: str, hz: float) -> dict:
        """What robosuite makes the same world from."""
        import robosuite

        from envs.sim.backend import robot_options

        options = json.loads(json.dumps(robot_options(hz)))
        return {"env_name": name, "env_version": robosuite.__version__, "type": 1, "env_kwargs": options}
