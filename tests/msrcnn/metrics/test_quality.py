"""Statistics from fixed-size parts against the columns themselves: numpy, plain counting, bins by hand."""

from __future__ import annotations

import tracemalloc
import zlib
from math import isnan

import numpy as np
import pytest

from msrcnn.errors import InputError
from msrcnn.metrics.maskiou import BIN_EDGES
from msrcnn.metrics.quality import CALIBRATION_BINS, MaskIoUQuality


def _quality(predicted, class_scores, true):
    quality = MaskIoUQuality()
    quality.update(*(np.asarray(x) for x in (predicted, class_scores, true)))
    return quality


def _counted_ranks(values):
    """An average rank by its definition: all smaller ones, and half of the other equal ones."""
    return np.array([(values < v).sum() + ((values == v).sum() + 1) / 2 for v in values])


def _ranks(values):
    """The same for many values."""
    ordered = np.sort(values)
    return (np.searchsorted(ordered, values) + np.searchsorted(ordered, values, side="right") + 1) / 2


def _columns(number, seed=0):
    """Like detections: most are poor and have a low class score, many overlap nothing, some predictions leave 0..1."""
    rng = np.random.default_rng(seed)
    kind = rng.random(number)
    true = np.where(kind < 0.55, 0, np.where(kind < 0.8, rng.beta(1, 6, number), rng.beta(6, 2, number)))
    predicted = 0.3 + 0.5 * true + rng.normal(0, 0.15, number)
    class_scores = np.where(rng.random(number) < true, rng.beta(5, 1, number), rng.beta(0.4, 6, number))
    return predicted.astype(np.float32), class_scores.clip(0.001).astype(np.float32), true


# --- against the columns ------------------------------------------------------------------------------------


def test_a_million_detections_against_the_exact_values():
    predicted, class_scores, true = _columns(10**6)
    assert predicted.min() < 0
    assert predicted.max() > 1
    stats = _quality(predicted, class_scores, true).summarise().stats
    for found, kept in ((stats.all_detections, true >= 0), (stats.matched, true >= 0.5)):
        p, c, t = (x[kept].astype(np.float64) for x in (predicted, class_scores, true))
        ranks = _ranks(t)
        assert found.count == kept.sum()
        assert found.maskiou_pearson == pytest.approx(np.corrcoef(p, t)[0, 1], abs=1e-8)
        assert found.class_pearson == pytest.approx(np.corrcoef(c, t)[0, 1], abs=1e-8)
        assert found.mask_score_pearson == pytest.approx(np.corrcoef(c * p, t)[0, 1], abs=1e-8)
        assert found.mean_absolute_error == pytest.approx(np.abs(p - t).mean(), abs=1e-9)
        assert found.maskiou_spearman == pytest.approx(np.corrcoef(_ranks(p), ranks)[0, 1], abs=5e-4)
        assert found.class_spearman == pytest.approx(np.corrcoef(_ranks(c), ranks)[0, 1], abs=5e-4)


@pytest.mark.parametrize("levels", [6, 100])
def test_few_values_give_the_exact_coefficients(levels):
    rng = np.random.default_rng(levels)
    true = rng.integers(0, levels, 400) / levels
    predicted = np.clip(np.round(true + rng.normal(0, 0.2, 400), 2), 0, 1)  # clipping makes ties at 0 and 1
    class_scores = rng.integers(1, levels, 400) / levels
    stats = _quality(predicted, class_scores, true).summarise().stats
    for found, kept in ((stats.all_detections, true >= 0), (stats.matched, true >= 0.5)):
        p, c, t = predicted[kept], class_scores[kept], true[kept]
        ranks = _counted_ranks(t)
        assert found.maskiou_spearman == pytest.approx(np.corrcoef(_counted_ranks(p), ranks)[0, 1], abs=1e-12)
        assert found.class_spearman == pytest.approx(np.corrcoef(_counted_ranks(c), ranks)[0, 1], abs=1e-12)
        assert found.mask_score_pearson == pytest.approx(np.corrcoef(c * p, t)[0, 1], abs=1e-8)
    assert stats.all_detections.count > stats.matched.count > 0


