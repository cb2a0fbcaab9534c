"""What lies in a folder of episodes is told by looking: this project's own, LeRobot's or robomimic's."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, Protocol

from envs.data.formats.extras import require_package
from envs.data.store import EpisodeError, EpisodeStore
from envs.types import Episode

Format = Literal["native", "lerobot", "robomimic"]
HDF5 = (".hdf5", ".h5")


class Episodes(Protocol):
    """Episodes that can be read by name, whatever they are kept in. `EpisodeStore` says what each of these does."""

    root: Path

    def names(self) -> list[str]: ...
    def path(self, name: str) -> Path: ...
    def read(self, name: str, states: bool = True) -> Episode: ...
    def split(self, every: int) -> tuple[list[str], list[str]]: ...
    def digests(self) -> dict[str, str]: ...
    def __len__(self) -> int: ...
    def __contains__(self, name: str) -> bool: ...
    def __iter__(self) -> Iterator[Episode]: ...


def format_of(path: str | os.PathLike[str]) -> Format:
    """Whose format the data under a path are of; `native` where nothing says otherwise."""
    path = Path(path)
    if (path / "meta" / "info.json").is_file() or (path / "meta" / "episodes").is_dir():
        return "lerobot"
    return "robomimic" if hdf5_of(path) else "native"


def hdf5_of(path: Path) -> Path | None:
    """The one HDF5 file that a path is or that lies in a folder; None where there is none. EpisodeError for several."""
    if path.is_file():
        return path if path.suffix in HDF5 else None
    found = sorted(p for p in path.glob("*") if p.suffix in HDF5 and not p.name.startswith("."))
    if len(found) > 1:
        raise EpisodeError(f"{path} holds several HDF5 files, {found[0].name} and {found[1].name}: name one of them")
    return found[0] if found else None


def open_episodes(path: str | os.PathLike[str]) -> Episodes:
    """The episodes under a path, of any format. EpisodeError where it is missing, empty, or none of them."""
    path = Path(path)
    match format_of(path):
        case "lerobot":
            require_package("pyarrow", f"{path} is a LeRobot data set; reading it")
            from envs.data.formats.lerobot import LeRobotFolder

            return LeRobotFolder(path).require()
        case "robomimic":
            require_package("h5py", f"{path} is robomimic's; reading it")
            from envs.data.formats.robomimic import RobomimicFile

            return RobomimicFile(hdf5_of(path)).require()
        case _:
            return EpisodeStore(path).require()
