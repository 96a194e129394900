"""What a job does about errors of its tasks: another try where that may help, else one line."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import ray.data

from msrcnn.errors import InputError
from pipelines.job_rows import RETRIES, job_rows
from pipelines.storage import StorageError

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_session")]


def counted(file: Path) -> int:
    """How often it was called, this time included."""
    with file.open("a") as stream:
        stream.write("x")
    return file.stat().st_size


def job_of(task: Any, **options: Any) -> ray.data.Dataset:
    plan = ray.data.from_arrow(pa.table({"number": [7]}))
    return plan.map_batches(task, batch_size=None, batch_format="pyarrow", **options)


@pytest.mark.parametrize(
    "error", [StorageError("s3://bucket/a: cannot be written (slow)"), OSError("AWS Error SLOW_DOWN during GetObject")]
)
def test_a_storage_that_fails_once_costs_nothing(tmp_path, error):
    def task(rows: pa.Table) -> pa.Table:
        if counted(tmp_path / "calls") == 1:
            raise error
        return rows

    assert list(job_rows(job_of(task))) == [{"number": 7}]
    assert (tmp_path / "calls").stat().st_size == 2


@pytest.mark.parametrize(
    ("error", "calls", "says"),
    [
        (InputError("a.png: no image; replace it"), 1, "a.png: no image; replace it"),
        (PermissionError(13, "Permission denied", "/a"), 1, "Permission denied; give the same command again to go on"),
        pytest.param(StorageError("/a: cannot be written"), 1 + RETRIES, "/a: cannot be written",
                     marks=pytest.mark.slow),
    ],
)  # fmt: skip
def test_an_error_that_stays_is_a_line(tmp_path, error, calls, says):
    def task(_: pa.Table) -> pa.Table:
        counted(tmp_path / "calls")
        raise error

    with pytest.raises(InputError, match=f"^{re.escape(says)}") as raised:
        list(job_rows(job_of(task)))
    assert "\n" not in str(raised.value)
    assert (tmp_path / "calls").stat().st_size == calls


class Process:
    """Cannot read its model the first `fails` times."""

    def __init__(self, calls: Path, fails: int) -> None:
        if counted(calls) <= fails:
            raise InputError("model.pt: cannot be read")

    def __call__(self, rows: pa.Table) -> pa.Table:
        return rows


@pytest.mark.parametrize("fails", [1, 1000])
def test_a_process_that_cannot_start(tmp_path, fails):
    arguments = {"calls": tmp_path / "calls", "fails": fails}
    rows = job_rows(job_of(Process, fn_constructor_kwargs=arguments, compute=ray.data.ActorPoolStrategy(size=1)))
    if fails == 1:
        assert list(rows) == [{"number": 7}]
    else:
        with pytest.raises(InputError, match=r"^(a process could not start: )?model\.pt: cannot be read$"):
            list(rows)
