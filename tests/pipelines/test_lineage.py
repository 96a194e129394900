"""Which images each step had: every epoch is checked for each image once, rolled-back steps do not count."""

import pytest

from pipelines.lineage import Lineage, Seen
from pipelines.storage import locate

STEPS, BATCH, ROWS = 3, 4, 13


@pytest.fixture
def lines() -> list[str]:
    return []


@pytest.fixture
def lineage(tmp_path, lines) -> Lineage:
    return Lineage(locate(tmp_path / "images"), STEPS, BATCH, ROWS, lines.append)


def tell(lineage: Lineage, first: int, last: int, offset: int = 0) -> None:
    """Two workers, two images a step each, steps `first` to `last`; image ids are counted from 0 in each epoch."""
    for rank in range(2):
        ids = [[offset + (step % STEPS) * BATCH + 2 * rank + i for i in range(2)] for step in range(first, last)]
        lineage.add(Seen(rank, last, ids))


def test_a_complete_epoch_is_reported(lineage, lines):
    tell(lineage, 0, 2)
    assert lines == []
    tell(lineage, 2, 3)
    tell(lineage, 3, 6)
    assert lines == ["epoch 1: 12 images, each once; 1 left out", "epoch 2: 12 images, each once; 1 left out"]


def test_an_image_that_comes_twice_is_told(lineage, lines):
    tell(lineage, 0, 2)
    tell(lineage, 2, 3, offset=-8)  # the first step's images again
    assert lines == ["warning: epoch 1: 4 images came more than once, image 0 2 times"]


def test_rolled_back_steps_do_not_count(tmp_path, lineage, lines):
    tell(lineage, 0, 3)
    tell(lineage, 3, 5)
    lineage.roll_back(1 + STEPS)  # nothing ends there: the line of steps 3 and 4 goes
    assert sorted(p.name for p in (tmp_path / "images").iterdir()) == ["epoch-0001.jsonl", "epoch-0002.jsonl"]
    tell(lineage, 3, 6)
    assert lines[1:] == ["epoch 2: 12 images, each once; 1 left out"]
    lineage.roll_back(2)
    assert [p.name for p in (tmp_path / "images").iterdir() if p.stat().st_size] == []


def test_another_driver_goes_on_counting(tmp_path, lineage, lines):
    tell(lineage, 0, 2)
    tell(lineage, 2, 3)
    tell(lineage, 3, 4)
    other = Lineage(locate(tmp_path / "images"), STEPS, BATCH, ROWS, lines.append)
    other.roll_back(4)
    tell(other, 4, 6)
    assert lines[1:] == ["epoch 2: 12 images, each once; 1 left out"]
