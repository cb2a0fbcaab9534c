"""Draw recorded episodes again under other looks and cameras: the same states, actions and labels, to the bit.

    python -m agent.rerender data=data/fold_half looks=4 views=[top,side] out=data/fold_half_looks

Nothing is simulated: episodes keep the simulator's state of every step, which is loaded and drawn. Run the same command
again to go on where it stopped; with more `looks` it adds what is missing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import hydra
import numpy as np
from omegaconf import DictConfig, OmegaConf
from tqdm import tqdm

from agent.build import EnvConfig, make_env
from agent.launch import processes
from agent.launch.command import claimed, clear_errors, start, versions
from envs import preflight
from envs.adapter import Adapter
from envs.data.formats.folder import Episodes, open_episodes
from envs.data.settings import from_settings
from envs.data.store import EpisodeError, EpisodeStore
from envs.sim.cameras import check_views
from envs.types import Episode, Observation

SIMULATORS = ("mujoco", "robosuite")  # a state is one of a model that these versions have compiled
# The state and the keypoints that are shown again may differ from the recorded ones by this much, metres and radians:
# another processor rounds otherwise, another model is off by far more.
SAME = 1e-4


@dataclass(frozen=True, kw_only=True)
class RerenderConfig:
    """data, out: folders of episodes, read and written. looks: how many other looks of each episode. views: names of
    further places to draw from. states: keep the simulator's states. options: of the environment's constructor.
    workers: processes, 0 for this one."""

    data: str
    out: str
    looks: int = 4
    views: tuple[str, ...] = ()
    states: bool = False
    options: Mapping[str, Any] = field(default_factory=dict)
    workers: int = 0

    def __post_init__(self) -> None:
        if self.looks < 1:
            raise ValueError(f"looks must be at least 1, got {self.looks}: look 0 is the recorded one")
        if self.workers < 0:
            raise ValueError(f"workers must be 0 or more, got {self.workers}")
        if Path(self.data).resolve() == Path(self.out).resolve():
            raise ValueError("`out` must be another folder than `data`: recorded episodes are never overwritten")

    def fingerprint(self) -> dict[str, Any]:
        """What must be the same for episodes to stand in one folder."""
        return {"views": list(self.views), "states": self.states, "options": dict(self.options)}


@dataclass(frozen=True)
class RerenderJob:
    """A worker's part. todo: names of episodes, each with the looks that are missing; they are asked for by index."""

    config: RerenderConfig
    todo: tuple[tuple[str, tuple[int, ...]], ...]

    def work(self, seeds: Iterator[int]) -> Iterator[int]:
        """Write the missing looks of each episode; how many those were."""
        config, source, store = self.config, open_episodes(self.config.data), EpisodeStore(self.config.out)
        envs: dict[str, Adapter] = {}
        with ExitStack() as opened:
            for index in seeds:
                name, looks = self.todo[index]
                episode = source.read(name)
                if episode.env_id not in envs:
                    made = make_env(env_of(episode, config.options))
                    envs[episode.env_id] = opened.enter_context(closing(made))
                for look in looks:
                    try:
                        drawn = rerendered(episode, envs[episode.env_id], look, config.views)
                    except (ValueError, OSError) as error:  # OSError: a texture is missing
                        raise ValueError(f"episode {source.path(name)} cannot be drawn again: {error}") from error
                    if not config.states:
                        drawn = replace(drawn, sim_state=np.zeros((0, 0)))
                    store.write(drawn, look_name(name, look))
                yield len(looks)


def look_name(name: str, look: int) -> str:
    """What an episode of this name is called under another look."""
    return f"{name}-look{look}"


def rerendered(episode: Episode, env: Adapter, look: int, views: tuple[str, ...] = ()) -> Episode:
    """The same episode with the pictures and camera poses of another look, and with `views`.

    env: of the episode's id. look: 0 is the episode's own. ValueError where the states do not lead to what was
    recorded.
    """
    world = env.unwrapped
    env.robot_spec.require(episode.spec, "the environment", "the episode")
    env.reset(seed=episode.seed, options={"split": episode.split, "look": look})
    shown, drawn = [], []
    for step, state in enumerate(episode.sim_state):
        world.load_sim_state(state)
        obs = Observation.of(world.observe(), env.robot_spec)
        _require_same(f"state at control step {step}", obs.state, episode.state[step])
        _require_same(f"keypoints at control step {step}", world.scene().keypoints, episode.keypoints[step])
        shown.append(obs)
        drawn.append(world.observe_views(views))
    seen = Observation.stack(shown)
    pictures, places = ({name: np.stack([d[name][i] for d in drawn]) for name in views} for i in range(2))
    return replace(
        episode, spec=env.robot_spec, images=seen.images, poses={**seen.poses, **places}, views=pictures
    )  # fmt: skip


