"""From stored rows to numbers: nothing lost between Parquet and the metrics, and nothing depends on the split."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict, replace

import numpy as np
import pyarrow as pa
import pytest
from mlflow.utils.validation import _validate_metric

from msrcnn.errors import InputError
from msrcnn.metrics.coco_ap import METRICS, CocoAP
from msrcnn.metrics.maskiou import true_maskiou
from msrcnn.metrics.matches import Matches
from msrcnn.metrics.quality import MaskIoUQuality
from pipelines.detection_parts import read_parts
from pipelines.parquet import open_parquet
from pipelines.reading import row_groups
from pipelines.schema import DETECTION_ROW
from pipelines.scoring import categories_of, join, score_all, score_part, summarise, summary_metrics
from pipelines.stored_rows import images_of
from pipelines.summary_table import summary_lines
from tests.reference import reference_scenes
from tests.stored_scenes import result_rows, write_detections, write_shards

CATEGORIES = ((7, "a"), (9, "b"))


def quiet(_line: str) -> None:
    pass


@pytest.fixture(scope="module")
def scenes(make_scene):
    rng = np.random.default_rng(5)
    return [make_scene(i, rng, instances=5, detections=0 if i == 3 else 8, classes=2) for i in range(1, 7)]


@pytest.fixture
def stored(tmp_path, scenes):
    """The scenes as shards and parts; image 6 failed."""
    manifest = write_shards(tmp_path / "shards", [s.truth for s in scenes], CATEGORIES, files=2, row_group=2)
    found = {s.truth.image_id: s.detections if s.truth.image_id != 6 else None for s in scenes}
    return manifest, *write_detections(tmp_path, manifest, found)


def scored(manifest, groups, detections):
    """In this process, with what the tasks call."""
    return join(*(score_part(group, detections.folder, categories_of(manifest)) for group in groups))


def test_rows_come_back_by_image_best_first(scenes):
    rows = [row for s in scenes for row in result_rows(s.truth, s.detections if s.truth.image_id != 6 else None)]
    order = np.random.default_rng(0).permutation(len(rows))
    found = images_of(pa.Table.from_pylist([rows[i] for i in order], DETECTION_ROW))
    assert sorted(found) == [1, 2, 3, 4, 5]  # 6 failed, 3 has none
    assert len(found[3].categories) == 0
    for scene in scenes[:5]:
        got, want = found[scene.truth.image_id], scene.detections
        assert np.array_equal(got.class_scores, np.sort(want.class_scores)[::-1])
        assert got.class_scores.dtype == got.maskious.dtype == got.boxes.dtype == np.float32
        key = lambda d: sorted(zip(d.rles, d.categories.tolist(), d.maskious.tolist(), d.boxes.tolist(), strict=True))  # noqa: E731
        assert key(got) == key(want)


def test_equal_scores_keep_their_order(scenes):
    scene = scenes[0]
    tied = replace(scene.detections, class_scores=np.full(8, 0.5, np.float32))
    rows = result_rows(scene.truth, tied)
    assert images_of(pa.Table.from_pylist(rows, DETECTION_ROW))[1].rles == tied.rles


def test_the_summary_is_what_the_metrics_say_of_the_same_images(stored, scenes):
    scores = scored(*stored)
    assert asdict(scores.images) == {"total": 6, "with_detections": 4, "without_detections": 1, "failed": 1}
    assert scores.detections == 32
    summary = summarise("scenes", scores, bootstrap=50, seed=1)

    rows = [row for s in scenes[:5] for row in result_rows(s.truth, s.detections)]
    kept = images_of(pa.Table.from_pylist(rows, DETECTION_ROW))
    direct = CocoAP([(1, "a"), (2, "b")])
    direct.update([s.truth for s in scenes], list(kept.values()))  # the failed image's instances count as missed
    assert summary.ap == direct.summarise(50, 1)
    true = np.concatenate([true_maskiou(s.truth, kept[s.truth.image_id]) for s in scenes[:5]])
    columns = [np.concatenate([getattr(kept[i], name) for i in range(1, 6)]) for name in ("maskious", "class_scores")]
    assert summary.maskiou.all_detections.count == 32
    pearson = np.corrcoef(columns[0], true)[0, 1]
    assert summary.maskiou.all_detections.maskiou_pearson == pytest.approx(pearson, abs=1e-7)
    quality = MaskIoUQuality()
    quality.update(*columns, true)
    assert repr(summary.calibration) == repr(quality.summarise().calibration)  # nan is not nan
    assert summary.maskiou == quality.summarise().stats


def test_names_and_lines(stored):
    summary = summarise("scenes", scored(*stored), bootstrap=20, seed=0)
    metrics = summary_metrics(summary)
    assert metrics["mask_by_mask/AP"] == summary.ap.mask_by_mask["AP"]
    assert metrics["maskiou_all/maskiou_pearson"] == summary.maskiou.all_detections.maskiou_pearson
    assert {"box/AP", "mask_by_class/AP50", "mask_by_oracle/AR100", "gain/low", "oracle_gap_closed"} <= set(metrics)
    assert metrics["calibration_error/mask_score"] == summary.calibration.mask_score.error
    lines = "\n".join(summary_lines(summary))
    assert f"{100 * summary.ap.mask_by_mask['AP']:.1f}" in lines
    assert "images that failed: 1" in lines
    of_mask = next(t for t in summary.thresholds if (t.ranking, t.iou) == ("mask", 0.5))
    kept = next(kept for kept in of_mask.grid if kept.score == 0.5)
    row = next(line for line in lines.splitlines() if line.startswith("│ mask score ") and " 0.5 " in line)
    assert f"{100 * kept.precision:.1f} / {100 * kept.recall:.1f}" in row
    assert f"{100 * of_mask.best.f1:.1f} from {of_mask.best.score:.3f}" in row
    low, high = summary.ap.gain_interval
    gain = f"gain by mask score {100 * summary.ap.gain:+.1f} AP"
    assert f"{gain}, 95% interval {100 * low:+.1f} to {100 * high:+.1f} (bootstrap over images); oracle gap" in lines
    assert f"{gain}; oracle gap" in "\n".join(summary_lines(summarise("scenes", scored(*stored), bootstrap=0, seed=0)))


def test_an_image_without_any_row_counts_as_failed(tmp_path, scenes):
    manifest = write_shards(tmp_path / "shards", [s.truth for s in scenes], CATEGORIES, files=1, row_group=6)
    groups, detections = write_detections(tmp_path, manifest, {s.truth.image_id: s.detections for s in scenes[:4]})
    assert scored(manifest, groups, detections).images.failed == 2


def test_parts_of_other_shards_or_an_incomplete_folder_are_refused(tmp_path, stored, scenes):
    manifest, groups, detections = stored
    other = write_shards(tmp_path / "other", [s.truth for s in scenes[::-1]], CATEGORIES, files=2, row_group=2)
    with pytest.raises(InputError, match=r"made from other shards than .*other \(\w{12}, not \w{12}\)"):
        read_parts(detections.folder, other, row_groups(other))
    (detections.folder / "part-00001-0000.parquet").write(b"cut")
    with pytest.raises(InputError, match=r"1 of 4 parts are missing or damaged \(the first is part-00001-0000"):
        read_parts(detections.folder, manifest, groups)
    (detections.folder / "part-00001-0000.parquet").write((detections.folder / "part-00000-0000.parquet").read())
    with pytest.raises(InputError, match=r"part-00001-0000.*: image \d is not in the shards' row group"):
        score_part(groups[2], detections.folder, categories_of(manifest))


def test_worth_ranks_and_the_maskiou_is_compared_with_the_true_one(tmp_path, scenes):
    """AP is that of a detector whose MaskIoU is the worth; agreement, and calibration of the MaskIoU, that of one whose
    mask score is of the MaskIoU."""
    rng = np.random.default_rng(8)
    worths = {s.truth.image_id: rng.random(len(s.detections.rles)).astype(np.float32) for s in scenes}
    kinds = {
        "both": lambda d: replace(d, worths=worths[d.image_id]),
        "worth": lambda d: replace(d, maskious=worths[d.image_id]),
        "maskiou": lambda d: d,
    }
    manifest = write_shards(tmp_path / "shards", [s.truth for s in scenes], CATEGORIES, files=2, row_group=2)
    summaries, folders = {}, {}
    for kind, change in kinds.items():
        found = {s.truth.image_id: change(s.detections) for s in scenes}
        groups, folders[kind] = write_detections(tmp_path / kind, manifest, found)
        summaries[kind] = summarise("scenes", scored(manifest, groups, folders[kind]), 20, 1)
    both, worth, maskiou = summaries.values()
    assert repr(both.ap) == repr(worth.ap) != repr(maskiou.ap)
    assert repr((both.bins, both.calibration.mask_score)) == repr((worth.bins, worth.calibration.mask_score))
    assert repr(both.calibration.maskiou) == repr(maskiou.calibration.maskiou) != repr(worth.calibration.maskiou)
    for name in ("all_detections", "matched"):
        ours, theirs = (asdict(getattr(s.maskiou, name)) for s in (both, maskiou))
        assert ours.pop("mask_score_pearson") == getattr(worth.maskiou, name).mask_score_pearson
        theirs.pop("mask_score_pearson")
        assert repr(ours) == repr(theirs)


HEADS = ("input=b", "tau=0.5,weight=2.0")


@pytest.fixture
def many(tmp_path, scenes):
    """As `stored`, with two further MaskIoU heads; and the folder's files of each of them alone."""
    manifest = write_shards(tmp_path / "shards", [s.truth for s in scenes], CATEGORIES, files=2, row_group=2)
    rng = np.random.default_rng(4)
    found = {
        s.truth.image_id: replace(
            s.detections,
            head_maskious=rng.integers(-1, 11, (len(s.detections.rles), 2)).astype(np.float32) / np.float32(10),
        )
        for s in scenes[:5]
    }
    of_all = write_detections(tmp_path / "many", manifest, {**found, 6: None}, heads=HEADS)
    alone = [
        write_detections(tmp_path / str(v), manifest, {6: None} | {i: d.of_head(v) for i, d in found.items()})
        for v in range(2)
    ]
    return manifest, of_all, alone


