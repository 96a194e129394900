"""`msrcnn evaluate` on a real Ray: parts that say what they are of, going on, images that fail."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from msrcnn.errors import InputError
from msrcnn.inference_config import SelectionChanges
from msrcnn.weights import load_model
from pipelines.detection_parts import read_info
from pipelines.inference import detected_rows
from pipelines.manifest import Manifest, read_manifest, write_manifest
from pipelines.options import EvaluateConfig
from pipelines.reading import row_groups
from pipelines.run_directory import RunRecord, write_record
from pipelines.storage import locate
from pipelines.tracking import Tracker
from tests.evaluations import evaluation_of, write_model, write_shapes_shards

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_session")]

IMAGES, ROWS = 14, 4  # four row groups in one shard


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("evaluate")
    write_shapes_shards(folder, IMAGES, ROWS)
    write_model(folder / "model.pt", folder / "shards")
    return folder


@pytest.fixture
def config(folder, tmp_path):
    return EvaluateConfig(folder / "model.pt", folder / "shards", tmp_path / "out", batch=3, bootstrap=20, actors=1,
                          tracking=f"sqlite:///{tmp_path}/mlflow.db")  # fmt: skip


@pytest.fixture(scope="module")
def undisturbed(folder, tmp_path_factory):
    """The numbers and rows of an evaluation that nothing disturbed, and what it printed."""
    from pipelines.evaluate import evaluate

    out = tmp_path_factory.mktemp("undisturbed")
    lines: list[str] = []

    def log(line: str) -> None:
        lines.append(line)
        if line.startswith("detected in"):
            shutil.copytree(out / "out", out / "interrupted")

    evaluate(EvaluateConfig(folder / "model.pt", folder / "shards", out / "out", batch=3, bootstrap=20, actors=1,
                            tracking=f"sqlite:///{out}/mlflow.db"), log)  # fmt: skip
    return evaluation_of(out / "out"), out / "out", lines


@pytest.fixture
def interrupted(undisturbed, config):
    """What a kill leaves when everything is detected and nothing is scored, as the output of `config`."""
    shutil.copytree(undisturbed[1].parent / "interrupted", config.out)
    return config.out / "detections"


def damaged(folder: Path, to: Path, image: int) -> tuple[Manifest, int]:
    """The shards with one image cut short, and its id."""
    manifest = read_manifest(folder / "shards")
    rows = pq.read_table(manifest.paths[0]).to_pylist()
    rows[image]["image"] = rows[image]["image"][:100]
    to.mkdir()
    schema = pq.read_schema(manifest.paths[0])
    pq.write_table(pa.Table.from_pylist(rows, schema), to / "shard.parquet", row_group_size=ROWS)
    part = replace(manifest.parts[0], file="shard.parquet", bytes=(to / "shard.parquet").stat().st_size, sha256="other")
    write_manifest(replace(manifest, folder=to, parts=(part,)))
    return read_manifest(to), rows[image]["image_id"]


def test_a_part_for_each_row_group_says_what_it_is_of(undisturbed, folder):
    evaluation, out, lines = undisturbed
    manifest = read_manifest(folder / "shards")
    groups = row_groups(manifest)
    assert sorted(path.name for path in (out / "detections").iterdir()) == [
        f"part-00000-{i:04d}.parquet" for i in range(len(groups))
    ]
    for group in groups:
        origin, info = read_info(locate(out / "detections" / f"part-00000-{group.index:04d}.parquet"))
        assert (info.images, info.errors, origin.dataset) == (group.rows, 0, manifest.fingerprint)
    wanted = {i for path in manifest.paths for i in pq.read_table(path)["image_id"].to_pylist()}
    assert {row["image_id"] for row in evaluation.rows} == wanted
    assert {row["model"] for row in evaluation.rows} == {origin.model[:12]}
    assert {row["dataset"] for row in evaluation.rows} == {manifest.fingerprint[:12]}
    images = evaluation.summary["images"]
    assert (images["total"], images["failed"]) == (len(wanted), 0) == (IMAGES, 0)
    found = [row for row in evaluation.rows if row["category"] is not None]
    assert len(found) == evaluation.summary["detections"] > 0
    for row in found:
        x0, y0, x1, y1 = row["bbox"]
        assert 0 <= x0 < x1 <= row["width"]
        assert 0 <= y0 < y1 <= row["height"]
        assert row["mask_score"] == pytest.approx(row["class_score"] * row["maskiou"], rel=1e-5)
    assert any("masks, mask score" in line for line in lines)
    assert any(f"{IMAGES}/{IMAGES} images, " in line and line.endswith(" images/s, 0 s left") for line in lines)
    assert not (out / ".unfinished").exists()


def test_the_same_command_computes_only_what_is_missing(undisturbed, config, interrupted):
    from pipelines.evaluate import evaluate, evaluate_once

    (interrupted / "part-00000-0001.parquet").unlink()
    (interrupted / "part-00000-0002.parquet").write_bytes(b"cut")
    (interrupted / "part-00000-0003.parquet.tmp-0123456789ab").write_bytes(b"killed")
    before = {path.name: path.stat().st_mtime_ns for path in interrupted.glob("*.parquet")}
    lines: list[str] = []
    again = replace(config, batch=4, figures=False)
    evaluate(again, lines.append)
    after = {path.name: path.stat().st_mtime_ns for path in interrupted.iterdir()}
    assert [name for name in sorted(after) if after[name] != before.get(name)] == [
        "part-00000-0001.parquet", "part-00000-0002.parquet"
    ]  # fmt: skip
    assert "2 of 4 parts are there already" in lines
    ours, whole = evaluation_of(config.out), undisturbed[0]
    assert ours.summary["images"] == whole.summary["images"]
    assert {row["image_id"] for row in ours.rows} == {row["image_id"] for row in whole.rows}
    with pytest.raises(InputError, match="already holds an evaluation"):
        evaluate(again)
    evaluate_once(again, lines.append)
    assert lines[-1] == f"{config.out}: holds the numbers of this model on these shards, nothing to do"
    assert {path.name: path.stat().st_mtime_ns for path in interrupted.iterdir()} == after
    with pytest.raises(InputError, match="already holds an evaluation"):  # of other draws
        evaluate_once(replace(again, bootstrap=config.bootstrap + 1))
    with pytest.raises(InputError, match="already holds an evaluation"):
        evaluate_once(replace(again, precision="bfloat16"))
    file = locate(config.out) / "summary.json"
    file.write(json.dumps(json.loads(file.read()) | {"images": {"failed": 1}}).encode())
    evaluate_once(again, lines.append)
    with pytest.raises(InputError, match="already holds an evaluation"):
        evaluate_once(replace(again, strict=True))
    write_model(config.out.parent / "other.pt", config.shards, seed=1)
    with pytest.raises(InputError, match="already holds an evaluation"):  # of another model
        evaluate_once(replace(again, model=config.out.parent / "other.pt"), lines.append)


def test_a_model_that_is_to_detect_otherwise_does(undisturbed, folder, config, interrupted):
    """Rows as of a model that is loaded so; parts and numbers of the model as its file says are not taken for them."""
    from mlflow import MlflowClient

    from pipelines.evaluate import evaluate, evaluate_once

    asked = replace(config, selection=SelectionChanges(method="hard", top_k=5), maskiou_power=2.0, figures=False)
    with pytest.raises(InputError, match=r"something else .*inference\.maskiou\.power: None -> 2\.0; "
                                         r"inference\.selection\.method: None -> 'hard'"):  # fmt: skip
        evaluate(asked, lambda _: None)
    shutil.rmtree(interrupted.parent)
    evaluate(asked, lambda _: None)
    ours, lines = evaluation_of(config.out), []
    checkpoint = load_model(folder / "model.pt", inference=asked.inference)
    tables = [pq.read_table(path) for path in read_manifest(folder / "shards").paths]
    wanted = {image: [] for image in {row["image_id"] for row in undisturbed[0].rows}}
    for row in (r for t in tables for r in detected_rows(checkpoint.model, checkpoint.data, torch.device("cpu"), 3, t)):
        wanted[row["image_id"]].append(row.get("mask_score"))
    for image, scores in wanted.items():
        assert len(scores) <= 5
        assert [r["mask_score"] for r in ours.rows if r["image_id"] == image] == pytest.approx(scores, abs=1e-5)
    assert all(r["worth"] == pytest.approx(max(r["maskiou"], 0) ** 2, abs=1e-6) for r in ours.rows if r["category"])
    changed = {"selection": {"method": "hard", "top_k": 5}, "maskiou": {"power": 2.0}}
    assert (ours.summary["inference"], undisturbed[0].summary["inference"]) == (changed, {})
    evaluate_once(asked, lines.append)
    assert lines[-1].endswith("nothing to do")
    with pytest.raises(InputError, match="already holds an evaluation"):
        evaluate_once(replace(asked, maskiou_power=1.0))
    client = MlflowClient(config.tracking)
    experiment = client.get_experiment_by_name("msrcnn").experiment_id
    (run,) = client.search_runs([experiment], "attributes.status = 'FINISHED'")  # the refused one has failed
    assert run.data.tags["evaluation"].endswith(" with selection.method=hard, selection.top_k=5, maskiou.power=2.0")


def test_parts_of_another_model_or_data_set_are_refused(folder, config, interrupted, tmp_path):
    from pipelines.evaluate import evaluate

    write_model(tmp_path / "other.pt", folder / "shards", seed=1)
    with pytest.raises(InputError, match=r"holds detections of something else \(part-00000-0000.parquet: model: "
                                         r"'\w{12}' -> '\w{12}'\); give what it began with"):  # fmt: skip
        evaluate(replace(config, model=tmp_path / "other.pt"), lambda _: None)
    with pytest.raises(InputError, match=r"part-00000-0000.parquet: inference.precision: None -> 'bfloat16'\)"):
        evaluate(replace(config, precision="bfloat16"), lambda _: None)
    damaged(folder, tmp_path / "damaged", 2)
    with pytest.raises(InputError, match=r"part-00000-0000.parquet: dataset: '\w{12}' -> '\w{12}'\)"):
        evaluate(replace(config, shards=tmp_path / "damaged"), lambda _: None)
    (interrupted / "thesis.txt").touch()
    with pytest.raises(InputError, match=r"holds thesis\.txt, which is no part of detections"):
        evaluate(config, lambda _: None)


@pytest.mark.slow
def test_an_image_that_fails_costs_no_other_and_strict_says_so_at_the_end(folder, config, tmp_path, undisturbed):
    from pipelines.evaluate import evaluate

    manifest, image_id = damaged(folder, tmp_path / "damaged", 6)
    config = replace(config, shards=tmp_path / "damaged")
    with pytest.raises(InputError, match=rf"1 image failed \(first: image {image_id}: not a readable image.*--strict"):
        evaluate(replace(config, strict=True), lambda _: None)
    assert not (Path(config.out) / "summary.json").exists()
    lines: list[str] = []
    summary = evaluate(config, lines.append)
    assert "4 of 4 parts are there already" in lines
    assert any(line.startswith(f"warning: 1 image failed (first: image {image_id}: not a readable") for line in lines)
    assert summary.images.failed == 1
    ours, whole = evaluation_of(config.out), undisturbed[0]
    assert [row["image_id"] for row in ours.rows if row["error"]] == [image_id]
    for kind in (ours, whole):
        kind.drop("dataset")
    others = [row for row in whole.rows if row["image_id"] != image_id]
    group = {row["image_id"] for row in pq.ParquetFile(manifest.paths[0]).read_row_group(1).to_pylist()}
    # The bad image's batch is computed image by image: the same detections, but for the last bits of floats.
    same = [row for row in ours.rows if row["image_id"] not in group]
    assert same == [row for row in others if row["image_id"] not in group]
    assert {row["image_id"] for row in ours.rows} == {row["image_id"] for row in whole.rows}


def test_numbers_and_figures_are_in_mlflow(undisturbed):
    from mlflow import MlflowClient

    evaluation, out, _ = undisturbed
    client = MlflowClient(f"sqlite:///{out.parent}/mlflow.db")
    (run,) = client.search_runs([client.get_experiment_by_name("msrcnn").experiment_id])
    assert run.info.status == "FINISHED"
    assert run.data.metrics["mask_by_mask/AP"] == pytest.approx(evaluation.summary["ap"]["mask_by_mask"]["AP"])
    stored = {a.path for a in client.list_artifacts(run.info.run_id, "evaluation-shapes")}
    assert "evaluation-shapes/summary.json" in stored
    figures = {path.name for path in (out / "figures").iterdir()}
    assert {"precision_recall.png", "precision_recall.svg", "calibration.png"} <= figures
    assert {Path(a.path).name for a in client.list_artifacts(run.info.run_id, "evaluation-shapes/figures")} == figures
    error = evaluation.summary["calibration"]["mask_score"]["error"]
    assert run.data.metrics["calibration_error/mask_score"] == pytest.approx(error) != 0


def test_another_evaluation_of_a_training_leaves_its_numbers_in_mlflow(undisturbed, folder, config, tmp_path):
    """Two model files of a run: the first one's numbers in the run itself, the other's in one under it.

    Also where the training's database is named by another path, from here.
    """
    from mlflow import MlflowClient

    from pipelines.evaluate import evaluate

    tracker, run = Tracker(config.tracking, "study"), tmp_path / "run"
    tracker.end("KILLED")
    ended = tracker.client.get_run(tracker.run_id).info.end_time
    database = os.path.relpath(tmp_path / "mlflow.db")
    write_record(locate(run), RunRecord({}, tracker.run_id, tracker.address))
    for name, times in (("model.pt", 2), ("best.pt", 2)):
        shutil.copy(folder / "model.pt", run / name)
        for time in range(times):
            out = tmp_path / f"{name}-{time}"
            shutil.copytree(undisturbed[1].parent / "interrupted", out)
            evaluate(replace(config, model=run / name, out=out, figures=False, tracking=f"sqlite:///{database}"),
                     lambda _: None)  # fmt: skip
    client = MlflowClient(config.tracking)
    (experiment,) = client.search_experiments(filter_string="name = 'study'")
    own, other = sorted(client.search_runs([experiment.experiment_id]), key=lambda r: r.info.run_id != tracker.run_id)
    assert other.data.tags["mlflow.parentRunId"] == own.info.run_id == tracker.run_id
    assert (own.info.status, own.info.end_time) == ("KILLED", ended)  # when and how the training ended
    assert other.info.status == "FINISHED"
    for found, name in ((own, "model.pt"), (other, "best.pt")):
        assert found.data.tags["evaluation"].startswith(f"{name} on shapes ")
        assert len(client.get_metric_history(found.info.run_id, "gain/AP")) == 2
        path = client.download_artifacts(found.info.run_id, "evaluation-shapes/summary.json", str(tmp_path))
        summary = json.loads(Path(path).read_text())
        assert summary["model"] == str(run / name)
        assert found.data.metrics["mask_by_mask/AP"] == pytest.approx(summary["ap"]["mask_by_mask"]["AP"])
