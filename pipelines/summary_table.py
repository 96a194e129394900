"""An evaluation as people read it: AP, correlations, thresholds of scores, the MaskIoU heads if there are several."""

from __future__ import annotations

import math
from collections.abc import Iterable

from rich.markup import escape
from rich.table import Table

from msrcnn.metrics.coco_ap import METRICS
from pipelines.scoring import Summary, head_metrics
from pipelines.text_tables import NONE, as_text, number, percent, signed

WIDTH = 110
RANKED = {
    "box": "boxes, class score", "mask_by_class": "masks, class score", "mask_by_mask": "masks, mask score",
    "mask_by_oracle": "masks, oracle",
}  # fmt: skip
"""The rankings of `APReport`, and of `summary.json`, by name."""
SHOWN = (0.1, 0.3, 0.5, 0.7, 0.9)
"""Scores whose thresholds are printed."""


def summary_lines(summary: Summary) -> Iterable[str]:
    """The lines to print."""
    ap, images = summary.ap, summary.images
    table = Table(
        title=f"{escape(summary.dataset)}: {images.total} images, {summary.detections} detections", width=WIDTH
    )
    table.add_column("ranked by")
    for name in METRICS:
        table.add_column(name, justify="right")
    for key, title in RANKED.items():
        table.add_row(title, *(percent(getattr(ap, key)[name]) for name in METRICS))
    yield as_text(table, WIDTH)
    low, high = ap.gain_interval  # nan without draws
    drawn_too = f", 95% interval {100 * low:+.1f} to {100 * high:+.1f} (bootstrap over images)"
    yield (
        f"gain by mask score {signed(100 * ap.gain)} AP{'' if math.isnan(low) else drawn_too}; "
        f"oracle gap {percent(ap.oracle_gap)} AP, closed {number(ap.oracle_gap_closed, 2)}"
    )
    for title, part in (
        ("detections", summary.maskiou.all_detections),
        ("matched detections (true MaskIoU >= 0.5)", summary.maskiou.matched),
    ):
        yield (
            f"over {part.count} {title}, correlation with the true MaskIoU: predicted MaskIoU "
            f"{number(part.maskiou_pearson, 3)}, class score {number(part.class_pearson, 3)} "
            f"(Spearman {number(part.maskiou_spearman, 3)}, {number(part.class_spearman, 3)})"
        )
    yield threshold_table(summary)
    if summary.heads:
        yield heads_table(summary)
    if images.without_detections or images.failed:
        yield f"images without a detection: {images.without_detections}; images that failed: {images.failed}"


def threshold_table(summary: Summary) -> str:
    """What masks from a score on are right and found, overall."""
    table = Table(title=f"{escape(summary.dataset)}: precision / recall of the masks from a score on", width=WIDTH)
    table.add_column("score")
    for name in ("IoU", *(f"{score:g}" for score in SHOWN), "highest F1"):
        table.add_column(name, justify="right")
    for of in summary.thresholds:
        cells = [f"{percent(k.precision)} / {percent(k.recall)}" for k in of.grid if k.score in SHOWN]
        best = f"{percent(of.best.f1)} from {of.best.score:.3f}" if of.best else NONE
        table.add_row(f"{of.ranking} score", f"{of.iou:g}", *cells, best)
    return as_text(table, WIDTH)


def heads_table(summary: Summary) -> str:
    """The MaskIoU heads side by side, that of the table above as `maskiou`."""
    table = Table(title=f"{escape(summary.dataset)}: masks by mask score, by MaskIoU head", width=WIDTH)
    table.add_column("head")
    for name in ("AP", "AP50", "AP75", "correlation", "correlation, matched"):
        table.add_column(name, justify="right")
    for head, of_head in {"maskiou": summary, **summary.heads}.items():
        *aps, everywhere, matched = head_metrics(of_head).values()
        table.add_row(head, *(percent(value) for value in aps), number(everywhere, 3), number(matched, 3))
    return as_text(table, WIDTH)
