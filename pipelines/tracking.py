"""MLflow, from the driver: one run holds a training's settings, curves, model and evaluations."""

from __future__ import annotations

import contextlib
import logging
import math
import os
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from msrcnn.errors import InputError
from pipelines.job_environment import submitted
from pipelines.mlflow_errors import reason
from pipelines.provenance import provenance

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

SQLITE = "sqlite:///"
DEFAULT_ADDRESS = f"{SQLITE}mlflow.db"
MAX_PARAM = 500
"""Longest parameter value that MLflow takes everywhere."""
MAX_METRICS, MAX_SETTINGS = 1000, 100
"""Most metrics, and most parameters or tags, that MLflow takes in a call."""
COMMIT_TAG = "mlflow.source.git.commit"
"""Where MLflow's own pages look for the commit."""
PARENT_TAG = "mlflow.parentRunId"
"""By which MLflow's pages show a run under another."""
EVALUATION_TAG = "evaluation"
"""Which model's numbers on which data set a run has."""
ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
    "MLFLOW_HTTP_RESPECT_RETRY_AFTER_HEADER": "false",
    "MLFLOW_UV_AUTO_DETECT": "false",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}
"""MLflow's settings where the user has none. By its own, one call to a server that hangs would last a quarter of an
hour; and a model would get the `pyproject.toml` of whatever folder we are in."""
QUIET = {
    "mlflow": logging.WARNING,  # both report each table of a new database
    "alembic": logging.WARNING,
    "mlflow.store.db.utils": logging.CRITICAL,  # what these two warn of is raised as well
    "urllib3.connectionpool": logging.ERROR,
}


@dataclass(frozen=True, slots=True)
class Point:
    """One value of a curve."""

    key: str
    value: float
    timestamp: int  # milliseconds since 1970
    step: int


def status_of(error: BaseException) -> str:
    """What MLflow calls a run that ends with an error: Ctrl-C is no failure."""
    return "KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED"


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dicts as one with dotted names."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        name = f"{prefix}{key}"
        flat |= flatten(value, f"{name}.") if isinstance(value, Mapping) else {name: value}
    return flat


def absolute(address: str) -> str:
    """The address, valid in every folder: a SQLite file's path is made absolute and its folder made.

    Raises:
        InputError: it names no file that can be a SQLite database, or has a password for a server: an address is
            written into the records of runs.
    """
    if address.startswith(("http://", "https://")) and "@" in urlsplit(address).netloc:
        raise InputError("MLflow: the address has a user's name or password in it; put them "
                         "into MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD instead")  # fmt: skip
    if not address.startswith("sqlite:"):
        return address
    name = address.removeprefix(SQLITE)
    database = Path(os.path.abspath(name))  # without '..': run directories are recognised by their address
    if name == address or not name or database.is_dir():
        raise InputError(f"MLflow at {address}: not a SQLite file; give --tracking {SQLITE}PATH/mlflow.db")
    try:
        database.parent.mkdir(parents=True, exist_ok=True)
        head = database.read_bytes()[:16] if database.exists() else b""
    except OSError as error:
        raise InputError(f"MLflow at {address}: {error.strerror}; give another --tracking") from None
    if head and head != b"SQLite format 3\0":
        raise InputError(f"MLflow at {address}: the file is no SQLite database; give another --tracking")
    return f"{SQLITE}{database}"


def here(address: str) -> bool:
    """Whether a run's MLflow can be reached from this machine: a server, or a SQLite file that there is."""
    return not address.startswith(SQLITE) or Path(address.removeprefix(SQLITE)).exists()


def resolved(address: str | None) -> str:
    """The address that is meant: as given, MLFLOW_TRACKING_URI, or a SQLite file in this folder; valid in every folder.

    Raises:
        InputError: it cannot be used, or a submitted job has none: that file would go with the job.
    """
    address = address or os.environ.get("MLFLOW_TRACKING_URI")
    if address is None and submitted():
        raise InputError("MLflow: no address; give --tracking, `msrcnn submit --env MLFLOW_TRACKING_URI=...`, or set "
                         "it in the environment of the cluster's nodes")  # fmt: skip
    return absolute(address or DEFAULT_ADDRESS)


def shown(address: str) -> str:
    """The address as messages show it: without a password."""
    return re.sub(r"//([^:/@]*):[^/]*@", r"//\1:***@", address)


