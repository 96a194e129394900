"""COCO's compressed run lengths, read and written with numpy alone and only where a mask is.

A [height, width] mask is read column by column as alternating run lengths, zeros first. Each length from the fourth on
is stored as the difference from the one two before it, in groups of 5 bits, lowest first, one character a group: bit 5
says that another group follows, and 48 is added (pycocotools' `counts`).
"""

from __future__ import annotations

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


def compress(counts: np.ndarray) -> bytes:
    """Run lengths int64 [runs], zeros first, to compressed `counts`."""
    values = counts.astype(np.int64)
    values[3:] -= counts[1:-2]
    # A number needs the fewest groups that hold it with its sign.
    magnitude = np.where(values < 0, ~values, values)
    groups = np.ones(len(values), dtype=np.int64)
    rest = magnitude >> (GROUP_BITS - 1)
    while rest.any():
        groups += rest > 0
        rest >>= GROUP_BITS
    starts = np.cumsum(groups) - groups
    place = np.arange(groups.sum()) - np.repeat(starts, groups)
    characters = (np.repeat(values, groups) >> (GROUP_BITS * place)) & (MORE - 1)
    characters[place < np.repeat(groups - 1, groups)] |= MORE
    return (characters + FIRST_CHARACTER).astype(np.uint8).tobytes()


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


def encode_crop(crop: np.ndarray, left: int, top: int, height: int, width: int) -> bytes:
    """Compressed `counts` of a [height, width] mask that is zero but for `crop` (bool [h, w]) at (top, left)."""
    h, w = crop.shape
    # Column by column with a zero after each column: a run ends inside its column, so runs are pairs of changes.
    columns = np.zeros((w, h + 1), dtype=np.int8)
    columns[:, :h] = crop.T
    changes = np.flatnonzero(np.diff(columns.reshape(-1), prepend=np.int8(0)))  # [2 * runs], flat in w * (h + 1)
    column, row = np.divmod(changes, h + 1)
    position = (left + column) * height + top + row  # in the image, column by column
    if h == height:  # a run to the foot of one column and one from the head of the next are one run
        joined = np.flatnonzero(position[1:] == position[:-1])
        position = np.delete(position, np.concatenate([joined, joined + 1]))
    counts = np.diff(position, prepend=0, append=height * width)
    if len(counts) > 1 and counts[-1] == 0:  # the last run of ones reaches the last pixel
        counts = counts[:-1]
    return compress(counts)
