"""Where to compute, and in which arithmetic."""

from __future__ import annotations

from functools import lru_cache

import torch


def choose_device(name: str) -> torch.device:
    """A device by name; `auto` is the accelerator where there is one. ValueError for one that torch lacks."""
    if name == "auto":
        name = torch.accelerator.current_accelerator().type if torch.accelerator.is_available() else "cpu"
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise ValueError(f"device={name} was asked for, but torch sees no CUDA device; use device=auto or device=cpu")
    return torch.device(name)


def choose_precision(name: str, device: torch.device) -> torch.dtype:
    """An arithmetic by name: bf16, fp32, or with `auto` the one that is fastest there. ValueError for any other."""
    named = {"auto": fast_precision(device), "bf16": torch.bfloat16, "fp32": torch.float32}
    if name not in named:
        raise ValueError(f"precision={name}: it must be one of {', '.join(named)}")
    return named[name]


def fast_precision(device: torch.device) -> torch.dtype:
    """The arithmetic that is fastest there: bfloat16 on accelerators and on processors with units for it, where
    training and imagining take half the time; without them it is emulated and slower."""
    if device.type != "cpu":
        return torch.bfloat16
    can = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return torch.bfloat16 if can.get("avx512_bf16") or can.get("amx_bf16") else torch.float32


@lru_cache(maxsize=256)
def constants(values: tuple[float, ...], device: torch.device) -> torch.Tensor:
    """(n,) f32, sent to a device once."""
    with torch.inference_mode(False):  # also when the first to ask computes no gradients, for the next one may
        return torch.tensor(values, dtype=torch.float32, device=device)
