"""The scoring stage: every number of an evaluation, from stored detection rows and the ground truth in the shards."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset

from msrcnn.metrics.coco_ap import APReport, CocoAP
from msrcnn.metrics.maskiou import MaskIoUStats, ScoreBin, maskiou_stats, score_bins, true_maskiou
from msrcnn.rows import ImageDetections, ImageTruth
from pipelines.ingest import truths_of
from pipelines.manifest import Manifest
from pipelines.storage import Location, open_parquet

TRUTH_COLUMNS = ["image_id", "height", "width", "instances"]


@dataclass(frozen=True)
class Images:
    """What became of the images."""

    total: int
    with_detections: int
    without_detections: int
    failed: int


@dataclass(frozen=True)
class Summary:
    """Every number of an evaluation."""

    dataset: str
    images: Images
    detections: int
    ap: APReport
    maskiou: MaskIoUStats
    bins: tuple[ScoreBin, ...]


def read_detections(folder: Location) -> pa.Table:
    """The stored rows, ordered by image and, in an image, by descending class score."""
    table = pa.dataset.dataset(folder.path, filesystem=folder.filesystem, format="parquet").to_table()
    order = [("image_id", "ascending"), ("class_score", "descending")]
    return table.take(pc.sort_indices(table, sort_keys=order))


def images_of(table: pa.Table) -> dict[int, ImageDetections]:
    """Detection rows by image; an image without detections has an entry of length 0, a failed one has none.

    Args:
        table: ordered as `read_detections` gives it.
    """
    ids = table["image_id"].to_numpy()
    starts = np.flatnonzero(np.diff(ids, prepend=ids[:1] - 1)) if len(ids) else np.zeros(0, dtype=np.int64)
    found: dict[int, ImageDetections] = {}
    for start, end in zip(starts, [*starts[1:], len(ids)], strict=True):
        rows = table.slice(start, end - start)
        if rows["error"].null_count < rows.num_rows:
            continue
        rows = rows.filter(pc.is_valid(rows["category"]))
        found[int(ids[start])] = ImageDetections(
            int(ids[start]),
            rows["category"].to_numpy().astype(np.int32),
            np.array(rows["bbox"].to_pylist(), dtype=np.float32).reshape(-1, 4),  # [D, 4]
            rows["class_score"].to_numpy().astype(np.float32),
            rows["maskiou"].to_numpy().astype(np.float32),
            rows["rle"].to_pylist(),
        )
    return found


def score(manifest: Manifest, detections: pa.Table, bootstrap: int, seed: int) -> Summary:
    """Computes every number from the detection rows and the ground truth in the shards.

    Images that failed stay in the ground truth: what was not detected counts as missed.
    """
    found = images_of(detections)
    ap = CocoAP([(c.number, c.name) for c in manifest.categories])
    predicted, classes, true = [], [], []
    total = 0
    for path in manifest.paths:
        for batch in open_parquet(path).iter_batches(columns=TRUTH_COLUMNS):
            truths: list[ImageTruth] = truths_of(pa.Table.from_batches([batch]))
            total += len(truths)
            present = [found[t.image_id] for t in truths if t.image_id in found]
            ap.update(truths, present)
            by_id = {t.image_id: t for t in truths}
            for detected in present:
                predicted.append(detected.maskious)
                classes.append(detected.class_scores)
                true.append(true_maskiou(by_id[detected.image_id], detected))
    failed = total - len(found)
    empty = sum(len(d.categories) == 0 for d in found.values())
    columns = [np.concatenate([*column, np.zeros(0)]) for column in (predicted, classes, true)]
    return Summary(
        manifest.name,
        Images(total, total - failed - empty, empty, failed),
        len(columns[0]),
        ap.summarise(bootstrap, seed),
        maskiou_stats(*columns),
        score_bins(*columns),
    )


def summary_metrics(summary: Summary) -> dict[str, float]:
    """The numbers that go to MLflow, by name."""
    ap, all_, matched = summary.ap, summary.maskiou.all_detections, summary.maskiou.matched
    metrics: dict[str, float] = {}
    for ranking, values in (
        ("box", ap.box), ("mask_by_class", ap.mask_by_class), ("mask_by_mask", ap.mask_by_mask),
        ("mask_by_oracle", ap.mask_by_oracle),
    ):  # fmt: skip
        metrics |= {f"{ranking}/{name}": value for name, value in values.items()}
    metrics |= {
        "gain/AP": ap.gain, "gain/low": ap.gain_interval[0], "gain/high": ap.gain_interval[1],
        "oracle_gap": ap.oracle_gap, "oracle_gap_closed": ap.oracle_gap_closed,
    }  # fmt: skip
    for name, part in (("all", all_), ("matched", matched)):
        metrics |= {f"maskiou_{name}/{key}": float(value) for key, value in asdict(part).items()}
    return metrics
