"""How well a model draws the scene from another camera: as pictures, and by what can still be read from them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from envs.types import Episode, Observation
from world_model.metrics.images import psnr
from world_model.model import WorldModel
from world_model.tokens.text import TextTokenizer
from world_model.training.viewpoints import view_names
from world_model.types import History

READINGS = ("given", "drawn", "true", "other")


@dataclass(frozen=True)
class Drawn:
    """m moments of an episode, and one of its views: what the model was given, what it drew, and what is true.

    Pictures are of the camera whose place views take, (m, h, w, 3) u8. tokenized: the true view as its ids show it, the
    most that can be drawn. errors: for each of READINGS how far the keypoints (m, n) that are read from such a picture,
    told with its pose, are from the true ones, in metres; NaN for those that do not exist. `other` is the drawn view of
    the episode's next moment among them, so it tells how much is known from the rest of the observation.
    """

    view: str
    instruction: str
    given: np.ndarray
    drawn: np.ndarray
    true: np.ndarray
    tokenized: np.ndarray
    errors: dict[str, np.ndarray]


def moments(episode: Episode, count: int) -> np.ndarray:
    """Up to `count` steps, evenly spread over an episode."""
    return np.unique(np.linspace(0, len(episode), count).astype(int))


@torch.no_grad()
def draw_views(model: WorldModel, text: TextTokenizer, episode: Episode, steps: np.ndarray) -> list[Drawn]:
    """Every view of an episode that the model could draw, at some steps, from what was seen until then.

    ValueError for an episode without such views, and for a model that knows no poses.
    """
    at, names = model.layout, view_names(episode, model.layout)
    if not names:
        raise ValueError(
            f"the episode of seed {episode.seed} has no view of the size of camera {at.view_camera or '(none is told)'}"
            ": record episodes with views from elsewhere (`python -m agent.rerender`)"
        )
    words = tuple(text.encode(episode.instruction))
    cache = model.prefill([_history(episode, int(step), words, at.chunk_steps) for step in steps])
    poses = np.stack([episode.poses[name][steps] for name in names], axis=1)  # (m, views, 8)
    pictures = model.draw_view(cache, torch.from_numpy(poses)).cpu().numpy()
    camera = at.view_camera
    given, truth = episode.images[camera][steps], episode.keypoints[steps]

    def errors(images: np.ndarray, pose: np.ndarray | None) -> np.ndarray:
        """How far off keypoints are that are read from such pictures in the camera's place, (m, n)."""
        seen = []
        for step, image, place in zip(steps, images, [None] * len(steps) if pose is None else pose, strict=True):
            now = episode.obs(int(step))
            told = now.poses if place is None else {**now.poses, camera: place}
            seen.append(Observation({**now.images, camera: image}, now.state, told))
        belief = model.read(model.prefill([History(words, ((now, None),)) for now in seen])).belief
        return np.linalg.norm(belief.keypoints.cpu().numpy() - truth, axis=-1)

    found = []
    as_given = errors(given, None)
    for i, name in enumerate(names):
        true, pose = episode.views[name][steps], poses[:, i]
        ids = model.frame_tokenizer.encode(torch.from_numpy(true).to(model.device))
        read = {"given": as_given, "drawn": errors(pictures[:, i], pose), "true": errors(true, pose),
                "other": errors(np.roll(pictures[:, i], -1, axis=0), pose)}  # fmt: skip
        tokenized = model.frame_tokenizer.decode(ids, camera).cpu().numpy()
        found.append(Drawn(name, episode.instruction, given, pictures[:, i], true, tokenized, read))
    return found


def _history(episode: Episode, step: int, words: tuple[int, ...], chunk: int) -> History:
    """What the model reads at a step: now, and where the episode is old enough, one chunk ago."""
    now = (episode.obs(step), None)
    if step < chunk:
        return History(words, (now,))
    return History(words, ((episode.obs(step - chunk), episode.action[step - chunk : step]), now))


@dataclass
class Nearest:
    """The recorded pictures that come nearest to views: what a model that only remembers could show.

    nearest: of each drawn moment the training frame of that view that is most like the true one, which nobody could
    find without knowing it. recalled: the frame of the training moment whose given picture is most like the given one.
    """

    drawn: Sequence[Drawn]

    def __post_init__(self) -> None:
        self.nearest, self.recalled = ([each.true * 0 for each in self.drawn] for _ in range(2))
        self._away = {kind: [np.full(len(each.true), np.inf) for each in self.drawn] for kind in ("true", "given")}

    def look(self, episodes: Iterable[Episode], camera: str) -> Nearest:
        """Look through training episodes, one after the other; those without a view are no help with it."""
        for episode in episodes:
            for i, each in enumerate(self.drawn):
                frames = episode.views.get(each.view)
                if frames is None or frames.shape[1:] != each.true.shape[1:]:
                    continue
                for kind, mine, theirs, kept in (
                    ("true", each.true, frames, self.nearest), ("given", each.given, episode.images[camera],
                                                                self.recalled),
                ):  # fmt: skip
                    away = torch.cdist(_flat(mine), _flat(theirs))  # (m, T + 1)
                    least, which = (found.numpy() for found in away.min(1))
                    better = least < self._away[kind][i]
                    kept[i][better], self._away[kind][i][better] = frames[which[better]], least[better]
        return self

    @property
    def found(self) -> bool:
        """Whether there was a frame for every moment."""
        return all(np.isfinite(each).all() for each in self._away["true"])


def _flat(images: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(images).flatten(1).float()


def summarize(drawn: Sequence[Drawn], nearest: Nearest | None, keypoints: Sequence[str]) -> dict:
    """The figures of each instruction and view: PSNR in dB, errors in cm, means over moments."""
    found: dict = {}
    for i, each in enumerate(drawn):
        rows = found.setdefault(each.instruction, {}).setdefault(each.view, {})
        pictures = {"drawn": each.drawn, "tokenized": each.tokenized}
        if nearest is not None:
            pictures |= {"nearest": nearest.nearest[i], "recalled": nearest.recalled[i]}
        for name, images in pictures.items():
            rows.setdefault(f"psnr_{name}_db", []).append(psnr(each.true, images))
        for name in READINGS:
            rows.setdefault(f"keypoint_{name}_cm", []).append(100 * each.errors[name])
    return {
        instruction: {view: _means(rows, keypoints) for view, rows in views.items()}
        for instruction, views in found.items()
    }


def _means(rows: dict[str, list[np.ndarray]], keypoints: Sequence[str]) -> dict:
    """Means over moments; of keypoints also each by its name, those that exist."""
    figures: dict = {"moments": sum(map(len, rows["psnr_drawn_db"]))}
    for name, parts in rows.items():
        values = np.concatenate(parts)
        if np.isfinite(values).any():
            figures[name] = round(float(np.nanmean(values)), 3)
        if values.ndim == 2:
            known = [i for i in range(len(keypoints)) if np.isfinite(values[:, i]).any()]
            by_name = {keypoints[i]: round(float(np.nanmean(values[:, i])), 3) for i in known}
            if len(by_name) > 1:
                figures[f"{name}_each"] = by_name
    return figures
