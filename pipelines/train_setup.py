"""What a training is before anything runs: the workers' job, the weights it begins with, what the cluster must have."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import ray
import torch

from cluster.room import fitting
from msrcnn.config import difference, to_dict
from msrcnn.detector import MaskScoringRCNN
from msrcnn.errors import InputError
from msrcnn.pretrained import TRUNK, load_weights
from msrcnn.weights import load_model
from pipelines.checkpoint_list import checkpoint_name, committed
from pipelines.job import Job
from pipelines.manifest import Manifest
from pipelines.node_facts import node_resources
from pipelines.options import TrainConfig, worker_share
from pipelines.reading import READER_CPUS, READERS, slots_of
from pipelines.run_directory import INITIAL, MODEL, find_model
from pipelines.storage import Location, locate, on_disk

QUOTA = Path("/sys/fs/cgroup/cpu.max")
"""Of this process's container, version 2 of Linux's control groups: microseconds, of each period of so many."""
HEADS = ("maskiou.", "heads.")
"""What the names of MaskIoU heads' weights begin with."""


def prepare(config: TrainConfig, manifest: Manifest) -> tuple[Job, dict[str, Any]]:
    """The workers' job, but for the mailbox, and the settings by which a run is recognised.

    Raises:
        InputError: as `check`.
    """
    check(config, manifest)
    job = job_of(config, manifest)
    settings = {
        "model": to_dict(job.model),
        "solver": to_dict(job.solver),
        "data": to_dict(job.data),
        "dataset": {"name": manifest.name, "fingerprint": manifest.fingerprint, "images": manifest.rows},
        "weights": config.weights,
        "weights_eps": config.weights_eps,
        "from_checkpoint": config.from_checkpoint,
    }
    return job, settings


def check(config: TrainConfig, manifest: Manifest) -> None:
    """Whether there is something to train, and to learn from.

    Raises:
        InputError: a head alone, or frozen layers, without weights; a data set without an object, or smaller than a
            step; or SyncBN with unequal shares of a step.
    """
    begins_with = config.weights or config.from_checkpoint
    if config.model.trained == "maskiou" and begins_with is None:
        raise InputError("--model.trained maskiou trains the MaskIoU head of a finished detector; give --weights")
    frozen = config.model.norm == "frozen_bn" or config.model.frozen_stages > 0
    if frozen and begins_with is None:
        raise InputError(
            "--model.norm frozen_bn and --model.frozen-stages freeze what nothing has trained; give --weights, or "
            "train from scratch with --model.norm group_norm --model.frozen-stages 0"
        )
    if manifest.instances == 0:
        raise InputError(f"{config.shards}: no image has an object, so there is nothing to learn; give shards that "
                         "were made with annotations")  # fmt: skip
    if manifest.rows < config.solver.batch:
        raise InputError(f"{config.shards}: {manifest.rows} images are fewer than --solver.batch "
                         f"{config.solver.batch}; lower it")  # fmt: skip
    fewest, most = config.worker_range
    if config.model.norm == "sync_bn" and any(config.solver.batch % n for n in range(fewest, most + 1)):
        raise InputError(f"--model.norm sync_bn: its statistics want equal shares of a step; make --solver.batch "
                         f"{config.solver.batch} a multiple of every number of --workers {config.workers}")  # fmt: skip


def job_of(config: TrainConfig, manifest: Manifest) -> Job:
    """What the workers are told, but for the mailbox."""
    fewest, most = config.worker_range
    at_once = config.images_at_once
    if at_once == 0 and fewest < most:  # fewer workers must not need more memory each
        at_once = slots_of(config.solver.batch, most)
    run, steps = locate(config.run), manifest.rows // config.solver.batch
    total = steps * config.solver.epochs
    return Job(
        model=replace(config.model, num_classes=len(manifest.categories)),
        solver=config.solver,
        data=config.data,
        categories=tuple((c.number, c.source_id, c.name) for c in manifest.categories),
        rows=manifest.rows,
        steps_per_epoch=steps,
        total_steps=min(total, config.max_steps or total),
        images_at_once=at_once,
        threads=threads_of(config),
        compile=config.compile,
        checkpoint_seconds=60 * config.checkpoint_minutes,
        run=run.url,
        initial=(run / INITIAL).url if config.weights or config.from_checkpoint else None,
    )


