"""What is asked of the service and what it answers, without a network: query, body, JSON."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from starlette.requests import Request
from starlette.responses import Response

from msrcnn.errors import InputError

if TYPE_CHECKING:
    from msrcnn import Prediction

FLAGS = {"0": False, "false": False, "1": True, "true": True}
WRAPPED = ("multipart/", "application/json")
"""Kinds of bodies that hold an image in something else."""
BODY_SECONDS = 60.0
"""How long a body may take to arrive: until then it holds one of the replica's places."""
DRAINED = 4
"""Times the most bytes that are read of a body that states no size: who still sends does not listen."""


class Refused(InputError):
    """A request that is not served, with its HTTP status."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status


@dataclass(frozen=True)
class Wanted:
    """What a request wants to know of its image."""

    min_score: float | None = None  # least mask score of a detection
    polygons: bool = False  # instead of run lengths

    @classmethod
    def of_query(cls, pairs: Sequence[tuple[str, str]]) -> Wanted:
        """Reads a query's names and values.

        Raises:
            Refused: 400 for an unknown or repeated name, or a value that is not accepted.
        """
        values: dict[str, Any] = {}
        for name, text in pairs:
            if name in values:
                raise Refused(400, f"{name} is given twice; give it once")
            if name == "min_score":
                values[name] = _number(name, text)
            elif name == "polygons":
                if text.lower() not in FLAGS:
                    raise Refused(400, f"polygons = {text!r} is not accepted; it must be 0 or 1")
                values[name] = FLAGS[text.lower()]
            else:
                raise Refused(400, f"no parameter {name!r}; there are min_score and polygons")
        return cls(**values)


def _number(name: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise Refused(400, f"{name} = {text!r} is not accepted; it must be a number")
    return value


async def body_of(request: Request, most: int, seconds: float = BODY_SECONDS) -> bytes:
    """A request's body: the bytes of an image file.

    Args:
        request: whose body has not been read.
        most: bytes that are taken.
        seconds: within which it must be here.

    Raises:
        Refused: 413 if it is or states to be larger, 408 if it takes longer, 400 if it wraps the image in something
            else.
    """
    kind = request.headers.get("content-type", "")
    if kind.lower().startswith(WRAPPED):
        raise Refused(400, f"content type {kind.split(';')[0]}: send the bytes of an image file as the body")
    stated = request.headers.get("content-length", "")
    if stated.isdecimal() and int(stated) > most:
        raise _too_large(stated, most)
    parts, size = [], 0
    try:
        async with asyncio.timeout(seconds):
            async for part in request.stream():
                size += len(part)
                if size <= most:
                    parts.append(part)
                else:
                    parts.clear()
                if size > DRAINED * most:
                    break
    except TimeoutError:
        raise Refused(408, f"the image: {size} bytes in {seconds:g} s and not at its end; send it faster, or a smaller "
                           "file") from None  # fmt: skip
    if size > most:
        raise _too_large(f"{size} or more" if size > DRAINED * most else str(size), most)
    return b"".join(parts)


def _too_large(size: str, most: int) -> Refused:
    return Refused(413, f"the image: {size} bytes, at most {most} are taken; send a smaller file")


def answered(value: object, status: int = 200) -> Response:
    """A value as JSON."""
    text = json.dumps(value, separators=(",", ":"))
    return Response(text, status, media_type="application/json")


def refusal(error: InputError) -> Response:
    """An error's line as JSON: 400, or the status that it states."""
    return answered({"error": str(error)}, getattr(error, "status", 400))


def described(found: Prediction, wanted: Wanted) -> dict[str, Any]:
    """The detections in an image as JSON has them; numbers as they are, so that float32 can be had back."""
    if wanted.min_score is not None:
        found = found.above(wanted.min_score)
    masks: list[dict[str, Any]]
    if wanted.polygons:
        masks = [{"polygons": [ring.tolist() for ring in rings]} for rings in found.polygons()]
    else:
        size = [found.height, found.width]
        masks = [{"rle": {"size": size, "counts": rle.decode("ascii")}} for rle in found.rles]
    detections = [
        {
            "category_id": one.category_id, "category": one.category, "box": one.box, "class_score": one.class_score,
            "maskiou": one.maskiou, "worth": one.worth, "mask_score": one.mask_score, **mask,
        }
        for one, mask in zip(found.detections(), masks, strict=True)
    ]  # fmt: skip
    return {"height": found.height, "width": found.width, "detections": detections}
