"""Environments and policies from settings: the one place where a name becomes an object."""

from __future__ import annotations

import importlib
import inspect
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import gymnasium as gym
from gymnasium.vector import VectorEnv

from agent.launch.processes import Launcher, default_workers
from envs.adapter import Adapter, AdapterConfig, vector
from envs.data.settings import from_settings
from envs.types import Spec
from policies.base import Policy, SinglePolicy
from policies.disturbed import Disturbed
from policies.scripted.perturbed import Perturbed

LEARNED = ("model", "planner", "learned")
POLICIES = ("random", "play", "scripted", "perturbed", "branch", *LEARNED, "oracle", "server", "lerobot", "plugin")
MODEL_FREE = {"random": "policies.exploration:RandomPolicy", "play": "policies.scripted.play:Play"}


@dataclass(frozen=True, kw_only=True)
class EnvConfig(AdapterConfig):
    """Which environment, and what it leaves open (see `envs.adapter.AdapterConfig`).

    name: short, for file names; made from the id where it is null. id: gymnasium's, with `module:` before it where a
    module has to be imported first. options: of its constructor. expert: `module:Name` of who demonstrates, null for
    nobody. perturb: fields of policies.scripted.perturbed.Perturbed that fit this robot. starts: where an imagined
    environment begins: a folder of episodes, several, or the id of an environment that is reset for it.
    """

    id: str
    split: str
    name: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    expert: str | None = None
    perturb: Mapping[str, Any] = field(default_factory=dict)
    starts: str | tuple[str, ...] | None = None

    @property
    def label(self) -> str:
        """A name that a file can have."""
        return self.name or self.id.split(":")[-1].split("/")[-1].lower().replace(" ", "_")

    def episode_name(self, number: int) -> str:
        """Of a kept episode of that seed, or of the dream of that number."""
        return f"{self.label}-{self.split}-{number:07d}"

    @property
    def adapter(self) -> AdapterConfig:
        """The part that the adapter reads."""
        return AdapterConfig(**{f.name: getattr(self, f.name) for f in fields(AdapterConfig)})


@dataclass(frozen=True, kw_only=True)
class PolicyConfig:
    """Which policy; what a policy does not use is ignored.

    target: `module:Name` of a policy of your own (plugin). options: of its constructor, beside `spec`, which a
    constructor with a parameter of that name is given.
    checkpoint: folder (model, planner, learned).  execute: control steps before the next decision (and oracle, random);
    None where the server (server) or the policy itself (lerobot) says it.
    device: auto, cpu or cuda.                decode: parallel or autoregressive, how futures are imagined (planner).
    planner, objective: fields of PlannerConfig and Objective (agent.planning) that differ; `objective.target` is a
    `module:Name` of your own, called with its other settings.
    perturb: fields of policies.scripted.perturbed.Perturbed that differ (perturbed, branch).
    then: expert, model or planner, who takes over from play (play).
    disturb: fields of policies.disturbed.Disturbed that differ, of any policy: its commands then arrive changed.
    address: ws://HOST:PORT (server), timeout_s: of a decision there, keys: see policies.remote.messages.Keys (server,
    lerobot).
    folder: of a pretrained policy of LeRobot's, python: the interpreter that has LeRobot, None for this one (lerobot).
    branch: fields of BranchConfig (agent.collection.branching) that differ (branch, a way to collect and no policy).
    """

    name: str
    target: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    checkpoint: str = ""
    execute: int | None = 2
    device: str = "auto"
    decode: str = "parallel"
    planner: Mapping[str, Any] = field(default_factory=dict)
    objective: Mapping[str, Any] = field(default_factory=dict)
    perturb: Mapping[str, Any] = field(default_factory=dict)
    then: str = ""
    branch: Mapping[str, Any] = field(default_factory=dict)
    disturb: Mapping[str, Any] = field(default_factory=dict)
    address: str = ""
    timeout_s: float = 30.0
    keys: Mapping[str, str] = field(default_factory=dict)
    folder: str = ""
    python: str | None = None

    def __post_init__(self) -> None:
        if self.name not in POLICIES:
            raise ValueError(f"policy must be one of {', '.join(POLICIES)}, got {self.name!r}")
        if (self.name == "plugin") != bool(self.target):
            raise ValueError("policy=plugin needs policy.target=module:Name, and no other policy takes it")
        if self.name == "server" and not (self.address.startswith(("ws://", "wss://")) and self.timeout_s > 0):
            raise ValueError(
                "policy=server needs policy.address=ws://HOST:PORT and a positive policy.timeout_s, got "
                f"{self.address!r} and {self.timeout_s}"
            )
        if self.name == "lerobot" and not (self.folder and self.timeout_s > 0):
            raise ValueError("policy=lerobot:FOLDER needs a folder, and a positive policy.timeout_s")
        if self.execute is None and self.name not in ("server", "lerobot"):
            raise ValueError(f"policy={self.name} needs policy.execute, control steps before it looks again")
        if self.then not in ("", "expert", *LEARNED):
            raise ValueError(f"`then` must be expert, {' or '.join(LEARNED)}, got {self.then!r}")

    @property
    def learned(self) -> bool:
        """Whether it reads a checkpoint."""
        return bool({self.name, self.then} & set(LEARNED) or self.branch.get("unsure"))

    @property
    def label(self) -> str:
        """For people."""
        return self.target or self.name


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """A policy on the seeds seed, seed + 1, ...

    out: folder of results. workers: processes, 0 for this one. robots: driven at a time by each of them. launcher:
    where the processes are; results do not depend on it.
    """

    env: EnvConfig
    policy: PolicyConfig
    seed: int
    episodes: int
    out: str
    workers: int
    robots: int = 1
    launcher: Launcher = "local"

    def __post_init__(self) -> None:
        if self.episodes < 1 or self.robots < 1:
            raise ValueError(f"episodes and robots must be at least 1, got {self.episodes} and {self.robots}")
        if self.seed < 0 or self.workers < 0:
            raise ValueError(f"seed and workers must be 0 or more, got {self.seed} and {self.workers}")

    @property
    def seeds(self) -> list[int]:
        """One an episode."""
        return list(range(self.seed, self.seed + self.episodes))

    def robots_for(self, episodes: int) -> int:
        """Robots that one process drives at a time, so that `episodes` leave something to do for every process."""
        return max(1, min(self.robots, math.ceil(episodes / max(1, self.workers))))

    @classmethod
    def of(cls, raw: Mapping[str, Any]) -> RunConfig:
        """From a command's settings, in which `split` and `checkpoint` stand beside the environment and the policy."""
        policy = from_settings(PolicyConfig, {**raw["policy"], "checkpoint": raw["checkpoint"]})
        known = {f.name for f in fields(cls)} - {"env", "policy", "workers"}
        return from_settings(cls, {
            **{name: value for name, value in raw.items() if name in known},
            "env": env_config(raw),
            "policy": policy if policy.learned else replace(policy, checkpoint=""),
            "workers": default_workers(raw.get("launcher", "local")) if raw["workers"] is None else raw["workers"],
        })  # fmt: skip


