"""Write episodes in another format: a LeRobot data set, robomimic's HDF5, or this project's own files.

    python -m agent.convert data=data/lift to=lerobot out=data/lift_lerobot
    python -m agent.convert data=downloads/aloha to=native out=data/aloha
    python -m agent.convert data=data/lift to=robomimic out=data/lift.hdf5

What lies under `data` is told by looking. Run the same command again to go on where it stopped.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import hydra
import numpy as np
from omegaconf import DictConfig, OmegaConf
from tqdm import tqdm

from agent.collection.simulation import Simulations
from agent.launch.command import RunError, clear_errors, start
from envs.data.formats.extras import require_package
from envs.data.formats.folder import Episodes, Format, format_of, open_episodes
from envs.data.settings import from_settings
from envs.data.store import EpisodeError, EpisodeStore
from envs.types import Episode


@dataclass(frozen=True)
class ConvertConfig:
    """configs/convert.yaml says what each of these means."""

    data: str
    to: Format
    out: str
    images: str = "video"
    crf: int = 18
    states: bool = True
    demonstrations: bool = False
    skip: bool = False

    def __post_init__(self) -> None:
        if self.images not in ("video", "png"):
            raise ValueError(f"images must be video or png, got {self.images}")
        if not 0 <= self.crf <= 51:
            raise ValueError(f"crf must be 0 to 51, got {self.crf}")
        if Path(self.data).resolve() == Path(self.out).resolve():
            raise ValueError("`out` must be another place than `data`: what is there is never overwritten")


class Writer(Protocol):
    """Takes episodes one after the other. `names`: those that are there already."""

    def names(self) -> Any: ...
    def write(self, episode: Episode, name: str) -> Any: ...


def convert(config: ConvertConfig) -> tuple[int, list[str]]:
    """Write what is missing in `out`; how many episodes are there now, and, with `skip`, what could not be read."""
    source = open_episodes(config.data)
    unread = []
    with ExitStack() as opened:
        writer = _writer(config, opened)
        if config.to != "native":
            opened.enter_context(writer.claimed())
        there = set(writer.names())
        for name in tqdm(source.names(), desc=f"to {config.to}", unit="episode"):
            if name in there:
                continue
            try:
                episode = source.read(name, config.states)
            except EpisodeError as error:
                if not config.skip:
                    raise
                unread.append(str(error))
                continue
            writer.write(changed(episode, config), name)
        if len(unread) == len(source):
            raise RunError(f"no episode in {config.data} can be read: {unread[0]}")
        return len(set(writer.names())), unread


def changed(episode: Episode, config: ConvertConfig) -> Episode:
    """The episode as the settings want it kept."""
    if not config.states:
        episode = replace(episode, sim_state=np.zeros((0, 0)))
    return replace(episode, expert=episode.action.copy()) if config.demonstrations else episode


def _writer(config: ConvertConfig, opened: ExitStack) -> Writer:
    """What writes to `out`. opened: closes what it needs. EpisodeError where a package is missing, ValueError where
    another format is there."""
    out = Path(config.out)
    if out.is_dir() and any(out.iterdir()):
        found = format_of(out)
        if found != config.to and (found != "native" or len(EpisodeStore(out))):
            raise ValueError(f"{out} holds episodes of the format {found}: choose another `out`")
    match config.to:
        case "lerobot":
            require_package("pyarrow", "to=lerobot")
            from envs.data.formats.lerobot_writer import LeRobotWriter

            return LeRobotWriter(out, config.images, config.crf)
        case "robomimic":
            require_package("h5py", "to=robomimic")
            from envs.data.formats.robomimic_writer import RobomimicWriter

            return RobomimicWriter(out, opened.enter_context(Simulations()) if config.states else lambda episode: None)
        case _:
            store = EpisodeStore(out)
            store.clean()
            return store


def summary(config: ConvertConfig, count: int) -> str:
    """The closing line."""
    found: Episodes = open_episodes(config.out)
    spec = found.read(found.names()[0], states=False).spec
    cameras = ", ".join(f"{camera.name} {camera.height} x {camera.width}" for camera in spec.cameras)
    return (
        f"{count} episodes in {config.out} ({config.to}): {cameras}; {len(spec.state)} state and {len(spec.action)} "
        f"action dimensions at {spec.control_hz:g} Hz"
    )


@hydra.main(version_base="1.3", config_path="../configs", config_name="convert")
def main(cfg: DictConfig) -> None:
    with clear_errors():
        config = from_settings(ConvertConfig, OmegaConf.to_container(cfg, resolve=True))
        count, unread = convert(config)
        for line in unread:
            print(f"left out: {line}")
        print(summary(config, count))


if __name__ == "__main__":
    start(main)
