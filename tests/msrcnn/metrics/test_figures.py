"""Figures show what they are given, say what they are, and are written whole and always the same."""

from __future__ import annotations

import io
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from msrcnn.metrics.coco_ap import CategoryAP, PrecisionRecall
from msrcnn.metrics.figures import (
    calibration_figure,
    category_gain_figure,
    density_figure,
    precision_recall_figure,
    rendered,
    score_bins_figure,
    tide_figure,
)
from msrcnn.metrics.quality import MaskIoUQuality
from msrcnn.metrics.tide import ERRORS


def _quality(number=5000):
    rng = np.random.default_rng(0)
    true = rng.random(number)
    quality = MaskIoUQuality()
    quality.update(true + rng.normal(0, 0.1, number), rng.random(number), true)
    return quality


def _curves(value=0.5):
    return [PrecisionRecall(r, iou, (value,) * 101) for r in ("box", "class", "mask") for iou in (0.5, 0.75)]


def _gains(values):
    return [CategoryAP(i, f"thing {i}", 0.3, 0.3 + v, 0.5) for i, v in enumerate(values, start=1)]


def _all(quality):
    report = quality.summarise()
    lost = {kind: 0.01 * i for i, kind in enumerate(ERRORS)}
    return {
        "bins": score_bins_figure(report.bins),
        "density": density_figure(quality.density(matched=False), report.stats.all_detections.maskiou_pearson, False),
        "matched": density_figure(quality.density(matched=True), report.stats.matched.maskiou_pearson, True),
        "curves": precision_recall_figure(_curves()),
        "gains": category_gain_figure(_gains([0.01, -0.02, float("nan")])),
        "tide": tide_figure(lost, lost, 10),
        "calibration": calibration_figure(report.calibration),
    }


def _texts(axes):
    return [text.get_text() for text in axes.get_legend().get_texts()]


def test_every_figure_has_axes_a_title_and_a_caption():
    for name, figure in _all(_quality()).items():
        assert figure.axes[0].get_title(), name
        assert figure.axes[-1].get_xlabel() or figure.axes[0].get_xlabel(), name
        assert figure.get_supxlabel().endswith("."), name


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("number", [0, 1])
def test_almost_no_data_can_be_drawn(number):
    for figure in [*_all(_quality(number)).values(), category_gain_figure([]), precision_recall_figure([])]:
        figure.savefig(io.BytesIO(), format="png", dpi=40)


def test_bars_are_the_mean_scores_of_the_bins():
    bins = _quality().summarise().bins
    axes = score_bins_figure(bins).axes[0]
    assert [bar.get_height() for bar in axes.containers[0]] == [b.class_score for b in bins]
    assert [bar.get_height() for bar in axes.containers[1]] == [b.mask_score for b in bins]
    assert axes.get_xticklabels()[1].get_text() == f"0.6 to 0.7\n{bins[1].count:,} detections"


def test_density_has_predictions_upwards_and_its_correlation_above():
    density = np.zeros((100, 100), np.int64)
    density[90, 20] = 7  # predicted 0.9, true 0.2
    axes = density_figure(density, 0.7351, matched=False).axes[0]
    image = axes.get_images()[0]
    assert image.origin == "lower"
    assert image.get_array()[90, 20] == 7
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("true MaskIoU", "predicted MaskIoU")
    assert axes.get_title() == "Correlation 0.735 over 7 detections"


def test_curves_are_those_of_the_two_rankings():
    figure = precision_recall_figure(_curves(0.25))
    assert len(figure.axes) == 2
    for axes in figure.axes:
        assert _texts(axes) == ["ranked by class score: AP 25.0", "ranked by mask score: AP 25.0"]
        assert all((line.get_ydata() == 0.25).all() for line in axes.get_lines())


def test_the_largest_gains_and_losses_are_shown_sorted():
    values = np.random.default_rng(0).permutation(np.linspace(-0.1, 0.2, 60))
    axes = category_gain_figure([*_gains(values), CategoryAP(99, "absent", *[float("nan")] * 3)], most=10).axes[0]
    widths = [bar.get_width() for bar in axes.patches]
    expected = np.sort(values[np.argsort(-np.abs(values))[:10]])
    np.testing.assert_allclose(widths, 100 * expected)
    names = [label.get_text() for label in axes.get_yticklabels()]
    assert names == [f"thing {int(np.flatnonzero(values == v)[0]) + 1}" for v in expected]
    assert axes.get_title() == "Gain by mask score, 60 categories: mean +5.00"


def test_reliability_has_a_line_a_score():
    calibration = _quality().summarise().calibration
    axes, counts = calibration_figure(calibration).axes
    assert f"predicted MaskIoU, error {calibration.maskiou.error:.3f}" in _texts(axes)
    drawn = axes.get_lines()[1].get_ydata()
    np.testing.assert_allclose(drawn, [b.true for b in calibration.class_score.bins if b.count])
    assert len(counts.patches) == 3


def test_the_same_data_give_the_same_files():
    one, two = (rendered(_all(_quality())["tide"]) for _ in range(2))
    assert one == two
    assert list(one) == ["png", "svg"]
    assert Image.open(io.BytesIO(one["png"])).size == (6.4 * 150, 4.8 * 150)


def test_neither_matplotlib_nor_its_windows_come_with_the_import():
    code = (
        "import sys, msrcnn.metrics.figures as f; assert 'matplotlib' not in sys.modules;"
        "f.category_gain_figure([]); assert 'matplotlib.pyplot' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
