"""Rows on disk instead of in memory: what is gathered from them costs memory only until it is copied."""

from __future__ import annotations

import mmap
import os
import tempfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from envs.data.augmentation import Change

OPEN = 128  # files at once: each needs a descriptor, of which a process has 1024


@dataclass(frozen=True)
class Copies:
    """Image ids of K copies of the same R moments, memory-mapped. In a copy each episode has one change of colours and
    place throughout, which was made before its images became ids.

    paths: the shards' ids, (K, rows of the shard, ids) each. first: (shards + 1,) i64, the row at which each begins,
    and R; no episode crosses it. episode: (R,) i32, the number of each row's episode. place: (E, K, 4) f32, as
    `Change.place`. noise: (E, K, P) f32, in the state's units. translations: as `Change.translations`.
    """

    paths: tuple[Path, ...]
    first: np.ndarray
    episode: np.ndarray
    place: np.ndarray
    noise: np.ndarray
    translations: tuple[str, ...] = ()

    def __len__(self) -> int:
        """K."""
        return self.place.shape[1]

    @cached_property
    def _open(self) -> Callable[[Path], np.ndarray]:
        return lru_cache(OPEN)(partial(np.load, mmap_mode="r"))

    def ids(self, rows: np.ndarray, copy: np.ndarray) -> Tensor:
        """Of rows (B, n), each line of one episode, as copies (B,) show them: (B, n, ids) i64."""
        shards = np.searchsorted(self.first, rows[:, 0], side="right") - 1
        parts = []
        for line, shard, which in zip(rows, shards, copy, strict=True):
            ids = self._open(self.paths[shard])
            parts.append(ids[which, line - self.first[shard]])
            release(ids)
        return torch.from_numpy(np.stack(parts).astype(np.int64))

    def change(self, rows: np.ndarray, copy: np.ndarray) -> Change:
        """What was done to the episodes of rows (B,) in copies (B,), for all of them but their images."""
        episode = self.episode[rows]
        place, noise = (torch.from_numpy(array[episode, copy]) for array in (self.place, self.noise))
        release(self.episode, self.place, self.noise)
        return Change(torch.empty(0, 3, 3), place, {}, 0.0, noise, self.translations)


def lay_on_disk(parts: Iterable[Mapping[str, np.ndarray]], folder: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """Arrays end to end along their first axis, by name, memory-mapped from files without a name in `folder`, which are
    gone when nobody reads them any more, after a kill too. OSError where the disk is full."""
    files: dict[str, Any] = {}
    likes: dict[str, np.ndarray] = {}
    rows: dict[str, int] = {}
    for part in parts:
        for name, array in part.items():
            if name not in files:
                files[name], likes[name], rows[name] = tempfile.TemporaryFile(dir=folder), array[:0], 0  # noqa: SIM115
            files[name].write(np.ascontiguousarray(array).data)  # written, for a map on a full disk ends the process
            rows[name] += len(array)
    found = {}
    for name, file in files.items():
        with file:
            file.flush()
            shape, dtype = (rows[name], *likes[name].shape[1:]), likes[name].dtype
            # what is empty cannot be mapped
            found[name] = np.zeros(shape, dtype) if 0 in shape else np.memmap(file, dtype, "r", shape=shape)
    return found


def release(*arrays: np.ndarray) -> None:
    """Give back the memory of what was read of memory-mapped arrays; it stays in the system's cache for as long as
    there is room. Otherwise a process seems to grow up to the size of its files."""
    for array in arrays:
        if isinstance(array.base, mmap.mmap):
            array.base.madvise(mmap.MADV_DONTNEED)
