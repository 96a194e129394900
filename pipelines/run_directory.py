"""A training's run directory: what was run, its metrics, and the model at the end.

run.json        settings, data set and MLflow run; written first
initial.pt      with --weights: the model that training begins with
metrics.jsonl   one line a record, as training reported it
step-...        checkpoints, kept by Ray Train, with its checkpoint_manager_snapshot.json
.lock           held by the process that trains
.workers        held by its workers, which may outlive it by some seconds
model.pt        the finished model; its presence means that the training is complete
"""

from __future__ import annotations

import fcntl
import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from msrcnn.config import difference
from msrcnn.errors import InputError
from pipelines.manifest import written_aside

RUN = "run.json"
METRICS = "metrics.jsonl"
INITIAL = "initial.pt"
MODEL = "model.pt"
LOCK = ".lock"
WORKERS = ".workers"
ORPHAN_SECONDS = 120.0
"""How long workers may go on after the process that started them was killed; Ray ends them within seconds."""


@dataclass(frozen=True)
class RunRecord:
    """What a run directory says about itself."""

    settings: dict[str, Any]
    """model, solver and data, and the data set's name and fingerprint"""
    mlflow_run: str
    mlflow_address: str


def read_record(folder: Path) -> RunRecord | None:
    """The run's record, or None where there is none.

    Raises:
        InputError: the record is damaged.
    """
    path = folder / RUN
    if not path.is_file():
        return None
    try:
        return RunRecord(**json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError, RecursionError) as error:
        raise InputError(f"{path}: not a run's record ({error}); choose another --run") from None


def write_record(folder: Path, record: RunRecord) -> None:
    """Writes the record and makes the folder if it is absent."""
    folder.mkdir(parents=True, exist_ok=True)
    with written_aside(folder / RUN) as aside:
        aside.write_text(json.dumps(asdict(record), indent=1) + "\n", encoding="utf-8")


def check_same(folder: Path, record: RunRecord, settings: dict[str, Any]) -> None:
    """Refuses to go on in the directory of another run.

    Raises:
        InputError: naming the fields that differ, old and new.
    """
    if changed := difference(record.settings, settings):
        shown = "; ".join(changed[:4]) + ("; ..." if len(changed) > 4 else "")
        raise InputError(
            f"{folder}: holds a run with other settings ({shown}); choose another --run or the same settings"
        )


def drop_records_after(folder: Path, step: int) -> None:
    """Leaves in metrics.jsonl the records up to `step`: those after it belong to steps that are run again."""
    path = folder / METRICS
    if not path.is_file():
        return
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    with written_aside(path) as aside:
        aside.write_text("".join(line for line in lines if json.loads(line)["step"] <= step), encoding="utf-8")


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keeps other processes of this machine out of the run directory.

    Raises:
        InputError: another process is in it.
    """
    with (folder / LOCK).open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(f"{folder}: another process is training in it; wait or choose another --run") from None
        yield


@contextmanager
def working(folder: Path) -> Iterator[None]:
    """Marks this process as one of the run's workers for as long as the block, or the process, lasts."""
    with (folder / WORKERS).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_SH)
        yield


def wait_for_workers(folder: Path, log: Callable[[str], None], seconds: float = ORPHAN_SECONDS) -> None:
    """Returns once no worker of an earlier attempt, on this machine, still writes into the run directory.

    Raises:
        InputError: one is still there after `seconds`.
    """
    start, told = time.monotonic(), False
    with (folder / WORKERS).open("w") as lock:
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except BlockingIOError:
                if time.monotonic() - start > seconds:
                    raise InputError(f"{folder}: workers of an earlier attempt are still in it after {seconds:.0f} s; "
                                     "end them (`ray stop`) and try again") from None  # fmt: skip
            if not told:
                log(f"{folder}: waiting for the workers of an earlier attempt to end")
                told = True
            time.sleep(0.1)


def find_model(path: Path) -> tuple[Path, RunRecord | None]:
    """The model file that `path` (a run directory or a file) means, and its run's record if it has one.

    Raises:
        InputError: there is no model there.
    """
    if path.is_file():
        return path, read_record(path.parent)
    if (path / MODEL).is_file():
        return path / MODEL, read_record(path)
    if (path / RUN).is_file():
        raise InputError(f"{path}: the training in it is not finished (no {MODEL}); run its `msrcnn train` again")
    raise InputError(f"{path}: neither a run directory nor a model file; train one with `msrcnn train`")
