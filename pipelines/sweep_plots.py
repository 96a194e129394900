"""A sweep in pictures, in the style of an evaluation's figures and readable without the paper.

gain       what each row gains over the row that it is compared with, ours beside the paper's
parallel   every trial of a search as a line through its settings to its AP
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from msrcnn.metrics.figures import CLASS, MASK, NEUTRAL, caption, legend_above, new_figure, rendered, styled
from pipelines.storage import Location, Place, locate
from pipelines.sweep_results import RowResult, TableResult
from pipelines.text_tables import NONE, number, signed
from tune_spaces.definition import Choices, Range
from tune_spaces.settings import shown

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

NAME_WIDTH = 34
"""Letters of a row's name on a line."""
TICKS = 5
"""On the axis of a range."""
COLOURS = "viridis"


def figures(table: TableResult, vary: Mapping[str, Choices | Range] | None = None) -> Iterator[tuple[str, Figure]]:
    """Name and figure: `gain` where rows are compared with others, `parallel` for a search."""
    if any(table.baseline(row) is not None for row in table.rows):
        yield "gain", gain_figure(table)
    if vary:
        yield "parallel", parallel_figure(table, vary)


def write_figures(
    folder: Place, name: str, table: TableResult, vary: Mapping[str, Choices | Range] | None = None
) -> list[Location]:
    """Writes NAME-gain and NAME-parallel, those that there are, as PNG and SVG; makes the folder.

    Args:
        folder: a local path or a URL.
        name: of the files.
        table: what is drawn.
        vary: what a search varied.

    Returns:
        The files.
    """
    place = locate(folder)
    place.make_folder()
    written = []
    for kind, figure in figures(table, vary):
        for ending, data in rendered(figure).items():
            file = place / f"{name}-{kind}.{ending}"
            file.write(data)
            written.append(file)
    return written


@styled
def gain_figure(table: TableResult) -> Figure:
    """Gain of each row in the table's first column over the row that it is compared with, in percentage points.

    A row that others are compared with stands as the zero line of theirs, its numbers beside its name.

    Args:
        table: with rows that are compared.
    """
    column = table.columns[0]
    bases = {base.name for row in table.rows if (base := table.baseline(row)) is not None}
    rows = [row for row in table.rows if row.name in bases or table.baseline(row) is not None]
    figure, (axes,) = new_figure(7.6, 2.2 + 0.46 * max(3, len(rows)))
    place = np.arange(len(rows))
    ours = [table.gain(row, column) for row in rows]
    paper = [table.paper_gain(row, column) for row in rows]
    decimals = 2 if table.seeds > 1 else 1
    axes.axvline(0, color="black", linewidth=0.8)
    spread = np.nan_to_num([value.deviation for value in ours])
    label = f"here, mean of {table.seeds} seeds with standard deviation" if table.seeds > 1 else "here"
    means = [value.mean for value in ours]
    axes.errorbar(means, place - 0.13, xerr=spread, fmt="o", color=MASK, markersize=6, capsize=3, label=label)
    if any(map(math.isfinite, paper)):
        axes.plot(paper, place + 0.17, "D", color=CLASS, markersize=5.5, markerfacecolor="none", label="the paper")
    for y, gain, error, published in zip(place, means, spread, paper, strict=True):
        _beside(axes, gain + error, y - 0.13, gain, decimals, MASK)
        _beside(axes, published, y + 0.17, published, 1, CLASS)
    _name_rows(axes, rows, bases, column, decimals)
    axes.margins(x=0.16)
    axes.set(xlabel=f"gain in {_what(column)} (percentage points)")
    axes.set_title("\n".join(textwrap.wrap(table.heading, 60)))
    legend_above(axes, 2)
    zero = f"of “{next(iter(bases))}”" if len(bases) == 1 else "of the row in grey above it"
    missing = [row.name for row, gain in zip(rows, means, strict=True) if row.name not in bases and math.isnan(gain)]
    lacking = f" Without a number here: {', '.join(missing)}." if missing else ""
    words = f"{_what(column)} of each row less that {zero}, whose own stands below its name, in percent."
    caption(figure, f"{words[0].upper()}{words[1:]} {table.about}{lacking}".strip())
    return figure


