"""How well scores tell the quality of masks over a whole evaluation, from parts of fixed size that merge over workers.

Fig. 2, Fig. 5, correlations with the true MaskIoU and calibration errors, without ever holding all detections.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise
from math import sqrt

import numpy as np
import numpy.typing as npt

from msrcnn.errors import InputError
from msrcnn.metrics.maskiou import BIN_EDGES, MATCHED_IOU, Agreement, Floats, MaskIoUStats, ScoreBin
from msrcnn.metrics.packing import unpacked

GRID = 1000
"""Cells of the joint histograms between 0 and 1; cell i of an even axis holds i / GRID up to (i + 1) / GRID."""

MARGIN = 125
"""Cells of the predicted MaskIoU below 0, and as many above 1: the model does not clamp it. What lies beyond -0.125
and 1.125 is in the cells at the edge."""

CALIBRATION_BINS = 20

# Fixed point: a value is rounded to a multiple of 2^-26 (float32 has no finer ones from 0.25 on) and summed as an
# integer, so that no sum depends on the order or the split of the detections and no variance suffers from cancellation.
_BITS = 26
_ONE = 1 << _BITS
_LIMIT = 31.0  # values beyond count as this: |value| * _ONE stays below 2^31 and a product below 2^62
_CHUNK = 1 << 16  # rows at once: sums of a product's halves stay below 2^63, float64 sums in bincount below 2^53
_HALF = (1 << _BITS) - 1

# The four columns by place, and which products are summed: what correlations with the true MaskIoU need.
_PREDICTED, _CLASS, _MASK, _TRUE = range(4)
_PRODUCTS = ((0, 0), (1, 1), (2, 2), (3, 3), (0, 3), (1, 3), (2, 3))
_SUMS = 1 + 4 + len(_PRODUCTS) + 1  # number of rows, columns, products, |predicted - true|
_WIDTH = 16  # bytes of a sum in `to_bytes`
_MAGIC = b"MIQ1"
_HEAD = struct.Struct("<4s2I")  # magic, non-zero cells of the two histograms


@dataclass(frozen=True)
class ReliabilityBin:
    """Detections whose score is between `low` and `high`; beyond 0 and 1 a score counts to the bin at the edge."""

    low: float
    high: float
    count: int
    score: float  # mean; nan in an empty bin
    true: float  # mean true MaskIoU; nan in an empty bin


@dataclass(frozen=True)
class Reliability:
    """How far one score is from the true MaskIoU as a number, not as an order.

    `error` is the expected calibration error over 20 bins of equal width: sum over bins b of
    n_b / N * |mean score in b - mean true MaskIoU in b|, with all N detections; nan for no detection.
    """

    error: float
    bins: tuple[ReliabilityBin, ...]


@dataclass(frozen=True)
class Calibration:
    """`Reliability` of the three scores, over all detections."""

    class_score: Reliability
    maskiou: Reliability  # the predicted one
    mask_score: Reliability


@dataclass(frozen=True)
class QualityReport:
    """What a whole evaluation says about its scores."""

    stats: MaskIoUStats
    bins: tuple[ScoreBin, ...]  # Fig. 2
    calibration: Calibration


class MaskIoUQuality:
    """Accumulates how scores agree with the true MaskIoU.

    A worker feeds its detections to `update` and sends `to_bytes`; the driver joins the parts with `merge`. Memory
    is 18 MB (two joint histograms with the true MaskIoU), however many detections there are, and about 15 MB more
    during an update. Everything is counted or summed in integers: the same detections give the same result to the
    last bit, however they were split or ordered.

    Pearson's coefficients and mean errors equal those of the columns to 1e-8. Spearman's are those of the histogram
    cells with average ranks: within 5e-4 of the columns' on a million detections like a detector's, exact where
    values that differ are in different cells, and off by up to 2e-3 where all predictions lie in a tenth of the
    range.
    """

    def __init__(self) -> None:
        # Sums over all detections and over the matched ones, in fixed point; products have twice the bits.
        self._sums = [[0] * _SUMS for _ in range(2)]
        # Fig. 2: count, sum of class scores, sum of mask scores in each bin.
        self._bins = np.zeros((len(BIN_EDGES) - 1, 3), dtype=np.int64)
        # Class score, predicted MaskIoU, mask score: count, sum of scores, sum of true MaskIoU in each bin.
        self._reliability = np.zeros((3, CALIBRATION_BINS, 3), dtype=np.int64)
        # [predicted MaskIoU, true MaskIoU]
        self._by_predicted = np.zeros((GRID + 2 * MARGIN, GRID), dtype=np.int64)
        # [class score, true MaskIoU]; the class score's axis is its cube root, because most of the 100 detections
        # of an image have one below 0.05 and would share a few cells of an even axis.
        self._by_class = np.zeros((GRID, GRID), dtype=np.int64)

    def update(self, predicted: Floats, class_scores: Floats, true: Floats, factors: Floats | None = None) -> None:
        """Adds detections: about 0.1 s a million, and 0.1 ms a call.

        Args:
            predicted: [N] predicted MaskIoU, not clamped.
            class_scores: [N] class scores.
            true: [N] from `true_maskiou`.
            factors: [N], what mask scores multiply class scores by; `predicted` where it is not given.

        Raises:
            InputError: the columns differ in length or hold what is not finite. Nothing has been taken then.
        """
        given = predicted, class_scores, true, predicted if factors is None else factors
        columns = [np.asarray(x, dtype=np.float64) for x in given]
        names = ("predicted", "class_scores", "true", "factors")
        for name, column in zip(names, columns, strict=True):
            if column.shape != (len(columns[0]),):
                raise InputError(f"{name} has shape {column.shape}, expected ({len(columns[0])},) like `predicted`")
            if not np.isfinite(column).all():
                raise InputError(f"{name}[{int(np.argmin(np.isfinite(column)))}] is not finite; did training diverge?")
        for begin in range(0, len(columns[0]), _CHUNK):
            self._add(*(column[begin : begin + _CHUNK] for column in columns))

    @classmethod
    def merge(cls, parts: Iterable[MaskIoUQuality]) -> MaskIoUQuality:
        """Joins the parts of an evaluation; they stay usable. An iterator's parts are held one at a time.

        Raises:
            InputError: there is no part.
        """
        merged, empty = cls(), True
        for part in parts:
            empty = False
            for sums, others in zip(merged._sums, part._sums, strict=True):
                sums[:] = [a + b for a, b in zip(sums, others, strict=True)]
            for whole, other in zip(merged._counts(), part._counts(), strict=True):
                whole += other
        if empty:
            raise InputError("nothing to merge: the evaluation has no part; evaluate at least one partition")
        return merged

    def to_bytes(self) -> bytes:
        """The state, to be sent to another process.

        The cells that are not 0, compressed: 32 bytes for none, 5 KB for 1,000 detections, 75 KB for 50,000, 0.7 MB
        for a million of a detector, 2.7 MB for 20 million spread evenly, and never more than 14 MB.
        """
        cells = [np.flatnonzero(histogram) for histogram in (self._by_predicted, self._by_class)]
        parts = [_HEAD.pack(_MAGIC, *(len(c) for c in cells))]
        parts += [value.to_bytes(_WIDTH, "little", signed=True) for sums in self._sums for value in sums]
        parts += [self._bins.tobytes(), self._reliability.tobytes()]
        for histogram, index in zip((self._by_predicted, self._by_class), cells, strict=True):
            parts += [np.diff(index, prepend=0).astype(np.uint32).tobytes(), histogram.ravel()[index].tobytes()]
        return zlib.compress(b"".join(parts), 1)

    @classmethod
    def from_bytes(cls, data: bytes) -> MaskIoUQuality:
        """Reads back `to_bytes`.

        Raises:
            InputError: the bytes are something else.
        """
        raw = unpacked(data, _MAGIC, cls)
        restored, at = cls(), _HEAD.size
        _, *cells = _HEAD.unpack_from(raw)
        for sums in restored._sums:
            for i in range(_SUMS):
                sums[i] = int.from_bytes(raw[at : at + _WIDTH], "little", signed=True)
                at += _WIDTH
        for table in (restored._bins, restored._reliability):
            table[...] = np.frombuffer(raw, np.int64, table.size, at).reshape(table.shape)
            at += table.nbytes
        for histogram, number in zip((restored._by_predicted, restored._by_class), cells, strict=True):
            index = np.cumsum(np.frombuffer(raw, np.uint32, number, at), dtype=np.int64)
            histogram.ravel()[index] = np.frombuffer(raw, np.int64, number, at + 4 * number)
            at += 12 * number
        return restored

    def summarise(self) -> QualityReport:
        """The report, in about 10 ms; the state stays usable."""
        half = round(MATCHED_IOU * GRID)
        return QualityReport(
            stats=MaskIoUStats(
                all_detections=_agreement(self._sums[0], self._by_predicted, self._by_class),
                matched=_agreement(self._sums[1], self._by_predicted[:, half:], self._by_class[:, half:]),
            ),
            bins=tuple(
                ScoreBin(low, high, int(count), _mean(class_score, count), _mean(mask_score, count))
                for (low, high), (count, class_score, mask_score) in zip(pairwise(BIN_EDGES), self._bins, strict=True)
            ),
            calibration=Calibration(*(_reliability(table) for table in self._reliability)),
        )

    def density(self, matched: bool, cells: int = 100) -> npt.NDArray[np.int64]:
        """Fig. 5: how many detections have which predicted and which true MaskIoU.

        Args:
            matched: only those with true MaskIoU >= 0.5; the columns below are 0 then.
            cells: a side; divides 1000.

        Returns:
            int64 [cells, cells]; rows are predicted, columns true MaskIoU, both ascending from 0 to 1. Predictions
            below 0 and above 1 are in the first and the last row.

        Raises:
            InputError: `cells` does not divide 1000.
        """
        if cells < 1 or GRID % cells:
            raise InputError(f"cells is {cells}; accepted are the divisors of {GRID}")
        histogram = self._by_predicted[MARGIN:-MARGIN].copy()
        histogram[0] += self._by_predicted[:MARGIN].sum(axis=0)
        histogram[-1] += self._by_predicted[-MARGIN:].sum(axis=0)
        if matched:
            histogram = np.where(np.arange(GRID) >= MATCHED_IOU * GRID, histogram, 0)
        size = GRID // cells
        return histogram.reshape(cells, size, cells, size).sum(axis=(1, 3))  # [cells, size, cells, size] summed

    def _counts(self) -> tuple[npt.NDArray[np.int64], ...]:
        return self._bins, self._reliability, self._by_predicted, self._by_class

    def _add(self, predicted: Floats, class_scores: Floats, true: Floats, factors: Floats) -> None:
        """At most `_CHUNK` rows of float64."""
        mask_scores = class_scores * factors
        columns = np.stack([predicted, class_scores, mask_scores, true])  # [4, n]
        fixed = np.rint(columns.clip(-_LIMIT, _LIMIT) * _ONE).astype(np.int64)  # [4, n]
        matched = true >= MATCHED_IOU
        for sums, part in zip(self._sums, (fixed, fixed[:, matched]), strict=True):
            for i, value in enumerate(_exact_sums(part)):
                sums[i] += value
        kept = (true > BIN_EDGES[0]) & (class_scores > 0.5)
        index = np.searchsorted(BIN_EDGES[1:-1], true[kept], side="right")  # [k], the bin of each detection
        self._bins += _sums_by_bin(index, fixed[[_CLASS, _MASK]][:, kept], len(self._bins))
        for table, i in zip(self._reliability, (_CLASS, _PREDICTED, _MASK), strict=True):
            index = _cells(columns[i], CALIBRATION_BINS)
            table += _sums_by_bin(index, fixed[[i, _TRUE]], CALIBRATION_BINS)
        column = _cells(true, GRID)
        row = np.floor(predicted * GRID + MARGIN).clip(0, GRID + 2 * MARGIN - 1).astype(np.int64)
        np.add.at(self._by_predicted.ravel(), row * GRID + column, 1)
        np.add.at(self._by_class.ravel(), _cells(np.cbrt(class_scores), GRID) * GRID + column, 1)


def _cells(values: Floats, number: int) -> npt.NDArray[np.int64]:
    """The cell of each value on an even axis from 0 to 1; what lies outside is in the cell at the edge."""
    return np.floor(values.clip(0, 1) * number).clip(max=number - 1).astype(np.int64)


def _exact_sums(fixed: npt.NDArray[np.int64]) -> list[int]:
    """The `_SUMS` of [4, n] columns in fixed point."""
    products = np.stack([fixed[i] * fixed[j] for i, j in _PRODUCTS])  # [7, n], below 2^62
    high, low = (products >> _BITS).sum(axis=1).tolist(), (products & _HALF).sum(axis=1).tolist()
    error = np.abs(fixed[_PREDICTED] - fixed[_TRUE]).sum()
    return [
        fixed.shape[1],
        *fixed.sum(axis=1).tolist(),
        *((h << _BITS) + lo for h, lo in zip(high, low, strict=True)),
        int(error),
    ]


def _sums_by_bin(index: npt.NDArray[np.intp], fixed: npt.NDArray[np.int64], number: int) -> npt.NDArray[np.int64]:
    """Count and the sums of two columns [2, n] in each bin: [number, 3]."""
    count = np.bincount(index, minlength=number)
    sums = [np.bincount(index, weights=column, minlength=number) for column in fixed]  # integers, below 2^53
    return np.stack([count, *sums], axis=1).astype(np.int64)


def _mean(total: int, count: int) -> float:
    return int(total) / _ONE / int(count) if count else float("nan")


def _reliability(table: npt.NDArray[np.int64]) -> Reliability:
    """From [CALIBRATION_BINS, 3]."""
    bins = tuple(
        ReliabilityBin(i / CALIBRATION_BINS, (i + 1) / CALIBRATION_BINS, int(n), _mean(score, n), _mean(true, n))
        for i, (n, score, true) in enumerate(table)
    )
    # n_b / N * |mean - mean| is |sum - sum| / N, which an empty bin leaves alone.
    difference = int(np.abs(table[:, 1] - table[:, 2]).sum())
    return Reliability(_mean(difference, table[:, 0].sum()), bins)


def _agreement(sums: list[int], by_predicted: npt.NDArray[np.int64], by_class: npt.NDArray[np.int64]) -> Agreement:
    return Agreement(
        count=sums[0],
        maskiou_pearson=_pearson(sums, _PREDICTED),
        maskiou_spearman=_spearman(by_predicted),
        class_pearson=_pearson(sums, _CLASS),
        class_spearman=_spearman(by_class),
        mask_score_pearson=_pearson(sums, _MASK),
        mean_absolute_error=_mean(sums[-1], sums[0]),
    )


def _pearson(sums: list[int], column: int) -> float:
    """With the true MaskIoU; the integers make variances exact, so that a constant column's is 0."""

    def moment(i: int, j: int) -> int:
        return sums[0] * sums[5 + _PRODUCTS.index((i, j))] - sums[1 + i] * sums[1 + j]

    spread = moment(column, column) * moment(_TRUE, _TRUE)
    if spread == 0:
        return float("nan")
    return min(1.0, max(-1.0, moment(column, _TRUE) / sqrt(spread)))


def _spearman(histogram: npt.NDArray[np.int64]) -> float:
    """Of the detections in a joint histogram; those of a cell tie and share the mean of their ranks."""
    ranks = []
    for count in (histogram.sum(axis=1), histogram.sum(axis=0)):
        rank = np.cumsum(count) - (count - 1) / 2  # [cells], average rank from 1
        ranks.append((rank - (count.sum() + 1) / 2, count))  # the mean rank is (n + 1) / 2
    (x, nx), (y, ny) = ranks
    spread = float(np.sqrt((nx @ x**2) * (ny @ y**2)))
    return float(np.clip(x @ (histogram @ y) / spread, -1.0, 1.0)) if spread > 0 else float("nan")
