"""Record episodes: what was executed, and beside it what the expert would have done.

    python -m agent.collect env=fold_half policy=scripted split=train seed=0 episodes=300 out=data/fold_half

Run the same command again to go on where it stopped; the same command makes the same files.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from typing import Any

import hydra
from gymnasium.vector import SyncVectorEnv, VectorEnv
from omegaconf import DictConfig, OmegaConf
from tqdm import tqdm

from agent.build import RunConfig, make_envs, make_expert, make_policy, require_expert
from agent.collection.branching import BranchConfig, branch, uncertainty_of
from agent.evaluation.provenance import by_content, identity
from agent.launch import processes
from agent.launch.command import claimed, clear_errors, start, versions
from envs import preflight
from envs.data.settings import from_settings
from envs.data.store import EpisodeError, EpisodeStore, to_bytes
from envs.data.tracking import check_mode, log_run
from envs.sim.splits import refuse_recording
from envs.types import Episode
from policies.rollout import States, rollout

RECORDED_VERSIONS = ("mujoco", "robosuite", "numpy", "gymnasium")


@dataclass(frozen=True)
class CollectConfig(RunConfig):
    """out: folder of the episodes. states: what they keep of the simulator's state at every step, where there is one:
    the whole, from which it can go on; only what is drawn; or none."""

    states: States = "whole"

    def __post_init__(self) -> None:
        super().__post_init__()
        refuse_recording(self.env.split)

    @classmethod
    def of(cls, raw: Mapping[str, Any]) -> CollectConfig:
        """As everywhere, but `scripted` becomes the disturbed expert."""
        config = super().of(raw)
        match config.policy.name:
            case "scripted" | "branch" as name:
                name = "perturbed" if name == "scripted" else name
                return replace(config, policy=replace(config.policy, name=name, perturb=raw["perturb"]))
        return config

    @property
    def branching(self) -> BranchConfig | None:
        """How episodes branch; None where a seed makes one episode."""
        return from_settings(BranchConfig, self.policy.branch) if self.policy.name == "branch" else None

    def names(self, seed: int) -> tuple[str, ...]:
        """The seed's episodes within the store, in the order in which they are written."""
        suffixes = self.branching.names if self.branching else ("",)
        return tuple(self.env.episode_name(seed) + suffix for suffix in suffixes)

    def fingerprint(self) -> dict:
        """What must be the same for episodes to stand in one folder; a checkpoint is told by its content."""
        # What is empty says nothing: a setting that is added one day must not part folders that it does not concern.
        env, policy = (
            {name: value for name, value in part.items() if value not in ("", {}, None, ())}
            for part in (asdict(self.env), by_content(self.policy, identity(self.policy)))
        )
        return {"env": env, "policy": policy} | ({} if self.states == "whole" else {"states": self.states})


@dataclass(frozen=True)
class Recorded:
    """What one seed made: its episodes, how many of them succeed, and their control steps."""

    seed: int
    episodes: int
    successes: int
    steps: int

    @classmethod
    def of(cls, seed: int, episodes: list[Episode]) -> Recorded:
        """Counted."""
        return cls(seed, len(episodes), sum(bool(e.success[-1]) for e in episodes), sum(len(e) for e in episodes))


