"""The worker group of a training, from the driver's side: Ray Train, the images' stream, and what workers tell."""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import ray
import ray.train
from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer
from ray.train.v2._internal import constants
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from msrcnn.errors import InputError
from pipelines.job import Job
from pipelines.lineage import Lineage, Seen
from pipelines.lines import JsonLines
from pipelines.mailbox import Follower, Mailbox, Message
from pipelines.manifest import Manifest
from pipelines.options import TrainConfig
from pipelines.reading import row_groups
from pipelines.run_directory import IMAGES, METRICS
from pipelines.step_stream import StepStream, remaining
from pipelines.storage import locate
from pipelines.train_loop import train_loop
from pipelines.train_setup import worker_resources

START_FAILURES = 2
"""Times that Ray Train itself tries again to start workers. A failed start can leave their places taken, so that no
further one succeeds; only another Ray Train mends that, which `train` starts."""
API_SERVER = "RAY_API_SERVER_ADDRESS"
"""The variable that says which Ray is asked about its state."""
RESIZE_SECONDS = 60.0
"""After how long an elastic group looks for more or fewer nodes, beyond the time that a checkpoint takes to come."""


class Bookkeeper:
    """Stores and shows what workers tell.

    Args:
        show: takes a record of the training.
        send: takes every record, for MLflow.
        log: takes a line.
    """

    def __init__(
        self, job: Job, show: Callable[[dict[str, Any]], None], send: Callable[[dict[str, Any]], None],
        log: Callable[[str], None],
    ) -> None:  # fmt: skip
        run = locate(job.run)
        self.show, self.send, self.log = show, send, log
        self._lock = threading.Lock()
        self.metrics = JsonLines(run / METRICS)
        self.lineage = Lineage(run / IMAGES, job.steps_per_epoch, job.solver.batch, job.rows, log)

    def handle(self, message: Message) -> None:
        """Deals with a message from the workers."""
        if message.kind == "begin":
            with self._lock:
                self.metrics.keep(lambda record: record["step"] <= message.content)
            self.lineage.roll_back(message.content)
        elif message.kind == "record":
            self.record(message.content)
            self.show(message.content)
        elif message.kind == "images":
            self.lineage.add(Seen(*message.content))
        else:
            self.log(message.content)

    def record(self, record: dict[str, Any]) -> None:
        """Stores a record, whoever made it, and passes it on even where it cannot be stored."""
        try:
            with self._lock:
                self.metrics.append(record)
        finally:
            self.send(record)

    def flush(self) -> None:
        """Returns when everything is in the run directory."""
        with self._lock:
            self.metrics.flush()
        self.lineage.flush()


def fit(config: TrainConfig, job: Job, manifest: Manifest, books: Bookkeeper) -> None:
    """Runs worker groups until all steps are done.

    Raises:
        InputError: the training cannot go on; the message is a worker's.
    """
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    mailbox = Mailbox.options(scheduling_strategy=here).remote()  # type: ignore[attr-defined]
    job = replace(job, mailbox=mailbox)
    run = locate(job.run)
    fewest, most = config.worker_range
    logging.getLogger("ray.train").setLevel(logging.ERROR)
    scaling: dict[str, Any] = {  # Ray's annotations are those of its former version
        "num_workers": most if fewest == most else (fewest, most),
        "use_gpu": config.gpu,
        "resources_per_worker": worker_resources(config),
        # A group must get as far as a checkpoint, or resizing would cost what it gains.
        "elastic_resize_monitor_interval_s": RESIZE_SECONDS + 1.5 * job.checkpoint_seconds,
    }
    failures: dict[str, Any] = {"max_failures": -1, "controller_failure_limit": START_FAILURES}
    images: dict[str, Any] = {"train": partial(remaining, row_groups(manifest), job)}
    trainer = TorchTrainer(
        train_loop,
        train_loop_config={"job": job},
        scaling_config=ScalingConfig(**scaling),
        run_config=RunConfig(
            name=run.name, storage_path=run.parent.path, storage_filesystem=run.filesystem,
            checkpoint_config=CheckpointConfig(num_to_keep=config.keep),
            failure_config=FailureConfig(**failures),
        ),
        datasets=images,
        dataset_config=StepStream(),
    )  # fmt: skip
    with Follower(mailbox, books) as follower, asking_this_ray():
        interrupt = signal.getsignal(signal.SIGINT)
        try:
            trainer.fit()
        except SystemExit:  # what Ray Train makes of Ctrl-C
            raise KeyboardInterrupt from None
        finally:  # it leaves its own handler behind
            if threading.current_thread() is threading.main_thread():
                signal.signal(signal.SIGINT, interrupt)
    if follower.error is not None:
        books.log(f"warning: not everything that workers told was stored ({follower.error})")
    fatal = ray.get(mailbox.ended.remote())
    if fatal is not None:
        raise InputError(fatal)


@contextmanager
def asking_this_ray() -> Iterator[None]:
    """Ray Train's processes ask this Ray, in the block, how a training's other processes are.

    What gives a lost training's places back asks for that. By itself it would take the Ray that was started last on
    its machine: one that has ended, and places stay taken; or another, which knows nothing of a training that lives.
    """
    before = os.environ.get(API_SERVER)
    constants.ENV_VARS_TO_PROPAGATE.add(API_SERVER)  # to the processes that it starts
    os.environ[API_SERVER] = ray.get_runtime_context().gcs_address
    try:
        yield
    finally:
        os.environ.pop(API_SERVER, None)
        if before is not None:
            os.environ[API_SERVER] = before
