"""What the states of metrics have in common that travel between processes as bytes."""

from __future__ import annotations

import zlib

from msrcnn.errors import InputError


def unpacked(data: bytes, magic: bytes, of: type) -> bytes:
    """A compressed state, as it was before.

    Args:
        data: that `to_bytes` gave.
        magic: its first bytes once unpacked: kind and version.
        of: the class of the state, for messages.

    Raises:
        InputError: the bytes are something else.
    """
    try:
        raw = zlib.decompress(data)
    except zlib.error as error:
        raise InputError(f"not the state of a {of.__name__} ({error}); score the partition again") from error
    if raw[: len(magic)] != magic:
        raise InputError(f"not the state of a {of.__name__} of this version; score the partition again")
    return raw
