"""Turn episodes into ids once, in several changed copies, so that training reads them from disk: `python -m
world_model.tokenize`. Then `python -m world_model.train data=` that folder.

Reads one episode at a time and holds no more than one shard, whatever there is to read. Run the same command again to
go on after an interruption: every shard in the folder is whole, and only what is missing is made. Of the episodes to
train on `copies` copies are made, each with one change of colours and place throughout; those that are held out are
read as they are, because training measures on them.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import hydra
import numpy as np
import torch
from omegaconf import DictConfig, OmegaConf
from tqdm import tqdm

from envs.data.augmentation import Augmentation, Change
from envs.data.files import remove_leftovers
from envs.data.fingerprint import fingerprint, require_same
from envs.data.settings import from_settings
from envs.data.store import EpisodeError
from envs.types import Episode, Spec
from world_model.checkpoint import CheckpointError
from world_model.nn.device import choose_device
from world_model.tokens.images import IMAGES_AT_ONCE, ImageTokenizer, TokenizerError
from world_model.training import sources, tokenized
from world_model.training.dataset import common_spec
from world_model.training.preparation import frame_tokenizer, require_cameras
from world_model.training.sources import Source
from world_model.training.tokenized import SIDES, Tokenized

Names = Sequence[tuple[Source, str]]
MADE_WITH = ("augment", "copies", "held_out", "shard_mib", "seed")  # the settings that decide what is written


@dataclass(frozen=True)
class TokenizeConfig:
    """configs/tokenize.yaml says what each of these means."""

    data: tuple[str, ...]
    tokenizer: str
    out: str
    augment: Augmentation
    copies: int
    held_out: int
    shard_mib: float
    seed: int
    threads: int
    device: str

    def __post_init__(self) -> None:
        if not self.data:
            raise ValueError("`data` must name at least one folder of episodes")
        if min(self.copies, self.threads) < 1 or self.seed < 0:
            raise ValueError(
                f"`copies` and `threads` must be at least 1 and `seed` 0 or more, got {self.copies}, {self.threads} "
                f"and {self.seed}"
            )
        if self.held_out < 2 or not self.shard_mib > 0:
            raise ValueError(
                f"`held_out` must be at least 2 and `shard_mib` positive, got {self.held_out} and {self.shard_mib}"
            )


def encode(frames: ImageTokenizer, episode: Episode, change: Change) -> np.ndarray:
    """Image ids of an episode in each of K copies, (K, T + 1, ids), of the smallest unsigned type that holds them."""
    rows, copies = len(episode) + 1, []
    for k in range(len(change.place)):
        own = change[k : k + 1]
        parts = []
        for part in (slice(start, start + IMAGES_AT_ONCE) for start in range(0, rows, IMAGES_AT_ONCE)):
            seen = []
            for name, images in episode.images.items():
                told = episode.poses[name][None, part] if name in episode.poses else None
                shown = torch.from_numpy(images[None, part]).to(frames.device)
                seen.append(frames.encode(own.images(name, shown, told))[0])
            parts.append(torch.cat(seen, dim=-1).cpu().numpy())
        copies.append(np.concatenate(parts))
    return np.stack(copies).astype(np.min_scalar_type(frames.vision_size - 1))


def tokenize(config: TokenizeConfig, frames: ImageTokenizer, episode: Episode, number: int, side: str) -> Tokenized:
    """Its number among the episodes of its side decides how its copies are changed. Its pictures are not kept."""
    spec, augment, copies = episode.spec, config.augment.of(episode.spec), config.copies
    if side != SIDES[0]:
        augment, copies = Augmentation(share=0.0), 1
    rng = torch.Generator().manual_seed(config.seed * 1_000_003 + number)
    # The ranges of the state, which noise is a share of, are known when all episodes have been read: here they are 1.
    unit = replace(spec, state=tuple(replace(part, low=0.0, high=1.0) for part in spec.state))
    change = augment.draw(copies, rng, unit)
    noise = torch.zeros(copies, len(spec.state)) if change.noise is None else change.noise
    ids = encode(frames, episode, change)
    return Tokenized(tokenized.without_pictures(episode), ids, change.place.numpy(), noise.numpy())


def fill(
    config: TokenizeConfig, frames: ImageTokenizer, names: Names, side: str, begin: int, spec: Spec | None
) -> Iterator[Tokenized]:
    """The episodes of one shard, from number `begin` on. ValueError for those of another robot, `spec` or the first."""
    size = 0
    for number in range(begin, len(names)):
        source, name = names[number]
        episode = source.read(name)
        spec = spec or episode.spec
        common_spec([(spec, "the first of the episodes"), (episode.spec, str(source.store.path(name)))])
        require_cameras(frames, config.tokenizer, episode.spec)
        made = tokenize(config, frames, episode, number, side)
        yield made
        size += made.ids.nbytes
        if size >= config.shard_mib * 2**20:
            return


def run(config: TokenizeConfig) -> dict[str, int]:
    """Make what is missing of `out`; returns how many episodes each side has."""
    torch.set_num_threads(config.threads)
    frames, out = frame_tokenizer(config.tokenizer, choose_device(config.device)), Path(config.out)
    found = sources.open_sources({"data": config.data}, config.held_out)
    sides = {side: [(source, name) for source in found for name in getattr(source, side)] for side in SIDES}
    if not sides["train"]:
        raise EpisodeError(sources.why_nothing_to_train(found, config.held_out))
    settings = {name: value for name, value in asdict(config).items() if name in MADE_WITH}
    made_from = fingerprint(settings, {"tokenizer": frames.content()}, [source.fingerprint() for source in found])
    counts = {side: len(names) for side, names in sides.items()}
    if tokenized.is_tokenized(out):
        require_same(tokenized.read_manifest(out)["made_from"], made_from, str(out))
    tokenized.write_manifest(out, made_from, counts)
    remove_leftovers(out)
    spec = None
    with tqdm(total=sum(counts.values()), desc="tokenizing", unit="episode") as bar:
        for side, names in sides.items():
            begin, shard = 0, 0
            while begin < len(names):
                path = tokenized.shard_path(out, side, shard)
                if path.is_dir():
                    done = len(tokenized.read_about(path)["episodes"])
                    bar.update(done)
                else:
                    made = []
                    for each in fill(config, frames, names, side, begin, spec):
                        made.append(each)
                        bar.update()
                    tokenized.write_shard(path, made)
                    spec, done = made[0].episode.spec, len(made)
                begin, shard = begin + done, shard + 1
    return counts


def to_config(raw: DictConfig) -> TokenizeConfig:
    values = OmegaConf.to_container(raw, resolve=True)
    return from_settings(TokenizeConfig, {**values, "data": sources.as_folders(values["data"])})


@hydra.main(version_base=None, config_path="../configs", config_name="tokenize")
def main(raw: DictConfig) -> None:
    try:
        counts = run(to_config(raw))
    except KeyboardInterrupt:
        sys.exit("tokenize: stopped; run the same command again to go on")
    except (EpisodeError, CheckpointError, TokenizerError, ValueError, OSError) as error:
        sys.exit(f"tokenize: {error}")
    print(f"{counts['train']} episodes to train on and {counts['held_out']} held out, written to {raw.out}")


if __name__ == "__main__":
    main()
