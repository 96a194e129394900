"""The order of training rows: a pure function of seed and epoch, whole epochs but for the remainder of a step."""

import operator
from collections import Counter

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray

from pipelines import one_row_blocks
from pipelines.reading import (
    Piece,
    RowGroup,
    TrainingPlan,
    epoch_groups,
    evaluation_rows,
    round_steps,
    slots_of,
    training_rows,
)

BATCH = 12
EMPTY = ("", -1)


def groups_of(*rows: int) -> list[RowGroup]:
    return [RowGroup(f"part-{i}", 0, n, 100_000 * n) for i, n in enumerate(rows)]


GROUPS = groups_of(16, 16, 16, 16, 16, 7, 90)  # 177 rows
STEPS = 177 // BATCH


def emitted(piece: Piece) -> list[tuple[str, int]]:
    """Its rows as (file, row in the file)."""
    rows = [(g.path, i) for g in piece.groups for i in range(g.rows)]
    return [rows[i] if i >= 0 else EMPTY for i in piece.order()]


def steps_of(workers: int, epochs: int, first_step: int = 0) -> list[list[tuple[str, int]]]:
    """The rows of each step, in order, as Ray Data's splitter deals the pieces."""
    slots = slots_of(BATCH, workers)
    dealt: list[list[tuple[str, int]]] = [[] for _ in range(workers)]
    numbers: list[list[int]] = [[] for _ in range(workers)]
    for piece in TrainingPlan(GROUPS, 3, epochs, STEPS, BATCH, workers, first_step):
        assert piece.rows == len(emitted(piece)) == len(piece.steps())
        worker = min(range(workers), key=lambda w: len(dealt[w]))
        dealt[worker].extend(emitted(piece))
        numbers[worker].extend(piece.steps())
    assert len({len(rows) for rows in dealt}) == 1
    steps = range(first_step, epochs * STEPS)
    assert all(found == [step for step in steps for _ in range(slots)] for found in numbers)
    return [
        [row for rows in dealt for row in rows[begin : begin + slots] if row != EMPTY]
        for begin in range(0, len(dealt[0]), slots)
    ]


@pytest.mark.parametrize("workers", [2, 3, 4, 5, 7, 12])
def test_steps_have_the_same_images_in_the_same_order_for_any_number_of_workers(workers: int) -> None:
    assert steps_of(workers, 3) == steps_of(1, 3)


@pytest.mark.parametrize("workers", [1, 3])
def test_an_epoch_has_every_image_once_but_for_the_rest_of_a_step(workers: int) -> None:
    steps = steps_of(workers, 3)
    assert len(steps) == 3 * STEPS
    left_out = set()
    everything = {(g.path, i) for g in GROUPS for i in range(g.rows)}
    for epoch in range(3):
        seen = Counter(row for step in steps[epoch * STEPS : (epoch + 1) * STEPS] for row in step)
        assert set(seen.values()) == {1}
        left_out.add(frozenset(everything - set(seen)))
    assert {len(rest) for rest in left_out} == {177 - STEPS * BATCH}
    assert len(left_out) > 1  # others each epoch


@pytest.mark.parametrize("first_step", [1, 5, STEPS - 1, STEPS, STEPS + 9, 3 * STEPS - 1])
@pytest.mark.parametrize("workers", [1, 2])
def test_a_stream_begins_at_any_step(first_step: int, workers: int) -> None:
    """Also with another number of workers than before."""
    assert steps_of(workers, 3, first_step) == steps_of(3, 3)[first_step:]


def test_rounds_that_do_not_divide_an_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipelines.reading.ROUND_STEPS", 4)
    assert STEPS % 4
    steps = steps_of(2, 2)
    assert steps == steps_of(4, 2)
    assert len({row for step in steps[:STEPS] for row in step}) == STEPS * BATCH
    for first in (3, 4, STEPS - 1, STEPS + 1):
        assert steps_of(3, 2, first) == steps[first:]


def test_a_step_takes_its_images_from_all_over_its_round() -> None:
    """Its images come from as many stretches, so mostly from other row groups, in an order of their own."""
    steps = steps_of(1, 1)
    assert np.mean([len({path for path, _ in step}) for step in steps]) > 3
    stretches = [[step[k][1] for step in steps] for k in range(BATCH)]
    assert not any(rows == sorted(rows) for rows in stretches)


