"""The same command again on a run that a kill left in an awkward state: nothing is lost, MLflow gets what it lacks."""

import json
from dataclasses import replace

import numpy as np
import pytest
from mlflow import MlflowClient

from msrcnn.config import DataConfig, SolverConfig
from msrcnn.detector import MaskScoringRCNN
from msrcnn.weights import save_model
from pipelines.checkpoint_list import SNAPSHOT, TRAINING, checkpoint_name, committed
from pipelines.options import TrainConfig
from pipelines.run_directory import METRICS, MODEL, TRACKED, RunRecord, write_record
from pipelines.storage import locate
from pipelines.tracking import Tracker
from pipelines.train import train
from pipelines.train_setup import prepare
from tests.stored_scenes import write_shards
from tests.training_runs import SIZE, SMALL, records

STEPS = (3, 6)
RECORDS = [{"step": step, "time": 1000.0 + step, "loss/total": 1 / step} for step in STEPS]


@pytest.fixture
def untold(tmp_path, make_scene):
    """A trained run, of which MLflow knows no more than that it was begun; gives what it was told."""
    rng = np.random.default_rng(0)
    truths = [make_scene(i, rng, 2, 0, 1).truth for i in range(6)]
    manifest = write_shards(tmp_path / "shards", truths, [(1, "thing")], files=1, row_group=6)
    config = TrainConfig(
        shards=tmp_path / "shards", run=tmp_path / "run", model=SMALL, data=DataConfig(SIZE, SIZE), threads=1,
        solver=SolverConfig(epochs=2, decay_epochs=(), batch=2), tracking=f"sqlite:///{tmp_path}/mlflow.db",
        register="", workers="2",
    )  # fmt: skip
    job, settings = prepare(config, manifest)
    tracker, run = Tracker(config.tracking, config.experiment), locate(config.run)
    write_record(run, RunRecord(settings, tracker.run_id, tracker.address))
    for step in STEPS:
        (config.run / checkpoint_name(step)).mkdir()
        save_model(config.run / checkpoint_name(step) / MODEL, MaskScoringRCNN(job.model), job.data, job.categories)
        (config.run / checkpoint_name(step) / TRAINING).write_bytes(b"x")
    (run / checkpoint_name(STEPS[-1]) / MODEL).copy_to(run / MODEL)
    results = [{"checkpoint_dir_name": checkpoint_name(step)} for step in STEPS]
    (config.run / SNAPSHOT).write_text(json.dumps({"checkpoint_results": results}))
    (config.run / METRICS).write_text("".join(json.dumps(record) + "\n" for record in RECORDS))
    return config, tracker.run_id


def test_the_settings_reach_mlflow_though_the_first_command_could_not_tell_them(untold):
    config, run = untold
    for workers in ("2", "1"):  # may change between commands
        (config.run / TRACKED).unlink(missing_ok=True)
        lines: list[str] = []
        train(replace(config, workers=workers), lines.append)
        assert not [line for line in lines if "warning" in line]
        assert (config.run / TRACKED).exists()
        data = MlflowClient(config.tracking).get_run(run).data
        assert data.params["model.hidden"] == "64"
        assert data.params["solver.batch"] == "2"
        assert data.params["dataset.images"] == "6"
        assert data.tags["workers"] == workers


@pytest.mark.ray
@pytest.mark.usefixtures("ray_session")
def test_a_list_of_checkpoints_that_was_cut_short_costs_no_metrics(untold):
    config, run = untold
    (config.run / SNAPSHOT).write_bytes((config.run / SNAPSHOT).read_bytes()[:50])
    lines: list[str] = []
    train(replace(config, workers="1"), lines.append)
    assert any("cut short; written again" in line for line in lines)
    assert committed(locate(config.run)) == [*STEPS]
    assert records(config.run) == RECORDS
    told = MlflowClient(config.tracking).get_metric_history(run, "loss/total")
    assert [(m.step, m.value) for m in told] == [(record["step"], record["loss/total"]) for record in RECORDS]
