"""Surfaces of the built-in data set: hue and pattern tell the class; and the backgrounds."""

from __future__ import annotations

import colorsys
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageDraw, ImageFilter


def _band(phase: np.ndarray) -> np.ndarray:
    """A square wave of `phase` (radians) with soft edges, in [0, 1]."""
    return np.clip(0.5 + 1.5 * np.sin(phase), 0, 1)


def _stripes(u: np.ndarray, _v: np.ndarray, _: np.random.Generator) -> np.ndarray:
    return _band(u)


def _plain(u: np.ndarray, _v: np.ndarray, _: np.random.Generator) -> np.ndarray:
    return np.full_like(u, 0.5)


def _waves(u: np.ndarray, v: np.ndarray, _: np.random.Generator) -> np.ndarray:
    return _band(u + 1.4 * np.sin(v * 0.6))


def _dots(u: np.ndarray, v: np.ndarray, _: np.random.Generator) -> np.ndarray:
    return np.clip(1.5 * (np.cos(u) + np.cos(v)) - 0.4, 0, 1)


def _checks(u: np.ndarray, v: np.ndarray, _: np.random.Generator) -> np.ndarray:
    return np.clip(0.5 + 2.5 * np.sin(u * 0.7) * np.sin(v * 0.7), 0, 1)


def _rings(u: np.ndarray, v: np.ndarray, _: np.random.Generator) -> np.ndarray:
    return _band(np.hypot(u, v))


def _hatch(u: np.ndarray, v: np.ndarray, _: np.random.Generator) -> np.ndarray:
    return np.clip(3 * np.maximum(np.cos(u), np.cos(v)) - 1.8, 0, 1)


def _speckle(u: np.ndarray, _: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return np.clip(0.5 + 0.45 * rng.standard_normal(u.shape), 0, 1)


# From coordinates u, v (float [S, S], radians, one period is 2 pi) to a mix of two colours in [0, 1].
Pattern = Callable[[np.ndarray, np.ndarray, np.random.Generator], np.ndarray]
SURFACES: tuple[tuple[str, float, Pattern], ...] = (
    ("red stripes", 0.00, _stripes),
    ("green dots", 0.33, _dots),
    ("blue checks", 0.60, _checks),
    ("yellow plain", 0.14, _plain),
    ("purple rings", 0.77, _rings),
    ("cyan hatch", 0.49, _hatch),
    ("orange waves", 0.07, _waves),
    ("pink speckle", 0.90, _speckle),
)
"""Name, hue in [0, 1) and pattern of each class's surface."""


def _colours(rng: np.random.Generator, hue: float) -> tuple[np.ndarray, np.ndarray]:
    """The light and the dark colour [3] of a surface, RGB in 0..255."""
    hue = (hue + rng.normal(0, 0.018)) % 1.0
    light = colorsys.hsv_to_rgb(hue, rng.uniform(0.65, 0.85), rng.uniform(0.85, 1.0))
    dark = colorsys.hsv_to_rgb(hue, rng.uniform(0.75, 0.95), rng.uniform(0.35, 0.55))
    return np.array(light) * 255, np.array(dark) * 255


def draw_surface(
    rng: np.random.Generator, side: int, period: float, number: int, other: int, ambiguity: float
) -> np.ndarray:
    """Draws a square of the surface of class `number`, mixed towards that of class `other`.

    Args:
        rng: the source of every draw.
        side: pixels.
        period: the pattern's period in pixels.
        number: index into `SURFACES`.
        other: index into `SURFACES` of the class it may be taken for.
        ambiguity: share of the other class's colours and pattern, in [0, 0.5).

    Returns:
        float32 [side, side, 3], RGB in 0..255.
    """
    angle, phase = rng.uniform(0, np.pi), rng.uniform(-0.3, 0.3, 2)
    axis = (np.arange(side, dtype=np.float32) - side / 2) * np.float32(2 * np.pi / (period * rng.uniform(0.85, 1.2)))
    x, y = axis[None, :], axis[:, None]
    u = (x * np.cos(angle) + y * np.sin(angle) + phase[0]).astype(np.float32)  # [side, side]
    v = (y * np.cos(angle) - x * np.sin(angle) + phase[1]).astype(np.float32)  # [side, side]
    (_, hue, pattern), (_, other_hue, other_pattern) = SURFACES[number], SURFACES[other]
    light, dark = _colours(rng, hue)
    other_light, other_dark = _colours(rng, other_hue)
    light = light + ambiguity * (other_light - light)
    dark = dark + ambiguity * (other_dark - dark)
    mix = pattern(u, v, rng)
    mix = mix + ambiguity * (other_pattern(u, v, rng) - mix)
    return (dark + mix[:, :, None] * (light - dark)).astype(np.float32)


def draw_background(rng: np.random.Generator, size: int) -> np.ndarray:
    """Draws muted, slowly varying colours under a fine texture, with strokes that are no objects.

    Returns:
        float32 [size, size, 3], RGB in 0..255.
    """
    scale = size / 160
    cells = int(rng.integers(3, 7))
    level = rng.uniform(60, 190)
    coarse = level + rng.normal(0, 16, (cells, cells, 1)) + rng.normal(0, 12, (cells, cells, 3))
    image = Image.fromarray(np.clip(coarse, 0, 255).astype(np.uint8)).resize((size, size), Image.Resampling.BICUBIC)
    pen = ImageDraw.Draw(image)
    for _ in range(int(rng.integers(2, 8))):
        start, step = rng.uniform(0, size, 2), rng.normal(0, 30 * scale, (2, 2))
        points = np.concatenate([start[None], start + np.cumsum(step, axis=0)])  # [3, 2] xy
        colour = colorsys.hsv_to_rgb(rng.random(), rng.uniform(0, 0.6), rng.uniform(0.2, 0.9))
        width = max(1, round(float(rng.uniform(0.6, 3.2)) * scale))
        pen.line(
            [(float(px), float(py)) for px, py in points],
            fill=tuple(int(c * 255) for c in colour),
            width=width,
        )
    image = image.filter(ImageFilter.GaussianBlur(float(rng.uniform(0.3, 0.9)) * scale))
    grain = rng.normal(0, rng.uniform(2, 9), (size, size, 1)).astype(np.float32)
    return np.asarray(image, dtype=np.float32) + grain
