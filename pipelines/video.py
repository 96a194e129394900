"""Videos, frame by frame: read upright with their times, written as MP4 with the times they are given."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from PIL import Image

from cluster.credentials import without_password
from msrcnn.errors import InputError
from pipelines.storage import Location, StorageError, explained

UPRIGHT = {90: Image.Transpose.ROTATE_90, 180: Image.Transpose.ROTATE_180, 270: Image.Transpose.ROTATE_270}
"""What turns a frame upright whose rotation, counted against the clock, is this many degrees."""
ENCODER = "libx264"
QUALITY = {"crf": "20", "preset": "veryfast"}
ASSUMED_RATE = 25
"""Frames a second of a video that does not say."""


def video_library() -> Any:
    """The package `av`.

    Raises:
        InputError: it is not installed.
    """
    try:
        import av
    except ImportError as error:
        raise InputError(f"videos need the package av ({error}); pip install av") from None
    return av


def check_encoder() -> None:
    """Says before the work whether videos can be written.

    Raises:
        InputError: not as H.264, which a build of FFmpeg may lack.
    """
    if ENCODER not in video_library().codecs_available:
        raise InputError(f"this build of the package av cannot write H.264 (it has no {ENCODER}); pip install "
                         "--force-reinstall --only-binary av av, or give --no-overlays")  # fmt: skip


@dataclass(frozen=True)
class Frame:
    """A frame of a video, upright."""

    image: Image.Image  # RGB
    number: int  # from 0
    time: float  # seconds from the beginning of the file
    pts: int  # the same in units of the video's `time_base`
    duration: int  # likewise; 0: unknown


class Video:
    """A video to be read; use it as a context.

    Args:
        place: the file.

    Attributes:
        time_base: seconds of a unit of time.
        rate: frames a second, on average.
        expected: about how many frames there are; 0: unknown.
        broken: why reading ended before the end; empty if it did not.

    Raises:
        StorageError: the storage behind a URL fails.
        InputError: the file cannot be opened, or holds no video.
    """

    def __init__(self, place: Location) -> None:
        self._av, self._place = video_library(), place
        try:
            file = str(place.local) if place.local is not None else place.open()
        except FileNotFoundError as error:
            raise InputError(f"{place}: not a readable video ({explained(error)}); replace or remove it") from None
        except OSError as error:
            self._check_storage(error)
        try:
            self._container = self._av.open(file)
        except (OSError, self._av.FFmpegError) as error:
            self._check_storage(error)
            raise InputError(f"{place}: not a readable video ({_reason(error)}); replace or remove it") from None
        if not self._container.streams.video:
            self._container.close()
            raise InputError(f"{place}: holds no video; replace or remove it")
        self._stream = self._container.streams.video[0]
        self._stream.thread_type = "AUTO"
        self.time_base: Fraction = self._stream.time_base or Fraction(1, 90000)
        self.rate = self._stream.average_rate or self._stream.guessed_rate or Fraction(ASSUMED_RATE)
        length = self._container.duration / self._av.time_base if self._container.duration else 0
        self._start = (self._container.start_time or 0) / self._av.time_base  # not 0 in what was cut from a broadcast
        self.expected = self._stream.frames or round(length * self.rate)
        self.broken = ""

    def frames(self) -> Iterator[Frame]:
        """One after the other, as they are shown; ends where the file cannot be read on (`broken`)."""
        last: int | None = None
        try:
            for number, frame in enumerate(self._container.decode(self._stream)):
                step = max(1, round(1 / (self.rate * self.time_base)))
                if last is None:  # the first may be before time 0
                    pts = round(self._start / self.time_base) if frame.pts is None else frame.pts
                else:
                    pts = last + step if frame.pts is None else max(frame.pts, last + 1)
                last = pts
                image = Image.fromarray(frame.to_ndarray(format="rgb24"))
                turn = UPRIGHT.get(int(frame.rotation) % 360)
                image = image if turn is None else image.transpose(turn)
                yield Frame(image, number, float(pts * self.time_base) - self._start, pts, frame.duration or 0)
        except (OSError, self._av.FFmpegError) as error:
            self._check_storage(error)
            self.broken = _reason(error)

    def _check_storage(self, error: Exception) -> None:
        """Raises StorageError for what is no fault of the video: FFmpeg passes on what reading its file raised."""
        if isinstance(error, OSError) and not isinstance(error, self._av.FFmpegError):
            raise StorageError(
                f"{self._place}: cannot be read ({explained(error)}); give the same command again to go on"
            ) from error

    def __enter__(self) -> Video:
        return self

    def __exit__(self, *_: object) -> None:
        self._container.close()


class VideoWriter:
    """Writes frames as MP4, H.264; use it as a context, whose end writes the rest.

    Frames of odd sizes, which the format does not know, repeat their last row or column.

    Args:
        path: the file.
        rate: frames a second, on average.
        time_base: seconds of a unit of the frames' times.

    Raises:
        InputError: `check_encoder`.
    """

    def __init__(self, path: Path, rate: Fraction, time_base: Fraction) -> None:
        check_encoder()
        self._av = video_library()
        self._container = self._av.open(str(path), "w", format="mp4", options={"movflags": "faststart"})
        self._stream = self._container.add_stream(ENCODER, rate=rate, options=QUALITY)
        self._stream.pix_fmt = "yuv420p"
        self._stream.codec_context.time_base = time_base
        self._time_base = time_base
        self._sized = False
        self._first = 0
        self._durations: dict[int, int] = {}

    def add(self, image: Image.Image, frame: Frame) -> None:
        """Appends an image, shown when and for as long as `frame`."""
        pixels = np.asarray(image)  # [H, W, 3]
        height, width, _ = pixels.shape
        pixels = np.pad(pixels, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
        if not self._sized:
            self._stream.height, self._stream.width = pixels.shape[:2]
            self._first, self._sized = frame.pts, True
        elif pixels.shape[:2] != (self._stream.height, self._stream.width):  # a stream may change its size
            fitted = Image.fromarray(pixels).resize((self._stream.width, self._stream.height))
            pixels = np.asarray(fitted)
        picture = self._av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
        picture.pts, picture.time_base = frame.pts - self._first, self._time_base
        self._durations[picture.pts] = frame.duration
        self._mux(picture)

    def _mux(self, picture: Any) -> None:
        for packet in self._stream.encode(picture):
            if duration := self._durations.pop(packet.pts, 0):
                packet.duration = duration
            self._container.mux(packet)

    def __enter__(self) -> VideoWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: BaseException | TracebackType | None) -> None:
        try:
            if kind is None and self._sized:
                self._mux(None)
        finally:
            self._container.close()


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or without_password(str(error).split("\n")[0])