def test_a_small_spread_far_from_zero_keeps_its_correlation():
    """Plain sums of squares in float64 lose it to cancellation."""
    rng = np.random.default_rng(0)
    true = 0.9 + 1e-4 * rng.random(10**5)
    predicted = 0.9 + 0.5 * (true - 0.9) + 1e-5 * rng.normal(size=10**5)
    found = _quality(predicted, true, true).summarise().stats.all_detections
    assert found.maskiou_pearson == pytest.approx(np.corrcoef(predicted, true)[0, 1], abs=1e-6)
    assert found.class_pearson == pytest.approx(1, abs=1e-12)


def test_spearman_sees_only_the_order():
    true = np.array([0.1, 0.2, 0.3, 0.9])
    found = _quality(true**2, 1 - true, true).summarise().stats.all_detections
    assert found.maskiou_spearman == pytest.approx(1)
    assert found.class_spearman == pytest.approx(-1)
    assert found.maskiou_pearson < 0.99


def test_matched_begins_at_one_half_in_sums_and_in_histograms():
    below = np.nextafter(0.5, 0)
    true = np.array([below, 0.5, 0.7])
    quality = _quality(true, true, true)
    assert quality.summarise().stats.matched.count == 2
    assert quality.density(matched=True).sum() == 2
    assert quality.density(matched=False).sum() == 3


@pytest.mark.parametrize("predicted", [[], [0.5], [0.1] * 7])
def test_degenerate_columns_have_no_coefficient(predicted):
    n = len(predicted)
    report = _quality(predicted, np.linspace(0.1, 0.9, n), np.linspace(0, 1, n)).summarise()
    found = report.stats.all_detections
    assert found.count == n
    assert isnan(found.maskiou_pearson)
    assert isnan(found.maskiou_spearman)
    assert isnan(found.class_pearson) == (n < 2)
    assert isnan(found.mean_absolute_error) == (n == 0)
    assert isnan(report.calibration.maskiou.error) == (n == 0)


def test_bins_by_hand():
    # true, class, predicted: at an edge; two in a bin; at 1; then three that are left out
    rows = [
        (0.60, 0.60, 0.5),
        (0.95, 0.80, 1.0),
        (0.91, 0.60, 0.5),
        (1.00, 1.00, 0.9),
        (0.50, 0.90, 0.9),
        (0.85, 0.50, 0.9),
        (0.30, 0.90, 0.9),
    ]
    true, class_scores, predicted = np.array(rows).T
    bins = _quality(predicted, class_scores, true).summarise().bins
    assert [(b.low, b.high) for b in bins] == [(0.5, 0.6), (0.6, 0.7), (0.7, 0.8), (0.8, 0.9), (0.9, 1.0)]
    assert [b.count for b in bins] == [0, 1, 0, 0, 3]
    assert isnan(bins[0].class_score)
    assert isnan(bins[0].mask_score)
    assert (bins[1].class_score, bins[1].mask_score) == pytest.approx((0.6, 0.3))
    assert (bins[4].class_score, bins[4].mask_score) == pytest.approx((0.8, (0.8 + 0.3 + 0.9) / 3))


def test_bins_of_many_detections():
    predicted, class_scores, true = _columns(10**5)
    for i, found in enumerate(_quality(predicted, class_scores, true).summarise().bins):
        kept = (class_scores > 0.5) & (true > 0.5) & (true >= BIN_EDGES[i]) & (true < BIN_EDGES[i + 1])
        assert found.count == kept.sum() > 100
        assert found.class_score == pytest.approx(class_scores[kept].astype(float).mean(), abs=1e-8)
        assert found.mask_score == pytest.approx((class_scores[kept].astype(float) * predicted[kept]).mean(), abs=1e-8)


def test_calibration_by_its_definition():
    predicted, class_scores, true = _columns(20000)
    calibration = _quality(predicted, class_scores, true).summarise().calibration
    predicted, class_scores = predicted.astype(float), class_scores.astype(float)
    for found, score in (
        (calibration.class_score, class_scores),
        (calibration.maskiou, predicted),
        (calibration.mask_score, class_scores * predicted),
    ):
        error = 0.0
        for i, b in enumerate(found.bins):
            low = -np.inf if i == 0 else i / CALIBRATION_BINS
            high = np.inf if i == CALIBRATION_BINS - 1 else (i + 1) / CALIBRATION_BINS
            inside = (score >= low) & (score < high)
            assert b.count == inside.sum()
            if b.count:
                assert (b.score, b.true) == pytest.approx((score[inside].mean(), true[inside].mean()), abs=1e-8)
                error += inside.mean() * abs(score[inside].mean() - true[inside].mean())
        assert found.error == pytest.approx(error, abs=1e-8)
        assert len(found.bins) == CALIBRATION_BINS
    perfect = _quality(true, true, true).summarise().calibration
    assert perfect.maskiou.error == 0
    assert _quality(true + 0.25, true, true).summarise().calibration.maskiou.error == pytest.approx(0.25)


