"""Numbers as the page writes them."""

from __future__ import annotations

import math

from pipelines import text_tables

DASH = "\N{EN DASH}"
"""Where there is no number, and between the ends of a range."""
MINUS = "\N{MINUS SIGN}"


def nan_if_none(value: float | None) -> float:
    """JSON's null as the number that it was."""
    return math.nan if value is None else float(value)


def shown(value: float | None, decimals: int = 3) -> str:
    """A number; a dash where there is none."""
    return _printed(text_tables.number(nan_if_none(value), decimals))


def percent(value: float | None) -> str:
    """A fraction in percent with one decimal; a dash where there is none."""
    return shown(100 * nan_if_none(value), 1)


def points(value: float, decimals: int = 1) -> str:
    """A difference of fractions in percentage points with its sign; a dash where there is none."""
    return signed(100 * value, decimals)


def signed(value: float, decimals: int = 3) -> str:
    """A difference with its sign; a dash where there is none."""
    return _printed(text_tables.signed(value, decimals))


def interval(low: float | None, high: float | None) -> str:
    """Both ends of an interval of fractions, in points; empty where there is none. An end that is nearly 0 gets more
    digits, for its sign decides."""
    ends = nan_if_none(low), nan_if_none(high)
    if not all(map(math.isfinite, ends)):
        return ""
    decimals = 2 if any(end and not round(100 * end, 1) for end in ends) else 1
    return f"{points(ends[0], decimals)} to {points(ends[1], decimals)}"


def _printed(text: str) -> str:
    """A terminal's text with print's signs."""
    return DASH if text == text_tables.NONE else text.replace("-", MINUS)
