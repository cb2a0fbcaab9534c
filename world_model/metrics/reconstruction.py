"""What survives of an episode's frames in a tokenizer: mean PSNR, small objects, silhouettes, still patches.

Mean PSNR alone hides that the cube is gone: it is 25 of 4096 pixels. So objects are looked for. Where they are
comes from the recorded keypoints and the camera; what they look like from the true frame (the colour at the
keypoint against the colour around it). The same colour rule then finds the object in the true and in the
reconstructed frame, so a rule that errs, errs in both.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from envs.data.camera import Camera
from envs.types import MAIN_SIZE, Episode
from world_model.tokens.images import PATCH, FrameTokenizer

CUBE_WINDOW = 7  # pixels round the projected centre in which the cube is looked for; it is about 5 wide
CUBE_VISIBLE = 8  # pixels of the cube that must be seen in the true frame (not hidden by the gripper) to count
CUBE_FOUND = 0.25  # share of those pixels that must be left, or the cube counts as lost
CLOTH_MARGIN = 6  # pixels round the projected corners in which the cloth is looked for
CLOTH_VISIBLE = 60
CONTRAST = 40.0  # RGB distance between object and table below which the colour rule means nothing
STILL = 4  # grey levels: a patch of which no pixel changed by more is static

GATE = {"psnr": 28.0, "cube_lost": 0.02, "cube_error": 1.0, "cloth_iou": 0.92, "still_kept": 0.95}


@dataclass(frozen=True)
class Fidelity:
    """Sums over frames, so that episodes can be added up; `figures` divides them."""

    sums: dict[str, float]
    counts: dict[str, int]

    def __add__(self, other: Fidelity) -> Fidelity:
        names = {**self.sums, **other.sums}
        return Fidelity(
            {name: self.sums.get(name, 0.0) + other.sums.get(name, 0.0) for name in names},
            {name: self.counts.get(name, 0) + other.counts.get(name, 0) for name in names},
        )

    def figures(self) -> dict[str, float]:
        """Means of what occurred at all, and how many frames the object measures rest on."""
        means = {name: self.sums[name] / self.counts[name] for name in self.sums if self.counts[name]}
        return means | {f"{name}_frames": self.counts[name] for name in ("cube_lost", "cloth_iou") if name in means}


def passes_gate(figures: dict[str, float]) -> dict[str, bool]:
    """For each figure that has a bound: is it kept?"""
    at_most = ("cube_lost", "cube_error")
    return {
        name: figures[name] <= bound if name in at_most else figures[name] >= bound
        for name, bound in GATE.items()
        if name in figures
    }


def measure(episode: Episode, tokenizer: FrameTokenizer, camera: Camera, stride: int = 1) -> Fidelity:
    """All measures on one episode. stride: only every n-th frame is decoded; all are encoded.

    psnr, wrist_psnr: dB, mean over frames. cube_lost, cube_error (pixels): Lift's cube. cloth_iou: silhouettes of
    true and reconstructed cloth. still_kept, wrist_still_kept: share of static patches that keep their id.
    """
    device = tokenizer.main_place.device
    named = {}
    for prefix, frames in (("", episode.main), ("wrist_", episode.wrist)):
        ids = tokenizer.encode(torch.from_numpy(frames).to(device))
        again = tokenizer.decode(ids[::stride]).cpu().numpy()
        named[f"{prefix}psnr"] = psnr(frames[::stride], again)
        named[f"{prefix}still_kept"] = still_kept(frames, ids.cpu().numpy())
        if not prefix:
            places = camera.project(episode.keypoints[::stride])  # (t, 4, 2)
            find = track_cloth if np.isfinite(places[0]).all() else track_cube
            named |= find(frames[::stride], again, places)
    sums = {name: float(np.sum(values)) for name, values in named.items()}
    return Fidelity(sums, {name: len(values) for name, values in named.items()})


def psnr(true: np.ndarray, again: np.ndarray) -> np.ndarray:
    """Frames (t, h, w, 3) u8 -> (t,) dB."""
    error = np.square(true.astype(np.float32) - again).mean((1, 2, 3))
    return 10 * np.log10(255.0**2 / np.maximum(error, 1e-3))


def still_kept(frames: np.ndarray, ids: np.ndarray) -> np.ndarray:
    """Consecutive frames (t, h, w, 3) and their ids (t, K) -> one 0 or 1 for each static patch."""
    change = np.abs(np.diff(frames.astype(np.int16), axis=0)).max(-1)
    side = frames.shape[1] // PATCH
    change = change.reshape(-1, side, PATCH, side, PATCH).max((2, 4)).reshape(-1, side * side)
    return (ids[1:] == ids[:-1])[change <= STILL].astype(np.float32)


def track_cube(true: np.ndarray, again: np.ndarray, places: np.ndarray) -> dict[str, list[float]]:
    """Frames (t, 64, 64, 3), projected keypoints (t, 4, 2), the first the cube's centre -> cube_lost, cube_error.

    Colours are those of the first frame, where the cube rests and nothing holds it.
    """
    distance = _distance_from(places[0, 0])
    ring = (distance <= CUBE_WINDOW) & (distance > CUBE_WINDOW - 2)
    cube, table = _colour(true[0], distance <= 1.5), _colour(true[0], ring)
    lost, error = [], []
    for frame, decoded, (place, *_) in zip(true, again, places, strict=True):
        inside = _distance_from(place) <= CUBE_WINDOW
        seen, found = (_like(picture, cube, table) & inside for picture in (frame, decoded))
        if seen.sum() < CUBE_VISIBLE:
            continue
        lost.append(float(found.sum() < CUBE_FOUND * seen.sum()))
        if not lost[-1]:
            error.append(float(np.linalg.norm(np.argwhere(found).mean(0) - np.argwhere(seen).mean(0))))
    return {"cube_lost": lost, "cube_error": error}


def track_cloth(true: np.ndarray, again: np.ndarray, places: np.ndarray) -> dict[str, list[float]]:
    """Frames (t, 64, 64, 3), projected corners (t, 4, 2) -> cloth_iou. Colours are those of the first frame."""
    near_left, near_right, far_left, far_right = places[0]
    inner = _inside(np.stack([near_left, near_right, far_right, far_left]))
    margin = _box(places[0], CLOTH_MARGIN) & ~_box(places[0], 1)
    cloth, table = _colour(true[0], inner), _colour(true[0], margin)
    overlap = []
    for frame, decoded, corners in zip(true, again, places, strict=True):
        region = _box(corners, CLOTH_MARGIN)
        seen, found = (_like(picture, cloth, table) & region for picture in (frame, decoded))
        if seen.sum() >= CLOTH_VISIBLE:
            overlap.append(float((seen & found).sum() / (seen | found).sum()))
    return {"cloth_iou": overlap}


_ROWS, _COLUMNS = np.mgrid[:MAIN_SIZE, :MAIN_SIZE]


def _distance_from(place: np.ndarray) -> np.ndarray:
    return np.hypot(_ROWS - place[0], _COLUMNS - place[1])


def _box(places: np.ndarray, margin: float) -> np.ndarray:
    low, high = places.min(0) - margin, places.max(0) + margin
    return (_ROWS >= low[0]) & (_ROWS <= high[0]) & (_COLUMNS >= low[1]) & (_COLUMNS <= high[1])


def _inside(polygon: np.ndarray) -> np.ndarray:
    """Mask of a convex polygon given by its corners (n, 2) in order."""
    edges = np.roll(polygon, -1, 0) - polygon
    sides = [e[0] * (_COLUMNS - p[1]) - e[1] * (_ROWS - p[0]) for p, e in zip(polygon, edges, strict=True)]
    return np.all(np.stack(sides) >= 0, 0) | np.all(np.stack(sides) <= 0, 0)


def _colour(frame: np.ndarray, where: np.ndarray) -> np.ndarray:
    """Median RGB of a region; NaN, like which no pixel looks, where the region lies outside the picture."""
    return np.median(frame[where], 0) if where.any() else np.full(3, np.nan)


def _like(frame: np.ndarray, thing: np.ndarray, around: np.ndarray) -> np.ndarray:
    """Pixels nearer in colour to the thing than to what is around it, and of no third colour: above all not of the
    robot's greys, which lie between a dark cloth and a bright table.

    None, where thing and surroundings differ too little for the rule to mean anything.
    """
    contrast = np.linalg.norm(thing - around)
    if not contrast >= CONTRAST:
        return np.zeros(frame.shape[:2], bool)
    pixels = frame.astype(np.float32)
    from_thing, from_around = (np.linalg.norm(pixels - colour, axis=-1) for colour in (thing, around))
    tint = _tint(pixels)
    grey = np.linalg.norm(tint, axis=-1) <= np.linalg.norm(tint - _tint(thing), axis=-1)
    return (from_thing < from_around) & (from_thing < 0.75 * contrast) & ~grey


def _tint(colour: np.ndarray) -> np.ndarray:
    """Colour (..., 3) without its brightness, so that a shadow does not change it; 0 is grey."""
    return colour / np.maximum(colour.sum(-1, keepdims=True), 1.0) - 1 / 3
