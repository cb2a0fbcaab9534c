"""The two sides of the split, to train on and to measure on: read into memory, or, tokenized, from disk."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from tqdm import tqdm

from envs.types import Episode, Spec
from world_model.model import WorldModel
from world_model.tokens.text import TextTokenizer
from world_model.training import sources
from world_model.training.copies import Copies, lay_on_disk
from world_model.training.dataset import EpisodeDataset
from world_model.training.sources import Source
from world_model.training.tokenized import SIDES, TokenizedSource, is_tokenized

Found = Sequence[Source] | Sequence[TokenizedSource]


def open_folders(folders: Mapping[str, Sequence[str]], held_out: int | None, checked: slice = slice(None)) -> Found:
    """The folders of episodes that each setting names, all tokenized or none. EpisodeError for one that is missing or
    damaged, ValueError for both kinds together. checked: as of `TokenizedSource.open`."""
    paths = [(role, path) for role, each in folders.items() for path in each]
    tokenized = [path for _, path in paths if is_tokenized(path)]
    if not tokenized:
        return sources.open_sources(folders, held_out)
    others = [path for _, path in paths if path not in tokenized]
    if others:
        raise ValueError(
            f"{tokenized[0]} is tokenized and {others[0]} is not: run `python -m world_model.tokenize` for the latter "
            "too, or name the folders that the former was made from"
        )
    found = [TokenizedSource.open(role, path, checked) for role, path in paths]
    if len(copies := {source.copies for source in found}) > 1:
        raise ValueError(f"all tokenized folders must have as many copies, got {', '.join(map(str, sorted(copies)))}")
    return found


@dataclass(frozen=True)
class Side:
    """The episodes of one side, with the labels that their sources are to teach. kept: in memory, each with the name of
    its folder; None where they are read anew each time that one goes through them, because they may be more than memory
    holds."""

    found: Found
    held_out: bool
    kept: list[tuple[str, Episode]] | None

    @classmethod
    def read(cls, found: Found, held_out: bool) -> Side:
        """All of them at once, unless they are tokenized."""
        side = cls(found, held_out, None)
        on_disk = any(isinstance(source, TokenizedSource) for source in found)
        return side if on_disk else replace(side, kept=list(side._named()))

    @property
    def on_disk(self) -> bool:
        return self.kept is None

    def __len__(self) -> int:
        return sum(len(source.held_out if self.held_out else source.train) for source in self.found)

    def __iter__(self) -> Iterator[Episode]:
        return (episode for _, episode in (self._named() if self.on_disk else self.kept))

    def specs(self) -> list[tuple[Spec, str]]:
        """The specs of the episodes, each with the name of its folder; those that follow their like are left out."""
        found: list[tuple[Spec, str]] = []
        for folder, episode in self._named() if self.on_disk else self.kept:
            if not found or (episode.spec, folder) != found[-1]:
                found.append((episode.spec, folder))
        return found

    def dataset(
        self, model: WorldModel, text: TextTokenizer, discount: float, with_views: bool, folder: Path
    ) -> EpisodeDataset | None:  # fmt: skip
        """Laid end to end in memory, or in files of `folder`; None where there are none."""
        layout, frames = model.layout, model.frame_tokenizer
        parts = (EpisodeDataset.of(e, layout, frames, model.actions, text, discount, with_views) for e in self)
        if not len(self):
            return None
        if not self.on_disk:
            return EpisodeDataset.join(list(parts))
        folder.mkdir(parents=True, exist_ok=True)
        shown = tqdm(parts, "laying out", len(self), unit="episode", leave=False)
        return EpisodeDataset.on_disk(shown, layout, frames, self._copies(layout.spec, folder), folder)

    def _copies(self, spec: Spec, folder: Path) -> Copies:
        """spec: of the model, whose ranges the noise is a share of."""
        side, scale = SIDES[self.held_out], spec.state_high - spec.state_low

        def changes() -> Iterator[dict[str, np.ndarray]]:
            before = 0
            for each in (shard for source in self.found for shard in source.changes(self.held_out)):
                yield {**each, "episode": each["episode"] + np.int32(before), "noise": each["noise"] * scale}
                before += len(each["place"])

        paths = tuple(path for source in self.found for path in source.ids(self.held_out))
        rows = np.cumsum([0, *(rows for source in self.found for rows in source.rows[side])])
        translations = self.found[0].translations  # a training has one setting of `augment`, of which each folder is
        return Copies(paths, rows, **lay_on_disk(changes(), folder), translations=translations)

    def _named(self) -> Iterator[tuple[str, Episode]]:
        for source in self.found:
            for episode in source.each(self.held_out):
                labelled = source.role == "data"
                yield str(source.root), episode if labelled else without_expert(episode, source.role == "on_policy")


def without_expert(episode: Episode, valued: bool) -> Episode:
    """What followed which action can still be learnt from it, but no longer what an expert would have done; nor what
    it is worth to be there, unless it is an attempt of the model's own (`valued`): others may go on better or worse."""
    off_task = episode.off_task_steps if valued else len(episode)
    return replace(episode, expert=np.full_like(episode.expert, np.nan), off_task_steps=off_task)
