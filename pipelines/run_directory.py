"""A training's run directory: what was run, its metrics, and the model at the end. A local path or a URL.

run.json        settings, data set and MLflow run; written first
initial.pt      with --weights or --from-checkpoint: the model that training begins with
metrics.jsonl   one line a record, as training reported it
images/         which images each step had, a file an epoch (`pipelines.lineage`)
step-...        checkpoints (`pipelines.checkpoints`), with Ray Train's list of them
validation/     with --validation: an evaluation's numbers a checkpoint (`pipelines.validation`)
best.pt         with --validation: the model with the highest mask AP so far
.workers        held by the run's workers, which may outlive the process that trains by some seconds
model.pt        the finished model; its presence means that the training is complete

A second process that trains is kept out of a local run directory. Behind a URL, or on a file system without locks,
whoever starts the same run twice at a time damages it.
"""

from __future__ import annotations

import fcntl
import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

from msrcnn import MODEL
from msrcnn.config import DataConfig, ModelConfig, SolverConfig, difference, with_defaults
from msrcnn.errors import InputError
from pipelines.file_locks import lock
from pipelines.storage import Location, Place, locate

RUN = "run.json"
METRICS = "metrics.jsonl"
INITIAL = "initial.pt"
IMAGES = "images"
BEST = "best.pt"
TRACKED = ".tracked"
"""Says that MLflow has everything of a finished run."""
VALIDATION = "validation"
VALIDATION_AP = "validation/mask_by_mask/AP"
"""A validation's mask AP by mask score, in its numbers and in the metrics: what makes a model the best."""
WORKERS = ".workers"
CONFIGS = {"model": ModelConfig, "solver": SolverConfig, "data": DataConfig}
"""The configurations among a run's settings."""
ORPHAN_SECONDS = 120.0
"""How long workers may go on after the process that started them was killed; Ray ends them within seconds."""


@dataclass(frozen=True)
class RunRecord:
    """What a run directory says about itself."""

    settings: dict[str, Any]
    """model, solver and data, and the data set's name and fingerprint"""
    mlflow_run: str
    mlflow_address: str
    made: dict[str, str] = field(default_factory=dict)
    """by which program, command and machine it was begun (`pipelines.provenance.made`)"""


def read_record(folder: Location) -> RunRecord | None:
    """The run's record, or None where there is none.

    Raises:
        InputError: the record is damaged.
    """
    path = folder / RUN
    if path.size() is None:
        return None
    try:
        return RunRecord(**json.loads(path.read()))
    except (ValueError, TypeError, RecursionError) as error:
        raise InputError(f"{path}: not a run's record ({error}); choose another --run") from None


def write_record(folder: Location, record: RunRecord) -> None:
    """Writes the record and makes the folder if it is absent."""
    folder.make_folder()
    (folder / RUN).write_json(asdict(record))


def check_same(folder: Location, record: RunRecord, settings: dict[str, Any], option: str = "--run") -> None:
    """Refuses to go on in the directory of another run. A field that did not exist when it was begun had its default.

    Args:
        option: by which the user chose the directory.

    Raises:
        InputError: naming the fields that differ, old and new.
    """
    held = {**record.settings}
    for name in CONFIGS.keys() & held.keys():
        held[name] = with_defaults(CONFIGS[name], held[name])
    if changed := difference(held, settings):
        shown = "; ".join(changed[:4]) + ("; ..." if len(changed) > 4 else "")
        raise InputError(
            f"{folder}: holds a run with other settings ({shown}); choose another {option} or the same settings"
        )


@contextmanager
def working(folder: Location) -> Iterator[None]:
    """Marks this process as one of the run's workers for as long as the block, or the process, lasts."""
    if folder.local is None:
        yield
        return
    with (folder.local / WORKERS).open("a+") as file:
        lock(file.fileno(), fcntl.LOCK_SH)
        yield


def wait_for_workers(folder: Location, log: Callable[[str], None], seconds: float = ORPHAN_SECONDS) -> None:
    """Returns once no worker of an earlier attempt still writes into the run directory, as far as locks tell: of this
    machine; on NFS of all.

    Raises:
        InputError: one is still there after `seconds`.
    """
    if folder.local is None:
        return
    start, told = time.monotonic(), False
    with (folder.local / WORKERS).open("a+") as file:
        while True:
            try:
                lock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except BlockingIOError:
                if time.monotonic() - start > seconds:
                    # On NFS those of another machine too: the lock of one that died stays until it is back.
                    raise InputError(f"{folder}: workers of an earlier attempt are still in it after {seconds:.0f} s; "
                                     "end them (`ray stop`) and try again; if their machine is gone for good, delete "
                                     f"{WORKERS} in it") from None  # fmt: skip
            if not told:
                log(f"{folder}: waiting for the workers of an earlier attempt to end")
                told = True
            time.sleep(0.1)


def find_model(place: Place) -> tuple[Location, RunRecord | None]:
    """The model file that `place` (a run directory or a file) means, and its run's record if it has one.

    Raises:
        InputError: there is no model there.
    """
    place = locate(place)
    if place.size() is not None:
        return place, read_record(place.parent)
    if (place / MODEL).size() is not None:
        return place / MODEL, read_record(place)
    if (place / RUN).size() is not None:
        raise InputError(f"{place}: the training in it is not finished (no {MODEL}); run its `msrcnn train` again")
    raise InputError(f"{place}: neither a run directory nor a model file; train one with `msrcnn train`")
