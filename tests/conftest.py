"""Fixtures for all tests: the real data's folder, and one local Ray."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The folder of real data sets that MSRCNN_DATA names; tests that need it are skipped without."""
    if not os.environ.get("MSRCNN_DATA"):
        pytest.skip("MSRCNN_DATA is not set")
    return Path(os.environ["MSRCNN_DATA"]).absolute()


@pytest.fixture(scope="session")
def ray_session() -> Iterator[None]:
    """One local Ray with 2 CPUs for all tests marked `ray`: starting one takes about 10 seconds."""
    from cluster.session import connect

    with connect(address="local", cpus=2):
        yield
