"""Episodes, tokenizers and a model, ready to be trained: from nothing, or from a checkpoint to start from."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from envs.data.fingerprint import fingerprint
from envs.data.store import EpisodeError
from envs.types import POSE, CameraSpec, Episode, Spec
from world_model import checkpoint
from world_model.checkpoint import Loaded
from world_model.metrics import windows
from world_model.model import WorldModel
from world_model.tokens.actions import ActionTokenizer
from world_model.tokens.images import ImageTokenizer, continued_by
from world_model.tokens.poses import fit_poses
from world_model.tokens.text import TextTokenizer
from world_model.tokens.vocab import Vocab
from world_model.training import sources
from world_model.training.dataset import EpisodeDataset, advised_chunks, chunks, common_spec, fit_ranges
from world_model.training.sharding import Processes
from world_model.training.sides import Found, Side, open_folders
from world_model.training.start import continued, require_agreement
from world_model.training.tokenized import TokenizedSource
from world_model.training.viewpoints import view_names

if TYPE_CHECKING:
    from world_model.train import TrainConfig

CHUNK, TEXT_SIZE, DISCOUNT, TOKENIZER = 8, 320, 0.997, "outputs/tokenizer"  # where neither a setting nor `start` says
OUTSIDE = 0.001  # share of a state dimension's values beyond its range that is worth a warning


@dataclass(frozen=True)
class Data:
    """Tokenized episodes and the tokenizers that were made from the training ones.

    held_out: None where no episode is. about: for the checkpoint's meta. fingerprint: of all that the training is made
    from. notes: what a person should know before it begins.
    """

    train: EpisodeDataset
    held_out: EpisodeDataset | None
    model: WorldModel
    text: TextTokenizer
    about: dict
    fingerprint: dict
    notes: tuple[str, ...] = ()


def prepare(config: TrainConfig, device: torch.device, processes: Processes | None = None) -> Data:
    """Read every episode once, fit the text and action tokenizers on the training ones, build the model; or take
    all of these from the checkpoint to start from.

    processes: those that will train together, which share the search for damage in tokenized episodes.
    """
    begin = checkpoint.load(config.start, device) if config.start else None
    processes = processes or Processes(device)
    found = open_folders(config.folders, config.held_out, slice(processes.rank, None, processes.world_size))
    if not any(source.train for source in found):
        raise EpisodeError(sources.why_nothing_to_train(found, config.held_out))
    episodes, tests = (Side.read(found, held_out) for held_out in (False, True))
    spec = common_spec([*episodes.specs(), *tests.specs()])
    if begin:
        _require_agreement(config, begin, spec, device)
        model, text, discount = model_from(begin, config, episodes), begin.text, begin.meta["discount"]
    else:
        model, text = new_model(config, spec, episodes, device)
        discount = config.discount or DISCOUNT
    place = model.layout.view_camera
    if config.viewpoints.needs_views and place in config.augment.attached:
        raise ValueError(
            f"views from places that stand still cannot stand for the pictures of camera {place}, which moves with the "
            "hand: a fixed camera that tells its pose must come first, or `view_share` and `swap_share` be 0"
        )
    content, with_views = model.frame_tokenizer.content(), config.viewpoints.needs_views
    if episodes.on_disk:
        _require_tokenized(config, found, content)
    train, test = (
        side.dataset(model, text, discount, with_views, Path(config.out)) for side in (episodes, tests)
    )
    if not windows.longest(train):
        raise ValueError(f"`chunk` is {model.actions.chunk} control steps, longer than any of the episodes")
    about = {
        "instructions": sorted({e.instruction for e in episodes}), "env_ids": sorted({e.env_id for e in episodes}),
        "episodes": {"train": len(episodes), "held_out": len(tests)}, "control_steps": len(train),
        "discount": discount, "views": _taught_views(config, begin, model, episodes),
        "versions": {name: importlib.metadata.version(name) for name in ("torch", "numpy", "safetensors")},
    }  # fmt: skip
    files = {"tokenizer": content, **({"start": begin.sha256} if begin else {})}
    made_from = fingerprint(config.learnt, files, [source.fingerprint() for source in found])
    return Data(train, test, model, text, about, made_from, tuple(_notes(config, found, train, test)))


def new_model(
    config: TrainConfig, spec: Spec, episodes: Iterable[Episode], device: torch.device
) -> tuple[WorldModel, TextTokenizer]:
    """An untrained model of the robot that these training episodes are of, with what is fitted on them: ranges, text
    and action tokenizers."""
    spec, chunk, folder = fit_ranges(spec, (e.state for e in episodes)), config.chunk or CHUNK, config.tokenizer
    frames = frame_tokenizer(folder or TOKENIZER, device)
    require_cameras(frames, folder or TOKENIZER, spec)
    words = [t for e in episodes for t in (e.instruction, *e.subtask_names)]
    text = TextTokenizer.train(words, config.text_size or TEXT_SIZE)
    coefs = None if config.coefs == "auto" else config.coefs
    actions = ActionTokenizer.fit(sample_chunks(episodes, chunk), spec, coefs, config.strides or ())
    vocab = Vocab.native(text.size, frames.vision_size, len(spec.cameras), actions.chunk)
    torch.manual_seed(config.seed)
    settings, poses = replace(config.model.build(), strides=config.strides or ()), fit_poses(spec.cameras, episodes)
    with device if device.type == "meta" else nullcontext():  # where nothing is allocated, not even for a moment
        model = WorldModel(settings, spec, vocab, frames, actions, poses).to(device)
    return model, text.within(vocab.text)


def meta_model(config: TrainConfig) -> WorldModel:
    """The model of a training from nothing, with its weights on the meta device, where they take neither memory nor
    time. It is of the first episode of `data`; what the others add, such as ids of their instructions, is a few rows.

    ValueError for a training from a checkpoint.
    """
    if config.start:
        raise ValueError("`dry_run` says what a new model takes: leave `start` out, and choose its size by `model`")
    (source,) = open_folders({"data": config.data[:1]}, None, checked=slice(0))
    episode = next(source.each())
    return new_model(config, episode.spec, [episode], torch.device("meta"))[0]


def model_from(begin: Loaded, config: TrainConfig, episodes: Iterable[Episode]) -> WorldModel:
    """The checkpoint's model, to go on with. What counts is this training's to say; lengths of model steps are added
    where there were none, places for the poses that these episodes tell of cameras of which it knew none, and
    coefficients of actions; the image tokenizer may be one that was trained on from its own.

    ValueError where an action dimension moves in these episodes and has no coefficients.
    """
    old = begin.model
    told = {pose.camera: pose for pose in (*fit_poses(old.spec.cameras, episodes), *old.layout.poses)}
    poses = tuple(told[camera.name] for camera in old.spec.cameras if camera.name in told)
    strides = old.config.strides or config.strides or ()
    torch.manual_seed(config.seed)
    frames = frame_tokenizer(config.tokenizer, old.device) if config.tokenizer else None
    coefs = old.actions.coefs if config.coefs == "auto" else tuple(config.coefs)
    actions = ActionTokenizer.fit(sample_chunks(episodes, old.actions.chunk), old.spec, coefs, strides)
    actions = old.actions if coefs == old.actions.coefs else old.actions.grown(actions)
    return continued(old, replace(old.config, weights=config.model.weights, strides=strides), poses, frames, actions)


def _taught_views(
    config: TrainConfig, begin: Loaded | None, model: WorldModel, episodes: Iterable[Episode]
) -> list[str]:
    """Names of the views that a model has learnt to draw, now or before."""
    before = begin.meta.get("views", []) if begin else []
    now = {name for e in episodes for name in view_names(e, model.layout)} if config.viewpoints.draw else ()
    return sorted({*before, *now})


def _require_tokenized(config: TrainConfig, found: Sequence[TokenizedSource], tokenizer: str) -> None:
    """ValueError where this training needs more, or other ids, than tokenized episodes have. tokenizer: its content."""
    if config.viewpoints.needs_views:
        raise ValueError(
            f"`view_share` and `swap_share` need pictures, and {found[0].root} holds ids alone: leave both at 0, or "
            "train on the folders that it was made from"
        )
    for source in found:
        source.require(asdict(config.augment), config.held_out, tokenizer)


def _require_agreement(config: TrainConfig, begin: Loaded, spec: Spec, device: torch.device) -> None:
    """ValueError where the checkpoint to start from is of another robot, or where settings ask for another model."""
    begin.spec.require(spec, f"the checkpoint {config.start}", f"the episodes of {', '.join(config.data)}")
    asked = {
        "chunk": (config.chunk, begin.actions.chunk), "discount": (config.discount, begin.meta["discount"]),
    }
    wrong = {name: pair for name, pair in asked.items() if pair[0] is not None and pair[0] != pair[1]}
    strides = begin.model.config.strides
    if strides and config.strides is not None and {*config.strides, begin.actions.chunk} != {*begin.model.strides}:
        wrong["strides"] = (list(config.strides), list(strides))
    has = begin.actions.coefs
    if config.coefs != "auto" and (len(config.coefs) != len(has) or any(map(int.__lt__, config.coefs, has))):
        wrong["coefs"] = (config.coefs, f"{has}, of which none may be taken away")
    if config.text_size is not None and begin.text.size > config.text_size:
        wrong["text_size"] = (config.text_size, begin.text.size)
    if config.tokenizer and not _continues(config.tokenizer, begin.frames):
        wrong["tokenizer"] = (config.tokenizer, "another image tokenizer")
    require_agreement({**wrong, **config.model.against(begin.model.config)}, config.start)


def _notes(
    config: TrainConfig, found: Found, train: EpisodeDataset, test: EpisodeDataset | None
) -> Iterator[str]:
    """What a person should know before training begins."""
    if test is None:
        yield sources.why_nothing_held_out(found, config.held_out)
    if not train.has_expert.any():
        yield "no episode says what an expert would do: the model learns what follows an action, but not how to act"
    if config.augment.shift and (why := config.augment.cannot_shift(train.layout.spec)):
        yield f"the scene stays where it is, `augment.shift` or not: {why}"
    if config.augment.scale and (why := config.augment.cannot_scale(train.layout.spec)):
        yield f"the scene stays as large as it is, `augment.scale` or not: {why}"
    if config.viewpoints.needs_views and not train.views.count.any():
        place = train.layout.view_camera
        why = f"has views of the size of camera {place}" if place else "tells where its cameras stand"
        yield f"nothing is learnt of other views, `view_share` and `swap_share` or not: no episode {why}"
    for side, dataset in (("training", train), ("held-out", test)):
        poses = {f"{told.camera}.{number}" for told in train.layout.poses for number in POSE}
        for name, share in (dataset.outside() if dataset else {}).items():
            if share > OUTSIDE:
                yield (
                    f"{share:.2%} of the values of {'the pose' if name in poses else 'the state'} `{name}` in {side} "
                    "episodes leave its range, and are read as its ends"
                )


def require_cameras(frames: ImageTokenizer, folder: str, spec: Spec) -> None:
    """ValueError where the image tokenizer in `folder` is of other cameras than the robot."""
    if frames.config.cameras != spec.cameras:
        raise ValueError(
            f"the image tokenizer {folder} is of the cameras {_shown(frames.config.cameras)}, the "
            f"episodes are of {_shown(spec.cameras)}: train one on these episodes"
        )


def _shown(cameras: tuple[CameraSpec, ...]) -> str:
    return ", ".join(f"{camera.name} {camera.height} x {camera.width}" for camera in cameras)


def frame_tokenizer(folder: str, device: torch.device) -> ImageTokenizer:
    """What `train_tokenizer` wrote, or the one within a checkpoint."""
    if (Path(folder) / "manifest.json").exists():
        return checkpoint.load(folder, device).frames
    return ImageTokenizer.load(folder, device)


def _continues(folder: str, frames: ImageTokenizer) -> bool:
    """Is what `folder` holds these image tokens, or what further training made of them? Their meaning is kept then."""
    return frames.content() in (frame_tokenizer(folder, frames.device).content(), continued_by(folder))


def sample_chunks(episodes: Iterable[Episode], chunk: int, most: int = 50_000) -> torch.Tensor:
    """Executed and advised chunks (n, M, A) to fit the action bins on, evenly spread over all. episodes: gone through
    twice, so that no more than the sample is held."""

    def finite() -> Iterator[np.ndarray]:
        for episode in episodes:
            for cut, steps in ((chunks, episode.action), (advised_chunks, episode.expert)):
                found = cut(steps, chunk, episode.spec)[:-1]
                yield found[np.isfinite(found).all((1, 2))]

    every, before, taken = max(1, sum(map(len, finite())) // most), 0, []
    for found in finite():
        taken.append(found[-before % every :: every].copy())
        before += len(found)
    return torch.from_numpy(np.concatenate(taken))
