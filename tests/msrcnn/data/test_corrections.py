"""Boxes and areas that contradict their masks are told; what COCO's own files have is not."""

from __future__ import annotations

from typing import Any

import pytest

from msrcnn.data.coco import Instance, read_coco, read_instance
from msrcnn.data.corrections import Correction, believed, corrections


def square(iscrowd: bool = False) -> Instance:
    """A square of 40 pixels at (100, 50)."""
    return Instance(1, 1, (100, 50, 140, 90), 1600, iscrowd, b"")


@pytest.mark.parametrize(
    ("annotation", "found"),
    [
        ({"bbox": [100, 50, 40, 40], "area": 1600}, []),
        ({}, []),
        ({"bbox": [98.6, 49.1, 43, 41.5], "area": 1500.5}, []),  # a polygon's own
        ({"bbox": [100, 50, 140, 90]}, [Correction.BOX]),  # corners taken for width and height
        ({"bbox": [50, 100, 40, 40]}, [Correction.BOX]),  # x and y exchanged
        ({"bbox": [0, 0, 0, 0]}, [Correction.BOX]),
        ({"bbox": [100, 50, 40, 0]}, [Correction.BOX]),
        ({"bbox": [100, 50, float("nan"), 40]}, [Correction.BOX]),
        ({"bbox": [100, 50, 40]}, [Correction.BOX]),
        ({"bbox": None, "area": None}, [Correction.BOX, Correction.AREA]),
        ({"bbox": [110, 50, 40, 40], "area": 0}, [Correction.AREA]),  # IoU 0.6
        ({"bbox": [114, 50, 40, 40], "area": 2100}, [Correction.BOX, Correction.AREA]),  # IoU 0.48
        ({"area": 1999}, []),
        ({"area": 2001}, [Correction.AREA]),
        ({"area": "1600"}, [Correction.AREA]),
        ({"area": -1}, [Correction.AREA]),
    ],
)
def test_by_hand(annotation: dict[str, Any], found: list[Correction]) -> None:
    assert [kind for kind, _ in corrections(annotation, square())] == found


def test_small_objects_and_crowds_may_differ() -> None:
    little = Instance(1, 1, (7, 7, 9, 8), 2, False, b"")
    assert corrections({"bbox": [6.4, 6.8, 1.8, 2.9], "area": 3.04}, little) == []
    assert corrections({"area": 4665}, square(iscrowd=True)) == []
    assert [kind for kind, _ in corrections({"bbox": [7, 7, 0, 1], "area": -1}, little)] == [*Correction]
    details = [detail for _, detail in corrections({"bbox": [0, 0, 9, 9], "area": 30}, little)]
    assert details == ["[0, 0, 9, 9], its mask's is [7, 7, 2, 1]", "30, its mask has 2 pixels"]


@pytest.mark.parametrize(
    ("annotation", "bbox", "area"),
    [
        ({}, (100, 50, 140, 90), 1600),
        ({"bbox": [98.6, 49.1, 43, 41.5], "area": 1500.5}, (98.6, 49.1, 141.6, 90.6), 1500.5),
        ({"bbox": [50, 100, 40, 40], "area": 1500.5}, (100, 50, 140, 90), 1500.5),
        ({"bbox": [98.6, 49.1, 43, 41.5], "area": 16}, (98.6, 49.1, 141.6, 90.6), 1600),
        ({"bbox": None, "area": None}, (100, 50, 140, 90), 1600),
    ],
)
def test_what_is_annotated_is_believed_unless_it_is_wrong(annotation, bbox, area) -> None:
    instance, found = believed(annotation, square())
    assert (instance.bbox, instance.area) == (bbox, area)
    assert found == corrections(annotation, square())
    crowd, _ = believed({"area": "no number"}, square(iscrowd=True))
    assert crowd.area == 1600


@pytest.mark.slow
@pytest.mark.parametrize(
    ("file", "count"),
    [
        ("coco_sample/annotations/instances_train2017.json", 3204),
        ("coco_sample/annotations/instances_val2017.json", 1313),
        ("nuclei/annotations/instances_train.json", 18972),
        ("nuclei/annotations/instances_val.json", 4469),
    ],
)
def test_silent_on_data_sets_that_are_right_and_not_on_the_same_with_another_box_convention(data_dir, file, count):
    dataset = read_coco(data_dir / file)
    numbers = {c.source_id: i for i, c in enumerate(dataset.categories, start=1)}
    told = wrong = seen = 0
    for record in dataset.images:
        for annotation in record.annotations:
            instance = read_instance(annotation, record.height, record.width, numbers)
            x, y, width, height = annotation["bbox"]
            told += len(corrections(annotation, instance))
            wrong += len(corrections({"bbox": [y, x, height, width], "area": width + height}, instance))
            seen += 1
    assert (seen, told) == (count, 0)
    assert wrong > count
