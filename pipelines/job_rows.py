"""The rows of a Ray Data job as its tasks end, with the user's errors as one line."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NoReturn

import ray.data
from ray.exceptions import RayError, RayTaskError

from msrcnn.errors import InputError


def job_rows(job: ray.data.Dataset) -> Iterator[dict[str, Any]]:
    """Runs a job whose tasks store their work and return a small row each.

    Raises:
        InputError: a task raised one, or its process died more often than Ray tries again.
    """
    job.context.raise_original_map_exception = True
    try:
        yield from job.iter_rows()
    except RayError as error:
        raise_plainly(error)


def raise_plainly(error: RayError) -> NoReturn:
    """Raises an error of Ray as what it is for the user: the InputError in it, a lost task, else itself.

    Raises:
        InputError: see above.
    """
    cause: BaseException | None = error
    while isinstance(cause, RayTaskError):  # a task whose arguments failed wraps their error
        cause = cause.cause
    if isinstance(cause, InputError):
        line, *_ = str(cause).split("\n")  # Ray Data appends advice
        raise InputError(line) from error
    if isinstance(error, RayTaskError):
        raise error
    # its process or its node died, more often than Ray tries again
    reason = str(error).strip().split("\n")[0]
    raise InputError(
        f"a task was lost again and again ({type(error).__name__}: {reason}); give the same command again to go on "
        "where it stopped"
    ) from error
