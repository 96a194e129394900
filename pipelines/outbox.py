"""What MLflow is to be told, told by one thread, in order, until the server has it.

Training never waits for a tracking server: it puts and goes on. A server that is slow, down or started anew gets
everything later, some of it perhaps twice: MLflow stores a metric of the same key, step, time and value once.
"""

from __future__ import annotations

import contextlib
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import islice
from numbers import Real
from typing import Any, TypeAlias

from pipelines.mlflow_errors import may_pass, reason
from pipelines.tracking import MAX_METRICS, Point, Tracker

FIRST_DELAY, LONGEST_DELAY = 1.0, 30.0
"""Seconds from a failed attempt to the next while the server does not answer: at first, doubled each time, at most."""
LONGEST_ASIDE = 300.0
"""Likewise at most for an action that alone fails: it may be an upload of gigabytes."""


@dataclass(frozen=True, slots=True)
class _Record:
    """The numbers of one step, at most `MAX_METRICS`."""

    step: int
    points: list[Point]


@dataclass(eq=False, slots=True)
class _Action:
    """Any other call. One that fails where others pass stands aside for a while: it must not hold them up."""

    label: str
    call: Callable[[], object]
    due: float = 0.0  # not before this moment of `time.monotonic`
    delay: float = FIRST_DELAY


_Entry: TypeAlias = _Record | _Action


