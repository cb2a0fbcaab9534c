"""Average the weights of checkpoints that were trained on from one another: `python -m world_model.average`.

    python -m world_model.average checkpoints=[outputs/first/checkpoint,outputs/trained/checkpoint] out=outputs/averaged

What a training gains on new data, and what it forgets of the old, lie on both ends of a line between its start and its
end; the middle often keeps both (WiSE-FT, Wortsman et al. 2022: more robust where scenes differ from those of
training). Only weights that came from one start can be averaged: all else of the checkpoints must be equal.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hydra
import torch
from omegaconf import DictConfig, OmegaConf

from envs.data.settings import from_settings
from world_model import checkpoint
from world_model.checkpoint import CheckpointError, Loaded

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class AverageConfig:
    """configs/average.yaml says what each of these means."""

    checkpoints: tuple[str, ...]
    out: str
    weights: tuple[float, ...] | None = None
    dtype: str = "float32"

    def __post_init__(self) -> None:
        if len(self.checkpoints) < 2:
            raise ValueError("`checkpoints` must name at least two to average")
        if self.dtype not in DTYPES:
            raise ValueError(f"`dtype` must be one of {', '.join(DTYPES)}, got {self.dtype}")
        weights = self.weights or (1.0,) * len(self.checkpoints)
        if len(weights) != len(self.checkpoints) or min(weights) < 0 or not sum(weights):
            raise ValueError(f"`weights` must be one number a checkpoint, 0 or more and not all 0, got {self.weights}")

    @property
    def shares(self) -> list[float]:
        """Of each checkpoint; they add up to 1."""
        weights = self.weights or (1.0,) * len(self.checkpoints)
        return [weight / sum(weights) for weight in weights]


def run(config: AverageConfig) -> bool:
    """Average and write the checkpoint; False where this was done already. CheckpointError where weights do not fit,
    or another checkpoint is there."""
    loaded = [checkpoint.load(Path(folder), torch.device("cpu")) for folder in config.checkpoints]
    for folder, other in zip(config.checkpoints[1:], loaded[1:], strict=True):
        require_alike(loaded[0], other, f"{config.checkpoints[0]} and {folder}")
    made_of: list[dict[str, Any]] = [
        {"sha256": each.sha256, "share": round(share, 6)} for each, share in zip(loaded, config.shares, strict=True)
    ]
    if Path(config.out).exists():
        if checkpoint.load(config.out).meta.get("average") != made_of:
            raise CheckpointError(f"checkpoint {config.out} is another one: choose another folder or remove it")
        return False
    *_, last = loaded
    states = [each.model.state_dict() for each in loaded]
    with torch.no_grad():
        for name, weight in last.model.named_parameters():
            if name.startswith(checkpoint.FRAMES):  # all have the same, to the bit
                continue
            weight.copy_(sum(share * state[name].float() for share, state in zip(config.shares, states, strict=True)))
    # What was measured of the last one is not true of the average.
    meta = {name: value for name, value in last.meta.items() if name not in ("figures", "value")}
    checkpoint.save(config.out, last.model, last.text, {**meta, "average": made_of}, dtype=DTYPES[config.dtype])
    return True


def require_alike(one: Loaded, other: Loaded, which: str) -> None:
    """CheckpointError where two checkpoints differ in more than the weights of their transformers."""
    parts = {
        "model": (one.model.config, other.model.config), "robot": (one.spec, other.spec),
        "vocabulary": (one.vocab.fingerprint, other.vocab.fingerprint), "actions": (one.actions, other.actions),
        "text": (one.text.to_json(), other.text.to_json()), "poses": (one.model.layout.poses, other.model.layout.poses),
    }  # fmt: skip
    differ = [name for name, (mine, theirs) in parts.items() if mine != theirs]
    frames = zip(one.frames.state_dict().values(), other.frames.state_dict().values(), strict=False)
    if not differ and not all(torch.equal(mine, theirs) for mine, theirs in frames):
        differ = ["image tokenizer"]
    if differ:
        raise CheckpointError(
            f"{which} cannot be averaged, their {' and '.join(differ)} differ: take checkpoints of which one was "
            "trained on from the other"
        )


@hydra.main(version_base=None, config_path="../configs", config_name="average")
def main(raw: DictConfig) -> None:
    try:
        values = OmegaConf.to_container(raw, resolve=True)
        config = from_settings(AverageConfig, values)
        done = run(config)
    except (CheckpointError, ValueError, OSError) as error:
        sys.exit(f"average: {error}")
    print(f"written to {config.out}" if done else f"{config.out} is this average already")


if __name__ == "__main__":
    main()
