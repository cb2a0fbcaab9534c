"""The one interaction loop of the project: any policy in any vector of environments, real or imagined."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv

from envs.types import HELD_UNKNOWN, Episode, Observation, Scene, Spec, check_action
from policies.base import Policy, SinglePolicy, ask, batched

# What is recorded of the simulator: its whole state, only what can be seen of it, or nothing.
States = Literal["whole", "drawn", "none"]


@dataclass(frozen=True)
class Step:
    """One control step of one robot, as the loop's `on_step` sees it.

    robot: its place in the vector. index: from 0. decided: a new chunk was asked for at this step. obs: before it.
    action: (A,) f32, executed. state: the policy's, after its last decision. info: the environment's, after the step.
    """

    robot: int
    index: int
    decided: bool
    obs: Observation
    action: np.ndarray
    state: Any
    info: dict[str, Any]


@dataclass(frozen=True)
class Rollout:
    """An episode and how it came about.

    decision_seconds: (D,) f64, wall-clock time of each call of `act` in which this robot took part.
    late_decisions: how many of them passed their deadline, by the policy's own count.
    score: the environment's measures at the end.
    clipped: action values that left their range and were cut to it, by dimension.
    outside: state values that left the spec's range, by dimension.
    """

    episode: Episode
    decision_seconds: np.ndarray
    late_decisions: int
    score: dict[str, float]
    clipped: dict[str, int]
    outside: dict[str, int]


def rollout(
    envs: VectorEnv,
    policy: Policy | SinglePolicy,
    seeds: Iterable[int],
    expert: SinglePolicy | None = None,
    on_step: Callable[[Step], None] | None = None,
    max_steps: int | None = None,
    states: States = "none",
) -> Iterator[Rollout]:
    """Run one episode a seed, as many at a time as there are environments; yields each when it ends, in that order.

    An episode ends when its environment ends it, or after `max_steps` control steps (None: the environment's own
    `max_steps`). Steps that did not serve the task take nothing of the time for it: a limit that cuts an episode off
    just as its task begins would say that nothing can come of where it stands.

    envs: autoreset disabled; behind the contract of `envs.adapter`.
    seeds: of the episodes and of the policy. expert: asked at every control step what it would do; its answers become
        `Episode.expert`, NaN without it.
    states: record the simulator's state at every step, where the environments tell it.
    Raises ValueError, naming the control step, for a bad observation of an environment or action of a policy.
    """
    if envs.metadata.get("autoreset_mode") not in (AutoresetMode.DISABLED, AutoresetMode.DISABLED.value):
        raise ValueError("the loop resets environments itself: make them with autoreset_mode=DISABLED")
    spec = envs.get_attr("robot_spec")[0]
    limit, look = max_steps or envs.get_attr("max_steps")[0], envs.get_attr("look")[0]
    policy, expert = batched(policy), expert and batched(expert)
    if policy.execute % look or (expert and look > 1):
        who, every = ("an expert", 1) if expert else ("a policy", policy.execute)
        raise ValueError(
            f"the environment shows something new every {look} control steps, and {who} looks every {every}: set "
            "env.options.look to what divides it, or `execute`"
        )
    todo = iter(seeds)
    robots: list[_Robot | None] = [None] * envs.num_envs  # one without an episode is idle
    over = np.ones(envs.num_envs, bool)  # whose environment must be reset before it is stepped
    while True:
        _begin(envs, robots, over, todo, policy, expert, spec, states)
        at_work = {i: robot for i, robot in enumerate(robots) if robot}
        if not at_work:
            return
        deciding = [robot for robot in at_work.values() if not robot.pending]
        if deciding:
            _decide(deciding, policy, spec)
        if expert:
            _label(list(at_work.values()), expert, spec)

        actions = np.stack([robot.pending[0] if robot else spec.rest for robot in robots])
        raw, rewards, terminated, truncated, infos = envs.step(actions)
        over = np.logical_or(terminated, truncated)
        simulated = _simulated(envs, states)
        for i, robot in at_work.items():
            obs, action, decided = robot.observations[-1], robot.pending.pop(0), robot in deciding
            robot.after_step(action, rewards[i], _observation(raw, i, spec, len(robot.actions) + 1), info_of(infos, i))
            robot.terminated, robot.truncated = bool(terminated[i]), bool(truncated[i])
            robot.simulated.append(simulated[i])
            if on_step:
                on_step(Step(i, len(robot.actions) - 1, decided, obs, action, robot.state, robot.infos[-1]))
            if robot.ended(limit):
                robots[i] = None
                yield robot.result(envs)


@dataclass(eq=False)
class _Robot:
    """One robot and the episode that it is in."""

    seed: int
    spec: Spec
    instruction: str
    state: Any
    expert_state: Any
    observations: list[Observation]
    infos: list[dict[str, Any]]
    simulated: list[np.ndarray]  # the simulator's states
    actions: list[np.ndarray] = field(default_factory=list)
    labels: list[np.ndarray] = field(default_factory=list)
    rewards: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    pending: list[np.ndarray] = field(default_factory=list)  # control steps of the last chunk still to be executed
    clipped: dict[str, int] = field(default_factory=dict)
    terminated: bool = False
    truncated: bool = False

    def after_step(self, action: np.ndarray, reward: float, obs: Observation, info: dict[str, Any]) -> None:
        """Record what was done and what came."""
        self.actions.append(action)
        self.rewards.append(float(reward))
        self.observations.append(obs)
        self.infos.append(info)

    def ended(self, limit: int) -> bool:
        """Whether this was the last control step. limit: of the steps that serve the task."""
        out_of_time = len(self.actions) >= limit + getattr(self.state, "off_task_steps", 0)
        self.truncated |= out_of_time and not self.terminated
        return self.terminated or self.truncated

    def result(self, envs: VectorEnv) -> Rollout:
        """The finished episode."""
        spec, infos, count = self.spec, self.infos, len(self.observations)
        seen = Observation.stack(self.observations)
        episode = make_episode(
            seen, infos, self.actions, self.rewards, self.labels, self.simulated, spec=spec, seed=self.seed,
            instruction=self.instruction, env_id=envs.get_attr("env_id")[0], split=envs.get_attr("split")[0],
            source=envs.get_attr("source")[0],
        )  # fmt: skip
        episode = replace(
            episode, terminated=self.terminated, truncated=self.truncated,
            off_task_steps=min(int(getattr(self.state, "off_task_steps", 0)), count - 1),
        )  # fmt: skip
        score = {name: float(value) for name, value in infos[-1].get("score", {}).items()}
        late, outside = int(getattr(self.state, "late", 0)), spec.outside(seen.state)
        return Rollout(episode, np.array(self.seconds), late, score, self.clipped, outside)


def make_episode(
    seen: Observation, infos: Sequence[dict[str, Any]], actions: Sequence[np.ndarray], rewards: Sequence[float],
    labels: Sequence[np.ndarray], simulated: Sequence[np.ndarray], *, spec: Spec, seed: int, instruction: str,
    env_id: str, split: str, source: str,
) -> Episode:  # fmt: skip
    """The record of T control steps. seen: T + 1 observations. infos: the environment's, T + 1. actions, rewards, and
    labels, the expert's actions: T, or no labels at all. simulated: the simulator's states, T + 1 of (X,), maybe (0,).
    """
    names = tuple(dict.fromkeys(info["subtask"] for info in infos[:-1]))  # in the order in which they came up
    scenes = [info.get("scene") for info in infos]
    told = all(isinstance(scene, Scene) for scene in scenes)
    unknown = np.full((len(spec.keypoints), 3), np.nan)
    return Episode(
        images=seen.images,
        state=seen.state,
        action=np.stack(actions),
        expert=np.stack(labels) if len(labels) else np.full((len(actions), len(spec.action)), np.nan, np.float32),
        reward=np.array(rewards, np.float32),
        success=np.array([info["success"] for info in infos], bool),
        progress=np.array([info["progress"] for info in infos], np.float32),
        keypoints=np.stack([scene.keypoints if told else unknown for scene in scenes]).astype(np.float32),
        held=np.array([scene.held if told else HELD_UNKNOWN for scene in scenes], np.int8),
        subtask=np.array([names.index(info["subtask"]) for info in infos[:-1]], np.int16),
        subtask_names=names,
        instruction=instruction,
        env_id=env_id,
        seed=seed,
        spec=spec,
        poses=seen.poses,
        sim_state=np.stack(simulated) if simulated[0].size else np.zeros((0, 0)),
        split=split,
        source=source,
    )


def _begin(
    envs: VectorEnv, robots: list[_Robot | None], over: np.ndarray, todo: Iterator[int], policy: Policy,
    expert: Policy | None, spec: Spec, states: States,
) -> None:  # fmt: skip
    """Give every idle robot the next seed. One for which there is none stays idle, but is stepped beside the others
    while they work, so it is reset too where its environment is over."""
    idle = [i for i, robot in enumerate(robots) if robot is None]
    seeds = dict(zip(idle, todo, strict=False))
    mask = over.copy()
    mask[list(seeds)] = True
    if not mask.any() or (not seeds and len(idle) == len(robots)):
        return
    raw, infos = envs.reset(seed=[seeds.get(i) for i in range(len(robots))], options={"reset_mask": mask})
    over[:] = False
    simulated = _simulated(envs, states)
    for i, seed in seeds.items():
        info = info_of(infos, i)
        instruction = info["instruction"]
        robots[i] = _Robot(
            seed, spec, instruction, policy.init(instruction, seed), expert.init(instruction, seed) if expert else None,
            [_observation(raw, i, spec, step=0)], [info], [simulated[i]],
        )  # fmt: skip


def _simulated(envs: VectorEnv, states: States) -> Sequence[np.ndarray]:
    """Each robot's simulator state (X,) f64, (0,) where there is none or none is asked for."""
    return [np.zeros(0)] * envs.num_envs if states == "none" else envs.call("sim_state", states == "whole")


