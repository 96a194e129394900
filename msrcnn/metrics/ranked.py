"""COCO's accumulation over matched masks: AP of all images, or of a bootstrap's draws of them.

Matching looks at one image at a time, so it is the same however often an image is drawn. A draw weights each detection
and each instance by the count of its image, which gives the precisions and recalls that copies of the images under new
ids would give.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from msrcnn.errors import InputError
from msrcnn.metrics.mask_matching import Bools, Floats, Ints

RECALLS = np.linspace(0.0, 1.0, 101)
"""Where COCO reads precision."""
BLOCK = 2**20
"""Draws times detections of a category that are looked at at once: a few arrays of 8 MB. Several times fewer would
let the calls take longer than what they compute."""


@dataclass(frozen=True)
class MaskAP:
    """Mask AP of one ranking, as fractions; nan where the ground truth has no instance."""

    ap: float
    ap50: float
    ap75: float


@dataclass(frozen=True)
class _Curve:
    """One category's ranking at one threshold.

    The precision at a recall is the highest at this recall or beyond, so only the h detections that took an instance
    matter, and how many were looked at until each.
    """

    image: Ints  # [h] image of each hit
    place: Ints  # [h] how many of the category are ranked up to it and with it
    ignored: Ints  # [k] image of each ignored detection
    ignored_before: Ints  # [h] how many of these are ranked before each hit


@dataclass(frozen=True)
class _Category:
    number: int  # from 0
    image: Ints  # [n] of each detection, the best one first
    curves: tuple[_Curve, ...]  # at each threshold


class RankedMasks:
    """One ranking of detections, matched; `MaskRankings.rank` makes it. Images can be drawn any number of times."""

    def __init__(
        self, image: Ints, category: Ints, scores: Floats, hit: Bools, ignored: Bools, instances: Ints
    ) -> None:
        """Takes the columns of N detections of I images and C categories.

        Args:
            image: [N] from 0.
            category: [N] from 0.
            scores: [N]; of equal ones the first row is ranked higher.
            hit: [N, 10], whether it took an instance at each threshold.
            ignored: [N, 10], whether it counts neither way.
            instances: [I, C] of each image and category, crowds not counted.
        """
        self._instances = instances
        rows = np.flatnonzero(~ignored.all(axis=1))  # what counts at no threshold would only take time
        rows = rows[np.lexsort((-scores[rows], category[rows]))]  # stable
        ends = np.searchsorted(category[rows], np.arange(instances.shape[1]), side="right")
        self._categories = []
        for c in np.flatnonzero(instances.any(axis=0)):
            of = rows[ends[c - 1] if c else 0 : ends[c]]  # [n]
            curves = (_curve(image[of], h, i) for h, i in zip(hit[of].T, ignored[of].T, strict=True))
            self._categories.append(_Category(int(c), image[of], tuple(curves)))

    def ap(self, counts: npt.ArrayLike | None = None) -> MaskAP:
        """Mask AP where image i counts counts[i] times, as `image_draws` gives them.

        It is what COCO gives with each image copied so often under new ids, but for equal scores: copies of a
        detection are ranked next to it. A category without instances in the draw is left out of the mean.

        Args:
            counts: int [I] in the order of `MaskColumns.image_ids`, from 0; None counts every image once.

        Raises:
            InputError: the counts are not so.
        """
        if counts is None:
            counts = np.ones(len(self._instances), dtype=np.int64)
        return MaskAP(*self.aps(np.asarray(counts)[None])[0].tolist())

    def aps(self, counts: npt.ArrayLike) -> Floats:
        """The same of R draws: counts int [R, I], the result [R, 3] with AP, AP50 and AP75.

        Raises:
            InputError: the counts are not so.
        """
        of_categories = self.category_aps(counts)  # [R, C, 10]
        total = np.zeros((len(of_categories), 10))
        for c in self._categories:
            total += np.nan_to_num(of_categories[:, c.number])
        with np.errstate(invalid="ignore"):  # no category, no AP
            of_thresholds = total / (~np.isnan(of_categories[:, :, :1])).sum(1)  # [R, 10]
        return np.stack([of_thresholds.mean(1), of_thresholds[:, 0], of_thresholds[:, 5]], 1)

    def category_aps(self, counts: npt.ArrayLike) -> Floats:
        """AP of each draw, category and threshold [R, C, 10], nan where a draw has no instance of a category.

        All draws go through numpy together, since a category of COCO has so few detections in a few hundred images
        that calls would take longer than what they compute. A draw of 5000 images with 100 detections of 80 categories
        takes 0.02 s on one core.

        Args:
            counts: int [R, I], as `aps` takes them.

        Raises:
            InputError: the counts are not so.
        """
        draws, images = np.asarray(counts), len(self._instances)
        if draws.ndim != 2 or draws.shape[1] != images or draws.dtype.kind not in "iu" or (draws < 0).any():
            raise InputError(f"counts of images are {draws.dtype} of shape {draws.shape}; they must be integers from 0 "
                             f"on, one for each of the {images} images")  # fmt: skip
        draws = draws.astype(np.int64)
        instances = draws @ self._instances  # [R, C]
        found = np.full((*instances.shape, 10), np.nan)
        for category in self._categories:
            drawn = np.flatnonzero(instances[:, category.number])
            at_once = max(1, BLOCK // (len(category.image) + 1))
            for k in range(0, len(drawn), at_once):
                rows = drawn[k : k + at_once]
                of = instances[rows, category.number]
                found[rows, category.number] = _of_thresholds(category, draws[rows], of)
        return found


def _of_thresholds(category: _Category, counts: Ints, instances: Ints) -> Floats:
    """AP of a category on draws [R, I] that have instances of it [R], at each threshold: [R, 10]."""
    below, looked_at = _recalls_below(instances), _running(counts[:, category.image])  # [R, n + 1]
    return np.stack([_mean_precision(curve, looked_at, counts, below) for curve in category.curves], 1)


def _curve(image: Ints, hit: Bools, ignored: Bools) -> _Curve:
    hits, passed = np.flatnonzero(hit), np.flatnonzero(ignored)
    return _Curve(image[hits], hits + 1, image[passed], np.searchsorted(passed, hits))


def _running(values: Ints) -> Ints:
    """[R, n + 1] sums of the first 0, 1, ... n values of each row."""
    sums = np.zeros((len(values), values.shape[1] + 1), dtype=np.int64)
    np.cumsum(values, axis=1, out=sums[:, 1:])
    return sums


def _recalls_below(instances: Ints) -> Ints:
    """How many of the 101 recalls are reached with 0, 1, ... true positives, [R, most + 1].

    Args:
        instances: [R] from 1.
    """
    true = np.arange(instances.max(initial=0) + 1)
    return np.searchsorted(RECALLS, true / instances[:, None], side="right")


def _mean_precision(curve: _Curve, looked_at: Ints, counts: Ints, below: Ints) -> Floats:
    """Mean of the precisions at 101 recalls, of each draw [R].

    A hit that counts w times is one point of the curve: the w - 1 points on the way to it have no higher precision.
    One that counts 0 times repeats the recall of the point before it at no higher precision.
    """
    true = np.cumsum(counts[:, curve.image], axis=1)  # [R, h]
    decided = looked_at[:, curve.place]  # [R, h] true and false
    if len(curve.ignored):
        decided = decided - _running(counts[:, curve.ignored])[:, curve.ignored_before]
    precision = true / (decided + np.spacing(1))
    precision = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]  # the highest at this recall or beyond
    reached = np.take_along_axis(below, true, axis=1)  # [R, h] recalls that are reached there or before
    mean: Floats = (precision * np.diff(reached, axis=1, prepend=0)).sum(1) / len(RECALLS)
    return mean
