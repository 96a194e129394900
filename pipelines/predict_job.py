"""What a process of `msrcnn predict` does: some images or a video in, their overlays and a part of the rows out.

The same in this process and in those of a cluster. A part's rows are written last: with them, all of it is there.
"""

from __future__ import annotations

import io
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from typing import Any, Generic, TypeVar

import torch
from PIL import Image

from msrcnn.config import Precision
from msrcnn.data.decoding import ImageError, decode_unstated
from msrcnn.data.rejected import Reason
from msrcnn.errors import InputError
from msrcnn.prediction import Prediction, predictions, suited_batch
from msrcnn.weights import Checkpoint, load_model
from pipelines.ahead import Behind, ahead
from pipelines.detection_parts import Origin, PartInfo, PartWriter
from pipelines.gpu_memory import stated_memory
from pipelines.overlay import Overlay
from pipelines.predict_inputs import Source
from pipelines.predict_rows import Rows
from pipelines.storage import Location, StorageError, check_seen, explained, locate, on_disk
from pipelines.video import Frame, Video, VideoWriter, file_for

LEAST_IMAGES, MOST_IMAGES, MANY_PARTS = 32, 512, 1000
"""Images of a part: `MANY_PARTS` parts where that gives from `LEAST_IMAGES` to `MOST_IMAGES`."""
READERS, DRAWERS = 8, 4
"""Images read and decoded, overlays drawn and written at a time."""
JPEG_QUALITY = 92
PAUSES = (1.0, 4.0)
"""Seconds before an image is read again, from a storage that failed."""
FORBIDDEN = "ACCESS_DENIED"
"""In Arrow's message where an object store lets others read, but not this object."""
OVERLAYS, PARTS = "overlays", "parts"

Item = TypeVar("Item")


@dataclass(frozen=True)
class PredictJob:
    """What every process needs.

    Attributes:
        weights: a model file, a local path or a URL.
        out: the folder of the results.
        origin: what they are made from.
        min_score: least mask score of a detection.
        overlays: whether they are drawn.
        batch: images a step of the network; 0: as many as suit the device.
        precision: what its layers compute in.
    """

    weights: str
    out: Location
    origin: Origin
    min_score: float
    overlays: bool
    batch: int
    precision: Precision


@dataclass(frozen=True)
class Part:
    """Consecutive images, or one video."""

    number: int
    sources: tuple[Source, ...]


