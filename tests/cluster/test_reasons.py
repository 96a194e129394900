"""The innermost reason of an error, however it was wrapped."""

from __future__ import annotations

import pytest
from ray.exceptions import RayTaskError

from cluster.reasons import LONGEST, reason
from msrcnn.errors import InputError

LINE = "a.png: cannot be read (No such file or directory); give another"


def raised(error: Exception, cause: BaseException | None = None) -> Exception:
    error.__cause__ = cause
    return error


def of_a_task(cause: Exception) -> RayTaskError:
    """As `ray.get` raises it: also an instance of what the task raised."""
    return RayTaskError("f", f"Traceback (most recent call last):\n  ...\n{cause!r}", cause).as_instanceof_cause()


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (ValueError("first\n  last \n"), "last"),
        (KeyError(), "KeyError"),
        (OSError("s3://me:secret@bucket/a: slow down"), "s3://bucket/a: slow down"),
        (ValueError("x" * 1000), "x" * LONGEST),
        (raised(RuntimeError("the run"), raised(OSError("the task"), ValueError("the reason"))), "the reason"),
        (of_a_task(ValueError("the reason")), "the reason"),
        (of_a_task(of_a_task(ValueError("the reason"))), "the reason"),  # a task whose arguments failed
        (raised(RuntimeError("the run"), of_a_task(ValueError("the reason"))), "the reason"),
        (of_a_task(raised(InputError(f"{LINE}\nAdvice of Ray Data's."), OSError("[Errno 2]"))), LINE),
    ],
)  # fmt: skip
def test_reason(error: Exception, said: str) -> None:
    assert reason(error) == said
