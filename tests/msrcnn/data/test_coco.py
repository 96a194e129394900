"""Annotation files against pycocotools' own reading of them, and every way in which they can be wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pycocotools import mask as mask_utils
from pycocotools.coco import COCO

from msrcnn.data.coco import instance_rle, read_coco, read_instance
from msrcnn.data.rejected import AnnotationError, Reason
from msrcnn.errors import InputError

HEIGHT, WIDTH = 37, 53
SQUARE = [[5.0, 5.0, 20.0, 5.0, 20.0, 20.0, 5.0, 20.0]]


def reference_mask(segmentation: Any, height: int = HEIGHT, width: int = WIDTH) -> np.ndarray:
    """What pycocotools makes of it, uint8 [height, width]."""
    coco = COCO()
    coco.imgs = {1: {"id": 1, "height": height, "width": width}}
    return coco.annToMask({"image_id": 1, "segmentation": segmentation})


def decode(counts: bytes, height: int = HEIGHT, width: int = WIDTH) -> np.ndarray:
    return mask_utils.decode({"size": [height, width], "counts": counts})


def uncompressed(mask: np.ndarray) -> dict[str, Any]:
    """Run lengths of a mask in column order, starting with the zeros."""
    flat = mask.ravel(order="F")
    edges = np.flatnonzero(np.diff(flat)) + 1
    counts = np.diff([0, *edges, flat.size]).tolist()
    return {"size": list(mask.shape), "counts": counts if flat[0] == 0 else [0, *counts]}


def compressed(mask: np.ndarray) -> dict[str, Any]:
    rle = mask_utils.encode(np.asfortranarray(mask))
    return {"size": list(mask.shape), "counts": rle["counts"].decode()}


def random_masks(count: int) -> list[np.ndarray]:
    """From single pixels to noise; the last one is full."""
    rng = np.random.default_rng(0)
    masks = [(rng.random((HEIGHT, WIDTH)) < p).astype(np.uint8) for p in np.linspace(0.002, 0.98, count)]
    return [*masks, np.ones((HEIGHT, WIDTH), np.uint8)]


def image(image_id: int = 1, **changes: Any) -> dict[str, Any]:
    return {"id": image_id, "file_name": f"{image_id}.png", "height": HEIGHT, "width": WIDTH, **changes}


def annotation(annotation_id: int = 1, **changes: Any) -> dict[str, Any]:
    value = {"id": annotation_id, "image_id": 1, "category_id": 7, "segmentation": SQUARE, "iscrowd": 0}
    return {**value, **changes}


def write(path: Path, **parts: Any) -> Path:
    content = {
        "images": [image()],
        "annotations": [annotation()],
        "categories": [{"id": 7, "name": "x"}],
        **parts,
    }
    file = path / "annotations.json"
    file.write_text(json.dumps(content))
    return file


@pytest.mark.parametrize(
    "polygons",
    [
        SQUARE,
        [[1.2, 1.7, 30.9, 2.2, 15.5, 30.1]],
        [*SQUARE, [15, 15, 40, 15, 40, 30, 15, 30], [45.5, 1, 52, 1, 52, 3]],  # two overlap, one lies apart
        [[-10, -10, 70, -5, 60, 45, -8, 40]],  # leaves the image on all sides
        [[0, 0, WIDTH, 0, WIDTH, HEIGHT, 0, HEIGHT]],
    ],
    ids=["square", "triangle", "parts", "clipped", "full"],
)
def test_polygons_equal_ann_to_mask(polygons: list[list[float]]) -> None:
    counts = instance_rle({"segmentation": polygons}, HEIGHT, WIDTH)
    np.testing.assert_array_equal(decode(counts), reference_mask(polygons))


def test_random_polygons_equal_ann_to_mask() -> None:
    rng = np.random.default_rng(1)
    for _ in range(100):
        parts = rng.integers(1, 4)
        polygons = [rng.uniform(-5, 60, 2 * rng.integers(3, 9)).round(2).tolist() for _ in range(parts)]
        counts = instance_rle({"segmentation": polygons}, HEIGHT, WIDTH)
        np.testing.assert_array_equal(decode(counts), reference_mask(polygons))


@pytest.mark.parametrize("encode", [uncompressed, compressed])
def test_rle_equals_ann_to_mask(encode: Any) -> None:
    for mask in random_masks(20):
        segmentation = encode(mask)
        counts = instance_rle({"segmentation": segmentation}, HEIGHT, WIDTH)
        np.testing.assert_array_equal(decode(counts), mask)
        np.testing.assert_array_equal(decode(counts), reference_mask(segmentation))
        assert counts == mask_utils.encode(np.asfortranarray(mask))["counts"]


def test_box_and_area_come_from_the_mask() -> None:
    for mask in random_masks(20):
        value = annotation(segmentation=uncompressed(mask), bbox=[0, 0, 1, 1], area=123456, iscrowd=1)
        instance = read_instance(value, HEIGHT, WIDTH, {7: 3})
        rows, columns = np.nonzero(mask)
        assert instance.bbox == (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
        assert instance.area == mask.sum()
        assert (instance.annotation_id, instance.category, instance.iscrowd) == (1, 3, True)


def test_empty_runs_do_not_widen_the_box() -> None:
    # column 1, rows 2..4, with an empty run of ones in column 9 and an empty run of zeros inside the object
    counts = [HEIGHT + 2, 1, 0, 2, 8 * HEIGHT, 0, HEIGHT * (WIDTH - 9) - 5]
    segmentation = {"size": [HEIGHT, WIDTH], "counts": counts}
    instance = read_instance(annotation(segmentation=segmentation), HEIGHT, WIDTH, {7: 1})
    assert instance.bbox == (1, 2, 2, 5)
    np.testing.assert_array_equal(decode(instance.rle), reference_mask(segmentation))


LONG = {"size": [HEIGHT, WIDTH], "counts": [10, 5, HEIGHT * WIDTH]}
SHORT = {"size": [HEIGHT, WIDTH], "counts": "54"}  # pycocotools decodes this to whatever was in memory


@pytest.mark.parametrize(
    ("segmentation", "reason", "detail"),
    [
        ([], Reason.POLYGON, "no polygon"),
        ([[]], Reason.POLYGON, "part 0 is no flat list of 3 or more x, y pairs"),
        (
            [*SQUARE, [1, 1, 9, 9]],
            Reason.POLYGON,
            "part 1 is no flat list",
        ),  # pycocotools would take it for a box
        ([[1, 1, 9, 1, 9, 9, 1]], Reason.POLYGON, "part 0 is no flat list"),
        ([[[1, 1], [9, 1], [9, 9]]], Reason.POLYGON, "part 0 is no flat list"),
        ([[1, 1, 9, 1, [9], 9]], Reason.POLYGON, "part 0 is no flat list"),
        ([["1", "1", "9", "1", "9", "9"]], Reason.POLYGON, "part 0 is no flat list"),
        ([[1, 1, 9, None, 9, 9]], Reason.POLYGON, "part 0 is no flat list"),
        ([[1, 1, float("nan"), 1, 9, 9]], Reason.POLYGON, "NaN or infinite"),
        ([[1, 1, float("inf"), 1, 9, 9]], Reason.POLYGON, "NaN or infinite"),
        ([[1, 1, 1e9, 1, 9, 9]], Reason.POLYGON, "leaves the 53x37 image by more than its size"),
        ([[60, 1, 70, 1, 70, 9]], Reason.EMPTY_MASK, "no pixel of the 53x37 image"),
        ([[3, 3, 3, 3, 3, 3]], Reason.EMPTY_MASK, "no pixel"),
        ({"size": [HEIGHT, WIDTH], "counts": [HEIGHT * WIDTH]}, Reason.EMPTY_MASK, "no pixel"),
        ({"size": [WIDTH, HEIGHT], "counts": [HEIGHT * WIDTH]}, Reason.RLE, "its size is [53, 37]"),
        (LONG, Reason.RLE, "cover 1976 pixels, the image has 1961"),
        (SHORT, Reason.RLE, "cover 9 pixels, the image has 1961"),
        (
            {"size": [HEIGHT, WIDTH], "counts": [-1, HEIGHT * WIDTH + 1]},
            Reason.RLE,
            "neither a compressed text",
        ),
        ({"size": [HEIGHT, WIDTH]}, Reason.RLE, "neither a compressed text"),
        ({"size": [HEIGHT, WIDTH], "counts": []}, Reason.RLE, "cover 0 pixels"),
        ({"size": [HEIGHT, WIDTH], "counts": "54 "}, Reason.RLE, "the character ' '"),
        ({"size": [HEIGHT, WIDTH], "counts": "5o"}, Reason.RLE, "ends inside a number"),
        (None, Reason.ANNOTATION_RECORD, "segmentation is absent"),
        ("5", Reason.ANNOTATION_RECORD, "segmentation is a str"),
    ],
)
def test_broken_segmentations(segmentation: Any, reason: Reason, detail: str) -> None:
    with pytest.raises(AnnotationError) as caught:
        read_instance(annotation(segmentation=segmentation), HEIGHT, WIDTH, {7: 1})
    assert caught.value.reason == reason
    assert detail in caught.value.detail


def test_categories_ascend_and_annotations_are_grouped(tmp_path: Path) -> None:
    categories = [{"id": 90, "name": "last"}, {"id": 0, "name": "zero"}, {"id": 7, "name": "x"}]
    annotations = [annotation(1), annotation(2, image_id=2), annotation(3, category_id=0)]
    dataset = read_coco(write(tmp_path, images=[image(2), image(1)], annotations=annotations, categories=categories))
    assert [(c.source_id, c.name) for c in dataset.categories] == [(0, "zero"), (7, "x"), (90, "last")]
    assert [(i.image_id, [a["id"] for a in i.annotations]) for i in dataset.images] == [(2, [2]), (1, [1, 3])]
    assert dataset.rejected == ()


def test_segmentations_wait_as_text_until_they_are_converted(tmp_path: Path) -> None:
    """What is read from a file converts to the same as what was written to it."""
    entries = [
        annotation(1, attributes={"occluded": True}),
        annotation(2, segmentation=uncompressed(random_masks(3)[1])),
    ]
    (record,) = read_coco(write(tmp_path, images=[image(license=3)], annotations=entries)).images
    for read, entry in zip(record.annotations, entries, strict=True):
        assert set(read) == {"id", "image_id", "category_id", "iscrowd", "segmentation_json"}
        assert read_instance(read, HEIGHT, WIDTH, {7: 1}) == read_instance(entry, HEIGHT, WIDTH, {7: 1})


def test_test_sets_have_no_annotations(tmp_path: Path) -> None:
    """As COCO's image_info_test-dev2017.json."""
    path = write(tmp_path, images=[image(2), image(1)])
    content = json.loads(path.read_text())
    del content["annotations"]
    path.write_text(json.dumps({"info": {}, "licenses": [], **content}))
    dataset = read_coco(path)
    assert [(i.image_id, i.annotations) for i in dataset.images] == [(2, ()), (1, ())]
    assert dataset.rejected == ()


