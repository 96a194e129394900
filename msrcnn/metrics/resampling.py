"""Bootstrap intervals of what was measured on the same images with several training seeds.

Images are drawn with replacement, and every number that is compared is taken on the same draws: their differences are
then paired. Where a training was repeated with other seeds, what they scatter comes on top: an interval from images
alone tells how one trained model does on other images, and not what another training would have given. Few seeds cannot
be drawn with replacement for that (of three, the interval would hold the truth in 75% of cases where they scatter more
than the images do), so their part is Student's t.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.stats import t  # type: ignore[import-untyped]

from msrcnn.errors import InputError, require

LEVELS = (2.5, 97.5)
"""Percentiles between which 95% of the draws lie."""
BLOCK = 2**23
"""Counts of images that are drawn at once: 64 MB."""


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
    _check_draws(images, draws, seed)
    return _drawn(np.random.default_rng(seed), images, draws)


def draw_blocks(images: int, draws: int, seed: int) -> Iterator[npt.NDArray[np.int64]]:
    """The rows of `image_draws` a few at a time, so that those of many images need not be held at once.

    Raises:
        InputError: as `image_draws`.
    """
    _check_draws(images, draws, seed)
    rng, at_once = np.random.default_rng(seed), max(1, BLOCK // images)
    for begin in range(0, draws, at_once):
        yield _drawn(rng, images, min(at_once, draws - begin))


def on_draws(
    statistic: Callable[[npt.NDArray[np.int64]], npt.NDArray[np.float64]], images: int, draws: int, seed: int
) -> npt.NDArray[np.float64]:
    """A statistic on draws of the images [R, ...]; nan for a single image: its draws are all the same, and what other
    images would give is not in them.

    Args:
        statistic: of some of the draws, int [r, I], gives [r, ...].
        images, draws, seed: as `image_draws` takes them.

    Raises:
        InputError: as `image_draws`.
    """
    found = np.concatenate([statistic(counts) for counts in draw_blocks(images, draws, seed)])
    return found if images > 1 else np.full_like(found, np.nan)


def varies(values: npt.NDArray[np.float64]) -> bool:
    """Whether not all of them are the same; without any they are."""
    return len(values) > 0 and bool((values != values[0]).any())


def drawn_pearson(
    values: npt.NDArray[np.float64], true: npt.NDArray[np.float64], image: npt.NDArray[np.int64],
    counts: npt.NDArray[np.int64],
) -> npt.NDArray[np.float64]:  # fmt: skip
    """Pearson's correlation on each draw [R], from sums over each image; nan where either side does not vary.

    Args:
        values, true: [N].
        image: [N], each row's, from 0.
        counts: int [R, I], from `image_draws`.
    """
    if not (varies(values) and varies(true)):
        return np.full(len(counts), np.nan)
    one, two = values - values.mean(), true - true.mean()  # which loses no digits below
    terms = (np.ones_like(two), one, two, one**2, two**2, one * two)
    by_image = np.stack([np.bincount(image, term, counts.shape[1]) for term in terms], 1)  # [I, 6]
    n, x, y, xx, yy, xy = (counts @ by_image).T  # [R] each
    with np.errstate(invalid="ignore", divide="ignore"):  # a draw may be of images without rows
        drawn: npt.NDArray[np.float64] = (n * xy - x * y) / np.sqrt((n * xx - x * x) * (n * yy - y * y))
    return drawn


def percentiles(drawn: npt.NDArray[np.float64]) -> tuple[float, float]:
    """The ends of the 95% interval of R draws; of those alone that have a value, nan if none has.

    A draw without an instance in a range of areas has no AP there.
    """
    there = drawn[~np.isnan(drawn)]
    if len(there) == 0:
        return float("nan"), float("nan")
    low, high = np.percentile(there, LEVELS).tolist()
    return low, high


def hierarchical(values: Sequence[npt.NDArray[np.float64]], points: Sequence[float], seed: int) -> Interval:
    """The mean over training seeds, with an interval over both images and seeds.

    The draws are of the seeds' mean on each draw of images, each shifted by a draw of the mean of S seeds about the
    truth: Student's t with S - 1 degrees of freedom times the deviation of `points` over the root of S. That deviation
    has in it what seeds do differently on the images that there are, so the interval is rather too wide than too
    narrow, and very wide for two seeds. One seed has no such part: the draws are of the images alone.

    For a difference of two methods give the differences of their values on the same draws, and of their points.

    Args:
        values: of each of S seeds [R], the statistic on each draw of images; the same draws for all seeds.
        points: [S], the statistic on all images.
        seed: of the pairing of seeds' and images' draws, at least 0.

    Returns:
        The mean of `points`, and percentiles of the draws; nan where a value is nan.

    Raises:
        InputError: there is no seed or draw, or the lengths differ.
    """
    require(seed >= 0, "seed", seed, "at least 0")
    lengths = {len(of_seed) for of_seed in values}
    if len(lengths) != 1 or 0 in lengths:
        raise InputError(f"values of {len(values)} seeds on {sorted(lengths)} draws: give every seed's values on the "
                         "same draws")  # fmt: skip
    if len(points) != len(values):
        raise InputError(f"values of {len(values)} seeds and points of {len(points)}: give every seed's point")
    drawn = _drawn_means(values, points, np.random.default_rng(seed))
    low, high = np.percentile(drawn, LEVELS)
    return Interval(float(np.mean(points)), float(low), float(high))


def drawn_difference(
    values: Sequence[npt.NDArray[np.float64]], points: Sequence[float], other_values: Sequence[npt.NDArray[np.float64]],
    other_points: Sequence[float], rng: np.random.Generator,
) -> npt.NDArray[np.float64]:  # fmt: skip
    """Draws of the difference of two methods' means over training seeds that have nothing to do with each other.

    As `hierarchical`, but for seeds that are no pairs: what each method's seeds scatter is added for itself, nothing
    for a method with one seed.

    Args:
        values, points: of the first method, as `hierarchical` takes them.
        other_values, other_points: of the second, on the same draws of images.
        rng: orders what is added.

    Returns:
        [R], the first less the second.
    """
    return _drawn_means(values, points, rng) - _drawn_means(other_values, other_points, rng)


def simultaneous(drawn: npt.NDArray[np.float64], points: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Intervals of K numbers that hold all of them at once in 95% of cases, and not only each for itself.

    Each is the point plus and minus half of the width that it would have alone, times a factor that all share: 95% of
    the draws have no number further from its mean, in such halves. Where numbers go together this is narrower than
    Bonferroni's and Holm's corrections, which 1000 draws could not tell for many numbers anyway (Romano and Wolf,
    Econometrica 2005).

    Args:
        drawn: [R, K], nan where a draw has no such number.
        points: [K].

    Returns:
        [K, 2], the ends; nan where a number has no draw.
    """
    halves = np.array([np.subtract(*percentiles(column)[::-1]) for column in drawn.T]) / 2  # [K]
    tested = halves > 0  # false for nan
    factor = 0.0
    if tested.any():
        far = np.abs(drawn[:, tested] - np.nanmean(drawn[:, tested], axis=0)) / halves[tested]
        factor = float(np.percentile(np.fmax.reduce(far, axis=1, initial=0.0), 95))
    return np.stack([points - factor * halves, points + factor * halves], 1)


def _drawn_means(
    values: Sequence[npt.NDArray[np.float64]], points: Sequence[float], rng: np.random.Generator
) -> npt.NDArray[np.float64]:
    """The seeds' mean on each draw of images [R], plus a draw of what the seeds scatter."""
    drawn: npt.NDArray[np.float64] = np.mean(np.stack([np.asarray(v, dtype=np.float64) for v in values]), axis=0)
    if len(points) == 1:
        return drawn
    # The distribution's quantiles in a random order: its tails are too heavy to leave them to 1000 draws.
    levels = (rng.permutation(len(drawn)) + 0.5) / len(drawn)
    return drawn + t.ppf(levels, len(points) - 1) * np.std(points, ddof=1) / np.sqrt(len(points))


def _check_draws(images: int, draws: int, seed: int) -> None:
    for name, value, least in (("images", images, 1), ("draws", draws, 1), ("seed", seed, 0)):
        require(value >= least, name, value, f"at least {least}")


def _drawn(rng: np.random.Generator, images: int, draws: int) -> npt.NDArray[np.int64]:
    return rng.multinomial(images, np.full(images, 1 / images), size=draws)
