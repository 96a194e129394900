"""`msrcnn shapes`: the built-in data set."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from msrcnn.data.shapes_config import ShapesConfig


@dataclass(frozen=True)
class ShapesCommand(ShapesConfig):
    """Write the built-in data set: seeded images of shapes with COCO annotations."""

    out: Path = Path("shapes")
    """folder to make: train/, val/ and annotations/"""


def shapes(config: ShapesCommand) -> None:
    """Writes it.

    Raises:
        InputError: the folder cannot be used.
    """
    from msrcnn.data.shapes import write_shapes

    fields = {name: getattr(config, name) for name in ShapesConfig.__dataclass_fields__}
    write_shapes(ShapesConfig(**fields), config.out)
    print(f"{config.out}: {config.train} training and {config.val} validation images of {config.size} pixels")
