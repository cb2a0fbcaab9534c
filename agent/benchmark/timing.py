"""Contestants that take turns, so that their ratios hold on a busy machine where seconds do not."""

from __future__ import annotations

import time
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm


@dataclass(frozen=True)
class Contestant:
    """run: what is timed. amount: what one run gets done, in `unit`. times: how often a run would have to be repeated
    to get that much done, where a run is only a part of it. counted: whether its memory and products are counted too.
    """

    run: Callable[[], Any]
    amount: float
    unit: str
    times: float = 1.0
    counted: bool = False


def take_turns(
    contestants: Mapping[str, Contestant], rounds: int, device: torch.device, title: str
) -> dict[str, dict[str, Any]]:  # fmt: skip
    """Name -> median seconds, their range, and how much a second. The first round warms up and does not count."""
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    with tqdm(total=(rounds + 1) * len(contestants), desc=title, unit="run", leave=False) as bar:
        for turn in range(rounds + 1):
            for name, contestant in contestants.items():
                took = timed(contestant.run, device) * contestant.times
                if turn:
                    seconds[name].append(took)
                bar.update()
    rows = {}
    for name, contestant in contestants.items():
        median = float(np.median(seconds[name]))
        rows[name] = {
            "seconds": median, "range": [min(seconds[name]), max(seconds[name])],
            "per_second": contestant.amount / median, "unit": contestant.unit,
        }  # fmt: skip
        if contestant.counted:
            rows[name] |= {"peak_mib": peak_mib(contestant.run, device), "gflop": gflop(contestant)}
    return rows


def timed(run: Callable[[], object], device: torch.device) -> float:
    """Seconds of one call, until the device is done."""
    wait(device)
    began = time.perf_counter()
    run()
    wait(device)
    return time.perf_counter() - began


def wait(device: torch.device) -> None:
    """Until an accelerator has done what it was asked."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def peak_mib(run: Callable[[], object], device: torch.device) -> float:
    """The most memory that tensors of one call hold at a time, beyond what was there before."""
    if device.type == "cuda":
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        run()
        return (torch.cuda.max_memory_allocated(device) - before) / 2**20
    with Memory() as memory:
        run()
    return memory.peak / 2**20


class Memory(TorchDispatchMode):
    """Counts the bytes that tensors made under it hold, for as long as they live. What a kernel needs for itself while
    it runs is not seen."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self.alive: set[int] = set()  # addresses

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        there = {x.untyped_storage().data_ptr() for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)}
        made = func(*args, **(kwargs or {}))
        for x in tree_leaves(made):
            if isinstance(x, Tensor) and x.untyped_storage().data_ptr() not in self.alive | there:
                self._add(x.untyped_storage())
        return made

    def _add(self, storage: torch.UntypedStorage) -> None:
        address, size = storage.data_ptr(), storage.nbytes()
        self.alive.add(address)
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._remove, address, size)

    def _remove(self, address: int, size: int) -> None:
        self.alive.discard(address)
        self.now -= size


def gflop(contestant: Contestant) -> float:
    """Multiplications and additions of its matrix products and attention, in billions."""
    with FlopCounterMode(display=False, custom_mapping={FUSED_ATTENTION: _attention_flop}) as counter:
        contestant.run()
    return counter.get_total_flops() * contestant.times / 1e9


FUSED_ATTENTION = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu  # which the counter does not know


def _attention_flop(q: torch.Size, k: torch.Size, v: torch.Size, *_: Any, out_shape: Any = None, **__: Any) -> int:
    """Shapes (B, heads, ids, head_dim)."""
    return 2 * q[0] * q[1] * q[2] * k[2] * (q[3] + v[3])
