"""A run directory knows its run and refuses another."""

import pytest

from msrcnn.config import PRESETS, to_dict
from msrcnn.errors import InputError
from pipelines.run_directory import MODEL, RUN, RunRecord, check_same, find_model, read_record, write_record


@pytest.fixture
def record() -> RunRecord:
    return RunRecord({"model": to_dict(PRESETS["demo"].model), "max_steps": None}, "abc", "sqlite:///x.db")


def test_round_trip(tmp_path, record):
    assert read_record(tmp_path) is None
    write_record(tmp_path / "run", record)
    assert read_record(tmp_path / "run") == record
    assert [p.name for p in (tmp_path / "run").iterdir()] == [RUN]


def test_other_settings_are_refused_by_name(tmp_path, record):
    check_same(tmp_path, record, record.settings)
    other = {"model": to_dict(PRESETS["r18-fpn"].model), "max_steps": 5}
    with pytest.raises(InputError, match=r"max_steps: None -> 5; model.anchor_sizes: .* choose another --run"):
        check_same(tmp_path, record, other)


def test_damaged_record(tmp_path):
    (tmp_path / RUN).write_text("{")
    with pytest.raises(InputError, match=r"run\.json: not a run's record"):
        read_record(tmp_path)


def test_find_model(tmp_path, record):
    with pytest.raises(InputError, match="neither a run directory nor a model file"):
        find_model(tmp_path)
    write_record(tmp_path, record)
    with pytest.raises(InputError, match="is not finished"):
        find_model(tmp_path)
    (tmp_path / MODEL).write_bytes(b"x")
    assert find_model(tmp_path) == (tmp_path / MODEL, record)
    assert find_model(tmp_path / MODEL) == (tmp_path / MODEL, record)
