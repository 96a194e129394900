"""Mask AP from detections: ours against pycocotools, on one core; and what all numbers of an evaluation take.

COCO's truth is repeated under new ids, with 100 perturbed masks an image. `ratio`: pycocotools' `evaluate` and
`accumulate` for masks under one score, by ours (hotcoco's streaming evaluator behind `CocoAP`), both from what their
libraries hold in memory. `ratio_from_rows`: from files to the 12 numbers, pycocotools from COCO JSON, ours from shards
and stored rows. The 12 numbers must be equal to 1e-12, else the command fails.

Then everything that `msrcnn score` computes (boxes, three scores of masks, MaskIoU statistics, calibration): seconds
at three sizes, peak memory of a process that scores a part, and of one that joins and summarises all of them; in a
full run of a million detections.
"""

from __future__ import annotations

import os

os.environ.setdefault("RAYON_NUM_THREADS", "1")  # read when hotcoco is first used: pycocotools has one thread

import contextlib
import io
import json
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import hotcoco
import numpy as np
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from benchmarks.detections import Scored, Stored, scenes, store
from benchmarks.measuring import (
    milliseconds,
    parser_of,
    print_result,
    print_settings,
    quotient,
    time_in_turn,
)
from benchmarks.scoring_memory import peak_of
from msrcnn.metrics.coco_ap import METRICS
from msrcnn.metrics.coco_rows import annotation_dicts, image_dicts
from pipelines.export import mask_results
from pipelines.scoring import PartialScores, join, read_part, score_part, summarise

DETECTIONS = 100
TOLERANCE = 1e-12
PART_LIMIT, BYTES_A_DETECTION = 1 << 30, 2000
"""What a process that scores a part may take, and one that summarises for each detection beside PART_LIMIT."""


def quietly(work: Callable[[], Any]) -> Any:
    """Without what pycocotools prints."""
    with contextlib.redirect_stdout(io.StringIO()):
        return work()


def coco_json(scored: Sequence[Scored], folder: Path) -> tuple[Path, Path]:
    """Truth and results as pycocotools reads them."""
    truth, results = folder / "truth.json", folder / "results.json"
    annotations = [row for t, _ in scored for row in annotation_dicts(t)]
    for row in annotations:
        row["segmentation"] = {**row["segmentation"], "counts": row["segmentation"]["counts"].decode()}
    categories = [{"id": i, "name": str(i)} for i in range(1, 81)]
    truth.write_text(json.dumps({"images": image_dicts([t for t, _ in scored]), "annotations": annotations,
                                 "categories": categories}))  # fmt: skip
    numbers = {i: i for i in range(1, 81)}
    results.write_text(
        json.dumps([r for t, d in scored for r in mask_results(d, [t.height, t.width], numbers, "mask")])
    )
    return truth, results


def official(truth: COCO, results: COCO) -> list[float]:
    """pycocotools' 12 numbers."""
    evaluation = COCOeval(truth, results, "segm")
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    return evaluation.stats.tolist()


def streamed(
    batches: Sequence[tuple[list[Any], list[Any], list[Any]]], categories: list[dict[str, Any]]
) -> list[float]:
    """The 12 numbers by hotcoco's streaming evaluator, a row group at a time as in `CocoAP`."""
    evaluator = hotcoco.StreamingEval(categories, "segm")
    for batch in batches:
        evaluator.update(*batch)
    final = evaluator.finalize()
    final.accumulate()
    final.summarize()
    return list(final.stats)


def batches_of(stored: Stored) -> list[tuple[list[Any], list[Any], list[Any]]]:
    """Images, annotations and results of each row group, from the files."""
    numbers = {c.number: c.number for c in stored.manifest.categories}
    batches = []
    for group in stored.groups:
        truths, found = read_part(group, stored.detections.folder)
        sizes = {t.image_id: [t.height, t.width] for t in truths}
        rows = [row for d in found.values() for row in mask_results(d, sizes[d.image_id], numbers, "mask")]
        batches.append((image_dicts(truths), [row for t in truths for row in annotation_dicts(t)], rows))
    return batches


