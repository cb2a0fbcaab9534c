"""What really happens: episodes of several kinds, and forks, where one state of the simulator is left several ways.

An imagination that was trained on demonstrations is right about demonstrations. So half of what it is judged on is
something else: the model's own attempts, and play.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, replace

import gymnasium as gym
import numpy as np
import torch

from agent.build import EnvConfig, PolicyConfig, make_env, make_expert, make_policy
from agent.planning.simulator import SimulatorModel, Situation
from envs.types import Episode, Obs
from policies.base import Policy, Step, rollout

# Of episode number 0, 1, 2, 3 and so on, in turn. A rescue is play after which the model has to find its way.
KINDS = ("perturbed", "model", "play", "perturbed", "perturbed", "model", "rescue", "perturbed")
CHUNKS = 8  # ways in which a state is left
FIRST, EVERY, MOST = 16, 32, 3  # control steps: where an episode forks for the first time, how often, how many times


@dataclass(frozen=True)
class Left:
    """One fork: at control step `step` of its episode, N chunks and what the simulator shows after each."""

    step: int
    actions: np.ndarray  # (N, M, A) f32
    main: np.ndarray  # (N, 64, 64, 3) u8
    wrist: np.ndarray  # (N, 32, 32, 3) u8
    state: np.ndarray  # (N, P) f32
    keypoints: np.ndarray  # (N, 4, 3) f32


@dataclass(frozen=True)
class Seen:
    """An episode and its forks."""

    kind: str
    episode: Episode
    forks: tuple[Left, ...]


@dataclass(frozen=True)
class WitnessJob:
    """A worker's part. checkpoint: of the attempts that are the model's own. forked: episodes that are left in
    several ways, which takes three times as long as to watch one."""

    env: EnvConfig
    checkpoint: str
    first_seed: int
    forked: int
    chunk: int = 8

    def work(self, seeds: Iterator[int]) -> Iterator[Seen]:
        """One episode a seed, of the kind whose turn it is."""
        expert = make_expert(self.env)
        with closing(make_env(self.env)) as env:
            policies = {kind: make_policy(self._policy(kind), self.env, env) for kind in set(KINDS)}
            for seed in seeds:
                number = seed - self.first_seed
                kind, most = KINDS[number % len(KINDS)], MOST if number < self.forked else 0
                yield watch(env, kind, policies[kind], expert, seed, self.chunk, most)

    def _policy(self, kind: str) -> PolicyConfig:
        config = PolicyConfig("play" if kind == "rescue" else kind, checkpoint=self.checkpoint, device="cpu")
        return replace(config, then="model", execute=1) if kind == "rescue" else config


def watch(env: gym.Env, kind: str, policy: Policy, expert: Policy, seed: int, chunk: int = 8, most: int = MOST) -> Seen:
    """Run one episode and leave it several ways every now and then, `most` times; the episode itself goes on as if
    nothing was."""
    forks: list[Left] = []
    rng = np.random.default_rng([seed, 13])

    def on_step(step: Step) -> None:
        done = step.index + 1
        if done >= FIRST and (done - FIRST) % EVERY == 0 and len(forks) < most and not step.info["success"]:
            forks.append(leave(env, expert, step, chunk, rng))

    return Seen(kind, rollout(env, policy, seed, expert, on_step).episode, tuple(forks))


def leave(env: gym.Env, expert: Policy, step: Step, chunk: int, rng: np.random.Generator) -> Left:
    """From where the environment is after this step: do CHUNKS different things, each from the same state."""
    world = env.unwrapped
    saved = world.save_state()
    raw = world.observe()
    obs = Obs(raw["main"], raw["wrist"], raw["state"], step.info["scene"])
    ways = different_ways(SimulatorModel(env, expert, chunk), Situation(saved, obs), rng)
    shown = []
    for actions in ways:
        world.load_state(saved)
        for action in actions:
            *_, info = world.advance(action)
        raw = world.observe()
        shown.append((raw["main"], raw["wrist"], raw["state"], info["scene"].keypoints))
    world.load_state(saved)
    main, wrist, state, keypoints = (np.stack(column) for column in zip(*shown, strict=True))
    return Left(step.index + 1, ways, main, wrist, state.astype(np.float32), keypoints.astype(np.float32))


def different_ways(model: SimulatorModel, situation: Situation, rng: np.random.Generator) -> np.ndarray:
    """(CHUNKS, M, A): what the expert does, twice something near it, the same with the jaws reversed, and the rest
    straight pushes in random directions, of which two reverse the jaws."""
    advised = model.propose(situation, 3, 1.0, torch.Generator().manual_seed(int(rng.integers(2**31)))).numpy()
    reversed_jaws = advised[:1].copy()
    reversed_jaws[..., -1] *= -1
    pushes = np.zeros((CHUNKS - 4, *advised.shape[1:]), np.float32)
    direction = rng.normal(size=(len(pushes), 3))
    direction /= np.linalg.norm(direction, axis=-1, keepdims=True)
    pushes[..., :3] = (direction * rng.uniform(0.3, 1.0, (len(pushes), 1)))[:, None]
    pushes[..., -1] = advised[0, :, -1]
    pushes[:2, :, -1] *= -1
    return np.concatenate([advised, reversed_jaws, pushes]).astype(np.float32)
