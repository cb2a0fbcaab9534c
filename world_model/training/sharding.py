"""Training by several processes, as `torchrun` starts them: which one this is, and a model that is spread over them.

Every process draws the same batch and cuts its share of it; FSDP2 gathers the weights of one transformer block at a
time, and averages the gradients. So how many processes there are changes rounding alone. The first of them speaks,
measures and exports.
"""

from __future__ import annotations

import copy
import os
import sys
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from datetime import timedelta
from typing import NoReturn

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor

from world_model.checkpoint import FRAMES
from world_model.model import WorldModel
from world_model.training.loss import Losses

FROM_TORCHRUN = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
TELLTALE = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "TORCHELASTIC_RUN_ID")  # the others are set for other reasons too
PATIENCE = timedelta(hours=2)  # with a process that measures or writes while the others wait
SETTLE = 5.0  # seconds in which torchrun ends the others once the first has failed


# -------------------------------------------------------------------------------------------------- processes


@dataclass(frozen=True)
class Processes:
    """Those that train together. device: where this one computes. rank: its number. world_size: how many there are.
    mesh: over which weights are spread; None for a process that was started without torchrun."""

    device: torch.device
    rank: int = 0
    world_size: int = 1
    mesh: DeviceMesh | None = None

    @property
    def alone(self) -> bool:
        """Whether nothing is spread."""
        return self.mesh is None

    @property
    def first(self) -> bool:
        return self.rank == 0

    def share(self, batch: int) -> slice:
        """The windows of a batch that are this one's."""
        each = batch // self.world_size
        return slice(self.rank * each, (self.rank + 1) * each)

    def agree(self, value: float) -> float:
        """What the first has: clocks differ, and all must take the same turn."""
        if self.alone:
            return value
        told = torch.tensor(value, dtype=torch.float64)
        dist.broadcast(told, 0)
        return told.item()

    def end(self) -> None:
        """Part where nothing is left to do together."""
        if not self.alone:
            dist.destroy_process_group()

    def whole_batch(self, losses: Losses) -> Losses:
        """The losses of the batch, from those of everyone's share."""
        if self.alone:
            return losses
        flat = torch.stack([losses.total.detach() / self.world_size, *losses.sums.values(), *losses.counts.values()])
        dist.all_reduce(flat)
        total, *rest = flat.unbind()
        middle = len(losses.sums)
        sums, counts = (dict(zip(losses.sums, part, strict=True)) for part in (rest[:middle], rest[middle:]))
        return Losses(total, sums, counts)


