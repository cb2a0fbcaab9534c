"""Counterfactuals: one state of the simulator left in several ways, and what followed each.

A trunk is an ordinary disturbed demonstration. At some of its steps the simulator is put back and something else is
done for a while, after which the expert takes over. Each branch is an episode of its own that begins one chunk before
it leaves the trunk, so that its history is known too: the same past, another action, another future.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.vector import SyncVectorEnv

from envs.adapter import vector
from envs.types import Episode, Observation, Spec
from policies.base import SinglePolicy, ask_one
from policies.rollout import States, Step, rollout

WAYS = ("push", "push with the jaws reversed", "advice with the jaws reversed", "advice with noise")


@dataclass(frozen=True)
class BranchConfig:
    """forks: steps at which a trunk is left, each in all of WAYS. chunk: control steps of history before a fork.

    lasting: range of control steps before the expert takes over.
    unsure: leave it rather where the checkpoint's imagination is unsure, or else anywhere.
    """

    forks: int = 2
    chunk: int = 8
    lasting: tuple[int, int] = (8, 17)
    unsure: bool = False

    def __post_init__(self) -> None:
        if self.forks < 1 or self.chunk < 1 or not 1 <= self.lasting[0] < self.lasting[1]:
            raise ValueError("a branch needs forks and chunk of at least 1, and a range of steps that is not empty")

    @property
    def names(self) -> tuple[str, ...]:
        """Suffixes of the episodes that one seed makes, the trunk's last: where it is, the others are."""
        return (*(f"-{fork}{way}" for fork in range(self.forks) for way in range(len(WAYS))), "")


@dataclass(frozen=True)
class _Progress:
    """The state of who takes over, and how many of the given actions are done."""

    then: Any
    off_task_steps: int = 0


@dataclass(frozen=True)
class ReplayThenPolicy:
    """Given actions (T, A) first, and then an expert."""

    actions: np.ndarray
    then: SinglePolicy
    execute: int = 1
    privileged = True

    def init(self, instruction: str, seed: int = 0) -> _Progress:
        """Nothing is done."""
        return _Progress(self.then.init(instruction, seed))

    def act(self, observation: Observation, state: _Progress, scene: Any) -> tuple[np.ndarray, _Progress]:
        """One action, (1, A)."""
        done = state.off_task_steps
        if done < len(self.actions):
            return self.actions[done][None], replace(state, off_task_steps=done + 1)
        chunk, then = ask_one(self.then, observation, state.then, scene)
        return chunk[:1], replace(state, then=then)


class RestoredEnv(gym.Wrapper):
    """The same environment, whose `reset` returns to a saved state of the episode it is in.

    info: what the environment said in that state.
    """

    def __init__(self, env: gym.Env, saved: Any, info: dict[str, Any]) -> None:
        super().__init__(env)
        self._saved, self._info = saved, info

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[dict, dict]:
        """The saved state; the seed draws nothing."""
        self.unwrapped.load_state(self._saved)
        return self.unwrapped.observe(), self._info


Uncertainty = Callable[[Episode], np.ndarray]  # an episode of T control steps -> (T + 1,), larger is less sure


def branch(
    envs: SyncVectorEnv, trunk: SinglePolicy, expert: SinglePolicy, seed: int, config: BranchConfig,
    uncertainty: Uncertainty | None = None, states: States = "none",
) -> list[Episode]:  # fmt: skip
    """The branches of one seed and at last their trunk, in the order of `config.names`.

    envs: of one environment. uncertainty: a fork is as likely where it is this large; evenly likely everywhere without.
    states: as for `rollout`.
    """
    (env,), rng = envs.envs, np.random.default_rng([seed, 19])
    saved: list[tuple[Any, dict[str, Any]]] = []  # after every control step

    def on_step(step: Step) -> None:
        saved.append((env.unwrapped.save_state(), step.info))

    (trunk_run,) = rollout(envs, trunk, [seed], expert, on_step, states=states)
    whole = trunk_run.episode
    # A branch needs a chunk of history, and the trunk's own next chunk to differ from.
    fits = np.arange(1, max(len(whole) - 2 * config.chunk, 2))
    likely = None
    if uncertainty:
        likely = uncertainty(whole)[fits + config.chunk].astype(np.float64)
        likely /= likely.sum()
    starts = np.sort(rng.choice(fits, config.forks, replace=len(fits) < config.forks, p=likely))
    episodes = []
    for start in starts:
        here, info = saved[start - 1]
        for way in WAYS:
            lasting = int(rng.integers(*config.lasting))
            actions = np.concatenate([
                whole.action[start : start + config.chunk],
                another_way(way, whole.expert[min(start + config.chunk, len(whole) - 1) :], lasting, rng, whole.spec),
            ])  # fmt: skip
            restored = vector([lambda here=here, info=info: RestoredEnv(env, here, info)])
            (run,) = rollout(restored, ReplayThenPolicy(actions, expert), [seed], expert, states=states)
            episodes.append(run.episode)
    return [*episodes, whole]


def another_way(way: str, advice: np.ndarray, count: int, rng: np.random.Generator, spec: Spec) -> np.ndarray:
    """(count, A) f32 within the range. advice: (T, A) of the expert along the trunk from the fork on, T at least 1.

    What is pushed are the first three dimensions that are no grippers.
    """
    low, high, jaws = spec.action_low, spec.action_high, list(spec.grippers)
    half, middle = (high - low) / 2, (high + low) / 2
    hand = [i for i in range(len(spec.action)) if i not in jaws][:3]
    advised = advice[np.minimum(np.arange(count), len(advice) - 1)]
    actions = advised.copy()
    if way.startswith("push"):
        direction = rng.normal(size=len(hand))
        actions = np.tile(middle, (count, 1)).astype(np.float32)
        actions[:, hand] += direction / np.linalg.norm(direction) * rng.uniform(0.3, 1.0) * half[hand]
        actions[:, jaws] = advised[:, jaws]
    if way.endswith("reversed"):
        actions[:, jaws] = 2 * middle[jaws] - actions[:, jaws]
    if way.endswith("noise"):
        # smooth: a level and a slope for each direction
        ramp = np.linspace(-1, 1, count)[:, None]
        actions[:, hand] += (rng.normal(0, 0.4, len(hand)) + ramp * rng.normal(0, 0.4, len(hand))) * half[hand]
    return np.clip(actions, low, high).astype(np.float32)


def uncertainty_of(checkpoint: str, batch: int = 32) -> Uncertainty:
    """How unsure a checkpoint is of what its episode's next chunk leads to. CheckpointError where it is none."""
    import torch  # collecting without it does without torch

    from world_model import checkpoint as checkpoints
    from world_model.metrics.windows import imagine_batch
    from world_model.training.dataset import EpisodeDataset

    loaded = checkpoints.load(Path(checkpoint), torch.device("cpu"))
    model, chunk = loaded.model, loaded.actions.chunk

    @torch.inference_mode()
    def uncertainty(episode: Episode) -> np.ndarray:
        dataset = EpisodeDataset.of(episode, model.layout, loaded.frames, loaded.actions, loaded.text)
        starts = np.arange(len(dataset))
        parts = [starts[i : i + batch] for i in range(0, len(starts), batch)]
        unsure = torch.cat([imagine_batch(model, dataset.batch(part, 2)).uncertainty[:, 0] for part in parts]).numpy()
        return np.concatenate([np.full(chunk, unsure[0]), unsure])[: len(starts)]  # a window begins one chunk earlier

    return uncertainty
