"""Encoded image bytes to RGB pixels: the one way, for training, evaluation and the check when sharding."""

from __future__ import annotations

import io
import math
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, UnidentifiedImageError

from msrcnn.data.rejected import Reason
from msrcnn.errors import InputError

PROGRAMS = ("EPS",)
"""Formats of which an image is a program, which pillow has another process run; not taken from anyone."""
ICONS = (b"\0\0\1\0", b"icns")
"""How files (ICO, ICNS) begin whose image may have another size than they state; only decoding it tells."""
ORIENTATION = 0x0112
"""The EXIF tag of how a camera was held: 1 upright, 2 to 8 turned or mirrored."""
MAX_PIXELS = 1 << 28
"""Of an image whose size nobody states: a few kilobytes can claim to be gigabytes of pixels."""
FULL_16 = 65535 / 255
"""What 16-bit values are divided by: the whole range becomes 0..255."""


class ImageError(InputError):
    """One image cannot be used: `reason` is its kind, `detail` says what is wrong with it."""

    def __init__(self, where: str, reason: Reason, detail: str, remedy: str) -> None:
        super().__init__(where, reason, detail, remedy)  # all of it, so that it can be sent between processes
        self.where, self.reason, self.detail, self.remedy = where, reason, detail, remedy

    def __str__(self) -> str:
        return f"{self.where}: {self.detail}; {self.remedy}"


def decode_image(data: bytes, height: int, width: int, where: str) -> Image.Image:
    """The image as RGB with 8 bits a channel.

    - EXIF orientation is applied if the turned image has the stated size, as in an annotation file made by a tool
      that shows photographs upright; otherwise the pixels stay as they are stored.
    - 16-bit grey (`I;16`, in TIFF also `I` and `F`) is divided by 257, so that the whole range is kept; pillow alone
      would clip it at 255. `F` within 0..1 is multiplied by 255. Values beyond 16 bits have no known range: refused.
    - Alpha and a palette's transparency are dropped, not composited, as `convert("RGB")` does in torchvision's and
      detectron2's readers. CMYK is converted by pillow without a colour profile. Of animations, the first frame.

    Args:
        data: PNG, JPEG, WebP or whatever else pillow itself reads.
        height: what the image is stated to have, in pixels.
        width: likewise.
        where: names the image in errors.

    Raises:
        ImageError: the bytes cannot be decoded to the end, or the image has another size, or more pixels than pillow's
            limit in this process.
    """
    try:
        with Image.open(io.BytesIO(data)) as image:
            if image.format in PROGRAMS:
                raise ValueError(f"{image.format} is not taken")
            if (image.height, image.width) == (height, width) or _turned(image) == (height, width):
                return _rgb(_upright(image, height, width))
            found = (image.width, image.height)
    except UnidentifiedImageError:
        raise _undecodable(data, "no known image format", where) from None
    except Image.DecompressionBombError:
        raise _beyond_pillow(where, math.inf) from None
    except Exception as error:  # broken files make decoders raise a dozen kinds, from OSError to SyntaxError
        reason = str(error).split("\n")[0] or type(error).__name__
        raise _undecodable(data, reason, where) from None
    detail = f"{found[0]} x {found[1]} pixels where {width} x {height} are stated"
    raise ImageError(where, Reason.IMAGE_SIZE, detail, "make the shards again")


def decode_unstated(data: bytes, where: str, most: int = MAX_PIXELS) -> Image.Image:
    """An image that nothing is stated of, as `decode_image` gives it: turned as its EXIF orientation says.

    Args:
        data: as there.
        where: names the image in errors.
        most: pixels that it may claim.

    Raises:
        ImageError: the bytes cannot be decoded to the end, claim more pixels, or are an icon.
    """
    if data.startswith(ICONS):
        raise _undecodable(data, "icons are not taken", where)
    height, width = 0, 0
    try:
        with Image.open(io.BytesIO(data)) as image:
            height, width = image.height, image.width
            if height * width <= most:  # looking for EXIF, pillow decodes a PNG
                height, width = _turned(image)
    except Image.DecompressionBombError:
        raise _beyond_pillow(where, most) from None
    except Exception:  # what it is, decoding says
        height, width = 0, 0
    if height * width > most:
        detail = f"{width} x {height} pixels, at most {most} are taken"
        raise ImageError(where, Reason.IMAGE_SIZE, detail, "give a smaller image")
    return decode_image(data, height, width, where)


