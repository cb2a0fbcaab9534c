"""Environments and policies from settings: the one place where a name becomes an object."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, TypeVar

import gymnasium as gym

import envs  # noqa: F401  registers the gymnasium ids
from policies.base import Policy
from policies.exploration import Play, RandomPolicy
from policies.scripted.experts import FoldExpert, LiftExpert, Perturbed

T = TypeVar("T")
POLICIES = ("random", "play", "scripted", "perturbed", "branch", "model", "planner", "oracle")


@dataclass(frozen=True)
class EnvConfig:
    """Which environment. options: of its constructor, beside the split."""

    name: str
    id: str
    split: str
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class PolicyConfig:
    """Which policy; what a policy does not use is ignored.

    checkpoint: folder (model, planner).      execute: control steps before the next decision (model, planner, oracle).
    device: auto, cpu or cuda.                decode: parallel or causal, how futures are imagined (planner).
    planner, objective: fields of PlannerConfig and Objective (agent.planning) that differ.
    perturb: fields of policies.scripted.experts.Perturbed that differ (perturbed, branch).
    then: expert, model or planner, who takes over from play (play).
    branch: fields of BranchConfig (agent.collection.branching) that differ (branch, a way to collect and no policy).
    """

    name: str
    checkpoint: str = ""
    execute: int = 2
    device: str = "auto"
    decode: str = "parallel"
    planner: Mapping[str, Any] = field(default_factory=dict)
    objective: Mapping[str, Any] = field(default_factory=dict)
    perturb: Mapping[str, Any] = field(default_factory=dict)
    then: str = ""
    branch: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.name not in POLICIES:
            raise ValueError(f"policy must be one of {', '.join(POLICIES)}, got {self.name!r}")
        if self.then not in ("", "expert", "model", "planner"):
            raise ValueError(f"`then` must be expert, model or planner, got {self.then!r}")

    @property
    def learned(self) -> bool:
        """Whether it reads a checkpoint."""
        return bool({self.name, self.then} & {"model", "planner"} or self.branch.get("unsure"))


@dataclass(frozen=True)
class RunConfig:
    """A policy on the seeds seed, seed + 1, ...    out: folder of results.    workers: processes, 0 for this one."""

    env: EnvConfig
    policy: PolicyConfig
    seed: int
    episodes: int
    out: str
    workers: int

    def __post_init__(self) -> None:
        if self.episodes < 1:
            raise ValueError(f"episodes must be at least 1, got {self.episodes}")
        if self.seed < 0:
            raise ValueError(f"seed must be 0 or more, got {self.seed}")

    @property
    def seeds(self) -> list[int]:
        """One an episode."""
        return list(range(self.seed, self.seed + self.episodes))

    @classmethod
    def of(cls, raw: Mapping[str, Any]) -> RunConfig:
        """From a verb's settings, in which `split` and `checkpoint` stand beside the environment and the policy."""
        policy = from_settings(PolicyConfig, {**raw["policy"], "checkpoint": raw["checkpoint"]})
        return cls(
            env=from_settings(EnvConfig, {**raw["env"], "split": raw["split"]}),
            policy=policy if policy.learned else replace(policy, checkpoint=""),
            seed=raw["seed"],
            episodes=raw["episodes"],
            out=raw["out"],
            workers=raw["workers"] if raw["workers"] is not None else os.cpu_count(),
        )


def make_env(config: EnvConfig) -> gym.Env:
    """The environment. ValueError for an unknown id, split or option. Close it after use."""
    os.environ.setdefault("MUJOCO_GL", "egl")
    try:
        # the checker of gymnasium costs time in every step; the tests run it once instead
        return gym.make(config.id, disable_env_checker=True, split=config.split, **config.options)
    except (gym.error.Error, TypeError) as error:
        raise ValueError(f"cannot make environment {config.id}: {error}") from error


def make_expert(config: EnvConfig) -> Policy:
    """The scripted expert of an environment. ValueError where nobody wrote one."""
    match config.id:
        case "nextstate/FoldHalf-v0":
            return FoldExpert()
        case "nextstate/Lift-v0":
            return LiftExpert()
    raise ValueError(f"there is no scripted expert for {config.id}")


def make_policy(config: PolicyConfig, env_config: EnvConfig, env: gym.Env) -> Policy:
    """The policy, ready to act in `env`. CheckpointError or ValueError where its settings or files are wrong."""
    match config.name:
        case "random":
            return RandomPolicy()
        case "play":
            taking_over = "scripted" if config.then in ("", "expert") else config.then
            return Play(make_policy(replace(config, name=taking_over), env_config, env))
        case "scripted":
            return make_expert(env_config)
        case "perturbed":
            settings = {"noise": (0.08, 0.35), **config.perturb}
            return from_settings(Perturbed, {**settings, "expert": make_expert(env_config)})
        case "branch":
            raise ValueError("policy=branch is for agent.collect: it records several futures of one state")
    # the rest needs torch, which collecting from an expert does without
    from agent.planning.agent import ModelPolicy, PlanningPolicy
    from agent.planning.objective import Objective
    from agent.planning.planner import Planner, PlannerConfig
    from agent.planning.simulator import ORACLE_BUDGET, OraclePolicy

    measure = getattr(env.unwrapped, "progress_in", None)
    objective = from_settings(Objective, {**config.objective, "measure": measure})
    match config.name:
        case "model":
            return ModelPolicy.load(Path(config.checkpoint), config.execute, config.device)
        case "planner":
            planner = Planner(from_settings(PlannerConfig, config.planner), objective)
            return PlanningPolicy.load(Path(config.checkpoint), config.execute, config.device, planner)
        case "oracle":
            budget = {f.name: getattr(ORACLE_BUDGET, f.name) for f in fields(ORACLE_BUDGET)}
            planner = Planner(from_settings(PlannerConfig, {**budget, **config.planner}), objective)
            return OraclePolicy.of(env, make_expert(env_config), config.execute, planner)
    raise ValueError(f"no policy is called {config.name!r}")


def from_settings(kind: type[T], settings: Mapping[str, Any]) -> T:
    """A frozen dataclass from settings; lists become tuples. ValueError names a setting that it does not have."""
    known = {f.name for f in fields(kind)}
    for name in settings:
        if name not in known:
            raise ValueError(f"{kind.__name__} has no setting `{name}`; it has {', '.join(sorted(known))}")
    return kind(**{name: tuple(v) if isinstance(v, list) else v for name, v in settings.items()})
