"""A stream with a task for each row of a table, of which Ray stores the table alone."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pyarrow as pa
import ray
import ray.data


def one_row_blocks(table: pa.Table) -> ray.data.Dataset:
    """The rows of `table`, at least one, in order, each a block of its own to the tasks that it goes to.

    Nothing but a task's input is cut: read without one, each block may be the whole table.
    """
    try:
        return slices_of(table)
    except Exception:  # other versions of Ray may have these parts of it elsewhere, or in another form
        return ray.data.from_arrow([table.slice(row, 1) for row in range(table.num_rows)])


def slices_of(table: pa.Table) -> ray.data.Dataset:
    """`one_row_blocks` as slices of one stored block, as Ray Data itself makes where it cuts blocks.

    `ray.data.from_arrow` with as many tables stores each by itself, 3 ms of a CPU: a minute for the rest of a training
    on COCO, before its workers may begin.
    """
    from ray.data._internal.execution.interfaces.ref_bundle import BlockEntry, BlockSlice, RefBundle
    from ray.data._internal.logical.interfaces import LogicalPlan
    from ray.data._internal.logical.operators import InputData
    from ray.data._internal.stats import DatasetStats
    from ray.data.block import BlockMetadataWithSchema
    from ray.data.context import DataContext

    about = BlockMetadataWithSchema.from_block(table)
    stored: Any = ray.put(table)
    whole = RefBundle((BlockEntry(stored, about.metadata),), schema=about.schema, owns_blocks=False)
    rows = [replace(whole, slices=(BlockSlice(row, row + 1),)) for row in range(table.num_rows)]
    context = DataContext.get_current().copy()
    stats = DatasetStats(metadata={"InputData": [about]}, parent=None)
    return ray.data.Dataset(LogicalPlan(InputData(rows), context), context, stats)
