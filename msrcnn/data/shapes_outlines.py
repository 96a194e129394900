"""Outlines of the built-in data set: smooth or thin, whole or with holes, drawn without knowing the class."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Outline:
    """An outline around the origin: the union of `parts` without `holes`."""

    family: str
    parts: tuple[np.ndarray, ...]
    """closed polygons, each [N, 2] xy in pixels"""
    holes: tuple[np.ndarray, ...] = ()
    """closed polygons inside the parts, each [N, 2] xy in pixels"""

    @property
    def simple(self) -> bool:
        """Whether one polygon says it all."""
        return len(self.parts) == 1 and not self.holes


def draw_outline(rng: np.random.Generator, length: float, thin: float | None, hole: float | None) -> Outline:
    """Draws an outline, stretched and turned at random.

    Args:
        rng: the source of every draw.
        length: the longer side of the outline's bounding box, in pixels.
        thin: how thin its parts or how rough its contour, in [0, 1]; None for a solid shape.
        hole: how much of it the holes take, in [0, 1]; None for a shape without holes.
    """
    if thin is not None:
        # Only the wiggle has a core wide enough for a hole.
        family = "wiggle" if hole is not None else str(rng.choice(sorted(THIN)))
        parts = THIN[family](rng, thin)
    else:
        family = "blob" if hole is not None else str(rng.choice(sorted(SOLID)))
        parts = SOLID[family](rng)
    holes: tuple[np.ndarray, ...] = ()
    if hole is not None:
        family, holes = "ring", _holes(rng, parts[0], hole)
    stretch = 1.0 if family in ("comb", "tree", "bar") else rng.uniform(0.65, 1.0)
    angle = rng.uniform(0, 2 * np.pi)
    turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    matrix = np.diag([1.0, stretch]) @ turn
    parts, holes = tuple(p @ matrix for p in parts), tuple(h @ matrix for h in holes)
    points = np.concatenate(parts)
    low, high = points.min(0), points.max(0)
    middle, scale = (low + high) / 2, length / (high - low).max()
    return Outline(family, tuple((p - middle) * scale for p in parts), tuple((h - middle) * scale for h in holes))


def _around(radius: np.ndarray) -> np.ndarray:
    """The polygon [N, 2] with these N distances from the origin, at equal angles."""
    angle = np.arange(len(radius)) * (2 * np.pi / len(radius))
    return np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1)


def _smooth_radius(rng: np.random.Generator, points: int, amplitude: float = 0.12) -> np.ndarray:
    """Distances [points] of a smooth closed curve around the unit circle."""
    angle = np.arange(points) * (2 * np.pi / points)
    radius = np.ones(points)
    for frequency in (2, 3, 4):
        radius += rng.uniform(0, amplitude) / (frequency - 1) * np.sin(frequency * angle + rng.uniform(0, 6.28))
    return radius


def _holes(rng: np.random.Generator, outer: np.ndarray, strength: float) -> tuple[np.ndarray, ...]:
    """One big hole that follows `outer`, or three round ones; all inside a curve of distance 0.7 or more."""
    if rng.random() < 0.6:
        inner = _smooth_radius(rng, 40, 0.06) * (0.3 + 0.35 * strength)
        return (_around(inner) + outer.mean(0),)
    turn, radius = rng.uniform(0, 6.28), 0.12 + 0.1 * strength
    centres = 0.42 * np.stack([np.cos(turn + np.arange(3) * 2.1), np.sin(turn + np.arange(3) * 2.1)], axis=1)
    return tuple(_around(np.full(16, radius)) + centre for centre in centres)


def _blob(rng: np.random.Generator) -> tuple[np.ndarray, ...]:
    return (_around(_smooth_radius(rng, 48)),)


def _polygon(rng: np.random.Generator) -> tuple[np.ndarray, ...]:
    corners = int(rng.integers(3, 8))
    angle = (np.arange(corners) + rng.uniform(-0.25, 0.25, corners)) * (2 * np.pi / corners)
    radius = rng.uniform(0.85, 1.0, corners)
    return (np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1),)


def _bar(rng: np.random.Generator) -> tuple[np.ndarray, ...]:
    """A bent bar with flat ends."""
    along = np.linspace(-1, 1, 12)
    bend, half = rng.uniform(-0.25, 0.25) * along**2, rng.uniform(0.17, 0.32)
    upper, lower = np.stack([along, bend + half], axis=1), np.stack([along, bend - half], axis=1)
    return (np.concatenate([upper, lower[::-1]]),)


def _star(rng: np.random.Generator, strength: float) -> tuple[np.ndarray, ...]:
    arms = int(rng.integers(4, 8))
    radius = np.empty(2 * arms)
    radius[0::2] = rng.uniform(0.75, 1.0, arms)
    radius[1::2] = 0.52 - 0.34 * strength
    return (_around(radius),)


def _wiggle(rng: np.random.Generator, strength: float) -> tuple[np.ndarray, ...]:
    waves = int(rng.integers(8, 15))
    angle = np.arange(20 * waves) * (2 * np.pi / (20 * waves))
    radius = _smooth_radius(rng, len(angle), 0.08)
    return (_around(radius + (0.07 + 0.18 * strength) * np.sin(waves * angle)),)


def _comb(rng: np.random.Generator, strength: float) -> tuple[np.ndarray, ...]:
    teeth = int(rng.integers(3, 6)) + round(2 * strength)
    pitch = 2.0 / (teeth - 0.5)
    width = pitch * (0.62 - 0.27 * strength)
    bottom, spine = -0.7, 0.35
    points = [(-1.0, 0.7), (-1.0, bottom)]
    for tooth in range(teeth):
        left = -1.0 + tooth * pitch
        end = bottom + rng.uniform(0, 0.3)
        points += [(left, end), (left + width, end), (left + width, spine)]
        if tooth < teeth - 1:
            points.append((left + pitch, spine))
    points[1] = (-1.0, points[2][1])
    points.append((points[-1][0], 0.7))
    return (np.array(points),)


def _stroke(start: np.ndarray, end: np.ndarray, half: float) -> np.ndarray:
    """The quadrangle [4, 2] of a straight stroke that thins towards its end."""
    side = np.array([start[1] - end[1], end[0] - start[0]]) / np.hypot(*(end - start)) * half
    return np.stack([start + side, end + 0.6 * side, end - 0.6 * side, start - side])


def _tree(rng: np.random.Generator, strength: float) -> tuple[np.ndarray, ...]:
    half = 0.15 - 0.09 * strength
    foot, top = np.array([0.0, -1.0]), np.array([rng.uniform(-0.2, 0.2), 1.0])
    strokes = [_stroke(foot, top, half * 1.3)]
    for branch, height in enumerate(np.linspace(0.25, 0.8, int(rng.integers(3, 6)))):
        root = foot + (top - foot) * height
        angle, reach = rng.uniform(0.4, 1.0), (1.1 - 0.7 * height) * rng.uniform(0.7, 1.0)
        side = 1.0 if branch % 2 else -1.0
        tip = root + reach * np.array([side * np.cos(angle), np.sin(angle)])
        strokes.append(_stroke(root, tip, half))
    return tuple(strokes)


def _crescent(rng: np.random.Generator, strength: float) -> tuple[np.ndarray, ...]:
    """The unit disc without another disc of radius `inner`, whose centre is `shift` to the right."""
    inner, shift = rng.uniform(0.85, 0.97), 0.7 - 0.47 * strength
    crossing = (1 - inner**2 + shift**2) / (2 * shift)  # x where the two circles meet
    outer_angle, inner_angle = np.arccos(crossing), np.arccos((crossing - shift) / inner)
    outside = np.linspace(outer_angle, 2 * np.pi - outer_angle, 40)
    inside = np.linspace(2 * np.pi - inner_angle, inner_angle, 40)[1:-1]
    outer_points = np.stack([np.cos(outside), np.sin(outside)], axis=1)
    inner_points = np.stack([shift + inner * np.cos(inside), inner * np.sin(inside)], axis=1)
    return (np.concatenate([outer_points, inner_points]),)


SOLID: dict[str, Callable[[np.random.Generator], tuple[np.ndarray, ...]]] = {
    "blob": _blob,
    "polygon": _polygon,
    "bar": _bar,
}
THIN: dict[str, Callable[[np.random.Generator, float], tuple[np.ndarray, ...]]] = {
    "star": _star,
    "wiggle": _wiggle,
    "comb": _comb,
    "tree": _tree,
    "crescent": _crescent,
}
