"""Whatever waits is worked on together: nobody waits for others, nobody gets another's result."""

from __future__ import annotations

import asyncio
import threading
import time

import pytest

from pipelines.turns import Turns


class Doubling:
    """Work that notes its batches, fails for a negative number, and waits for `free` where that is unset."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.free = threading.Event()
        self.free.set()
        self.threads: set[str] = set()

    def __call__(self, items: list[int]) -> list[int]:
        self.batches.append(items)
        self.threads.add(threading.current_thread().name)
        self.free.wait(30)
        if min(items) < 0:
            raise ValueError(f"{items} of less than nothing")
        return [2 * item for item in items]


def test_what_comes_while_it_works_is_the_next_batch():
    work = Doubling()

    async def ask() -> list[int]:
        turns = Turns(work, 8)
        work.free.clear()
        first = asyncio.create_task(turns(0))
        while not work.batches:
            await asyncio.sleep(0.001)
        rest = [asyncio.create_task(turns(number)) for number in range(1, 100)]
        await asyncio.sleep(0.01)
        work.free.set()
        return await asyncio.gather(first, *rest)

    assert asyncio.run(ask()) == [2 * number for number in range(100)]
    assert [len(batch) for batch in work.batches] == [1, *[8] * 12, 3]  # 1 alone, then 99 by eights
    assert [item for batch in work.batches for item in batch] == [*range(100)]  # who comes first is served first
    assert len(work.threads) == 1


def test_nobody_waits_for_others():
    work = Doubling()

    async def ask() -> float:
        turns = Turns(work, 8)
        await turns(0)
        began = time.monotonic()
        for number in range(20):
            assert await turns(number) == 2 * number
        return time.monotonic() - began

    assert asyncio.run(ask()) < 1  # 20 turns of microseconds
    assert {len(batch) for batch in work.batches} == {1}


def test_a_failure_is_that_of_its_batch():
    work = Doubling()

    async def ask() -> list[int | BaseException]:
        turns = Turns(work, 2)
        return await asyncio.gather(*(turns(number) for number in (1, 2, -3, 4, 5, 6)), return_exceptions=True)

    found = asyncio.run(ask())
    assert [f for f in found if isinstance(f, int)] == [2, 4, 10, 12]
    assert [str(f) for f in found if isinstance(f, ValueError)] == ["[-3, 4] of less than nothing"] * 2


def test_who_has_gone_is_left_out():
    work = Doubling()

    async def ask() -> int:
        turns = Turns(work, 8)
        work.free.clear()
        first = asyncio.create_task(turns(0))
        while not work.batches:
            await asyncio.sleep(0.001)
        gone = [asyncio.create_task(turns(number)) for number in range(1, 8)]
        last = asyncio.create_task(turns(8))
        await asyncio.sleep(0.01)
        for task in (first, *gone):  # one of them in the middle of its turn
            task.cancel()
        work.free.set()
        return await last

    assert asyncio.run(ask()) == 16
    assert work.batches == [[0], [8]]


def test_as_many_results_as_items():
    async def ask() -> None:
        await Turns(lambda _: [1, 2], 8)(0)

    with pytest.raises(ValueError, match="zip"):
        asyncio.run(ask())
