"""FoldHalf and Lift in MuJoCo for LeRobot: `lerobot-eval` finds `make_env` in this file (EnvHub).

    from lerobot.envs import make_env
    make_env("USER/REPO:agent/hub/env.py", n_envs=4, trust_remote_code=True)

Observations are LeRobot's `pixels` (each camera's picture) and `agent_pos` (the robot's state), the instruction is
`task_description`, and where an episode ends `final_info` says `is_success`.
https://huggingface.co/docs/lerobot/envhub
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.vector import AsyncVectorEnv, SyncVectorEnv, VectorEnv

from agent.build import EnvConfig
from agent.build import make_env as make_one
from envs.types import Spec

TASKS = ("nextstate/FoldHalf-v0", "nextstate/Lift-v0")


def setting(cfg: Any, name: str, default: Any) -> Any:
    """Of a mapping or an object, which may have it."""
    return cfg.get(name, default) if isinstance(cfg, Mapping) else getattr(cfg, name, default)


def as_lerobot(raw: Mapping[str, Any], spec: Spec) -> dict[str, Any]:
    """An observation, or the space or the batch of them, under LeRobot's names."""
    return {"pixels": {camera.name: raw[camera.name] for camera in spec.cameras}, "agent_pos": raw["state"]}


def spaces_of(space: gym.spaces.Dict, spec: Spec) -> gym.spaces.Dict:
    """The space of what `as_lerobot` gives."""
    named = as_lerobot(space.spaces, spec)
    return gym.spaces.Dict(pixels=gym.spaces.Dict(named["pixels"]), agent_pos=named["agent_pos"])


class ForLeRobot(gym.Wrapper):
    """One robot of an environment behind the contract of `envs.adapter`."""

    def __init__(self, config: EnvConfig) -> None:
        super().__init__(make_one(config))
        self.task = self.task_description = self.env.instruction
        self._max_episode_steps, self._steps = self.env.max_steps, 0
        self.observation_space = spaces_of(self.env.observation_space, self.env.robot_spec)

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[dict, dict]:
        """LeRobot marks a new rollout by an option of its own, which no task knows."""
        known = {name: value for name, value in (options or {}).items() if not name.startswith("lerobot_")}
        raw, info = self.env.reset(seed=seed, options=known or None)
        self._steps = 0
        return as_lerobot(raw, self.env.robot_spec), {"is_success": bool(info["success"])}

    def step(self, action: np.ndarray) -> tuple[dict, float, bool, bool, dict]:
        """One control step."""
        raw, reward, terminated, truncated, said = self.env.step(action)
        self._steps += 1
        truncated = truncated or self._steps >= self._max_episode_steps
        info: dict[str, Any] = {"is_success": bool(said["success"])}
        if terminated or truncated:
            info["final_info"] = {"is_success": info["is_success"], "task": self.task}
        return as_lerobot(raw, self.env.robot_spec), reward, terminated, truncated, info


def make_env(n_envs: int = 1, use_async_envs: bool = False, cfg: Any = None) -> dict[str, dict[int, VectorEnv]]:
    """suite -> number of the task -> its environments.

    cfg: may say `tasks` (ids; those of `TASKS`), `split` (seen) and `options` of their constructors.
    """
    split, options = setting(cfg, "split", "seen"), dict(setting(cfg, "options", None) or {})
    # a forked process would share the rendering context
    kind = partial(AsyncVectorEnv, context="spawn") if use_async_envs else SyncVectorEnv
    tasks = [EnvConfig(id=f"envs:{task}", split=split, options=options) for task in setting(cfg, "tasks", TASKS)]
    return {"nextstate": {i: kind([partial(ForLeRobot, task)] * n_envs) for i, task in enumerate(tasks)}}
