"""The gallery's pictures: a piece of the image as JPEG, masks as outlines over it, and everything said in words.

Each row group that holds a pick is read once more, with its images. All pictures of a page share `BYTES`: the more
there are, the smaller they get, and the simpler their outlines.
"""

from __future__ import annotations

import io
from base64 import b64encode
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import hotcoco.mask
import numpy as np
import pyarrow as pa
from PIL import Image

from msrcnn.data.decoding import ImageError, decode_image
from msrcnn.metrics.coco_masks import mask_dicts
from msrcnn.metrics.maskiou import Overlaps, overlaps
from msrcnn.rle import decode_crop
from msrcnn.rows import ImageDetections, ImageTruth
from pipelines.detection_parts import key_of, part_name
from pipelines.parquet import open_parquet
from pipelines.progress import Progress
from pipelines.report.outlines import Window, outline
from pipelines.report.picks import Pick
from pipelines.report.rows import nothing
from pipelines.report.runs import Run
from pipelines.stored_rows import TRUTH_COLUMNS, images_of, truths_of

BYTES = 2_100_000
"""Of all JPEGs of a page; as base64 a third more."""
MOST_BYTES = 45_000
QUALITY = 78
SIZES = (*((side, QUALITY) for side in (560, 440, 340, 260, 200, 150)), (150, 50), (120, 30), (90, 15))
"""Longer sides of pictures in pixels and qualities of JPEG, tried in turn until a picture is small enough."""
OUTLINES = 6
"""An outline has at most one character for so many bytes that its picture may have."""
ASPECT = 4 / 3
ROOM = 1.7
"""How much larger than its masks a picture is."""
LEAST = 96
"""Pixels of the image that are at least across a picture."""
LARGEST = 3.0
"""How much a picture is enlarged at most."""


@dataclass(frozen=True)
class Picture:
    """A picture of the gallery.

    Attributes:
        pick: what it shows.
        category: the category's name.
        file: the image's name in the data set.
        jpeg: as base64.
        width: in pixels.
        height: in pixels.
        found: outline of the detection, for SVG; empty if there is none.
        truth: outline of the instance; empty if there is none.
        title: what it is, in a few words.
        facts: names and values: scores, the true MaskIoU.
        rest: what else there is to say.
        text: all of it in words, for those who do not see the picture.
    """

    pick: Pick
    category: str
    file: str
    jpeg: str
    width: int
    height: int
    found: str
    truth: str
    title: str
    facts: tuple[tuple[str, str], ...]
    rest: str
    text: str


@dataclass(frozen=True)
class Shown:
    """A pick and what is known of its image; indices of detection and instance, -1 for none."""

    pick: Pick
    truth: ImageTruth
    detections: ImageDetections
    overlaps: Overlaps
    found: int
    instance: int
    iou: float  # of the two masks


def pictures_of(run: Run, picks: Sequence[Pick], most_bytes: int, log: Callable[[str], None]) -> list[Picture]:
    """Pictures of the picks, in their order; images that cannot be decoded have none.

    Args:
        run: with manifest and detections.
        picks: of its rows.
        most_bytes: of a picture's JPEG.
        log: takes lines.
    """
    assert run.manifest is not None
    names = {category.number: category.name for category in run.manifest.categories}
    by_group: defaultdict[int, list[int]] = defaultdict(list)
    for index, pick in enumerate(picks):
        by_group[pick.group].append(index)
    made: dict[int, Picture] = {}
    log(f"drawing {len(picks)} pictures of {run.name}")
    progress = Progress(len(picks), log, unit="pictures")
    for group, indices in sorted(by_group.items()):
        rows, truths, found = _read(run, group)
        for index in indices:
            pick = picks[index]
            truth, row = truths[pick.image], rows.slice(pick.image, 1).to_pylist()[0]
            shown = look(pick, truth, found.get(truth.image_id) or nothing(truth))
            try:
                image = decode_image(row["image"], truth.height, truth.width, row["file_name"])
            except ImageError as error:
                log(f"warning: no picture of {error}")
                continue
            made[index] = drawn(shown, image, row["file_name"], names, most_bytes)
        progress.add(len(indices))
    return [made[index] for index in sorted(made)]


def _read(run: Run, number: int) -> tuple[pa.Table, list[ImageTruth], dict[int, ImageDetections]]:
    assert run.detections is not None
    group = run.groups[number]
    table = open_parquet(group.path).read_row_group(group.index, columns=[*TRUTH_COLUMNS, "file_name", "image"])
    part = open_parquet((run.detections.folder / part_name(key_of(group))).url).read()
    return table.select(["file_name", "image"]), truths_of(table), images_of(part)


def look(pick: Pick, truth: ImageTruth, found: ImageDetections) -> Shown:
    """What a pick is about: a detection and its instance, or what comes nearest to it whatever its category."""
    overlap = overlaps(truth, found)
    if pick.kind == "missed":
        other, iou = nearest(truth, truth.rles[pick.row], found.rles)
        return Shown(pick, truth, found, overlap, other, pick.row, iou)
    instance, iou = int(overlap.instance[pick.row]), float(overlap.true[pick.row])
    if iou == 0:
        instance, iou = nearest(truth, found.rles[pick.row], truth.rles)
    return Shown(pick, truth, found, overlap, pick.row, instance, iou)


