"""One object of the built-in data set: what it is to be, its rasterised outline, and how it is painted."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pycocotools.mask as coco_mask
from PIL import Image, ImageDraw, ImageFilter

from msrcnn.data.shapes_outlines import Outline, draw_outline
from msrcnn.data.shapes_surfaces import SURFACES, draw_surface

CAUSES = ("thin", "hole", "fade", "blur", "occlusion", "camouflage")
"""What makes a mask hard; an object is given none, one or two of them."""

EASY = 0.4  # share of objects without any cause
SHORTEST, LONGEST = 18.0, 80.0  # pixels of an object's longer side in an image of 160
SUPERSAMPLE = 4


@dataclass(frozen=True)
class Plan:
    """What an object is to be, before it is drawn."""

    category: int
    """index into SURFACES"""
    other: int
    """index of the class it may be taken for"""
    ambiguity: float
    """share of the other class's surface, in [0, 0.45]"""
    length: float
    """longer side in pixels"""
    causes: dict[str, float] = field(default_factory=dict)
    """cause (see CAUSES) to strength, in [0, 1]"""


@dataclass(frozen=True)
class Sprite:
    """A rasterised outline on a small canvas of its own, S pixels a side."""

    outline: Outline
    coverage: np.ndarray
    """float32 [S, S]: share of each pixel inside the outline"""
    truth: np.ndarray
    """bool [S, S]"""
    polygon: np.ndarray | None
    """[N, 2] xy on this canvas when one polygon says what `truth` is"""


def draw_plan(rng: np.random.Generator, classes: int, scale: float, can_be_covered: bool) -> Plan:
    """Draws what an object is to be; class, ambiguity, causes and size are independent of each other."""
    category = int(rng.integers(classes))
    others = [k for k in range(classes if classes > 1 else len(SURFACES)) if k != category]
    other = int(rng.choice(others))
    ambiguity = float(rng.uniform(0, 0.1) if rng.random() < 0.75 else rng.uniform(0.15, 0.45))
    length = float(np.exp(rng.uniform(np.log(SHORTEST), np.log(LONGEST)))) * scale
    causes: dict[str, float] = {}
    if rng.random() >= EASY:
        possible = [cause for cause in CAUSES if can_be_covered or cause != "occlusion"]
        chosen = rng.choice(possible, size=1 if rng.random() < 0.5 else 2, replace=False)
        causes = {str(cause): float(rng.uniform(0.1, 1.0)) for cause in chosen}
    return Plan(category, other, ambiguity, length, causes)


def draw_sprite(rng: np.random.Generator, plan: Plan) -> Sprite:
    """Draws the outline of `plan` and rasterises it, with room around it for blur and camouflage."""
    outline = draw_outline(rng, plan.length, plan.causes.get("thin"), plan.causes.get("hole"))
    margin = 2.0 + plan.length * max(0.5 * ("camouflage" in plan.causes), 0.25 * ("blur" in plan.causes))
    side = int(np.ceil(plan.length + 2 * margin))
    middle = side / 2 + rng.uniform(-0.5, 0.5, 2)
    parts = [np.round(part + middle, 2) for part in outline.parts]  # as many decimals as the JSON gets
    drawn = Image.new("L", (side * SUPERSAMPLE, side * SUPERSAMPLE))
    pen = ImageDraw.Draw(drawn)
    for polygons, value in ((parts, 255), ([hole + middle for hole in outline.holes], 0)):
        for polygon in polygons:
            # Pillow's whole numbers are pixel centres, ours pixel corners.
            pen.polygon([(px, py) for px, py in (polygon * SUPERSAMPLE - 0.5).tolist()], fill=value)
    coverage = np.asarray(drawn.reduce(SUPERSAMPLE), dtype=np.float32) / 255  # [side, side]
    if not outline.simple:
        return Sprite(outline, coverage, coverage > 0.5, None)
    rle = coco_mask.frPyObjects([parts[0].ravel().tolist()], side, side)
    truth = coco_mask.decode(rle)[:, :, 0].astype(bool)  # [side, side, 1] -> [side, side]
    return Sprite(outline, coverage, truth, parts[0])