class Tracker:
    """One MLflow run, new or continued.

    A continued run needs no server to begin with: what is sent reaches it or raises, call by call.

    Args:
        address: MLflow tracking address; MLFLOW_TRACKING_URI, else a SQLite file in this folder, if absent.
        experiment: of a new run; created if there is none of that name. A run under another is in that one's.
        run_id: continue this run; a new one if absent.
        run_name: of a new run.
        parent: run under which a new one is shown, as a trial under its sweep.

    Raises:
        InputError: the address cannot be used; that a server answers there is asked of new runs only.
    """

    def __init__(
        self, address: str | None, experiment: str, run_id: str | None = None, run_name: str = "",
        parent: str | None = None,
    ) -> None:  # fmt: skip
        for name, value in ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        for name, level in QUIET.items():
            logging.getLogger(name).setLevel(level)
        self.address = resolved(address)
        self.ours = run_id is None
        if run_id:
            self.run_id = run_id
            return
        try:
            self.run_id = self._new_run(experiment, run_name, parent)
        except InputError:
            raise
        except Exception as error:  # a database, a server or a driver of any kind
            raise InputError(f"MLflow at {self.shown}: {reason(error)}; give another --tracking") from None

    @property
    def shown(self) -> str:
        """The address as messages show it: without a password."""
        return shown(self.address)

    @cached_property
    def client(self) -> MlflowClient:
        """MLflow's client; made on first use, because a database must answer for one."""
        from mlflow import MlflowClient

        return MlflowClient(self.address)

    def _new_run(self, experiment: str, run_name: str, parent: str | None) -> str:
        found = None if parent else self.client.get_experiment_by_name(experiment)
        if parent is not None:
            experiment_id = self.client.get_run(parent).info.experiment_id
        elif found is None:
            location = None
            if self.address.startswith(SQLITE):  # artifacts beside the database, not wherever we are
                location = (Path(self.address.removeprefix(SQLITE)).parent / "mlartifacts").as_uri()
            experiment_id = self.client.create_experiment(experiment, artifact_location=location)
        else:
            experiment_id = found.experiment_id
        tags = provenance()
        if "git_commit" in tags:
            tags[COMMIT_TAG] = tags["git_commit"].removesuffix("-dirty")
        if parent is not None:
            tags[PARENT_TAG] = parent
        return self.client.create_run(experiment_id, run_name=run_name or None, tags=tags).info.run_id

    def params(self, values: Mapping[str, Any]) -> None:
        """Settings, nested dicts with dotted names."""
        from mlflow.entities import Param

        items = [Param(key, str(value)[:MAX_PARAM]) for key, value in flatten(values).items()]
        for start in range(0, len(items), MAX_SETTINGS):
            self.client.log_batch(self.run_id, params=items[start : start + MAX_SETTINGS])

    def tags(self, values: Mapping[str, Any]) -> None:
        """What may change in the life of a run; a tag that is there already is replaced."""
        from mlflow.entities import RunTag

        items = [RunTag(key, str(value)) for key, value in values.items()]
        for start in range(0, len(items), MAX_SETTINGS):
            self.client.log_batch(self.run_id, tags=items[start : start + MAX_SETTINGS])

    def metrics(self, values: Mapping[str, float]) -> None:
        """What comes of a run in numbers; those that are not finite are left out."""
        now = int(time.time() * 1000)
        self.points([Point(k, float(v), now, 0) for k, v in values.items() if math.isfinite(v)])

    def points(self, points: Sequence[Point]) -> None:
        """Values of curves; one that the run has already, to the millisecond, is not stored twice."""
        from mlflow.entities import Metric

        items = [Metric(p.key, p.value, p.timestamp, p.step) for p in points]
        for start in range(0, len(items), MAX_METRICS):
            self.client.log_batch(self.run_id, metrics=items[start : start + MAX_METRICS])

    def artifact(self, path: Path, folder: str | None = None) -> None:
        """A file, kept with the run."""
        self.client.log_artifact(self.run_id, str(path), folder)

    def of_evaluation(self, evaluation: str, run_name: str) -> Tracker:
        """The run for an evaluation's numbers: this one, or one under it if this has those of another.

        Args:
            evaluation: which model on which data set.
            run_name: of a new run.
        """
        tracker, held = self, self.client.get_run(self.run_id).data.tags.get(EVALUATION_TAG)
        if held not in (None, evaluation):
            known = [run.info.run_id for run in self._under() if run.data.tags.get(EVALUATION_TAG) == evaluation]
            tracker = Tracker(self.address, "", next(iter(known), None), run_name, self.run_id)
            tracker.ours = True  # also one that an earlier command left open
        tracker.tags({EVALUATION_TAG: evaluation})
        return tracker

    def children(self, status: str) -> list[str]:
        """Ids of the runs shown under this one that have a status."""
        return [run.info.run_id for run in self._under(f" and attributes.status = '{status}'")]

    def _under(self, wanted: str = "") -> Sequence[Run]:
        experiment = self.client.get_run(self.run_id).info.experiment_id
        return self.client.search_runs([experiment], f"tags.`{PARENT_TAG}` = '{self.run_id}'{wanted}")

    def reopen(self) -> None:
        """Says that a continued run goes on; it is ours to end from then on."""
        self.client.update_run(self.run_id, status="RUNNING")
        self.ours = True

    def end(self, status: str = "FINISHED") -> None:
        """Says that the run has ended: FINISHED, FAILED or KILLED. When is not changed if that is known already."""
        if self.client.get_run(self.run_id).info.status != status:
            self.client.set_terminated(self.run_id, status)

    def close(self, status: str = "FINISHED") -> None:
        """`end` of a run that is ours, if it can be said: a server that is gone must not hide why the run ends.

        One that others began, as an evaluated training, ends when they say so.
        """
        if self.ours:
            with contextlib.suppress(Exception):
                self.end(status)
