"""Fixtures of the stages' tests."""

from __future__ import annotations

from pathlib import Path

import pytest

from msrcnn.config import DataConfig, SolverConfig
from msrcnn.data.shapes import write_shapes
from msrcnn.data.shapes_config import ShapesConfig
from pipelines.options import TrainConfig
from pipelines.shard import ShardConfig, shard
from tests.little import make_little
from tests.training_runs import SIZE, SMALL


@pytest.fixture
def little(tmp_path: Path) -> ShardConfig:
    """A sharding of twelve images that has not begun."""
    return make_little(tmp_path)


@pytest.fixture(scope="session")
def shards(tmp_path_factory, ray_session):  # noqa: ARG001  the cluster must be up
    folder = tmp_path_factory.mktemp("shapes")
    write_shapes(ShapesConfig(train=22, val=8, size=SIZE), folder / "images")
    for split in ("train", "val"):
        annotations = folder / "images" / "annotations" / f"instances_{split}.json"
        shard(ShardConfig(annotations, folder / "images" / split, folder / split, row_group=4), log=lambda _: None)
    return folder


@pytest.fixture(scope="session")
def trained(shards, tmp_path_factory):
    """A run of two epochs by two workers: its configuration and what it printed."""
    from pipelines.train import train

    folder = tmp_path_factory.mktemp("run")
    config = TrainConfig(
        shards=shards / "train", run=folder / "run", model=SMALL, data=DataConfig(SIZE, SIZE),
        solver=SolverConfig(epochs=2, decay_epochs=(1,), batch=4, lr=0.04, warmup_steps=4, clip_norm=10.0),
        workers="2", threads=1, tracking=f"sqlite:///{folder}/mlflow.db",
    )  # fmt: skip
    lines: list[str] = []
    train(config, lines.append)
    return config, lines
