"""How far a training is, in one file: all that its next step depends on, and what it is made from."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
from torch import Tensor

from envs.data.files import to_json, write_whole
from envs.data.fingerprint import require_same

Parts = Mapping[str, Mapping[str, Tensor]]  # such as model, optimizer: each by name


def save_progress(path: Path, parts: Parts, step: int, made_from: Mapping[str, Any]) -> None:
    """Keep the parts and the number of steps done; whole, or what was there before stays."""
    tensors = {f"{part}/{name}": value for part, named in parts.items() for name, value in named.items()}
    about = {"step": str(step), "fingerprint": to_json(made_from, indent=None)}
    # a copy each: what shares memory, as tied weights do, cannot be kept otherwise
    plain = {name: value.detach().cpu().clone().contiguous() for name, value in tensors.items()}
    write_whole(path, safetensors.torch.save(plain, about))


def load_progress(path: Path, made_from: Mapping[str, Any]) -> tuple[dict[str, dict[str, Tensor]], int] | None:
    """The parts and the number of steps done; None where nothing is kept. ValueError where it is damaged or was made
    from something else."""
    if not path.exists():
        return None
    try:
        with safetensors.safe_open(path, "pt") as file:
            about = file.metadata()
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dictionary)
    except (safetensors.SafetensorError, OSError) as error:
        raise ValueError(f"{path} is damaged ({error}): delete it to begin this training anew") from error
    kept = about.get("fingerprint")
    require_same(json.loads(kept) if kept else None, made_from, str(path))
    parts: dict[str, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        part, name = key.split("/", 1)
        parts.setdefault(part, {})[name] = value
    return parts, int(about["step"])
