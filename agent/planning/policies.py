"""World-model policies: from an instruction and what is seen to the next chunk, with or without search.

Both hold only weights and settings. What they remember of an episode is a frozen value, one a robot, that is passed
in and out, so one policy serves any number of robots, and a decision can be made again from its inputs.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch

from agent.planning.objective import Objective
from agent.planning.planner import Plan, Planner, PlannerConfig
from envs.types import Observation, Spec, check_action
from world_model import checkpoint
from world_model.model import WorldModel
from world_model.nn.device import choose_device
from world_model.tokens.text import TextTokenizer
from world_model.types import History


@dataclass(frozen=True)
class AgentState:
    """What is remembered of one robot within an episode.

    instruction: its ids.                   seed: of this episode's random choices.
    seen: the last observations, oldest first, one a decision, at most M / execute + 1 of them.
    done: what was executed between them, (execute, A) each.
    plan: the last one (None without search).
    decisions, late: how many were made, and how many of them past the deadline.
    """

    instruction: tuple[int, ...]
    seed: int
    seen: tuple[Observation, ...] = ()
    done: tuple[np.ndarray, ...] = ()
    plan: Plan | None = None
    decisions: int = 0
    late: int = 0


@dataclass(frozen=True)
class ModelPolicy:
    """Acts by the model's own proposed chunk, without search.

    text: encodes an instruction.           known: the instructions that the model was trained on.
    execute: control steps of a chunk that the loop carries out before it asks again; divides `chunk`.
    discount: of a control step, the one that the model's value was trained with; None where there is no checkpoint.
    """

    model: WorldModel
    text: TextTokenizer
    known: tuple[str, ...]
    execute: int = 2
    chunk: int = 8
    discount: float | None = None
    batched: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.execute < 1 or self.chunk % self.execute:
            raise ValueError(f"`execute` must divide the chunk of {self.chunk} control steps, got {self.execute}")

    @classmethod
    def load(
        cls, folder: Path | str, execute: int = 2, device: str = "auto", spec: Spec | None = None
    ) -> ModelPolicy:
        """From a checkpoint folder. CheckpointError names the file and what to do.

        spec: of the robot that it is to act for; ValueError names what differs from the one it was trained on.
        """
        loaded = checkpoint.load(Path(folder), choose_device(device))
        if spec is not None:
            loaded.spec.require(spec, f"checkpoint {folder}", "the environment")
        meta, chunk = loaded.meta, loaded.actions.chunk
        return cls(loaded.model, loaded.text, tuple(meta["instructions"]), execute, chunk, meta["discount"])

    def init(self, instruction: str, seed: int = 0) -> AgentState:
        """The state before the first observation. Warns when the model was never trained on the instruction."""
        if instruction not in self.known:
            warnings.warn(
                f"the model was never trained on {instruction!r}; it may do anything. "
                f"It knows: {', '.join(repr(known) for known in self.known)}",
                stacklevel=2,
            )
        return AgentState(tuple(self.text.encode(instruction)), seed)

    @torch.no_grad()  # and not inference_mode, whose tensors no compiled search could take
    def act(
        self, observations: Observation, states: Sequence[AgentState]
    ) -> tuple[np.ndarray, list[AgentState]]:
        """observations of B robots -> their likeliest chunks (B, M, A) f32 in the robot's units, new states.

        ValueError for a malformed or NaN observation.
        """
        states = self.see(observations, states)
        cache = self.model.prefill([self.history(state) for state in states])
        chunks = self.model.propose(cache, 1, 0.0, [decision_seed(state) for state in states])[:, 0]
        return self.do(chunks.cpu().numpy(), states)

    # The three parts of acting that do not depend on where the chunk comes from.

    def see(self, observations: Observation, states: Sequence[AgentState]) -> list[AgentState]:
        """The states with these observations added and whatever is too old dropped."""
        observations.check(self.model.spec)
        if observations.state.ndim != 2 or len(observations.state) != len(states):
            raise ValueError(
                f"a policy acts for B robots, whose observations lead with B: got {len(states)} states and "
                f"observations of shape {observations.state.shape[:-1]}"
            )
        keep = self.chunk // self.execute
        return [
            replace(state, seen=(*state.seen, observations[i])[-keep - 1 :], done=state.done[-keep:])
            for i, state in enumerate(states)
        ]

    def history(self, state: AgentState) -> History:
        """What the model reads of a state that has just seen: now, and one chunk ago with what was done since.

        In the first M control steps the longest other model step that the episode is old enough for, or only now.
        """
        now = (state.seen[-1], None)
        ago = [n // self.execute for n in self.model.strides if n % self.execute == 0]  # decisions, in order
        ago = [decisions for decisions in ago if decisions < len(state.seen)]
        if not ago:
            return History(state.instruction, (now,))
        before = (state.seen[-ago[-1] - 1], np.concatenate(state.done[-ago[-1] :]))
        return History(state.instruction, (before, now))

    def do(self, chunks: np.ndarray, states: Sequence[AgentState]) -> tuple[np.ndarray, list[AgentState]]:
        """The chunks (B, M, A), checked and clipped, and the states that know what the loop will execute of them."""
        chunks = check_action(chunks, self.model.spec)
        return chunks, [
            replace(state, done=(*state.done, chunk[: self.execute]), decisions=state.decisions + 1)
            for chunk, state in zip(chunks, states, strict=True)
        ]


@dataclass(frozen=True)
class PlanningPolicy:
    """Acts by search in the model's imagination, starting from what `acting` would do."""

    acting: ModelPolicy
    planner: Planner
    batched: ClassVar[bool] = True

    def __post_init__(self) -> None:
        budget = self.planner.config
        if budget.imagine is None:
            return
        self.acting.model.layout.require_strides([budget.imagine])
        if budget.imagine * budget.horizon < self.execute:
            raise ValueError(
                f"planner `imagine` looks {budget.imagine * budget.horizon} control steps ahead, "
                f"of {self.execute} that are executed: set `execute` no larger"
            )

    @property
    def execute(self) -> int:
        return self.acting.execute

    @classmethod
    def load(
        cls, folder: Path | str, execute: int = 2, device: str = "auto", planner: Planner | None = None,
        spec: Spec | None = None,
    ) -> PlanningPolicy:  # fmt: skip
        """From a checkpoint folder, with the default budget unless a planner is given. spec: see ModelPolicy.

        ValueError where our objective has another discount than the checkpoint.
        """
        acting = ModelPolicy.load(folder, execute, device, spec)
        planner = planner or Planner(PlannerConfig(), Objective())
        if isinstance(planner.objective, Objective):
            planner = replace(planner, objective=planner.objective.for_value(acting.discount, f"checkpoint {folder}"))
        return cls(acting, planner)

    def init(self, instruction: str, seed: int = 0) -> AgentState:
        """The state before the first observation; see ModelPolicy."""
        return self.acting.init(instruction, seed)

    @torch.no_grad()
    def act(
        self, observations: Observation, states: Sequence[AgentState]
    ) -> tuple[np.ndarray, list[AgentState]]:
        """observations of B robots -> the best chunks found (B, M, A) f32, new states, whose `plan` tells what was
        considered."""
        model, states = self.acting.model, self.acting.see(observations, states)
        cache = model.prefill([self.acting.history(state) for state in states])
        generators, last = [decision_seed(state) for state in states], [state.plan for state in states]
        plans = self.planner.plan(model, cache, generators, last, self.execute)
        chunks, states = self.acting.do(np.stack([plan.chunk for plan in plans]), states)
        return chunks, [
            replace(state, plan=plan, late=state.late + plan.late) for state, plan in zip(states, plans, strict=True)
        ]


def decision_seed(state: AgentState) -> torch.Generator:
    """A generator for one decision: a function of the episode's seed and how many decisions came before."""
    mixed = np.random.SeedSequence([state.seed, state.decisions]).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(mixed))