def parts_of(sources: Sequence[Source]) -> list[Part]:
    """The sources in order, as parts; the same for the same sources."""
    size = min(max(LEAST_IMAGES, len(sources) // MANY_PARTS), MOST_IMAGES)
    groups: list[list[Source]] = []
    for source in sources:
        full = not groups or source.is_video or groups[-1][-1].is_video or len(groups[-1]) == size
        if full:
            groups.append([])
        groups[-1].append(source)
    return [Part(number, tuple(group)) for number, group in enumerate(groups)]


def expected_images(parts: Sequence[Part]) -> dict[int, int]:
    """How many images parts have, by their numbers; about, where one is a video."""
    with ThreadPoolExecutor(READERS) as pool:
        return dict(zip((part.number for part in parts), pool.map(_expected, parts), strict=True))


def _expected(part: Part) -> int:
    if not part.sources[0].is_video:
        return len(part.sources)
    try:
        with Video(part.sources[0].place) as video:
            return max(1, video.expected)
    except InputError:  # said when its turn comes
        return 1


class Predictor:
    """Detects, draws and stores, a part at a time."""

    def __init__(self, job: PredictJob, device: torch.device) -> None:
        with on_disk(locate(job.weights)) as path:
            self.model: Checkpoint = load_model(path, device)
        self.job = job
        self.batch = job.batch or suited_batch(device)
        self._overlay = Overlay([category for _, category, _ in self.model.categories])
        self._folders: set[str] = set()

    def run(self, part: Part, seen: Callable[[int], None] = lambda _: None) -> PartInfo:
        """Writes a part.

        Args:
            part: that has not been written.
            seen: is told how many images more are done, as they are.

        Raises:
            StorageError: something cannot be written, or the storage that is read from fails.
            InputError: the GPU's memory does not suffice for a step, or this node does not see an input's folder.
        """
        stored = PartWriter(self.job.out / PARTS, (part.number, 0), self.job.origin)
        try:
            with stated_memory(self.batch, self.model.data), stored, ThreadPoolExecutor(DRAWERS) as drawers:
                rows, drawing = Rows(stored), Behind(drawers, DRAWERS + 2)
                if part.sources[0].is_video:
                    self._video(part.sources[0], rows, seen)
                else:
                    self._images(part.sources, rows, drawing, seen)
                drawing.finish()
                rows.finish()
        except OSError as error:
            raise StorageError(f"{self.job.out}: cannot be written ({explained(error)}); put that right and give the "
                               "same command again to go on") from error  # fmt: skip
        return stored.info

    def _predictions(
        self, images: Iterable[Image.Image | ImageError]
    ) -> Generator[Prediction | ImageError, None, None]:
        return predictions(
            self.model, images, batch=self.batch, min_score=self.job.min_score, precision=self.job.precision
        )

    def _images(self, sources: Sequence[Source], rows: Rows, drawing: Behind, seen: Callable[[int], None]) -> None:
        with ThreadPoolExecutor(READERS) as readers:
            images = Held(ahead(readers, read_image, sources, self.batch + 2))
            with closing(self._predictions(images)) as detected:
                for source, found in zip(sources, detected, strict=True):
                    image = images.taken.popleft()
                    if isinstance(found, ImageError) or isinstance(image, ImageError):
                        rows.failed(source, str(found))
                    else:
                        rows.add(source, found)
                        if self.job.overlays:
                            drawing.do(partial(self._draw, source, image, found))
                    seen(1)

    def _draw(self, source: Source, image: Image.Image, found: Prediction) -> None:
        file = io.BytesIO()
        kind: dict[str, Any] = {"format": "PNG", "compress_level": 3}
        if not source.overlay.lower().endswith(".png"):
            kind = {"format": "JPEG", "quality": JPEG_QUALITY}
        self._overlay.draw(image, found).save(file, **kind)
        self._placed(source).write(file.getvalue())

    def _placed(self, source: Source) -> Location:
        """Where an overlay goes; its folder is there."""
        place = self.job.out / OVERLAYS / source.overlay
        if place.parent.path not in self._folders:
            place.parent.make_folder()
            self._folders.add(place.parent.path)
        return place

    def _video(self, source: Source, rows: Rows, seen: Callable[[int], None]) -> None:
        try:
            video = Video(source.place)
        except StorageError:
            raise
        except InputError as error:
            check_seen(source.place.parent)
            rows.failed(source, str(error))
            seen(1)
            return
        frames = Held(video.frames())
        decoded = (frame.image for frame in frames)
        # The thread that decodes ends before the file is closed.
        with video, closing(self._predictions(decoded)) as found:
            detected = self._kept(source, found, frames, rows, seen)
            first = next(detected, None)
            if first is None:
                rows.failed(source, f"{source.place}: no frame can be read ({video.broken or 'it has none'}); "
                                    "replace or remove it")  # fmt: skip
                return
            if self.job.overlays:
                with file_for(self._placed(source)) as path, VideoWriter(path, video.rate, video.time_base) as writer:
                    writer.add(self._overlay.draw(first[0].image, first[1]), first[0])
                    for frame, one in detected:
                        writer.add(self._overlay.draw(frame.image, one), frame)
            deque(detected, maxlen=0)
            if video.broken:
                rows.failed(source, f"{source.place}: cannot be read to its end ({video.broken}); replace it")

    def _kept(
        self, source: Source, found: Iterator[Prediction | ImageError], frames: Held[Frame], rows: Rows,
        seen: Callable[[int], None],
    ) -> Iterator[tuple[Frame, Prediction]]:  # fmt: skip
        """Frames and what is in them; the rows are noted on the way."""
        for one in found:
            assert isinstance(one, Prediction)  # frames are decoded already
            frame = frames.taken.popleft()
            rows.add(source, one, frame.number, frame.time)
            seen(1)
            yield frame, one


def read_image(source: Source) -> Image.Image | ImageError:
    """The image as upright RGB, or why it cannot be used.

    Raises:
        StorageError: the storage fails, which is not the image's fault.
        InputError: this node does not see the image's folder.
    """
    name = str(source.place)
    try:
        return decode_unstated(patiently(source.place.read), name)
    except ImageError as error:
        return error
    except OSError as error:
        if lasting(error):
            check_seen(source.place.parent)  # the driver found the file
            return ImageError(name, Reason.IMAGE_MISSING, f"cannot be read ({explained(error)})", "give another file")
        raise StorageError(
            f"{name}: cannot be read ({explained(error)}); give the same command again to go on, without this file if "
            "it is at fault"
        ) from error


def patiently(read: Callable[[], Item]) -> Item:
    """What it gives; called again after some seconds where its storage fails."""
    for pause in PAUSES:
        try:
            return read()
        except OSError as error:
            if lasting(error):
                raise
            time.sleep(pause)
    return read()


def lasting(error: OSError) -> bool:
    """Whether a file will be no more readable later: it is not there, or others may read it."""
    return isinstance(error, FileNotFoundError | PermissionError) or FORBIDDEN in str(error)


class Held(Generic[Item]):
    """Items that are kept, when they are taken, until somebody has a second use for them: `taken`, oldest first."""

    def __init__(self, items: Iterable[Item]) -> None:
        self._items = items
        self.taken: deque[Item] = deque()

    def __iter__(self) -> Iterator[Item]:
        for item in self._items:
            self.taken.append(item)
            yield item
