"""Trainings as commands of their own, which tests kill and start again, and what they leave behind."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from msrcnn.presets import PRESETS
from msrcnn.weights import load_model
from pipelines.storage import locate
from tests.commands import Command

DEMO = PRESETS["demo"]
SMALL = replace(DEMO.model, channels=32, hidden=64, rpn=replace(DEMO.model.rpn, test_proposals=50))
"""The model of the tests' trainings, on images of SIZE pixels."""
SIZE = 64
WORKER, CONTROLLER, MAILBOX = "RayTrainWorker", "TrainController", "Mailbox"
"""In the titles of the processes of a training."""


@dataclass
class Training(Command):
    """`msrcnn train` in a process; the same command again goes on.

    Args:
        folder: for the run directory, the database and the log.
        shards: to train on.
        options: of the command, after those that all trainings of the tests have.
        tracking: address of MLflow; a database in the folder if absent.
    """

    folder: Path
    shards: Path
    options: list[str] = field(default_factory=list)
    tracking: str | None = None

    @property
    def run(self) -> Path:
        return self.folder / "run"

    def arguments(self) -> list[str]:
        return [
            "train", "--preset", "demo",
            "--shards", str(self.shards), "--run", str(self.run),
            "--tracking", self.tracking or f"sqlite:///{self.folder}/mlflow.db",
            "--model.channels", "32", "--model.hidden", "64", "--data.short-side", "64", "--data.long-side", "64",
            "--solver.batch", "4", "--solver.lr", "0.04", "--solver.warmup-steps", "4", "--threads", "1",
            *self.options,
        ]  # fmt: skip

    def records(self) -> list[dict]:
        """The lines of metrics.jsonl that training made."""
        return [line for line in records(self.run) if "loss/total" in line]

    def images(self) -> list[list[int]]:
        """The image ids of each epoch along the lineage that the weights come from."""
        return [
            [i for line in path.read_text().splitlines() for step in json.loads(line)["images"] for i in step]
            for path in sorted((self.run / "images").iterdir())
        ]

    def weights(self) -> dict[str, torch.Tensor]:
        return load_model(self.run / "model.pt").model.state_dict()


def records(run: str | Path) -> list[dict]:
    """The lines of a run's metrics.jsonl."""
    return [json.loads(line) for line in (locate(run) / "metrics.jsonl").read().splitlines()]


def assert_each_once(training: Training, epochs: int, images: int) -> None:
    """Every epoch had so many different images, each once; and no step is missing or told twice."""
    seen = training.images()
    assert len(seen) == epochs
    for ids in seen:
        assert len(ids) == images
        assert max(Counter(ids).values()) == 1
    steps = [record["step"] for record in training.records()]
    assert steps == sorted(set(steps))
    assert "came more than once" not in training.log()


def assert_same_weights(one: Training, other: Training, tolerance: float) -> None:
    ours, theirs = one.weights(), other.weights()
    assert ours.keys() == theirs.keys()
    worst = max(float((ours[name].double() - theirs[name].double()).abs().max()) for name in ours)
    assert worst <= tolerance, f"weights differ by {worst}"
