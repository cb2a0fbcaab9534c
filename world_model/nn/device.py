"""Where to compute, and in which arithmetic."""

from __future__ import annotations

from functools import lru_cache

import torch


def choose_device(name: str) -> torch.device:
    """A device by name; `auto` is the accelerator where there is one. ValueError for one that torch lacks."""
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    found = accelerator.type if accelerator else "cpu"
    if name == "auto":
        return torch.device(found)
    try:
        device = torch.device(name)
    except (RuntimeError, TypeError) as error:
        raise ValueError(f"device={name}: torch knows no such device; use auto, cpu or cuda") from error
    if device.type == "cpu":
        return device
    if device.type != found:
        raise ValueError(
            f"device={name} was asked for, but torch sees no {device.type.upper()} device; use device=auto or "
            f"device={found}"
        )
    count = torch.accelerator.device_count()
    if device.index is not None and device.index >= count:
        raise ValueError(f"device={name} was asked for, but torch sees {count} {found} device(s), counted from 0")
    return device


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
