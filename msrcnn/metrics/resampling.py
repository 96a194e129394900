"""Bootstrap intervals of what was measured on the same images with several training seeds.

Images are drawn with replacement, and every number that is compared is taken on the same draws: their differences are
then paired. Where a training was repeated with other seeds, the seeds are drawn as well: an interval from images alone
tells how one trained model does on other images, and not what another training would have given.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from msrcnn.errors import InputError, require

LEVELS = (2.5, 97.5)
"""Percentiles between which 95% of the draws lie."""


@dataclass(frozen=True)
class Interval:
    """A value with its 95% percentile interval."""

    value: float
    low: float
    high: float


def image_draws(images: int, draws: int, seed: int) -> npt.NDArray[np.int64]:
    """How often each image is in each draw of as many images with replacement.

    Args:
        images: I, at least 1.
        draws: R, at least 1.
        seed: at least 0; the same one gives the same draws.

    Returns:
        int [R, I]; rows sum to I. `RankedMasks.aps` takes them.

    Raises:
        InputError: a value is not accepted.
    """
    for name, value, least in (("images", images, 1), ("draws", draws, 1), ("seed", seed, 0)):
        require(value >= least, name, value, f"at least {least}")
    return np.random.default_rng(seed).multinomial(images, np.full(images, 1 / images), size=draws)


def seed_means(values: Sequence[npt.NDArray[np.float64]], seed: int) -> npt.NDArray[np.float64]:
    """Draws of the mean over training seeds: for each draw of images, as many seeds as there are, with replacement.

    The seeds' part is coarse where there are few: three give 10 different sets, of which all alike are 3 in 27, so that
    an interval is close to the range of the seeds; and resampling S of them understates the variance among seeds by
    (S - 1) / S. One seed has no such part: the draws are of the images alone.

    Args:
        values: of each of S seeds [R], the statistic on each draw of images; the same draws for all seeds.
        seed: of the drawing of seeds, at least 0; the same one draws the same seeds, so that ratios and differences of
            two results are paired.

    Returns:
        float [R]; nan where a value is nan.

    Raises:
        InputError: there is no seed or draw, or the lengths differ.
    """
    require(seed >= 0, "seed", seed, "at least 0")
    lengths = {len(of_seed) for of_seed in values}
    if len(lengths) != 1 or 0 in lengths:
        raise InputError(f"values of {len(values)} seeds on {sorted(lengths)} draws: give every seed's values on the "
                         "same draws")  # fmt: skip
    by_seed = np.stack([np.asarray(of_seed, dtype=np.float64) for of_seed in values])  # [S, R]
    seeds, draws = by_seed.shape
    drawn = np.random.default_rng(seed).integers(seeds, size=(seeds, draws))  # [S, R]
    return np.take_along_axis(by_seed, drawn, axis=0).mean(axis=0)  # [R]


def hierarchical(values: Sequence[npt.NDArray[np.float64]], points: Sequence[float], seed: int) -> Interval:
    """The mean over training seeds, with an interval over both images and seeds.

    For a difference of two methods give the differences of their values on the same draws, and of their points.

    Args:
        values: as `seed_means` takes them.
        points: [S], the statistic on all images.
        seed: of the drawing of seeds, at least 0.

    Returns:
        The mean of `points`, and the percentiles of `seed_means`; nan where a value is nan.

    Raises:
        InputError: there is no seed or draw, or the lengths differ.
    """
    means = seed_means(values, seed)
    if len(points) != len(values):
        raise InputError(f"values of {len(values)} seeds and points of {len(points)}: give every seed's point")
    low, high = np.percentile(means, LEVELS)
    return Interval(float(np.mean(points)), float(low), float(high))
