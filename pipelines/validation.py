"""Evaluations while training goes on: the numbers of a checkpoint join the run, the best model is kept.

RUN/validation/step-00001000.pt      a model that waits for its evaluation
RUN/validation/step-00001000.json    its numbers
RUN/best.pt                          of those evaluated, the model with the highest mask AP by mask score

The driver copies a model aside before Ray Train deletes its checkpoint, and runs the evaluation stage on it beside the
workers, on what of the cluster they do not reserve. They wait for nothing; the end of the training waits for the last
evaluation. A driver that is killed evaluates after its return what it had copied.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from cluster.reasons import reason
from msrcnn.errors import InputError
from msrcnn.inference_config import InferenceConfig
from pipelines.checkpoint_list import checkpoint_name, committed, step_of
from pipelines.detection_parts import StoredDetections
from pipelines.evaluate import origin_of, other_categories
from pipelines.inference import DetectJob, detect
from pipelines.job import Job
from pipelines.manifest import Manifest
from pipelines.options import EvaluateConfig, TrainConfig
from pipelines.pool import Pool, node_rooms
from pipelines.progress import duration
from pipelines.reading import row_groups
from pipelines.reporting import plain
from pipelines.run_directory import BEST, MODEL, VALIDATION, VALIDATION_AP
from pipelines.scoring import Summary, score_all, summarise, summary_metrics
from pipelines.storage import locate
from pipelines.train_setup import fitting_workers, worker_resources
from pipelines.worker_group import Bookkeeper

LOOK_SECONDS = 1.0
"""How often the list of checkpoints is looked at: each stays for at least one more checkpoint's time."""
LAST_LOOKS = 5
"""Times that the list is looked at after the last step, where it or a model cannot be read."""
GIVE_UP_SECONDS = 30.0
"""How long an evaluation that is given up may take to notice: it does at its next line of progress."""
MAX_FAILURES = 3
"""Times in a row that an evaluation may fail; then it is left out."""


@contextmanager
def validating(
    config: TrainConfig, job: Job, manifest: Manifest | None, books: Bookkeeper, log: Callable[[str], None]
) -> Iterator[None]:
    """Evaluates on `manifest`, if there is one, during the block and to the end of what it left to evaluate.

    Args:
        books: store the numbers of each evaluation.
        log: takes lines.

    Raises:
        InputError: the data set has other categories.
    """
    if manifest is None:
        yield
        return
    if wrong := other_categories([name for _, _, name in job.categories], manifest):
        raise InputError(f"--validation {config.validation}: its categories are not those of {config.shards} ({wrong})")
    validator = Validator(config, job, manifest, books, log)
    validator.start()
    try:
        yield
        validator.finish()
    except BaseException as error:
        # What follows in this process, another attempt perhaps, must not meet it at work; nothing follows Ctrl-C.
        validator.give_up(0.0 if isinstance(error, KeyboardInterrupt) else GIVE_UP_SECONDS)
        raise
    books.flush()


def check_beside(config: TrainConfig, manifest: Manifest) -> None:
    """Raises InputError where a fixed number of workers leaves no CPU to evaluate with."""
    fewest, most = config.worker_range
    if fewest == most and beside_workers(config, len(row_groups(manifest))) is None:
        raise InputError("--validation: the workers reserve the cluster's CPUs, and evaluating beside them needs half "
                         "of one; lower --cpus or --workers")  # fmt: skip


def beside_workers(config: TrainConfig, groups: int) -> Pool | None:
    """The processes that can be had beside the workers now; none where these hold all of the cluster."""
    return Pool.beside(node_rooms(), worker_resources(config), fitting_workers(config), groups)


class GivenUp(Exception):
    """Ends an evaluation that nobody waits for any more."""


