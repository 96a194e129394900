"""MLflow, from the driver: one run holds a training's settings, curves, model and evaluations."""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from msrcnn.errors import InputError

SQLITE = "sqlite:///"
DEFAULT_ADDRESS = f"{SQLITE}mlflow.db"
MAX_PARAM = 500
"""Longest parameter value that MLflow takes everywhere."""


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
        InputError: it names no file that can be a SQLite database.
    """
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


class Tracker:
    """One MLflow run, new or continued.

    Args:
        address: MLflow tracking address; MLFLOW_TRACKING_URI, else a SQLite file in this folder, if absent.
        experiment: created if there is none of that name.
        run_id: continue this run; a new one if absent.
        run_name: of a new run.

    Raises:
        InputError: the address cannot be used.
    """

    def __init__(self, address: str | None, experiment: str, run_id: str | None = None, run_name: str = "") -> None:
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        for name in ("mlflow", "alembic"):  # they report each table of a new database
            logging.getLogger(name).setLevel(logging.WARNING)
        from mlflow import MlflowClient

        self.address = absolute(address or os.environ.get("MLFLOW_TRACKING_URI") or DEFAULT_ADDRESS)
        try:
            self.client = MlflowClient(self.address)
            self.run_id = run_id or self._new_run(experiment, run_name)
            if run_id:
                self.client.update_run(run_id, status="RUNNING")
        except InputError:
            raise
        except Exception as error:  # a database, a server or a driver of any kind
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise InputError(f"MLflow at {self.address}: {reason}; give another --tracking") from None

    def _new_run(self, experiment: str, run_name: str) -> str:
        found = self.client.get_experiment_by_name(experiment)
        if found is None:
            location = None
            if self.address.startswith(SQLITE):  # artifacts beside the database, not wherever we are
                location = (Path(self.address.removeprefix(SQLITE)).parent / "mlartifacts").as_uri()
            experiment_id = self.client.create_experiment(experiment, artifact_location=location)
        else:
            experiment_id = found.experiment_id
        return self.client.create_run(experiment_id, run_name=run_name or None).info.run_id

    def params(self, values: Mapping[str, Any]) -> None:
        """Settings, nested dicts with dotted names."""
        from mlflow.entities import Param

        items = [Param(key, str(value)[:MAX_PARAM]) for key, value in flatten(values).items()]
        for start in range(0, len(items), 100):  # MLflow's limit a call
            self.client.log_batch(self.run_id, params=items[start : start + 100])

    def metrics(self, values: Mapping[str, float], step: int = 0) -> None:
        """Numbers at a step; those that are not finite are left out."""
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        finite = [(k, float(v)) for k, v in values.items() if abs(float(v)) < float("inf")]
        self.client.log_batch(self.run_id, metrics=[Metric(k, v, now, step) for k, v in finite])

    def artifact(self, path: Path, folder: str | None = None) -> None:
        """A file, kept with the run."""
        self.client.log_artifact(self.run_id, str(path), folder)

    def close(self, status: str = "FINISHED") -> None:
        """Ends the run: FINISHED, FAILED or KILLED. A server that is gone must not hide why the run ends."""
        with contextlib.suppress(Exception):
            self.client.set_terminated(self.run_id, status)
