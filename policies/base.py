"""The policy protocol and the one interaction loop of the project."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import gymnasium as gym
import numpy as np

from envs.types import ACTION_DIM, Episode, Obs, check_action


class Policy(Protocol):
    """Anything that acts. Its state is passed in and out, so one policy can serve many robots.

    A chunk holds M control steps; the loop executes the first `execute` of them before it asks again.
    A state may carry `late`, the number of its decisions so far that passed their deadline, and `detour`, how many
    control steps from the episode's start did not serve the task.
    """

    execute: int

    def init(self, instruction: str, seed: int = 0) -> Any:
        """The state at the start of an episode."""

    def act(self, obs: Obs, state: Any) -> tuple[np.ndarray, Any]:
        """obs of one robot (no batch dimension), state -> chunk (M, A) in [-1, 1], new state."""


@dataclass(frozen=True)
class Step:
    """One control step, as the loop's `on_step` sees it.

    index: from 0. decided: a new chunk was asked for at this step. obs: before it. action: (A,) f32, executed.
    state: the policy's, after its last decision. info: the environment's, after the step.
    """

    index: int
    decided: bool
    obs: Obs
    action: np.ndarray
    state: Any
    info: dict[str, Any]


@dataclass(frozen=True)
class Rollout:
    """An episode and how it came about.

    decision_seconds: (D,) f64, wall-clock time of each call of `act`.
    late_decisions: how many of them passed their deadline, by the policy's own count.
    score: the environment's measures at the end.
    """

    episode: Episode
    decision_seconds: np.ndarray
    late_decisions: int
    score: dict[str, float]


def rollout(
    env: gym.Env,
    policy: Policy,
    seed: int,
    expert: Policy | None = None,
    on_step: Callable[[Step], None] | None = None,
) -> Rollout:
    """Run one episode to its end (success or the horizon): the only loop in which a policy meets an environment.

    A detour takes nothing of the time for the task: the episode ends as many control steps after the horizon. An
    episode that is cut off just as its task begins would say that nothing can come of where it stands.

    env: observations {"main", "wrist", "state"}; `info` with instruction, success, progress and subtask, and with
        scene and score where it is simulated. seed: of the episode and of the policy.
    expert: asked at every control step what it would do; its answers become `Episode.expert`, NaN without it.
    Raises ValueError, naming the control step, for a bad observation of the environment or action of the policy.
    """
    raw, info = env.reset(seed=seed)
    instruction = info["instruction"]
    state = policy.init(instruction, seed)
    expert_state = expert.init(instruction, seed) if expert else None

    observations, infos = [_obs(raw, info, step=0)], [info]
    actions, labels, rewards, seconds = [], [], [], []
    pending: list[np.ndarray] = []  # control steps of the last chunk that are still to be executed
    terminated, overtime = False, 0
    while not terminated and overtime <= getattr(state, "detour", 0):
        step, obs = len(actions), observations[-1]
        decided = not pending
        if decided:
            began = time.perf_counter()
            chunk, state = policy.act(obs, state)
            seconds.append(time.perf_counter() - began)
            pending = list(_checked(chunk, policy, step)[: policy.execute])
        if expert:
            label, expert_state = expert.act(obs, expert_state)
            labels.append(_checked(label, expert, step)[0])
        action = pending.pop(0)
        raw, reward, terminated, truncated, info = env.step(action)
        overtime += truncated
        actions.append(action)
        rewards.append(reward)
        observations.append(_obs(raw, info, step=step + 1))
        infos.append(info)
        if on_step:
            on_step(Step(step, decided, obs, action, state, info))

    names = tuple(dict.fromkeys(i["subtask"] for i in infos[:-1]))  # in the order in which they came up
    scenes = [obs.scene for obs in observations]
    count = len(observations)
    episode = Episode(
        main=np.stack([obs.main for obs in observations]),
        wrist=np.stack([obs.wrist for obs in observations]),
        state=np.stack([obs.state for obs in observations]).astype(np.float32),
        action=np.stack(actions),
        expert=np.stack(labels) if labels else np.full((count - 1, ACTION_DIM), np.nan, np.float32),
        reward=np.array(rewards, np.float32),
        success=np.array([i["success"] for i in infos], bool),
        progress=np.array([i["progress"] for i in infos], np.float32),
        keypoints=np.stack([s.keypoints if s else np.full((4, 3), np.nan) for s in scenes]).astype(np.float32),
        held=np.array([s.held if s else -1 for s in scenes], np.int8),
        subtask=np.array([names.index(i["subtask"]) for i in infos[:-1]], np.int16),
        subtask_names=names,
        instruction=instruction,
        env_id=env.spec.id if env.spec else type(env.unwrapped).__name__,
        seed=seed,
        split=getattr(env.unwrapped, "split", "train"),
        detour=min(int(getattr(state, "detour", 0)), len(actions)),
    )
    score = {name: float(value) for name, value in infos[-1].get("score", {}).items()}
    return Rollout(episode, np.array(seconds), int(getattr(state, "late", 0)), score)


def _obs(raw: dict[str, np.ndarray], info: dict[str, Any], step: int) -> Obs:
    try:
        return Obs(raw["main"], raw["wrist"], raw["state"], info.get("scene")).check()
    except ValueError as error:
        raise ValueError(f"the environment's {error} (control step {step})") from error


def _checked(chunk: np.ndarray, policy: Policy, step: int) -> np.ndarray:
    """The chunk (M, A), clipped to [-1, 1]; ValueError names the policy and the control step."""
    name = type(policy).__name__
    try:
        chunk = check_action(chunk)
    except ValueError as error:
        raise ValueError(f"policy {name} failed at control step {step}: {error}") from error
    if chunk.ndim != 2 or len(chunk) < policy.execute:
        raise ValueError(
            f"policy {name} failed at control step {step}: a chunk must be (M, {ACTION_DIM}) with M at least "
            f"execute={policy.execute}, got {chunk.shape}"
        )
    return chunk