class Validator:
    """One thread copies models aside, another evaluates them in turn."""

    def __init__(
        self, config: TrainConfig, job: Job, manifest: Manifest, books: Bookkeeper, log: Callable[[str], None]
    ) -> None:
        self.config, self.job, self.manifest, self.books, self.log = config, job, manifest, books, log
        self.run = locate(job.run)
        self.folder = self.run / VALIDATION
        self.groups = row_groups(manifest)
        self._ended, self._given_up = threading.Event(), threading.Event()
        self._threads = [threading.Thread(target=self._collect, daemon=True, name="validation models"),
                         threading.Thread(target=self._evaluate, daemon=True, name="validation")]  # fmt: skip

    def pool(self) -> Pool | None:
        """The processes that can be had now; none where workers hold all of the cluster."""
        if self._ended.is_set():
            return Pool.beside([node.empty for node in node_rooms()], {}, 0, len(self.groups))
        return beside_workers(self.config, len(self.groups))

    def start(self) -> None:
        """Begins, with what an earlier driver left."""
        self.folder.make_folder()
        self._settle()
        told = {line["step"] for line in self.books.metrics.values() if VALIDATION_AP in line}
        for name in self._names(".json"):  # of a driver that was killed in between
            numbers = json.loads((self.folder / f"{name}.json").read())
            if "time" in numbers and numbers["step"] not in told:
                self._tell(numbers)
        for thread in self._threads:
            thread.start()

    def finish(self) -> None:
        """Waits until all models are evaluated."""
        self._ended.set()
        if self._names(".pt"):
            self.log("waiting for the evaluation of the last checkpoint")
        for thread in self._threads:
            thread.join()

    def give_up(self, seconds: float) -> None:
        """Leaves models to the next driver, and waits so long at most for what is at work on one."""
        self._given_up.set()
        self._ended.set()
        deadline = time.monotonic() + seconds
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))

    def _wanted(self, step: int) -> bool:
        return step % (self.config.validate_every * self.job.steps_per_epoch) == 0 or step == self.job.total_steps

    def _names(self, ending: str) -> list[str]:
        return sorted(n.removesuffix(ending) for n in self.folder.list() if n.endswith(ending) and ".tmp-" not in n)

    def _collect(self) -> None:
        # A checkpoint deleted meanwhile, a list being written, a storage that does not answer: look again.
        while not self._ended.is_set():
            with suppress(Exception):
                self._copy()
            self._ended.wait(LOOK_SECONDS)
        for look in range(1, LAST_LOOKS + 1):
            try:
                self._copy()
                return
            except Exception as error:
                if self._given_up.is_set():  # the next driver finds it
                    return
                if look == LAST_LOOKS:
                    self.log(f"warning: the last checkpoint is not evaluated: {reason(error)}")
            time.sleep(LOOK_SECONDS)

    def _copy(self) -> None:
        known = {*self._names(".pt"), *self._names(".json")}
        for step in committed(self.run):
            name = checkpoint_name(step)
            if self._wanted(step) and name not in known:
                (self.run / name / MODEL).copy_to(self.folder / f"{name}.pt")

    def _evaluate(self) -> None:
        failures = 0
        while not self._given_up.is_set():
            name, collecting = None, self._threads[0].is_alive()  # asked first: it may end with one more model
            try:
                name = next(iter(self._names(".pt")), None)
                pool = self.pool() if name else None
                if name and pool:
                    self._evaluate_one(name, pool)
                    failures = 0
                elif name is None and not collecting:
                    return
            except Exception as error:  # evaluation never stops a training
                if self._given_up.is_set():
                    return
                failures += 1
                why = reason(error)
                self.log(f"warning: evaluation of {name or 'checkpoints'} failed ({why})")
                if failures >= MAX_FAILURES:
                    if name is None:
                        return
                    failures = 0
                    self._keep(name, {"step": step_of(name), "error": why})
            time.sleep(LOOK_SECONDS)

    def _evaluate_one(self, name: str, pool: Pool) -> None:
        began = time.monotonic()
        weights, rows = self.folder / f"{name}.pt", self.folder / f"{name}.rows"
        origin = origin_of(weights, self.manifest, self.manifest.folder, InferenceConfig())
        job = DetectJob(weights.url, rows, origin, EvaluateConfig.batch)
        parts = detect(self.groups, job, pool, self._progress)  # goes on where a driver that was killed stopped
        stored = StoredDetections(rows, origin, tuple(parts.values()))
        scores = score_all(self.manifest, self.groups, stored, self._progress, pool.cpus)
        summary = summarise(self.manifest.name, scores, bootstrap=0, seed=0)  # nobody decides by its interval
        self._progress()
        rows.remove_folder()
        found = {f"validation/{key}": value for key, value in plain(summary_metrics(summary)).items()}
        numbers = {"step": step_of(name), "time": time.time(), **found}
        self._keep(name, numbers)
        self._tell(numbers)
        self.log(f"{headline(summary, step_of(name), self.job)}  ({duration(time.monotonic() - began)})")

    def _progress(self, _line: str = "") -> None:
        """Is not shown beside a training, but ends what is given up."""
        if self._given_up.is_set():
            raise GivenUp

    def _tell(self, numbers: dict[str, Any]) -> None:
        self.books.record({name: value for name, value in numbers.items() if value is not None})

    def _keep(self, name: str, numbers: dict[str, Any]) -> None:
        (self.folder / f"{name}.json").write_json(numbers)
        self._settle()

    def _settle(self) -> None:
        """Makes the best evaluated model `best.pt`, and drops the others that were evaluated."""
        numbers = {name: json.loads((self.folder / f"{name}.json").read()) for name in self._names(".json")}
        scores = {name: ap for name, value in numbers.items() if (ap := value.get(VALIDATION_AP)) is not None}
        best = max(scores, key=lambda name: (scores[name], name), default=None)
        for name in self._names(".pt"):
            if name == best:
                (self.folder / f"{name}.pt").copy_to(self.run / BEST)
            if name in numbers:
                (self.folder / f"{name}.pt").remove()


def headline(summary: Summary, step: int, job: Job) -> str:
    """An evaluation in a line."""
    ap = summary.ap
    matched = summary.maskiou.matched
    return (
        f"evaluated epoch {step / job.steps_per_epoch:.2f} on {summary.dataset}: box AP {100 * ap.box['AP']:.1f}, "
        f"mask AP by class score {100 * ap.mask_by_class['AP']:.1f}, by mask score {100 * ap.mask_by_mask['AP']:.1f}; "
        f"correlation of predicted and true MaskIoU {matched.maskiou_pearson:.3f} (class score "
        f"{matched.class_pearson:.3f})"
    )
