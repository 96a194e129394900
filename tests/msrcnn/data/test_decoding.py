"""Images of every kind that a data set holds, made here, and what their pixels must be."""

from __future__ import annotations

import io
import os
import pickle
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import EpsImagePlugin, Image

from msrcnn.data.decoding import ORIENTATION, ImageError, decode_image, decode_unstated
from msrcnn.data.rejected import Reason

HEIGHT, WIDTH = 20, 30


def picture(channels: int = 3, seed: int = 0) -> np.ndarray:
    """Random uint8 [20, 30, channels]."""
    return np.random.default_rng(seed).integers(0, 256, (HEIGHT, WIDTH, channels), dtype=np.uint8)


def smooth() -> np.ndarray:
    """A slow gradient, which JPEG keeps; uint8 [20, 30, 3]."""
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    return np.stack([y * 12, x * 8, 255 - y * 6 - x * 4], axis=2).astype(np.uint8)


def encode(image: Image.Image, form: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def decoded(data: bytes, height: int = HEIGHT, width: int = WIDTH) -> np.ndarray:
    image = decode_image(data, height, width, "image 1")
    assert image.mode == "RGB"
    return np.asarray(image).astype(int)


def png16(values: np.ndarray) -> bytes:
    """A PNG of 16 bits a channel, written by hand: pillow writes grey ones only; uint16 [H, W, 1 to 4]."""
    height, width, channels = values.shape
    kind = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    head = struct.pack(">IIBBBBB", width, height, 16, kind, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    )  # fmt: skip


@pytest.mark.parametrize("form", ["PNG", "BMP", "TIFF", "WEBP"])
def test_lossless_formats_keep_every_value(form: str) -> None:
    options = {"lossless": True} if form == "WEBP" else {}
    np.testing.assert_array_equal(decoded(encode(Image.fromarray(picture()), form, **options)), picture())


@pytest.mark.parametrize("form", ["JPEG", "WEBP"])
def test_lossy_formats_come_near(form: str) -> None:
    assert np.abs(decoded(encode(Image.fromarray(smooth()), form, quality=95)) - smooth()).mean() < 4


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP"])
def test_grey_is_the_same_in_all_channels(form: str) -> None:
    grey = smooth()[:, :, 1]
    pixels = decoded(encode(Image.fromarray(grey), form))
    assert np.abs(pixels - grey[:, :, None]).mean() < 4
    assert np.abs(pixels - pixels[:, :, :1]).max() <= 2  # WebP stores colours


def test_alpha_is_dropped_not_composited() -> None:
    rgba = picture(4)
    rgba[:5, :, 3] = 0
    np.testing.assert_array_equal(decoded(encode(Image.fromarray(rgba), "PNG")), rgba[:, :, :3])
    grey = picture(2)
    expected = np.repeat(grey[:, :, :1], 3, axis=2)
    np.testing.assert_array_equal(decoded(encode(Image.fromarray(grey, "LA"), "PNG")), expected)


def test_palette_with_a_transparent_colour_and_one_bit_images() -> None:
    indices = picture(1)[:, :, 0] % 4
    colours = np.array([[250, 0, 9], [10, 20, 30], [0, 255, 0], [77, 88, 99]], np.uint8)
    image = Image.fromarray(indices)
    image = image.convert("P")
    image.putdata(indices.ravel())
    image.putpalette(colours.ravel().tolist())
    np.testing.assert_array_equal(decoded(encode(image, "PNG", transparency=0)), colours[indices])
    bits = Image.fromarray((indices > 1).astype(np.uint8) * 255).convert("1")
    np.testing.assert_array_equal(decoded(encode(bits, "PNG"))[:, :, 0], (indices > 1) * 255)


def test_cmyk_is_turned_into_the_colours_it_prints() -> None:
    """Red is no cyan, full magenta and yellow."""
    cmyk = np.zeros((HEIGHT, WIDTH, 4), np.uint8)
    cmyk[:, :, 1:3] = 255
    pixels = decoded(encode(Image.fromarray(cmyk, "CMYK"), "JPEG", quality=95))
    assert np.abs(pixels - [255, 0, 0]).max() <= 6


@pytest.mark.parametrize(("kind", "form"), [("<u2", "PNG"), ("<u2", "TIFF"), (">u2", "TIFF"), ("<i4", "TIFF"),
                                            ("<f4", "TIFF")])  # fmt: skip
def test_sixteen_bits_keep_their_whole_range(kind: str, form: str) -> None:
    """Values 0 and 65535 become 0 and 255; what is between is divided by 257 and rounded."""
    values = np.linspace(0, 65535, HEIGHT * WIDTH).reshape(HEIGHT, WIDTH).round().astype(kind)
    pixels = decoded(encode(Image.fromarray(values), form))
    np.testing.assert_array_equal(pixels, np.rint(values.astype(float) / 257).astype(int)[:, :, None].repeat(3, axis=2))
    assert pixels.max() == 255


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_sixteen_bit_png_with_and_without_colour(channels: int) -> None:
    values = np.random.default_rng(0).integers(0, 65536, (HEIGHT, WIDTH, channels), dtype=np.uint16)
    expected = values[:, :, :3].astype(float) / 257
    assert np.abs(decoded(png16(values)) - expected).max() <= 1  # pillow takes the high byte of colours


def test_fractions_are_scaled_and_values_without_a_range_refused() -> None:
    fractions = np.linspace(0, 1, HEIGHT * WIDTH, dtype=np.float32).reshape(HEIGHT, WIDTH)
    pixels = decoded(encode(Image.fromarray(fractions), "TIFF"))
    np.testing.assert_array_equal(pixels[:, :, 0], np.rint(fractions * 255))
    for wrong in (np.float32(70000), np.float32("nan"), np.float32(-1)):
        values = fractions.copy()
        values[3, 4] = wrong
        with pytest.raises(ImageError, match=r"grey values from .*, expected 0 to 65535") as caught:
            decoded(encode(Image.fromarray(values), "TIFF"))
        assert caught.value.reason == Reason.IMAGE_UNDECODABLE


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP"])
def test_exif_rotation_follows_the_stated_size(form: str, orientation: int) -> None:
    """The stored pixels are those of a camera that was held so; numpy turns them back for comparison."""
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    stored = smooth()
    data = encode(Image.fromarray(stored), form, exif=exif, quality=95)
    upright = {
        1: stored, 2: stored[:, ::-1], 3: stored[::-1, ::-1], 4: stored[::-1], 5: stored.swapaxes(0, 1),
        6: np.rot90(stored, -1), 7: stored[::-1, ::-1].swapaxes(0, 1), 8: np.rot90(stored),
    }[orientation]  # fmt: skip
    pixels = decoded(data, *upright.shape[:2])
    assert pixels.shape == upright.shape
    assert np.abs(pixels - upright).mean() < 4
    if orientation >= 5:  # stated as stored: left as stored
        assert np.abs(decoded(data) - stored).mean() < 4
    else:
        with pytest.raises(ImageError, match="30 x 20 pixels where 20 x 30 are stated"):
            decoded(data, WIDTH, HEIGHT)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data:UserWarning")
def test_broken_exif_is_no_reason_to_refuse_an_image() -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    data = encode(Image.fromarray(smooth()), "JPEG", exif=exif, quality=95)
    start = data.index(b"Exif\0\0") + 6
    broken = data[:start] + bytes(range(50, 60)) + data[start + 10 :]
    assert np.abs(decoded(broken) - smooth()).mean() < 4


@pytest.mark.parametrize("form", ["PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP"])
def test_a_file_that_ends_early_is_told_from_one_that_is_broken(form: str) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (100, 150, 3), dtype=np.uint8)
    data = encode(Image.fromarray(noise), form)
    for part in (0.3, 0.5, 0.9):
        with pytest.raises(ImageError, match="image 1: not a readable image") as caught:
            decoded(data[: int(part * len(data))], 100, 150)
        assert caught.value.reason == Reason.IMAGE_TRUNCATED
    with pytest.raises(ImageError, match="the file is empty") as caught:
        decoded(b"")
    assert caught.value.reason == Reason.IMAGE_TRUNCATED


