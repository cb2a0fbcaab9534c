"""What a training by several processes resumes from, with any other number of processes or with one.

    manifest.json      sha256 of every other file, format of the folder
    meta.json          what the training is made from and how far it came
    shard-*.safetensors  each process's rows of the weights and of the optimizer's moments, written by
                       `torch.distributed.checkpoint`

A folder is written beside its place, synced and renamed by the first process, as checkpoints are; all processes have to
see it, so that on several machines it lies on a file system that they share. Safetensors and not DCP's own format,
which is read by unpickling. What a process alone resumes from are safetensors too, with the same names, and is read
alike.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import warnings
from collections.abc import Iterable
from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException

from envs.data.files import sync_folder, temporary_name, to_json, write_whole
from world_model import checkpoint
from world_model.checkpoint import FRAMES, CheckpointError
from world_model.model import WorldModel
from world_model.training.optimizers import MuonAdamW
from world_model.training.sharding import Processes


def are_in(folder: Path) -> bool:
    """Whether it was several processes that wrote what lies there."""
    return any(name.startswith(checkpoint.SHARD) for name in checkpoint.read_hashes(folder)[0])


def save(folder: Path, meta: dict, model: WorldModel, optimizer: MuonAdamW, processes: Processes) -> None:
    """Write a folder, in the place of one that a killed run left. All processes call it. CheckpointError where the disk
    refuses."""
    beside = Path(_of_first(str(temporary_name(folder))))
    try:
        if processes.first:
            beside.mkdir(parents=True)
        dist.barrier()
        dcp.save(
            {**_weights(model), **optimizer.state()},
            storage_writer=dcp.HuggingFaceStorageWriter(str(beside), save_distributed=True),
        )
        written = {path.name for path in beside.iterdir()}
        hashes = _hashes(beside, {name for name in written if name.startswith(_shard(processes.rank))}, processes)
        if unseen := sorted(hashes.keys() - written):
            raise OSError(
                f"{unseen[0]} was written on another machine: all machines must see `out`, on a file system they share"
            )
        if processes.first:
            _complete(folder, beside, meta, hashes)
        dist.barrier()
    except (CheckpointException, OSError) as error:
        if processes.first:
            shutil.rmtree(beside, ignore_errors=True)
        raise CheckpointError(
            f"cannot write {folder}: {_why(error)}. What was written before is whole; free some space or mend the "
            "folder, and run the same command again"
        ) from error


def load(folder: Path, model: WorldModel, optimizer: MuonAdamW, processes: Processes) -> None:
    """Take up what `save` wrote, or what a process alone did. All processes call it. CheckpointError where it is
    damaged or of another model."""
    hashes, _ = checkpoint.read_hashes(folder)
    there = sorted(name for name in hashes if (folder / name).exists())
    found = _hashes(folder, there[processes.rank :: processes.world_size], processes)
    for name in sorted(hashes):
        if found.get(name) != hashes[name]:
            raise CheckpointError(
                f"{folder / name} is {'damaged' if name in found else 'missing'}: restore it, or remove the folder and "
                f"let {folder.parent / 'last'} name the one before"
            )
    reader = dcp.HuggingFaceStorageReader(str(folder))
    kept = reader.read_metadata().state_dict_metadata
    moments = {key: about for key, about in kept.items() if key.partition("/")[2] in optimizer.named}
    state = {key: _room(optimizer.named[key.partition("/")[2]], about.size) for key, about in moments.items()}
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="torch.distributed is disabled")  # which `no_dist` asks for
            dcp.load({**_weights(model), **state}, storage_reader=reader, no_dist=processes.alone)
    except CheckpointException as error:
        raise CheckpointError(f"{folder} does not fit this model: {_why(error)}") from error
    optimizer.load_state(state)


def _weights(model: WorldModel) -> dict[str, Tensor]:
    """Without the image tokenizer's, which are not trained."""
    return {name: value for name, value in model.state_dict().items() if not name.startswith(FRAMES)}


def _room(parameter: Tensor, size: torch.Size) -> Tensor:
    """For a moment, spread as its parameter is, or for a count of steps, which stays on the CPU."""
    return torch.zeros_like(parameter.detach()) if size == parameter.shape else torch.zeros(size)


def _complete(folder: Path, beside: Path, meta: dict, hashes: dict[str, str]) -> None:
    """Add what tells the shards, and put all of it in its place."""
    about = to_json(meta, sort_keys=True).encode()
    hashes = {**hashes, "meta.json": hashlib.sha256(about).hexdigest()}
    write_whole(beside / "meta.json", about)
    write_whole(beside / "manifest.json", to_json({"format": checkpoint.FORMAT, "sha256": hashes}, sort_keys=True))
    if folder.exists():
        shutil.rmtree(folder)
    os.rename(beside, folder)
    sync_folder(folder.parent)


def _shard(rank: int) -> str:
    """Begins the name of what DCP writes in this process."""
    return f"{checkpoint.SHARD}{rank + 1:05d}-"


def _hashes(folder: Path, names: Iterable[str], processes: Processes) -> dict[str, str]:
    """sha256 of the files that all processes name, each of which reads its own."""
    mine = {}
    for name in names:
        with open(folder / name, "rb") as file:
            mine[name] = hashlib.file_digest(file, "sha256").hexdigest()
    if processes.alone:
        return mine
    everyone: list[dict[str, str]] = [{}] * processes.world_size
    dist.all_gather_object(everyone, mine)
    return {name: value for part in everyone for name, value in part.items()}


def _of_first(value: str) -> str:
    told = [value]
    dist.broadcast_object_list(told, 0)
    return told[0]


def _why(error: BaseException) -> str:
    """The first thing that went wrong in any process."""
    failures = getattr(error, "failures", {})
    cause = next((each[0] for each in failures.values()), error)
    return getattr(cause, "strerror", None) or str(cause)
