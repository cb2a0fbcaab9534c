"""What really happens: episodes of several kinds, and counterfactual rollouts: one state, several chunks.

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
from gymnasium.vector import SyncVectorEnv

from agent.build import EnvConfig, PolicyConfig, make_envs, make_policy, require_expert
from agent.planning.simulator import SimulatorModel, Situation
from envs.types import Episode, Observation, Spec
from policies.base import Policy, SinglePolicy
from policies.rollout import Step, rollout

# Of episode number 0, 1, 2, 3 and so on, in turn. A rescue is play after which the model has to find its way.
KINDS = ("perturbed", "model", "play", "perturbed", "perturbed", "model", "rescue", "perturbed")
CHUNKS = 8  # that one state is followed by
FIRST, EVERY, MOST = 16, 32, 3  # control steps: the first state that is followed so, how often, how many times


@dataclass(frozen=True)
class Futures:
    """From the state after `step` control steps of an episode: N chunks, and what the simulator shows after each."""

    step: int
    actions: np.ndarray  # (N, M, A) f32
    observations: Observation  # (N leading)
    keypoints: np.ndarray  # (N, n, 3) f32


@dataclass(frozen=True)
class Watched:
    """An episode and the futures of some of its states."""

    kind: str
    episode: Episode
    futures: tuple[Futures, ...]


@dataclass(frozen=True)
class CounterfactualJob:
    """A worker's part. checkpoint: of the attempts that are the model's own. branched: how many of the first episodes
    have states that are followed several ways, which takes three times as long as to watch one."""

    env: EnvConfig
    checkpoint: str
    first_seed: int
    branched: int
    chunk: int = 8
    coefs: tuple[int, ...] | int = 4  # DCT coefficients in which chunks near the expert's vary

    def work(self, seeds: Iterator[int]) -> Iterator[Watched]:
        """One episode a seed, of the kind whose turn it is."""
        with closing(make_envs(self.env)) as envs:
            expert = require_expert(self.env, envs.get_attr("robot_spec")[0])
            policies = {kind: make_policy(self._policy(kind), self.env, envs) for kind in set(KINDS)}
            for seed in seeds:
                number = seed - self.first_seed
                kind, most = KINDS[number % len(KINDS)], MOST if number < self.branched else 0
                yield watch(envs, kind, policies[kind], expert, seed, self.chunk, most, self.coefs)

    def _policy(self, kind: str) -> PolicyConfig:
        config = PolicyConfig(name="play" if kind == "rescue" else kind, checkpoint=self.checkpoint, device="cpu")
        return replace(config, then="model", execute=1) if kind == "rescue" else config


def watch(
    envs: SyncVectorEnv, kind: str, policy: Policy | SinglePolicy, expert: SinglePolicy, seed: int, chunk: int = 8,
    most: int = MOST, coefs: tuple[int, ...] | int = 4,
) -> Watched:  # fmt: skip
    """Run one episode and follow one of its states several ways every now and then, `most` times; the episode itself
    goes on as if nothing was. envs: of one environment."""
    futures: list[Futures] = []
    (env,), rng = envs.envs, np.random.default_rng([seed, 13])

    def on_step(step: Step) -> None:
        done = step.index + 1
        if done >= FIRST and (done - FIRST) % EVERY == 0 and len(futures) < most and not step.info["success"]:
            futures.append(follow(env, expert, step, chunk, rng, coefs))

    (run,) = rollout(envs, policy, [seed], expert, on_step)
    return Watched(kind, run.episode, tuple(futures))


def follow(
    env: gym.Env, expert: SinglePolicy, step: Step, chunk: int, rng: np.random.Generator,
    coefs: tuple[int, ...] | int = 4,
) -> Futures:  # fmt: skip
    """From where the environment is after this step: do CHUNKS different things, each from the same state."""
    world, spec = env.unwrapped, env.get_wrapper_attr("robot_spec")
    saved = world.save_state()
    situation = Situation(saved, observe(env, spec), step.info["scene"], expert.init("", 0))
    ways = different_ways(SimulatorModel((env,), expert, chunk, coefs=coefs), situation, rng, spec)
    shown, keypoints = [], []
    for actions in ways:
        world.load_state(saved)
        for action in actions:
            *_, info = world.advance(action)
        shown.append(observe(env, spec))
        keypoints.append(info["scene"].keypoints)
    world.load_state(saved)
    return Futures(step.index + 1, ways, Observation.stack(shown), np.stack(keypoints).astype(np.float32))


def observe(env: gym.Env, spec: Spec) -> Observation:
    """What the cameras and the robot show now."""
    return Observation.of(env.unwrapped.observe(), spec)


def different_ways(model: SimulatorModel, situation: Situation, rng: np.random.Generator, spec: Spec) -> np.ndarray:
    """(CHUNKS, M, A): what the expert does, twice something near it, the same with the jaws reversed, and the rest
    straight pushes in random directions, of which two reverse the jaws."""
    low, high, jaws = spec.action_low, spec.action_high, list(spec.grippers)
    half, middle = (high - low) / 2, (high + low) / 2
    hand = [i for i in range(len(spec.action)) if i not in jaws][:3]
    generator = torch.Generator().manual_seed(int(rng.integers(2**31)))
    advised = model.propose([situation], 3, 1.0, [generator])[0].numpy()
    reversed_jaws = advised[:1].copy()
    reversed_jaws[..., jaws] = 2 * middle[jaws] - reversed_jaws[..., jaws]
    pushes = np.tile(middle, (CHUNKS - 4, advised.shape[1], 1)).astype(np.float32)
    direction = rng.normal(size=(len(pushes), len(hand)))
    direction /= np.linalg.norm(direction, axis=-1, keepdims=True)
    pushes[..., hand] += (direction * rng.uniform(0.3, 1.0, (len(pushes), 1)) * half[hand])[:, None]
    pushes[..., jaws] = advised[0][:, jaws]
    pushes[:2, :, jaws] = 2 * middle[jaws] - pushes[:2, :, jaws]
    return np.concatenate([advised, reversed_jaws, pushes]).astype(np.float32)
