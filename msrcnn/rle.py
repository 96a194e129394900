"""COCO's compressed run lengths, read and written with numpy alone and only where a mask is.

A [height, width] mask is read column by column as alternating run lengths, zeros first. Each length from the fourth on
is stored as the difference from the one two before it, in groups of 5 bits, lowest first, one character a group: bit 5
says that another group follows, and 48 is added (pycocotools' `counts`).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

GROUP_BITS = 5
MORE = 1 << GROUP_BITS
FIRST_CHARACTER = 48


def counts_of(rle: bytes) -> np.ndarray:
    """The run lengths in compressed `counts`, int64 [runs], zeros first."""
    groups = np.frombuffer(rle, dtype=np.uint8).astype(np.int64) - FIRST_CHARACTER  # [characters]
    last = (groups & MORE) == 0
    starts = np.flatnonzero(np.concatenate([[True], last[:-1]]))  # [runs]: first group of each number
    lengths = np.diff(np.append(starts, len(groups)))
    place = np.arange(len(groups)) - np.repeat(starts, lengths)
    values = np.add.reduceat((groups & (MORE - 1)) << (GROUP_BITS * place), starts)
    negative = (groups[starts + lengths - 1] & (MORE >> 1)) != 0
    values -= negative * (np.int64(1) << (GROUP_BITS * lengths))
    # Undo the differences: number i >= 3 is relative to number i - 2, so odd and even ones are running sums.
    values[1::2] = np.cumsum(values[1::2])
    values[2::2] = np.cumsum(values[2::2])
    return values


def _starts(lengths: np.ndarray) -> np.ndarray:
    """Where each of consecutive pieces of `lengths` [n] begins, int64 [n]."""
    return np.cumsum(lengths) - lengths


def compress(counts: np.ndarray, runs: np.ndarray) -> list[bytes]:
    """Run lengths to compressed `counts`, many masks at once.

    Args:
        counts: int64 [sum of runs], each mask's run lengths, zeros first, one mask after the other.
        runs: int64 [n], how many of them each mask has, at least 1.
    """
    number = np.arange(len(counts)) - np.repeat(_starts(runs), runs)  # of the run in its mask
    late = np.flatnonzero(number >= 3)
    values = counts.copy()
    values[late] -= counts[late - 2]
    # A number needs the fewest groups that hold it with its sign.
    magnitude = np.where(values < 0, ~values, values)
    groups = np.ones(len(values), dtype=np.int64)
    rest = magnitude >> (GROUP_BITS - 1)
    while rest.any():
        groups += rest > 0
        rest >>= GROUP_BITS
    ends = np.cumsum(groups)
    place = np.arange(ends[-1]) - np.repeat(ends - groups, groups)
    characters = (np.repeat(values, groups) >> (GROUP_BITS * place)) & (MORE - 1)
    characters[place < np.repeat(groups - 1, groups)] |= MORE
    text = (characters + FIRST_CHARACTER).astype(np.uint8).tobytes()
    last = ends[np.cumsum(runs) - 1].tolist()  # [n], each mask's last character
    return [text[begin:end] for begin, end in zip([0, *last], last, strict=False)]


def decode_crop(rle: bytes, height: int) -> tuple[np.ndarray, tuple[int, int, int, int]]:
    """Decodes a mask to the crop of its bounding box.

    Args:
        rle: compressed `counts` of a mask.
        height: of the mask, in pixels.

    Returns:
        The crop, uint8 [h, w] of 0 and 1, and its (left, top, w, h) in pixels; all 0 and an empty crop for an
        empty mask.
    """
    ends = np.cumsum(counts_of(rle))
    begin, end = ends[: len(ends) // 2 * 2 : 2], ends[1::2]  # [runs of ones]
    begin, end = begin[end > begin], end[end > begin]
    if len(begin) == 0:
        return np.zeros((0, 0), dtype=np.uint8), (0, 0, 0, 0)
    left, right = int(begin[0] // height), int((end[-1] - 1) // height)
    changes = np.zeros((right - left + 1) * height + 1, dtype=np.int8)
    changes[begin - left * height] += 1
    changes[end - left * height] -= 1
    columns = np.cumsum(changes[:-1], dtype=np.int8).reshape(-1, height)  # [w * height] -> [w, height]
    rows = np.flatnonzero(columns.any(axis=0))
    top, bottom = int(rows[0]), int(rows[-1]) + 1
    crop = np.ascontiguousarray(columns[:, top:bottom].T).view(np.uint8)  # [h, w]
    return crop, (left, top, right - left + 1, bottom - top)


def encode_crops(
    crops: Sequence[np.ndarray], corners: Sequence[tuple[int, int]], height: int, width: int
) -> list[bytes]:
    """Compressed `counts` of masks that are zero outside a crop; the cost is that of the crops.

    Args:
        crops: bool [h, w], one a mask.
        corners: (left, top) of each crop in its mask.
        height, width: of the masks, in pixels.
    """
    if not crops:
        return []
    sides = np.array([crop.shape for crop in crops])  # [n, 2]
    # Column by column with a zero after each column: a run ends inside its column, so runs are pairs of changes.
    step = sides[:, 0] + 1
    lengths = step * sides[:, 1]
    starts = _starts(lengths)
    columns = np.zeros(1 + lengths.sum(), dtype=bool)  # begins with a zero to differ from
    for crop, start, length in zip(crops, starts + 1, lengths, strict=True):
        h, w = crop.shape
        columns[start : start + length].reshape(w, h + 1)[:, :h] = crop.T  # [w * (h + 1)] -> [w, h + 1]
    changes = np.flatnonzero(columns[1:] != columns[:-1])  # [2 * runs of ones]
    changed = np.diff(np.searchsorted(changes, starts), append=len(changes))  # [n], changes of each mask
    mask = np.repeat(np.arange(len(crops)), changed)
    column, row = np.divmod(changes - starts[mask], step[mask])
    left, top = np.array(corners).T[:, mask]
    position = (left + column) * height + top + row  # in the mask, column by column
    # A run to the foot of one column and one from the head of the next are one run.
    joined = np.flatnonzero((position[1:] == position[:-1]) & (mask[1:] == mask[:-1]))
    kept = np.ones(len(position), dtype=bool)
    kept[joined] = kept[joined + 1] = False
    position, mask = position[kept], mask[kept]
    return compress(*_runs_between(position, np.bincount(mask, minlength=len(crops)), height * width))


def _runs_between(position: np.ndarray, changes: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """What `compress` takes, from where masks of `size` pixels change; `changes` [n] is how often each does."""
    last = np.cumsum(changes + 1) - 1  # [n], where each mask's last run goes
    ends = np.full(last[-1] + 1, size)
    inner = np.ones(len(ends), dtype=bool)
    inner[last] = False
    ends[inner] = position
    counts = np.diff(ends, prepend=0)
    first = last - changes
    counts[first] = ends[first]
    empty = (counts[last] == 0) & (changes > 0)  # the last run of ones reaches the last pixel
    return np.delete(counts, last[empty]), changes + 1 - empty
