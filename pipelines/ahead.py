"""Work that is begun before its result is needed."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def ahead(pool: Executor, work: Callable[[Item], Result], items: Iterable[Item], most: int) -> Iterator[Result]:
    """`map(work, items)`, in order, of which at most `most` are begun or wait to be taken."""
    begun: deque[Future[Result]] = deque()
    for item in items:
        begun.append(pool.submit(work, item))
        if len(begun) >= most:
            yield begun.popleft().result()
    while begun:
        yield begun.popleft().result()


class Behind:
    """Work that is left to other threads; only so much of it waits.

    Args:
        pool: does it.
        most: pieces that wait, or are being done.
    """

    def __init__(self, pool: Executor, most: int) -> None:
        self._pool, self._most = pool, most
        self._begun: deque[Future[None]] = deque()

    def do(self, work: Callable[[], None]) -> None:
        """Begins a piece; waits for the oldest one where too many wait. Raises what that one raised."""
        self._begun.append(self._pool.submit(work))
        while len(self._begun) >= self._most:
            self._begun.popleft().result()

    def finish(self) -> None:
        """Returns when everything is done. Raises what a piece raised."""
        while self._begun:
            self._begun.popleft().result()
