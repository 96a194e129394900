"""Which images each step had, and whether every epoch had each of its images once.

A file an epoch holds a line for each worker and some steps. Steps that a failure rolled back are taken out of it, so it
tells what the weights were made from.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from pipelines.lines import JsonLines
from pipelines.storage import Location


class Seen(NamedTuple):
    """A worker's images of the steps up to `step`, all of one epoch."""

    rank: int
    step: int
    images: list[list[int]]


class Lineage:
    """Keeps the files and counts.

    Args:
        folder: of the files.
        steps: of an epoch.
        batch: images of a step.
        rows: images of the data set.
        log: gets a line at the end of every epoch.
    """

    def __init__(self, folder: Location, steps: int, batch: int, rows: int, log: Callable[[str], None]) -> None:
        self.folder, self.steps, self.batch, self.rows, self.log = folder, steps, batch, rows, log
        self.epoch = -1
        self.file: JsonLines | None = None
        self.ids: list[int] = []

    def add(self, seen: Seen) -> None:
        """Notes what a worker had; reports the epoch if it is complete with it."""
        file = self._open((seen.step - 1) // self.steps)
        file.append({"step": seen.step, "rank": seen.rank, "images": seen.images})
        self.ids += [i for step in seen.images for i in step]
        if len(self.ids) == self.steps * self.batch:
            self.log(self.verdict())

    def roll_back(self, step: int) -> None:
        """What came after `step` is going to be run again."""
        self._open(step // self.steps).keep(lambda line: line["step"] <= step)
        for name in self.folder.list():
            if name > self._name(self.epoch):
                (self.folder / name).remove()
        self.epoch = -1  # its images are counted when it goes on

    def flush(self) -> None:
        """Returns when everything is stored."""
        if self.file is not None:
            self.file.flush()

    def verdict(self) -> str:
        """A line about the epoch, once it is complete."""
        ids, counts = np.unique(np.array(self.ids, dtype=np.int64), return_counts=True)
        if counts.max() > 1:
            return (f"warning: epoch {self.epoch + 1}: {int((counts > 1).sum())} images came more than once, image "
                    f"{ids[counts.argmax()]} {counts.max()} times")  # fmt: skip
        rest = self.rows - len(ids)
        return f"epoch {self.epoch + 1}: {len(ids)} images, each once" + (f"; {rest} left out" if rest else "")

    @staticmethod
    def _name(epoch: int) -> str:
        return f"epoch-{epoch + 1:04d}.jsonl"

    def _open(self, epoch: int) -> JsonLines:
        if self.file is None or epoch != self.epoch:
            self.flush()
            self.folder.make_folder()
            self.epoch, self.file = epoch, JsonLines(self.folder / self._name(epoch))
            self.ids = [i for line in self.file.values() for step in line["images"] for i in step]
        return self.file
