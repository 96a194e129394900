"""A run directory knows its run and refuses another."""

import errno
import fcntl
import json
import os
import subprocess
import sys
import threading
import time
from contextlib import nullcontext

import pytest

from msrcnn.config import to_dict
from msrcnn.errors import InputError
from msrcnn.presets import PRESETS
from pipelines.run_directory import (
    MODEL,
    RUN,
    WORKERS,
    RunRecord,
    check_same,
    find_model,
    read_record,
    wait_for_workers,
    working,
    write_record,
)
from pipelines.storage import exclusively, locate


@pytest.fixture
def record() -> RunRecord:
    return RunRecord({"model": to_dict(PRESETS["demo"].model), "max_steps": None}, "abc", "sqlite:///x.db")


def test_round_trip(tmp_path, record):
    assert read_record(locate(tmp_path)) is None
    write_record(locate(tmp_path / "run"), record)
    assert read_record(locate(tmp_path / "run")) == record
    assert [p.name for p in (tmp_path / "run").iterdir()] == [RUN]


def test_other_settings_are_refused_by_name(tmp_path, record):
    check_same(locate(tmp_path), record, record.settings)
    other = {"model": to_dict(PRESETS["r18-fpn"].model), "max_steps": 5}
    with pytest.raises(InputError, match=r"max_steps: None -> 5; model.anchor_sizes: .* choose another --run"):
        check_same(locate(tmp_path), record, other)


def test_a_run_of_a_version_without_some_fields_goes_on(tmp_path):
    """They are what they were then: their defaults; and one that has another value now is still named."""
    preset = PRESETS["demo"]
    settings = {"model": to_dict(preset.model), "solver": to_dict(preset.solver), "data": to_dict(preset.data)}
    run = locate(tmp_path)
    write_record(run, RunRecord(settings, "abc", "sqlite:///x.db"))
    value = json.loads((tmp_path / RUN).read_text())
    del value["settings"]["model"]["maskiou"]["power"], value["settings"]["model"]["heads"]
    del value["settings"]["solver"]["precision"], value["settings"]["data"]["flip"]
    (tmp_path / RUN).write_text(json.dumps(value))
    record = read_record(run)
    check_same(run, record, settings)
    other = {"solver": settings["solver"] | {"precision": "bfloat16"}, "data": settings["data"] | {"flip": False}}
    with pytest.raises(InputError, match=r"other settings \(data.flip: True -> False; solver.precision: 'float32' -> "):
        check_same(run, record, settings | other)
    value["settings"]["model"]["depth"] = 18  # of a field that is gone
    (tmp_path / RUN).write_text(json.dumps(value))
    with pytest.raises(InputError, match=r"model.depth: 18 -> None"):
        check_same(run, read_record(run), settings)


def test_damaged_record(tmp_path):
    (tmp_path / RUN).write_text("{")
    with pytest.raises(InputError, match=r"run\.json: not a run's record"):
        read_record(locate(tmp_path))


def test_find_model(tmp_path, record):
    with pytest.raises(InputError, match="neither a run directory nor a model file"):
        find_model(locate(tmp_path))
    write_record(locate(tmp_path), record)
    with pytest.raises(InputError, match="is not finished"):
        find_model(locate(tmp_path))
    (tmp_path / MODEL).write_bytes(b"x")
    assert find_model(locate(tmp_path)) == (locate(tmp_path / MODEL), record)
    assert find_model(locate(tmp_path / MODEL)) == (locate(tmp_path / MODEL), record)


def test_workers_that_outlive_their_driver_are_waited_for(tmp_path):
    code = "import sys; from pipelines.storage import locate; from pipelines.run_directory import working\n"
    code += "with working(locate(sys.argv[1])): print('in', flush=True); sys.stdin.read()"
    workers = [
        subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        for _ in range(2)
    ]
    for worker in workers:
        assert worker.stdout is not None
        assert worker.stdout.readline() == b"in\n"  # both at once
    lines = []
    workers[0].kill()
    with pytest.raises(InputError, match="workers of an earlier attempt are still in it after 0 s"):
        wait_for_workers(locate(tmp_path), lines.append, seconds=0.3)
    assert len(lines) == 1
    (tmp_path / WORKERS).rename(tmp_path / "aside")  # what the message offers for a lock that nobody can give back
    wait_for_workers(locate(tmp_path), lines.append, seconds=0.3)
    (tmp_path / "aside").rename(tmp_path / WORKERS)
    threading.Timer(0.5, workers[1].kill).start()
    began = time.monotonic()
    wait_for_workers(locate(tmp_path), lines.append)
    assert time.monotonic() - began > 0.3
    wait_for_workers(locate(tmp_path), lines.append)
    assert len(lines) == 2
    for worker in workers:
        worker.communicate()


@pytest.mark.parametrize("error", [errno.ENOSYS, errno.EIO])
def test_a_file_system_without_locks_is_used_as_a_url_is(tmp_path, monkeypatch, error):
    """Lustre often is one. A lock that fails for another reason is no leave to go on."""

    def flock(*_):
        raise OSError(error, os.strerror(error))

    monkeypatch.setattr(fcntl, "flock", flock)
    folder, told = locate(tmp_path), []
    for block in (working(folder), exclusively(folder, "training in")):
        with nullcontext() if error == errno.ENOSYS else pytest.raises(OSError, match=os.strerror(error)), block:
            wait_for_workers(folder, told.append)
    assert told == []
