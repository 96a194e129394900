"""Images and many clients at once: shared by the tests of what serves models."""

from __future__ import annotations

import io
import json
import struct
import urllib.error
import urllib.request
import zlib
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from PIL import Image

from msrcnn import Prediction
from tests.tiny import SIDE, shape_image

CLIENTS = 100


def turned_jpeg() -> bytes:
    """A landscape image, stored as portrait with the EXIF tag that says so."""
    file, exif = io.BytesIO(), Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise
    image = Image.open(io.BytesIO(shape_image(1)[0])).crop((0, 0, SIDE, 64)).transpose(Image.Transpose.ROTATE_90)
    image.save(file, "JPEG", exif=exif, quality=95)
    return file.getvalue()


def images() -> list[bytes]:
    """Files of several shapes and kinds."""
    return [turned_jpeg(), *(shape_image(index)[0] for index in range(4))]


def huge_png(side: int = 100_000) -> bytes:
    """A few bytes that claim to be so many pixels squared."""
    small = shape_image(0)[0]
    header = b"IHDR" + struct.pack(">II", side, side) + small[24:29]
    return small[:12] + header + struct.pack(">I", zlib.crc32(header)) + small[33:]


def ask(
    url: str, body: bytes | None = None, kind: str = "application/octet-stream", timeout: float = 120
) -> tuple[int, Any]:
    """Status and answer, read as JSON where it is; with a body it is posted."""
    asked = urllib.request.Request(url, body, {"Content-Type": kind})
    try:
        with urllib.request.urlopen(asked, timeout=timeout) as answer:
            status, text = answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        status, text = error.code, error.read().decode()
    try:
        return status, json.loads(text)
    except ValueError:
        return status, text


def many(asking: Callable[[bytes], Any], sent: Sequence[bytes], clients: int = CLIENTS) -> list[tuple[int, Any]]:
    """So many requests at once: which image each sent, and its answer."""
    places = [number % len(sent) for number in range(clients)]
    with ThreadPoolExecutor(clients) as threads:
        return list(zip(places, threads.map(lambda place: asking(sent[place]), places), strict=True))


def rows_of(answer: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The detections that Ray Serve answers, as `same` takes them."""
    return [row | {"counts": row["rle"]["counts"]} for row in answer["detections"]]


def same(found: Prediction, rows: Sequence[Mapping[str, Any]]) -> bool:
    """Whether an answer's detections, with `box` and `counts`, are these to the last bit."""

    def numbers(key: str) -> np.ndarray:
        return np.array([row[key] for row in rows], np.float32)

    return (
        [row["category_id"] for row in rows] == found.category_ids.tolist()
        and [row["category"] for row in rows] == [*found.names]
        and [row["counts"] for row in rows] == [rle.decode("ascii") for rle in found.rles]
        and np.array_equal(numbers("box").reshape(-1, 4), found.boxes)  # [N, 4], of no rows [0] -> [0, 4]
        and np.array_equal(numbers("class_score"), found.class_scores)
        and np.array_equal(numbers("maskiou"), found.maskious)
        and np.array_equal(numbers("worth"), found.worths)
        and np.array_equal(numbers("mask_score"), found.mask_scores)
    )