def test_density_counts_cells():
    predicted, true = np.array([-0.5, 0.05, 0.999, 1.7, 0.31]), np.array([0.0, 0.5, 1.0, 0.95, 0.501])
    quality = _quality(predicted, predicted.clip(0, 1), true)
    expected = np.zeros((10, 10), int)
    for row, column in ((0, 0), (0, 5), (9, 9), (9, 9), (3, 5)):  # predicted, true
        expected[row, column] += 1
    np.testing.assert_array_equal(quality.density(matched=False, cells=10), expected)
    expected[0, 0] = 0
    np.testing.assert_array_equal(quality.density(matched=True, cells=10), expected)
    assert quality.density(matched=False).shape == (100, 100)
    with pytest.raises(InputError, match="cells is 300"):
        quality.density(matched=False, cells=300)


# --- parts --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(3))
def test_split_and_order_change_nothing(seed):
    """Not a bit: sums are of integers."""
    columns = _columns(200_000, seed)
    whole = _quality(*columns)
    rng = np.random.default_rng(seed)
    parts = []
    for indices in np.array_split(rng.permutation(200_000), np.sort(rng.integers(0, 200_000, 6))):
        part = MaskIoUQuality()
        for some in np.array_split(indices, 3):
            part.update(*(column[some] for column in columns))
        parts.append(part.to_bytes())
    merged = MaskIoUQuality.merge(MaskIoUQuality.from_bytes(parts[i]) for i in rng.permutation(len(parts)))
    assert merged.to_bytes() == whole.to_bytes()
    assert merged.summarise() == whole.summarise()


def test_parts_stay_usable_and_an_empty_one_adds_nothing():
    columns = _columns(1000)
    part, before = _quality(*columns), _quality(*columns).to_bytes()
    doubled = MaskIoUQuality.merge([part, MaskIoUQuality(), part])
    assert part.to_bytes() == before
    assert doubled.summarise().stats.all_detections.count == 2000
    assert MaskIoUQuality.from_bytes(MaskIoUQuality().to_bytes()).summarise().stats.all_detections.count == 0


def test_bytes_and_memory_do_not_grow_with_the_detections():
    small, large = _quality(*_columns(10_000)), MaskIoUQuality()
    assert len(MaskIoUQuality().to_bytes()) < 100
    assert len(small.to_bytes()) < 50_000
    columns = _columns(10**6)
    tracemalloc.start()
    large.update(*columns)
    held, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert held < 1e6  # the histograms are there from the beginning
    assert peak < 64e6  # three float64 columns and a chunk's intermediate results
    assert sum(counts.nbytes for counts in large._counts()) < 18.1e6
    assert len(large.to_bytes()) < 1.5e6


def test_what_is_no_state_is_refused():
    for data in (b"", b"junk", zlib.compress(b"something else")):
        with pytest.raises(InputError, match="not the state of a MaskIoUQuality"):
            MaskIoUQuality.from_bytes(data)
    with pytest.raises(InputError, match="no part"):
        MaskIoUQuality.merge([])


def test_bad_columns_are_refused_whole():
    quality = MaskIoUQuality()
    with pytest.raises(InputError, match=r"class_scores has shape \(2,\), expected \(3,\)"):
        quality.update(np.zeros(3), np.zeros(2), np.zeros(3))
    with pytest.raises(InputError, match=r"predicted\[1\] is not finite"):
        quality.update(np.array([0, np.nan]), np.zeros(2), np.zeros(2))
    assert quality.to_bytes() == MaskIoUQuality().to_bytes()


def test_wild_predictions_do_not_break_the_sums():
    predicted = np.array([1e30, -1e30, 0.5, 0.4])
    found = _quality(predicted, np.full(4, 0.5), np.array([0.9, 0.1, 0.5, 0.4])).summarise().stats.all_detections
    assert found.maskiou_spearman == pytest.approx(1)
    assert 0 < found.maskiou_pearson <= 1