class Outbox:
    """Tells MLflow what is put into it, on a thread of its own, from `start` to `close`.

    Args:
        tracker: the run.
        log: takes a line when the server stops answering, when it is back, and for what it refuses.
    """

    def __init__(self, tracker: Tracker, log: Callable[[str], None]) -> None:
        self._tracker, self._log = tracker, log
        self._waiting: deque[_Entry] = deque()  # any thread appends; only our own removes
        self._refused: list[_Entry] = []
        self._alone = 0  # so many records of a refused batch are sent one by one, to find those that are to blame
        self._down = False
        self._delay, self._due = FIRST_DELAY, 0.0  # of the next attempt while the server does not answer
        self._ended = self._under_way = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, daemon=True, name="mlflow")

    def start(self) -> Outbox:
        """Begins to send; returns itself."""
        self._thread.start()
        return self

    def record(self, values: Mapping[str, Any]) -> None:
        """Puts one record: "step", "time" (seconds since 1970), and any other finite number as a metric of that step.

        Given again, the same record changes nothing.
        """
        step, timestamp = int(values["step"]), int(float(values["time"]) * 1000)
        points = [
            Point(key, float(value), timestamp, step)
            for key, value in values.items()
            if key not in ("step", "time") and isinstance(value, Real) and not isinstance(value, bool)
            and math.isfinite(value)
        ]  # fmt: skip
        self._put(_Record(step, points[i : i + MAX_METRICS]) for i in range(0, len(points), MAX_METRICS))

    def do(self, label: str, action: Callable[[], object]) -> None:
        """Puts any other call. It may be made more than once; `label` names it in messages."""
        self._put([_Action(label, action)])

    def close(self, seconds: float) -> list[str]:
        """Waits until everything is delivered, then nothing more is sent.

        Args:
            seconds: at most so long where nothing gets through; while a call is under way, a model's upload say, or
                something was delivered in that time, it goes on.

        Returns:
            What was not delivered, a short description each; empty if all was.
        """
        with self._changed:
            self._delay, self._due = FIRST_DELAY, 0.0  # once more at once
            for entry in self._waiting:
                if isinstance(entry, _Action):
                    entry.due, entry.delay = 0.0, FIRST_DELAY
            self._changed.notify_all()
            before = -1
            while self._waiting and (self._under_way or len(self._waiting) != before):
                before = len(self._waiting)
                self._changed.wait_for(lambda: not self._waiting, seconds)
            self._ended = True
            self._changed.notify_all()
            return _descriptions(self._waiting) + [f"{what}: refused" for what in _descriptions(self._refused)]

    def _put(self, entries: Iterable[_Entry]) -> None:
        with self._changed:
            self._waiting.extend(entries)
            self._changed.notify_all()

    def _run(self) -> None:
        while entries := self._next():
            try:
                self._send(entries)
            except Exception as error:
                self._failed(entries, error)
            else:
                self._answered()
                self._remove(entries)

    def _send(self, entries: list[_Entry]) -> None:
        first = entries[0]
        if isinstance(first, _Action):
            self._under_way = not self._down  # a call to a server that hangs is none
            try:
                first.call()
            finally:
                self._under_way = False
        else:
            self._tracker.points([point for entry in entries if isinstance(entry, _Record) for point in entry.points])

    def _next(self) -> list[_Entry]:
        """What to send now, waiting until there is something; empty when all is over."""
        with self._changed:
            while not self._ended:
                now = time.monotonic()
                if self._due <= now and (entries := self._first_due(now)):
                    return entries
                actions = [e.due for e in self._waiting if isinstance(e, _Action)] if self._due <= now else []
                until = min(actions, default=self._due)
                self._changed.wait(until - now if until > now and self._waiting else None)
            return []

    def _first_due(self, now: float) -> list[_Entry]:
        """The first action that is due, or the first records with those right behind them that fit into a call."""
        for place, entry in enumerate(self._waiting):
            if isinstance(entry, _Action):
                if entry.due <= now:
                    return [entry]
                continue
            records: list[_Entry] = []
            size = 0
            for record in islice(self._waiting, place, None):
                if not isinstance(record, _Record) or size + len(record.points) > MAX_METRICS:
                    break
                records.append(record)
                size += len(record.points)
            return records[:1] if self._alone else records
        return []

    def _remove(self, entries: list[_Entry]) -> None:
        with self._changed:
            place = next(i for i, entry in enumerate(self._waiting) if entry is entries[0])
            for _ in entries:
                del self._waiting[place]
            if isinstance(entries[0], _Record):
                self._alone = max(0, self._alone - len(entries))
            self._changed.notify_all()

    def _failed(self, entries: list[_Entry], error: Exception) -> None:
        first = entries[0]
        if not may_pass(error):
            self._answered()
            if len(entries) > 1:
                self._alone = len(entries)
            else:
                self._refuse(first, error)
        elif isinstance(first, _Action) and self._server_answers():
            self._answered()
            self._stand_aside(first, error)
        else:
            if not self._down:
                self._say(f"MLflow at {self._tracker.shown} does not answer ({reason(error)}); "
                          "training goes on, records wait")  # fmt: skip
            self._down = True
            with self._changed:
                self._due, self._delay = time.monotonic() + self._delay, min(2 * self._delay, LONGEST_DELAY)

    def _server_answers(self) -> bool:
        """Asked after an upload that failed: a server that cannot store a file may just hang up, as one that dies."""
        try:
            self._tracker.client.get_run(self._tracker.run_id)
        except Exception as error:
            return not may_pass(error)
        return True

    def _stand_aside(self, action: _Action, error: Exception) -> None:
        if action.delay == FIRST_DELAY:
            self._say(f"MLflow at {self._tracker.shown} cannot take {action.label} now ({reason(error)}); "
                      "it will be tried again")  # fmt: skip
        with self._changed:
            action.due, action.delay = time.monotonic() + action.delay, min(2 * action.delay, LONGEST_ASIDE)

    def _refuse(self, entry: _Entry, error: Exception) -> None:
        """Gives up an entry. Of records one warning is enough: what is wrong with one mostly is with all."""
        if isinstance(entry, _Action) or not any(isinstance(e, _Record) for e in self._refused):
            self._say(f"warning: MLflow at {self._tracker.shown} refuses {_name(entry)} ({reason(error)})")
        with self._changed:
            self._refused.append(entry)
            self._remove([entry])

    def _answered(self) -> None:
        if self._down:
            self._say(f"MLflow at {self._tracker.shown} answers again")
        self._down = False
        with self._changed:
            self._delay, self._due = FIRST_DELAY, 0.0

    def _say(self, line: str) -> None:
        with contextlib.suppress(Exception):  # a closed terminal must not end the thread
            self._log(line)


def _name(entry: _Entry) -> str:
    return entry.label if isinstance(entry, _Action) else f"the record of step {entry.step}"


def _descriptions(entries: Iterable[_Entry]) -> list[str]:
    """All records in one description, each action in its own."""
    entries = list(entries)
    steps = [entry.step for entry in entries if isinstance(entry, _Record)]
    labels = [entry.label for entry in entries if isinstance(entry, _Action)]
    if not steps:
        return labels
    if len(steps) == 1:
        return [f"the record of step {steps[0]}", *labels]
    return [f"{len(steps)} records (steps {min(steps)} to {max(steps)})", *labels]