@styled
def parallel_figure(table: TableResult, vary: Mapping[str, Choices | Range]) -> Figure:
    """Parallel coordinates: an axis a setting that varies, the last one for the table's first column.

    Lines are coloured by that column, the best trial's is thick; trials without a value are dashed and end before it.

    Args:
        table: a row a trial, its `settings` holding what varied.
        vary: the settings and what they took; a range's axis is logarithmic where it was drawn so.
    """
    column = table.columns[0]
    figure, (axes,) = new_figure(max(6.4, 1.9 + 1.5 * (len(vary) + 1)), 5.2)
    trials = sorted(((row, row.ours(column).mean) for row in table.rows if set(vary) <= set(row.settings)),
                    key=lambda pair: pair[1] if math.isfinite(pair[1]) else -math.inf)  # fmt: skip
    results = [value for _, value in trials if math.isfinite(value)]
    scale = _result_range(results)
    for x, of in enumerate([*vary.values(), scale]):
        _axis(axes, x, of)
    colours = _colours()
    for number_, (row, value) in enumerate(trials, start=1):
        heights = [_height(of, row.settings[name]) for name, of in vary.items()]
        style: dict[str, Any] = {"color": "#b0b0b0", "linestyle": "--", "linewidth": 1.0, "zorder": 1}
        if math.isfinite(value):
            heights.append(_height(scale, value))
            best = number_ == len(trials)
            style = {"color": colours(heights[-1]), "linewidth": 3.2 if best else 1.4, "zorder": 4 if best else 2}
        axes.plot(range(len(heights)), heights, label=row.name, gid=row.name, **style)
    names = [name.rpartition(".") for name in vary]
    axes.set_xticks(range(len(vary) + 1), [*(f"{a}\n{b}" for a, _, b in names), f"{_what(column)}\n(percent)"])
    axes.set(yticks=[], ylim=(-0.04, 1.04), xlim=(-0.35, len(vary) + 0.45))
    axes.grid(visible=False)
    for side in axes.spines.values():
        side.set_visible(False)
    axes.tick_params(axis="x", length=0)
    axes.set_title(f"{table.heading}: {len(results)} of {len(table.rows)} trials with a number")
    _caption_of_search(figure, table, [row for row, value in trials if math.isfinite(value)], vary)
    return figure


def _caption_of_search(
    figure: Figure, table: TableResult, finished: Sequence[RowResult], vary: Mapping[str, Choices | Range]
) -> None:
    column = table.columns[0]
    best = ""
    if finished:
        settings = ", ".join(f"{name} = {shown(finished[-1].settings[name])}" for name in vary)
        best = f" The best (thick): {number(finished[-1].ours(column).mean, 1)} with {settings}."
    without = " Dashed: trials without a number." if len(finished) < len(table.rows) else ""
    caption(figure, f"Each line is a trial: its settings from left to right, then its {_what(column)}, which its "
                    f"colour repeats, dark to bright.{best}{without}")  # fmt: skip


def _what(column: str) -> str:
    return column if column.startswith("box") else f"mask {column}"


def _beside(axes: Axes, x: float, y: float, value: float, decimals: int, colour: str) -> None:
    """The number to the right of its dot."""
    if math.isfinite(value):
        axes.annotate(signed(value, decimals), (x, y), (7, 0), textcoords="offset points", va="center", fontsize=8,
                      color=colour)  # fmt: skip


def _name_rows(axes: Axes, rows: Sequence[RowResult], bases: set[str], column: str, decimals: int) -> None:
    labels = []
    for row in rows:
        lines = textwrap.wrap(row.name, NAME_WIDTH)[:3]
        if row.name in bases:
            here, paper = number(row.ours(column).mean, decimals), number(row.paper(column))
            lines.append(f"here {here}" + (f", paper {paper}" if paper != NONE else ""))
        labels.append("\n".join(lines))
    axes.set_yticks(range(len(rows)), labels, fontsize=8.5)
    for row, tick in zip(rows, axes.get_yticklabels(), strict=True):
        if row.name in bases:
            tick.set_color(NEUTRAL)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.grid(axis="y", visible=False)


def _colours() -> Any:
    from matplotlib import colormaps

    return colormaps[COLOURS].resampled(256)


def _result_range(results: Sequence[float]) -> Range:
    low, high = (min(results), max(results)) if results else (0.0, 100.0)
    return Range(low, high) if high > low else Range(low - 0.5, high + 0.5)


def _height(of: Choices | Range, value: Any) -> float:
    """Where a value stands on its axis, from 0 to 1."""
    if isinstance(of, Choices):
        ordered = _ordered(of)
        return (ordered.index(_tuples(value)) + 0.5) / len(ordered)
    low, high, at = (math.log(v) if of.log else float(v) for v in (of.low, of.high, value))
    return (at - low) / (high - low)


def _tuples(value: Any) -> Any:
    """As settings have it: JSON makes lists of tuples."""
    return tuple(map(_tuples, value)) if isinstance(value, (list, tuple)) else value


def _ordered(of: Choices) -> list[Any]:
    """Numbers from low to high, others as they were given."""
    numbers = all(isinstance(value, (int, float)) for value in of.values)
    return sorted(of.values) if numbers else list(of.values)


def _ticks(of: Choices | Range) -> list[Any]:
    if isinstance(of, Choices):
        return _ordered(of)
    steps = np.linspace(0, 1, TICKS)
    values = of.low * (of.high / of.low) ** steps if of.log else of.low + (of.high - of.low) * steps
    if of.whole:
        return sorted({round(v) for v in values})
    return [of.low, *(float(f"{v:.2g}") if of.log else float(v) for v in values[1:-1]), of.high]


def _axis(axes: Axes, x: int, of: Choices | Range) -> None:
    axes.plot([x, x], [0, 1], color="black", linewidth=0.8, zorder=3, gid=f"axis {x}")
    for value in _ticks(of):
        y = _height(of, value)
        text = f"{value:.3g}" if isinstance(value, float) else shown(value)
        axes.plot([x - 0.02, x + 0.02], [y, y], color="black", linewidth=0.8, zorder=3, gid=f"tick {x}")
        axes.text(x + 0.04, y, text, va="center", fontsize=8, zorder=5, gid=f"tick {x}",
                  bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.75, "pad": 0.8})  # fmt: skip