def test_row_groups_are_read_about_once() -> None:
    groups = groups_of(*[64] * 100)
    for workers in (1, 8):
        plan = TrainingPlan(groups, 0, 1, 400, 16, workers)
        assert 6400 <= sum(g.rows for piece in plan for g in piece.groups) <= 1.05 * 6400


def test_the_order_of_row_groups_follows_from_seed_and_epoch() -> None:
    order = [[g.path for g in epoch_groups(GROUPS, 0, epoch)] for epoch in range(3)]
    assert order[0] != order[1] != order[2]
    assert all(sorted(o) == sorted(g.path for g in GROUPS) for o in order)
    assert [g.path for g in epoch_groups(GROUPS, 1, 0)] != order[0]


@pytest.mark.parametrize("rows", [[61], [31, 8]])
def test_what_is_left_out_is_drawn_anew_each_epoch(rows: list[int]) -> None:
    """In a data set of few row groups too: with 16 images a step every image is used in some of 30 epochs."""
    groups = groups_of(*rows)
    plan = TrainingPlan(groups, 0, 30, sum(rows) // 16, 16, 1)
    assert len({row for piece in plan for row in emitted(piece)}) == sum(rows)


@pytest.mark.parametrize(
    ("batch", "steps", "megabytes", "want"),
    [(16, 7000, 0.16, 64), (4, 150, 0.16, 64), (512, 230, 0.16, 2), (64, 99, 0.16, 16), (4, 5, 0.16, 5),
     (16, 7000, 5, 6), (16, 7000, 60, 1)],
)  # fmt: skip
def test_steps_of_a_round(batch: int, steps: int, megabytes: float, want: int) -> None:
    """Bounded in rows and in bytes, but never less than a step."""
    groups = [RowGroup("part", 0, 64, int(64 * megabytes * 1e6)), RowGroup("part", 1, 32, int(32 * megabytes * 1e6))]
    assert round_steps(groups, batch, steps) == want


@pytest.fixture
def part(tmp_path):
    """One file of 40 rows in row groups of 8, and its row groups."""
    path = str(tmp_path / "part.parquet")
    pq.write_table(pa.table({"image_id": range(40)}), path, row_group_size=8)
    return [RowGroup(path, i, 8, 64) for i in range(5)]


@pytest.mark.ray
@pytest.mark.usefixtures("ray_session")
def test_streams_through_ray_data(part):
    ids = [row["image_id"] for row in evaluation_rows(part).iter_rows()]
    assert sorted(ids) == list(range(40))

    rows = list(training_rows(TrainingPlan(part, 0, 2, 8, 5, 2)).iter_rows())
    for epoch in range(2):
        seen = [row["image_id"] for row in rows if row["epoch"] == epoch and row["image_id"] is not None]
        assert len(seen) == len(set(seen)) == 40
    assert len(rows) == 2 * 8 * 6  # two workers have three rows each of a step, one of the six is empty


def held_by_this_process() -> int:
    """Objects in Ray's store."""
    return len(ray._private.worker.global_worker.core_worker.get_all_reference_counts())


@pytest.mark.ray
@pytest.mark.usefixtures("ray_session")
def test_what_is_stored_for_a_stream_does_not_grow_with_its_length():
    """A training on COCO has 17,000 pieces left, each worker group begins by asking for them, and others wait."""
    stored, groups = [], groups_of(*[64] * 100)
    for epochs in (1, 40):
        plan, before = TrainingPlan(groups, 0, epochs, 400, 16, 8), held_by_this_process()
        rows = training_rows(plan)
        stored.append(held_by_this_process() - before)
        assert rows is not None
        assert len(plan) == epochs * 7 * 8
    before = held_by_this_process()
    rows = evaluation_rows(groups)
    stored.append(held_by_this_process() - before)
    assert rows is not None
    assert max(stored) <= 2


@pytest.mark.ray
@pytest.mark.usefixtures("ray_session")
@pytest.mark.parametrize("slices", [True, False])
def test_each_row_is_a_block_also_where_ray_data_cannot_cut_one(monkeypatch, slices):
    if not slices:
        monkeypatch.setattr(one_row_blocks, "slices_of", operator.attrgetter("gone"))
    rows = one_row_blocks.one_row_blocks(pa.table({"number": [5, 3, 8]}))
    rows = rows.map_batches(lambda block: {"given": [block["number"].tolist()]}, batch_size=None)
    assert sorted(row["given"] for row in rows.iter_rows()) == [[3], [5], [8]]
