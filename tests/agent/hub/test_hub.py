"""Environments as LeRobot's EnvHub takes them: what its evaluation loop asks of them, in its order."""

import importlib.util
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import torch
from gymnasium.vector import VectorEnv

from policies.adapters.lerobot import LeRobotPolicy
from policies.exploration import RandomPolicy
from tests.reach import Ahead

HUB = Path(__file__).parents[3] / "agent" / "hub"


def loaded(file: str):
    """As LeRobot loads it: a file, wherever it lies."""
    spec = importlib.util.spec_from_file_location("hub_env", HUB / file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def preprocessed(observation: dict) -> dict:
    """What LeRobot makes of an observation, by the names that it knows."""
    images = {f"observation.images.{name}": image for name, image in observation["pixels"].items()}
    assert all(image.dtype == np.uint8 and image.ndim == 4 for image in images.values())
    pictures = {name: torch.from_numpy(image).permute(0, 3, 1, 2).float() / 255 for name, image in images.items()}
    return {**pictures, "observation.state": torch.from_numpy(observation["agent_pos"]).float()}


def evaluated(envs: VectorEnv, policy: LeRobotPolicy, seeds: list[int]) -> tuple[np.ndarray, int]:
    """Which of the robots succeed, and the steps until the last is done; in LeRobot's order of calls."""
    policy.reset()
    observation, _ = envs.reset(seed=seeds, options={"lerobot_new_rollout": True})
    done, found, steps = np.zeros(len(seeds), bool), np.zeros(len(seeds), bool), 0
    while not done.all() and steps < envs.call("_max_episode_steps")[0]:
        batch = {**preprocessed(observation), "task": list(envs.call("task_description"))}
        action = policy.select_action(batch).numpy()
        observation, _, terminated, truncated, info = envs.step(action)
        if "final_info" in info:
            found |= np.array(info["final_info"]["is_success"], bool) & ~done
        done |= terminated | truncated
        steps += 1
    return found, steps


@pytest.mark.parametrize("file", ["env.py", "imagined.py"])
def test_lerobots_loop_drives_them(file, over_the_table, untrained):
    """Catches names that LeRobot does not look for, an episode that never ends, and success that it cannot find."""
    cfg = {"tasks": [over_the_table.id], "checkpoint": str(untrained)}
    ((suite, made),) = loaded(file).make_env(n_envs=2, cfg=cfg).items()
    assert suite.startswith("nextstate") and list(made) == [0]
    with closing(made[0]) as envs:
        spec = envs.get_attr("robot_spec")[0]
        assert envs.num_envs == 2 and envs.call("task")[0] == "reach"
        found, steps = evaluated(envs, LeRobotPolicy(RandomPolicy(spec, execute=4), spec), [3, 4])
        assert found.shape == (2,) and 0 < steps <= envs.call("_max_episode_steps")[0]
        first, _ = envs.reset(seed=[3, 4])
        assert envs.observation_space.contains(first)
        again, _ = envs.reset(seed=[3, 4])
        assert np.array_equal(first["agent_pos"], again["agent_pos"])


def test_success_is_found(over_the_table):
    """Catches a success that is told a step late, when the environment has begun anew."""
    made = loaded("env.py").make_env(n_envs=2, cfg={"tasks": [over_the_table.id]})["nextstate"][0]
    with closing(made) as envs:
        found, steps = evaluated(envs, LeRobotPolicy(Ahead(), envs.get_attr("robot_spec")[0]), [3, 4])
        assert found.all() and steps < 8
