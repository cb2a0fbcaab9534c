"""A checkpoint: one folder with everything that acting needs, whole or not there.

    manifest.json       sha256 of every other file, format of the folder
    model.safetensors   weights of the world model       frames.safetensors   weights of the image tokenizer
    config.json         how both are built, the spec of the robot, the ranges of its cameras' poses, and which
                        vocabulary they belong to
    vocab.json          every id                         text.json  actions.json   the other two tokenizers
    meta.json           instructions it was trained on, env ids, versions, figures
    training.safetensors  only during training: what resuming needs; several processes write files of their own instead,
                        which `training/shards.py` describes

A folder is written beside its place, synced and renamed, so a kill leaves the old one or the new one. Reading checks
every hash, so a flipped bit is found here and not in the results.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from envs.data.files import remove_leftovers, sync_folder, temporary_name, to_json, write_whole
from envs.types import Spec
from world_model.model import ModelConfig, WorldModel
from world_model.nn.device import fast_precision
from world_model.tokens.actions import ActionTokenizer
from world_model.tokens.images import ImageTokenizer
from world_model.tokens.poses import PoseRange
from world_model.tokens.text import TextTokenizer
from world_model.tokens.vocab import Vocab

FORMAT = 3  # raised when the folder's layout changes, or what its ids stand for
SHARD = "shard-"  # begins the names of the files that several processes resume from
FRAMES = "frame_tokenizer."  # prefix of the image tokenizer's weights within the model
REQUIRED = ("model.safetensors", "frames.safetensors", "config.json", "vocab.json", "text.json", "actions.json",
            "meta.json")  # fmt: skip


class CheckpointError(RuntimeError):
    """A checkpoint cannot be read or written. The message names the file and what to do about it."""


@dataclass(frozen=True)
class Loaded:
    """What `load` returns. sha256: of the manifest, and so of everything."""

    model: WorldModel
    text: TextTokenizer
    frames: ImageTokenizer
    actions: ActionTokenizer
    vocab: Vocab
    meta: dict
    spec: Spec
    sha256: str


def save(
    folder: str | os.PathLike[str], model: WorldModel, text: TextTokenizer, meta: dict,
    training: dict[str, Tensor] | None = None, dtype: torch.dtype = torch.float32, replace: bool = False,
) -> str:  # fmt: skip
    """Write a folder and return the sha256 of its manifest.

    meta: JSON; `instructions` lists what it was trained on. Numbers in it that are not finite become null. training:
    tensors that resuming needs. dtype: of the model's weights, bfloat16 halves them. replace: put it in the place of
    the checkpoint that is there, which goes only once the new one is written. Raise CheckpointError when the folder
    exists and is not to be replaced, or the disk refuses.
    """
    folder = Path(folder)
    if folder.exists() and not replace:
        raise CheckpointError(f"checkpoint {folder} exists already: choose another folder or remove it")
    if "instructions" not in meta:
        raise ValueError("a checkpoint's `meta` must list the `instructions` it was trained on")
    # The image tokenizer keeps its precision: rounding it would change ids that the model was trained on.
    weights = {k: _plain(v, None if k.startswith(FRAMES) else dtype) for k, v in model.state_dict().items()}
    config = {
        "model": asdict(model.config), "frames": asdict(model.frame_tokenizer.config),
        "spec": model.spec.to_dict(), "vocab": model.vocab.fingerprint,
        "poses": [pose.to_dict() for pose in model.layout.poses],
    }  # fmt: skip
    files = {
        "model.safetensors": _pack({k: v for k, v in weights.items() if not k.startswith(FRAMES)}),
        "frames.safetensors": _pack({k.removeprefix(FRAMES): v for k, v in weights.items() if k.startswith(FRAMES)}),
        "config.json": to_json(config, sort_keys=True).encode(),
        "vocab.json": model.vocab.to_json().encode(),
        "text.json": text.to_json().encode(),
        "actions.json": model.actions.to_json().encode(),
        "meta.json": to_json(meta, sort_keys=True).encode(),
    }
    if training is not None:
        files["training.safetensors"] = _pack({name: _plain(value) for name, value in training.items()})
    hashes = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
    manifest = to_json({"format": FORMAT, "sha256": hashes}, sort_keys=True).encode()

    beside = temporary_name(folder)
    try:
        beside.mkdir(parents=True)
        for name, content in {**files, "manifest.json": manifest}.items():
            with open(beside / name, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
        old = temporary_name(folder) if folder.exists() else None
        if old:
            os.rename(folder, old)
        os.rename(beside, folder)
        sync_folder(folder.parent)
        if old:
            shutil.rmtree(old)
    except OSError as error:
        shutil.rmtree(beside, ignore_errors=True)
        if error.errno == errno.ENOSPC:
            size = sum(len(content) for content in files.values()) / 2**20
            raise CheckpointError(
                f"the disk is full: checkpoint {folder} ({size:.1f} MiB) was not written. What was written before is "
                "whole; free some space and run the same command again."
            ) from error
        raise CheckpointError(f"cannot write checkpoint {folder}: {error.strerror or error}") from error
    return hashlib.sha256(manifest).hexdigest()


def load(folder: str | os.PathLike[str], device: torch.device | None = None) -> Loaded:
    """Read a checkpoint, ready for use. Raise CheckpointError for one that is missing, damaged or does not fit."""
    folder = Path(folder)
    files, sha256 = _read_checked(folder)
    try:
        config = json.loads(files["config.json"])
        vocab = Vocab.from_json(files["vocab.json"].decode())
        actions = ActionTokenizer.from_json(files["actions.json"].decode())
        text = TextTokenizer.from_json(files["text.json"].decode(), vocab.text)
        meta = json.loads(files["meta.json"])
        weights = safetensors.torch.load(files["model.safetensors"])
        weights |= {FRAMES + k: v for k, v in safetensors.torch.load(files["frames.safetensors"]).items()}
        model_config = ModelConfig.from_dict(config["model"])
        frames = ImageTokenizer.from_config(config["frames"])
        spec = Spec.from_dict(config["spec"])
        poses = tuple(map(PoseRange.from_dict, config.get("poses", ())))  # which older checkpoints do not know
    except (ValueError, KeyError, TypeError, safetensors.SafetensorError) as error:
        raise CheckpointError(
            f"checkpoint {folder} is not one that this version reads ({error}): train it again"
        ) from error
    if config["vocab"] != vocab.fingerprint:
        raise CheckpointError(
            f"{folder / 'vocab.json'} is another vocabulary ({vocab.fingerprint}) than the one the weights were "
            f"trained with ({config['vocab']}): restore the file that came with the checkpoint"
        )
    try:
        model = WorldModel(model_config, spec, vocab, frames, actions, poses)
        model.load_state_dict(weights)
    except (RuntimeError, ValueError) as error:
        raise CheckpointError(
            f"the files of checkpoint {folder} do not fit each other ({error}): restore those that came with it, or "
            "train it again"
        ) from error
    unsound = [name for name, value in weights.items() if not torch.isfinite(value).all()]
    if unsound:
        raise CheckpointError(f"checkpoint {folder} holds weights that are not finite ({unsound[0]}): use an older one")
    model = model.to(device).eval()
    model.precision = fast_precision(model.device)
    return Loaded(model, text, frames, actions, vocab, meta, spec, sha256)


def load_training(folder: str | os.PathLike[str]) -> dict[str, Tensor]:
    """The tensors that `save` was given as `training`. Raise CheckpointError where there are none."""
    files, _ = _read_checked(Path(folder))
    if "training.safetensors" not in files:
        raise CheckpointError(f"checkpoint {folder} is finished: it holds nothing to resume training from")
    return safetensors.torch.load(files["training.safetensors"])


def read_meta(folder: str | os.PathLike[str]) -> dict:
    """The `meta` of a checkpoint, or of what several processes resume from. Raise CheckpointError where it is missing
    or damaged."""
    folder = Path(folder)
    return json.loads(read_checked(folder, "meta.json", read_hashes(folder)[0]))


def point(run: Path, folder: Path, keep: int = 2) -> None:
    """Let `run/last` name this folder inside `run`, then remove all but the newest `keep`, and what a kill left."""
    write_whole(run / "last", folder.name)
    for old in sorted(p for p in run.glob("step-*") if p.is_dir())[:-keep]:
        shutil.rmtree(old)
    remove_leftovers(run)


def last(run: Path) -> Path | None:
    """The folder that `run/last` names; None in a run that has not saved yet."""
    pointer = run / "last"
    return run / pointer.read_text().strip() if pointer.exists() else None


def _read_checked(folder: Path) -> tuple[dict[str, bytes], str]:
    """Every file of a checkpoint, checked against the manifest, and the manifest's sha256."""
    hashes, sha256 = read_hashes(folder)
    if any(name.startswith(SHARD) for name in hashes):
        raise CheckpointError(
            f"{folder} is what several processes resume training from, not a checkpoint: name the folder `checkpoint` "
            "beside it, which is there once training has ended"
        )
    return {name: read_checked(folder, name, hashes) for name in sorted({*REQUIRED, *hashes})}, sha256


