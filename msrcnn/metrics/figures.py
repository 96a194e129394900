"""An evaluation in pictures, each readable without the paper.

Functions take what `quality`, `coco_ap` and `tide` give, and return a matplotlib figure; `save` writes it. matplotlib
is imported when the first is drawn, and without pyplot: no display is needed, and no figure stays open.
"""

from __future__ import annotations

import io
import textwrap
from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from typing import TYPE_CHECKING, Any, ParamSpec

import numpy as np
import numpy.typing as npt

from msrcnn.metrics.coco_ap import CategoryAP, PrecisionRecall
from msrcnn.metrics.maskiou import ScoreBin
from msrcnn.metrics.quality import Calibration, Reliability
from msrcnn.metrics.tide import ERRORS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's colours, which the colour-blind tell apart; one for each score throughout.
CLASS, MASK, MASKIOU = "#D55E00", "#0072B2", "#009E73"
NEUTRAL = "#666666"
DPI = 150
STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans",  # comes with matplotlib: the same everywhere
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": "#e5e5e5",
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "svg.hashsalt": "msrcnn",  # ids in an SVG file are drawn at random without
}
MOST_CATEGORIES = 40

P = ParamSpec("P")


def styled(draw: Callable[P, Figure]) -> Callable[P, Figure]:
    """Draws in the style of all figures, whatever is set elsewhere."""

    @wraps(draw)
    def drawn(*args: P.args, **kwargs: P.kwargs) -> Figure:
        import matplotlib

        with matplotlib.rc_context(STYLE):
            return draw(*args, **kwargs)

    return drawn


@styled
def score_bins_figure(bins: Sequence[ScoreBin]) -> Figure:
    """Fig. 2: mean class score and mean mask score of detections by how good their mask is."""
    figure, (axes,) = new_figure(6.4, 4.6)
    place, width = np.arange(len(bins)), 0.38
    for offset, label, colour, values in (
        (-width / 2, "mean class score", CLASS, [b.class_score for b in bins]),
        (width / 2, "mean mask score", MASK, [b.mask_score for b in bins]),
    ):
        axes.bar(place + offset, np.nan_to_num(values), width, color=colour, label=label)
    for x, b in zip(place, bins, strict=True):
        ends = [x - 0.5, x + 0.5]
        named: dict[str, Any] = {"label": "score = true MaskIoU"} if x == 0 else {}
        axes.plot(ends, [b.low, b.high], "--", color="black", linewidth=1.2, **named)
    ticks = [f"{b.low:.1f} to {b.high:.1f}\n{b.count:,} detections" for b in bins]
    axes.set_xticks(place, ticks, fontsize=8.5)
    axes.set(xlabel="true MaskIoU", ylabel="mean score", ylim=(0, 1), xlim=(-0.55, len(bins) - 0.45))
    axes.set_title("Does the score follow the quality of the mask?")
    legend_above(axes, 3)
    caption(
        figure,
        "Detections with class score and true MaskIoU above 0.5, by true MaskIoU. A score that tells good masks from "
        "poor ones rises with the dashed line; the mask score is class score x predicted MaskIoU, of a +ap model class "
        "score x worth.",
    )
    return figure


@styled
def density_figure(density: npt.NDArray[np.integer], pearson: float, matched: bool) -> Figure:
    """Fig. 5: predicted against true MaskIoU.

    Args:
        density: [cells, cells] from `MaskIoUQuality.density`; rows predicted, columns true.
        pearson: correlation coefficient over the same detections.
        matched: whether they are those with true MaskIoU >= 0.5 only.
    """
    from matplotlib.colors import LogNorm

    figure, (axes,) = new_figure(5.6, 5.4)
    counts = np.ma.masked_equal(density, 0)
    norm = LogNorm(1, max(2, int(density.max(initial=0))))
    axes.grid(visible=False)
    image = axes.imshow(counts, origin="lower", extent=(0, 1, 0, 1), cmap="viridis", norm=norm, interpolation="nearest")
    axes.plot([0, 1], [0, 1], "--", color=CLASS, linewidth=1.2, label="predicted = true")
    axes.set(xlabel="true MaskIoU", ylabel="predicted MaskIoU", xlim=(0.5 if matched else 0, 1), ylim=(0, 1))
    axes.set_aspect("auto" if matched else "equal")
    axes.legend(loc="lower right", frameon=True, framealpha=0.85, edgecolor="none")
    bar = figure.colorbar(image, ax=axes, fraction=0.045, pad=0.03)
    bar.set_label("detections in a cell (log scale)")
    which = "matched detections" if matched else "detections"
    axes.set_title(f"Correlation {pearson:.3f} over {int(density.sum()):,} {which}")
    caption(
        figure,
        "What the network predicts of its masks' IoU, against what it is; predictions below 0 or above 1 are drawn "
        "at the edge." + (" Matched: true MaskIoU from 0.5 on." if matched else ""),
    )
    return figure


