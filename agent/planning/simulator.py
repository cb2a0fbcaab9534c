"""The planner with the true world as its model: what search could gain at best, and what simulating costs.

Candidates are run in the environments themselves, which are put back bit for bit afterwards. The first proposal is
what the scripted expert does from here, in closed loop; the others are noise around it. So the oracle reads the
simulator's truth twice over, and is a bound to compare with, not an agent.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

import gymnasium as gym
import numpy as np
import torch
from gymnasium.vector import VectorEnv
from torch import Tensor

from agent.planning.candidates import ActionSpace
from agent.planning.objective import Objective
from agent.planning.planner import Plan, Planner, PlannerConfig
from agent.planning.policies import decision_seed
from envs.types import Observation, Scene, Spec, check_action

if TYPE_CHECKING:
    from policies.base import SinglePolicy

# A cloth simulates at about 60 control steps a second and core, so every candidate costs an eighth of a second.
ORACLE_BUDGET = PlannerConfig(candidates=4, iterations=1, proposals=1.0, noise=0.15, coefs=4)
ORACLE_DISCOUNT = 0.997  # of a control step, where the objective names none: progress has no discount of its own


@dataclass(frozen=True)
class Situation:
    """One row of the simulator's cache: the saved state of an environment, and what the expert sees and remembers.

    env: which of the model's environments.
    """

    saved: Any
    observation: Observation
    scene: Scene
    expert_state: Any = None
    env: int = 0


@dataclass(frozen=True)
class Simulated:
    """What really follows: the fields of an `Imagination` that an objective reads, (R, N, H) each.

    value: the task's progress in [0, 1] (the true steps until success would need the episode's end).
    """

    value: Tensor
    success: Tensor
    uncertainty: Tensor

    def __getitem__(self, robot: int) -> Simulated:
        """(N, H) of one robot."""
        return Simulated(self.value[robot], self.success[robot], self.uncertainty[robot])


@dataclass(frozen=True)
class SimulatorModel:
    """Environments that can `save_state`, `load_state` and `advance`, behind the world model's protocol.

    expert: proposes; a policy for one robot that reads the scene and no frame.
    noise: around its proposals, in shares of half a dimension's range.
    coefs: DCT coefficients that noise may change: one number, or one for each dimension that is no gripper.
    """

    envs: tuple[gym.Env, ...]
    expert: SinglePolicy
    chunk: int = 8
    noise: float = 0.15
    coefs: int | tuple[int, ...] = 4

    @property
    def spec(self) -> Spec:
        """Of the robot in each of them."""
        return self.envs[0].get_wrapper_attr("robot_spec")

    def prefill(
        self, observations: Observation, scenes: Sequence[Scene | None], expert_states: Sequence[Any]
    ) -> list[Situation]:
        """Save the states that R of the environments are in now. observations (R leading), scenes: what they show."""
        return [
            Situation(self.envs[env].unwrapped.save_state(), observations[i], scenes[i], expert_states[i], env)
            for i, env in enumerate(self._which(scenes))
        ]

    def propose(
        self, cache: Sequence[Situation], n: int, temperature: float, generators: Sequence[torch.Generator],
        joint: bool = False,
    ) -> Tensor:  # fmt: skip
        """-> (R, n, M, A): the expert's next M steps, then smooth noise around them. The environments are put back.

        joint says nothing here: an expert has no ids.
        """
        space = ActionSpace.of(self.spec, self.coefs, self.chunk)
        proposals = []
        for situation, generator in zip(cache, generators, strict=True):
            first = torch.from_numpy(self.advise(situation)).expand(n, -1, -1)  # (n, M, A)
            noise = torch.randn(n, self.chunk, len(space.poses), generator=generator) * self.noise * temperature
            noise = noise * space.free * space.half
            noise[0] = 0.0
            pose = space.clamp(first[..., space.poses] + space.basis.T @ noise)
            proposals.append(space.join(pose, first[..., space.grippers]))
        return torch.stack(proposals)

    def imagine(
        self, cache: Sequence[Situation], actions: Tensor, decode: str = "parallel", follow: int = 0,
        strides: int | None = None,
    ) -> Simulated:  # fmt: skip
        """actions (R, N, H, M, A) -> what follows, by doing it; nothing is decoded. The environments are put back.
        strides: control steps of each chunk that are done before the next; None for M.

        ValueError for `follow`: the world does not go on by itself.
        """
        if follow:
            raise ValueError("policy=oracle cannot look further ahead than it searches: set planner.follow=0")
        value, success = torch.zeros(actions.shape[:3]), torch.zeros(actions.shape[:3])
        for robot, situation in enumerate(cache):
            with self._restored(situation) as world:
                for row, future in enumerate(actions[robot].numpy()):
                    world.load_state(situation.saved)
                    done = False
                    for h, chunk in enumerate(future):
                        for action in chunk[:strides]:
                            if done:  # a finished task stays finished
                                break
                            _, done, _, info = world.advance(action)
                        value[robot, row, h], success[robot, row, h] = info["progress"], float(info["success"])
        return Simulated(value, success, torch.zeros_like(value))

    def advise(self, situation: Situation) -> np.ndarray:
        """(M, A) f32, what the expert does in the next M control steps, in closed loop."""
        pending: list[np.ndarray] = []

        def next_action(observation: Observation, state: Any, scene: Scene) -> tuple[np.ndarray, Any]:
            if not pending:
                chunk, state = self.expert.act(observation, state, scene)
                pending.extend(check_action(chunk, self.spec)[: self.expert.execute])
            return pending.pop(0), state

        return self._run(situation, next_action, self.chunk)[0]

    def watch(self, situation: Situation, actions: np.ndarray) -> Any:
        """The expert's state once actions (T, A) are done, by whomever: it sees what each of them leads to."""
        pending = list(actions)

        def next_action(observation: Observation, state: Any, scene: Scene) -> tuple[np.ndarray, Any]:
            _, state = self.expert.act(observation, state, scene)
            return pending.pop(0), state

        return self._run(situation, next_action, len(actions))[1]

    def _run(
        self, situation: Situation, next_action: Callable[[Observation, Any, Scene], tuple[np.ndarray, Any]], steps: int
    ) -> tuple[np.ndarray, Any]:
        """Actions (steps, A) that were done and the expert's state after them. Only the scene that it is shown moves
        on: nothing is drawn for it. The environment is put back."""
        # a copy: a state may hold a random generator, which goes on whenever the expert is asked
        actions, scene, state = [], situation.scene, copy.deepcopy(situation.expert_state)
        with self._restored(situation) as world:
            for _ in range(steps):
                action, state = next_action(situation.observation, state, scene)
                actions.append(action)
                *_, info = world.advance(action)
                scene = info["scene"]
        return np.stack(actions), state

    @contextmanager
    def _restored(self, situation: Situation) -> Iterator[Any]:
        """The environment, in this situation now and once more afterwards, whatever happens in between."""
        world = self.envs[situation.env].unwrapped
        world.load_state(situation.saved)
        try:
            yield world
        finally:
            world.load_state(situation.saved)

    def _which(self, scenes: Sequence[Scene | None]) -> list[int]:
        """Of which environment each scene is. The loop may ask for some of its robots only, and a scene tells which:
        no two environments show the same to the last bit unless they are in the same state."""
        if any(scene is None for scene in scenes):
            raise ValueError("the oracle needs the simulator's scene beside what is observed")
        if len(self.envs) == len(scenes) == 1:
            return [0]
        left, found = list(range(len(self.envs))), []
        for scene in scenes:
            env = next((i for i in left if self.envs[i].unwrapped.scene() == scene), None)
            if env is None:
                raise ValueError("none of the oracle's environments is in this scene: give it those that it acts in")
            left.remove(env)
            found.append(env)
        return found