def paint(
    rng: np.random.Generator,
    sprite: Sprite,
    plan: Plan,
    scale: float,
    below: np.ndarray,
    backdrop: np.ndarray,
    free: np.ndarray,
) -> np.ndarray:
    """Paints an object.

    Args:
        rng: the source of every draw.
        sprite: its outline.
        plan: its surface and what makes its mask hard.
        scale: the image's side over 160, which scales the pattern.
        below: float32 [S, S, 3], the image so far, under the sprite's canvas.
        backdrop: float32 [S, S, 3], the background alone there.
        free: bool [S, S], where no object is yet; camouflage goes nowhere else.

    Returns:
        float32 [S, S, 3], the image there with the object on it.
    """
    side = len(sprite.coverage)
    surface = draw_surface(rng, side, 7 * scale, plan.category, plan.other, plan.ambiguity)
    if "camouflage" in plan.causes:
        patch = _camouflage(rng, sprite, plan) * free
        below = below + patch[:, :, None] * (surface - below)
    alpha = sprite.coverage
    if "blur" in plan.causes:
        radius = (0.015 + 0.055 * plan.causes["blur"]) * plan.length + 0.5 * scale
        soft = Image.fromarray((alpha * 255).astype(np.uint8)).filter(ImageFilter.GaussianBlur(radius))
        alpha = np.asarray(soft, dtype=np.float32) / 255
    if "fade" in plan.causes:
        shown = _fade(rng, sprite.truth, plan.causes["fade"])
        surface = backdrop + shown[:, :, None] * (surface - backdrop)
    return below + alpha[:, :, None] * (surface - below)


def _fade(rng: np.random.Generator, truth: np.ndarray, strength: float) -> np.ndarray:
    """How much of the surface shows, float32 [S, S]: all on one side, little on the other."""
    angle = rng.uniform(0, 2 * np.pi)
    axis = np.arange(len(truth), dtype=np.float32)
    along = axis[None, :] * np.float32(np.cos(angle)) + axis[:, None] * np.float32(np.sin(angle))  # [S, S]
    low, high = along[truth].min(), along[truth].max()
    start = 0.6 - 0.3 * strength  # where along the object the fading starts
    ramp = np.clip(((along - low) / max(high - low, 1) - start) / 0.4, 0, 1)
    return 1 - np.float32(0.55 + 0.42 * strength) * ramp


def _camouflage(rng: np.random.Generator, sprite: Sprite, plan: Plan) -> np.ndarray:
    """Opacity [S, S] of one or two patches that touch the outline from outside."""
    strength, side = plan.causes["camouflage"], len(sprite.coverage)
    axis = np.arange(side, dtype=np.float32) + 0.5
    edge = np.argwhere(sprite.truth & ~_eroded(sprite.truth))[:, ::-1] + 0.5  # [N, 2] xy
    opacity = np.zeros((side, side), dtype=np.float32)
    for _ in range(2 if strength > 0.5 else 1):
        touch = edge[rng.integers(len(edge))]
        outwards = (touch - side / 2) / max(float(np.hypot(*(touch - side / 2))), 1.0)
        long, short = (
            plan.length * rng.uniform(0.14, 0.18 + 0.12 * strength),
            plan.length * rng.uniform(0.07, 0.13),
        )
        centre, angle = touch + 0.5 * short * outwards, rng.uniform(0, np.pi)
        x, y = axis[None, :] - centre[0], axis[:, None] - centre[1]
        u, v = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)  # [S, S]
        inside = np.clip(0.5 + (1 - np.hypot(u / long, v / short)) * short, 0, 1)
        opacity = np.maximum(opacity, inside * (0.6 + 0.35 * strength))
    return opacity.astype(np.float32)


def _eroded(mask: np.ndarray) -> np.ndarray:
    """`mask` without the pixels that touch its outside by a side; the canvas's rim counts as outside."""
    padded = np.pad(mask, 1)
    return mask & padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
