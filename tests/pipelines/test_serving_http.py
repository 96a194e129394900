"""Bodies that are too large, too slow or endless hold no replica; those that are whole are read."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Iterable

import pytest
from starlette.requests import Request

from pipelines.serving_http import DRAINED, Refused, body_of

MOST = 1000
PIECE = 100


class Sent:
    """A request that sends pieces, and then, if they do not end the body, nothing any more."""

    def __init__(self, pieces: Iterable[bytes], size: int | None = None) -> None:
        self.pieces, self.taken = iter(pieces), 0
        headers = [] if size is None else [(b"content-length", str(size).encode())]
        self.request = Request({"type": "http", "method": "POST", "path": "/", "headers": headers}, self.receive)

    async def receive(self) -> dict[str, object]:
        piece = next(self.pieces, None)
        if piece is None:
            await asyncio.sleep(60)
        self.taken += 1
        return {"type": "http.request", "body": piece, "more_body": piece != b""}

    def body(self, seconds: float = 60) -> bytes:
        return asyncio.run(body_of(self.request, MOST, seconds))


@pytest.mark.parametrize("size", [None, MOST])
def test_a_body_is_read_to_its_end(size):
    sent = [bytes([i]) * PIECE for i in range(MOST // PIECE)]
    assert Sent([*sent, b""], size).body() == b"".join(sent)


def test_what_states_to_be_too_large_is_not_read():
    sent = Sent([], MOST + 1)
    with pytest.raises(Refused, match=f"the image: {MOST + 1} bytes, at most {MOST} are taken") as caught:
        sent.body()
    assert (caught.value.status, sent.taken) == (413, 0)


def test_an_endless_body_is_left():
    sent = Sent(itertools.repeat(bytes(PIECE)))
    with pytest.raises(Refused, match=f"or more bytes, at most {MOST} are taken") as caught:
        sent.body()
    assert (caught.value.status, sent.taken) == (413, DRAINED * MOST // PIECE + 1)


def test_a_body_that_does_not_come_is_left():
    with pytest.raises(Refused, match=r"the image: 100 bytes in 0.1 s and not at its end") as caught:
        Sent([bytes(PIECE)], MOST).body(seconds=0.1)
    assert caught.value.status == 408
