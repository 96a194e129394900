"""What workers get from Ray Data: the same steps for any number of them, decoded and mirrored the same way."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import ray.data
import torch

from msrcnn.config import DataConfig
from msrcnn.data.shapes import write_shapes
from msrcnn.data.shapes_config import ShapesConfig
from msrcnn.structures import Batch
from pipelines.ingest import TrainingCollate
from pipelines.manifest import read_manifest
from pipelines.reading import TrainingPlan, row_groups, slots_of, training_rows
from pipelines.shard import ShardConfig, shard

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_session")]
SIZE, IMAGES, BATCH, SEED = 64, 45, 6, 3
STEPS = IMAGES // BATCH


@pytest.fixture(scope="module")
def groups(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shapes")
    write_shapes(ShapesConfig(size=SIZE, train=IMAGES, val=1), folder)
    out = folder / "shards"
    shard(
        ShardConfig(folder / "annotations" / "instances_train.json", folder / "train", out, row_group=8),
        log=lambda _: None,
    )
    return row_groups(read_manifest(out))


def steps_of(groups, workers: int, first_step: int = 0) -> list[list[Batch]]:
    """Each step's batches, one a worker, of two epochs, through the splitter that Ray Train uses."""
    context = ray.data.DataContext.get_current()
    whole, context.target_max_block_size = context.target_max_block_size, 4096  # less than an image or two
    rows = training_rows(TrainingPlan(groups, SEED, 2, STEPS, BATCH, workers, first_step))
    context.target_max_block_size = whole
    rows.context.execution_options.preserve_order = True
    collate = TrainingCollate(DataConfig(SIZE, SIZE), SEED)

    def consume(iterator) -> list[Batch]:
        feed = iterator.iter_torch_batches(
            batch_size=slots_of(BATCH, workers), collate_fn=collate, prefetch_batches=4, drop_last=True
        )
        taken = list(feed)
        assert [images.step for images in taken] == list(range(first_step, 2 * STEPS))
        assert [images.epoch for images in taken] == [step // STEPS for step in range(first_step, 2 * STEPS)]
        return [part for images in taken for part in images.parts]

    iterators = rows.streaming_split(workers, equal=True)
    with ThreadPoolExecutor(workers) as pool:
        taken = list(pool.map(consume, iterators))
    assert {len(batches) for batches in taken} == {2 * STEPS - first_step}
    return [list(step) for step in zip(*taken, strict=True)]


@pytest.fixture(scope="module")
def by_one(groups):
    """The steps of a worker that is alone."""
    return steps_of(groups, 1)


def joined(step: list[Batch], name: str) -> torch.Tensor:
    return torch.cat([getattr(batch, name) for batch in step])


@pytest.mark.parametrize(("workers", "first_step"), [
    pytest.param(2, 0, marks=pytest.mark.slow), (3, 0), pytest.param(4, 2, marks=pytest.mark.slow), (2, 4),
    (1, STEPS + 3),
])  # fmt: skip
def test_the_same_steps_for_any_number_of_workers(groups, by_one, workers, first_step):
    """Two epochs from their begin, and from a step inside the first or second with another number than before."""
    want, got = by_one[first_step:], steps_of(groups, workers, first_step)
    for one, other in zip(want, got, strict=True):
        for name in ("image_ids", "draws", "flipped", "images"):
            assert torch.equal(joined(one, name), joined(other, name)), name


def test_epochs_differ_and_have_every_image_once(groups):
    steps = [joined(step, "image_ids").tolist() for step in steps_of(groups, 2)]
    first, second = ([i for step in steps[e * STEPS : (e + 1) * STEPS] for i in step] for e in range(2))
    assert len(set(first)) == len(first) == len(set(second)) == len(second) == STEPS * BATCH
    assert first != second
