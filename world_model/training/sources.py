"""The folders of episodes that a command reads: which episodes, of which robot, and on which side of the split."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from envs.data.fingerprint import Folder
from envs.data.formats.folder import Episodes, open_episodes
from envs.data.split import refuse_imagined, refuse_training
from envs.data.store import EpisodeError
from envs.types import Episode
from world_model.training.tokenized import is_tokenized


def as_folders(value: Any) -> Any:
    """A setting that lists folders, as a person may write it: one folder alone, or nothing. Anything else as it is."""
    if value is None or value == "":
        return []
    return [value] if isinstance(value, str) else value


@dataclass(frozen=True)
class Source:
    """A folder of episodes. role: the setting that names it. train, held_out: names of its episodes."""

    role: str
    store: Episodes
    train: tuple[str, ...]
    held_out: tuple[str, ...] = ()

    @property
    def root(self) -> Path:
        return self.store.root

    def each(self, held_out: bool = False) -> Iterator[Episode]:
        """The episodes of one side, one after the other. EpisodeError for one that is damaged, ValueError for one that
        no training may see, or that is imagined."""
        names = self.held_out if held_out else self.train
        for name in tqdm(names, desc=f"reading {self.root}", unit="episode", disable=not names):
            yield self.read(name)

    def read(self, name: str) -> Episode:
        """One episode of either side; errors as of `each`."""
        episode = self.store.read(name, states=False)
        refuse_training(episode.split, f"episodes in {self.root}")
        instead = "they are for policies; a model of the world learns from the world"
        refuse_imagined(episode.source, f"episodes in {self.root}", instead)
        return episode

    def fingerprint(self) -> Folder:
        """What the folder holds."""
        return Folder(self.role, str(self.root), self.store.digests())


def open_sources(folders: Mapping[str, Sequence[str]], held_out: int | None = None) -> list[Source]:
    """The folders that each setting names. EpisodeError for one that is missing or empty, or that holds ids alone, by
    its name.

    held_out: keep about one in so many seeds for measuring; None to take all episodes as they are.
    """
    sources = []
    for role, paths in folders.items():
        for path in paths:
            if is_tokenized(path):
                raise EpisodeError(f"{path} holds ids without pictures, which `world_model.train` alone reads: name "
                                   "the folders that it was made from")  # fmt: skip
            store = open_episodes(path)
            train, held = store.split(held_out) if held_out else (store.names(), [])
            sources.append(Source(role, store, tuple(train), tuple(held)))
    return sources


def why_nothing_to_train(sources: Sequence[Source], held_out: int) -> str:
    """What to do where every episode is on the held-out side."""
    count, places = sum(len(s.held_out) for s in sources), ", ".join(str(s.root) for s in sources)
    return (
        f"nothing to train on: the seeds of all {count} episodes under {places} are among the one in {held_out} that "
        "are held out. Collect episodes of other seeds, or choose another `held_out`"
    )


def why_nothing_held_out(sources: Sequence[Source], held_out: int) -> str:
    """What it means where no episode is on the held-out side."""
    count = sum(len(s.train) for s in sources)
    return (
        f"none of the {count} episodes is held out, for none of their seeds is among the one in {held_out} that are: "
        "training has no figures of its own. More seeds or a smaller `held_out` would give some"
    )
