"""From the outcomes of trials to the rows of tables."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from pipelines.storage import Location
from pipelines.sweep_best import best_of
from pipelines.sweep_options import SweepConfig
from pipelines.sweep_plan import ALONE, Plan, Planned, Shown
from pipelines.sweep_results import RowResult, TableResult
from pipelines.text_tables import counted
from pipelines.trial import EPOCH, RESULTS, read_result
from tune_spaces.definition import Row

BOX = "box "
"""Before a column's name: of boxes."""


def tables_of(config: SweepConfig, plan: Plan, out: Location, failures: Mapping[str, str]) -> tuple[TableResult, ...]:
    """The tables of a sweep, from what its trials left in `out`.

    Args:
        failures: why trials failed, by name.
    """
    tables = []
    for planned in plan.tables:
        rows = planned.rows or _found(plan, out, failures)
        space = planned.space
        table = TableResult(
            space.title, space.tables, space.about, space.columns,
            tuple(_row(planned, shown, out, failures) for shown in rows), (*space.notes, *planned.notes),
        )  # fmt: skip
        if space.vary:
            table = table.best_first()
            table = replace(table, best=best_of(config, space, table))
        tables.append(table)
    return tuple(tables)


def _found(plan: Plan, out: Location, failures: Mapping[str, str]) -> tuple[Shown, ...]:
    """The rows of a Bayesian search: its trials, whichever they came to be."""
    assert plan.search is not None
    rows = []
    for file in sorted((out / RESULTS).list()):
        name = file.removesuffix(".json")
        found = read_result(out, name) if file.endswith(".json") else None
        if found is not None and plan.search.made(found["settings"], name):
            rows.append((name, found["settings"]))
    known = {name for name, _ in rows}
    rows += [(name, {}) for name in failures if name not in known]
    return tuple(Shown(Row(name), (name,), "", ALONE, settings) for name, settings in rows)


def _row(planned: Planned, shown: Shown, out: Location, failures: Mapping[str, str]) -> RowResult:
    """A line of a table."""
    row = shown.row
    results = [read_result(out, name) for name in shown.trials]
    values = {
        column: [_value(found, shown, column) for found in results]
        for column in planned.space.columns
        if any(found is not None for found in results)
    }
    against = planned.space.baseline(row) if planned.space.rows else ""
    state = _state(shown, results, failures)
    return RowResult(row.name, shown.how, row.published, values, state, shown.settings, against)


def _value(found: Mapping[str, Any] | None, shown: Shown, column: str) -> float:
    """One number in percent; nan where there is none."""
    if found is None:
        return math.nan
    head = found["heads"].get(shown.head, {})
    ranking = "box" if column.startswith(BOX) else shown.row.ranked
    value = head.get(ranking, {}).get(column.removeprefix(BOX))
    return math.nan if value is None else float(value)


def _state(shown: Shown, results: Sequence[Mapping[str, Any] | None], failures: Mapping[str, str]) -> str:
    """What the reader must know of the row; empty once all its trials are complete."""
    done = [found for found in results if found is not None]
    parts = []
    for name in shown.trials:
        if name in failures:
            parts.append(f"failed: {failures[name]}")
    if len(done) < len(results) and len(results) > 1:
        parts.insert(0, f"{len(done)} of {len(results)} seeds")
    elif not done and shown.trials and not parts:
        parts.append("not run")
    parts += [f"stopped after {counted(found[EPOCH], 'epoch')}" for found in done if found.get("stopped")]
    parts += [f"archive: {found['archive']}" for found in done if "archive" in found]
    return "; ".join(dict.fromkeys(parts))
