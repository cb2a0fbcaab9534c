"""The agent: from an instruction and what it sees to the next chunk, with or without search.

Both policies hold only weights and settings. What they remember of an episode is a frozen value that is passed
in and out, so one policy serves any number of robots, and a decision can be made again from its inputs.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch

from agent.planning.objective import Objective
from agent.planning.planner import Plan, Planner, PlannerConfig
from envs.types import Obs, check_action
from world_model import checkpoint
from world_model.model import History, WorldModel
from world_model.nn.device import choose_device
from world_model.tokens.text import TextTokenizer


@dataclass(frozen=True)
class AgentState:
    """What is remembered within an episode.

    instruction: its ids.                   seed: of this episode's random choices.
    seen: the last observations, oldest first, one a decision, at most M / execute + 1 of them.
    done: what was executed between them, (execute, A) each.
    plan: the last one (None without search).
    decisions, late: how many were made, and how many of them past the deadline.
    """

    instruction: tuple[int, ...]
    seed: int
    seen: tuple[Obs, ...] = ()
    done: tuple[np.ndarray, ...] = ()
    plan: Plan | None = None
    decisions: int = 0
    late: int = 0


@dataclass(frozen=True)
class ModelPolicy:
    """Acts by the model's own proposed chunk, without search.

    text: encodes an instruction.           known: the instructions that the model was trained on.
    execute: control steps of a chunk that the loop carries out before it asks again; divides `chunk`.
    """

    model: WorldModel
    text: TextTokenizer
    known: tuple[str, ...]
    execute: int = 2
    chunk: int = 8

    def __post_init__(self) -> None:
        if self.execute < 1 or self.chunk % self.execute:
            raise ValueError(f"`execute` must divide the chunk of {self.chunk} control steps, got {self.execute}")

    @classmethod
    def load(cls, folder: Path | str, execute: int = 2, device: str = "auto") -> ModelPolicy:
        """From a checkpoint folder. Raises CheckpointError, which names the file and what to do."""
        loaded = checkpoint.load(Path(folder), choose_device(device))
        return cls(loaded.model, loaded.text, tuple(loaded.meta["instructions"]), execute, loaded.actions.chunk)

    def init(self, instruction: str, seed: int = 0) -> AgentState:
        """The state before the first observation. Warns when the model was never trained on the instruction."""
        if instruction not in self.known:
            warnings.warn(
                f"the model was never trained on {instruction!r}; it may do anything. "
                f"It knows: {', '.join(repr(known) for known in self.known)}",
                stacklevel=2,
            )
        return AgentState(tuple(self.text.encode(instruction)), seed)

    @torch.inference_mode()
    def act(self, obs: Obs, state: AgentState) -> tuple[np.ndarray, AgentState]:
        """-> the likeliest chunk (M, A) f32 in [-1, 1], new state. ValueError for a malformed or NaN observation."""
        state = self.see(obs, state)
        cache = self.model.prefill(self.history(state))
        chunk = np.asarray(torch.as_tensor(self.model.propose(cache, 1, 0.0)[0]).cpu(), dtype=np.float32)
        return self.do(chunk, state)

    # The three parts of acting that do not depend on where the chunk comes from.

    def see(self, obs: Obs, state: AgentState) -> AgentState:
        """The state with this observation added and whatever is too old dropped."""
        obs = replace(obs.check(), scene=None)  # nothing privileged is kept
        if obs.state.ndim != 1:
            raise ValueError(f"a policy acts for one robot; got observations of shape {obs.state.shape[:-1]}")
        keep = self.chunk // self.execute
        return replace(state, seen=(*state.seen, obs)[-keep - 1 :], done=state.done[-keep:])

    def history(self, state: AgentState) -> History:
        """What the model reads of a state that has just seen: now, and one chunk ago with what was done since.

        In the first M control steps only now.
        """
        now = (state.seen[-1], None)
        if len(state.seen) <= self.chunk // self.execute:
            return History(state.instruction, (now,))
        return History(state.instruction, ((state.seen[0], np.concatenate(state.done)), now))

    def do(self, chunk: np.ndarray, state: AgentState) -> tuple[np.ndarray, AgentState]:
        """The chunk, checked and clipped, and the state that knows what the loop will execute of it."""
        chunk = check_action(chunk)
        return chunk, replace(state, done=(*state.done, chunk[: self.execute]), decisions=state.decisions + 1)


@dataclass(frozen=True)
class PlanningPolicy:
    """Acts by search in the model's imagination, starting from what `acting` would do."""

    acting: ModelPolicy
    planner: Planner = field(default_factory=lambda: Planner(PlannerConfig(), Objective()))

    @property
    def execute(self) -> int:
        return self.acting.execute

    @classmethod
    def load(
        cls, folder: Path | str, execute: int = 2, device: str = "auto", planner: Planner | None = None
    ) -> PlanningPolicy:
        """From a checkpoint folder, with the default budget unless a planner is given."""
        return cls(ModelPolicy.load(folder, execute, device), planner or Planner(PlannerConfig(), Objective()))

    def init(self, instruction: str, seed: int = 0) -> AgentState:
        """The state before the first observation; see ModelPolicy."""
        return self.acting.init(instruction, seed)

    @torch.inference_mode()
    def act(self, obs: Obs, state: AgentState) -> tuple[np.ndarray, AgentState]:
        """-> the best chunk found (M, A) f32, new state, whose `plan` tells what was considered."""
        state = self.acting.see(obs, state)
        cache = self.acting.model.prefill(self.acting.history(state))
        plan = self.planner.plan(self.acting.model, cache, decision_seed(state), state.plan, self.execute)
        chunk, state = self.acting.do(plan.chunk, state)
        return chunk, replace(state, plan=plan, late=state.late + plan.late)


def decision_seed(state: AgentState) -> torch.Generator:
    """A generator for one decision: a function of the episode's seed and how many decisions came before."""
    mixed = np.random.SeedSequence([state.seed, state.decisions]).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(mixed))
