"""COCO results of any detector become rows, or one line says which of them cannot be used."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from msrcnn.errors import InputError
from msrcnn.metrics.coco_ap import METRICS
from pipelines import json_stream, results_json
from pipelines.json_stream import read_list
from pipelines.reading import row_groups
from pipelines.results_json import import_results
from pipelines.scoring import categories_of, join, score_part, summarise
from pipelines.storage import locate
from tests.reference import reference_scenes
from tests.stored_scenes import coco_of, official, write_shards

CATEGORIES = ((7, "a"), (9, "b"))


def quiet(_line: str) -> None:
    pass


@pytest.fixture(scope="module")
def scenes(make_scene):
    rng = np.random.default_rng(2)
    return [make_scene(i, rng, instances=5, detections=0 if i == 4 else 9, classes=2) for i in range(1, 9)]


@pytest.fixture
def results(scenes):
    """What another detector would write, in random order."""
    rows = [
        {"image_id": s.truth.image_id, "category_id": CATEGORIES[c - 1][0], "score": score,
         "segmentation": {"size": [s.truth.height, s.truth.width], "counts": rle.decode()}}
        for s in scenes
        for c, score, rle in zip(s.detections.categories.tolist(), s.detections.class_scores.tolist(),
                                 s.detections.rles, strict=True)
    ]  # fmt: skip
    random.Random(1).shuffle(rows)
    return rows


@pytest.fixture
def manifest(tmp_path, scenes):
    return write_shards(tmp_path / "shards", [s.truth for s in scenes], CATEGORIES, files=2, row_group=3)


def imported(path: Path, manifest, folder: Path):
    groups = row_groups(manifest)
    stored = import_results(locate(path), manifest, groups, locate(folder), quiet)
    scores = join(*(score_part(group, stored.folder, categories_of(manifest)) for group in groups))
    return stored, summarise("scenes", scores, 0, 0)


@pytest.mark.parametrize("chunk", [1, 7, 64, 2**20])
def test_a_list_is_read_in_pieces_of_any_size(tmp_path, monkeypatch, chunk):
    monkeypatch.setattr(json_stream, "CHUNK", chunk)
    values = [{"a": [1, -2.5e-3, None, True], "b": {"é": 'x"\\u00e9 ,]'}}, 1234, "text", [], {}]
    path = tmp_path / "list.json"
    path.write_text("\ufeff \n" + json.dumps(values, indent=3, ensure_ascii=False) + " \n")
    assert list(read_list(locate(path))) == values
    path.write_text(" [ ]")
    assert list(read_list(locate(path))) == []


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (b"", "holds nothing"),
        (b'{"a": 1}', "holds no list"),
        (b"[1, 2", "expected ',' or ']'"),
        (b"[1 2]", "expected ',' or ']'"),
        (b'[{"a": 1, }]', "not valid JSON"),
        (b'[{"a": "x', "not valid JSON (Unterminated string"),
        (b'[{"a": tr', "not valid JSON (Expecting value"),
        (b"[1] 2", "more follows"),
        (b'["\xff"]', "not UTF-8"),
        (b"[" * 100_000, "nested too deep"),
    ],
)
def test_what_is_no_list_is_one_line(tmp_path, text, says):
    (tmp_path / "list.json").write_bytes(text)
    with pytest.raises(InputError) as error:
        list(read_list(locate(tmp_path / "list.json")))
    assert says in str(error.value)
    assert "\n" not in str(error.value)


def test_every_result_is_a_row_of_its_image_s_part_in_the_order_of_the_file(
    tmp_path, monkeypatch, manifest, results, scenes
):
    monkeypatch.setattr(results_json, "RUN_ROWS", 10)  # several runs
    (tmp_path / "r.json").write_text(json.dumps(results))
    stored, summary = imported(tmp_path / "r.json", manifest, tmp_path / "detections")
    rows = [row for path in sorted((tmp_path / "detections").iterdir()) for row in pq.read_table(path).to_pylist()]
    assert {row["image_id"] for row in rows} == {s.truth.image_id for s in scenes}
    assert [row["image_id"] for row in rows if row["category"] is None] == [4]
    for scene in scenes:
        got = [
            (r["class_score"], r["rle"].decode()) for r in rows if r["image_id"] == scene.truth.image_id and r["rle"]
        ]
        wanted = [(r["score"], r["segmentation"]["counts"]) for r in results if r["image_id"] == scene.truth.image_id]
        assert got == wanted
    assert {row["maskiou"] for row in rows if row["category"]} == {1.0}
    assert summary.ap.gain == 0
    assert stored.origin.model[:12] == rows[0]["model"]
    assert (summary.images.without_detections, summary.images.failed) == (1, 0)


def test_another_detector_s_results_score_as_with_pycocotools(tmp_path, manifest, results, scenes, capsys):
    """Scores with all the digits of a float64, some of which are one float32."""
    rng = np.random.default_rng(0)
    for row in results:
        row["score"] = float(np.float32(row["score"]) + rng.integers(0, 5) * 1e-12)
    path = tmp_path / "r.json"
    path.write_text(json.dumps(results))
    _, summary = imported(path, manifest, tmp_path / "detections")
    wanted = official(coco_of([s.truth for s in scenes], CATEGORIES), path, "segm")
    np.testing.assert_allclose([summary.ap.mask_by_class[m] for m in METRICS], wanted, rtol=0, atol=1e-12)
    assert summary.ap.mask_by_mask == summary.ap.mask_by_class
    capsys.readouterr()


def test_the_coco_api_s_own_results(tmp_path, data_dir):
    truths, _, categories = reference_scenes(data_dir, "segm")
    expected = json.loads((data_dir / "ap_reference" / "expected.json").read_text())
    manifest = write_shards(tmp_path / "shards", truths, categories, files=1, row_group=30)
    _, summary = imported(data_dir / "ap_reference" / "results_segm.json", manifest, tmp_path / "detections")
    got = [summary.ap.mask_by_class[name] for name in METRICS]
    np.testing.assert_allclose(got, expected["segm"], rtol=0, atol=1e-12)


def test_a_predicted_maskiou_and_boxes_are_taken_over(tmp_path, manifest, results):
    for row in results:
        row |= {"maskiou": 0.25, "bbox": [1.1, 2.2, 3.3, 4.4]}
    (tmp_path / "r.json").write_text(json.dumps(results))
    imported(tmp_path / "r.json", manifest, tmp_path / "detections")
    row = pq.read_table(tmp_path / "detections" / "part-00000-0000.parquet").to_pylist()[0]
    assert (row["maskiou"], row["mask_score"]) == (0.25, 0.25 * row["class_score"])
    assert row["bbox"] == [1.1, 2.2, 1.1 + 3.3, 2.2 + 4.4]


def test_what_predict_writes_is_ranked_as_there(tmp_path, manifest, results):
    for place, row in enumerate(results):
        row |= {"class_score": 0.5 + place / 1000, "maskiou": 0.25, "worth": 0.125}
        row["score"] = row["class_score"] * row["worth"]
    (tmp_path / "r.json").write_text(json.dumps(results))
    imported(tmp_path / "r.json", manifest, tmp_path / "detections")
    rows = [row for row in pq.read_table(tmp_path / "detections").to_pylist() if row["category"]]
    wanted = sorted((r["image_id"], r["class_score"], 0.25, 0.125, r["score"]) for r in results)
    got = [(r["image_id"], r["class_score"], r["maskiou"], r["worth"], r["mask_score"]) for r in rows]
    assert sorted(got) == wanted


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"image_id": 99}, r"result 3: image_id 99 is no image of .*shards; give the shards of the images"),
        ({"image_id": "1"}, "image_id '1' is no image"),
        ({"category_id": 1}, r"result 3 \(image \d\): category_id 1 is none of the annotation file's; they are 7, 9"),
        ({"score": None}, "score is None, expected a number"),
        ({"score": float("nan")}, "score is nan, expected a number"),
        ({"score": True}, "score is True, expected a number"),
        ({"maskiou": "good"}, "maskiou is 'good', expected a number"),
        ({"segmentation": [[1, 1, 5, 1, 5, 5]]}, "segmentation is a polygon; results need run lengths"),
        ({"segmentation": None}, "segmentation has no compressed run lengths"),
        ({"segmentation": {"size": [150, 180], "counts": [5, 3]}}, "segmentation has no compressed run lengths"),
        ({"segmentation": {"size": [180, 150], "counts": "0"}}, r"size is \[180, 150\], the image's \[150, 180\]"),
        (
            {"segmentation": {"size": [150, 180], "counts": "53"}},
            "the run lengths are of 8 pixels, the image has 27000",
        ),
        ({"segmentation": {"size": [150, 180], "counts": "5\t"}}, "broken run lengths"),
        ({"segmentation": {"size": [150, 180], "counts": "é"}}, "broken run lengths"),
        ({"bbox": [1, 2, 3]}, r"bbox is \[1, 2, 3\], expected \[x, y, width, height\]"),
        (7, "result 3 is a JSON int, expected {image_id, category_id, segmentation, score}"),
    ],
)
def test_a_result_that_cannot_be_used_is_named(tmp_path, manifest, results, change, says):
    results[3] = results[3] | change if isinstance(change, dict) else change
    (tmp_path / "r.json").write_text(json.dumps(results))
    with pytest.raises(InputError, match=says) as error:
        imported(tmp_path / "r.json", manifest, tmp_path / "detections")
    assert "\n" not in str(error.value)
    assert list((tmp_path / "detections").iterdir()) == []