def nearest(truth: ImageTruth, rle: bytes, others: Sequence[bytes]) -> tuple[int, float]:
    """Which mask of an image overlaps most with one, and the IoU; -1 and 0 where none does."""
    if not others:
        return -1, 0.0
    masks = mask_dicts(truth.image_id, truth.height, truth.width, [rle, *others])
    ious = hotcoco.mask.iou(masks[:1], masks[1:], [False] * len(others))[0]
    best = int(np.argmax(ious))
    return (best, float(ious[best])) if ious[best] > 0 else (-1, 0.0)


def drawn(shown: Shown, image: Image.Image, file: str, names: dict[int, str], most_bytes: int) -> Picture:
    """The picture."""
    found = shown.detections.rles[shown.found] if shown.found >= 0 else b""
    truth = shown.truth.rles[shown.instance] if shown.instance >= 0 else b""
    area = window_around([rle for rle in (found, truth) if rle], shown.truth)
    for side, quality in SIZES:
        scale = min(side / max(1, area.x1 - area.x0, area.y1 - area.y0), LARGEST)
        window = Window(area.x0, area.y0, area.x1, area.y1, scale)
        jpeg = encoded(image, window, quality)
        if len(jpeg) <= most_bytes:
            break
    width, height = window.size
    most = most_bytes // OUTLINES
    of_found, of_truth = (outline(rle, shown.truth.height, window, most) if rle else "" for rle in (found, truth))
    title, facts, rest = described(shown, names)
    category = names[shown.pick.category]
    text = f"{title} {', '.join(f'{name} {value}' for name, value in facts)}. {rest} Image {file}"
    data = b64encode(jpeg).decode()
    return Picture(shown.pick, category, file, data, width, height, of_found, of_truth, title, facts, rest, text)


def window_around(rles: Sequence[bytes], truth: ImageTruth) -> Window:
    """A piece of the image with room around the masks, 4 : 3 where the image allows it."""
    boxes = np.array([decode_crop(rle, truth.height)[1] for rle in rles])  # [n, 4] left top w h
    boxes = boxes[boxes[:, 2] > 0] if len(boxes) else boxes
    if len(boxes) == 0:
        return Window(0, 0, truth.width, truth.height, 1.0)
    low, high = boxes[:, :2].min(axis=0), (boxes[:, :2] + boxes[:, 2:]).max(axis=0)
    width, height = np.maximum(ROOM * (high - low), (LEAST, LEAST / ASPECT))
    width, height = max(width, height * ASPECT), max(height, width / ASPECT)
    sides = []
    for centre, side, limit in zip((low + high) / 2, (width, height), (truth.width, truth.height), strict=True):
        side = min(round(side), limit)
        begin = min(max(0, round(centre - side / 2)), limit - side)
        sides.append((begin, begin + side))
    (x0, x1), (y0, y1) = sides
    return Window(int(x0), int(y0), int(x1), int(y1), 1.0)


def encoded(image: Image.Image, window: Window, quality: int) -> bytes:
    """The window's pixels as JPEG."""
    piece = image.crop((window.x0, window.y0, window.x1, window.y1)).resize(window.size, Image.Resampling.LANCZOS)
    stream = io.BytesIO()
    piece.save(stream, "JPEG", quality=quality, optimize=True)
    return stream.getvalue()


def described(shown: Shown, names: dict[int, str]) -> tuple[str, tuple[tuple[str, str], ...], str]:
    """Title, facts, and what else there is to say."""
    pick, found = shown.pick, shown.detections
    category = names[pick.category]
    facts: tuple[tuple[str, str], ...]
    if pick.kind == "missed":
        facts = (("best IoU of its category", f"{shown.overlaps.covered[pick.row]:.2f}"),
                 ("area", f"{shown.truth.areas[pick.row]:,.0f} px"))  # fmt: skip
        if shown.found < 0:
            return f"Missed: {category}.", facts, "No detection touches it."
        what = names[int(found.categories[shown.found])]
        scores = (f"class score {found.class_scores[shown.found]:.2f}, "
                  f"mask score {found.mask_scores[shown.found]:.2f}")  # fmt: skip
        return f"Missed: {category}.", facts, f"The detection nearest to it: {what}, {scores}, IoU {shown.iou:.2f}."
    true = float(shown.overlaps.true[pick.row])
    maskiou, worth = found.maskious[pick.row], found.factors[pick.row]
    facts = (
        ("class score", f"{found.class_scores[pick.row]:.2f}"),
        ("predicted MaskIoU", f"{maskiou:.2f}"),
        *([("worth", f"{worth:.2f}")] if worth != maskiou else []),  # then it is what the mask score multiplies by
        ("mask score", f"{found.mask_scores[pick.row]:.2f}"),
        ("true MaskIoU", f"{true:.2f}"),
    )
    ranks = f"Rank {pick.rank_class} by class score, {pick.rank_mask} by mask score"
    if pick.kind == "rescued":
        worse = f"{pick.order:,.0f} worse mask{'' if pick.order == 1 else 's'}"
        return f"Rescued: {category}.", facts, f"{ranks}: it passed {worse}."
    return f"Misled: {category}.", facts, f"{ranks}. {_why(shown, true, names)}"


def _why(shown: Shown, true: float, names: dict[int, str]) -> str:
    if true > 0:
        return "It covers the instance badly."
    if shown.instance < 0:
        return "Nothing is annotated there."
    other = names[int(shown.truth.categories[shown.instance])]
    crowd = " (a crowd)" if shown.truth.crowd[shown.instance] else ""
    return f"No instance of its category there; it overlaps {other}{crowd} with IoU {shown.iou:.2f}."
