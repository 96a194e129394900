"""A training's progress: a live line on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskID, TextColumn

from msrcnn.maskiou_config import HEAD_LOSS
from pipelines.job import Job
from pipelines.progress import duration


class Display:
    """Shows lines and records; use it as a context.

    Args:
        log: takes plain lines. If absent they are printed, and on a terminal the newest record is shown in one line
            that stays, with a bar, below what is printed.
    """

    def __init__(self, job: Job, log: Callable[[str], None] | None) -> None:
        self.job = job
        self._log = log
        self._progress: Progress | None = None
        self._task: TaskID | None = None
        if log is None and sys.stdout.isatty():
            columns = (BarColumn(bar_width=20), TextColumn("{task.description}"))
            self._progress = Progress(*columns, console=Console(), refresh_per_second=2)

    def log(self, line: str) -> None:
        """Shows a line."""
        if self._progress is not None:
            self._progress.console.print(escape(line), highlight=False)
        elif self._log is not None:
            self._log(line)
        else:
            print(line, flush=True)

    def record(self, record: dict[str, Any]) -> None:
        """Shows a record of some steps."""
        line = self.line(record)
        if self._progress is None:
            self.log(line)
            return
        if self._task is None:
            self._task = self._progress.add_task(escape(line), total=self.job.total_steps)
        self._progress.update(self._task, completed=record["step"], description=escape(line))

    def line(self, record: dict[str, Any]) -> str:
        """A record in one line: where it is, losses, speed, and how long the rest will take."""
        left = (self.job.total_steps - record["step"]) * self.job.solver.batch / record["images_per_second"]
        parts = " ".join(f"{name} {value:.3f}" for name, value in shown_losses(record).items())
        return (
            f"epoch {record['epoch']:5.2f}  step {record['step']}/{self.job.total_steps}  {parts}  "
            f"lr {record['lr']:.4f}  {record['images_per_second']:.1f} images/s  "
            f"waiting for data {record['data_wait']:.0%}  left {duration(left)}"
        )

    def __enter__(self) -> Display:
        if self._progress is not None:
            self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._progress is not None:
            self._progress.stop()


def shown_losses(record: dict[str, Any]) -> dict[str, float]:
    """The losses of a record by name; those of further MaskIoU heads as their mean, `maskiou heads`."""
    losses = {n.removeprefix("loss/"): value for n, value in record.items() if n.startswith("loss/")}
    heads = [value for name, value in losses.items() if name.startswith(HEAD_LOSS)]
    if not heads:
        return losses
    rest = {name: value for name, value in losses.items() if not name.startswith(HEAD_LOSS)}
    total = rest.pop("total")
    return {**rest, "maskiou heads": sum(heads) / len(heads), "total": total}