def _require_same(what: str, now: np.ndarray, recorded: np.ndarray) -> None:
    if not np.allclose(now, recorded, rtol=0, atol=SAME, equal_nan=True):
        raise ValueError(
            f"its simulator states do not give the recorded {what}, which is off by up to "
            f"{np.nanmax(np.abs(now - recorded)):.3g}: it was recorded with another version of the task or with other "
            "`options`"
        )


def env_of(episode: Episode, options: Mapping[str, Any]) -> EnvConfig:
    """The environment that an episode was recorded in."""
    return EnvConfig(id=episode.env_id, split=episode.split, options=options)


def rerender(config: RerenderConfig) -> int:
    """Write what is missing in `out`; return how many episodes are there."""
    check_views(config.views)
    source, store = open_episodes(config.data), EpisodeStore(config.out)
    with claimed(store.root, "rerender.json", config.fingerprint(), used=lambda: bool(len(store))):
        store.clean()
        todo, total = _sort_out(config, source, store), len(source) * config.looks
        missing = sum(len(looks) for _, looks in todo)
        with tqdm(total=total, initial=total - missing, unit="episode", desc="rerender") as bar:
            for count in processes.run(RerenderJob(config, todo), range(len(todo)), config.workers):
                bar.update(count)
    return len(store)


def _sort_out(
    config: RerenderConfig, source: Episodes, store: EpisodeStore
) -> tuple[tuple[str, tuple[int, ...]], ...]:
    """The episodes of which looks are missing or damaged, and those looks. ValueError, before anything is drawn, for
    an episode that cannot be drawn again."""
    todo, checked = [], set()
    for name in tqdm(source.names(), desc=f"checking {source.root}", unit="episode", leave=False):
        episode = source.read(name)
        require_states(episode, str(source.path(name)))
        if episode.env_id not in checked:
            require_looks(episode, config.options)
            checked.add(episode.env_id)
        looks = range(1, config.looks + 1)
        missing = tuple(look for look in looks if not _is_there(store, look_name(name, look), episode))
        if missing:
            todo.append((name, missing))
    return tuple(todo)


def _is_there(store: EpisodeStore, name: str, episode: Episode) -> bool:
    """Whether a look of the episode is there and whole. ValueError where it is of another episode."""
    if name not in store:
        return False
    try:
        found = store.read(name, states=False)
    except EpisodeError as error:
        tqdm.write(f"{error} It is being drawn again.")
        return False
    if not np.array_equal(found.action, episode.action) or not np.array_equal(found.state, episode.state):
        raise ValueError(
            f"{store.path(name)} is a look of another episode than the one in `data`, which was collected anew "
            "since; choose another `out`"
        )
    return True


def require_states(episode: Episode, where: str) -> None:
    """ValueError for an episode without simulator states, or with those of another simulator."""
    if not episode.sim_state.size:
        raise ValueError(
            f"episode {where} has no simulator states, so it cannot be drawn again: collect it with states=drawn or "
            "states=whole, in an environment that tells them"
        )
    here = versions(*SIMULATORS)
    differing = [f"{name} {episode.versions.get(name, 'unknown')}" for name in SIMULATORS
                 if episode.versions.get(name) != here[name]]  # fmt: skip
    if differing:
        installed = ", ".join(f"{name} {version}" for name, version in here.items())
        raise ValueError(
            f"episode {where} has simulator states of {' and '.join(differing)}, and {installed} is installed: install "
            "those versions, or collect it again"
        )


def require_looks(episode: Episode, options: Mapping[str, Any]) -> None:
    """ValueError where the episode's environment is not one that shows a recorded state under other looks."""
    with closing(make_env(env_of(episode, options))) as env:
        if not all(hasattr(env.unwrapped, name) for name in ("load_sim_state", "observe_views")):
            raise ValueError(f"{episode.env_id} is none of our environments: it cannot show a state under another look")


@hydra.main(version_base="1.3", config_path="../configs", config_name="rerender")
def main(cfg: DictConfig) -> None:
    with clear_errors():
        preflight.require()
        raw = OmegaConf.to_container(cfg, resolve=True)
        workers = processes.available_cores() if raw["workers"] is None else raw["workers"]
        config = from_settings(RerenderConfig, {**raw, "workers": workers})
        print(f"{rerender(config)} episodes in {config.out}")


if __name__ == "__main__":
    start(main)
