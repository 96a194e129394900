"""Run lengths against pycocotools, bit for bit."""

from __future__ import annotations

import numpy as np
import pycocotools.mask as coco_mask
import pytest

from msrcnn.rle import compress, counts_of, decode_crop, encode_crops


def reference(mask: np.ndarray) -> bytes:
    return coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))["counts"]


def compressed(counts: np.ndarray) -> bytes:
    return compress(counts, np.array([len(counts)]))[0]


def encode_crop(crop: np.ndarray, left: int, top: int, height: int, width: int) -> bytes:
    return encode_crops([crop], [(left, top)], height, width)[0]


def masks() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    found: dict[str, np.ndarray] = {}
    for density in (0.02, 0.5, 0.97):
        for shape in ((1, 1), (1, 17), (23, 1), (31, 40), (64, 9)):
            found[f"noise {density} {shape}"] = rng.random(shape) < density
    for shape in ((1, 1), (7, 5)):
        found[f"empty {shape}"], found[f"full {shape}"] = np.zeros(shape, bool), np.ones(shape, bool)
    for row, column in ((0, 0), (19, 0), (0, 29), (19, 29), (7, 11)):
        mask = np.zeros((20, 30), bool)
        mask[row, column] = True
        found[f"pixel {row} {column}"] = mask
    columns = np.zeros((20, 30), bool)
    columns[:, 3:9] = columns[:, 29] = True
    found["whole columns"] = columns
    foot = np.zeros((20, 30), bool)
    foot[12:, 4] = foot[:5, 5] = foot[:, 6] = True  # runs that go on in the next column
    found["foot to head"] = foot
    huge = np.zeros((3000, 4100), bool)
    huge[5:2990, 10:4000] = rng.random((2985, 3990)) < 0.001
    huge[100:2900, 2000:2400] = True
    found["huge"] = huge
    return found


MASKS = masks()


@pytest.mark.parametrize("name", MASKS)
def test_same_bits_as_pycocotools(name: str) -> None:
    mask = MASKS[name]
    height, width = mask.shape
    rle = reference(mask)
    counts = counts_of(rle)
    assert counts.sum() == mask.size
    assert counts[1::2].sum() == mask.sum()
    assert compressed(counts) == rle
    assert encode_crop(mask, 0, 0, height, width) == rle

    crop, (left, top, w, h) = decode_crop(rle, height)
    assert crop.dtype == np.uint8
    assert crop.shape == (h, w)
    if not mask.any():
        assert (left, top, w, h) == (0, 0, 0, 0)
        return
    box = coco_mask.toBbox({"size": [height, width], "counts": rle})
    assert (left, top, w, h) == tuple(box.astype(int))
    assert np.array_equal(crop, mask[top : top + h, left : left + w])
    assert encode_crop(crop.astype(bool), left, top, height, width) == rle


@pytest.mark.parametrize("seed", range(20))
def test_a_loose_crop_gives_the_same_bits(seed: int) -> None:
    rng = np.random.default_rng(seed)
    height, width = rng.integers(5, 40, 2)
    top, left = int(rng.integers(0, height)), int(rng.integers(0, width))
    h, w = int(rng.integers(0, height - top + 1)), int(rng.integers(0, width - left + 1))
    crop = rng.random((h, w)) < 0.3
    mask = np.zeros((height, width), bool)
    mask[top : top + h, left : left + w] = crop
    assert encode_crop(crop, left, top, height, width) == reference(mask)


def test_many_masks_at_once_give_the_bits_of_each_alone() -> None:
    """Neighbours in the list share no run: masks that end in ones beside masks that begin with them, empty, none."""
    rng = np.random.default_rng(0)
    height, width = 20, 30
    found = [mask for mask in MASKS.values() if mask.shape == (height, width)]
    found += [np.ones((height, width), bool), np.zeros((height, width), bool)]
    found += [rng.random((height, width)) < density for density in (0.1, 0.5, 0.9)]
    assert len(found) > 10
    crops, corners, want = [], [], []
    for _ in range(200):
        mask = found[rng.integers(len(found))].copy()
        left, top = int(rng.integers(0, 3)), int(rng.integers(0, 3))
        mask[:top], mask[:, :left] = False, False
        crops.append(mask[top:, left:])
        corners.append((left, top))
        want.append(reference(mask))
    assert encode_crops(crops, corners, height, width) == want
    assert encode_crops([], [], height, width) == []


@pytest.mark.parametrize("seed", range(20))
def test_any_run_lengths_survive(seed: int) -> None:
    """Lengths of every size, so that differences have either sign and one to six groups of bits."""
    rng = np.random.default_rng(seed)
    counts = np.exp2(rng.uniform(0, 27, int(rng.integers(1, 30)))).astype(np.int64)
    rle = compressed(counts)
    height = int(counts.sum())
    assert rle == coco_mask.frPyObjects({"size": [height, 1], "counts": counts.tolist()}, height, 1)["counts"]
    assert np.array_equal(counts_of(rle), counts)


def test_runs_split_by_nothing_are_read_as_one() -> None:
    """Run lengths of 0 in the middle, which annotation files may hold, say the same as one longer run."""
    crop, box = decode_crop(compressed(np.array([2, 3, 0, 2, 5])), 4)  # pixels 2 to 6 of 4 x 3
    want = np.zeros(12, np.uint8)
    want[2:7] = 1
    assert box == (0, 0, 2, 4)
    assert np.array_equal(crop, want.reshape(3, 4).T[:, :2])
