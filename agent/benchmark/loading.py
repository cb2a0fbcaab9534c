"""What it costs to bring windows of episodes to a training step, in time and in memory: images in memory that are
changed and encoded in every batch, or ids on disk, as `world_model.tokenize` writes them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from agent.benchmark.timing import Contestant
from agent.launch import processes
from envs.data.augmentation import Augmentation
from envs.data.fingerprint import fingerprint
from envs.types import Episode
from world_model import checkpoint, tokenize
from world_model.checkpoint import Loaded
from world_model.metrics.windows import spread_evenly
from world_model.training import tokenized
from world_model.training.dataset import EpisodeDataset
from world_model.training.sides import Side
from world_model.training.tokenized import Tokenized, TokenizedSource

MEMORY, DISK = "loading, images in memory", "loading, memory-mapped ids"
BATCHES = 20  # a run: one takes less than a millisecond
EPISODES = 256  # a shard


def write(folder: Path, loaded: Loaded, episodes: Sequence[Episode], times: int) -> None:
    """The same episodes `times` over, tokenized in one copy that is not changed."""
    unchanged = Augmentation(share=0.0).draw(1, torch.Generator())
    place, noise = unchanged.place.numpy(), np.zeros((1, len(loaded.spec.state)), np.float32)
    made = [
        Tokenized(tokenized.without_pictures(e), tokenize.encode(loaded.frames, e, unchanged), place, noise)
        for e in episodes
    ]
    every = made * times
    tokenized.write_manifest(folder, fingerprint({"copies": 1}, {}), {"train": len(every), "held_out": 0})
    for shard, start in enumerate(range(0, len(every), EPISODES)):
        path = tokenized.shard_path(folder, "train", shard)
        tokenized.write_shard(path, every[start : start + EPISODES])


def open_dataset(folder: Path, loaded: Loaded, on_disk: bool = True) -> EpisodeDataset:
    """Of tokenized episodes; or of black pictures in memory, as much as those that they were made from."""
    side = Side([TokenizedSource.open("data", folder)], False, None)
    if not on_disk:
        side = replace(side, kept=[("", episode) for episode in side])
    return side.dataset(loaded.model, loaded.text, loaded.meta["discount"], False, folder)


def contestants(
    loaded: Loaded, memory: EpisodeDataset, disk: EpisodeDataset, batch: int, window: int
) -> dict[str, Contestant]:  # fmt: skip
    """Both load other windows in every batch. In tokens, as the training step that is to consume them is counted."""
    at, rng = loaded.model.layout, np.random.default_rng(0)
    rows = spread_evenly(memory, len(memory), 1)
    tokens = batch * (at.instruction + window * (at.step + at.act + at.next))

    def load(dataset: EpisodeDataset, augment: Augmentation | None) -> None:
        for starts in rng.choice(rows, (BATCHES, batch)):
            change = augment.draw(batch, torch.Generator().manual_seed(0)) if augment else None
            dataset.batch(starts, window, change)

    return {
        MEMORY: Contestant(lambda: load(memory, Augmentation()), BATCHES * tokens, "tokens"),
        DISK: Contestant(lambda: load(disk, None), BATCHES * tokens, "tokens"),
    }


@dataclass(frozen=True)
class Footprint:
    """A job of a process of its own: how much more memory it holds at most than before, while it opens the folder of
    tokenized episodes `root/times` and loads batches from it, in MiB."""

    checkpoint: str
    root: str
    on_disk: bool
    batch: int
    window: int
    batches: int = 500

    def work(self, seeds: Iterator[int]) -> Iterator[tuple[int, float]]:
        """For each number of times that the episodes are repeated: control steps, MiB."""
        loaded = checkpoint.load(self.checkpoint, torch.device("cpu"))
        for times in seeds:
            Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
            before = _status("VmRSS")
            dataset = open_dataset(Path(self.root) / str(times), loaded, self.on_disk)
            rng = np.random.default_rng(0)
            for _ in range(self.batches if self.on_disk else 1):
                dataset.batch(rng.integers(len(dataset), size=self.batch), self.window)
            yield len(dataset), _status("VmHWM") - before


def _status(name: str) -> float:
    """A figure of this process's memory, in MiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(f"{name}:")).split()[1]) / 1024


def measure_memory(
    root: Path, folder: str, loaded: Loaded, episodes: Sequence[Episode], repeats: Sequence[int], batch: int,
    window: int,
) -> dict[str, dict[str, float]]:  # fmt: skip
    """Name of a contestant -> MiB by control steps, the same episodes repeated. root: where they are written to.
    folder: of the checkpoint."""
    found: dict[str, dict[str, float]] = {MEMORY: {}, DISK: {}}
    for times in repeats:
        write(root / str(times), loaded, episodes, times)
        for name in found:
            job = Footprint(folder, str(root), name == DISK, batch, window)
            ((rows, mib),) = processes.run(job, [times], workers=1)
            found[name][f"mib_of_{rows}_control_steps"] = mib
    return found