def threads_of(config: TrainConfig) -> int:
    """CPU threads of a worker; without a wish its share of the processors that this process may use."""
    return config.threads or max(1, processors() // config.worker_range[1])


def processors() -> int:
    """That this process may use: of its scheduler's, and of its container's time."""
    here = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with suppress(OSError, ValueError):  # no such container; no limit is "max"
        time, period = QUOTA.read_text().split()
        here = min(here, max(1, int(time) // int(period)))
    return here


def initial_model(config: TrainConfig, job: Job, log: Callable[[str], None]) -> MaskScoringRCNN | None:
    """The model that a run with `--weights` or `--from-checkpoint` begins with; None for random weights.

    Raises:
        InputError: the weights cannot be used.
    """
    if config.from_checkpoint is not None:
        return old_model(config.from_checkpoint, job)
    return pretrained_model(config.weights, job, log, config.weights_eps) if config.weights is not None else None


@contextmanager
def local_weights(weights: str) -> Iterator[str]:
    """What `load_weights` takes: a file, of a run's folder or a URL too; or torchvision's name, as it is."""
    if "://" in weights or Path(weights).is_dir():
        with on_disk(find_model(weights)[0]) as path:
            yield str(path)
    else:
        yield weights


def pretrained_model(weights: str, job: Job, log: Callable[[str], None], eps: float | None = None) -> MaskScoringRCNN:
    """A model with what fits of some weights, `eps` as `load_weights` takes it; prints what came of loading them."""
    torch.manual_seed(job.solver.seed)  # what is missing in them begins as in a run without
    model = MaskScoringRCNN(job.model)
    fresh = {name: tensor.clone() for name, tensor in model.state_dict().items() if name.startswith(HEADS)}
    names = [name for _, _, name in job.categories]
    with local_weights(weights) as path:
        report = load_weights(model, path, names, eps)
    for line in report.lines():
        log(line)
    missing = [name for name in report.missing if name.startswith(HEADS)]
    if job.model.heads and missing:
        log("all MaskIoU heads begin with random weights: those given have not one for each, and none shall lead")
        model.load_state_dict(fresh, strict=False)
    elif 0 < len(missing) < len(fresh):
        log("the MaskIoU head begins with random weights: that of those given is of another kind")
        model.load_state_dict(fresh, strict=False)
    absent = [name for name in report.missing if not name.startswith(HEADS)]
    if job.model.trained == "maskiou" and absent:
        raise InputError(f"{weights}: {absent[0]} and {len(absent) - 1} more tensors are not in it, and "
                         "--model.trained maskiou does not train them; give a whole Mask R-CNN")  # fmt: skip
    _refuse_random_frozen(weights, model, report.missing)
    return model


def _refuse_random_frozen(weights: str, model: MaskScoringRCNN, missing: Sequence[str]) -> None:
    """Raises InputError where what the weights lack stays at its initial values: a ResNet-50's in a ResNet-101."""
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    if model.config.norm != "frozen_bn":  # running statistics follow the images
        trained |= {name for name, _ in model.named_buffers()}
    stay = [name for name in missing if name.startswith(TRUNK) and name not in trained]
    if stay:
        config = model.config
        raise InputError(f"{weights}: lacks {stay[0]} and {len(stay) - 1} more tensors of the trunk that stay as they "
                         f"are initialised (model.norm = {config.norm!r}, model.frozen_stages = "
                         f"{config.frozen_stages}); give weights of a {config.backbone}")  # fmt: skip


def old_model(place: str, job: Job) -> MaskScoringRCNN:
    """The weights of another run, all of them: those of its end or last checkpoint, or of one that is named."""
    with on_disk(model_file(locate(place))) as path:
        old = load_model(path)
    wanted = {"model": to_dict(job.model), "categories": [list(c) for c in job.categories]}
    found = {"model": to_dict(old.model.config), "categories": [list(c) for c in old.categories]}
    if changed := difference(found, wanted):
        shown = "; ".join(changed[:4]) + ("; ..." if len(changed) > 4 else "")
        raise InputError(f"--from-checkpoint {place}: another model ({shown}); give --weights to take what fits")
    return old.model


def model_file(place: Location) -> Location:
    """The model file of a run directory, a checkpoint, or itself.

    Raises:
        InputError: there is none.
    """
    if place.size() is not None:
        return place
    if (place / MODEL).size() is not None:  # a checkpoint, or a finished run
        return place / MODEL
    try:
        steps = committed(place)
    except ValueError:
        steps = []
    if not steps:
        raise InputError(f"--from-checkpoint {place}: neither a run directory with a checkpoint, nor a checkpoint, nor "
                         "a model file")  # fmt: skip
    return place / checkpoint_name(steps[-1]) / MODEL


def worker_resources(config: TrainConfig) -> dict[str, float]:
    """What a worker asks of the cluster."""
    return worker_share(config.cpus, config.gpu)


def check_resources(config: TrainConfig) -> None:
    """Raises InputError where the cluster cannot hold the fewest workers and their readers; Ray would wait for ever."""
    (fewest, most), worker = config.worker_range, worker_resources(config)
    for name, need in worker.items():
        wanted, there = need * fewest, ray.cluster_resources().get(name, 0)
        if name == "CPU":
            wanted += READERS * READER_CPUS
        if wanted > there:
            raise InputError(f"--workers {config.workers}: with their readers they need {wanted:g} {name}, the Ray "
                             f"cluster has {there:g}; ask for fewer, lower --cpus, leave out --gpu, or join another "
                             "--address")  # fmt: skip
    beside_readers, alone = fitting(node_resources(), worker, READERS, READER_CPUS), fitting_workers(config)
    if beside_readers < fewest:
        raise InputError(f"--workers {config.workers}: the Ray cluster's nodes have too little each for {worker} a "
                         "worker and their readers; lower --cpus, or join another --address")  # fmt: skip
    if fewest < most and beside_readers < alone:  # Ray Train takes all that the nodes hold
        raise InputError(f"--workers {config.workers}: {alone} workers of {worker} leave no CPU for their readers; "
                         f"lower --cpus by {READERS * READER_CPUS:g}, or the second of --workers")  # fmt: skip


def fitting_workers(config: TrainConfig) -> int:
    """How many workers the nodes that are there hold, at most those asked for."""
    _, most = config.worker_range
    return min(most, fitting(node_resources(), worker_resources(config)))