def test_categories_counted_from_zero_are_told(tmp_path: Path) -> None:
    annotations = [annotation(1, category_id=0), annotation(2), annotation(3, category_id=8)]
    rejected = read_coco(write(tmp_path, annotations=annotations)).rejected
    assert [(r.annotation_id, r.reason) for r in rejected] == [(1, Reason.CATEGORY_ZERO), (3, Reason.UNKNOWN_CATEGORY)]
    assert rejected[0].detail == "annotations[0]: the file's categories begin at 7; were these counted from 0?"


def test_broken_records_are_set_aside_and_the_rest_is_kept(tmp_path: Path) -> None:
    images = [
        image(1),
        image(1, file_name="again.png"),
        image("two"),
        image(True),
        image(2**63),
        image(3, file_name=None),
        image(3, file_name="\ud800.png"),
        image(4, height=0),
        image(5, width=3.5),
        image(6, height=2**17, width=2**17),
        "seven",
        image(8),
    ]
    annotations = [
        annotation(10),
        annotation(10, image_id=8),
        annotation("11"),
        annotation(12, image_id=4),
        annotation(13, image_id=None),
        annotation(14, category_id=0),
        annotation(15, category_id=[1]),
        None,
        annotation(16, image_id=8),
    ]
    dataset = read_coco(write(tmp_path, images=images, annotations=annotations))
    assert [(i.image_id, [a["id"] for a in i.annotations]) for i in dataset.images] == [(1, [10]), (8, [16])]
    assert [(r.reason, r.image_id, r.annotation_id) for r in dataset.rejected] == [
        (Reason.DUPLICATE_IMAGE, 1, None),
        (Reason.IMAGE_RECORD, None, None),
        (Reason.IMAGE_RECORD, None, None),
        (Reason.IMAGE_RECORD, None, None),
        (Reason.IMAGE_RECORD, 3, None),
        (Reason.IMAGE_RECORD, 3, None),
        (Reason.IMAGE_RECORD, 4, None),
        (Reason.IMAGE_RECORD, 5, None),
        (Reason.IMAGE_RECORD, 6, None),
        (Reason.IMAGE_RECORD, None, None),
        (Reason.DUPLICATE_ANNOTATION, 8, 10),
        (Reason.ANNOTATION_RECORD, 1, None),
        (Reason.UNKNOWN_IMAGE, 4, 12),
        (Reason.UNKNOWN_IMAGE, None, 13),
        (Reason.CATEGORY_ZERO, 1, 14),
        (Reason.UNKNOWN_CATEGORY, 1, 15),
        (Reason.ANNOTATION_RECORD, None, None),
    ]