def read_hashes(folder: Path) -> tuple[dict[str, str], str]:
    """What the manifest lists, name -> sha256, and the manifest's own."""
    path = folder / "manifest.json"
    try:
        raw = path.read_bytes()
        manifest = json.loads(raw)
        form, hashes = manifest["format"], dict(manifest["sha256"])
    except OSError as error:
        raise CheckpointError(
            f"no checkpoint at {folder}: {path.name} cannot be read ({error.strerror}). "
            "Name a checkpoint's folder, or train one with `python -m world_model.train`"
        ) from error
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path} is damaged ({error}): copy the checkpoint again or train it again") from error
    if form != FORMAT:
        raise CheckpointError(f"{path} is of format {form}, this version reads {FORMAT}: use the version that wrote it")
    return hashes, hashlib.sha256(raw).hexdigest()


def read_checked(folder: Path, name: str, hashes: Mapping[str, str]) -> bytes:
    """One file of a folder, checked against what its manifest lists."""
    if name not in hashes or Path(name).name != name:
        raise CheckpointError(
            f"{folder / 'manifest.json'} does not list {name}: copy the checkpoint again or train it again"
        )
    try:
        content = (folder / name).read_bytes()
    except OSError as error:
        raise CheckpointError(
            f"{folder / name} cannot be read ({error.strerror}): copy the checkpoint again or train it again"
        ) from error
    if hashlib.sha256(content).hexdigest() != hashes[name]:
        raise CheckpointError(
            f"{folder / name} is damaged (truncated or changed on disk: its sha256 does not match). "
            "Copy the checkpoint again or train it again"
        )
    return content


def _plain(value: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    value = value.detach().cpu().contiguous()
    return value.to(dtype) if dtype and value.is_floating_point() else value


def _pack(tensors: dict[str, Tensor]) -> bytes:
    return safetensors.torch.save(tensors)

