"""What a killed process leaves of a checkpoint or of their list is repaired or deleted."""

import json

import pytest

from msrcnn.errors import InputError
from pipelines.checkpoint_list import SNAPSHOT, TRAINING, checkpoint_name, committed, next_step, step_of, tidy
from pipelines.run_directory import MODEL
from pipelines.storage import locate
from pipelines.train_setup import model_file


def make(run, step: int, files=(MODEL, TRAINING)):
    folder = run / checkpoint_name(step)
    folder.mkdir()
    for name in files:
        (folder / name).write_bytes(b"x")


def put_on_list(run, *steps: int) -> None:
    value = {"checkpoint_results": [{"checkpoint_dir_name": checkpoint_name(step)} for step in steps]}
    (run / SNAPSHOT).write_text(json.dumps(value))


def names(run) -> list[str]:
    return sorted(path.name for path in run.iterdir() if path.is_dir())


def test_names_sort_by_step():
    assert step_of(checkpoint_name(123)) == 123
    assert checkpoint_name(99) < checkpoint_name(1000)


def test_without_a_list_there_is_none(tmp_path):
    assert committed(locate(tmp_path)) == []
    assert next_step(locate(tmp_path)) == 0


def test_what_is_not_on_the_list_is_deleted(tmp_path):
    for step in (5, 10, 15):
        make(tmp_path, step)
    (tmp_path / ".step-00000020").mkdir()  # being written when its writer was killed
    (tmp_path / "images").mkdir()
    (tmp_path / "best.pt.tmp-0123456789ab").touch()
    put_on_list(tmp_path, 5, 10)
    lines: list[str] = []
    tidy(locate(tmp_path), lines.append)
    assert names(tmp_path) == ["images", "step-00000005", "step-00000010"]
    assert len(lines) == 2
    assert not list(tmp_path.glob("*.tmp-*"))
    assert next_step(locate(tmp_path)) == 10
    tidy(locate(tmp_path), lines.append)
    assert len(lines) == 2


def test_a_list_that_was_cut_short_is_written_again(tmp_path):
    make(tmp_path, 5)
    make(tmp_path, 10)
    make(tmp_path, 15, files=(MODEL,))
    put_on_list(tmp_path, 5, 10)
    text = (tmp_path / SNAPSHOT).read_text()
    (tmp_path / SNAPSHOT).write_text(text[: len(text) // 2])
    with pytest.raises(ValueError):
        committed(locate(tmp_path))
    lines: list[str] = []
    tidy(locate(tmp_path), lines.append)
    assert committed(locate(tmp_path)) == [5, 10]
    assert names(tmp_path) == ["step-00000005", "step-00000010"]
    assert "cut short" in lines[0]


def test_a_checkpoint_that_is_listed_but_gone_is_left_out(tmp_path):
    make(tmp_path, 5)
    put_on_list(tmp_path, 5, 10)
    lines: list[str] = []
    tidy(locate(tmp_path), lines.append)
    assert committed(locate(tmp_path)) == [5]
    assert "lists what is not there" in lines[0]


def test_ray_reads_the_list_that_was_written_again(tmp_path):
    """Ray Train's own reader of its list finds the checkpoints, the last one as the latest."""
    from ray.train import CheckpointConfig
    from ray.train.v2._internal.execution.checkpoint.checkpoint_manager import CheckpointManager
    from ray.train.v2._internal.execution.storage import StorageContext

    run = tmp_path / "run"
    run.mkdir()
    make(run, 5)
    make(run, 10)
    (run / SNAPSHOT).write_text("{")
    tidy(locate(run), lambda _: None)
    manager = CheckpointManager(CheckpointConfig(), StorageContext(str(tmp_path), "run"))
    assert manager.latest_checkpoint_result.checkpoint.path == str(run / "step-00000010")
    assert manager.latest_checkpoint_result.metrics == {"step": 10}


def test_the_model_of_a_run_of_a_checkpoint_or_itself(tmp_path):
    with pytest.raises(InputError, match="neither a run directory with a checkpoint, nor a checkpoint, nor a model"):
        model_file(locate(tmp_path))
    make(tmp_path, 5)
    make(tmp_path, 10)
    put_on_list(tmp_path, 5, 10)
    last = tmp_path / "step-00000010" / MODEL
    assert model_file(locate(tmp_path)).local == last
    assert model_file(locate(tmp_path / "step-00000005")).local == tmp_path / "step-00000005" / MODEL
    assert model_file(locate(last)).local == last
    (tmp_path / MODEL).write_bytes(b"x")
    assert model_file(locate(tmp_path)).local == tmp_path / MODEL