@styled
def precision_recall_figure(curves: Sequence[PrecisionRecall]) -> Figure:
    """Precision against recall of masks by class score and by mask score, one plot an IoU threshold.

    Args:
        curves: from `CocoAP.curves`; rankings other than class and mask are left out.
    """
    thresholds = sorted({c.iou for c in curves if c.ranking in ("class", "mask")})
    figure, plots = new_figure(4.2 * max(1, len(thresholds)), 4.6, columns=max(1, len(thresholds)))
    for axes, iou in zip(plots, thresholds, strict=False):
        for ranking, label, colour, line in (
            ("class", "ranked by class score", CLASS, "--"),
            ("mask", "ranked by mask score", MASK, "-"),
        ):
            for curve in curves:
                if (curve.ranking, curve.iou) == (ranking, iou):
                    recall = np.linspace(0, 1, len(curve.precision))
                    area = f"{100 * np.mean(curve.precision):.1f}"
                    axes.plot(recall, curve.precision, line, color=colour, label=f"{label}: AP {area}")
        axes.set(xlabel="recall", ylabel="precision", xlim=(0, 1), ylim=(0, 1.02))
        axes.set_title(f"a mask is right from IoU {iou:g} on")
        axes.legend(loc="lower left", frameon=True, framealpha=0.85, edgecolor="none")
    caption(
        figure,
        "Precision of the masks, mean over the categories, against recall: the share of the instances that were "
        "found. AP in percent.",
    )
    return figure


@styled
def category_gain_figure(categories: Sequence[CategoryAP], most: int = MOST_CATEGORIES) -> Figure:
    """What ranking by mask score brings each category, the largest gains and losses.

    Args:
        categories: from `APReport.per_category`; those without an AP are left out.
        most: so many bars at most.
    """
    gains = [(100 * (c.by_mask - c.by_class), c.name) for c in categories if np.isfinite(c.by_mask - c.by_class)]
    shown = sorted(sorted(gains, key=lambda g: -abs(g[0]))[:most])
    figure, (axes,) = new_figure(6.4, 1.9 + 0.21 * max(4, len(shown)))
    values = [value for value, _ in shown]
    colours = [MASK if value >= 0 else CLASS for value in values]
    bars = axes.barh(np.arange(len(shown)), values, height=0.72, color=colours)
    axes.bar_label(bars, [f"{value:+.1f}" for value in values], padding=3, fontsize=8)
    axes.axvline(0, color="black", linewidth=0.8)
    names = [textwrap.shorten(name, 28, placeholder="...") for _, name in shown]
    axes.set_yticks(np.arange(len(shown)), names, fontsize=8.5)
    axes.grid(axis="y", visible=False)
    axes.margins(x=0.14)
    axes.set_ylim(-0.7, max(1, len(shown)) - 0.3)
    axes.set(xlabel="gain in mask AP (percentage points)")
    mean = f"mean {np.mean([g for g, _ in gains]):+.2f}" if gains else "none has instances"
    axes.set_title(f"Gain by mask score, {len(gains)} categories: {mean}")
    cut = "" if len(shown) == len(gains) else f" Of {len(gains)}, the {len(shown)} that change most."
    caption(figure, f"Mask AP of each category ranked by mask score, less that ranked by class score.{cut}")
    return figure


