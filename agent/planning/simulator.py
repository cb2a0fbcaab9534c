"""The planner with the true world as its model: what search could gain at best, and what simulating costs.

Candidates are run in the environment itself, which is put back bit for bit afterwards. The first proposal is what
the scripted expert does from here, in closed loop; the others are noise around it. So the oracle reads the
simulator's truth twice over, and is a bound to compare with, not an agent.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor

from agent.planning.agent import AgentState, decision_seed
from agent.planning.objective import Objective
from agent.planning.planner import Planner, PlannerConfig, dct_basis
from envs.types import Obs, check_action
from policies.base import Policy

# A cloth simulates at about 60 control steps a second and core, so every candidate costs an eighth of a second.
ORACLE_BUDGET = PlannerConfig(candidates=4, iterations=1, proposals=1.0, noise=0.15, deadline_s=10.0)


@dataclass(frozen=True)
class Situation:
    """The simulator's `cache`: its saved state, and what the expert sees in it."""

    saved: Any
    obs: Obs


@dataclass(frozen=True)
class Simulated:
    """What really follows: the fields of an `Imagination` that an objective reads, (N, H) each.

    value: the task's progress in [0, 1] (the true steps until success would need the episode's end).
    """

    value: Tensor
    success: Tensor
    uncertainty: Tensor


@dataclass(frozen=True)
class SimulatorModel:
    """A gymnasium environment that can `save_state`, `load_state` and `advance`, behind the world model's protocol.

    expert: a policy that proposes, without memory; it reads the scene and no frame.
    """

    env: gym.Env
    expert: Policy
    chunk: int = 8
    noise: float = 0.15
    coefs: tuple[int, ...] = (4, 4, 4, 0, 0, 2)

    def prefill(self, obs: Obs) -> Situation:
        """Save the state that the environment is in now; obs is what it shows, with its scene."""
        return Situation(self.env.unwrapped.save_state(), obs)

    def propose(self, cache: Situation, n: int, temperature: float, generator: torch.Generator | None) -> Tensor:
        """-> (n, M, A): the expert's next M steps, then smooth noise around them. The environment is put back."""
        actions, obs, state = [], cache.obs, self.expert.init("", 0)
        self.env.unwrapped.load_state(cache.saved)
        while len(actions) < self.chunk:
            chunk, state = self.expert.act(obs, state)
            for action in chunk[: self.chunk - len(actions)]:
                actions.append(check_action(action))
                *_, info = self.env.unwrapped.advance(actions[-1])
                obs = replace(obs, scene=info["scene"])  # all that an expert reads; nothing is drawn for it
        self.env.unwrapped.load_state(cache.saved)

        first = torch.from_numpy(np.stack(actions)).float().expand(n, -1, -1)  # (n, M, A)
        free = (torch.arange(self.chunk)[:, None] < torch.tensor(self.coefs)).float()
        noise = torch.randn(n, self.chunk, len(self.coefs), generator=generator) * self.noise * temperature * free
        noise[0] = 0.0
        pose = (first[..., :-1] + dct_basis(self.chunk).T @ noise).clamp(-1, 1)
        return torch.cat([pose, first[..., -1:]], dim=-1)

    def imagine(self, cache: Situation, actions: Tensor, decode: str = "parallel", follow: int = 0) -> Simulated:
        """actions (N, H, M, A) -> what follows, by doing it; nothing is decoded. The environment is put back.

        ValueError for `follow`: the world does not go on by itself.
        """
        if follow:
            raise ValueError("policy=oracle cannot look further ahead than it searches: set planner.follow=0")
        num, horizon = actions.shape[:2]
        value, success = torch.zeros(num, horizon), torch.zeros(num, horizon)
        try:
            for row, future in enumerate(actions.numpy()):
                self.env.unwrapped.load_state(cache.saved)
                done = False
                for h, chunk in enumerate(future):
                    for action in chunk:
                        if done:  # a finished task stays finished
                            break
                        _, done, _, info = self.env.unwrapped.advance(action)
                    value[row, h], success[row, h] = info["progress"], float(info["success"])
        finally:
            self.env.unwrapped.load_state(cache.saved)
        return Simulated(value, success, torch.zeros_like(value))


@dataclass(frozen=True)
class OraclePolicy:
    """Acts by search in the simulator. It must be given the very environment that it acts in."""

    model: SimulatorModel
    planner: Planner
    execute: int = 2

    @classmethod
    def of(cls, env: gym.Env, expert: Policy, execute: int = 2, planner: Planner | None = None) -> OraclePolicy:
        """The oracle of an environment and its expert; with a small budget unless a planner is given."""
        return cls(SimulatorModel(env, expert), planner or Planner(ORACLE_BUDGET, Objective()), execute)

    def init(self, instruction: str, seed: int = 0) -> AgentState:
        """The state before the first observation. The instruction is not read: the environment knows its task."""
        return AgentState((), seed)

    def act(self, obs: Obs, state: AgentState) -> tuple[np.ndarray, AgentState]:
        """obs: what the environment shows now, with its scene -> chunk (M, A), new state."""
        if obs.scene is None:
            raise ValueError("the oracle needs the simulator's scene in its observations")
        situation = self.model.prefill(obs.check())
        plan = self.planner.plan(self.model, situation, decision_seed(state), state.plan, self.execute)
        after = replace(state, plan=plan, decisions=state.decisions + 1, late=state.late + plan.late)
        return plan.chunk, after