def test_each_head_scores_as_if_its_maskious_were_the_only_ones(many, scenes):
    manifest, (groups, detections), alone = many
    assert detections.origin.heads == HEADS
    categories = categories_of(manifest)
    parts = [score_part(group, detections.folder, categories, HEADS) for group in groups]
    summary = summarise("scenes", join(*parts), 20, 1)
    assert list(summary.heads) == list(HEADS)
    for name, (_, of_head) in zip(HEADS, alone, strict=True):
        want = summarise("scenes", scored(manifest, groups, of_head), 20, 1)
        assert repr(summary.heads[name]) == repr(want)
        assert (want.ap.box, want.ap.mask_by_class) == (summary.ap.box, summary.ap.mask_by_class)
        assert want.ap.mask_by_mask != summary.ap.mask_by_mask
    found = {s.truth.image_id: s.detections if s.truth.image_id != 6 else None for s in scenes}
    main = summarise("scenes", scored(manifest, *write_detections(detections.folder.parent / "main", manifest, found)),
                     20, 1)  # fmt: skip
    assert repr(replace(summary, heads={})) == repr(main)
    assert repr(summarise("scenes", join(join(*parts[:3]), *parts[3:]), 20, 1)) == repr(summary)
    assert repr(summarise("scenes", join(*parts[::-1]), 20, 1)) == repr(summary)