def join(device: torch.device, batch: int, env: Mapping[str, str] = os.environ) -> Processes:
    """The processes that `torchrun` started, of which this is one, or this one alone. device: the kind to compute on.

    ValueError that says what to do where torchrun's variables are incomplete, where they cannot share a batch evenly,
    or where a machine has too few devices.
    """
    if not any(name in env for name in TELLTALE):
        return Processes(device)
    rank, size, local = _read(env)
    if batch % size:
        why = f"{size} processes are more than `batch`, {batch} windows" if size > batch else (
            f"{size} processes cannot share `batch`, {batch} windows, evenly"
        )  # fmt: skip
        smaller = max(n for n in range(1, min(batch, size) + 1) if batch % n == 0)
        larger = -(-batch // size) * size
        raise ValueError(
            f"{why}: start {smaller} (torchrun's --nproc-per-node, times --nnodes) or set `batch={larger}`"
        )
    backend, bound = "gloo", None
    if device.type != "cpu":
        devices = torch.accelerator.device_count()
        if device.index is not None:
            raise ValueError(f"device={device} is one, but each process takes its own: use device={device.type}")
        if local >= devices:
            raise ValueError(
                f"process {local} of this machine finds {devices} {device.type} device(s): start at most {devices} a "
                "machine (--nproc-per-node), or use device=cpu"
            )
        device = torch.device(device.type, local)
        torch.accelerator.set_device_index(local)
        backend, bound = f"cpu:gloo,{device.type}:{dist.get_default_backend_for_device(device.type)}", device
    if not dist.is_initialized():
        dist.init_process_group(backend, timeout=PATIENCE, device_id=bound)
    return Processes(device, rank, size, init_device_mesh(device.type, (size,)))


def _read(env: Mapping[str, str]) -> tuple[int, int, int]:
    """Rank of this process, how many there are, and its rank on this machine."""
    missing = [name for name in FROM_TORCHRUN if not env.get(name)]
    wrong = [name for name in FROM_TORCHRUN[:3] if name not in missing and not env[name].isdigit()]
    if missing or wrong:
        are = "is" if len(missing) == 1 else "are"
        what = f"{', '.join(missing)} {are} missing" if missing else f"{wrong[0]} is {env[wrong[0]]!r}"
        given = ", ".join(name for name in TELLTALE if name in env)
        raise ValueError(
            f"by {given} this is one of several processes, but {what}. Start them with `torchrun "
            f"--nproc-per-node=N -m world_model.train ...`, or unset {given} to train with one"
        )
    return tuple(int(env[name]) for name in FROM_TORCHRUN[:3])


@contextmanager
def first_speaks(env: Mapping[str, str] = os.environ) -> Iterator[None]:
    """What the others would say is what the first says."""
    if env.get("RANK", "0") == "0":
        yield
        return
    with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
        yield


def leave(message: str, env: Mapping[str, str] = os.environ) -> NoReturn:
    """End with an error. One that all processes meet is said once, by the first: torchrun then ends the others, while
    they wait. One that only another meets is said by that one."""
    rank = env.get("RANK", "0")
    if rank != "0":
        time.sleep(SETTLE)
        message = f"{message} (process {rank})"
    sys.exit(message)


# -------------------------------------------------------------------------------------------------- the model


def units(model: WorldModel) -> dict[str, nn.Module]:
    """The modules whose weights are gathered together, each for as long as it computes; what is in none of them, the
    embeddings and heads, is gathered for the whole of a step."""
    return {f"transformer.layers.{i}": layer for i, layer in enumerate(model.transformer.layers)}


class Replica:
    """The whole model, for the first process to measure and export; of one process alone, the model itself."""

    def __init__(self, model: WorldModel, processes: Processes):
        """model: before it is sharded, or else nothing can be copied of it."""
        self.model, self.processes = model, processes
        self._outline = None if processes.alone else self._empty(model)

    @staticmethod
    def _empty(model: WorldModel) -> WorldModel:
        """The same model with its weights on the meta device, where they take no memory, and with its tokenizer."""
        trained = [p for name, p in model.named_parameters() if not name.startswith(FRAMES)]
        memo = {id(p): nn.Parameter(p.detach().to("meta"), p.requires_grad) for p in trained}
        return copy.deepcopy(model, {**memo, id(model.frame_tokenizer): model.frame_tokenizer})

    def gather(self) -> WorldModel | None:
        """The weights of now; all processes call it, and all but the first get None."""
        if self.processes.alone:
            return self.model
        weights = {}
        for name, value in self.model.state_dict().items():
            value = value.full_tensor() if isinstance(value, DTensor) else value
            if self.processes.first:
                weights[name] = value
        if not self.processes.first:
            return None
        whole = self._empty(self._outline)
        whole.load_state_dict(weights, assign=True)
        return whole.to(self.processes.device).eval()


def shard(model: WorldModel, processes: Processes) -> Replica:
    """Spread a model over the processes, in place; nothing happens to one of a process alone."""
    replica = Replica(model, processes)
    if processes.alone:
        return replica
    # It warns that who changes in place the keys and values that a block returns takes its hooks away; nobody does.
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module")
    model.frame_tokenizer.to(processes.device)
    ignored = {p for name, p in model.named_parameters() if name.startswith(FRAMES)}
    # A block computes in `model.precision` anyway, so to gather its weights in it halves what is sent and changes
    # nothing; what is already of that type need not be cast, nor its frozen segments rebuilt.
    narrow = {"param_dtype": model.precision, "reduce_dtype": torch.float32} if model.precision != torch.float32 else {}
    for unit in units(model).values():
        fully_shard(unit, mesh=processes.mesh, mp_policy=MixedPrecisionPolicy(**narrow, cast_forward_inputs=False))
    fully_shard(model, mesh=processes.mesh, ignored_params=ignored)
    return replica

