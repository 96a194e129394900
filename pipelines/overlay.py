"""Detections drawn on their image: masks filled and outlined in the category's colour, labels with the mask score.

Fonts and strokes grow with the image. Better detections lie on top and get their labels first; a label goes where it
covers no other, and as little of any mask as can be, shortened if need be; it is left out where no place is free.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from pipelines.colours import colour_of
from pipelines.painting import paint

if TYPE_CHECKING:
    from msrcnn.prediction import Prediction

FILL = 102
"""How much of a mask's colour covers the image, of 256."""
FONT_SHARE, LEAST_FONT, MOST_FONT = 1 / 40, 10, 96
"""Height of the text: this share of the geometric mean of the image's sides, in pixels from least to most."""
STROKE_SHARE = 1 / 350
"""Width of outlines, likewise, at least 1 pixel."""
CROWDED = 0.25
"""Where labels with names would cover more of the image than this, they are scores alone."""
DARK = 140
"""A colour that is brighter has black text on it."""

Rect = tuple[int, int, int, int]
"""x0, y0, x1, y1 in pixels, the last ones outside."""


class Overlay:
    """Draws the detections of a model.

    Args:
        category_ids: of the model's categories, in the order of their numbers. A single category's instances have a
            colour each, or neighbours could not be told apart, and no name.
    """

    def __init__(self, category_ids: Sequence[int]) -> None:
        self._numbers = {category: number for number, category in enumerate(category_ids, start=1)}

    def draw(self, image: Image.Image, found: Prediction) -> Image.Image:
        """A copy of the RGB image with the detections, best first, drawn on it."""
        pixels = np.array(image)  # [H, W, 3]
        colours = [self._colour(place, category) for place, category in enumerate(found.category_ids.tolist())]
        size = math.sqrt(image.width * image.height)
        stroke = max(1, round(size * STROKE_SHARE))
        covered = np.zeros(pixels.shape[:2], bool)
        boxes = [
            _painted(pixels, covered, rle, colour, stroke)
            for rle, colour in zip(reversed(found.rles), reversed(colours), strict=True)
        ]
        drawn = Image.fromarray(pixels)
        pen, font = ImageDraw.Draw(drawn), _font(round(min(max(size * FONT_SHARE, LEAST_FONT), MOST_FONT)))
        names = found.names if self._named(found, font, size) else [""] * len(found.names)
        taken: list[Rect] = []
        for place, (box, colour) in enumerate(zip(reversed(boxes), colours, strict=True)):
            if label := _fitting(_texts(found, place, names[place]), box, taken, covered, font):
                text, rect = label
                taken.append(rect)
                pad = _pad(font)
                pen.rectangle((rect[0], rect[1], rect[2] - 1, rect[3] - 1), colour)
                pen.text((rect[0] + pad, (rect[1] + rect[3]) / 2), text, _ink(colour), font, anchor="lm")
        return drawn

    def _named(self, found: Prediction, font: ImageFont.FreeTypeFont, size: float) -> bool:
        area = sum(font.getlength(f"{name} 0.00") * _height(font) for name in found.names)
        return len(self._numbers) > 1 and area <= CROWDED * size**2

    def _colour(self, place: int, category: int) -> tuple[int, int, int]:
        number = place + 1 if len(self._numbers) == 1 else self._numbers[category]
        red, green, blue = (int(v) for v in colour_of(number))
        return red, green, blue


def _painted(pixels: np.ndarray, covered: np.ndarray, rle: bytes, colour: tuple[int, int, int], stroke: int) -> Rect:
    """Paints a mask on uint8 [H, W, 3] pixels, in place, and notes it in bool [H, W]; returns its box."""
    mask, (left, top, w, h) = paint(pixels, rle, colour, FILL, stroke)
    covered[top : top + h, left : left + w] |= mask
    return left, top, left + w, top + h


def _texts(found: Prediction, place: int, name: str) -> Iterator[tuple[str, bool]]:
    """What a label may say, the longest first, and whether it is too long for a smaller mask."""
    score = f"{found.mask_scores[place]:.2f}"
    named = f"{name} {score}" if name else score
    yield f"{named} = {found.class_scores[place]:.2f} x {found.worths[place]:.2f}", True
    yield named, False
    yield score, False


def _fitting(
    texts: Iterator[tuple[str, bool]], box: Rect, taken: Sequence[Rect], covered: np.ndarray,
    font: ImageFont.FreeTypeFont,
) -> tuple[str, Rect] | None:  # fmt: skip
    """The longest text that has a free place, and the place where it hides least; None if none has.

    Args:
        texts: from `_texts`.
        box: of the mask.
        taken: by other labels.
        covered: by any mask, bool [H, W].
        font: of the text.
    """
    if box[0] == box[2]:  # a mask without a pixel
        return None
    height = _height(font)
    for text, long in texts:
        width = math.ceil(font.getlength(text)) + 2 * _pad(font)
        room = covered.shape[1] - width, covered.shape[0] - height
        if (long and width > box[2] - box[0]) or min(room) < 0:
            continue
        corners = [(max(0, min(x, room[0])), max(0, min(y, room[1]))) for x, y in _corners(box, width, height)]
        places = [(x, y, x + width, y + height) for x, y in corners]
        free = [place for place in places if not any(_overlap(place, other) for other in taken)]
        if free:
            return text, min(free, key=lambda r: int(np.count_nonzero(covered[r[1] : r[3], r[0] : r[2]])))
    return None


def _corners(box: Rect, width: int, height: int) -> list[tuple[int, int]]:
    """Where a label of this size may go, the best place first: above, inside at the top, below, at the right, amid."""
    x0, y0, x1, y1 = box
    return [
        (x0, y0 - height), (x0, y0), (x0, y1), (x1 - width, y0 - height), (x1 - width, y1), (x1, y0),
        ((x0 + x1 - width) // 2, (y0 + y1 - height) // 2),
    ]  # fmt: skip


def _overlap(a: Rect, b: Rect) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def _height(font: ImageFont.FreeTypeFont) -> int:
    """Of a label."""
    ascent, descent = font.getmetrics()
    return ascent + descent


def _pad(font: ImageFont.FreeTypeFont) -> int:
    return max(1, round(font.size / 6))


def _ink(colour: tuple[int, int, int]) -> str:
    red, green, blue = colour
    return "black" if 0.299 * red + 0.587 * green + 0.114 * blue > DARK else "white"


@lru_cache(maxsize=8)
def _font(size: int) -> ImageFont.FreeTypeFont:
    font = ImageFont.load_default(size)
    assert isinstance(font, ImageFont.FreeTypeFont)
    return font
