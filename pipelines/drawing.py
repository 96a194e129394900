"""An evaluation's figures, each as PNG and SVG.

score_bins            mean scores by true MaskIoU (the paper's Fig. 2)
density, density_matched   predicted against true MaskIoU (Fig. 5), over all and over matched detections
precision_recall      of masks by class score and by mask score
category_gain         what mask scores bring each category
calibration           is the score the MaskIoU?
tide                  what AP50 is lost to, on a sample of the images
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from msrcnn.metrics.coco_ap import PrecisionRecall
from msrcnn.metrics.quality import MaskIoUQuality
from msrcnn.metrics.tide import tide_errors
from msrcnn.rows import ImageDetections, ImageTruth
from pipelines.scoring import PartialScores, Summary, categories_of, read_part
from pipelines.storage import Location

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from pipelines.reporting import Evaluated

TIDE_IMAGES = 2000
"""Errors are told apart on so many images at most: all of their masks are in memory at once."""


def draw(
    evaluated: Evaluated, scores: PartialScores, summary: Summary, curves: Sequence[PrecisionRecall], seed: int,
    folder: Location, log: Callable[[str], None],
) -> dict[str, Any]:  # fmt: skip
    """Writes the figures into `folder`.

    Returns:
        what the errors cost, for `summary.json`: images, seed, and by kind of error under both rankings.
    """
    from msrcnn.metrics.figures import rendered  # matplotlib takes a second

    folder.make_folder()
    tide = tide_of_sample(evaluated, seed)
    for name, figure in figures(scores, summary, curves, tide):
        for kind, data in rendered(figure).items():
            (folder / f"{name}.{kind}").write(data)
    log(f"figures in {folder}; errors told apart on {tide['images']} of {evaluated.manifest.rows} images (seed {seed})")
    return tide


def figures(
    scores: PartialScores, summary: Summary, curves: Sequence[PrecisionRecall], tide: dict[str, Any]
) -> Iterator[tuple[str, Figure]]:
    """Name and figure, one after the other."""
    from msrcnn.metrics import figures as drawn

    quality = MaskIoUQuality.from_bytes(scores.quality)
    agreement = summary.maskiou
    yield "score_bins", drawn.score_bins_figure(summary.bins)
    yield "density", drawn.density_figure(quality.density(False), agreement.all_detections.maskiou_pearson, False)
    yield "density_matched", drawn.density_figure(quality.density(True), agreement.matched.maskiou_pearson, True)
    yield "precision_recall", drawn.precision_recall_figure(curves)
    yield "category_gain", drawn.category_gain_figure(summary.ap.per_category)
    yield "calibration", drawn.calibration_figure(summary.calibration)
    yield "tide", drawn.tide_figure(tide["by_class"], tide["by_mask"], tide["images"])


def tide_of_sample(evaluated: Evaluated, seed: int) -> dict[str, Any]:
    """What AP50 is lost to, on at most `TIDE_IMAGES` images of row groups drawn by `seed`.

    Sharding has put the images in random order, so that some row groups are a sample like any other.
    """
    truths, found = sample(evaluated, seed)
    categories = categories_of(evaluated.manifest)
    return {
        "images": len(truths), "seed": seed,
        **{f"by_{ranking}": tide_errors(categories, truths, found, ranking) for ranking in ("class", "mask")},
    }  # fmt: skip


def sample(evaluated: Evaluated, seed: int) -> tuple[list[ImageTruth], list[ImageDetections]]:
    """Truth and detections of the images that errors are told apart on."""
    truths: list[ImageTruth] = []
    found: dict[int, ImageDetections] = {}
    for number in np.random.default_rng(seed).permutation(len(evaluated.groups)):
        if len(truths) >= TIDE_IMAGES:
            break
        of_group, detected = read_part(evaluated.groups[number], evaluated.detections.folder)
        truths += of_group[: TIDE_IMAGES - len(truths)]
        found |= detected
    return truths, [found[t.image_id] for t in truths if t.image_id in found]
