"""Progress as people read it."""

from __future__ import annotations

import time
from collections.abc import Callable

PROGRESS_SECONDS = 5.0
"""Least time between two lines."""
LEAST_SECONDS = 0.5
"""A rate over less says nothing."""


def duration(seconds: float) -> str:
    """Seconds as people read them: 45 s, 3 min 20 s, 2 h 5 min."""
    seconds = round(seconds)
    if seconds < 60:
        return f"{seconds} s"
    minutes, seconds = divmod(seconds, 60)
    if minutes < 60:
        return f"{minutes} min {seconds:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


class Progress:
    """Lines that say how far a stage is: images done, images a second, time left.

    The rate counts from the first result on, so that the start of the processes is not in it; from the beginning where
    all results come at once.

    Args:
        total: images.
        log: takes the lines.
        clock: seconds.
        unit: what is counted, if not images.
    """

    def __init__(
        self, total: int, log: Callable[[str], None], clock: Callable[[], float] = time.monotonic, unit: str = "images"
    ) -> None:
        self.total, self.log, self.clock, self.unit = total, log, clock, unit
        self.done = 0
        self._began = self._logged = clock()
        self._first: tuple[float, int] | None = None  # when the first result came, and its images

    def add(self, images: int) -> None:
        """Notes finished images; logs a line if the last one is old, or if these are the last."""
        self.done += images
        self._first = self._first or (self.clock(), images)
        if self.done == self.total or self.clock() - self._logged >= PROGRESS_SECONDS:
            self._say()

    def expect(self, total: int) -> None:
        """Corrects the total, which was estimated; logs a line if with it these were the last."""
        ended, self.total = self.done == total != self.total, total
        if ended:
            self._say()

    def _say(self) -> None:
        self._logged = now = self.clock()
        first, images = self._first or (now, 0)
        since, before = (first, images) if now - first >= LEAST_SECONDS else (self._began, 0)
        rate = (self.done - before) / max(now - since, 1e-3)
        left = duration(max(0, self.total - self.done) / rate) if rate else "?"
        self.log(f"{self.done}/{self.total} {self.unit}, {rate:.1f} {self.unit}/s, {left} left")
