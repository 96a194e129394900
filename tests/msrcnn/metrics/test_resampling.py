"""Bootstrap draws and intervals: counts, known numbers, and how often an interval holds the truth."""

from __future__ import annotations

from math import isnan

import numpy as np
import pytest

from msrcnn.errors import InputError
from msrcnn.metrics.resampling import drawn_difference, hierarchical, image_draws, percentiles, simultaneous


def test_a_draw_has_as_many_images_as_there_are():
    draws = image_draws(40, 3000, seed=1)
    assert draws.shape == (3000, 40)
    assert (draws >= 0).all()
    assert (draws.sum(axis=1) == 40).all()
    # each image Binomial(40, 1/40): absent with (39/40)^40, variance 39/40
    assert (draws == 0).mean() == pytest.approx((39 / 40) ** 40, abs=0.005)
    assert draws.var() == pytest.approx(39 / 40, abs=0.02)
    np.testing.assert_allclose(draws.mean(axis=0), 1, atol=0.1)
    np.testing.assert_array_equal(image_draws(40, 3000, seed=1), draws)
    assert (image_draws(40, 3000, seed=2) != draws).any()


def test_one_seed_has_the_percentiles_of_the_draws():
    values = np.random.default_rng(0).permutation(1001) / 1000  # 0, 0.001, ... 1
    found = hierarchical([values], [0.4], seed=3)
    assert (found.value, found.low, found.high) == pytest.approx((0.4, 0.025, 0.975))


@pytest.mark.parametrize(("points", "quantile"), [((0.1, 0.2, 0.6), 4.3027), ((0, 1), 12.706)])
def test_seeds_alone_have_students_interval(points, quantile):
    """97.5% of Student's t with two degrees of freedom, and with one, from any table of it."""
    found = hierarchical([np.full(20_000, v) for v in points], points, seed=0)
    half = quantile * np.std(points, ddof=1) / np.sqrt(len(points))
    assert (found.value, found.low, found.high) == pytest.approx(
        (np.mean(points), np.mean(points) - half, np.mean(points) + half), rel=0.003
    )


def test_what_images_and_seeds_scatter_adds_up():
    """For many seeds, by Pythagoras."""
    rng = np.random.default_rng(0)
    seeds, images = rng.normal(0, 1, 400), rng.normal(0, 0.05, 20_000)
    found = hierarchical([images + seed for seed in seeds], seeds.tolist(), seed=0)
    half = 1.96 * np.hypot(0.05, seeds.std() / 20)
    assert (found.high - found.low) / 2 == pytest.approx(half, rel=0.03)


def test_what_all_seeds_share_cancels_in_a_difference():
    rng = np.random.default_rng(0)
    one = rng.normal(0.3, 0.1, (3, 500))
    found = hierarchical(list(one + 0.02 - one), [0.02] * 3, seed=1)
    assert (found.value, found.low, found.high) == pytest.approx((0.02, 0.02, 0.02))


@pytest.mark.parametrize("seeds", [3, 12])
def test_the_interval_holds_the_truth_as_often_as_it_says(seeds):
    """Images and seeds both scatter; an interval from images alone misses what the seeds add."""
    rng, truth, images, repeats = np.random.default_rng(0), 0.3, 60, 400
    held, by_images = 0, 0
    for repeat in range(repeats):
        of_seeds = rng.normal(0, 0.05, (seeds, 1))
        scores = truth + of_seeds + rng.normal(0, 0.1, images) + rng.normal(0, 0.1, (seeds, images))  # [S, I]
        values = scores @ image_draws(images, 300, repeat).T / images  # [S, R]
        found = hierarchical(list(values), scores.mean(axis=1).tolist(), repeat)
        held += found.low <= truth <= found.high
        low, high = np.percentile(values.mean(axis=0), (2.5, 97.5))
        by_images += low <= truth <= high
    assert 0.93 <= held / repeats <= 0.99
    assert by_images / repeats < 0.88


def test_a_value_that_is_nan_is_not_hidden():
    found = hierarchical([np.array([0.1, np.nan, 0.2])], [0.1], seed=0)
    assert found.value == 0.1
    assert isnan(found.low)
    assert isnan(found.high)


@pytest.mark.parametrize(
    ("values", "points"),
    [([], []), ([np.ones(3)], [1, 2]), ([np.ones(3), np.ones(4)], [1, 2]), ([np.ones(0)], [1])],
)
def test_what_does_not_fit_is_refused(values, points):
    with pytest.raises(InputError, match=r"every seed's (values on the same draws|point)"):
        hierarchical(values, points, seed=0)


def test_bad_numbers_are_refused():
    for arguments, message in (((0, 5, 0), "images = 0"), ((5, 0, 0), "draws = 0"), ((5, 5, -1), "seed = -1")):
        with pytest.raises(InputError, match=message):
            image_draws(*arguments)
    with pytest.raises(InputError, match="seed = -1"):
        hierarchical([np.ones(3)], [1], seed=-1)


def test_what_the_seeds_of_both_sides_scatter_is_in_their_difference():
    """Two methods of equal means, three and four seeds with different scatter, images that scatter little."""
    rng = np.random.default_rng(3)
    held, draws = 0, 400
    for _ in range(400):
        one, other = rng.normal(0, 1, 3), rng.normal(0, 2, 4)
        images = rng.normal(0, 0.1, draws)  # the same for all: drawn together
        drawn = drawn_difference(
            [p + images for p in one], one.tolist(), [p + images for p in other], other.tolist(), rng
        )
        low, high = percentiles(drawn)
        held += low <= 0 <= high
    assert 0.93 <= held / 400 <= 1
    pair = drawn_difference([images], [0.0], [images + 1], [1.0], rng)
    assert np.allclose(pair, -1)  # one seed a side: images alone, and those are the same


def test_simultaneous_intervals_hold_all_numbers_at_once():
    """Of 20 independent numbers the single intervals hold all in 0.95^20 = 36% of cases."""
    rng = np.random.default_rng(5)
    together, each = 0, 0
    scale = np.geomspace(0.1, 10, 20)
    for _ in range(300):
        points = rng.normal(0, scale)
        drawn = points + rng.normal(0, scale, (500, 20))
        ends = simultaneous(drawn, points)
        together += bool((ends[:, 0] <= 0).all() and (ends[:, 1] >= 0).all())
        single = np.percentile(drawn, [2.5, 97.5], axis=0)
        each += bool((single[0] <= 0).all() and (single[1] >= 0).all())
    assert 0.91 <= together / 300 <= 0.98
    assert each / 300 < 0.5


def test_numbers_that_go_together_need_no_correction():
    rng = np.random.default_rng(6)
    drawn = np.outer(rng.normal(0, 1, 2000), [1.0, 2.0, 3.0])
    drawn = np.c_[drawn, np.full(2000, np.nan), np.zeros(2000)]
    ends = simultaneous(drawn, np.zeros(5))
    single = np.percentile(drawn[:, :3], [2.5, 97.5], axis=0)
    np.testing.assert_allclose(np.ptp(ends[:3], axis=1), np.ptp(single, axis=0), rtol=0.02)
    assert np.isnan(ends[3]).all()
    assert (ends[4] == 0).all()
