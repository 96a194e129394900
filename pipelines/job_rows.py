"""The rows of a Ray Data job as its tasks end, with the user's errors as one line."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, NoReturn

import ray.data
from ray.data.context import DEFAULT_RETRIED_IO_ERRORS
from ray.exceptions import ActorDiedError, RayError, RayTaskError

from msrcnn.errors import InputError
from pipelines.storage import StorageError, explained

RETRIED = [StorageError.__name__, *DEFAULT_RETRIED_IO_ERRORS]
"""What in a task's error says that another try may succeed. A process that is lost Ray replaces anyway."""
NAME = re.compile(r"^([\w.]+): ")
"""Of an exception's class, where a traceback ends."""
RETRIES = 3
"""After some seconds each. In hours of hundreds of processes a storage now and then does not answer one of them."""


def job_rows(job: ray.data.Dataset) -> Iterator[dict[str, Any]]:
    """Runs a job whose tasks store their work and return a small row each.

    Raises:
        InputError: a task raised one, or its process died more often than Ray tries again.
    """
    job.context.raise_original_map_exception = True
    job.context.retried_map_errors = RETRIED
    job.context.max_map_retries = RETRIES
    job.context.actor_init_retry_on_errors = True  # it reads the model
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
    if isinstance(cause, OSError):
        raise InputError(f"{explained(cause)}; give the same command again to go on where it stopped") from error
    if isinstance(error, RayTaskError):
        raise error
    if isinstance(error, ActorDiedError) and error.actor_init_failed:  # its constructor's traceback
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        named = [NAME.sub("", line) for line in lines if NAME.match(line)]  # CUDA's errors go on with advice
        raise InputError(f"a process could not start: {(named or lines)[-1]}") from error
    # its process or its node died, more often than Ray tries again
    reason = str(error).strip().split("\n")[0]
    raise InputError(
        f"a task was lost again and again ({type(error).__name__}: {reason}); give the same command again to go on "
        "where it stopped"
    ) from error
