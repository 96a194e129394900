"""Detections in images that nothing is known of: from a model to masks in a line.

The one way for programs (`from msrcnn import load_model, predict`), `msrcnn predict` and served models, so that all of
them give the same detections.
"""

from __future__ import annotations

import os
from collections.abc import Generator, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from msrcnn.data.batching import make_batch, one_canvas_batches
from msrcnn.data.decoding import MAX_PIXELS, ImageError, decode_unstated, rgb_image
from msrcnn.data.rejected import Reason
from msrcnn.detection_rows import detection_rows
from msrcnn.outlines import area_of, outlines
from msrcnn.precision import computing_in
from msrcnn.rle import decode_crop
from msrcnn.rows import ImageTruth
from msrcnn.structures import Detections
from msrcnn.weights import Checkpoint

Picture = str | os.PathLike[str] | bytes | Image.Image | npt.NDArray[Any]
"""An image: a file, its bytes, a pillow image, or an array, uint8 [H, W, 3] in RGB order or grey [H, W]."""


@dataclass(frozen=True, slots=True)
class Detection:
    """One of a `Prediction`'s, in Python's own numbers."""

    category_id: int
    category: str
    box: list[float]  # x0, y0, x1, y1 in pixels
    class_score: float
    maskiou: float
    worth: float
    mask_score: float
    rle: bytes


@dataclass(frozen=True)
class Prediction:
    """What a model finds in an image: N detections, the best mask score first."""

    image: str  # the file, or which of the images it is
    height: int  # pixels of the image, upright
    width: int
    boxes: npt.NDArray[np.float32]  # [N, 4]: x0, y0, x1, y1 in pixels
    category_ids: npt.NDArray[np.int64]  # [N], as in the annotation file that the model was trained with
    names: tuple[str, ...]  # N names of categories
    class_scores: npt.NDArray[np.float32]  # [N], after SoftNMS: what ranks boxes
    maskious: npt.NDArray[np.float32]  # [N], predicted MaskIoU, not clamped
    worths: npt.NDArray[np.float32]  # [N], MaskIoU^power, or worth to AP^power: `maskious` in the paper
    mask_scores: npt.NDArray[np.float32]  # [N], class score x worth: what ranks masks
    rles: tuple[bytes, ...]  # N COCO compressed counts of the [height, width] mask

    def __len__(self) -> int:
        return len(self.names)

    def above(self, score: float) -> Prediction:
        """Those with at least this mask score."""
        count = int((self.mask_scores >= float(score)).sum())  # compared as float32, as `detection_rows` does
        return Prediction(
            self.image, self.height, self.width, self.boxes[:count], self.category_ids[:count], self.names[:count],
            self.class_scores[:count], self.maskious[:count], self.worths[:count], self.mask_scores[:count],
            self.rles[:count],
        )  # fmt: skip

    def detections(self) -> Iterator[Detection]:
        """One after the other, the best mask score first; a float32 is the same number as a float."""
        columns = zip(
            self.category_ids.tolist(), self.names, self.boxes.tolist(), self.class_scores.tolist(),
            self.maskious.tolist(), self.worths.tolist(), self.mask_scores.tolist(), self.rles, strict=True,
        )  # fmt: skip
        return (Detection(*values) for values in columns)

    def masks(self) -> npt.NDArray[np.bool_]:
        """All masks at the image's resolution, [N, height, width]: N * height * width bytes."""
        masks = np.zeros((len(self), self.height, self.width), bool)
        for mask, rle in zip(masks, self.rles, strict=True):
            crop, (left, top, width, height) = decode_crop(rle, self.height)
            mask[top : top + height, left : left + width] = crop
        return masks

    def polygons(self) -> list[list[npt.NDArray[np.int32]]]:
        """For each detection the rings around its mask, each [P, 2] as x, y, along the edges of pixels.

        Outer rings run clockwise, holes the other way (`msrcnn.outlines`).
        """
        rings = []
        for rle in self.rles:
            crop, (left, top, _, _) = decode_crop(rle, self.height)
            rings.append([ring + np.array([left, top], np.int32) for ring in outlines(crop)])
        return rings

    def coco(self, image_id: int, polygons: bool = False) -> list[dict[str, Any]]:
        """As COCO results, ranked by mask score.

        Beside stand `class_score`, `maskiou`, `worth` and `bbox` (x, y, width, height).

        Args:
            image_id: of the image in an annotation file.
            polygons: polygons instead of run lengths; COCO's have no holes, so they are filled.
        """
        shapes: Sequence[Any] = [
            {"size": [self.height, self.width], "counts": rle.decode("ascii")} for rle in self.rles
        ]
        if polygons:
            shapes = [[r.flatten().tolist() for r in rings if area_of(r) > 0] for rings in self.polygons()]
        return [
            {
                "image_id": image_id, "category_id": one.category_id, "segmentation": shape,
                "bbox": [x0, y0, x1 - x0, y1 - y0], "score": one.mask_score, "class_score": one.class_score,
                "maskiou": one.maskiou, "worth": one.worth,
            }
            for one, shape in zip(self.detections(), shapes, strict=True)
            for x0, y0, x1, y1 in [one.box]
        ]  # fmt: skip