def rgb_image(image: Image.Image | npt.NDArray[Any], where: str) -> Image.Image:
    """Pixels that are decoded already as RGB with 8 bits a channel, by the rules of `decode_image`.

    Args:
        image: pillow's, or uint8 [H, W, 3] in RGB order, or grey [H, W] of 8 or 16 bits or fractions of 1.
        where: names the image in errors.

    Raises:
        ImageError: an array of another form, without a pixel, or with grey values of no known range.
    """
    if not isinstance(image, (Image.Image, np.ndarray)):
        form, good = f"a {type(image).__name__}", False
    elif isinstance(image, Image.Image):
        image = ImageOps.exif_transpose(image) if _orientation(image) in range(2, 9) else image
        form = f"an image of {image.width} x {image.height} pixels"
        good = min(image.size) > 0
    else:
        form = f"an array {list(image.shape)} of {image.dtype}"
        coloured = image.ndim == 3 and image.shape[2] == 3 and image.dtype == np.uint8
        good = (coloured or (image.ndim == 2 and image.dtype.kind in "uif")) and image.size > 0
    if not good:
        raise ImageError(where, Reason.IMAGE_UNDECODABLE, form, "give uint8 [H, W, 3] in RGB order, or grey [H, W]")
    try:
        if isinstance(image, Image.Image):
            return _rgb(image)
        return Image.fromarray(image if image.dtype == np.uint8 else _eight_bits(image)).convert("RGB")
    except ValueError as error:
        raise ImageError(where, Reason.IMAGE_UNDECODABLE, str(error), "give values of 8 or 16 bits") from None


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(ORIENTATION, 1))
    except Exception:  # EXIF is often broken in images that are not
        return 1


def _turned(image: Image.Image) -> tuple[int, int]:
    """Height and width with EXIF orientation applied."""
    return (image.width, image.height) if _orientation(image) >= 5 else (image.height, image.width)


def _upright(image: Image.Image, height: int, width: int) -> Image.Image:
    if _orientation(image) in range(2, 9) and _turned(image) == (height, width):
        return ImageOps.exif_transpose(image)
    return image


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode == "F" or image.mode.startswith("I"):
        return Image.fromarray(_eight_bits(np.asarray(image))).convert("RGB")
    return image.convert("RGB")


def _eight_bits(grey: np.ndarray) -> np.ndarray:
    """Grey values of 16 bits, or of 0..1 where they are fractions, as uint8; same shape."""
    lowest, highest = float(grey.min()), float(grey.max())
    if grey.dtype.kind == "f" and lowest >= 0 and highest <= 1:
        return np.rint(grey * 255).astype(np.uint8)
    if not (lowest >= 0 and highest <= 65535):  # also NaN
        raise ValueError(f"grey values from {lowest:g} to {highest:g}, expected 0 to 65535")
    return np.rint(grey / FULL_16).astype(np.uint8)


def _beyond_pillow(where: str, most: float) -> ImageError:
    """More pixels than twice PIL.Image.MAX_IMAGE_PIXELS, where `most` are taken."""
    limit = 2 * (Image.MAX_IMAGE_PIXELS or 0)
    detail, remedy = f"more than {limit} pixels, at most {most} are taken", "give a smaller image"
    if limit < most:
        detail, remedy = f"more than {limit} pixels, pillow's limit", "set PIL.Image.MAX_IMAGE_PIXELS to take it"
    return ImageError(where, Reason.IMAGE_SIZE, detail, remedy)


def _undecodable(data: bytes, why: str, where: str) -> ImageError:
    """Truncated or otherwise broken; a file that ends early is mostly an interrupted copy, which can be repeated."""
    riff = data[:4] == b"RIFF" and len(data) < 8 + int.from_bytes(data[4:8], "little")
    remedy = "replace or remove it"
    if not data or riff or "truncated" in why.lower():
        whole = f"{len(data)} bytes, {why}" if data else "the file is empty"
        return ImageError(where, Reason.IMAGE_TRUNCATED, f"not a readable image ({whole})", remedy)
    return ImageError(where, Reason.IMAGE_UNDECODABLE, f"not a readable image ({why})", remedy)