NO_IMAGES = {"images": [], "annotations": [], "categories": [{"id": 1, "name": "x"}]}


def without(key: str) -> dict[str, Any]:
    return {k: v for k, v in NO_IMAGES.items() if k != key}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"images": [{"id": 1, "fi', "not valid JSON .*truncated"),
        (b"\xff\xd8\xff\xe0JPEG", "not valid JSON"),
        ([], "holds a JSON list, not a COCO annotation file"),
        (without("images"), "the key 'images' is missing"),
        (without("categories"), "the key 'categories' is missing"),
        ({**NO_IMAGES, "images": {}}, "'images' is no list"),
        ({**NO_IMAGES, "annotations": None}, "'annotations' is no list"),
        ({**NO_IMAGES, "categories": []}, "'categories' is empty"),
        ({**NO_IMAGES, "categories": [{"id": "1", "name": "x"}]}, r"categories\[0\] needs an integer 'id'"),
        (
            {**NO_IMAGES, "categories": [{"id": 1}]},
            r"categories\[0\] needs an integer 'id' and a text 'name'",
        ),
        ({**NO_IMAGES, "categories": [{"id": 1, "name": "x"}] * 2}, r"categories\[1\] repeats id 1"),
        (NO_IMAGES, "it has no images"),
        (
            {**NO_IMAGES, "images": [{"id": "a"}]},
            r"none of its 1 image records can be used \(first: images\[0\]: 'id' is 'a', expected",
        ),
    ],
)
def test_files_that_cannot_be_used(tmp_path: Path, content: Any, message: str) -> None:
    path = tmp_path / "annotations.json"
    path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    with pytest.raises(InputError, match=message) as caught:
        read_coco(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


def test_paths_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"absent.json: no such file; give the path"):
        read_coco(tmp_path / "absent.json")
    with pytest.raises(InputError, match=r"[Dd]irectory"):
        read_coco(tmp_path)
