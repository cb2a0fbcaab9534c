"""Ask the expert again about recorded episodes, after it was mended: nothing is simulated anew.

    python -m agent.relabel env=fold_half data=data/fold_half out=data/fold_half_again

Experts are functions of the scene, and episodes keep the scene of every step. Run the same command again to go on.
"""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

import hydra
import numpy as np
from omegaconf import DictConfig, OmegaConf
from tqdm import tqdm

from agent.build import EnvConfig, env_config, make_env, require_expert
from agent.launch.command import clear_errors, start
from envs.data.formats.folder import open_episodes
from envs.data.store import EpisodeStore
from envs.types import Episode, Scene
from policies.base import SinglePolicy, ask_one


@dataclass(frozen=True)
class RelabelConfig:
    """data, out: folders of episodes, read and written."""

    env: EnvConfig
    data: str
    out: str


def relabelled(episode: Episode, expert: SinglePolicy, stages: tuple[str, ...]) -> Episode:
    """The same episode with what the expert would do now.

    stages: all subtasks of the task in order. ValueError for a subtask that is not among them.
    """
    unknown = set(episode.subtask_names) - set(stages)
    if unknown:
        raise ValueError(f"{episode.env_id} has no subtask {', '.join(sorted(unknown))}: these episodes are another's")
    names = [part.name for part in episode.spec.state]
    jaws = next((i for i, name in enumerate(names) if name.endswith(".opening")), None)
    if jaws is None or not episode.spec.positions:
        raise ValueError(f"{episode.env_id} records no hand (`.x` to `.z`) and jaws (`.opening`) for experts to read")
    hand, labels = list(episode.spec.positions[0]), np.empty_like(episode.expert)
    turns = [i for i, name in enumerate(names) if name.endswith((".rx", ".ry", ".rz"))]
    turned = episode.state[:, turns] if len(turns) == 3 else np.zeros((len(episode) + 1, 3), np.float32)
    state = expert.init(episode.instruction, episode.seed)
    for step in range(len(episode)):
        position, opening = episode.state[step, hand], float(episode.state[step, jaws])
        stage = stages.index(episode.subtask_names[episode.subtask[step]])
        scene = Scene(episode.keypoints[step], int(episode.held[step]), stage, opening, position, turned[step])
        chunk, state = ask_one(expert, episode.obs(step), state, scene)
        labels[step] = np.clip(chunk[0], episode.spec.action_low, episode.spec.action_high)
    return replace(episode, expert=labels)


def relabel(config: RelabelConfig) -> int:
    """Write what is missing in `out`; returns the number of episodes that are there."""
    store = EpisodeStore(config.out)
    if Path(config.data).resolve() == Path(config.out).resolve():
        raise ValueError("`out` must be another folder than `data`: recorded labels are never overwritten")
    source = open_episodes(config.data)
    with closing(make_env(config.env)) as env:
        expert, stages = require_expert(config.env, env.robot_spec), env.unwrapped.subtask_names
    store.clean()
    for name in tqdm(source.names(), desc="relabel", unit="episode"):
        if name not in store:
            store.write(relabelled(source.read(name), expert, stages), name)
    return len(store)


@hydra.main(version_base="1.3", config_path="../configs", config_name="relabel")
def main(cfg: DictConfig) -> None:
    with clear_errors():
        raw = OmegaConf.to_container(cfg, resolve=True)
        env = env_config({**raw, "split": "train"})
        print(f"{relabel(RelabelConfig(env, raw['data'], raw['out']))} episodes in {raw['out']}")


if __name__ == "__main__":
    start(main)
