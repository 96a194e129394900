"""What a failed call to MLflow means: would the same call succeed later, and what to say of it in one line."""

from __future__ import annotations

import re
from collections.abc import Iterator
from http import HTTPStatus

from requests import exceptions

TRY_LATER = {HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_EARLY, HTTPStatus.TOO_MANY_REQUESTS}
"""Answers below 500 that are not the last word."""
STORES = {"azure", "boto3", "botocore", "google", "s3transfer", "sqlalchemy", "urllib3"}
"""Libraries behind MLflow's stores; what they raise is mostly the network's or the storage's trouble."""
LASTING = (FileNotFoundError, FileExistsError, IsADirectoryError, NotADirectoryError, PermissionError)
LONGEST = 200
"""Characters of a reason."""


def _chain(error: BaseException) -> Iterator[BaseException]:
    """The error and what led to it, outermost first: MLflow, requests and urllib3 each wrap what went wrong anew."""
    seen: set[int] = set()
    links: list[object] = [error]
    while links:
        link = links.pop()
        if isinstance(link, BaseException) and id(link) not in seen:
            yield link
            seen.add(id(link))
            links += [*link.args, getattr(link, "reason", None), link.__context__, link.__cause__]


def _status(link: BaseException) -> int | None:
    """The HTTP status that a link of the chain tells of, if it does."""
    if isinstance(link, exceptions.HTTPError) and link.response is not None:
        return link.response.status_code
    # After retries, and where the answer is no JSON (a proxy's, say), the status is in the text alone.
    found = re.search(r"(?:too many|failed with error code) (\d{3}) ", str(link))
    return int(found[1]) if found else None


def _passes(status: int) -> bool:
    return status in TRY_LATER or (status >= 500 and status != HTTPStatus.NOT_IMPLEMENTED)


def may_pass(error: Exception) -> bool:
    """Whether the same call may succeed later: nobody answered, or what answered was in trouble or busy."""
    from mlflow.exceptions import MlflowException

    unanswered = (exceptions.ConnectionError, exceptions.Timeout, exceptions.ChunkedEncodingError,
                  ConnectionError, TimeoutError)  # fmt: skip
    for link in _chain(error):
        if (status := _status(link)) is not None:
            return _passes(status)
        if isinstance(link, unanswered):
            return True
        if isinstance(link, exceptions.RequestException):  # an address that is none
            return False
    if isinstance(error, MlflowException):
        return _passes(error.get_http_status_code())
    if isinstance(error, LASTING):
        return False
    # A full or unreachable disk, an object store that fails: it can get better.
    return isinstance(error, OSError) or type(error).__module__.partition(".")[0] in STORES


def reason(error: BaseException) -> str:
    """Why a call failed, in part of a line."""
    links = list(_chain(error))
    for link in reversed(links):
        if isinstance(link, OSError) and link.strerror:
            return f"{link.filename}: {link.strerror}" if link.filename else link.strerror
    for link in links:
        if isinstance(link, exceptions.Timeout):
            return "no answer in time"
        if (status := _status(link)) is not None:
            return f"{status} {HTTPStatus(status).phrase}" if status in set(HTTPStatus) else str(status)
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0][:LONGEST]
