"""Telling Weights & Biases how a training goes."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any

import wandb

from envs.data.files import to_json


def run_id(kind: str, out: Path) -> str:
    """One for each folder, the same when a run is taken up again: `A/train` and `B/train` are two runs.

    Characters that wandb refuses become dashes.
    """
    place = out.resolve()
    name = re.sub(r"[^A-Za-z0-9_.-]+", "-", place.name)[:64]
    return f"{kind}-{name}-{hashlib.sha256(str(place).encode()).hexdigest()[:8]}"


def start(kind: str, out: Path, mode: str, config: Any) -> wandb.sdk.wandb_run.Run:
    """Begin or go on. mode: disabled, offline or online. config: a dataclass of settings."""
    return wandb.init(
        project="nextstate", job_type=kind, id=run_id(kind, out), resume="allow", mode=mode, dir=str(out),
        config=json.loads(to_json(config)),
    )  # fmt: skip
