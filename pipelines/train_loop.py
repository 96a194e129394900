"""What each training worker runs: an ordinary PyTorch loop over the images that Ray Data streams to it."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator

import ray
import ray.train
import ray.train.torch
import torch
from torch import Tensor, nn

from msrcnn.compiling import compile_parts
from msrcnn.config import DataConfig
from msrcnn.detector import MaskScoringRCNN
from msrcnn.errors import InputError
from msrcnn.precision import computing_in
from msrcnn.solver import clip_gradients, guarded_step, learning_rate, make_optimizer, set_learning_rate
from pipelines.checkpoints import Checkpoints, restore
from pipelines.gpu_memory import too_little_to_train
from pipelines.guard import Guard, NotFiniteError, StepTerms
from pipelines.ingest import StepImages, TrainingCollate
from pipelines.job import Job
from pipelines.mailbox import Post
from pipelines.meter import Meter
from pipelines.reading import slots_of
from pipelines.run_directory import RUN, working
from pipelines.storage import StorageError, locate, unseen
from pipelines.waiting import Watch

PREFETCH = 4
"""Steps whose images are decoded ahead, by as many threads."""


def train_loop(config: dict[str, Job]) -> None:
    """What Ray Train runs in each worker of a group."""
    job = config["job"]
    context = ray.train.get_context()
    attempt = ray.get(job.mailbox.current.remote())
    if attempt.fatal is not None:  # the driver says it once all have returned
        return
    post = Post(job.mailbox, attempt.number, context.get_world_rank())
    try:
        run = locate(job.run)
        if (run / RUN).size() is None:
            raise UnusableError(unseen(run))
        with working(run), Watch(post) as watch:
            train_steps(job, post, watch, context.get_world_size())
    except NotFiniteError as error:  # every worker ends here, after the same step
        post.fatal(str(error), certain=error.mine)
    except UnusableError as error:
        post.fatal(str(error))
        raise  # and so frees the others, which wait for this one
    except Exception as error:  # a storage that does not answer, say: the next worker group may have more luck
        post.failed(error)
        raise


class UnusableError(InputError):
    """Something that the next worker group would find just the same."""


def train_steps(job: Job, post: Post, watch: Watch, workers: int) -> None:
    """The training loop, from the step after the run's last checkpoint on."""
    device = ray.train.torch.get_device()
    torch.set_num_threads(job.threads)
    torch.manual_seed(job.solver.seed)
    model = MaskScoringRCNN(job.model).to(device)
    if device.type == "cuda" and workers > 1:
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model)  # only where there is a BatchNorm to train
    optimizer = make_optimizer(model, job.solver)
    step = restore(job, model, optimizer)
    network = distributed(job, model, watch)
    checkpoints = Checkpoints(job, post, model, optimizer)
    guard, meter = Guard(workers), Meter(job, post, workers, step, device)
    if post.rank == 0:
        post.put("note", f"{workers} workers begin at step {step}" if workers > 1 else f"begins at step {step}")
    feed = step_images(job, workers)
    while step < job.total_steps:
        asked = time.perf_counter()
        with watch.on(f"the images of step {step + 1}"):
            images = next_images(feed)
        if images.step != step:
            raise RuntimeError(f"the stream of images is at step {images.step}, the model at step {step}")
        meter.arrived(asked)

        with watch.on(f"forward, backward and the other workers' gradients in step {step + 1}"):
            optimizer.zero_grad(set_to_none=True)
            losses, terms = forward_backward(job, network, images, workers, device)
            norm = clip_gradients(model, job.solver.clip_norm)
            fine = guard.judge(step, terms, norm, checkpoints.wanted())
        set_learning_rate(optimizer, learning_rate(job.solver, step, job.steps_per_epoch))
        guarded_step(optimizer, fine)

        meter.add(losses, norm, [i for part in terms.images for i in part])
        step += 1
        with watch.on(f"the device and the other workers after step {step}"):
            asked = guard.asked(late=0 if meter.due(step) else 1)
            if asked:
                guard.asked(late=0)  # nothing is kept after a loss that is not finite
            if asked or meter.due(step):
                meter.send(step)
        if asked or step % job.steps_per_epoch == 0 or step == job.total_steps:
            with watch.on(f"the checkpoint after step {step}"):
                post.deliver()
                checkpoints.take(step)


def distributed(job: Job, model: MaskScoringRCNN, watch: Watch) -> nn.Module:
    """The model as it is called in training: compiled if wished, and averaging gradients over the workers."""
    model.train()
    if job.compile:
        compile_parts(model)
    with watch.on("the other workers to start"):
        return ray.train.torch.prepare_model(
            model, move_to_device=False,
            parallel_strategy_kwargs={"broadcast_buffers": job.model.norm == "sync_bn"},
        )  # fmt: skip


def step_images(job: Job, workers: int) -> Iterator[StepImages]:
    """This worker's share of every step's images, from the step on that comes next."""
    shard = ray.train.get_dataset_shard("train")
    mixed = job.model.norm == "sync_bn"  # each part waits for all workers', so all must have equally many
    return iter(
        shard.iter_torch_batches(
            batch_size=slots_of(job.solver.batch, workers),
            collate_fn=TrainingCollate(job.data, job.solver.seed, job.images_at_once, mixed),
            prefetch_batches=PREFETCH,
            drop_last=True,
        )
    )


def next_images(feed: Iterator[StepImages]) -> StepImages:
    """The next step's; an image that cannot be used ends the training, a storage that fails this worker group."""
    try:
        return next(feed)
    except StorageError:
        raise
    except InputError as error:
        raise UnusableError(str(error)) from error


def forward_backward(
    job: Job, network: nn.Module, images: StepImages, workers: int, device: torch.device
) -> tuple[dict[str, Tensor], StepTerms]:
    """Adds up the gradients of the step's loss over this worker's parts of it and, in the last, over all workers.

    The step's loss is the mean of its parts' losses, weighted by their images.

    Returns:
        this worker's share of each loss, and every part's losses.

    Raises:
        UnusableError: the GPU's memory does not suffice for a part.
    """
    shares: dict[str, Tensor] = {}
    values, ids = [], []
    for number, part in enumerate(images.parts, start=1):
        weight = len(part.image_ids) / job.solver.batch
        ids.append(part.image_ids.tolist())
        with fitting(len(part.image_ids), job.data, device), accumulating(network, number < len(images.parts)):
            batch = (part.pinned() if device.type == "cuda" else part).to(device, non_blocking=True)
            with computing_in(job.solver.precision, device):
                losses = network(batch)
            stacked = torch.stack(list(losses.values()))  # [L]
            (stacked.sum() * (weight * workers)).backward()  # DDP divides by the workers
        values.append(stacked.detach())
        for name, loss in losses.items():
            shares[name] = loss.detach() * weight + shares.get(name, 0)
    return shares, StepTerms(tuple(shares), torch.stack(values), ids)


@contextlib.contextmanager
def fitting(images: int, data: DataConfig, device: torch.device) -> Iterator[None]:
    """Makes a GPU's lack of memory for so many images an UnusableError: the next worker group gets the same ones."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise UnusableError(too_little_to_train(images, data, device)) from error


def accumulating(network: nn.Module, more: bool) -> contextlib.AbstractContextManager[None]:
    """Keeps workers from exchanging gradients while more parts of the step follow."""
    if more and isinstance(network, nn.parallel.DistributedDataParallel):
        return network.no_sync()
    return contextlib.nullcontext()
