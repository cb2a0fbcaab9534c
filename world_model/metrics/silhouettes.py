"""Do the objects of an image survive in another one? Found by where keypoints say they are, and by their colour.

What an object looks like comes from the first true image of an episode: the colour at its keypoints against the colour
around them. The same rule then finds it in the true and in the other images, so a rule that errs, errs in both.
"""

from __future__ import annotations

import numpy as np

SMALL_WINDOW = 7  # pixels round a lone keypoint in which its object is looked for
SMALL_VISIBLE = 8  # pixels of it that must be seen in the true image (not hidden by the robot) to count
SMALL_FOUND = 0.25  # share of those pixels that must be left, or the object counts as lost
OUTLINE_MARGIN = 6  # pixels round an outline of keypoints in which its object is looked for
OUTLINE_VISIBLE = 60
CONTRAST = 40.0  # RGB distance between object and background below which the colour rule means nothing


def compare_objects(true: np.ndarray, other: np.ndarray, places: np.ndarray) -> dict[str, list[float]]:
    """Images (t, h, w, 3), places (t, n, 2) of keypoints in pixels, NaN where unused -> figures of each image.

    At least three keypoints outline one object: `outline_iou`. Fewer are small objects of their own: `object_lost`,
    and of those that are not lost `object_error`, in pixels. Which keypoints are used is read from the first image.
    """
    used = np.isfinite(places[0]).all(-1)
    if used.sum() >= 3:
        return compare_outlines(true, other, places[:, used])
    found: dict[str, list[float]] = {"object_lost": [], "object_error": []}
    for index in np.flatnonzero(used):
        for name, values in compare_small(true, other, places[:, index]).items():
            found[name] += values
    return found


def compare_small(true: np.ndarray, other: np.ndarray, places: np.ndarray) -> dict[str, list[float]]:
    """Images (t, h, w, 3), the middle of a small object (t, 2) in pixels -> object_lost, object_error."""
    distance = _distances(true, places[0])
    ring = (distance <= SMALL_WINDOW) & (distance > SMALL_WINDOW - 2)
    thing, around = _colour(true[0], distance <= 1.5), _colour(true[0], ring)
    lost, error = [], []
    for image, again, place in zip(true, other, places, strict=True):
        inside = _distances(true, place) <= SMALL_WINDOW
        seen, found = (_like(each, thing, around) & inside for each in (image, again))
        if seen.sum() < SMALL_VISIBLE:
            continue
        lost.append(float(found.sum() < SMALL_FOUND * seen.sum()))
        if not lost[-1]:
            error.append(float(np.linalg.norm(np.argwhere(found).mean(0) - np.argwhere(seen).mean(0))))
    return {"object_lost": lost, "object_error": error}


def compare_outlines(true: np.ndarray, other: np.ndarray, places: np.ndarray) -> dict[str, list[float]]:
    """Images (t, h, w, 3), places (t, n, 2) round an object in any order -> outline_iou."""
    inner = _inside(true, places[0])
    margin = _box(true, places[0], OUTLINE_MARGIN) & ~_box(true, places[0], 1)
    thing, around = _colour(true[0], inner), _colour(true[0], margin)
    overlap = []
    for image, again, corners in zip(true, other, places, strict=True):
        region = _box(true, corners, OUTLINE_MARGIN)
        seen, found = (_like(each, thing, around) & region for each in (image, again))
        if seen.sum() >= OUTLINE_VISIBLE:
            overlap.append(float((seen & found).sum() / (seen | found).sum()))
    return {"outline_iou": overlap}


def _distances(images: np.ndarray, place: np.ndarray) -> np.ndarray:
    """(h, w) pixels from a place."""
    rows, columns = np.mgrid[: images.shape[1], : images.shape[2]]
    return np.hypot(rows - place[0], columns - place[1])


def _box(images: np.ndarray, places: np.ndarray, margin: float) -> np.ndarray:
    rows, columns = np.mgrid[: images.shape[1], : images.shape[2]]
    low, high = places.min(0) - margin, places.max(0) + margin
    return (rows >= low[0]) & (rows <= high[0]) & (columns >= low[1]) & (columns <= high[1])


def _inside(images: np.ndarray, corners: np.ndarray) -> np.ndarray:
    """Mask of the convex polygon that has these corners (n, 2), put in order round their middle."""
    rows, columns = np.mgrid[: images.shape[1], : images.shape[2]]
    away = corners - corners.mean(0)
    polygon = corners[np.argsort(np.arctan2(away[:, 1], away[:, 0]))]
    edges = np.roll(polygon, -1, 0) - polygon
    sides = [e[0] * (columns - p[1]) - e[1] * (rows - p[0]) for p, e in zip(polygon, edges, strict=True)]
    return np.all(np.stack(sides) >= 0, 0) | np.all(np.stack(sides) <= 0, 0)


def _colour(image: np.ndarray, where: np.ndarray) -> np.ndarray:
    """Median RGB of a region; NaN, like which no pixel looks, where the region lies outside the image."""
    return np.median(image[where], 0) if where.any() else np.full(3, np.nan)


def _like(image: np.ndarray, thing: np.ndarray, around: np.ndarray) -> np.ndarray:
    """Pixels nearer in colour to the thing than to what is around it, and of no third colour: above all not of a
    robot's greys, which may lie between a dark object and a bright background.

    None, where thing and surroundings differ too little for the rule to mean anything.
    """
    contrast = np.linalg.norm(thing - around)
    if not contrast >= CONTRAST:
        return np.zeros(image.shape[:2], bool)
    pixels = image.astype(np.float32)
    from_thing, from_around = (np.linalg.norm(pixels - colour, axis=-1) for colour in (thing, around))
    tint = _tint(pixels)
    grey = np.linalg.norm(tint, axis=-1) <= np.linalg.norm(tint - _tint(thing), axis=-1)
    return (from_thing < from_around) & (from_thing < 0.75 * contrast) & ~grey


def _tint(colour: np.ndarray) -> np.ndarray:
    """Colour (..., 3) without its brightness, so that a shadow does not change it; 0 is grey."""
    return colour / np.maximum(colour.sum(-1, keepdims=True), 1.0) - 1 / 3
