"""Fixtures of the stages' tests."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipelines.shard import ShardConfig
from tests.little import make_little


@pytest.fixture
def little(tmp_path: Path) -> ShardConfig:
    """A sharding of twelve images that has not begun."""
    return make_little(tmp_path)