@pytest.mark.parametrize("data", [b"no image", bytes(500), b"RIFF\x04\0\0\0WEBP", b"<html>404</html>"])
def test_what_is_no_image_is_undecodable(data: bytes) -> None:
    with pytest.raises(ImageError) as caught:
        decoded(data)
    assert caught.value.reason == Reason.IMAGE_UNDECODABLE
    assert "\n" not in str(caught.value)


def test_another_size_is_its_own_reason() -> None:
    with pytest.raises(ImageError, match="image 1: 30 x 20 pixels where 31 x 20 are stated") as caught:
        decoded(encode(Image.fromarray(picture()), "PNG"), HEIGHT, WIDTH + 1)
    assert caught.value.reason == Reason.IMAGE_SIZE
    sent = pickle.loads(pickle.dumps(caught.value))  # as from a training worker to the driver
    assert (type(sent), str(sent), sent.reason) == (ImageError, str(caught.value), Reason.IMAGE_SIZE)


def test_no_image_runs_a_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An EPS file is PostScript, which pillow would hand to Ghostscript: a stranger's program on this machine."""
    ghostscript = tmp_path / "gs"
    ghostscript.write_text(f"#!/bin/sh\ntouch {tmp_path}/ran\n")
    ghostscript.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setattr(EpsImagePlugin, "gs_binary", None)  # looked for again
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, "EPS")
    with Image.open(io.BytesIO(file.getvalue())) as image, pytest.raises((OSError, ValueError)):
        image.load()
    assert (tmp_path / "ran").exists()  # what pillow does with it
    (tmp_path / "ran").unlink()
    with pytest.raises(ImageError, match=r"a\.eps: not a readable image \(EPS is not taken\)"):
        decode_unstated(file.getvalue(), "a.eps")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("process", "icon", "says"),
    [
        ("pipelines", False, "16384 x 16384 pixels, at most 1000000 are taken; give a smaller image"),
        ("msrcnn", False, "more than 178956970 pixels, at most 1000000 are taken; give a smaller image"),
        ("msrcnn", True, "not a readable image (icons are not taken); replace or remove it"),
    ],
)
def test_an_image_of_too_many_pixels_costs_no_memory(process, icon, says):
    """One that is whole: 33 KB that would be 800 MB as RGB, as it is or in an icon that states 16 x 16."""
    side = 2**14

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0))
    pixels = chunk(b"IDAT", zlib.compress(bytes(side * (1 + side // 8)), 9))
    data = b"\x89PNG\r\n\x1a\n" + header + pixels + chunk(b"IEND", b"")
    assert len(data) < 40_000
    if icon:
        data = struct.pack("<HHHBBBBHHII", 0, 1, 1, 16, 16, 0, 0, 1, 32, len(data), 22) + data
    program = (
        f"import {process}"
        + """
import re, sys
from msrcnn.data.decoding import ImageError, decode_unstated

def peak():
    return int(re.search(r"VmHWM:\\s*(\\d+) kB", open("/proc/self/status").read())[1])

data, before = sys.stdin.buffer.read(), peak()
try:
    decode_unstated(data, "it", 10**6)
except ImageError as error:
    print(peak() - before, error)
"""
    )
    done = subprocess.run([sys.executable, "-c", program], input=data, capture_output=True, check=True)
    kilobytes, _, said = done.stdout.decode().partition(" ")
    assert said == f"it: {says}\n"
    assert int(kilobytes) < 50_000


LIMITED = """
import pickle, sys
from PIL import Image
Image.MAX_IMAGE_PIXELS = 100
from msrcnn.data.decoding import ImageError, decode_image, decode_unstated

data = sys.stdin.buffer.read()
for decode in (lambda: decode_image(data, 20, 30, "a"), lambda: decode_unstated(data, "b"),
               lambda: decode_unstated(data, "c", 50)):
    try:
        decode()
    except ImageError as error:
        print(error)
print(Image.MAX_IMAGE_PIXELS)
pickle.loads(b"cpipelines.ahead\\nahead\\n.")  # a function for a process of Ray's
print(Image.MAX_IMAGE_PIXELS, decode_image(data, 20, 30, "a").size, decode_unstated(data, "b").size)
"""


@pytest.mark.parametrize("form", ["PNG", "TIFF", "WEBP"])
def test_pillows_limit_is_the_hosts_and_lifted_in_our_own_processes(form: str) -> None:
    data = encode(Image.fromarray(picture()), form)
    done = subprocess.run([sys.executable, "-c", LIMITED], input=data, capture_output=True, check=True)
    assert done.stdout.decode().splitlines() == [
        "a: more than 200 pixels, pillow's limit; set PIL.Image.MAX_IMAGE_PIXELS to take it",
        "b: more than 200 pixels, pillow's limit; set PIL.Image.MAX_IMAGE_PIXELS to take it",
        "c: more than 200 pixels, at most 50 are taken; give a smaller image",
        "100",
        "None (30, 20) (30, 20)",
    ]
