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
from contextlib import contextmanager
from typing import Any

from msrcnn.errors import InputError
from pipelines.checkpoint_list import MODEL, checkpoint_name, committed, step_of
from pipelines.detection_parts import StoredDetections
from pipelines.evaluate import origin_of, other_categories
from pipelines.inference import DetectJob, detect
from pipelines.job import Job
from pipelines.manifest import Manifest
from pipelines.options import EvaluateConfig, TrainConfig
from pipelines.pool import Pool
from pipelines.progress import duration
from pipelines.reading import row_groups
from pipelines.reporting import plain
from pipelines.run_directory import BEST, VALIDATION
from pipelines.scoring import Summary, score_all, summarise, summary_metrics
from pipelines.storage import locate
from pipelines.train_setup import worker_resources

LOOK_SECONDS = 1.0
"""How often the list of checkpoints is looked at: each stays for at least one more checkpoint's time."""
BOOTSTRAP = 200
"""Resamplings for the interval of the gain: it is printed, and nobody decides by it while training goes on."""
SCORE = "validation/mask_by_mask/AP"
"""What makes a model the best."""


@contextmanager
def validating(
    config: TrainConfig, job: Job, manifest: Manifest | None, record: Callable[[dict[str, Any]], None],
    log: Callable[[str], None],
) -> Iterator[None]:  # fmt: skip
    """Evaluates on `manifest`, if there is one, during the block and to the end of what it left to evaluate.

    Args:
        record: takes the numbers of each evaluation.
        log: takes lines.

    Raises:
        InputError: the data set has other categories, or the workers leave no CPU for it.
    """
    if manifest is None:
        yield
        return
    if wrong := other_categories([name for _, _, name in job.categories], manifest):
        raise InputError(f"--validation {config.validation}: its categories are not those of {config.shards} ({wrong})")
    need, (_, most) = worker_resources(config), config.worker_range
    pool = Pool.beside(need["CPU"] * most, need.get("GPU", 0) * most)
    validator = Validator(job, config.validate_every, manifest, pool, record, log)
    validator.start()
    try:
        yield
    except BaseException:
        validator.stop(finish=False)
        raise
    validator.stop(finish=True)


class Validator:
    """One thread copies models aside, another evaluates them in turn."""

    def __init__(
        self, job: Job, every: int, manifest: Manifest, pool: Pool, record: Callable[[dict[str, Any]], None],
        log: Callable[[str], None],
    ) -> None:  # fmt: skip
        self.job, self.every, self.manifest, self.pool, self.record, self.log = job, every, manifest, pool, record, log
        self.run = locate(job.run)
        self.folder = self.run / VALIDATION
        self.groups = row_groups(manifest)
        self._ended, self._given_up = threading.Event(), threading.Event()
        self._threads = [threading.Thread(target=self._collect, daemon=True, name="validation models"),
                         threading.Thread(target=self._evaluate, daemon=True, name="validation")]  # fmt: skip

    def start(self) -> None:
        """Begins, with what an earlier driver left."""
        self.folder.make_folder()
        self._settle()
        for thread in self._threads:
            thread.start()

    def stop(self, finish: bool) -> None:
        """Waits until all models are evaluated, or leaves them to the next driver."""
        self._ended.set()
        if not finish:
            self._given_up.set()
            return
        waiting = len(self._names(".pt"))
        if waiting:
            self.log("waiting for the evaluation of the last checkpoint")
        for thread in self._threads:
            thread.join()

    def _wanted(self, step: int) -> bool:
        return step % (self.every * self.job.steps_per_epoch) == 0 or step == self.job.total_steps

    def _names(self, ending: str) -> list[str]:
        return sorted(n.removesuffix(ending) for n in self.folder.list() if n.endswith(ending) and ".tmp-" not in n)

    def _collect(self) -> None:
        while True:
            last = self._ended.is_set()
            try:
                known = {*self._names(".pt"), *self._names(".json")}
                for step in committed(self.run):
                    name = checkpoint_name(step)
                    if self._wanted(step) and name not in known:
                        (self.run / name / MODEL).copy_to(self.folder / f"{name}.pt")
            except (OSError, ValueError):  # a checkpoint deleted meanwhile, a list being written
                pass
            if last or self._given_up.is_set():
                return
            self._ended.wait(LOOK_SECONDS)

    def _evaluate(self) -> None:
        while not self._given_up.is_set():
            names = self._names(".pt")
            if names:
                try:
                    self._evaluate_one(names[0])
                except Exception as error:  # evaluation never stops a training
                    if self._given_up.is_set():
                        return
                    reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
                    self.log(f"warning: the evaluation of {names[0]} failed ({reason})")
                    self._keep(names[0], {"step": step_of(names[0]), "error": reason})
            elif not self._threads[0].is_alive():
                return
            else:
                time.sleep(LOOK_SECONDS)

    def _evaluate_one(self, name: str) -> None:
        began = time.monotonic()
        weights, rows = self.folder / f"{name}.pt", self.folder / f"{name}.rows"
        origin = origin_of(weights, self.manifest, self.manifest.folder)
        job = DetectJob(weights.url, rows, origin, EvaluateConfig.batch)
        parts = detect(self.groups, job, self.pool, quiet)  # goes on where a driver that was killed stopped
        stored = StoredDetections(rows, origin, tuple(parts.values()))
        scores = score_all(self.manifest, self.groups, stored, quiet, self.pool.cpus)
        summary = summarise(self.manifest.name, scores, BOOTSTRAP, seed=0)
        rows.remove_folder()
        numbers = {f"validation/{key}": value for key, value in plain(summary_metrics(summary)).items()}
        self._keep(name, {"step": step_of(name), "time": time.time(), **numbers})
        self.record({"step": step_of(name), "time": time.time(), **{k: v for k, v in numbers.items() if v is not None}})
        self.log(f"{headline(summary, step_of(name), self.job)}  ({duration(time.monotonic() - began)})")

    def _keep(self, name: str, numbers: dict[str, Any]) -> None:
        (self.folder / f"{name}.json").write((json.dumps(numbers, indent=1) + "\n").encode())
        self._settle()

    def _settle(self) -> None:
        """Makes the best evaluated model `best.pt`, and drops the others that were evaluated."""
        numbers = {name: json.loads((self.folder / f"{name}.json").read()) for name in self._names(".json")}
        scores = {name: value[SCORE] for name, value in numbers.items() if value.get(SCORE) is not None}
        best = max(scores, key=lambda name: (scores[name], name), default=None)
        for name in self._names(".pt"):
            if name == best:
                (self.folder / f"{name}.pt").copy_to(self.run / BEST)
            if name in numbers:
                (self.folder / f"{name}.pt").remove()


def quiet(_line: str) -> None:
    """Progress beside a training is not shown."""


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
