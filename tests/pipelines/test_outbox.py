"""The outbox against a real MLflow server that is killed, hangs, is started again, refuses, or cannot store files."""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from pipelines.outbox import Outbox
from pipelines.tracking import Tracker
from tests.mlflow_server import Server

KEYS = ("loss/total", "loss/mask", "lr")
BEGAN = 1_700_000_000.123


@pytest.fixture(scope="module")
def one_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server(tmp_path_factory.mktemp("server")).start()
    yield server
    server.kill()


@pytest.fixture
def server(one_server: Server) -> Server:
    """The module's server, running."""
    return one_server if one_server.process is not None else one_server.start()


def record_of(step: int) -> dict[str, Any]:
    """A line of metrics.jsonl, with what is no metric in it."""
    values = {key: step / 3 + place for place, key in enumerate(KEYS)}
    return {"step": step, "time": BEGAN + step / 7, **values, "grad": float("nan"), "host": "a", "last": True}


def stored(tracker: Tracker) -> dict[str, list[tuple[int, int, float]]]:
    """Every value that the server has of the run, by key."""
    client = MlflowClient(tracker.address)
    found = client.get_run(tracker.run_id).data.metrics
    return {key: [(m.step, m.timestamp, m.value) for m in client.get_metric_history(tracker.run_id, key)]
            for key in found}  # fmt: skip


def expected(steps: range) -> dict[str, list[tuple[int, int, float]]]:
    return {
        key: [(step, int((BEGAN + step / 7) * 1000), record_of(step)[key]) for step in steps] for key in KEYS
    }  # fmt: skip


def wait_until(condition: Any, seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.slow
def test_everything_arrives_once_though_the_server_is_killed_and_started_again(server, tmp_path):
    tracker = Tracker(server.address, "study")
    (tmp_path / "note.txt").write_text("kept")
    lines: list[str] = []
    outbox = Outbox(tracker, lines.append).start()
    for step in range(100):
        outbox.record(record_of(step))
        if step == 50:
            server.kill()  # in the middle of what is being sent
    wait_until(lambda: lines)
    took = []
    for step in range(100, 1000):
        began = time.perf_counter()
        outbox.record(record_of(step))
        took.append(time.perf_counter() - began)
    outbox.do("note.txt", lambda: tracker.artifact(tmp_path / "note.txt"))
    outbox.do("tags", lambda: tracker.tags({"phase": "late"}))
    assert sorted(took)[-10] < 0.02  # of 900; on a busy machine the processor is taken from us now and then
    assert max(took) < 1

    continued = Tracker(server.address, "study", run_id=tracker.run_id)  # does not raise, does not wait
    second = Outbox(continued, lambda _: None).start()
    second.do("status", continued.reopen)

    server.start()
    for step in range(1000, 1100):
        outbox.record(record_of(step))
    assert outbox.close(60) == []
    assert second.close(60) == []
    assert stored(tracker) == expected(range(1100))
    run = tracker.client.get_run(tracker.run_id)
    assert run.info.status == "RUNNING"
    assert run.data.tags["phase"] == "late"
    assert [f.path for f in tracker.client.list_artifacts(tracker.run_id)] == ["note.txt"]
    down, back = lines
    assert re.fullmatch(rf"MLflow at {server.address} does not answer \(.+\); training goes on, records wait", down)
    assert back == f"MLflow at {server.address} answers again"

    again = Outbox(continued, lines.append).start()  # as a run does that is resumed
    for step in range(1100):
        again.record(record_of(step))
    assert again.close(60) == []
    assert stored(tracker) == expected(range(1100))


def test_what_is_refused_is_left_out_and_said(server, tmp_path):
    tracker = Tracker(server.address, "study")
    lines: list[str] = []
    outbox = Outbox(tracker, lines.append)
    for step in range(6):
        outbox.record(record_of(step) if step != 3 else {"step": 3, "time": BEGAN, "no*name": 1.0})
    outbox.do("model", lambda: tracker.artifact(tmp_path / "absent.pt"))
    outbox.record({"step": 9, "time": BEGAN, **{f"many/{i}": float(i) for i in range(1500)}})
    assert outbox.start().close(30) == ["the record of step 3: refused", "model: refused"]
    assert [line.partition(" (")[0] for line in lines] == [
        f"warning: MLflow at {server.address} refuses the record of step 3",
        f"warning: MLflow at {server.address} refuses model",
    ]
    assert "absent.pt" in lines[1]
    assert [m.step for m in tracker.client.get_metric_history(tracker.run_id, "lr")] == [0, 1, 2, 4, 5]
    assert len(tracker.client.get_run(tracker.run_id).data.metrics) == len(KEYS) + 1500


def test_files_that_the_server_cannot_store_do_not_hold_up_the_records(server, tmp_path):
    tracker = Tracker(server.address, "study")
    place = server.folder / "artifacts"
    aside = place.rename(server.folder / "aside") if place.exists() else None
    place.write_text("in the way")
    (tmp_path / "note.txt").write_text("kept")
    lines: list[str] = []
    outbox = Outbox(tracker, lines.append).start()
    outbox.do("note.txt", lambda: tracker.artifact(tmp_path / "note.txt"))
    for step in range(3):
        outbox.record(record_of(step))
    wait_until(lambda: stored(tracker) == expected(range(3)))
    place.unlink()
    if aside is not None:
        aside.rename(place)
    assert outbox.close(30) == []
    assert [f.path for f in tracker.client.list_artifacts(tracker.run_id)] == ["note.txt"]
    assert lines == [f"MLflow at {server.address} cannot take note.txt now (Connection reset by peer); "
                     "it will be tried again"]  # fmt: skip


@pytest.mark.parametrize("hangs", [True, False], ids=["hangs", "is gone"])
def test_close_says_what_a_server_did_not_take(server, hangs):
    tracker = Tracker(server.address, "study")
    if hangs:
        os.killpg(server.process.pid, signal.SIGSTOP)
    else:
        server.kill()
    outbox = Outbox(tracker, lambda _: None).start()
    for step in range(20, 100, 20):
        outbox.record(record_of(step))
    outbox.do("model", lambda: tracker.tags({"model": "there"}))
    began = time.monotonic()
    assert outbox.close(1.5) == ["4 records (steps 20 to 80)", "model"]
    assert 1.4 < time.monotonic() - began < 3
    if hangs:
        os.killpg(server.process.pid, signal.SIGCONT)


def test_a_continued_run_on_a_local_database(tmp_path: Path):
    address = f"sqlite:///{tmp_path}/mlflow.db"
    tracker = Tracker(address, "study")
    tracker.close("KILLED")
    continued = Tracker(address, "study", run_id=tracker.run_id)
    outbox = Outbox(continued, lambda _: None).start()
    outbox.do("status", continued.reopen)
    for _ in range(2):
        outbox.record(record_of(0))
    outbox.do("end", continued.end)
    assert outbox.close(30) == []
    assert stored(tracker) == expected(range(1))
    assert tracker.client.get_run(tracker.run_id).info.status == "FINISHED"
