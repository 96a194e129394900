"""COCO results that are written are what pycocotools needs to give the same numbers, and what COCO's server takes."""

from __future__ import annotations

import json
import zipfile
from dataclasses import replace

import numpy as np
import pytest

from msrcnn.errors import InputError
from msrcnn.metrics.coco_ap import METRICS
from pipelines.export import export
from pipelines.scoring import categories_of, join, score_part, summarise
from pipelines.scoring_options import ExportConfig
from tests.stored_scenes import coco_of, official, write_detections, write_shards

CATEGORIES = ((18, "dog"), (44, "bottle"))


@pytest.fixture(scope="module")
def scenes(make_scene):
    rng = np.random.default_rng(8)
    return [make_scene(i, rng, instances=6, detections=0 if i == 3 else 12, classes=2) for i in range(1, 8)]


@pytest.fixture
def stored(tmp_path, scenes):
    manifest = write_shards(tmp_path / "shards", [s.truth for s in scenes], CATEGORIES, files=2, row_group=2)
    found = {s.truth.image_id: s.detections if s.truth.image_id != 5 else None for s in scenes}
    return manifest, *write_detections(tmp_path / "run", manifest, found)


@pytest.mark.parametrize("score", ["mask", "class"])
def test_pycocotools_reads_back_the_same_twelve_numbers(tmp_path, stored, scenes, score, capsys):
    manifest, groups, detections = stored
    lines: list[str] = []
    export(ExportConfig(tmp_path / "run", tmp_path / "shards", tmp_path / "out", score=score), lines.append)
    scores = join(*(score_part(group, detections.folder, categories_of(manifest)) for group in groups))
    summary, truth = summarise("scenes", scores, 0, 0), coco_of([s.truth for s in scenes], CATEGORIES)
    ours = summary.ap.mask_by_mask if score == "mask" else summary.ap.mask_by_class
    for kind, numbers in (("segm", ours), ("bbox", summary.ap.box)):
        path = tmp_path / "out" / f"{kind}.json"
        np.testing.assert_allclose([numbers[m] for m in METRICS], official(truth, path, kind), rtol=0, atol=1e-12)
        rows = json.loads(path.read_text())
        assert len(rows) == scores.detections == 60
        assert {row["category_id"] for row in rows} == {18, 44}
        wanted = {"image_id", "category_id", "score", "segmentation" if kind == "segm" else "bbox"}
        assert all(row.keys() == wanted for row in rows)
    assert lines[0] == ("warning: 1 image failed (first: image 5: not a readable image); what is in them counts as "
                        "missed")  # fmt: skip
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["bbox.json", "segm.json"]
    capsys.readouterr()


def test_the_archive_for_coco_s_server_from_images_without_annotations(tmp_path, scenes):
    bare = [replace(s.truth, annotation_ids=s.truth.annotation_ids[:0], categories=s.truth.categories[:0],
                    boxes=s.truth.boxes[:0], areas=s.truth.areas[:0], crowd=s.truth.crowd[:0], rles=[])
            for s in scenes]  # fmt: skip
    manifest = write_shards(tmp_path / "shards", bare, CATEGORIES, files=1, row_group=3)
    write_detections(tmp_path, manifest, {s.truth.image_id: s.detections for s in scenes})
    config = ExportConfig(tmp_path / "detections", tmp_path / "shards", tmp_path / "out", test_dev="msrcnn-r18")
    export(config, lambda _: None)
    name = "detections_test-dev2017_msrcnn-r18_results"
    with zipfile.ZipFile(tmp_path / "out" / f"{name}.zip") as packed:
        assert packed.namelist() == [f"{name}.json"]
        assert packed.read(f"{name}.json") == (tmp_path / "out" / "segm.json").read_bytes()
        assert len(json.loads(packed.read(f"{name}.json"))) == 72


def test_no_detection_at_all_is_an_empty_list(tmp_path, scenes):
    manifest = write_shards(tmp_path / "shards", [scenes[2].truth], CATEGORIES, files=1, row_group=1)
    write_detections(tmp_path, manifest, {3: scenes[2].detections})
    export(ExportConfig(tmp_path, tmp_path / "shards", tmp_path / "out"), lambda _: None)
    assert json.loads((tmp_path / "out" / "segm.json").read_text()) == []


def test_what_export_refuses(tmp_path, stored):
    with pytest.raises(InputError, match="--test-dev = 'a b' is not accepted"):
        ExportConfig("d", "s", "o", test_dev="a b")
    with pytest.raises(InputError, match="nowhere: no such folder"):
        export(ExportConfig(tmp_path / "nowhere", tmp_path / "shards", tmp_path / "out"), lambda _: None)
    (stored[2].folder / "part-00000-0000.parquet").remove()
    with pytest.raises(InputError, match="1 of 4 parts are missing or damaged"):
        export(ExportConfig(tmp_path / "run", tmp_path / "shards", tmp_path / "out"), lambda _: None)
    assert not (tmp_path / "out").exists()
