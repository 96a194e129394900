"""Bootstrap draws and intervals: counts, known numbers, and how often an interval holds the truth."""

from __future__ import annotations

from math import isnan

import numpy as np
import pytest

from msrcnn.errors import InputError
from msrcnn.metrics.resampling import hierarchical, image_draws


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


def test_three_seeds_alone_reach_their_range():
    """Without spread over images the mean is the lowest value in 1 draw of 27, 3.7%: more than the 2.5% left out."""
    values = [np.full(20_000, v) for v in (0.1, 0.2, 0.6)]
    found = hierarchical(values, (0.1, 0.2, 0.6), seed=0)
    assert (found.value, found.low, found.high) == pytest.approx((0.3, 0.1, 0.6))


def test_two_seeds_give_their_means_in_known_shares():
    """0, 0.5 and 1 of values 0 and 1, in shares of 1/4, 1/2 and 1/4, whatever is added by the images."""
    shift = np.random.default_rng(0).normal(0, 0.01, 4000)
    found = hierarchical([shift, shift + 1], (0, 1), seed=0)
    assert found.value == 0.5
    # the lowest quarter is the images' alone: its 10% are 2.5% of all
    assert found.low == pytest.approx(np.percentile(shift, 10), abs=0.002)
    assert found.high == pytest.approx(1 + np.percentile(shift, 90), abs=0.002)


def test_what_all_seeds_share_cancels_in_a_difference():
    rng = np.random.default_rng(0)
    one = rng.normal(0.3, 0.1, (3, 500))
    found = hierarchical(list(one + 0.02 - one), [0.02] * 3, seed=1)
    assert (found.value, found.low, found.high) == pytest.approx((0.02, 0.02, 0.02))


def test_the_interval_holds_the_truth_as_often_as_it_says():
    """Images and seeds both scatter; an interval from images alone misses what the seeds add."""
    rng, truth, images, seeds, repeats = np.random.default_rng(0), 0.3, 60, 12, 400
    held, by_images = 0, 0
    for repeat in range(repeats):
        of_seeds = rng.normal(0, 0.05, (seeds, 1))
        scores = truth + of_seeds + rng.normal(0, 0.1, images) + rng.normal(0, 0.1, (seeds, images))  # [S, I]
        values = scores @ image_draws(images, 300, repeat).T / images  # [S, R]
        found = hierarchical(list(values), scores.mean(axis=1).tolist(), repeat)
        held += found.low <= truth <= found.high
        low, high = np.percentile(values.mean(axis=0), (2.5, 97.5))
        by_images += low <= truth <= high
    assert 0.90 <= held / repeats <= 0.98
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