def env_config(raw: Mapping[str, Any]) -> EnvConfig:
    """From a command's settings, in which `split` stands beside the environment."""
    return from_settings(EnvConfig, {**raw["env"], "split": raw["split"]})


def make_env(config: EnvConfig) -> Adapter:
    """The environment behind the contract of `envs.adapter`. ValueError for an unknown id, split or option. Close it
    after use."""
    os.environ.setdefault("MUJOCO_GL", "egl")
    module, _, name = config.id.rpartition(":")
    try:
        if module:
            importlib.import_module(module)
        spec = gym.spec(name)
        made_by = spec.entry_point
        takes = parameters(made_by if callable(made_by) else gym.envs.registration.load_env_creator(made_by))
        options = dict(config.options)
        if "split" in takes:
            options["split"] = config.split
        elif config.split not in ("train", "seen"):
            raise ValueError(f"it has no split {config.split!r}: it takes none, so only train and seen exist")
        if {"render_mode", "**"} & takes:
            options.setdefault("render_mode", "rgb_array")
        # The loop keeps the time, and gymnasium's checker costs time in every step; the tests run it once instead.
        env = gym.make(name, disable_env_checker=True, max_episode_steps=-1, **options)
        settings = replace(config.adapter, max_steps=config.max_steps or spec.max_episode_steps)
        return Adapter(env, config.split, settings, own_splits="split" in takes, env_id=name)
    except (gym.error.Error, ImportError, AttributeError, TypeError, ValueError) as error:
        raise ValueError(f"cannot make environment {config.id}: {error}") from error


def make_envs(config: EnvConfig, robots: int = 1) -> VectorEnv:
    """Several of them in this process, for the loop. Close them after use."""
    if config.starts is None:
        return vector([lambda: make_env(config)] * robots)
    from agent.evaluation.starts import imagined_envs  # and torch, which a simulator does without

    return imagined_envs(config, robots, make_env)


def make_expert(config: EnvConfig, spec: Spec) -> SinglePolicy | None:
    """Who demonstrates in an environment; None where nobody does."""
    return load(config.expert, {}, spec) if config.expert else None


def require_expert(config: EnvConfig, spec: Spec) -> SinglePolicy:
    """Who demonstrates. ValueError where nobody does."""
    expert = make_expert(config, spec)
    if expert is None:
        raise ValueError(f"there is no expert for {config.id}: name one with env.expert=module:Name")
    return expert


