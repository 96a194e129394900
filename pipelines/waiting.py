"""A worker that waits too long says for what."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from pipelines.mailbox import Post
from pipelines.progress import duration

PATIENCE_SECONDS = 60.0
"""A wait of this length is told, then one of twice the length, and so on."""
LOOK_SECONDS = 1.0


class Watch:
    """Looks at what a worker is doing from a thread of its own.

    Use it as a context around the loop, and `on` around each thing that can take long.
    """

    def __init__(self, post: Post, patience: float = PATIENCE_SECONDS) -> None:
        self.post, self.patience = post, patience
        self._doing: tuple[str, float] | None = None
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True, name="watch")

    @contextmanager
    def on(self, what: str) -> Iterator[None]:
        """What the block waits for, as in 'the images of step 3'."""
        before, self._doing = self._doing, (what, time.monotonic())
        try:
            yield
        finally:
            self._doing = before

    def _look(self) -> None:
        told: tuple[str, float] | None = None
        limit = self.patience
        while not self._ended.wait(min(LOOK_SECONDS, self.patience)):
            doing = self._doing
            if doing is None:
                continue
            if doing != told:
                limit = self.patience
            if time.monotonic() - doing[1] > limit:
                self.post.put("note", f"worker {self.post.rank} has waited {duration(limit)} for {doing[0]}")
                told, limit = doing, 2 * limit

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()
