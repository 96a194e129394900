"""`msrcnn compare`: two evaluations of the same shards, or two methods' over several seeds, and their differences.

Matches of all sides are counted on the same draws of the images, so that intervals of differences are those of pairs
(`msrcnn.metrics.matches`); what several seeds scatter comes on top (`msrcnn.metrics.resampling`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from msrcnn.errors import InputError
from msrcnn.inference_config import described
from msrcnn.metrics.maskiou import MATCHED_IOU, true_maskiou
from msrcnn.metrics.matches import RESAMPLED, Matches
from msrcnn.metrics.resampling import drawn_difference, drawn_pearson, on_draws, percentiles, simultaneous
from pipelines.compare_options import CompareConfig
from pipelines.compare_table import Category, Comparison, Number, comparison_lines
from pipelines.detection_parts import SHORT, folder_of, read_parts
from pipelines.manifest import Manifest
from pipelines.output_folder import beginning
from pipelines.progress import Progress, duration
from pipelines.provenance import made
from pipelines.reading import RowGroup
from pipelines.report.comparison import RANKINGS, at
from pipelines.report.runs import Run, open_runs, rows_place, shards_of
from pipelines.reporting import plain
from pipelines.scoring import categories_of, read_part
from pipelines.storage import Location, locate

Floats = npt.NDArray[np.float64]
CORRELATIONS = {"correlation": "all_detections", "correlation, matched": "matched"}
"""Of predicted and true MaskIoU, and what `summary.json` calls the detections that they are over."""
AGREEMENT = np.dtype([("image_id", "i8"), ("maskiou", "f8"), ("true", "f8")])
"""A detection: predicted and true MaskIoU."""
FEWEST = 10
"""Images that a category must be in for an interval: what fewer scatter draws of them do not tell."""


@dataclass(frozen=True)
class Measured:
    """One evaluation: numbers by (of, metric) on all images and on R draws; fractions.

    `of` is box, mask_by_class, mask_by_mask, gain (the last less the one before it) or maskiou.
    """

    points: dict[tuple[str, str], float]
    draws: dict[tuple[str, str], Floats]  # [R] each
    category_points: Floats  # [C], mask AP by mask score
    category_draws: Floats  # [R, C]
    instances: npt.NDArray[np.int64]  # [I, C]


def compare(config: CompareConfig, log: Callable[[str], None] = print) -> Comparison:
    """Prints the differences and, where --out says, writes them.

    Raises:
        InputError: an evaluation cannot be used, is of other shards, or comes twice; or the file cannot be written.
    """
    began = time.monotonic()
    out = locate(config.out) if str(config.out) else None
    if out is not None and out.is_folder():
        raise InputError(f"{out}: is a folder; give --out a file")
    places = (config.a, *config.more_a), (config.b, *config.more_b)
    runs = open_runs([*places[0], *places[1]], [], [], with_rows=False)
    sides = runs[: len(places[0])], runs[len(places[0]) :]
    _check(sides)
    manifest, groups = shards_of(runs[0], config.shards if str(config.shards) else None)
    measured = [[measure(run, manifest, groups, config.bootstrap, config.seed, log) for run in side] for side in sides]
    found = compared(measured[0], measured[1], manifest, (_called(sides[0]), _called(sides[1])), config.seed)
    for line in comparison_lines(found):
        log(line)
    if out is not None:
        _write(found, sides, config, manifest, out)
    log(f"compared in {duration(time.monotonic() - began)}" + (f": {out}" if out is not None else ""))
    return found


def measure(
    run: Run, manifest: Manifest, groups: Sequence[RowGroup], draws: int, seed: int, log: Callable[[str], None]
) -> Measured:
    """Reads the detections of an evaluation and counts them on draws of the images."""
    assert run.summary is not None
    matches, agreement = _read(run, manifest, groups, log)
    log(f"drawing the images of {run.name} {draws} times")
    samples = matches.resample(draws, seed)
    drawn = {(name, metric): samples[ranking][metric] for name, ranking in RANKINGS.items() for metric in RESAMPLED}
    points = {key: at(run.summary, ("ap", *key)) for key in drawn}
    for metric in RESAMPLED:
        drawn["gain", metric] = drawn["mask_by_mask", metric] - drawn["mask_by_class", metric]
        points["gain", metric] = points["mask_by_mask", metric] - points["mask_by_class", metric]
    for name, of in CORRELATIONS.items():
        rows = agreement[agreement["true"] >= (MATCHED_IOU if of == "matched" else 0)]
        image = np.searchsorted(matches.image_ids, rows["image_id"])
        pearson = partial(drawn_pearson, rows["maskiou"], rows["true"], image)
        drawn["maskiou", name] = on_draws(pearson, len(matches.image_ids), draws, seed)
        points["maskiou", name] = at(run.summary, ("maskiou", of, "maskiou_pearson"))
    by_number = {c["number"]: at(c, ("by_mask",)) for c in run.summary["ap"]["per_category"]}
    return Measured(
        points, drawn, np.array([by_number[number] for number, _ in sorted(categories_of(manifest))]),
        matches.resample_categories("mask", draws, seed), matches.instances(),
    )  # fmt: skip


def _read(
    run: Run, manifest: Manifest, groups: Sequence[RowGroup], log: Callable[[str], None]
) -> tuple[Matches, npt.NDArray[np.void]]:
    """The matches of an evaluation, and its detections [N] of `AGREEMENT`."""
    stored = read_parts(folder_of(rows_place(run)), manifest, groups)
    log(f"reading the detections of {run.name}: {manifest.rows} images")
    matches, progress = Matches(categories_of(manifest)), Progress(manifest.rows, log)
    columns = [np.zeros(0, AGREEMENT)]
    for group in groups:
        truths, found = read_part(group, stored.folder)
        matches.update(truths, list(found.values()))
        for truth in truths:
            if (of := found.get(truth.image_id)) is not None:
                rows = np.zeros(len(of.categories), AGREEMENT)
                rows["image_id"], rows["maskiou"], rows["true"] = truth.image_id, of.maskious, true_maskiou(truth, of)
                columns.append(rows)
        progress.add(len(truths))
    return matches, np.concatenate(columns)


def compared(
    ones: Sequence[Measured], others: Sequence[Measured], manifest: Manifest, names: tuple[str, str], seed: int
) -> Comparison:
    """The second side less the first.

    Args:
        ones: the first side's evaluations, one a seed, on the same draws as the others.
        others: the second side's.
        manifest: of the shards.
        names: of the sides.
        seed: of the order in which what seeds scatter is added to the draws.
    """
    rng = np.random.default_rng(seed)
    numbers = []
    for key in ones[0].points:
        (a, of_a), (b, of_b) = (
            ([m.points[key] for m in side], [m.draws[key] for m in side]) for side in (ones, others)
        )
        ends = percentiles(drawn_difference(of_b, b, of_a, a, rng))
        numbers.append(Number(*key, float(np.mean(a)), float(np.mean(b)), *ends))
    a_points, b_points = (np.stack([m.category_points for m in side]) for side in (ones, others))  # [S, C] each
    # For each category the part of the seeds in another order: only their images are the same.
    drawn = np.stack([
        drawn_difference([m.category_draws[:, c] for m in others], b_points[:, c].tolist(),
                         [m.category_draws[:, c] for m in ones], a_points[:, c].tolist(), rng)
        for c in range(a_points.shape[1])
    ], 1)  # fmt: skip
    instances = ones[0].instances
    drawn[:, (instances > 0).sum(0) < FEWEST] = np.nan
    means = a_points.mean(0), b_points.mean(0)
    ends_of = simultaneous(drawn, means[1] - means[0])  # [C, 2]
    categories = [
        Category(number, name, int(instances[:, c].sum()), float(means[0][c]), float(means[1][c]), *ends_of[c].tolist())
        for c, (number, name) in enumerate(sorted(categories_of(manifest)))
    ]
    seeds = len(ones), len(others)
    return Comparison(manifest.name, manifest.rows, len(drawn), names, seeds, tuple(numbers), tuple(categories))


def _check(sides: Sequence[Sequence[Run]]) -> None:
    first = sides[0][0]
    for side in sides:
        models: dict[str, Run] = {}
        for run in side:
            if run.summary is None:
                raise InputError(f"{run.place}: a training without an evaluation; give a folder of `msrcnn evaluate`")
            if run.dataset != first.dataset:
                raise InputError(f"{run.place}: evaluated on other shards than {first.place} ({run.dataset[:SHORT]}, "
                                 f"not {first.dataset[:SHORT]}); evaluate both on the same")  # fmt: skip
            same = models.setdefault(run.summary["model_sha256"], run)
            if same is not run:
                raise InputError(f"{run.place}: of the same model as {same.place}, so no other seed; give each model "
                                 "of a side once")  # fmt: skip


def _called(side: Sequence[Run]) -> str:
    """A side's name: one model detects differently under other settings."""
    name = side[0].name + (f" and {len(side) - 1} more" if len(side) > 1 else "")
    settings = dict.fromkeys(described((run.summary or {}).get("inference", {})) for run in side)
    otherwise = "; ".join(of for of in settings if of)
    return name + (f" ({otherwise})" if otherwise else "")


def _write(
    found: Comparison, sides: Sequence[Sequence[Run]], config: CompareConfig, manifest: Manifest, out: Location
) -> None:
    a, b = ([_origin(run) for run in side] for side in sides)
    value = {
        "made": made(),
        "shards": manifest.fingerprint,
        "a": a,
        "b": b,
        "seed": config.seed,
        **plain(asdict(found)),
    }
    with beginning(out):
        out.parent.make_folder()
        out.write_json(value)


def _origin(run: Run) -> dict[str, Any]:
    summary = run.summary or {}
    return {"evaluation": str(run.place), "model_sha256": summary["model_sha256"],
            "inference": summary.get("inference", {})}  # fmt: skip
