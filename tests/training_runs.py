"""Trainings as commands of their own, which tests kill and start again, and what they leave behind."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from msrcnn.presets import PRESETS
from msrcnn.weights import load_model
from pipelines.storage import locate

DEMO = PRESETS["demo"]
SMALL = replace(DEMO.model, channels=32, hidden=64, rpn=replace(DEMO.model.rpn, test_proposals=50))
"""The model of the tests' trainings, on images of SIZE pixels."""
SIZE = 64
WORKER, CONTROLLER, MAILBOX = "RayTrainWorker", "TrainController", "Mailbox"
"""In the titles of the processes of a training."""


@dataclass
class Training:
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
    driver: subprocess.Popen[bytes] | None = None

    @property
    def run(self) -> Path:
        return self.folder / "run"

    @property
    def mark(self) -> str:
        """In the environment of the driver and of all that it starts."""
        return f"MSRCNN_TEST={self.folder}"

    def command(self) -> list[str]:
        return [
            sys.executable, "-c", "from pipelines.cli import main; main()", "train", "--preset", "demo",
            "--shards", str(self.shards), "--run", str(self.run),
            "--tracking", self.tracking or f"sqlite:///{self.folder}/mlflow.db",
            "--model.channels", "32", "--model.hidden", "64", "--data.short-side", "64", "--data.long-side", "64",
            "--solver.batch", "4", "--solver.lr", "0.04", "--solver.warmup-steps", "4", "--threads", "1",
            *self.options,
        ]  # fmt: skip

    def start(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        environment = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"}
        environment |= dict([self.mark.split("=", 1)], PYTHONUNBUFFERED="1")
        with (self.folder / "log").open("ab") as log:
            self.driver = subprocess.Popen(
                self.command(), env=environment, start_new_session=True, stdout=log, stderr=subprocess.STDOUT,
                cwd=Path(__file__).parents[1],
            )  # fmt: skip

    def log(self) -> str:
        path = self.folder / "log"
        return path.read_text(errors="replace") if path.exists() else ""

    def wait_for(self, pattern: str, times: int = 1, seconds: float = 240) -> None:
        """Returns when the log has so many matches."""
        deadline = time.monotonic() + seconds
        while len(re.findall(pattern, self.log())) < times:
            assert self.driver is not None
            assert self.driver.poll() is None, f"ended with {self.driver.returncode}:\n{self.log()[-3000:]}"
            assert time.monotonic() < deadline, f"not within {seconds} s: {pattern}\n{self.log()[-3000:]}"
            time.sleep(0.05)

    def finish(self, seconds: float = 400) -> int:
        """The exit code, once it has ended."""
        assert self.driver is not None
        try:
            return self.driver.wait(seconds)
        except subprocess.TimeoutExpired:
            self.kill_all()
            raise AssertionError(f"not within {seconds} s:\n{self.log()[-3000:]}") from None

    def kill_driver(self) -> None:
        assert self.driver is not None
        os.kill(self.driver.pid, signal.SIGKILL)
        self.driver.wait()

    def kill_process(self, title: str, number: int = 0) -> bool:
        """SIGKILL to one of the processes with such a title; False if there is none."""
        found = processes(title, self.mark)
        if found:
            with contextlib.suppress(ProcessLookupError):
                os.kill(found[number % len(found)], signal.SIGKILL)
        return bool(found)

    def kill_all(self) -> None:
        for pid in processes("", self.mark):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if self.driver is not None:
            self.driver.wait()

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


def processes(title: str, mark: str) -> list[int]:
    """Ids of processes with `title` in their command line and `mark` in their environment."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            line = (folder / "cmdline").read_bytes().decode(errors="replace")
            if title in line and mark.encode() in (folder / "environ").read_bytes():
                found.append(int(folder.name))
    return sorted(found)


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
