"""Evaluations beside a training, as its driver begins and ends them. Without Ray, networks and images."""

from __future__ import annotations

import threading
import time
from contextlib import nullcontext
from pathlib import Path

import pytest
from ray.exceptions import RayError

from msrcnn.config import DataConfig, SolverConfig
from msrcnn.errors import InputError
from pipelines import train, validation
from pipelines.checkpoint_list import checkpoint_name
from pipelines.detection_parts import Origin
from pipelines.job import Job
from pipelines.manifest import Manifest
from pipelines.options import TrainConfig
from pipelines.pool import NodeRoom, Pool
from pipelines.run_directory import MODEL, VALIDATION
from pipelines.schema import Category
from pipelines.validation import Validator, validating
from pipelines.worker_group import Bookkeeper
from tests.pipelines.test_checkpoint_list import make, put_on_list
from tests.training_runs import SMALL

STEPS = 4
MANIFEST = Manifest("shards", "val", (Category(1, 1, "disk"),), (), {}, {})


class Run:
    """A training of no real steps."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.config = TrainConfig("shards", folder, validation="val", workers="1", cpus=1.0)
        self.job = Job(SMALL, SolverConfig(), DataConfig(64, 64), ((1, 1, "disk"),), 8, 2, STEPS, 0, 1, False, 60.0,
                       str(folder), None)  # fmt: skip
        self.lines: list[str] = []
        self.books = Bookkeeper(self.job, lambda _: None, lambda _: None, self.lines.append)
        self.model = folder / VALIDATION / f"{checkpoint_name(STEPS)}.pt"

    def checkpoint(self) -> None:
        make(self.folder, STEPS)
        put_on_list(self.folder, STEPS)

    def validating(self):
        return validating(self.config, self.job, MANIFEST, self.books, self.lines.append)


@pytest.fixture
def run(tmp_path, monkeypatch) -> Run:
    monkeypatch.setattr(validation, "LOOK_SECONDS", 0.1)
    monkeypatch.setattr(validation, "origin_of", lambda *_: Origin("", "", {}))
    monkeypatch.setattr(Validator, "pool", lambda _: Pool(1, 1, 1, 0.5, 0.0))
    return Run(tmp_path)


def test_an_attempt_that_fails_leaves_no_evaluation_at_work(run, monkeypatch):
    """It would go on beside the next attempt's, or with another Ray. The next attempt does it instead."""
    at_work = threading.Event()

    def detect(_groups, _job, _pool, log):
        at_work.set()
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            log("5/8 images")
            time.sleep(0.01)
        pytest.fail("nobody stopped it")

    monkeypatch.setattr(validation, "detect", detect)
    run.checkpoint()
    with pytest.raises(RayError), run.validating():
        raise RayError("a node is gone" if at_work.wait(10) else "it has not begun")
    assert at_work.is_set()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("validation")]
    assert run.model.exists()
    assert run.lines == []  # neither a result nor a failure


@pytest.fixture
def evaluated(monkeypatch) -> list[str]:
    """The models that were evaluated."""
    done: list[str] = []

    def evaluate_one(self, name, _pool):
        assert (self.folder / f"{name}.pt").size()
        done.append(name)
        self._keep(name, {"step": STEPS})

    monkeypatch.setattr(Validator, "_evaluate_one", evaluate_one)
    return done


@pytest.mark.parametrize("failures", [0, 3, 100])
def test_the_last_checkpoint_is_not_forgotten(run, evaluated, monkeypatch, failures):
    """A storage does not answer just when the training has ended."""
    left = [failures]

    def committed(_):
        if run.model.parent.exists() and left[0] > 0:
            left[0] -= 1
            raise OSError("503: slow down")
        return [STEPS]

    make(run.folder, STEPS)
    with run.validating():
        monkeypatch.setattr(validation, "committed", committed)
    assert evaluated == ([checkpoint_name(STEPS)] if failures < 100 else [])
    warning = "warning: the last checkpoint is not evaluated: 503: slow down"
    assert (warning in run.lines) == (failures == 100)


@pytest.mark.parametrize("lost", [False, True])
def test_only_the_first_attempt_is_refused_for_want_of_room(run, monkeypatch, lost):
    """Later a cluster may lack the nodes that it will get again."""
    room = {"CPU": 8.0 if lost else 1.0}
    monkeypatch.setattr(validation, "node_rooms", lambda: [NodeRoom(room, room)])
    monkeypatch.setattr(validation, "fitting_workers", lambda _: 1)
    monkeypatch.setattr(train, "check_resources", lambda _: None)
    attempts = []

    def fit(*_):
        attempts.append(room["CPU"])
        if len(attempts) == 1:
            room["CPU"] = 1.0
            raise RayError("a node is gone")
        run.checkpoint()

    class Shown:
        log = run.lines.append

    monkeypatch.setattr(train, "fit", fit)
    monkeypatch.setattr(train, "connect", lambda _: nullcontext())
    monkeypatch.setattr(Validator, "_evaluate_one", lambda self, name, _: self._keep(name, {"step": STEPS}))
    if lost:
        train.run_workers(run.config, run.job, MANIFEST, MANIFEST, run.books, Shown())
        assert attempts == [8.0, 1.0]
        assert (run.folder / MODEL).exists()
    else:
        with pytest.raises(InputError, match="--validation: the workers reserve the cluster's CPUs"):
            train.run_workers(run.config, run.job, MANIFEST, MANIFEST, run.books, Shown())
        assert attempts == []
