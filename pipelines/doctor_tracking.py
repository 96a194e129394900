"""Whether MLflow answers where it is needed: a training talks to it from the driver, a sweep's trials from any node."""

from __future__ import annotations

import os
import sqlite3
from pathlib import Path
from urllib.parse import urlsplit

import requests

from cluster.probes import Probes, within
from msrcnn.errors import InputError
from pipelines.doctor_report import Report
from pipelines.mlflow_errors import reason
from pipelines.text_tables import counted
from pipelines.tracking import ENVIRONMENT, SQLITE, resolved, shown

SECONDS = 60.0
"""How long the driver waits; importing MLflow is part of it."""
NODE_SECONDS = 10.0
SERVER = "start an MLflow server that every node reaches and give it as --tracking http://HOST:PORT"


def check_tracking(report: Report, probes: Probes, given: str | None) -> None:
    """A server answers the driver in MLflow's own language, and the nodes at all; a file can be written."""
    try:
        address = resolved(given)
    except InputError as error:
        return report.refuse("tracking", str(error))
    if address.startswith(SQLITE):
        return _check_file(report, probes, Path(address.removeprefix(SQLITE)))
    try:
        within(SECONDS, _ask_server, address)
    except Exception as error:  # of the server, a database, or a driver of any kind
        why = str(error) if isinstance(error, TimeoutError) else reason(error)
        return report.fail("tracking", f"MLflow at {shown(address)}: {why}", "start the server, correct --tracking or "
                           "MLFLOW_TRACKING_URI, or give credentials (MLFLOW_TRACKING_USERNAME and _PASSWORD, or "
                           "_TOKEN)")  # fmt: skip
    if urlsplit(address).scheme not in ("http", "https"):
        return report.ok("tracking", f"MLflow at {shown(address)} answers the driver; the nodes were not asked")
    answers = probes.ask(any_answer, lambda _: (address,))
    report.unanswered("tracking", answers)
    failed = {node: found for node, found in answers.values.items() if found is not None}
    for node, problem in failed.items():
        report.warn("tracking", f"{node.name}: no answer from MLflow at {shown(address)} ({problem}); the driver has "
                    "one, which is enough for all but `msrcnn sweep`", "open the way from the node to the "
                    "server")  # fmt: skip
    if not failed and not answers.failures:
        report.ok("tracking", f"MLflow at {shown(address)} answers the driver and "
                  f"{counted(len(answers.values), 'node')}")  # fmt: skip
    return None


def any_answer(address: str) -> str | None:
    """Runs on a node: whether something speaks HTTP at the address; why not, or None."""
    try:
        requests.get(address, timeout=NODE_SECONDS, stream=True).close()
    except requests.RequestException as error:
        return reason(error)
    return None


def _ask_server(address: str) -> None:
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    from mlflow import MlflowClient

    MlflowClient(address).search_experiments(max_results=1)


def _check_file(report: Report, probes: Probes, database: Path) -> None:
    """A SQLite file can be written, and nobody but the driver's machine needs it."""
    if not os.access(database if database.exists() else database.parent, os.W_OK):
        return report.fail("tracking", f"{database}: cannot be written", "give another --tracking")
    if database.exists():
        try:
            with sqlite3.connect(f"file:{database}?mode=rw", uri=True, timeout=5) as connection:
                connection.execute("BEGIN IMMEDIATE")
                connection.rollback()
        except sqlite3.Error as error:
            return report.fail("tracking", f"{database}: {error}", "end the program that holds it, or give another "
                               "--tracking")  # fmt: skip
    if len(probes.nodes) > 1:
        return report.warn("tracking", f"{database} is a file on the driver's machine and goes with it; trials of "
                           "`msrcnn sweep` on other nodes would write files of their own", SERVER)  # fmt: skip
    return report.ok("tracking", f"{database}: a file of MLflow's on this machine")
