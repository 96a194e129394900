"""Why something that Ray ran has failed, in part of a line."""

from __future__ import annotations

from ray.exceptions import RayTaskError

from cluster.credentials import without_password
from msrcnn.errors import InputError

LONGEST = 300
"""Letters of a reason."""


def reason(error: BaseException) -> str:
    """What the innermost error says, of those that Ray and others have wrapped it in; its kind where it says nothing.

    An `InputError` says more than what led to it. Of anything else the last line counts: a traceback's end. Names and
    passwords in URLs are left out.
    """
    while isinstance(error, RayTaskError) or not isinstance(error, InputError):  # some are both
        inner = getattr(error, "cause", None) or error.__cause__
        if not isinstance(inner, BaseException):
            break
        error = inner
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return without_password(lines[0 if isinstance(error, InputError) else -1])[:LONGEST]
