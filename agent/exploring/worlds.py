"""The simulator and the dream, each to be used by one thread alone: in any moment of any time line."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from gymnasium.vector import AutoresetMode, VectorEnv

from agent.build import EnvConfig, make_envs
from agent.exploring.timeline import Real, Thought, Timeline
from agent.planning.candidates import in_shorter_steps
from agent.planning.planner import Plan
from agent.planning.policies import AgentState, ModelPolicy, PlanningPolicy
from envs.adapter import Adapter
from envs.sim.splits import SPLITS
from envs.types import Observation, Spec, check_action
from policies.rollout import make_episode
from world_model.checkpoint import Loaded
from world_model.imagined_env import DreamState, ImaginedEnv, Start
from world_model.types import Cache

FILM_PACE = 2  # control steps between the pictures of a candidate's film


@dataclass(frozen=True)
class Stepped:
    """What a few control steps of the simulator led to. observations: by the step's place, those that were asked for.
    picture: (size, size, 3) u8, after the last."""

    reals: list[Real]
    observations: dict[int, Observation]
    picture: np.ndarray


class RealWorld:
    """The simulator. Of one thread alone, as its rendering context is. size: pixels of the pictures for people."""

    def __init__(self, config: EnvConfig, size: int) -> None:
        self.config, self.size = config, size
        self.envs: VectorEnv = make_envs(config)
        self._here: tuple[Timeline, int] | None = None  # the moment that the simulator is in
        self._episode: Timeline | None = None  # whose start it was reset to last

    @property
    def env(self) -> Adapter:
        return self.envs.envs[0]

    @property
    def spec(self) -> Spec:
        return self.env.robot_spec

    @property
    def splits(self) -> tuple[str, ...]:
        """Those that can be asked for."""
        return SPLITS if self.env.own_splits else ("train", "seen")

    @property
    def has_looks(self) -> bool:
        """Whether an episode can be shown under other colours, light and cameras."""
        return hasattr(self.env.unwrapped, "looks")

    @property
    def restores(self) -> bool:
        """Whether it can be put back exactly, and draws only when asked; others replay and draw at every step."""
        world = self.env.unwrapped
        return all(hasattr(world, name) for name in ("save_state", "load_state", "advance", "observe"))

    def begin(self, timeline: Timeline) -> tuple[Real, Observation, np.ndarray]:
        """Start an episode. ValueError for a split or seed that the environment does not have."""
        real, observation = self._reset(timeline)
        give_back_memory()
        return real, observation, self.env.picture(self.size)

    def step(self, timeline: Timeline, at: int, actions: Sequence[np.ndarray], look: Sequence[int]) -> Stepped:
        """Go on from a moment. look: after which of the actions the robot's own cameras are wanted too."""
        self._go(timeline, at)
        self._here = None  # until all went well
        stepped = Stepped([], {}, np.zeros(0))
        for i, action in enumerate(actions):
            if self.restores:
                reward, _, _, info = self.env.unwrapped.advance(action)
                observation = self._look() if i in look else None
            else:
                raw, reward, _, _, info = self.env.step(action)
                observation = Observation.of(raw, self.spec).check(self.spec)
            stepped.reals.append(self._real(info, float(reward)))
            if observation is not None:
                stepped.observations[i] = observation
        self._here = (timeline, len(timeline.moments) + len(actions) - 1)  # where the caller puts them
        return replace(stepped, picture=self.env.picture(self.size))

    def picture(self, timeline: Timeline, at: int) -> np.ndarray:
        """(size, size, 3) u8 of any moment."""
        self._go(timeline, at)
        return self.env.picture(self.size)

    def observe(self, timeline: Timeline, moments: Sequence[int]) -> dict[int, Observation]:
        """What the robot sees at those of these moments of which nobody knows it yet."""
        found = {}
        for at in moments:
            if at not in timeline.observations:
                self._go(timeline, at)
                found[at] = self._look()
        return found

    def episode(self, timeline: Timeline, at: int, demonstration: bool) -> Any:
        """The way to a moment as an ordinary episode. All its observations must be known. demonstration: whether what a
        person did is also what should be done."""
        path = timeline.path(at)
        nobody = np.full(len(self.spec.action), np.nan, np.float32)
        labels = [moment.action if moment.by == "human" else nobody for moment in path[1:]] if demonstration else []
        return make_episode(
            Observation.stack([timeline.observations[moment.id] for moment in path]),
            [moment.real.info for moment in path],
            [moment.action for moment in path[1:]],
            [moment.real.reward for moment in path[1:]],
            labels,
            [moment.real.simulated for moment in path],
            spec=self.spec, seed=timeline.seed, instruction=timeline.instruction, env_id=self.env.env_id,
            split=timeline.split, source="human",
        )  # fmt: skip

    def close(self) -> None:
        """Free the simulator and its rendering context."""
        self.envs.close()

    def _reset(self, timeline: Timeline) -> tuple[Real, Observation]:
        self._here = self._episode = None
        if timeline.split != self.config.split:
            config = replace(self.config, split=timeline.split)
            envs = make_envs(config)  # first, so that a wrong split leaves this world as it was
            self.envs.close()
            self.envs, self.config = envs, config
        options = {"look": timeline.scene_look} if timeline.scene_look else None
        raw, info = self.env.reset(seed=timeline.seed, options=options)
        self._here, self._episode = (timeline, 0), timeline
        return self._real(info, 0.0), Observation.of(raw, self.spec).check(self.spec)

    def _go(self, timeline: Timeline, at: int) -> None:
        """Put the simulator into a moment."""
        if self._here is not None and self._here[0] is timeline and self._here[1] == at:
            return
        if self._episode is not timeline:
            self._reset(timeline)
        saved = timeline[at].real.saved
        if saved is not None:
            self.env.unwrapped.load_state(saved)
        else:
            self._reset(timeline)
            for moment in timeline.path(at)[1:]:
                self.env.step(moment.action)
        self._here = (timeline, at)

    def _look(self) -> Observation:
        return Observation.of(self.env.unwrapped.observe(), self.spec).check(self.spec)

    def _real(self, info: dict[str, Any], reward: float) -> Real:
        saved = self.env.unwrapped.save_state() if self.restores else None
        return Real(info, saved, self.env.sim_state(), reward)


