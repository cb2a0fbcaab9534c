"""The same tasks in a checkpoint's imagination for LeRobot: `make_env` as in `env.py`, from the same starts.

    make_env("USER/REPO:agent/hub/imagined.py", n_envs=16, trust_remote_code=True)

Success is what the model reads in what it imagines; `agent.agree` says how far to trust it.
"""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv, VectorWrapper
from gymnasium.vector.utils import batch_space

from agent.build import EnvConfig
from agent.build import make_env as make_one
from agent.evaluation.starts import ResetStarts, scene_in
from agent.hub.env import TASKS, as_lerobot, setting, spaces_of


class ForLeRobot(VectorWrapper):
    """All robots of an imagined environment."""

    def __init__(self, envs: VectorEnv) -> None:
        super().__init__(envs)
        self.robot_spec = envs.get_attr("robot_spec")[0]
        self.single_observation_space = spaces_of(envs.single_observation_space, self.robot_spec)
        self.observation_space = batch_space(self.single_observation_space, self.num_envs)

    def reset(self, *, seed: Any = None, options: dict | None = None) -> tuple[dict, dict]:
        """LeRobot marks a new rollout by an option of its own."""
        known = {name: value for name, value in (options or {}).items() if not name.startswith("lerobot_")}
        raw, info = self.env.reset(seed=seed, options=known or None)
        return as_lerobot(raw, self.robot_spec), {"is_success": info["success"].astype(bool)}

    def step(self, actions: np.ndarray) -> tuple[dict, np.ndarray, np.ndarray, np.ndarray, dict]:
        """One control step of every robot."""
        raw, rewards, terminated, truncated, said = self.env.step(actions)
        success, over = said["success"].astype(bool), terminated | truncated
        info: dict[str, Any] = {"is_success": success}
        if over.any():
            info |= {"final_info": {"is_success": success & over, "_is_success": over}, "_final_info": over}
        return as_lerobot(raw, self.robot_spec), rewards, terminated, truncated, info

    def call(self, name: str, *args: Any, **kwargs: Any) -> tuple[Any, ...]:
        """LeRobot asks each robot for its sentence and its time."""
        theirs = {"task": "instruction", "task_description": "instruction", "_max_episode_steps": "max_steps"}
        return self.env.call(theirs.get(name, name), *args, **kwargs)

    def get_attr(self, name: str) -> tuple[Any, ...]:
        """An attribute, the same of every robot."""
        return self.call(name)


def make_env(n_envs: int = 1, use_async_envs: bool = False, cfg: Any = None) -> dict[str, dict[int, VectorEnv]]:
    """As `agent.hub.env.make_env`. All robots are imagined in one pass, so `use_async_envs` has nothing to do.

    cfg: may also say `checkpoint` (checkpoints/nextstate-s), `look` (control steps between two looks; the longest that
    it was taught) and `device`.
    """
    split, options = setting(cfg, "split", "seen"), dict(setting(cfg, "options", None) or {})
    made = {}
    for i, task in enumerate(setting(cfg, "tasks", TASKS)):
        starts = ResetStarts(make_one(EnvConfig(id=f"envs:{task}", split=split, options=options)))
        envs = gym.make_vec(
            "world_model:nextstate/Imagined-v0", n_envs, starts=starts, scene_in=scene_in(task),
            checkpoint=setting(cfg, "checkpoint", "checkpoints/nextstate-s"), look=setting(cfg, "look", None),
            device=setting(cfg, "device", "auto"), autoreset_mode=AutoresetMode.NEXT_STEP,
        )  # fmt: skip
        made[i] = ForLeRobot(envs)
    return {"nextstate_imagined": made}
