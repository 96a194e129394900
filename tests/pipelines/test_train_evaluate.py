"""The main job on a real Ray: training from shards, what it leaves and refuses, and its evaluation."""

import contextlib
import json
import math
import os
import pickle
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from mlflow import MlflowClient

from msrcnn.config import DataConfig, SolverConfig
from msrcnn.errors import InputError
from msrcnn.weights import load_model
from pipelines.manifest import read_manifest, write_manifest
from pipelines.options import EvaluateConfig, TrainConfig
from pipelines.schema import SHARD_ROW
from pipelines.storage import locate
from tests.training_runs import SIZE, SMALL, records

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_session")]


def test_training_leaves_a_model_metrics_and_an_mlflow_run(trained):
    config, lines = trained
    steps = 22 // 4 * 2
    assert records(config.run)[-1]["step"] == steps
    assert all(math.isfinite(r["loss/total"]) for r in records(config.run))
    assert any(f"step {steps}/{steps}" in line and "waiting for data" in line for line in lines)
    record = json.loads((config.run / "run.json").read_text())
    run = MlflowClient(config.tracking).get_run(record["mlflow_run"])
    assert run.info.status == "FINISHED"
    assert run.data.params["model.num_classes"] == "3"
    assert run.data.params["dataset.images"] == "22"
    assert {"loss/maskiou", "lr", "images_per_second", "data_wait"} <= set(run.data.metrics)
    versions = MlflowClient(config.tracking).search_model_versions("name = 'msrcnn'")
    assert [v.run_id for v in versions] == [run.info.run_id]


def test_the_same_command_again_has_nothing_to_do_and_another_model_is_refused(trained):
    from pipelines.train import train

    config, _ = trained
    before = (config.run / "model.pt").stat().st_mtime_ns
    lines: list[str] = []
    train(config, lines.append)
    assert "already trained" in lines[0]
    assert (config.run / "model.pt").stat().st_mtime_ns == before
    with pytest.raises(InputError, match=r"model.hidden: 64 -> 32"):
        train(replace(config, model=replace(SMALL, hidden=32)))


@pytest.mark.slow
def test_a_killed_run_goes_on_at_its_last_checkpoint(trained, tmp_path):
    """SIGKILL to everything at once after the first epoch; the same command then runs the second epoch only."""
    from pipelines.checkpoint_list import next_step
    from pipelines.train import train

    config = replace(trained[0], run=tmp_path / "run", tracking=f"sqlite:///{tmp_path}/mlflow.db")
    code = (
        "import sys, pickle; from pipelines.train import train\n"
        "train(pickle.load(open(sys.argv[1], 'rb')))"
    )  # fmt: skip
    (tmp_path / "config").write_bytes(pickle.dumps(config))
    mark = f"MSRCNN_TEST={tmp_path}"  # in the environment of the driver and of all that it starts
    environment = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"} | dict([mark.split("=")])
    driver = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "config")], env=environment, start_new_session=True,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    deadline = time.monotonic() + 300
    while next_step(locate(config.run)) == 0 and driver.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    for path in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):
            if mark.encode() in path.read_bytes():
                os.kill(int(path.parent.name), signal.SIGKILL)
    driver.wait()
    assert not (config.run / "model.pt").exists()
    assert next_step(locate(config.run)) == 5

    train(config, lambda _: None)
    assert [r["step"] for r in records(config.run)] == [5, 10]
    # The same data, order and draws as without the kill: the same second epoch, and the same weights.
    assert records(config.run)[-1]["loss/total"] == pytest.approx(records(trained[0].run)[-1]["loss/total"], rel=1e-3)
    ours, undisturbed = load_model(config.run / "model.pt"), load_model(trained[0].run / "model.pt")
    for name, weight in ours.model.state_dict().items():
        torch.testing.assert_close(weight, undisturbed.model.state_dict()[name], rtol=1e-3, atol=1e-5)


def test_what_train_refuses_before_it_starts(trained, shards, tmp_path):
    from pipelines.train import train

    config = replace(trained[0], run=tmp_path / "run", tracking=f"sqlite:///{tmp_path}/mlflow.db")
    with pytest.raises(InputError, match="freeze what nothing has trained"):
        train(replace(config, model=replace(SMALL, frozen_stages=2)))
    with pytest.raises(InputError, match=r"8 images are fewer than --solver.batch 16"):
        train(replace(config, shards=shards / "val", solver=replace(config.solver, batch=16)))
    assert not config.run.exists()
    with pytest.raises(InputError, match=r"--workers 6: with their readers they need 2.9 CPU, the Ray cluster has 2;"):
        train(replace(config, workers="6", solver=replace(config.solver, batch=12)))
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").touch()
    with pytest.raises(InputError, match="neither empty nor a run directory"):
        train(replace(config, run=tmp_path / "full"))


