"""What a submitted command finds out about where it runs."""

from __future__ import annotations

import os

from cluster.package import differing
from msrcnn.errors import InputError

SUBMITTED = "MSRCNN_SUBMITTED"
"""Set in a job that `msrcnn submit` made."""
COMPARED = ("torch", "torchvision", "ray", "mlflow", "pyarrow", "numpy", "pycocotools", "hotcoco")


def submitted() -> bool:
    """Whether this process belongs to a submitted job."""
    return bool(os.environ.get(SUBMITTED))


def packages_notice() -> str:
    """A line about packages that are not the locked ones; empty if all are.

    Raises:
        InputError: one is missing.
    """
    found = differing(COMPARED)
    if missing := [text.split()[0] for text in found if "is missing" in text]:
        raise InputError(f"the cluster's Python has no {', '.join(missing)}; submit with --packages locked, or start "
                         "the cluster from an environment with requirements.lock")  # fmt: skip
    if not found:
        return ""
    return f"note: {'; '.join(found)}; `msrcnn submit --packages locked` brings the locked ones"
