"""The order of training rows: a pure function of seed and epoch, whole epochs but for the remainder of a step."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.manifest import Manifest, Part
from pipelines.reading import (
    RowGroup,
    epoch_windows,
    evaluation_rows,
    read_rows,
    row_groups,
    training_plan,
    training_rows,
    window_order,
)  # fmt: skip
from pipelines.storage import locate


def groups_of(*rows: int) -> list[RowGroup]:
    return [RowGroup(f"part-{i}", 0, n) for i, n in enumerate(rows)]


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_every_worker_has_its_part_of_an_epoch_before_any_gets_the_next(workers):
    groups = groups_of(16, 16, 16, 16, 16, 7)  # 87 rows: two windows
    steps = 87 // (workers * 4)
    dealt = [0] * workers
    for place, piece in enumerate(training_plan(groups, 3, range(4), steps, workers, share=4)):
        assert piece.rows % 4 == 0
        worker = dealt.index(min(dealt))  # as Ray Data's splitter deals
        assert worker == place % workers
        assert piece.epoch == dealt[worker] // (steps * 4)
        dealt[worker] += piece.rows
        assert dealt[worker] <= (piece.epoch + 1) * steps * 4
    assert dealt == [4 * steps * 4] * workers


@pytest.mark.parametrize(("workers", "share"), [(1, 4), (2, 2), (3, 1)])
def test_the_pieces_of_an_epoch_join_without_gap_or_overlap(workers, share):
    groups = groups_of(16, 16, 16, 16, 16, 7)
    steps = 87 // (workers * share)
    for epoch in range(3):
        sizes = [sum(g.rows for g in w) for w in epoch_windows(groups, 3, epoch)]
        begins = np.cumsum([0, *sizes])
        expected = 0
        for piece in training_plan(groups, 3, [epoch], steps, workers, share):
            assert begins[piece.numbers[0]] + piece.start == expected
            assert piece.start + piece.rows <= sum(sizes[n] for n in piece.numbers)
            expected += piece.rows
        assert expected == steps * workers * share


def test_the_order_follows_from_seed_and_epoch_alone():
    groups = groups_of(*[8] * 12)
    plan = training_plan(groups, 0, range(3), 24, 2, 2)
    again = training_plan(groups, 0, range(1, 3), 24, 2, 2)  # a run that resumes at epoch 1
    assert [p for p in plan if p.epoch > 0] == again
    order = [[g.path for w in epoch_windows(groups, 0, epoch) for g in w] for epoch in range(3)]
    assert order[0] != order[1] != order[2]
    assert all(sorted(o) == sorted(g.path for g in groups) for o in order)
    assert [g.path for w in epoch_windows(groups, 1, 0) for g in w] != order[0]
    assert sorted(window_order(50, 0, 0, 1)) == list(range(50))
    assert not np.array_equal(window_order(50, 0, 0, 1), window_order(50, 0, 0, 2))


def test_row_groups_and_rows_behind_urls(tmp_path):
    """fsspec's memory file system is as far from a local path as an object store."""
    folder = locate(f"memory:/{tmp_path}")
    table = pa.table({"image_id": range(40)})
    for name in ("a", "b"):
        with (folder / name).writing() as sink:
            pq.write_table(table, sink, row_group_size=16)
    parts = tuple(Part(name, 40, 0, 0, "") for name in ("a", "b"))
    groups = row_groups(Manifest(folder.url, "x", (), parts, {}, {}))
    assert [(g.path, g.index, g.rows) for g in groups] == [
        (f"memory:/{tmp_path}/{name}", i, rows) for name in ("a", "b") for i, rows in enumerate((16, 16, 8))
    ]
    rows = read_rows([groups[1].path, groups[5].path], [1, 2])
    assert rows["image_id"].to_pylist() == [*range(16, 32), *range(32, 40)]


@pytest.fixture
def part(tmp_path):
    """One file of 40 rows in row groups of 8, and its row groups."""
    path = str(tmp_path / "part.parquet")
    pq.write_table(pa.table({"image_id": range(40)}), path, row_group_size=8)
    return [RowGroup(path, i, 8) for i in range(5)]


@pytest.mark.ray
@pytest.mark.usefixtures("ray_session")
def test_streams_through_ray_data(part):
    ids = [row["image_id"] for row in evaluation_rows(part).iter_rows()]
    assert sorted(ids) == list(range(40))

    rows = list(training_rows(training_plan(part, 0, range(2), 9, 2, 2)).iter_rows())
    for epoch in range(2):
        seen = [row["image_id"] for row in rows if row["epoch"] == epoch]
        assert len(seen) == len(set(seen)) == 36