def make_policy(config: PolicyConfig, env: EnvConfig, envs: VectorEnv) -> Policy | SinglePolicy:
    """The policy, ready to act in `envs`. CheckpointError or ValueError where its settings or files are wrong."""
    spec: Spec = envs.get_attr("robot_spec")[0]
    if config.disturb:
        policy = make_policy(replace(config, disturb={}), env, envs)
        return from_settings(Disturbed, {**config.disturb, "policy": policy, "spec": spec})
    match config.name:
        case "plugin":
            return load(config.target, config.options, spec)
        case "random":
            return load(MODEL_FREE["random"], {"execute": config.execute}, spec)
        case "play":
            name = "scripted" if config.then in ("", "expert") else config.then
            return load(MODEL_FREE["play"], {"then": make_policy(replace(config, name=name), env, envs)}, spec)
        case "scripted":
            return require_expert(env, spec)
        case "perturbed":
            settings = {**env.perturb, **config.perturb, "expert": require_expert(env, spec), "spec": spec}
            return from_settings(Perturbed, settings)
        case "server":
            from policies.remote.client import ServerPolicy  # needs the extra `serve`, and says so

            return ServerPolicy(config.address, spec, config.execute, config.timeout_s, config.keys)
        case "lerobot":
            from policies.remote.lerobot_policy import lerobot_policy  # needs the extra `serve`, and says so

            return lerobot_policy(
                config.folder, spec, config.python, config.execute, config.device, config.timeout_s, config.keys
            )
        case "branch":
            raise ValueError("policy=branch is for agent.collect: it records several futures of one state")
    # the rest needs torch, which collecting from an expert does without
    if config.name in LEARNED:
        return load_learned(config, spec, envs)[0]
    from agent.planning.planner import Planner, PlannerConfig
    from agent.planning.simulator import ORACLE_BUDGET, OraclePolicy

    objective = make_objective(config.objective, envs, spec)
    budget = {f.name: getattr(ORACLE_BUDGET, f.name) for f in fields(ORACLE_BUDGET)}
    planner = Planner(from_settings(PlannerConfig, {**budget, **config.planner}), objective)
    return OraclePolicy.of(envs, require_expert(env, spec), config.execute, planner)


def load_policy(config: PolicyConfig) -> tuple[Policy, Spec]:
    """A policy without an environment, and the robot of its checkpoint. ValueError for one that has no checkpoint."""
    if config.name not in LEARNED:
        raise ValueError(f"policy={config.name} has no checkpoint that tells its robot: name one with env=...")
    policy, spec = load_learned(config)
    if config.disturb:
        policy = from_settings(Disturbed, {**config.disturb, "policy": policy, "spec": spec})
    return policy, spec


def load_learned(config: PolicyConfig, spec: Spec | None = None, envs: VectorEnv | None = None) -> tuple[Policy, Spec]:
    """What a checkpoint holds, and its robot. spec, envs: of the robot that it is to act for, where there is one.
    CheckpointError or PolicyError for files that cannot be read, ValueError for those of another robot."""
    from agent.planning.planner import Planner, PlannerConfig
    from agent.planning.policies import ModelPolicy, PlanningPolicy

    if config.name == "learned":
        from policies.learned.policy import LearnedPolicy

        learned = LearnedPolicy.load(config.checkpoint, config.execute, config.device, spec)
        return learned, learned.spec
    if config.name == "model":
        acting = ModelPolicy.load(Path(config.checkpoint), config.execute, config.device, spec)
        return acting, acting.model.spec
    planner = Planner(from_settings(PlannerConfig, config.planner), make_objective(config.objective, envs, spec))
    planning = PlanningPolicy.load(Path(config.checkpoint), config.execute, config.device, planner, spec)
    return planning, planning.acting.model.spec


def make_objective(settings: Mapping[str, Any], envs: VectorEnv | None, spec: Spec | None) -> Callable[..., Any]:
    """What a future is worth: ours, or with `target` somebody's `module:Name`."""
    from agent.planning.objective import Objective

    if settings.get("target"):
        if spec is None:
            raise ValueError("an objective of your own needs to know the robot: name one with env=...")
        return load(settings["target"], {k: v for k, v in settings.items() if k != "target"}, spec)
    tasks = [env.unwrapped for env in getattr(envs, "envs", ())]
    measure = getattr(tasks[0], "progress_in", None) if tasks else None
    return from_settings(Objective, {**{k: v for k, v in settings.items() if k != "target"}, "measure": measure})


def load(target: str, options: Mapping[str, Any], spec: Spec) -> Any:
    """The object that `module:Name` makes from these options, and from the robot's spec where it takes one.

    ValueError says what could not be imported, found or made.
    """
    module, _, name = target.partition(":")
    if not module or not name:
        raise ValueError(f"{target!r} must be of the form module:Name")
    try:
        made = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"cannot find {target}: {error}. Is its folder the one that you run from?") from error
    if not callable(made):
        raise ValueError(f"{target} must be a class or a function that makes one")
    wanted = {"spec": spec} if "spec" in parameters(made) and "spec" not in options else {}
    try:
        return made(**options, **wanted)
    except TypeError as error:
        raise ValueError(f"cannot make {target} with {dict(options)}: {error}") from error


def parameters(made: Callable[..., Any]) -> set[str]:
    """The names of what it takes, `**` among them where it takes any."""
    found = inspect.signature(made).parameters.values()
    return {"**" if p.kind is p.VAR_KEYWORD else p.name for p in found}
