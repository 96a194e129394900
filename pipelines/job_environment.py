"""What a submitted command finds out about where it runs."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Sequence
from pathlib import Path

from cluster.package import PACKAGES, ROOT, differing
from msrcnn.errors import InputError

SUBMITTED = "MSRCNN_SUBMITTED"
"""Set in a job that `msrcnn submit` made."""


def submitted() -> bool:
    """Whether this process belongs to a submitted job."""
    return bool(os.environ.get(SUBMITTED))


def packages_notice(compared: Sequence[str] = PACKAGES, root: Path = ROOT) -> str:
    """A line about packages that are not the locked ones; empty if all are.

    Args:
        compared: names of packages.
        root: where the lock file is.

    Raises:
        InputError: one is missing.
    """
    found = differing(compared, root)
    if missing := [text.split()[0] for text in found if "is missing" in text]:
        raise InputError(
            f"{sys.executable} on {platform.node()} has no {', '.join(missing)}; begin PATH with the environment that "
            "has them where `ray start` runs (activate it), or `msrcnn submit --python PATH` or `--packages locked`"
        )
    if not found:
        return ""
    return f"note: {'; '.join(found)}; `msrcnn submit --packages locked` brings the locked ones"
