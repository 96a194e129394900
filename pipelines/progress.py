"""Records from workers to the driver: an actor in between, so that no step waits for a terminal, a file or MLflow."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ray

POLL_SECONDS = 0.5


@ray.remote(num_cpus=0)
class Mailbox:
    """Keeps what workers send until the driver takes it."""

    def __init__(self) -> None:
        self.records: list[dict[str, Any]] = []

    def put(self, record: dict[str, Any]) -> None:
        """Adds a record."""
        self.records.append(record)

    def take(self) -> list[dict[str, Any]]:
        """Everything that came since the last call."""
        records, self.records = self.records, []
        return records


class Follower:
    """Takes records from a mailbox on a thread, appends them to a file as JSON lines and hands each to `on_record`.

    Use it as a context; leaving it takes what is left in the mailbox first. The last
    error on the way is kept in `error`: reporting never stops training.
    """

    def __init__(self, mailbox: Any, path: Path, on_record: Callable[[dict[str, Any]], None]) -> None:
        self.mailbox, self.path, self.on_record = mailbox, path, on_record
        self.error: Exception | None = None
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._follow, daemon=True, name="metrics")

    def _follow(self) -> None:
        while not self._ended.wait(POLL_SECONDS):
            self._take()

    def _take(self) -> None:
        try:
            for record in ray.get(self.mailbox.take.remote()):
                self._handle(record)
        except Exception as error:  # the mailbox's node is gone, say
            self.error = error

    def _handle(self, record: dict[str, Any]) -> None:
        try:
            with self.path.open("a", encoding="utf-8") as lines:
                lines.write(json.dumps(record) + "\n")
        except OSError as error:  # a full disk, say
            self.error = error
        try:
            self.on_record(record)
        except Exception as error:  # a tracking server that is down, say
            self.error = error

    def __enter__(self) -> Follower:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()
        self._take()


def duration(seconds: float) -> str:
    """Seconds as people read them: 45 s, 3 min 20 s, 2 h 5 min."""
    seconds = round(seconds)
    if seconds < 60:
        return f"{seconds} s"
    minutes, seconds = divmod(seconds, 60)
    if minutes < 60:
        return f"{minutes} min {seconds:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"