def _decide(robots: Sequence[_Robot], policy: Policy, spec: Spec) -> None:
    """Ask for the next chunk of these robots, all in one call."""
    began = time.perf_counter()
    chunks, states = _ask(policy, robots, [robot.state for robot in robots])
    seconds = time.perf_counter() - began
    for robot, chunk, state in zip(robots, chunks, states, strict=True):
        checked = _checked(chunk, policy, robot, spec)
        robot.pending, robot.state = list(checked[: policy.execute]), state
        robot.seconds.append(seconds)
        cut = (checked != np.asarray(chunk, np.float32))[: policy.execute].sum(0)
        for part, count in zip(spec.action, cut, strict=True):
            if count:
                robot.clipped[part.name] = robot.clipped.get(part.name, 0) + int(count)


def _label(robots: Sequence[_Robot], expert: Policy, spec: Spec) -> None:
    """What the expert would do now."""
    chunks, states = _ask(expert, robots, [robot.expert_state for robot in robots])
    for robot, chunk, state in zip(robots, chunks, states, strict=True):
        robot.labels.append(_checked(chunk, expert, robot, spec)[0])
        robot.expert_state = state


def _ask(policy: Policy, robots: Sequence[_Robot], states: list[Any]) -> tuple[np.ndarray, list[Any]]:
    observations = Observation.stack([robot.observations[-1] for robot in robots])
    chunks, states = ask(policy, observations, states, [robot.infos[-1].get("scene") for robot in robots])
    if len(chunks) != len(robots) or len(states) != len(robots):
        name = type(policy).__name__
        raise ValueError(f"policy {name} gave {len(chunks)} chunks and {len(states)} states for {len(robots)} robots")
    return chunks, states


