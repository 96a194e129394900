"""The order of training rows: a pure function of seed and epoch, whole epochs but for the remainder of a step."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.reading import RowGroup, evaluation_rows, training_plan, training_rows, window_order


def groups_of(*rows: int) -> list[RowGroup]:
    return [RowGroup(f"part-{i}", 0, n) for i, n in enumerate(rows)]


def test_an_epoch_is_a_whole_number_of_steps():
    groups = groups_of(16, 16, 16, 16, 16, 7)  # 87 rows: two windows
    plan = training_plan(groups, seed=3, epochs=range(4), rows_per_epoch=84)
    for epoch in range(4):
        windows = [w for w in plan if w.epoch == epoch]
        assert sum(w.rows for w in windows) == 84
        read = [g for w in windows for g in w.groups]
        assert sorted(g.path for g in read) == sorted(g.path for g in groups)
        assert all(w.rows <= sum(g.rows for g in w.groups) for w in windows)


def test_the_order_follows_from_seed_and_epoch_alone():
    groups = groups_of(*[8] * 12)
    plan = training_plan(groups, 0, range(3), 96)
    again = training_plan(groups, 0, range(1, 3), 96)  # a run that resumes at epoch 1
    assert [w for w in plan if w.epoch > 0] == again
    order = {epoch: [g.path for w in plan if w.epoch == epoch for g in w.groups] for epoch in range(3)}
    assert order[0] != order[1] != order[2]
    other = training_plan(groups, 1, range(1), 96)
    assert [g.path for w in other for g in w.groups] != order[0]
    assert sorted(window_order(50, 0, 0, 1)) == list(range(50))
    assert not np.array_equal(window_order(50, 0, 0, 1), window_order(50, 0, 0, 2))


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

    rows = list(training_rows(part, seed=0, epochs=range(2), rows_per_epoch=36).iter_rows())
    for epoch in range(2):
        seen = [row["image_id"] for row in rows if row["epoch"] == epoch]
        assert len(seen) == len(set(seen)) == 36
