"""What workers tell the driver: an actor in between, so that no step waits for a terminal, a file or MLflow."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections import Counter, defaultdict
from typing import Any, Literal, NamedTuple, Protocol

import ray

POLL_SECONDS = 1.0
"""How long the driver's call waits for a message; then it looks whether training has ended."""
MAX_ATTEMPTS = 5
"""Worker groups in a row that may begin at one step and get no further than one another; then something is wrong there.
Machines that vanish let one group get further than the other."""

LOST = "its processes or nodes were lost"
Kind = Literal["begin", "record", "images", "note"]


class Message(NamedTuple):
    """Something for the driver.

    begin: a worker group begins at step `content`, what was told of later steps is void; record: numbers of some steps,
    for metrics.jsonl; images: `Seen`, which images some steps had; note: a line to print.
    """

    kind: Kind
    content: Any


class Attempt(NamedTuple):
    """What a worker is told when its group begins."""

    number: int
    fatal: str | None
    """why the training cannot go on, if it cannot"""


@ray.remote(num_cpus=0)
class Mailbox:
    """Keeps what workers tell until the driver takes it, and why the training must end, if it must."""

    def __init__(self) -> None:
        self.messages: list[Message] = []
        self.attempt = 0
        self.step = self.furthest = 0  # where the present group began, and how far it told to be
        self.ends: list[tuple[int, int]] = []  # both of the groups before it, as long as they are the same
        self.fatal_error: str | None = None
        self.certain = False
        self.verdict = Attempt(0, None)
        self.last_failure = LOST
        self.early: defaultdict[int, dict[int, Message]] = defaultdict(dict)  # by rank and number
        self.expected: Counter[int] = Counter()  # number of the next message, by rank
        self.put_in_all = self.stored = self.waiting = 0
        self.news = asyncio.Condition()

    async def begin(self, step: int) -> None:
        """A worker group is about to start at `step`."""
        if self.attempt > 0:
            end = (self.step, self.furthest)
            self.ends = [other for other in self.ends if other == end] + [end]
        self.attempt += 1
        self.step = self.furthest = step
        self.early.clear()
        self.expected.clear()
        if len(self.ends) >= MAX_ATTEMPTS and self.ends[-1][0] == step and self.fatal_error is None:
            self.fatal_error = (
                f"the workers failed {MAX_ATTEMPTS} times in a row after step {self.ends[-1][1]}; the last time: "
                f"{self.last_failure}"
            )
        self.last_failure = LOST
        self.verdict = Attempt(self.attempt, self.fatal_error)  # the same for all workers, whatever comes meanwhile
        await self._put(Message("begin", step))

    async def current(self) -> Attempt:
        """For a worker that starts."""
        return self.verdict

    async def ended(self) -> str | None:
        """For the driver: why the training cannot go on, if it cannot."""
        return self.fatal_error

    async def put(self, attempt: int, rank: int, number: int, message: Message) -> None:
        """Adds a worker's message, unless it comes from a group that another has replaced.

        Ray may execute a worker's calls in another order than it made them: its messages are numbered from 0.
        """
        if attempt != self.attempt:
            return
        if message.kind == "images":
            self.furthest = max(self.furthest, message.content.step)
        self.early[rank][number] = message
        while self.expected[rank] in self.early[rank]:
            message = self.early[rank].pop(self.expected[rank])
            self.expected[rank] += 1
            await self._put(message)

    async def failed(self, attempt: int, text: str) -> None:
        """A worker ends with an error; another group may go on."""
        if attempt == self.attempt:
            self.last_failure = text
            await self._put(Message("note", text))

    async def fatal(self, text: str, certain: bool) -> None:
        """The training must end; the first reason is kept, but one that is certain replaces one that is not."""
        if self.fatal_error is None or (certain and not self.certain):
            self.fatal_error, self.certain = text, certain

    async def take(self, seconds: float) -> tuple[list[Message], bool]:
        """For the driver: what came since the last call, and whether a worker waits until it is stored.

        Returns as soon as there is something, or after some seconds.
        """

        async def something() -> None:
            async with self.news:
                await self.news.wait_for(lambda: self.messages or self.waiting)

        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(something(), seconds)
        messages, self.messages = self.messages, []
        return messages, self.waiting > 0

    async def handled(self, number: int) -> None:
        """The driver has stored so many messages more."""
        async with self.news:
            self.stored += number
            self.news.notify_all()

    async def delivered(self) -> None:
        """Returns once the driver has stored everything that was put before."""
        until = self.put_in_all
        async with self.news:
            if self.stored < until:
                self.waiting += 1
                self.news.notify_all()
                await self.news.wait_for(lambda: self.stored >= until)
                self.waiting -= 1

    async def _put(self, message: Message) -> None:
        async with self.news:
            self.put_in_all += 1
            self.messages.append(message)
            self.news.notify_all()