def suited_batch(device: torch.device) -> int:
    """Images a step of the network in testing: 8 on a GPU, 1 on a CPU.

    Each core of a CPU is busy with one; with more, tensors grow so large that malloc gives each back to the system,
    which costs more than anything that is shared (docs/log.md).
    """
    return 1 if device.type == "cpu" else 8


def predict(
    model: Checkpoint, images: Picture | Iterable[Picture], min_score: float | None = None, batch: int = 0
) -> list[Prediction]:
    """Finds instances in images.

    Args:
        model: from `load_model`.
        images: one or several.
        min_score: the least mask score of a detection; absent, all are kept, also the few below 0.
        batch: as in `predictions`.

    Returns:
        One an image, in their order.

    Raises:
        InputError: an image cannot be used; the message names it.
    """
    single = isinstance(images, (str, os.PathLike, bytes, Image.Image, np.ndarray))
    found = []
    given: Any = [images] if single else images
    for one in predictions(model, given, batch=batch, min_score=min_score):
        if isinstance(one, ImageError):
            raise one
        found.append(one)
    return found


def predictions(
    model: Checkpoint, images: Iterable[Picture | ImageError], names: Iterable[str] = (), batch: int = 0,
    most_pixels: int = MAX_PIXELS, min_score: float | None = None,
) -> Generator[Prediction | ImageError, None, None]:  # fmt: skip
    """Finds instances in images, one after the other; the next ones are decoded meanwhile.

    An image's detections do not depend on the others: only images that are padded to the same shape share a step.

    Args:
        model: from `load_model`.
        images: any number; `batch` of them are held, and as many again. What is known to be unusable passes through.
        names: what they are called in errors and predictions; a file's own name, or its place, where none is left.
        batch: images a step of the network; 0: as many as suit the device.
        most_pixels: that a file or its bytes may claim; what claims more is not decoded.
        min_score: as in `predict`; masks below it are not pasted, which is most of what an image costs the CPU after
            the network.

    Yields:
        For each image, in order, what is in it, or why it cannot be used.
    """
    size = batch or suited_batch(model.device)
    given = iter(_named(images, names))
    with ThreadPoolExecutor(1) as decoder:

        def following() -> Any:
            return decoder.submit(lambda part: [_decoded(*one, most_pixels) for one in part], list(islice(given, size)))

        waiting = following()
        while part := waiting.result():
            waiting = following()
            yield from _detect(model, part, min_score)


def _named(images: Iterable[Picture | ImageError], names: Iterable[str]) -> Iterator[tuple[str, Picture | ImageError]]:
    left = iter(names)
    for place, image in enumerate(images):
        own = os.fspath(image) if isinstance(image, (str, os.PathLike)) else f"image {place}"
        yield next(left, str(own)), image


def _decoded(name: str, image: Picture | ImageError, most: int) -> tuple[str, Image.Image | ImageError]:
    """The name and its image as RGB, or what is wrong with it."""
    if isinstance(image, ImageError):
        return name, image
    try:
        if isinstance(image, (str, os.PathLike)):
            image = Path(image).read_bytes()
        return name, decode_unstated(image, name, most) if isinstance(image, bytes) else rgb_image(image, name)
    except ImageError as error:
        return name, error
    except OSError as error:
        return name, ImageError(name, Reason.IMAGE_MISSING, error.strerror or str(error), "give another file")


def _detect(
    model: Checkpoint, part: Sequence[tuple[str, Image.Image | ImageError]], min_score: float | None
) -> list[Prediction | ImageError]:
    """Detections of a few decoded images, a step of the network for each padded shape among them."""
    found: list[Any] = [image for _, image in part]
    places = [place for place, image in enumerate(found) if not isinstance(image, ImageError)]
    sizes = [ImageTruth.unknown(place, found[place].height, found[place].width) for place in places]
    for same in one_canvas_batches(sizes, model.data, len(part)):
        truths = [sizes[i] for i in same]
        batch = make_batch([found[truth.image_id] for truth in truths], truths, model.data)
        with computing_in(model.precision, model.device):
            detections: Detections = model.model(batch.to(model.device, non_blocking=True))
        for truth, rows in zip(truths, detection_rows(batch, detections, truths, min_score), strict=True):
            detected = [row for row in rows if "category" in row]
            found[truth.image_id] = _prediction(part[truth.image_id][0], truth, detected, model)
    return found


def _prediction(name: str, truth: ImageTruth, rows: list[dict[str, Any]], model: Checkpoint) -> Prediction:
    rows = sorted(rows, key=lambda row: -row["mask_score"])
    source = {number: (source_id, text) for number, source_id, text in model.categories}

    def column(key: str) -> npt.NDArray[np.float32]:
        return np.array([row[key] for row in rows], np.float32)  # [N]

    return Prediction(
        name, truth.height, truth.width,
        column("bbox").reshape(-1, 4),  # [N, 4], of no rows [0] -> [0, 4]
        np.array([source[row["category"]][0] for row in rows], np.int64),
        tuple(source[row["category"]][1] for row in rows),
        column("class_score"), column("maskiou"), column("worth"), column("mask_score"),
        tuple(row["rle"] for row in rows),
    )  # fmt: skip