@dataclass(frozen=True)
class CollectJob:
    """A worker's part: run and record. robots: driven at a time."""

    config: CollectConfig
    robots: int

    def work(self, seeds: Iterator[int]) -> Iterator[tuple[Recorded, dict[str, bytes]]]:
        """What each seed made, and its episodes as files by name."""
        config, made_with = self.config, versions(*RECORDED_VERSIONS)
        with closing(make_envs(config.env, 1 if config.branching else self.robots)) as envs:
            for seed, episodes in self._branches(envs, seeds) if config.branching else self._episodes(envs, seeds):
                yield Recorded.of(seed, episodes), {
                    name: to_bytes(episode.with_versions(**made_with))
                    for name, episode in zip(config.names(seed), episodes, strict=True)
                }

    def _episodes(self, envs: VectorEnv, seeds: Iterator[int]) -> Iterator[tuple[int, list[Episode]]]:
        env, spec = self.config.env, envs.get_attr("robot_spec")[0]
        policy = make_policy(self.config.policy, env, envs)
        for run in rollout(envs, policy, seeds, make_expert(env, spec), states=self.config.states):
            yield run.episode.seed, [run.episode]

    def _branches(self, envs: SyncVectorEnv, seeds: Iterator[int]) -> Iterator[tuple[int, list[Episode]]]:
        config, branching = self.config, self.config.branching
        policy = make_policy(replace(config.policy, name="perturbed"), config.env, envs)
        expert = require_expert(config.env, envs.get_attr("robot_spec")[0])
        uncertainty = uncertainty_of(config.policy.checkpoint) if branching.unsure else None
        for seed in seeds:
            yield seed, branch(envs, policy, expert, seed, branching, uncertainty, config.states)


def collect(config: CollectConfig) -> list[Recorded]:
    """Collect what is missing; return what each seed made, by seed."""
    store = EpisodeStore(config.out)
    unit, name = "seed" if config.branching else "episode", f"collect {config.env.label}"
    with claimed(store.root, "collect.json", config.fingerprint(), used=lambda: bool(len(store))):
        store.clean()
        done, todo = _sort_out(config, store)
        with tqdm(total=config.episodes, initial=len(done), unit=unit, desc=name) as bar:
            job = CollectJob(config, config.robots_for(len(todo)))
            for recorded, files in processes.run(job, todo, config.workers, config.launcher):
                store.write_files(files)
                done.append(recorded)
                bar.update()
                bar.set_postfix_str(f"success {success_rate(done):.0%}")
    return sorted(done, key=lambda recorded: recorded.seed)


def _sort_out(config: CollectConfig, store: EpisodeStore) -> tuple[list[Recorded], list[int]]:
    """What is there already, and the seeds that are missing or whose file is damaged."""
    done, todo = [], []
    for seed in config.seeds:
        if not all(name in store for name in config.names(seed)):
            todo.append(seed)
            continue
        try:
            done.append(Recorded.of(seed, [store.read(name) for name in config.names(seed)]))
        except EpisodeError as error:
            tqdm.write(f"{error} It is being collected again.")
            todo.append(seed)
    return done, todo


def success_rate(recorded: list[Recorded]) -> float:
    """Share of the episodes that succeed."""
    return sum(r.successes for r in recorded) / sum(r.episodes for r in recorded)


def summary(config: CollectConfig, recorded: list[Recorded]) -> str:
    """The closing lines."""
    episodes, steps, good = (sum(getattr(r, name) for r in recorded) for name in ("episodes", "steps", "successes"))
    store = EpisodeStore(config.out)
    size = sum(store.path(name).stat().st_size for r in recorded for name in config.names(r.seed))
    return (
        f"{episodes} episodes of {config.env.label}, split {config.env.split}, seeds {recorded[0].seed} to "
        f"{recorded[-1].seed}: {good} succeed ({success_rate(recorded):.1%}), {steps} control steps "
        f"({steps / episodes:.0f} an episode), {size / 2**20:.0f} MiB in {config.out}"
    )


@hydra.main(version_base="1.3", config_path="../configs", config_name="collect")
def main(cfg: DictConfig) -> None:
    with clear_errors():
        preflight.require()
        check_mode(cfg.wandb)
        config = CollectConfig.of(OmegaConf.to_container(cfg, resolve=True))
        recorded = collect(config)
        print(summary(config, recorded))
        figures = {"episodes": sum(r.episodes for r in recorded), "success_rate": success_rate(recorded)}
        log_run(cfg.wandb, f"collect {config.env.label}", config.out, config.fingerprint(), figures)


if __name__ == "__main__":
    start(main)