def test_what_heads_share_is_drawn_once(many, monkeypatch):
    manifest, (groups, detections), _ = many
    parts = [score_part(group, detections.folder, categories_of(manifest), HEADS) for group in groups]
    drawn, ranked = Counter(), Matches.ranked

    def counted(self, ranking, area="all"):
        drawn[ranking] += area == "all"
        return ranked(self, ranking, area)

    monkeypatch.setattr(Matches, "ranked", counted)
    summarise("scenes", join(*parts), 2, 1)
    assert drawn == {"box": 1, "class": 1, "mask": 3}


def test_names_and_lines_of_heads(many):
    manifest, (groups, detections), _ = many
    categories = categories_of(manifest)
    parts = [score_part(group, detections.folder, categories, HEADS) for group in groups]
    summary = summarise("scenes", join(*parts), 0, 0)
    metrics = summary_metrics(summary)
    second = summary.heads[HEADS[1]]
    assert metrics["heads/tau-0.5_weight-2.0/AP75"] == second.ap.mask_by_mask["AP75"]
    assert metrics["heads/input-b/correlation"] == summary.heads["input=b"].maskiou.all_detections.maskiou_pearson
    for name, value in metrics.items():
        _validate_metric(name, float(np.nan_to_num(value)), 0, 0)
    table = list(summary_lines(summary))[-2]
    assert [line.split()[1] for line in table.splitlines() if "│" in line] == ["maskiou", *HEADS]
    assert f"{second.maskiou.matched.maskiou_pearson:.3f}" in table
    assert json.loads(json.dumps(asdict(summary)))["heads"][HEADS[1]]["ap"]["box"] == summary.ap.box


