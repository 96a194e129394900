"""Whatever waits, together: batches for a function that many callers share.

Ray's `serve.batch` puts a batch together before the one ahead of it is through. Without a waiting time, every request
is then a batch of its own; with one, every request waits, also where nothing would join it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Generic, TypeVar

Item = TypeVar("Item")
Found = TypeVar("Found")


class Turns(Generic[Item, Found]):
    """Calls `work` in a thread of its own, one call at a time, with all that came meanwhile, at most `size` items.

    Nobody waits for a batch to fill: a single item is worked on at once if the thread is free.

    Args:
        work: gives as many results as it gets items, in their order.
        size: the most items of a call.
    """

    def __init__(self, work: Callable[[list[Item]], Sequence[Found]], size: int) -> None:
        self.size = size
        self._work = work
        self._waiting: asyncio.Queue[tuple[Item, asyncio.Future[Found]]] = asyncio.Queue()
        self._thread = ThreadPoolExecutor(1)
        self._running: asyncio.Task[None] | None = None

    async def __call__(self, item: Item) -> Found:
        """The result for one item.

        Raises:
            Exception: what `work` raised for the batch that the item was in.
        """
        if self._running is None:
            self._running = asyncio.create_task(self._run())
        result: asyncio.Future[Found] = asyncio.get_running_loop().create_future()
        self._waiting.put_nowait((item, result))
        return await result

    async def _run(self) -> None:
        while True:
            part = [await self._waiting.get()]
            while len(part) < self.size and not self._waiting.empty():
                part.append(self._waiting.get_nowait())
            part = [one for one in part if not one[1].done()]  # not those whose callers have gone
            if part:
                await self._answer(part)

    async def _answer(self, part: list[tuple[Item, asyncio.Future[Found]]]) -> None:
        try:
            loop = asyncio.get_running_loop()
            found = await loop.run_in_executor(self._thread, self._work, [item for item, _ in part])
            for (_, result), value in list(zip(part, found, strict=True)):  # as many, or nobody gets one
                if not result.done():
                    result.set_result(value)
        except Exception as error:
            for _, result in part:
                if not result.done():
                    result.set_exception(error)
