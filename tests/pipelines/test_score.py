"""`msrcnn score` and `msrcnn rescore`: numbers after the fact, from stored detections or a results file."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from msrcnn.errors import InputError
from pipelines.export import export
from pipelines.manifest import read_manifest
from pipelines.options import EvaluateConfig
from pipelines.rescore import rescore
from pipelines.scoring import categories_of, join, score_part, summarise
from pipelines.scoring_options import ExportConfig, RescoreConfig, ScoreConfig
from pipelines.storage import locate
from tests.evaluations import write_model
from tests.object_store import object_store
from tests.stored_scenes import write_detections, write_shards

CATEGORIES = ((18, "dog"), (44, "bottle"))
FIGURES = {"score_bins", "density", "density_matched", "precision_recall", "category_gain", "calibration", "tide"}


@pytest.fixture
def stored(tmp_path, make_scene):
    rng = np.random.default_rng(8)
    scenes = [make_scene(i, rng, instances=6, detections=12, classes=2) for i in range(1, 8)]
    manifest = write_shards(tmp_path / "shards", [s.truth for s in scenes], CATEGORIES, files=2, row_group=2)
    groups, detections = write_detections(tmp_path / "run", manifest, {s.truth.image_id: s.detections for s in scenes})
    scores = join(*(score_part(group, detections.folder, categories_of(manifest)) for group in groups))
    return summarise("scenes", scores, 20, 0)


@pytest.fixture
def config(tmp_path):
    return ScoreConfig(tmp_path / "run", tmp_path / "shards", tmp_path / "out", bootstrap=20,
                       tracking=f"sqlite:///{tmp_path}/mlflow.db")  # fmt: skip


@pytest.mark.ray
@pytest.mark.usefixtures("ray_session")
def test_numbers_and_figures_from_stored_rows(config, stored, tmp_path):
    from mlflow import MlflowClient

    from pipelines.score import score, score_once

    lines: list[str] = []
    assert repr(score(config, lines.append)) == repr(stored)
    out = Path(config.out)
    assert sorted(p.name for p in out.iterdir()) == ["figures", "summary.json"]
    files = {p.name for p in (out / "figures").iterdir()}
    assert files == {f"{name}.{kind}" for name in FIGURES for kind in ("png", "svg")}
    summary = json.loads((out / "summary.json").read_text())
    assert summary["ap"]["mask_by_mask"]["AP"] == stored.ap.mask_by_mask["AP"]
    assert (summary["tide"]["images"], summary["tide"]["seed"]) == (7, 0)
    assert summary["shards_folder"] == str(tmp_path / "shards")
    assert summary["rows"] == str(tmp_path / "run")
    assert sum(count for *_, count in summary["density"]["counts"]) == stored.detections == summary["detections"]
    curves = {(c["ranking"], c["iou"]): c["precision"] for c in summary["curves"]}
    assert np.mean(curves["mask", 0.75]) == pytest.approx(stored.ap.mask_by_mask["AP75"], abs=1e-12)
    assert any("errors told apart on 7 of 7 images (seed 0)" in line for line in lines)
    client = MlflowClient(config.tracking)
    (run,) = client.search_runs([client.get_experiment_by_name("msrcnn").experiment_id])
    assert run.data.metrics["mask_by_mask/AP"] == stored.ap.mask_by_mask["AP"]
    assert {Path(a.path).name for a in client.list_artifacts(run.info.run_id, "evaluation-scenes/figures")} == files
    with pytest.raises(InputError, match="already holds an evaluation"):
        score(config, lines.append)
    score_once(config, lines.append)
    assert lines[-1] == f"{out}: holds the numbers of these detections on these shards, nothing to do"
    with pytest.raises(InputError, match="already holds an evaluation"):
        score_once(replace(config, bootstrap=config.bootstrap + 1), lines.append)

    manifest, nothing = read_manifest(tmp_path / "shards"), dict.fromkeys(range(1, 8))
    write_detections(tmp_path / "otherwise", manifest, nothing, inference={"precision": "bfloat16"})
    with pytest.raises(InputError, match="already holds an evaluation"):  # the same model, which detected otherwise
        score_once(replace(config, detections=tmp_path / "otherwise"), lines.append)

    # What was exported and is scored as another detector's results has the same numbers under its one score.
    export(ExportConfig(tmp_path / "run", tmp_path / "shards", tmp_path / "json"), lines.append)
    results = replace(config, detections=tmp_path / "json" / "segm.json", out=tmp_path / "again", figures=False)
    again = score(results, lines.append)
    assert repr(again.ap.mask_by_class) == repr(stored.ap.mask_by_mask)  # nan is not nan
    assert sorted(p.name for p in (tmp_path / "again").iterdir()) == ["detections", "summary.json"]
    score_once(results, lines.append)
    assert lines[-1].endswith("again: holds the numbers of these detections on these shards, nothing to do")
    third = score(replace(config, detections=tmp_path / "again", out=tmp_path / "third"), lines.append)
    assert repr(third.ap) == repr(again.ap)


@pytest.mark.usefixtures("stored")
def test_what_score_refuses_before_it_starts(config, tmp_path):
    from pipelines.score import score

    for name, says in (("none", "no such folder"), ("shards", "holds no detections; make them with")):
        with pytest.raises(InputError, match=says):
            score(replace(config, detections=tmp_path / name))
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").touch()
    with pytest.raises(InputError, match="is not empty"):
        score(replace(config, out=tmp_path / "full"))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
@pytest.mark.usefixtures("stored")
def test_ctrl_c_is_no_failure_in_mlflow(config, tmp_path, monkeypatch, error):
    from mlflow import MlflowClient

    from pipelines import evaluate, score

    def interrupted(*_):
        raise error

    write_model(tmp_path / "model.pt", tmp_path / "shards")
    again = EvaluateConfig(tmp_path / "model.pt", tmp_path / "shards", tmp_path / "again", tracking=config.tracking)
    for stage, verb, options in ((score, score.score, config), (evaluate, evaluate.evaluate, again)):
        monkeypatch.setattr(stage, "connect", interrupted)
        with pytest.raises(error):
            verb(options, lambda _: None)
    client = MlflowClient(config.tracking)
    runs = client.search_runs([client.get_experiment_by_name("msrcnn").experiment_id])
    assert {run.info.run_name for run in runs} == {"score out", "evaluate again"}
    assert {run.info.status for run in runs} == {"KILLED" if error is KeyboardInterrupt else "FAILED"}


def test_other_fusions_from_the_same_rows(tmp_path, stored):
    lines: list[str] = []
    config = RescoreConfig(tmp_path / "run", tmp_path / "shards", tmp_path / "fusions.json",
                           maskiou_powers=(0.0, 1.0), top_k=(0, 5))  # fmt: skip
    results = rescore(config, lines.append)
    by = {(r.fusion.maskiou_power, r.fusion.top_k): r.ap for r in results}
    assert by[0.0, None] == pytest.approx(stored.ap.mask_by_class["AP"], abs=1e-12)
    assert by[1.0, 5] <= by[1.0, None] + 1e-12
    value = json.loads((tmp_path / "fusions.json").read_text())
    assert [r["ap"] for r in value["results"]] == [r.ap for r in results]
    assert value["best"]["ap"] == max(by.values())
    assert "class score^1 x MaskIoU^0" in "\n".join(lines)
    assert f"with --maskiou-power {value['best']['fusion']['maskiou_power']:g} times the power" in lines[-1]
    with pytest.raises(InputError, match="--maskiou-powers"):
        RescoreConfig("d", "s", "o", maskiou_powers=(-1.0,))
    with pytest.raises(InputError, match="is a folder; give --out a file"):
        rescore(replace(config, out=tmp_path))


@pytest.mark.ray
@pytest.mark.usefixtures("ray_session")
def test_everything_behind_urls(tmp_path, make_scene, config):
    from pipelines.score import score

    scenes = [make_scene(i, np.random.default_rng(i), instances=4, detections=6, classes=2) for i in range(1, 6)]
    manifest = write_shards(tmp_path / "shards", [s.truth for s in scenes], CATEGORIES, files=1, row_group=2)
    with object_store() as url:
        found = {s.truth.image_id: s.detections for s in scenes}
        groups, detections = write_detections(url.format("run"), manifest, found)
        scores = join(*(score_part(group, detections.folder, categories_of(manifest)) for group in groups))
        config = replace(config, detections=url.format("run"), out=url.format("out"), figures=True)
        lines: list[str] = []
        assert repr(score(config, lines.append)) == repr(summarise("scenes", scores, 20, 0))
        out = locate(url.format("out"))
        assert json.loads((out / "summary.json").read())["images"]["total"] == 5
        assert len((out / "figures").list()) == 2 * len(FIGURES)
        assert set(out.list()) == {"figures", "summary.json"}
        assert not any(line.startswith("warning") for line in lines)  # MLflow has the files
        export(ExportConfig(url.format("run"), tmp_path / "shards", url.format("json"), test_dev="x"), lines.append)
        names = {"segm.json", "bbox.json", "detections_test-dev2017_x_results.zip"}
        assert set(locate(url.format("json")).list()) == names
        results = replace(config, detections=url.format("json/segm.json"), out=url.format("again"), figures=False)
        assert repr(score(results, lines.append).ap.mask_by_class) == repr(summarise("s", scores, 0, 0).ap.mask_by_mask)
    assert "word@" not in "\n".join(lines)
