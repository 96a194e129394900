"""The paper's numbers that stand beside a run's: those of its preset, or of the nearest one with its trunk."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from msrcnn.presets import PRESETS
from tune_spaces.space import find_space

ALIKE = ("backbone", "neck", "levels", "deformable")
"""What makes a model that of a row of the paper."""


@dataclass(frozen=True)
class Published:
    """A backbone's rows in the paper's Tables 1, 2 and 7, in percent, on COCO val2017.

    Attributes:
        name: of the row.
        exact: whether the run's model is the row's; else only its trunk is.
        by_class: AP, AP50, AP75, box AP, box AP50, box AP75 of the Mask R-CNN without a MaskIoU head.
        by_mask: the same of the MS R-CNN.
        oracle: mask AP by the oracle; None where the paper has none.
    """

    name: str
    exact: bool
    by_class: Mapping[str, float]
    by_mask: Mapping[str, float]
    oracle: float | None


def published_for(model: Mapping[str, Any]) -> Published | None:
    """The rows for a model's settings as a run stores them; None where the paper has no such trunk."""
    presets = {row.settings["preset"] for row in find_space("backbone").rows}
    wanted = [_plain(model.get(name)) for name in ALIKE]
    known = {preset: [_plain(getattr(PRESETS[preset].model, name)) for name in ALIKE] for preset in sorted(presets)}
    exact = next((preset for preset, held in known.items() if held == wanted), None)
    near = next((preset for preset, held in known.items() if held[0] == wanted[0]), None)
    preset = exact or near
    if preset is None:
        return None
    rows = {row.ranked: row for row in find_space("backbone").rows if row.settings["preset"] == preset}
    oracle = [row.published["AP"] for row in find_space("oracle").rows
              if row.settings["preset"] == preset and row.ranked == "oracle"]  # fmt: skip
    name = rows["mask"].name.partition(", ")[2]
    return Published(name, exact is not None, rows["class"].published, rows["mask"].published,
                     oracle[0] if oracle else None)  # fmt: skip


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, (list, tuple)) else value