@pytest.mark.slow
def test_a_finished_detector_is_calibrated(trained, tmp_path):
    """The weights of another run are where training begins; all but the MaskIoU head stays as it was there."""
    from pipelines.train import train

    source = trained[0].run / "model.pt"
    solver = replace(trained[0].solver, precision="bfloat16")
    config = replace(
        trained[0], run=tmp_path / "run", max_steps=2, weights=str(source), solver=solver,
        tracking=f"sqlite:///{tmp_path}/mlflow.db", model=replace(trained[0].model, trained="maskiou"),
    )  # fmt: skip
    lines: list[str] = []
    train(config, lines.append)
    want, got = load_model(source).model.state_dict(), load_model(config.run / "model.pt").model.state_dict()
    assert {name.split(".")[0] for name in want if not torch.equal(got[name], want[name])} == {"maskiou"}
    assert any(f"{source} (msrcnn checkpoint): {len(want)} tensors matched" in line for line in lines)
    assert records(config.run)[-1].keys() >= {"loss/maskiou", "loss/total"}
    assert "loss/mask" not in records(config.run)[-1]
    record = json.loads((config.run / "run.json").read_text())
    assert record["settings"]["weights"] == str(source)
    with pytest.raises(InputError, match=r"weights: .* -> .other.pt"):
        train(replace(config, weights="other.pt"))
    with pytest.raises(InputError, match="trains the MaskIoU head of a finished detector; give --weights"):
        train(replace(config, weights=None))


def test_weights_that_cannot_be_used_leave_nothing_behind(trained, tmp_path):
    from pipelines.train import train

    (tmp_path / "bad.pth").write_bytes(b"no weights")
    config = replace(trained[0], run=tmp_path / "run", tracking=f"sqlite:///{tmp_path}/mlflow.db")
    for weights, message in ((tmp_path / "bad.pth", "not weights"), (tmp_path / "none.pth", "no such file")):
        with pytest.raises(InputError, match=message):
            train(replace(config, weights=str(weights)), lambda _: None)
    trunk = {n.removeprefix("backbone.trunk."): v for n, v in load_model(trained[0].run / "model.pt").model.state_dict()
             .items() if n.startswith("backbone.trunk.")}  # fmt: skip
    torch.save(trunk, tmp_path / "trunk.pth")
    part = replace(config, weights=str(tmp_path / "trunk.pth"), model=replace(config.model, trained="maskiou"))
    with pytest.raises(InputError, match=r"more tensors are not in it, .* give a whole Mask R-CNN"):
        train(part, lambda _: None)
    assert {p.name for p in tmp_path.iterdir()} == {"bad.pth", "trunk.pth"}


def test_shards_of_other_categories_are_not_evaluated(trained, shards, tmp_path):
    from pipelines.evaluate import evaluate

    manifest = read_manifest(shards / "val")
    other = tmp_path / "other"
    other.mkdir()
    renamed = replace(manifest.categories[0], name="zebra")
    write_manifest(replace(manifest, folder=other, parts=(), categories=(renamed, *manifest.categories[1:])))
    with pytest.raises(InputError, match=r"'\w[\w ]*' where the shards have 'zebra'"):
        evaluate(EvaluateConfig(trained[0].run, other, tmp_path / "out"))
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_an_undecodable_image_becomes_an_error_row(trained, shards, tmp_path):
    """And the numbers of the others join the training's MLflow run."""
    from pipelines.evaluate import evaluate

    manifest = read_manifest(shards / "val")
    table = pa.concat_tables([pq.read_table(p) for p in manifest.paths])
    rows = table.to_pylist()
    rows[2]["image"] = rows[2]["image"][:100]
    broken = tmp_path / "shards"
    broken.mkdir()
    pq.write_table(pa.Table.from_pylist(rows, SHARD_ROW), broken / "shard.parquet")
    part = replace(manifest.parts[0], file="shard.parquet", rows=8, bytes=(broken / "shard.parquet").stat().st_size)
    write_manifest(replace(manifest, folder=broken, parts=(part,)))
    lines: list[str] = []
    tracking = trained[0].tracking
    config = EvaluateConfig(trained[0].run, broken, tmp_path / "out", batch=4, bootstrap=0, tracking=tracking)
    summary = evaluate(config, lines.append)
    assert summary.images.failed == 1
    errors = [r for r in pq.read_table(tmp_path / "out" / "detections").to_pylist() if r["error"]]
    assert [r["image_id"] for r in errors] == [rows[2]["image_id"]]
    assert f"image {rows[2]['image_id']}: not a readable image" in errors[0]["error"]
    assert any("images that failed: 1" in line for line in lines)
    record = json.loads((trained[0].run / "run.json").read_text())
    run = MlflowClient(tracking).get_run(record["mlflow_run"])
    assert run.data.metrics["mask_by_mask/AP"] == pytest.approx(summary.ap.mask_by_mask["AP"])


@pytest.mark.slow
def test_an_undecodable_image_stops_training_with_its_id(shards, tmp_path):
    from pipelines.train import train

    manifest = read_manifest(shards / "train")
    rows = [row for p in manifest.paths for row in pq.read_table(p).to_pylist()]
    for row in rows:
        row["image"] = b"no image"
    broken = tmp_path / "shards"
    broken.mkdir()
    pq.write_table(pa.Table.from_pylist(rows, SHARD_ROW), broken / "shard.parquet")
    part = replace(manifest.parts[0], file="shard.parquet", rows=len(rows))
    part = replace(part, bytes=(broken / "shard.parquet").stat().st_size)
    write_manifest(replace(manifest, folder=broken, parts=(part,)))
    config = TrainConfig(
        broken, tmp_path / "run", model=SMALL, data=DataConfig(SIZE, SIZE), solver=SolverConfig(epochs=1, batch=4),
        tracking=f"sqlite:///{tmp_path}/mlflow.db",
    )  # fmt: skip
    with pytest.raises(InputError, match=r"image \d+: not a readable image"):
        train(config, lambda _: None)
    assert not (tmp_path / "run" / "model.pt").exists()
