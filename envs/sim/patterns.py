"""Procedural textures that training may show, made of random numbers: noise, stripes, checks, gradients, blotches.

Each is (SIZE, SIZE, 3) u8, of colours drawn at random. The patterns of `wild` (envs/sim/wild.py) are of other kinds.
"""

from __future__ import annotations

import colorsys

import cv2
import numpy as np

SIZE = 256  # pixels


def draw_pattern(rng: np.random.Generator) -> np.ndarray:
    """One texture of any kind, (SIZE, SIZE, 3) u8."""
    kinds = (_noise, _stripes, _checks, _gradient, _blotches)
    return kinds[rng.integers(len(kinds))](rng)


def palette(rng: np.random.Generator, count: int) -> np.ndarray:
    """Colours (count, 3) in [0, 1]: pale to strong, none of them black."""
    hsv = zip(rng.uniform(0, 1, count), rng.uniform(0, 0.9, count), rng.uniform(0.25, 1, count), strict=True)
    return np.array([colorsys.hsv_to_rgb(*colour) for colour in hsv])


def fractal(rng: np.random.Generator, coarsest: int, roughness: float) -> np.ndarray:
    """Noise at several scales, (SIZE, SIZE) in [0, 1]: cells from 1 / coarsest of the side down to a few pixels, each
    scale `roughness` times as strong as the one before."""
    field, cells, strength = np.zeros((SIZE, SIZE), np.float32), coarsest, 1.0
    while cells <= SIZE // 2:
        coarse = rng.standard_normal((cells, cells), np.float32)
        field += strength * cv2.resize(coarse, (SIZE, SIZE), interpolation=cv2.INTER_CUBIC)
        cells, strength = 2 * cells, strength * roughness
    return (field - field.min()) / np.ptp(field)


def blend(field: np.ndarray, colours: np.ndarray) -> np.ndarray:
    """field (SIZE, SIZE) in [0, 1] and colours (n, 3) in the order in which it passes through them -> pixels."""
    ramp = np.linspace(0, 1, 256)
    at = np.linspace(0, 1, len(colours))
    table = to_pixels(np.stack([np.interp(ramp, at, channel) for channel in colours.T], axis=-1))
    return table[np.rint(255 * field).astype(np.uint8)]


def to_pixels(picture: np.ndarray) -> np.ndarray:
    """(..., 3) in [0, 1] -> u8; what is outside is cut off."""
    return np.rint(255 * np.clip(picture, 0, 1)).astype(np.uint8)


def across(rng: np.random.Generator, angle: float) -> np.ndarray:
    """How far each pixel lies in the direction of an angle, (SIZE, SIZE) in sides of the picture, from a random start;
    along lines that noise bends a little."""
    rows, columns = np.mgrid[:SIZE, :SIZE] / SIZE
    bend = rng.choice([0, rng.uniform(0, 0.15)]) * (fractal(rng, 2, 0.4) - 0.5)
    return rows * np.sin(angle) + columns * np.cos(angle) + bend + rng.uniform()


def _noise(rng: np.random.Generator) -> np.ndarray:
    field = fractal(rng, int(rng.choice([2, 4, 8, 16, 32])), rng.uniform(0.4, 0.95))
    return blend(field, palette(rng, int(rng.integers(2, 4))))


def _stripes(rng: np.random.Generator) -> np.ndarray:
    wave = 0.5 + 0.5 * np.sin(2 * np.pi * rng.uniform(3, 20) * across(rng, rng.uniform(0, np.pi)))
    sharpness = rng.uniform(1, 8)
    return _grained(rng, blend(np.clip((wave - rng.uniform(0.3, 0.7)) * sharpness + 0.5, 0, 1), palette(rng, 2)))


def _checks(rng: np.random.Generator) -> np.ndarray:
    angle, cells = rng.uniform(0, np.pi / 2), rng.uniform(3, 14)
    rows, columns = (np.floor(cells * across(rng, turned)).astype(int) for turned in (angle, angle + np.pi / 2))
    return _grained(rng, blend(((rows + columns) % 2).astype(float), palette(rng, 2)))


def _gradient(rng: np.random.Generator) -> np.ndarray:
    rows, columns = np.mgrid[:SIZE, :SIZE] / SIZE - rng.uniform(0, 1, 2)[:, None, None]
    angle = rng.uniform(0, 2 * np.pi)
    field = np.hypot(rows, columns) if rng.uniform() < 0.5 else rows * np.sin(angle) + columns * np.cos(angle)
    return _grained(rng, blend((field - field.min()) / np.ptp(field), palette(rng, int(rng.integers(2, 5)))))


def _blotches(rng: np.random.Generator) -> np.ndarray:
    field = fractal(rng, int(rng.choice([2, 4, 8, 16])), rng.uniform(0.2, 0.6))
    colours = palette(rng, int(rng.integers(2, 5)))
    levels = np.quantile(field, np.sort(rng.uniform(0.15, 0.85, len(colours) - 1)))
    return _grained(rng, to_pixels(colours[np.digitize(field, levels)]))


def _grained(rng: np.random.Generator, pixels: np.ndarray) -> np.ndarray:
    """With the fine grain that real surfaces have."""
    grain = np.float32(rng.uniform(0, 0.1)) * rng.standard_normal((SIZE, SIZE, 1), np.float32)
    return to_pixels(pixels / np.float32(255) + grain)