def info_of(infos: dict[str, Any], i: int) -> dict[str, Any]:
    """One robot's `info` from a vector's, which holds for each name an array, and as `_name` who has said it."""
    found = {}
    for name, value in infos.items():
        mask = infos.get(f"_{name}")
        if mask is not None and mask[i]:
            found[name] = info_of(value, i) if isinstance(value, dict) else value[i]
    return found


def _observation(raw: dict[str, np.ndarray], i: int, spec: Spec, step: int) -> Observation:
    """Robot i's, copied: the vector may write the next one over it."""
    try:
        return Observation.of({name: value[i].copy() for name, value in raw.items()}, spec).check(spec)
    except ValueError as error:
        raise ValueError(f"the environment's {error} (control step {step})") from error


def _checked(chunk: np.ndarray, policy: Policy, robot: _Robot, spec: Spec) -> np.ndarray:
    """The chunk (M, A), cut to the robot's range; ValueError names the policy and the control step."""
    name, step = type(getattr(policy, "policy", policy)).__name__, len(robot.actions)
    try:
        chunk = check_action(chunk, spec)
    except ValueError as error:
        raise ValueError(f"policy {name} failed at control step {step}: {error}") from error
    if chunk.ndim != 2 or len(chunk) < policy.execute:
        raise ValueError(
            f"policy {name} failed at control step {step}: a chunk must be (M, {len(spec.action)}) with M at least "
            f"execute={policy.execute}, got {chunk.shape}"
        )
    return chunk
