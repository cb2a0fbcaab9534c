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
from omegaconf import DictConfig, OmegaConf
from tqdm import tqdm

from agent import actors, pool
from agent.actors import RunConfig, make_env, make_policy
from agent.verb import claim, clear_errors, log_run, versions
from envs import preflight
from envs.store import EpisodeError, EpisodeStore
from policies.base import rollout

RECORDED_VERSIONS = ("mujoco", "robosuite", "numpy", "gymnasium")


@dataclass(frozen=True)
class CollectConfig(RunConfig):
    """out: folder of the episodes."""

    @classmethod
    def of(cls, raw: Mapping[str, Any]) -> CollectConfig:
        """As everywhere, but `scripted` becomes the disturbed expert."""
        config = super().of(raw)
        if config.policy.name != "scripted":
            return config
        return replace(config, policy=replace(config.policy, name="perturbed", perturb=raw["perturb"]))

    def name(self, seed: int) -> str:
        """The episode's name within the store."""
        return f"{self.env.name}-{self.env.split}-{seed:07d}"

    def recipe(self) -> dict:
        """What must be the same for episodes to stand in one folder."""
        return {"env": asdict(self.env), "policy": asdict(self.policy)}


@dataclass(frozen=True)
class Recorded:
    """One line of the summary."""

    seed: int
    success: bool
    steps: int


@dataclass(frozen=True)
class CollectJob:
    """A worker's part: run, record, write."""

    config: CollectConfig

    def work(self, seeds: Iterator[int]) -> Iterator[Recorded]:
        """Write the episode of each seed."""
        config = self.config
        store, expert = EpisodeStore(config.out), actors.make_expert(config.env)
        with closing(make_env(config.env)) as env:
            policy = make_policy(config.policy, config.env, env)
            for seed in seeds:
                episode = rollout(env, policy, seed, expert).episode
                store.write(episode.with_versions(**versions(*RECORDED_VERSIONS)), config.name(seed))
                yield Recorded(seed, bool(episode.success[-1]), len(episode))


def collect(config: CollectConfig) -> list[Recorded]:
    """Collect what is missing; return a line for each episode, by seed."""
    store = EpisodeStore(config.out)
    recipe = claim(store.root, "collect.json", config.recipe())
    store.clean()
    done, todo = _sort_out(config, store)
    progress = tqdm(total=config.episodes, initial=len(done), unit="episode", desc=f"collect {config.env.name}")
    try:
        with progress as bar:
            for recorded in pool.run(CollectJob(config), todo, config.workers):
                done.append(recorded)
                bar.update()
                bar.set_postfix_str(f"success {sum(r.success for r in done) / len(done):.0%}")
    finally:
        if not len(store):  # wrong settings must not claim the folder
            recipe.unlink(missing_ok=True)
    return sorted(done, key=lambda recorded: recorded.seed)


def _sort_out(config: CollectConfig, store: EpisodeStore) -> tuple[list[Recorded], list[int]]:
    """What is there already, and the seeds that are missing or whose file is damaged."""
    done, todo = [], []
    for seed in config.seeds:
        if config.name(seed) not in store:
            todo.append(seed)
            continue
        try:
            episode = store.read(config.name(seed))
            done.append(Recorded(seed, bool(episode.success[-1]), len(episode)))
        except EpisodeError as error:
            tqdm.write(f"{error} It is being collected again.")
            todo.append(seed)
    return done, todo


def summary(config: CollectConfig, recorded: list[Recorded]) -> str:
    """The closing lines."""
    steps = [r.steps for r in recorded]
    good = [r.success for r in recorded]
    size = sum(EpisodeStore(config.out).path(config.name(r.seed)).stat().st_size for r in recorded)
    return (
        f"{len(recorded)} episodes of {config.env.name}, split {config.env.split}, seeds {recorded[0].seed} to "
        f"{recorded[-1].seed}: {sum(good)} succeed ({sum(good) / len(good):.1%}), {sum(steps)} control steps "
        f"({sum(steps) / len(steps):.0f} an episode), {size / 2**20:.0f} MiB in {config.out}"
    )


@hydra.main(version_base="1.3", config_path="../configs", config_name="collect")
def main(cfg: DictConfig) -> None:
    with clear_errors():
        preflight.require()
        config = CollectConfig.of(OmegaConf.to_container(cfg, resolve=True))
        recorded = collect(config)
        print(summary(config, recorded))
        success_rate = sum(r.success for r in recorded) / len(recorded)
        figures = {"episodes": len(recorded), "success_rate": success_rate}
        log_run(cfg.wandb, f"collect {config.env.name}", config.out, config.recipe(), figures)


if __name__ == "__main__":
    main()