class Books(Protocol):
    """Where messages go."""

    def handle(self, message: Message) -> None:
        """Deals with a message."""

    def flush(self) -> None:
        """Returns when what was handled is stored."""


class Follower:
    """Takes messages from a mailbox on a thread and hands each to `books`.

    Use it as a context; leaving it takes what is left in the mailbox first. The last
    error on the way is kept in `error`: reporting never stops training.
    """

    def __init__(self, mailbox: Any, books: Books) -> None:
        self.mailbox, self.books = mailbox, books
        self.error: Exception | None = None
        self._unstored = 0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._follow, daemon=True, name="mailbox")

    def _follow(self) -> None:
        while not self._ended.is_set():
            self._take(POLL_SECONDS)

    def _take(self, seconds: float) -> None:
        try:
            messages, awaited = ray.get(self.mailbox.take.remote(seconds))
        except Exception as error:  # Ray is shutting down, say
            self.error = error
            self._ended.wait(seconds)
            return
        for message in messages:
            try:
                self.books.handle(message)
            except Exception as error:  # a full disk, say
                self.error = error
        self._unstored += len(messages)
        if awaited:
            try:
                self.books.flush()
                ray.get(self.mailbox.handled.remote(self._unstored))
                self._unstored = 0
            except Exception as error:
                self.error = error
                self._ended.wait(POLL_SECONDS)  # a worker still waits, and the next call would return at once

    def __enter__(self) -> Follower:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()
        self._take(0.0)
        try:
            self.books.flush()
        except Exception as error:
            self.error = error


class Post:
    """A worker's way to the mailbox."""

    DELIVERY_SECONDS = 60.0
    """How long a checkpoint waits for messages on their way to the driver; training goes on without them then."""

    def __init__(self, mailbox: Any, attempt: int, rank: int) -> None:
        self.mailbox, self.attempt, self.rank = mailbox, attempt, rank
        self.seconds = 0.0
        """spent in `put` so far: all that reporting costs a step"""
        self._on_the_way: list[Any] = []
        self._number = 0
        self._lock = threading.Lock()

    def put(self, kind: Kind, content: Any) -> None:
        """Sends a message without waiting for anything."""
        began = time.perf_counter()
        with self._lock:  # the watch puts from its own thread
            number, self._number = self._number, self._number + 1
            message = Message(kind, content)
            self._on_the_way.append(self.mailbox.put.remote(self.attempt, self.rank, number, message))
        self.seconds += time.perf_counter() - began

    def deliver(self) -> None:
        """Waits until the driver has stored what was put: a checkpoint must not know more than the run's files.

        Raises:
            ray.exceptions.RayActorError: the mailbox is gone; the driver makes another for another worker group.
        """
        with self._lock:
            on_the_way, self._on_the_way = self._on_the_way, []
        if on_the_way:
            ray.get(on_the_way)
            with contextlib.suppress(ray.exceptions.GetTimeoutError):
                ray.get(self.mailbox.delivered.remote(), timeout=self.DELIVERY_SECONDS)

    def failed(self, error: Exception) -> None:
        """Says that this worker ends with an error after which another group may go on."""
        reason = str(error).strip().splitlines() or [""]
        text = f"worker {self.rank}: {type(error).__name__}: {reason[0][:300]}"
        ray.wait([self.mailbox.failed.remote(self.attempt, text)], timeout=5.0)

    def fatal(self, text: str, certain: bool = True) -> None:
        """Says why the training must end. `certain` is False where another worker may know better."""
        ray.get(self.mailbox.fatal.remote(text, certain))
