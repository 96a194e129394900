"""`msrcnn rescore`: mask AP under other fusions of class score and predicted MaskIoU, from stored detections."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict

from rich.table import Table

from msrcnn.errors import InputError
from msrcnn.metrics.fusion import FusedAP, FusionSweep, fusion_grid
from pipelines.detection_parts import folder_of, read_parts
from pipelines.manifest import read_manifest
from pipelines.output_folder import beginning
from pipelines.progress import Progress
from pipelines.reading import row_groups
from pipelines.reporting import plain
from pipelines.scoring import categories_of, read_part
from pipelines.scoring_options import RescoreConfig
from pipelines.storage import locate
from pipelines.text_tables import as_text, percent

WIDTH = 90


def rescore(config: RescoreConfig, log: Callable[[str], None] = print) -> tuple[FusedAP, ...]:
    """Reads the detections once, in this process, and prints and stores mask AP of every combination.

    Raises:
        InputError: detections and shards do not belong together, or the file cannot be written.
    """
    manifest, out = read_manifest(config.shards), locate(config.out)
    if out.is_folder():
        raise InputError(f"{out}: is a folder; give --out a file")
    groups = row_groups(manifest)
    stored = read_parts(folder_of(locate(config.detections)), manifest, groups)
    fusions = fusion_grid(config.class_powers, config.maskiou_powers, config.thresholds,
                          [k or None for k in config.top_k])  # fmt: skip
    sweep, progress = FusionSweep(categories_of(manifest)), Progress(manifest.rows, log)
    for group in groups:
        truths, found = read_part(group, stored.folder)
        sweep.update(truths, list(found.values()))
        progress.add(len(truths))
    results = sweep.evaluate(fusions)
    log(table(manifest.name, results))
    best = max(results, key=lambda r: r.ap if r.ap == r.ap else -1.0)
    value = {
        "dataset": manifest.name, "shards": stored.origin.dataset, "model_sha256": stored.origin.model,
        "images": manifest.rows, "results": [plain(asdict(r)) for r in results], "best": plain(asdict(best)),
    }  # fmt: skip
    with beginning(out):
        out.parent.make_folder()
        out.write_json(value)
    log(f"best: {described(best)}, mask AP {percent(best.ap)}; chosen and measured on the same images, so a little "
        f"flattered; all of it: {out}")  # fmt: skip
    if best.fusion.class_power > 0 and "heads" in stored.origin.settings:  # of a model of ours
        power = best.fusion.maskiou_power / best.fusion.class_power
        log(f"evaluate, predict and serve rank so with --maskiou-power {power:g} times the power that these detections "
            "were made with: 2 of a +ap model, else 1, if --maskiou-power was not given")  # fmt: skip
    return results


def described(result: FusedAP) -> str:
    """How it ranks, in words."""
    fusion = result.fusion
    return f"class score^{fusion.class_power:g} x MaskIoU^{fusion.maskiou_power:g}"


def table(name: str, results: Sequence[FusedAP]) -> str:
    """The numbers as people read them."""
    shown = Table(title=f"{name}: mask AP by how masks are ranked", width=WIDTH)
    for column in ("ranked by", "threshold", "top k", "AP", "AP50", "AP75"):
        shown.add_column(column, justify="left" if column == "ranked by" else "right")
    for r in results:
        limit = "all" if r.fusion.top_k is None else str(r.fusion.top_k)
        shown.add_row(described(r), f"{r.fusion.threshold:g}", limit, *(percent(v) for v in (r.ap, r.ap50, r.ap75)))
    return as_text(shown, WIDTH)