class ImaginedWorld:
    """The dream. look: control steps of a model step; None takes the longest."""

    def __init__(self, loaded: Loaded, look: int | None) -> None:
        self.loaded, self._wanted = loaded, look
        self._env: ImaginedEnv | None = None

    @property
    def look(self) -> int:
        """Control steps between two of its pictures."""
        return self._wanted or self.loaded.model.strides[-1]

    def begin(self, start: Start) -> DreamState:
        """Begin to dream. ValueError for a start that is not of the model's robot."""
        self._start = start
        if self._env is None:
            self._env = ImaginedEnv(
                1, self.loaded, starts=lambda seed: self._start, look=self.look,
                autoreset_mode=AutoresetMode.DISABLED,
            )  # fmt: skip
        self._env.reset(seed=0)
        return self._env.save_state()

    def step(self, state: DreamState, actions: Sequence[np.ndarray]) -> list[DreamState]:
        """What follows from a state, after each of these actions (A,)."""
        found = []
        for action in actions:
            self._env.load_state(state)  # also where the dream has just succeeded: a person may go on
            self._env.step(action[None])
            state = self._env.save_state()
            found.append(state)
        return found


def give_back_memory() -> None:
    """Let the system have what is free again: glibc keeps what episodes leave in pieces, 150 MiB after a few resets."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:  # other systems have another way, or none
        trim(0)


@dataclass(frozen=True)
class Decision:
    """What a policy wants to do next. actions: those that are executed before it looks again."""

    actions: list[np.ndarray]
    plan: Plan | None


class Mind:
    """Reads the simulator's pictures as the model does, and acts on them. Shares a thread with the dream."""

    def __init__(self, acting: ModelPolicy, planning: PlanningPolicy | None, look: int) -> None:
        self.reader = replace(acting, execute=look)
        self.policies: dict[str, ModelPolicy | PlanningPolicy] = {"model": acting}
        if planning is not None:
            self.policies["planner"] = planning

    @property
    def model(self):
        return self.reader.model

    def needs(self, who: str, timeline: Timeline, at: int) -> list[int]:
        """The moments whose observations a decision at this one reads."""
        execute = self.policies[who].execute if who else self.reader.execute
        path = timeline.path(at)
        return [path[i].id for i in self._marks(len(path) - 1, execute)] + [at]

    def read(self, timeline: Timeline, at: int) -> Thought:
        """What is believed of the simulator at a moment whose observations, one model step apart, are known."""
        belief = self.model.read(self._prefill(self.reader, "", timeline, at)).belief
        value, success, held = (float(getattr(belief, name)[0]) for name in ("value", "success", "held"))
        return Thought(value, success, held, belief.keypoints[0].cpu().numpy())

    def decide(self, who: str, timeline: Timeline, at: int) -> Decision:
        """What `model` or `planner` does at a moment."""
        policy = self.policies[who]
        seen = Observation.stack([timeline.observations[at]])
        chunks, (state,) = policy.act(seen, [self._state(who, timeline, at)])
        return Decision([check_action(action, self.model.spec) for action in chunks[0][: policy.execute]], state.plan)

    def films(self, timeline: Timeline, at: int, plan: Plan, rows: Sequence[int]) -> list[np.ndarray]:
        """What some candidates of `planner`'s decision at a moment lead to: (frames, h, w, 3) u8 each, of the first
        camera. Where the model was taught shorter steps than the search took, imagined again in those of FILM_PACE
        control steps. No films where the search drew no pictures."""
        model, camera, stride = self.model, self.model.spec.cameras[0].name, plan.imagined[0].strides[0]
        if not plan.imagined[0].before.shape[-1]:
            return []
        if FILM_PACE in model.strides and stride > FILM_PACE and not stride % FILM_PACE:
            cache = self._prefill(self.policies["planner"].acting, "planner", timeline, at)
            chunks = in_shorter_steps(torch.from_numpy(plan.actions[list(rows)]), stride, FILM_PACE)
            imagined = model.imagine(cache, chunks[None], strides=FILM_PACE)[0]
            return list(model.decode_frames(imagined)[camera].cpu().numpy())
        found = [plan.imagination_of(row) for row in rows]
        return [model.decode_frames(each, slice(i, i + 1))[camera][0].cpu().numpy() for each, i in found]

    def _prefill(self, acting: ModelPolicy, who: str, timeline: Timeline, at: int) -> Cache:
        """What `acting` has in mind at a moment, had it been asked all along as `who` is."""
        (state,) = acting.see(Observation.stack([timeline.observations[at]]), [self._state(who, timeline, at)])
        return self.model.prefill([acting.history(state)])

    def _marks(self, now: int, execute: int) -> list[int]:
        """The places on the path to now, `execute` control steps apart, that a policy remembers, oldest first."""
        depth = min(now // execute, self.reader.chunk // execute)
        return [now - k * execute for k in range(depth, 0, -1)]

    def _state(self, who: str, timeline: Timeline, at: int) -> AgentState:
        """What a policy would remember, had it been asked at every decision on the way here."""
        execute = self.policies[who].execute if who else self.reader.execute
        path = timeline.path(at)
        marks = self._marks(len(path) - 1, execute)
        return AgentState(
            instruction=tuple(self.reader.text.encode(timeline.instruction)),
            seed=timeline.seed,
            seen=tuple(timeline.observations[path[i].id] for i in marks),
            done=tuple(np.stack([moment.action for moment in path[i + 1 : i + 1 + execute]]) for i in marks),
            plan=path[-1].plan if who == "planner" else None,
            decisions=len(path) - 1,
        )
