"""Evaluations of a detector with random weights, as commands of their own that tests kill, and what they leave."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from msrcnn.config import DataConfig
from msrcnn.data.shapes import write_shapes
from msrcnn.data.shapes_config import ShapesConfig
from msrcnn.weights import save_model
from pipelines.manifest import read_manifest
from pipelines.options import ShardConfig
from tests.commands import Command
from tests.tiny import CONFIG, make_model

SIDE = 96


def write_shapes_shards(folder: Path, images: int, row_group: int) -> Path:
    """FOLDER/shards: `images` images of shapes in one shard."""
    from pipelines.shard import shard

    write_shapes(ShapesConfig(train=1, val=images, size=SIDE), folder / "images")
    annotations = folder / "images" / "annotations" / "instances_val.json"
    config = ShardConfig(annotations, folder / "images" / "val", folder / "shards", row_group=row_group, name="shapes")
    shard(config, log=lambda _: None)
    return folder / "shards"


def write_model(path: Path, shards: Path, seed: int = 0) -> None:
    """A detector for the shards' categories that finds something, if nothing sensible."""
    manifest = read_manifest(shards)
    model = make_model(replace(CONFIG, num_classes=len(manifest.categories)), sure=True)
    model.box.score.bias.data[0] -= seed
    categories = [(c.number, c.source_id, c.name) for c in manifest.categories]
    save_model(path, model, DataConfig(short_side=SIDE, long_side=SIDE), categories)


@dataclass
class Evaluation:
    """What an evaluation left: `summary.json` and the detection rows in the order of the parts."""

    summary: dict[str, Any]
    rows: list[dict[str, Any]]

    def drop(self, column: str) -> None:
        """Leaves a column out of the rows."""
        for row in self.rows:
            row.pop(column)


def evaluation_of(out: str | Path) -> Evaluation:
    """Reads it, but for when and how it was made, which no two evaluations have in common."""
    summary = json.loads((Path(out) / "summary.json").read_text())
    assert summary.pop("seconds") > 0
    assert summary.pop("made")["time"]
    rows = [row for path in sorted((Path(out) / "detections").iterdir()) for row in pq.read_table(path).to_pylist()]
    return Evaluation(summary, rows)


@dataclass
class Evaluating(Command):
    """`msrcnn evaluate` in a process."""

    folder: Path
    options: list[str]

    @property
    def out(self) -> Path:
        return self.folder / "out"

    def arguments(self) -> list[str]:
        return ["evaluate", "--out", str(self.out), "--tracking", f"sqlite:///{self.folder}/mlflow.db", *self.options]

    def parts(self) -> list[str]:
        """Names of the parts that are there."""
        folder = self.out / "detections"
        return sorted(path.name for path in folder.glob("*.parquet")) if folder.exists() else []

    def wait_for_parts(self, number: int, seconds: float = 240) -> None:
        deadline = time.monotonic() + seconds
        while len(self.parts()) < number:
            self.check_alive()
            assert time.monotonic() < deadline, f"not within {seconds} s\n{self.log()[-3000:]}"
            time.sleep(0.02)
