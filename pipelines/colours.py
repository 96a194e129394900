"""Colours of categories in pictures."""

from __future__ import annotations

import numpy as np


def colour_of(category: int) -> np.ndarray:
    """A colour for each category number, far from that of the next: hues by the golden angle; float [3]."""
    hue = category * 0.381966 % 1 * 6
    ramp = np.abs((hue + np.array([0.0, 4.0, 2.0])) % 6 - 3) - 1
    return 255 * (0.1 + 0.9 * ramp.clip(0, 1))