def test_rows_of_other_heads_are_refused(many):
    manifest, (groups, detections), _ = many
    with pytest.raises(InputError, match="a row has 2 predicted MaskIoUs of further heads, expected are 0"):
        score_part(groups[0], detections.folder, categories_of(manifest))
    rows = open_parquet((detections.folder / "part-00000-0000.parquet").url).read().to_pylist()
    rows[0]["maskious"] = [0.5]
    with pytest.raises(InputError, match="some have more predicted MaskIoUs than others"):
        images_of(pa.Table.from_pylist(rows, DETECTION_ROW))


@pytest.mark.ray
@pytest.mark.usefixtures("ray_session")
@pytest.mark.parametrize("parts", [1, pytest.param(3, marks=pytest.mark.slow), 7])
def test_official_numbers_from_tasks_whatever_the_split(data_dir, tmp_path, parts):
    """100 images of the COCO API's own fake results, in random order and cut into row groups at random."""
    expected, whole = json.loads((data_dir / "ap_reference" / "expected.json").read_text()), None
    for kind in ("segm", "bbox"):
        truths, found, categories = reference_scenes(data_dir, kind)
        order = np.random.default_rng(parts).permutation(len(truths))
        rows = -(-len(truths) // parts)
        manifest = write_shards(tmp_path / kind / "shards", [truths[i] for i in order], categories, 1, rows)
        groups, detections = write_detections(tmp_path / kind, manifest, found)
        assert len(groups) == parts
        lines: list[str] = []
        summary = summarise("reference", score_all(manifest, groups, detections, lines.append), bootstrap=20, seed=0)
        got = summary.ap.box if kind == "bbox" else summary.ap.mask_by_mask
        np.testing.assert_allclose([got[name] for name in METRICS], expected[kind], rtol=0, atol=1e-12)
        assert any("100/100 images" in line for line in lines)
        # To the last bit what one process without a split says.
        alone = write_shards(tmp_path / kind / "alone", truths, categories, 1, len(truths))
        whole = summarise("reference", scored(alone, *write_detections(tmp_path / f"{kind}1", alone, found)), 20, 0)
        assert repr(summary) == repr(whole)  # every float by its shortest exact form; nan is not nan


@pytest.mark.ray
@pytest.mark.usefixtures("ray_session")
def test_a_task_s_input_error_is_one_line(stored):
    manifest, groups, detections = stored
    (detections.folder / "part-00001-0000.parquet").write((detections.folder / "part-00000-0000.parquet").read())
    with pytest.raises(InputError, match=r"is not in the shards' row group; give the shards that"):
        score_all(manifest, groups, detections, quiet)
    part = detections.folder / "part-00001-0000.parquet"
    part.remove()
    with pytest.raises(InputError, match=rf"^{part}: cannot be read \(No such file or directory\); put that right"):
        score_all(manifest, groups, detections, quiet)


def test_images_without_truth_have_no_numbers(tmp_path, scenes):
    """As those of a test set are."""
    nothing = {name: getattr(scenes[0].truth, name)[:0] for name in ("annotation_ids", "categories", "boxes", "areas")}
    bare = [replace(s.truth, **nothing, crowd=s.truth.crowd[:0], rles=[]) for s in scenes]
    manifest = write_shards(tmp_path / "shards", bare, CATEGORIES, files=1, row_group=4)
    found = {s.truth.image_id: s.detections for s in scenes}
    summary = summarise("bare", scored(manifest, *write_detections(tmp_path, manifest, found)), bootstrap=20, seed=0)
    assert np.isnan(summary.ap.mask_by_mask["AP"])
    assert np.isnan(summary.ap.gain_interval).all()
    assert summary.detections == 40
    text = "\n".join(summary_lines(summary))
    assert "gain by mask score - AP; oracle gap - AP, closed -" in text
    assert "nan" not in text