@dataclass(frozen=True)
class OracleState:
    """What is remembered of one robot within an episode.

    seed: of this episode's random choices.    expert: the expert's own state, as if it had been asked all along.
    plan: the last one.                        decisions, late: how many, and how many of them past the deadline.
    """

    seed: int
    expert: Any
    plan: Plan | None = None
    decisions: int = 0
    late: int = 0


@dataclass(frozen=True)
class OraclePolicy:
    """Acts by search in the simulator. Its model holds the very environments that it acts in."""

    model: SimulatorModel
    planner: Planner
    execute: int = 2
    batched: ClassVar[bool] = True
    privileged: ClassVar[bool] = True

    @classmethod
    def of(
        cls, envs: VectorEnv, expert: SinglePolicy, execute: int = 2, planner: Planner | None = None
    ) -> OraclePolicy:
        """The oracle of a vector of environments and of their expert; with a small budget unless a planner is given.

        ValueError where the environments are in other processes.
        """
        planner = planner or Planner(ORACLE_BUDGET, Objective())
        if planner.config.coefs is None:
            raise ValueError("the simulator has no action tokenizer that names coefficients: set `planner.coefs`")
        parts = getattr(envs, "envs", None)
        if not parts:
            raise ValueError("the oracle simulates in the environments themselves: make them in this process")
        if isinstance(planner.objective, Objective) and planner.objective.discount is None:
            planner = replace(planner, objective=replace(planner.objective, discount=ORACLE_DISCOUNT))
        return cls(SimulatorModel(tuple(parts), expert, coefs=planner.config.coefs), planner, execute)

    def init(self, instruction: str, seed: int = 0) -> OracleState:
        """The state before the first observation."""
        return OracleState(seed, self.model.expert.init(instruction, seed))

    def act(
        self, observations: Observation, states: Sequence[OracleState], scenes: Sequence[Scene | None]
    ) -> tuple[np.ndarray, list[OracleState]]:
        """What B of the environments show now, with their scenes -> chunks (B, M, A), new states."""
        observations.check(self.model.spec)
        situations = self.model.prefill(observations, scenes, [state.expert for state in states])
        generators, last = [decision_seed(state) for state in states], [state.plan for state in states]
        plans = self.planner.plan(self.model, situations, generators, last, self.execute)
        after = [
            replace(
                state, plan=plan, decisions=state.decisions + 1, late=state.late + plan.late,
                expert=self.model.watch(situation, plan.chunk[: self.execute]),
            )
            for situation, plan, state in zip(situations, plans, states, strict=True)
        ]  # fmt: skip
        return np.stack([plan.chunk for plan in plans]), after