@styled
def tide_figure(by_class: Mapping[str, float], by_mask: Mapping[str, float], images: int) -> Figure:
    """What AP50 is lost to under both rankings.

    Args:
        by_class: from `tide_errors` with the ranking "class".
        by_mask: with "mask", of the same images.
        images: how many that were.
    """
    figure, (axes,) = new_figure(6.4, 4.8)
    place, height = np.arange(len(ERRORS)), 0.38
    for offset, label, colour, lost in (
        (-height / 2, "ranked by class score", CLASS, by_class),
        (height / 2, "ranked by mask score", MASK, by_mask),
    ):
        bars = axes.barh(place + offset, [100 * lost[kind] for kind in ERRORS], height, color=colour, label=label)
        axes.bar_label(bars, fmt="%.1f", padding=3, fontsize=8)
    axes.set_yticks(place, [f"{text} ({kind})" for kind, text in ERRORS.items()])
    axes.axhline(len(ERRORS) - 2.5, color=NEUTRAL, linewidth=0.8)
    axes.invert_yaxis()
    axes.grid(axis="y", visible=False)
    axes.margins(x=0.12)
    axes.set(xlabel="AP50 that the errors cost (percentage points)")
    axes.set_title(f"What mask AP is lost to, {images:,} images")
    legend_above(axes, 2)
    caption(
        figure,
        "How much higher AP50 would be without one kind of error (TIDE); the two kinds below the line contain the "
        "others, and the costs do not add up.",
    )
    return figure


@styled
def calibration_figure(calibration: Calibration) -> Figure:
    """Reliability diagram of class score, predicted MaskIoU and mask score, and how many detections have which."""
    figure, (axes, counts) = new_figure(5.8, 6.0, rows=2, ratios=(3.2, 1))
    axes.plot([0, 1], [0, 1], "--", color="black", linewidth=1.2, label="score = true MaskIoU")
    for label, colour, marker, one in (
        ("class score", CLASS, "o", calibration.class_score),
        ("predicted MaskIoU", MASKIOU, "^", calibration.maskiou),
        ("mask score", MASK, "s", calibration.mask_score),
    ):
        filled = [b for b in one.bins if b.count]
        style: dict[str, Any] = {"color": colour, "marker": marker, "markersize": 4, "linewidth": 1.3}
        label = f"{label}, error {one.error:.3f}"
        # The mean score of a bin at the edge may lie beyond 0 or 1.
        axes.plot([min(1, max(0, b.score)) for b in filled], [b.true for b in filled], label=label, **style)
        _steps(counts, one, colour)
    axes.set(ylabel="mean true MaskIoU", xlim=(0, 1), ylim=(0, 1))
    axes.tick_params(labelbottom=False)
    axes.set_title("Is the score the MaskIoU?")
    legend_above(axes, 2)
    counts.set(xlabel="score", ylabel="detections", xlim=(0, 1), yscale="log")
    caption(
        figure,
        "Mean true MaskIoU of the detections by score, in bins of 0.05, and how many there are. The calibration error "
        "is the mean distance from the dashed line, bins weighted by their detections.",
    )
    return figure


def rendered(figure: Figure) -> dict[str, bytes]:
    """The figure as files: `png` (150 dpi) and `svg`. The same data give the same bytes."""
    import matplotlib

    files = {}
    with matplotlib.rc_context(STYLE):
        for kind, metadata in (("png", {"Software": None}), ("svg", {"Date": None})):
            buffer = io.BytesIO()
            figure.savefig(buffer, format=kind, dpi=DPI, metadata=metadata)
            files[kind] = buffer.getvalue()
    return files


def new_figure(
    width: float, height: float, rows: int = 1, columns: int = 1, ratios: Sequence[float] | None = None
) -> tuple[Figure, list[Axes]]:
    """A figure of so many inches and its plots, row by row."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    figure.set_layout_engine("constrained", w_pad=0.1, h_pad=0.1)
    return figure, list(figure.subplots(rows, columns, squeeze=False, height_ratios=ratios).ravel())


def caption(figure: Figure, text: str) -> None:
    """Under the plots, as wide as the figure."""
    lines = textwrap.wrap(text, int(figure.get_figwidth() * 15.5))
    figure.supxlabel("\n".join(lines), x=0.01, ha="left", fontsize=8.5, color=NEUTRAL, linespacing=1.4)


def legend_above(axes: Axes, columns: int) -> None:
    """Between the title and the plot, where it hides nothing."""
    legend = axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=columns, columnspacing=1.4)
    rows = -(-len(legend.get_texts()) // columns)
    axes.set_title(axes.get_title(), pad=10 + 16 * rows)


def _steps(axes: Axes, one: Reliability, colour: str) -> None:
    edges = [*(b.low for b in one.bins), one.bins[-1].high]
    axes.stairs([max(b.count, 0.5) for b in one.bins], edges, color=colour, linewidth=1.3, baseline=None)
