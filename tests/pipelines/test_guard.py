"""A loss that is not finite stops training one step later and names its images; all workers learn of it."""

import socket

import pytest
import torch
import torch.distributed
import torch.multiprocessing

from pipelines.guard import Guard, NotFiniteError, StepTerms

NAN = float("nan")


def terms(*values: float, images: int = 1) -> StepTerms:
    """Losses a and b of one image, or of two images computed one after the other."""
    found = torch.tensor(values).reshape(images, -1)  # [P, L]
    return StepTerms(("a", "b"), found, [[10 * (part + 1)] for part in range(images)])


def test_a_finite_step_goes_through_and_asks_one_step_late():
    guard = Guard(1)
    assert guard.judge(0, terms(1, 2), torch.tensor(3.0), ask=True)
    assert not guard.asked()  # not read yet
    assert guard.judge(1, terms(1, 2), torch.tensor(3.0), ask=False)
    assert guard.asked()
    assert not guard.asked(late=0)


def test_a_loss_that_is_not_finite_is_suppressed_at_once_and_told_one_step_later():
    guard = Guard(1)
    assert not guard.judge(4, terms(1, 2, NAN, 1, images=2), torch.tensor(NAN), ask=False)
    assert not guard.asked()
    guard.judge(5, terms(1, 2), torch.tensor(1.0), ask=False)
    with pytest.raises(NotFiniteError, match=r"step 5: loss not finite: a of images 20; look at") as caught:
        guard.asked()
    assert caught.value.mine


def test_before_a_checkpoint_the_last_step_is_read_too():
    guard = Guard(1)
    guard.judge(0, terms(1, float("inf")), torch.tensor(1.0), ask=False)
    with pytest.raises(NotFiniteError, match="b of images 10"):
        guard.asked(late=0)


def test_a_gradient_that_is_not_finite_counts_too():
    guard = Guard(1)
    assert not guard.judge(0, terms(1, 2), torch.tensor(float("inf")), ask=False)
    with pytest.raises(NotFiniteError, match="gradient is not finite though every loss is, with images 10") as caught:
        guard.asked(late=0)
    assert not caught.value.mine


def _rank(rank: int, port: int, found) -> None:
    torch.distributed.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    guard = Guard(2)
    asked = guard.judge(0, terms(1, 2), torch.tensor(1.0), ask=rank == 0)
    fine = guard.judge(1, terms(1, NAN if rank == 1 else 2), torch.tensor(1.0), ask=False)
    told = guard.asked()
    try:
        guard.asked(late=0)
    except NotFiniteError as error:
        found.put((rank, bool(asked), bool(fine), told, error.mine))
    torch.distributed.destroy_process_group()


def test_workers_agree():
    """Rank 0 asks for a checkpoint, rank 1 has the bad loss: both take the one and stop for the other."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = torch.multiprocessing.get_context("spawn")
    found = context.SimpleQueue()
    workers = [context.Process(target=_rank, args=(rank, port, found)) for rank in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(120)
    assert [worker.exitcode for worker in workers] == [0, 0]
    assert sorted(found.get() for _ in workers) == [(0, True, False, True, False), (1, True, False, True, True)]
