"""Which MaskIoU heads a sweep's rows want, so that one network can train all of them on one trunk."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from msrcnn.config import difference, to_dict
from msrcnn.maskiou_config import MaskIoUConfig
from tune_spaces.definition import Space
from tune_spaces.settings import base_of, configure


def heads_of(space: Space, over: Mapping[str, Any] | None = None) -> tuple[dict[str, str] | None, str]:
    """The MaskIoU head of each row that has one, where the rows differ in nothing else.

    Args:
        space: with rows.
        over: settings that go before what is fixed in the file and behind those of the rows.

    Returns:
        heads: by the row's name, in what it differs from the default head: "" (the default itself), "input=b",
            "target=2,tau=0.5", ...; rows without a head are ranked by class score and absent. None where the rows
            cannot share a trunk.
        reason: why they cannot; empty if they can.
    """
    if not space.rows:
        return None, "settings vary by [vary], not by rows"
    heads: dict[str, str] = {}
    first: tuple[str, dict[str, Any]] | None = None
    for row in (row for row in space.rows if not row.only_published):
        settings = {**space.fixed, **(over or {}), **row.settings}
        model, solver, data = configure(base_of(settings), settings)
        trunk = {name: part for name, part in to_dict(model).items() if name != "maskiou"}
        without = {"model": trunk, "solver": to_dict(solver), "data": to_dict(data),
                   "weights": settings.get("weights")}  # fmt: skip
        if first is None:
            first = row.name, without
        elif changed := difference(first[1], without):
            return None, f"rows {first[0]!r} and {row.name!r} differ in {changed[0]}"
        if model.maskiou.enabled:
            heads[row.name] = MaskIoUConfig().name_of(model.maskiou)
    return (heads, "") if heads else (None, "no row has a MaskIoU head")
