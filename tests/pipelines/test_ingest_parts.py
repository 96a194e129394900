"""What a training worker computes together: landscape and portrait images apart, as few parts as that allows."""

from __future__ import annotations

import io
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image

from msrcnn.config import DataConfig
from msrcnn.data.batching import draw
from msrcnn.rows import ImageTruth
from pipelines.ingest import TrainingCollate, parts_of
from pipelines.schema import SHARD_ROW
from tests.stored_scenes import truth_row

DATA, SEED, EPOCH = DataConfig(short_side=64, long_side=96), 3, 2
LYING, STANDING = (64, 96), (96, 64)


@pytest.mark.parametrize("at_once", [0, 1, 2, 3, 16])
def test_parts_do_not_mix_and_are_few(at_once: int) -> None:
    rng = np.random.default_rng(at_once)
    kinds = [(64, 64), LYING, (64, 96), STANDING, (48, 32), (128, 192)]  # of several scales
    for count in (1, 2, 3, 7, 16):
        canvases = [kinds[i] for i in rng.integers(0, 6, count)]
        parts = parts_of(canvases, at_once, mixed=False)
        assert sorted(place for part in parts for place in part) == list(range(count))
        for part in parts:
            assert len({height > width for height, width in (canvases[i] for i in part)}) == 1
            assert 1 <= len(part) <= (at_once or count)
            assert [canvases[i] for i in part] == sorted(canvases[i] for i in part)
            assert all(a < b or canvases[a] != canvases[b] for a, b in pairwise(part))
        together = parts_of(canvases, at_once, mixed=True)
        fewest = -(-count // at_once) if at_once else 1
        assert len(together) == fewest <= len(parts) <= fewest + 1


def test_pixels_of_a_step() -> None:
    """16 images of which every fourth stands, 2 a part: in their order, half of the parts would be square."""
    canvases = [STANDING if i % 4 == 1 else LYING for i in range(16)]
    parts = [[canvases[i] for i in part] for part in parts_of(canvases, 2, mixed=False)]
    assert parts == [[LYING] * 2] * 6 + [[STANDING] * 2] * 2


def table_of(sizes: list[tuple[int, int]]) -> pa.Table:
    """Shard rows of images that are all of one grey each, and an empty one as the reader adds them."""
    rows = []
    for image_id, (height, width) in enumerate(sizes, start=10):
        file = io.BytesIO()
        Image.new("RGB", (width, height), (image_id,) * 3).save(file, "PNG")
        rows.append(truth_row(ImageTruth.unknown(image_id, height, width), file.getvalue()))
    table = pa.Table.from_pylist(rows, SHARD_ROW)
    table = table.take(pa.array([*range(len(rows)), None], pa.int64()))
    table = table.append_column("epoch", pa.array([EPOCH] * len(table), pa.int32()))
    return table.append_column("step", pa.array([5] * len(table)))


def test_an_image_has_its_scale_whatever_it_is_computed_with() -> None:
    """That of its draw, also where a training goes on with other parts."""
    scaled = replace(DATA, short_sides=(32, 48, 64, 96))
    table = table_of([LYING, STANDING] * 12)
    sizes = {}
    for at_once in (0, 1, 5):
        of_image = {}
        for part in TrainingCollate(scaled, SEED, at_once)(table).parts:
            height, width = part.images.shape[2:]
            assert ((part.sizes[:, 0] > part.sizes[:, 1]) == (height > width)).all()
            of_image |= dict(zip(part.image_ids.tolist(), part.sizes.tolist(), strict=True))
        sizes[at_once] = of_image
    assert sizes[0] == sizes[1] == sizes[5]
    assert {min(size) for size in sizes[0].values()} == {32, 48, 64}  # the longer side limits 96 to 64
    for image_id, size in sizes[0].items():
        side = scaled.short_sides[draw(SEED, EPOCH, image_id) // 2 % 4]
        assert sorted(size) == [min(side, 64), min(side, 64) * 1.5]


def test_a_part_holds_what_belongs_to_its_images() -> None:
    table = table_of([LYING, STANDING, LYING, LYING, STANDING])
    images = TrainingCollate(DATA, SEED, at_once=2)(table)
    assert [part.image_ids.tolist() for part in images.parts] == [[10], [12, 13], [11, 14]]
    assert [tuple(part.images.shape[2:]) for part in images.parts] == [LYING, LYING, STANDING]
    for part in images.parts:
        assert part.draws.tolist() == [draw(SEED, EPOCH, i) for i in part.image_ids.tolist()]
        assert torch.equal(part.images.amax((1, 2, 3)).long(), part.image_ids)
        assert part.targets is not None
    assert (images.epoch, images.step) == (EPOCH, 5)

    mixed = TrainingCollate(DATA, SEED, at_once=3, mixed=True)(table)
    assert [part.image_ids.tolist() for part in mixed.parts] == [[10, 12], [13, 11, 14]]
