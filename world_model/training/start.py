"""What a new model is built with, whether that fits the checkpoint that a training starts from, and how that one's
weights move into it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

import torch

from world_model.model import ModelConfig, WorldModel
from world_model.nn.transformer import TransformerConfig
from world_model.tokens.actions import ActionTokenizer
from world_model.tokens.images import ImageTokenizer
from world_model.tokens.poses import PoseRange
from world_model.training.loss import LossWeights

SMALL = TransformerConfig(width=192, num_layers=4, num_heads=6, num_kv_heads=3, hidden=512)  # configs/model/S.yaml


@dataclass(frozen=True)
class ModelSettings:
    """configs/model/auto.yaml says what each of these means. None: as the checkpoint to start from has it, or else as
    `ModelConfig` does, in the size S."""

    weights: LossWeights
    transformer: TransformerConfig | None = None
    instruction: int | None = None
    step_embed: bool | None = None
    smoothing: float | None = None
    factored: bool | None = None
    copy_bias: float | None = None

    def given(self) -> dict[str, Any]:
        """What is not None."""
        return {f.name: value for f in fields(self) if (value := getattr(self, f.name)) is not None}

    def build(self) -> ModelConfig:
        """For a new model."""
        return ModelConfig(**{"transformer": SMALL, **self.given()})

    def against(self, config: ModelConfig) -> dict[str, tuple[Any, Any]]:
        """What was asked for and what a checkpoint's model has instead, by the setting's name; the weights of the loss
        are no part of a model."""
        asked = {name: value for name, value in self.given().items() if name != "weights"}
        if self.transformer is not None:
            del asked["transformer"]
            asked |= {f"transformer.{name}": value for name, value in asdict(self.transformer).items()}
        has = {**asdict(config), **{f"transformer.{k}": v for k, v in asdict(config.transformer).items()}}
        return {f"model.{name}": (value, has[name]) for name, value in asked.items() if value != has[name]}


def require_agreement(disagreements: Mapping[str, tuple[Any, Any]], start: str) -> None:
    """ValueError where settings ask for another model than the checkpoint to start from is.

    disagreements: setting -> what was asked for, what the checkpoint has.
    """
    if disagreements:
        texts = [f"`{name}` is {asked}, the checkpoint has {has}" for name, (asked, has) in disagreements.items()]
        raise ValueError(
            f"a training from {start} goes on with its model and tokenizers: {'; '.join(texts)}. Leave these settings "
            "out, or train without `start`"
        )


def continued(
    old: WorldModel, config: ModelConfig, poses: tuple[PoseRange, ...] | None = None,
    frames: ImageTokenizer | None = None, actions: ActionTokenizer | None = None,
) -> WorldModel:
    """A model of this config, told these poses and with these tokenizers of images and actions (None: as `old`), with
    the weights of `old`, to train on: what is added to the layout is new."""
    poses = old.layout.poses if poses is None else poses
    frames, actions = frames or old.frame_tokenizer, actions or old.actions
    new = WorldModel(config, old.spec, old.vocab, frames, actions, poses).to(old.device)
    take_weights(new, old, own_frames=True)
    new.precision = old.precision
    return new.train(old.training)


@torch.no_grad()
def take_weights(new: WorldModel, old: WorldModel, own_frames: bool = False) -> tuple[str, ...]:
    """Give a new model an old one's weights, though its layout may have other slots, and a further token type; what the
    old layout has not, slots by name, keeps the rows that it was initialised with. own_frames: it keeps its own image
    tokenizer.

    ValueError where anything but the slots differs, by its name.
    """
    have = {name: row for row, name in enumerate(old.layout.slot_names)}
    theirs, moved = old.state_dict(), new.state_dict()
    if own_frames:
        theirs |= {name: value for name, value in moved.items() if name.startswith("frame_tokenizer.")}
    rows = torch.tensor([have.get(name, -1) for name in new.layout.slot_names], device=new.device)
    table = moved["step_embed.weight"].clone()
    table[:-1][rows >= 0] = theirs["step_embed.weight"][rows[rows >= 0]].to(table)  # the last row is padding
    theirs["step_embed.weight"] = table
    types = moved["token_type_embed.weight"].clone()
    types[: len(theirs["token_type_embed.weight"])] = theirs["token_type_embed.weight"].to(types)
    theirs["token_type_embed.weight"] = types
    unlike = [name for name in sorted({*theirs, *moved})
              if name not in theirs or name not in moved or theirs[name].shape != moved[name].shape]  # fmt: skip
    if unlike:
        raise ValueError(f"weights move to another layout only between models of one size: {unlike[0]} differs")
    new.load_state_dict(theirs)
    return tuple(name for name in new.layout.slot_names if name not in have)
