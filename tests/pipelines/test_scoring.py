"""From stored rows to numbers: nothing lost between Parquet and the metrics."""

from dataclasses import asdict

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from msrcnn.metrics.coco_ap import CocoAP
from msrcnn.metrics.maskiou import maskiou_stats, true_maskiou
from pipelines.manifest import Manifest, Part
from pipelines.schema import DETECTION_ROW, SHARD_ROW, Category
from pipelines.scoring import images_of, read_detections, score, summary_metrics
from pipelines.summary_table import summary_lines


@pytest.fixture
def scenes(make_scene):
    rng = np.random.default_rng(5)
    return [make_scene(i, rng, instances=5, detections=0 if i == 3 else 8, classes=2) for i in range(1, 7)]


@pytest.fixture
def stored(tmp_path, scenes):
    """The scenes as shards and detection rows on disk; image 6 failed."""
    shards, detections = tmp_path / "shards", tmp_path / "detections"
    shards.mkdir()
    detections.mkdir()
    truth_rows, rows = [], []
    for scene in scenes:
        t, d = scene.truth, scene.detections
        names = ("annotation_id", "category", "bbox", "area", "iscrowd", "rle")
        columns = zip(t.annotation_ids, t.categories, t.boxes.tolist(), t.areas, t.crowd, t.rles, strict=True)
        common = {"image_id": t.image_id, "height": t.height, "width": t.width}
        instances = [dict(zip(names, values, strict=True)) for values in columns]
        truth_rows.append(common | {"file_name": "x", "image": b"", "instances": instances})
        if t.image_id == 6:
            rows.append(common | {"error": "image 6: not a readable image"})
            continue
        names = ("category", "bbox", "class_score", "maskiou", "mask_score", "rle")
        columns = zip(d.categories, d.boxes.tolist(), d.class_scores, d.maskious, d.mask_scores, d.rles, strict=True)
        rows += [common | dict(zip(names, values, strict=True)) for values in columns] or [common]
    parts = []
    for i in range(2):
        pq.write_table(pa.Table.from_pylist(truth_rows[i::2], SHARD_ROW), shards / f"{i}.parquet", row_group_size=2)
        parts.append(Part(f"{i}.parquet", 3, 15, 0, ""))
    order = np.random.default_rng(0).permutation(len(rows))
    for i in range(3):
        table = pa.Table.from_pylist([rows[k] for k in order[i::3]], DETECTION_ROW)
        pq.write_table(table, detections / f"{i}.parquet")
    categories = (Category(1, 7, "a"), Category(2, 9, "b"))
    return Manifest(shards, "scenes", categories, tuple(parts), {}, {}), detections


def test_rows_come_back_by_image_best_first(stored, scenes):
    found = images_of(read_detections(stored[1]))
    assert sorted(found) == [1, 2, 3, 4, 5]  # 6 failed, 3 has none
    assert len(found[3].categories) == 0
    for scene in scenes[:5]:
        got, want = found[scene.truth.image_id], scene.detections
        order = np.argsort(-want.class_scores, kind="stable")
        assert np.array_equal(got.class_scores, want.class_scores[order])
        key = lambda d: sorted(zip(d.rles, d.categories.tolist(), d.maskious.tolist(), d.boxes.tolist(), strict=True))  # noqa: E731
        assert key(got) == key(want)


def test_the_summary_is_what_the_metrics_say_of_the_same_images(stored, scenes):
    manifest, detections = stored
    summary = score(manifest, read_detections(detections), bootstrap=50, seed=1)
    assert asdict(summary.images) == {"total": 6, "with_detections": 4, "without_detections": 1, "failed": 1}
    assert summary.detections == 32

    kept = images_of(read_detections(detections))
    direct = CocoAP([(1, "a"), (2, "b")])
    direct.update([s.truth for s in scenes], list(kept.values()))  # the failed image's instances count as missed
    assert summary.ap == direct.summarise(50, 1)
    true = np.concatenate([true_maskiou(s.truth, kept[s.truth.image_id]) for s in scenes[:5]])
    columns = [np.concatenate([getattr(kept[i], name) for i in range(1, 6)]) for name in ("maskious", "class_scores")]
    expected, got = maskiou_stats(*columns, true).all_detections, summary.maskiou.all_detections
    assert got.count == 32
    assert got.maskiou_pearson == pytest.approx(expected.maskiou_pearson, abs=1e-12)


def test_names_and_lines(stored):
    summary = score(stored[0], read_detections(stored[1]), bootstrap=20, seed=0)
    metrics = summary_metrics(summary)
    assert metrics["mask_by_mask/AP"] == summary.ap.mask_by_mask["AP"]
    assert metrics["maskiou_all/maskiou_pearson"] == summary.maskiou.all_detections.maskiou_pearson
    assert {"box/AP", "mask_by_class/AP50", "mask_by_oracle/AR100", "gain/low", "oracle_gap_closed"} <= set(metrics)
    lines = "\n".join(summary_lines(summary))
    assert f"{100 * summary.ap.mask_by_mask['AP']:.1f}" in lines
    assert "images that failed: 1" in lines