def compare(stored: Stored, scored: Sequence[Scored], folder: Path, rounds: int) -> dict[str, Any]:
    """Both ratios, and whether the numbers are equal."""
    truth_file, results_file = coco_json(scored, folder)
    listed = [{"id": c.number, "name": c.name} for c in stored.manifest.categories]
    truth = quietly(lambda: COCO(str(truth_file)))
    results = quietly(lambda: truth.loadRes(str(results_file)))
    batches = batches_of(stored)
    theirs, ours = (quietly(lambda: official(truth, results)), quietly(lambda: streamed(batches, listed)))
    difference = float(np.abs(np.subtract(theirs, ours)).max())

    def from_json() -> None:
        truth = COCO(str(truth_file))
        official(truth, truth.loadRes(str(results_file)))

    sides = {
        "pycocotools": lambda: quietly(lambda: official(truth, results)),
        "ours": lambda: quietly(lambda: streamed(batches, listed)),
        "pycocotools_from_files": lambda: quietly(from_json),
        "ours_from_files": lambda: quietly(lambda: streamed(batches_of(stored), listed)),
    }
    times = time_in_turn(sides, rounds, warm_up=0)
    ratio, spread = quotient(times["pycocotools"], times["ours"])
    from_rows, from_rows_spread = quotient(times["pycocotools_from_files"], times["ours_from_files"])
    for name, timing in times.items():
        print(f"{name.replace('_', ' ')}: {timing.text}")
    print(f"matching and accumulation {ratio:.1f} times faster, from files {from_rows:.1f} times; "
          f"largest difference of the 12 numbers {difference:.1e}")  # fmt: skip
    return {"ratio": ratio, "ratio_spread": spread, "ratio_from_rows": from_rows,
            "ratio_from_rows_spread": from_rows_spread, "difference": difference, **milliseconds(**times)}  # fmt: skip


def score_everything(stored: Stored) -> tuple[float, list[PartialScores]]:
    """Seconds of the processor, which other jobs do not lengthen, and the scores of each part."""
    began = time.process_time()
    parts = [score_part(group, stored.detections.folder, stored.categories) for group in stored.groups]
    return time.process_time() - began, parts


def whole(sizes: Sequence[int], seed: int, folder: Path) -> dict[str, Any]:
    """Everything that is computed of an evaluation, at several sizes; memory at the largest."""
    figures: dict[str, Any] = {}
    for images in sizes:
        stored = store(scenes(images, DETECTIONS, seed)[0], folder / str(images))
        seconds, parts = score_everything(stored)
        began = time.process_time()
        summary = summarise("repeated", join(*parts), 0, 0)
        joining = time.process_time() - began
        size = sum(len(p.ap) + len(p.quality) for p in parts) / summary.detections
        print(f"{summary.detections} detections: parts {seconds:.1f} s, {1e3 * seconds / images:.1f} ms an image; "
              f"joining and summarising {joining:.1f} s; {size:.0f} bytes a detection travel")  # fmt: skip
        figures |= {f"seconds_{images}": seconds, f"joining_seconds_{images}": joining}
    ap = summary.ap
    for name, values in (("boxes, class score", ap.box), ("masks, class score", ap.mask_by_class),
                         ("masks, mask score", ap.mask_by_mask), ("masks, oracle", ap.mask_by_oracle)):  # fmt: skip
        print(f"{name}: {' '.join(f'{m} {values[m]:.4f}' for m in METRICS)}")
    group = (stored.groups[0], stored.detections.folder, stored.categories)
    nothing, part, joined = peak_of("import", None), peak_of("part", group), peak_of("join", parts)
    print(f"peak memory: {nothing / 1e6:.0f} MB of an idle process, {part / 1e6:.0f} MB scoring a part, "
          f"{joined / 1e6:.0f} MB joining and summarising {summary.detections} detections")  # fmt: skip
    first, last = sizes[0], sizes[-1]
    growth = (figures[f"seconds_{last}"] / last) / (figures[f"seconds_{first}"] / first)
    bound = part < PART_LIMIT and joined < PART_LIMIT + BYTES_A_DETECTION * summary.detections
    return {
        **figures, "seconds_an_image_growth": growth, "idle_peak_bytes": nothing, "part_peak_bytes": part,
        "summary_peak_bytes": joined, "summary_detections": summary.detections, "bytes_a_detection": size,
        "memory_bounded": bound,
    }  # fmt: skip


def main() -> int:
    parser = parser_of(__doc__ or "")
    parser.add_argument("--images", type=int, default=5000, help="compared with pycocotools (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="(default: %(default)s)")
    args = parser.parse_args()
    cpu = torch.device("cpu")
    torch.set_num_threads(1)
    images, rounds = (128, 3) if args.quick else (args.images, args.rounds)
    sizes = (64, 128, 256) if args.quick else (2500, 5000, 10000)
    with tempfile.TemporaryDirectory() as temporary:
        scored, source = scenes(images, DETECTIONS, args.seed)
        print_settings("scoring", cpu, truth=source, images=images, detections_an_image=DETECTIONS, rounds=rounds,
                       sizes=sizes, seed=args.seed)  # fmt: skip
        stored = store(scored, Path(temporary) / "compared")
        figures = compare(stored, scored, Path(temporary), rounds)
        figures |= whole(sizes, args.seed, Path(temporary))
    print_result("scoring", cpu, **figures, images=images, detections=images * DETECTIONS, seed=args.seed)
    if figures["difference"] > TOLERANCE or not figures["memory_bounded"]:
        print("scoring: the numbers differ from pycocotools', or a process took too much memory", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
