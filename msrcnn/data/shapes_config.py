"""What the built-in data set is made of; apart from the drawing, so that the command line need not wait for numpy."""

from __future__ import annotations

from dataclasses import dataclass

from msrcnn.config import require

SPLITS = ("train", "val")
MOST_CLASSES = 8
"""One a surface that `shapes_surfaces` can draw."""


@dataclass(frozen=True)
class ShapesConfig:
    """What the data set is; its images are a pure function of this."""

    train: int = 600
    """images to train on"""
    val: int = 150
    """images to validate on"""
    size: int = 160
    """pixels of a side; objects scale with it"""
    classes: int = 3
    """how many classes of surface"""
    seed: int = 0
    """other seed, other images"""

    def __post_init__(self) -> None:
        limits = {
            "train": (1, 999_999),
            "val": (1, 999_999),
            "size": (64, 2048),
            "classes": (1, MOST_CLASSES),
            "seed": (0, 2**63 - 1),
        }
        for name, (low, high) in limits.items():
            value = getattr(self, name)
            whole = isinstance(value, int) and not isinstance(value, bool)
            require(whole and low <= value <= high, f"shapes.{name}", value, f"a whole number in {low}..{high}")
