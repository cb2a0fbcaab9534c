"""Imagined environments from settings: where their robots begin."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import gymnasium
from gymnasium.vector import AutoresetMode, VectorEnv

from envs.types import Observation
from world_model.imagined_env import EpisodeStarts, SceneIn, Start, Starts

if TYPE_CHECKING:
    from agent.build import EnvConfig
    from envs.adapter import Adapter


class ResetStarts:
    """The first observations of an environment: of a seed what it shows after a reset with it."""

    def __init__(self, env: Adapter) -> None:
        self.env = env
        weakref.finalize(self, env.close)

    def __call__(self, seed: int) -> Start:
        """The start of a seed."""
        raw, info = self.env.reset(seed=seed)
        observation = Observation.of(raw, self.env.robot_spec)
        return Start(observation, info["instruction"], self.env.env_id, self.env.split, seed)


def imagined_envs(config: EnvConfig, robots: int, make_env: Callable[[EnvConfig], Adapter]) -> VectorEnv:
    """Several imagined robots for the loop. ValueError where they cannot begin as the settings say."""
    options = {**config.options, "max_steps": config.max_steps} if config.max_steps else dict(config.options)
    try:
        starts = _starts(config, make_env)
        return gymnasium.make_vec(
            config.id, robots, starts=starts, scene_in=scene_in(starts(0).env_id),
            autoreset_mode=AutoresetMode.DISABLED, **options,
        )  # fmt: skip
    except (gymnasium.error.Error, ImportError, TypeError) as error:
        raise ValueError(f"cannot make environment {config.id}: {error}") from error


def _starts(config: EnvConfig, make_env: Callable[[EnvConfig], Adapter]) -> Starts:
    """Folders where all are folders, else the environment with that id."""
    folders = (config.starts,) if isinstance(config.starts, str) else tuple(config.starts)
    name = folders[0].rpartition(":")[2]
    if len(folders) == 1 and not Path(folders[0]).exists() and (":" in folders[0] or name in gymnasium.registry):
        return ResetStarts(make_env(replace(config, id=folders[0], options={}, starts=None)))
    return EpisodeStarts(folders)


def scene_in(env_id: str) -> SceneIn | None:
    """How the environment with this id turns what is believed into what its expert reads; None where it does not
    say."""
    found = gymnasium.registry.get(env_id)
    if found is None or found.entry_point is None:
        return None
    made_by = found.entry_point
    made_by = made_by if callable(made_by) else gymnasium.envs.registration.load_env_creator(made_by)
    return getattr(made_by, "scene_in", None)
