"""How one image of the built-in data set is composed: objects on a background and on each other.

What makes a mask hard is drawn apart from what makes a class hard, and every cause shows in the image.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from PIL import Image, ImageFilter

from msrcnn.data.shapes_objects import Plan, Sprite, draw_plan, draw_sprite, paint
from msrcnn.data.shapes_surfaces import draw_background

EMPTY, CROWD = 0.04, 0.05  # shares of images
TRIES = 12  # places tried for an object
OVERLAP = 0.1  # share of an object that another may cover without being asked to
MOST_COVERED = 0.65  # share of an object covered at occlusion strength 1
KEPT_SHARE, KEPT_PIXELS = 0.25, 60  # an object shows at least this share and, at 160 pixels, this many pixels


@dataclass(frozen=True)
class Instance:
    """An object, or a crowd region, of an image."""

    category: int
    """index into `shapes_surfaces.SURFACES`"""
    mask: np.ndarray
    """bool [size, size], the visible part"""
    polygon: np.ndarray | None = None
    """[N, 2] xy in the image, when the mask is the whole of a simple outline"""
    iscrowd: bool = False
    family: str = "crowd"
    """the outline's name"""
    ambiguity: float = 0.0
    """share of another class's surface mixed in, in [0, 0.45]"""
    causes: dict[str, float] = field(default_factory=dict)
    """what makes the mask hard (`shapes_objects.CAUSES`) to strength, in [0, 1]; occlusion: share covered"""


@dataclass(frozen=True)
class _Placed:
    """An object on the canvas; what later objects leave of it is told by the canvas."""

    plan: Plan
    family: str
    polygon: np.ndarray | None
    area: int  # pixels of the whole object
    inside: int  # ... that lie in the image
    iscrowd: bool = False


class _Canvas:
    """An image being painted, and who owns which pixel."""

    def __init__(self, backdrop: np.ndarray) -> None:
        self.size = len(backdrop)
        self.scale = self.size / 160
        self.backdrop = backdrop  # float32 [size, size, 3]
        self.pixels = backdrop.copy()
        self.placed: list[_Placed] = []
        self.owner = np.zeros((self.size, self.size), dtype=np.int64)  # 0: background; i: placed[i - 1]

    def windows(self, x: int, y: int, side: int) -> tuple[tuple[slice, slice], tuple[slice, slice]]:
        """Rows and columns of the image that a square at (x, y) covers, and the same of the square."""
        x0, y0 = max(x, 0), max(y, 0)
        x1, y1 = max(min(x + side, self.size), x0), max(min(y + side, self.size), y0)
        return (slice(y0, y1), slice(x0, x1)), (slice(y0 - y, y1 - y), slice(x0 - x, x1 - x))

    def paint(self, rng: np.random.Generator, sprite: Sprite, plan: Plan, x: int, y: int) -> None:
        """Paints the sprite with its upper left corner at (x, y)."""
        side = len(sprite.truth)
        here, there = self.windows(x, y, side)
        below, backdrop = np.zeros((2, side, side, 3), dtype=np.float32)
        free = np.zeros((side, side), dtype=bool)
        below[there], backdrop[there], free[there] = (
            self.pixels[here],
            self.backdrop[here],
            self.owner[here] == 0,
        )
        self.pixels[here] = paint(rng, sprite, plan, self.scale, below, backdrop, free)[there]


def draw_scene(rng: np.random.Generator, size: int, classes: int) -> tuple[np.ndarray, list[Instance]]:
    """Draws one image.

    Args:
        rng: the source of every draw.
        size: pixels of a side.
        classes: how many of the surfaces are in use.

    Returns:
        The image, uint8 [size, size, 3] RGB, and its instances. No two of them share a pixel.
    """
    canvas = _Canvas(draw_background(rng, size))
    kind = rng.random()
    if kind >= EMPTY:
        if kind < EMPTY + CROWD:
            _add_crowd(rng, canvas, classes)
        number = 1 + int(rng.binomial(6, 0.6))
        cover: tuple[int, float] | None = None  # owner that the next object is to cover, and the share
        for index in range(number):
            plan = draw_plan(rng, classes, canvas.scale, can_be_covered=index < number - 1)
            if _add_object(rng, canvas, plan, cover):
                strength = plan.causes.get("occlusion")
                cover = None if strength is None else (len(canvas.placed), MOST_COVERED * strength)
    return _finish(rng, canvas.pixels, canvas.scale), _instances(canvas)


def _add_object(rng: np.random.Generator, canvas: _Canvas, plan: Plan, cover: tuple[int, float] | None) -> bool:
    """Draws an object over the others; False if there is no place where enough of all of them shows."""
    sprite = draw_sprite(rng, plan)
    place = _find_place(rng, canvas, sprite, plan.length, cover)
    if place is None:
        return False
    x, y = place
    canvas.paint(rng, sprite, plan, x, y)
    here, there = canvas.windows(x, y, len(sprite.truth))
    area, inside = int(sprite.truth.sum()), int(sprite.truth[there].sum())
    polygon = sprite.polygon + np.array([x, y]) if sprite.polygon is not None and inside == area else None
    canvas.placed.append(_Placed(plan, sprite.outline.family, polygon, area, inside))
    canvas.owner[here][sprite.truth[there]] = len(canvas.placed)
    return True


