"""What a worker makes of a step that it cannot compute."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from msrcnn.config import SolverConfig
from msrcnn.detector import MaskScoringRCNN
from msrcnn.errors import InputError
from msrcnn.structures import Batch
from pipelines.ingest import StepImages, split
from pipelines.job import Job
from pipelines.storage import StorageError
from pipelines.train_loop import UnusableError, forward_backward, next_images
from tests.tiny import CONFIG, DATA, SIDE, batch_of, make_model

pytestmark = pytest.mark.usefixtures("one_thread")
CPU = torch.device("cpu")


@pytest.mark.parametrize(("error", "lasts"), [(InputError("a.png: damaged"), True), (StorageError("s3: away"), False)])
def test_a_storage_that_fails_is_the_next_worker_groups_business(error, lasts):
    def feed() -> Iterator[StepImages]:
        raise error
        yield  # a generator

    with pytest.raises(InputError) as caught:
        next_images(feed())
    assert isinstance(caught.value, UnusableError) == lasts
    assert str(caught.value) == str(error)


def computed(model: MaskScoringRCNN, images: int, at_once: int) -> float:
    """The loss of a step of so many images, computed so many at a time."""
    parts = tuple(batch_of(*["all"] * (part.stop - part.start)) for part in split(images, at_once))
    job = Job(CONFIG, SolverConfig(batch=images), DATA, (), images, 1, 1, at_once, 1, False, 60.0, "run", None)
    losses, _ = forward_backward(job, model.train(), StepImages(0, 0, parts), 1, CPU)
    return float(torch.stack(list(losses.values())).sum())


def test_too_little_gpu_memory_ends_training_and_says_how_many_images_to_try(monkeypatch):
    """It is no error after which another worker group would do better: that one gets the same images."""
    whole, room = MaskScoringRCNN.forward, 2

    def small(self: MaskScoringRCNN, batch: Batch) -> Any:
        if len(batch.image_ids) > room:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")
        return whole(self, batch)

    monkeypatch.setattr(MaskScoringRCNN, "forward", small)
    model = make_model()
    for images, next_try in ((5, 2), (3, 1)):
        with pytest.raises(UnusableError) as caught:
            computed(model, images, at_once=0)
        line = (
            f"the GPU's memory does not suffice to train on {images} images of up to {SIDE} x {SIDE} pixels at a time"
        )
        assert str(caught.value) == f"{line}; give the same command again with --images-at-once {next_try}"
        at_once = int(re.findall(r"--images-at-once (\d+)$", str(caught.value))[0])
        assert computed(model, images, at_once) > 0
    room = 0
    with pytest.raises(
        UnusableError, match=r"to train on 1 image of up to .* at a time; end what else uses it, use an"
    ):
        computed(model, 3, at_once)