def _find_place(
    rng: np.random.Generator, canvas: _Canvas, sprite: Sprite, length: float, cover: tuple[int, float] | None
) -> tuple[int, int] | None:
    """The best of a few random places (x, y of the upper left corner) for a sprite, or None."""
    side = len(sprite.truth)
    area = int(sprite.truth.sum())
    whole = np.array([0] + [p.inside for p in canvas.placed])
    shown = np.bincount(canvas.owner.ravel(), minlength=len(whole))
    needed = np.array([0] + [_needed(p.area, canvas.scale) for p in canvas.placed])
    wanted = np.zeros(len(whole))
    middle, spread = np.full(2, canvas.size / 2), 0.42 * canvas.size
    if cover is not None:
        wanted[cover[0]] = cover[1]
        rows, columns = np.nonzero(canvas.owner == cover[0])
        middle = np.array([columns.mean(), rows.mean()])
        spread = 0.35 * (length + canvas.placed[cover[0] - 1].plan.length)
    best, best_cost = None, np.inf
    for _ in range(TRIES):
        x, y = (int(c) for c in np.round(middle + rng.uniform(-spread, spread, 2) - side / 2))
        here, there = canvas.windows(x, y, side)
        taken = np.bincount(canvas.owner[here][sprite.truth[there]], minlength=len(whole))
        left = shown - taken
        left[0] = 0
        if taken.sum() < _needed(area, canvas.scale) or (left < needed).any():
            continue
        covered = 1 - left[1:] / whole[1:]
        before = 1 - shown[1:] / whole[1:]
        cost = float(np.abs(covered - np.maximum(wanted[1:], before)).max(initial=0))
        if cost < best_cost:
            best, best_cost = (x, y), cost
        if best_cost < 0.02:
            break
    return best if cover is not None or best_cost <= OVERLAP else None


def _needed(area: int, scale: float) -> float:
    """Pixels that must show of an object of `area` pixels."""
    return max(KEPT_SHARE * area, KEPT_PIXELS * scale**2)


def _add_crowd(rng: np.random.Generator, canvas: _Canvas, classes: int) -> None:
    """Draws a cluster of many tiny objects of one class, owned as one region."""
    scale = canvas.scale
    category = draw_plan(rng, classes, scale, can_be_covered=False).category
    middle = rng.uniform(0.3, 0.7, 2) * canvas.size
    spread = rng.uniform(8, 16, 2) * scale
    region = np.zeros(canvas.owner.shape, dtype=bool)
    for _ in range(int(rng.integers(15, 30))):
        plan = Plan(category, category, 0.0, float(rng.uniform(5, 9)) * scale)
        sprite = draw_sprite(rng, plan)
        x, y = (int(c) for c in np.round(middle + np.clip(rng.normal(size=2), -2, 2) * spread - len(sprite.truth) / 2))
        canvas.paint(rng, sprite, plan, x, y)
        here, there = canvas.windows(x, y, len(sprite.truth))
        region[here] |= sprite.truth[there]
    # Annotators outline a crowd roughly: the gaps between its members belong to the region.
    reach = 2 * max(1, round(1.5 * scale)) + 1
    grown = Image.fromarray(region.astype(np.uint8) * 255).filter(ImageFilter.MaxFilter(reach))
    region = np.asarray(grown) > 0
    area = int(region.sum())
    canvas.placed.append(
        _Placed(Plan(category, category, 0.0, float(4 * spread.max())), "crowd", None, area, area, True)
    )
    canvas.owner[region] = len(canvas.placed)


def _instances(canvas: _Canvas) -> list[Instance]:
    """What the finished canvas shows of every object."""
    instances = []
    for number, placed in enumerate(canvas.placed, start=1):
        mask = canvas.owner == number
        covered = 1 - int(mask.sum()) / placed.inside
        causes = {cause: strength for cause, strength in placed.plan.causes.items() if cause != "occlusion"}
        if covered > 0:
            causes["occlusion"] = covered
        polygon = placed.polygon if covered == 0 else None
        plan = placed.plan
        instances.append(Instance(plan.category, mask, polygon, placed.iscrowd, placed.family, plan.ambiguity, causes))
    return instances


def _finish(rng: np.random.Generator, pixels: np.ndarray, scale: float) -> np.ndarray:
    """The camera: a little blur, then a little noise; uint8 [size, size, 3]."""
    image = Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
    image = image.filter(ImageFilter.GaussianBlur(float(rng.uniform(0, 0.6)) * scale))
    noise = rng.standard_normal(pixels.shape, dtype=np.float32) * np.float32(rng.uniform(1, 4))
    return np.clip(np.asarray(image, dtype=np.float32) + noise, 0, 255).astype(np.uint8)
