"""COCO annotation files read into checked records.

The format is that of https://cocodataset.org/#format-data. What is wrong with a whole file raises; what is
wrong with one image or annotation sets that one aside with a reason, and the rest goes on.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pycocotools import mask as mask_utils

from msrcnn.data.rejected import AnnotationError, Reason, Rejected
from msrcnn.data.segmentation import instance_rle
from msrcnn.errors import InputError


@dataclass(frozen=True)
class CocoCategory:
    """A category as the annotation file has it."""

    source_id: int
    name: str


EXPECTED = "an object with the lists 'images', 'annotations' and 'categories'"
IMAGE_KEYS = ("id", "file_name", "height", "width")
ANNOTATION_KEYS = ("id", "image_id", "category_id", "iscrowd", "area", "bbox")


@dataclass(frozen=True)
class ImageRecord:
    """One image and its annotations, grouped but not yet converted.

    An annotation has those of `ANNOTATION_KEYS` that the file has, and its segmentation as JSON text under
    `segmentation_json`.
    """

    image_id: int
    file_name: str
    height: int
    width: int
    annotations: tuple[dict[str, Any], ...]


@dataclass(frozen=True)
class CocoDataset:
    """A checked annotation file.

    Attributes:
        categories: in ascending order of their ids in the file; the position, counted from 1, is the number
            that the rest of the program uses.
        images: in the order of the file.
        rejected: images and annotations set aside so far.
    """

    categories: tuple[CocoCategory, ...]
    images: tuple[ImageRecord, ...]
    rejected: tuple[Rejected, ...]


@dataclass(frozen=True)
class Instance:
    """One converted annotation; `bbox` is x0, y0, x1, y1 in pixels, `area` in pixels."""

    annotation_id: int
    category: int
    bbox: tuple[float, float, float, float]
    area: float
    iscrowd: bool
    rle: bytes


def read_coco(path: Path) -> CocoDataset:
    """Reads an annotation file; `parse_coco` for what raises, besides a file that cannot be read."""
    try:
        content = path.read_bytes()
    except OSError as error:
        what = "no such file" if isinstance(error, FileNotFoundError) else error.strerror
        raise InputError(f"{path}: {what}; give the path of a COCO annotation file (JSON)") from error
    return parse_coco(content, str(path))


def parse_coco(data: bytes, path: str) -> CocoDataset:
    """The checked content of an annotation file; memory is bounded by the file.

    Without the key `annotations`, as in COCO's test sets, no image has an object.

    Args:
        data: the file's bytes.
        path: names the file in errors.

    Raises:
        InputError: it is not JSON, is not a COCO annotation file, or has no usable image.
    """
    content = _load_json(data, path)
    categories = _read_categories(content["categories"], path)
    rejected: list[Rejected] = []
    images = _read_images(content["images"], rejected)
    if not images:
        found = f"none of its {len(content['images'])} image records can be used" if rejected else "it has no images"
        first = f" (first: {rejected[0].detail})" if rejected else ""
        raise InputError(f"{path}: {found}{first}; give an annotation file with images")
    source_ids = {category.source_id for category in categories}
    grouped = _group_annotations(content.get("annotations", []), set(images), source_ids, rejected)
    records = tuple(
        ImageRecord(image_id, *fields, annotations=tuple(grouped.get(image_id, ())))
        for image_id, fields in images.items()
    )
    return CocoDataset(categories, records, tuple(rejected))


def read_instance(annotation: Mapping[str, Any], height: int, width: int, numbers: Mapping[int, int]) -> Instance:
    """Converts one annotation of a [height, width] image; box and area are those of its mask.

    Args:
        annotation: from `ImageRecord.annotations`, or as a file has it.
        height: of the image, in pixels.
        width: of the image, in pixels.
        numbers: contiguous category number (1..C) by category id of the file.

    Raises:
        AnnotationError: the segmentation is broken or its mask has no pixel.
    """
    if "segmentation_json" in annotation:
        annotation = {**annotation, "segmentation": json.loads(annotation["segmentation_json"])}
    counts = instance_rle(annotation, height, width)
    rle = {"size": [height, width], "counts": counts}
    area = int(mask_utils.area(rle))
    if area == 0:
        raise AnnotationError(Reason.EMPTY_MASK, f"no pixel of the {width}x{height} image lies inside")
    x, y, box_width, box_height = mask_utils.toBbox(rle).tolist()
    return Instance(
        annotation_id=annotation["id"],
        category=numbers[annotation["category_id"]],
        bbox=(x, y, x + box_width, y + box_height),
        area=area,
        iscrowd=bool(annotation.get("iscrowd", 0)),
        rle=counts,
    )


def _load_json(data: bytes, path: str) -> dict[str, list[Any]]:
    if not data.strip():
        raise InputError(f"{path}: the file is empty; get or write it again")
    try:
        content = json.loads(data, object_hook=_slim)
    except (ValueError, RecursionError) as error:  # also what is no text at all
        raise InputError(f"{path}: not valid JSON ({error}); it may be truncated: get or write it again") from error
    if not isinstance(content, dict):
        results = isinstance(content, list) and bool(content) and isinstance(content[0], dict) and "score" in content[0]
        raise InputError(f"{path}: holds {'COCO results' if results else f'a JSON {type(content).__name__}'}, not a "
                         f"COCO annotation file; give {EXPECTED}")  # fmt: skip
    for key in ("images", "categories"):
        if key not in content:
            raise InputError(f"{path}: not a COCO annotation file: the key '{key}' is missing; give {EXPECTED}")
    for key in ("images", "annotations", "categories"):
        if not isinstance(content.get(key, []), list):
            raise InputError(f"{path}: not a COCO annotation file: '{key}' is no list; give {EXPECTED}")
    return content


def _slim(entry: dict[str, Any]) -> dict[str, Any]:
    """An image or annotation without what is not needed, while the file is still being read.

    A polygon's numbers take six times their text as Python objects: a COCO file of 98 MB took 653 MB.
    """
    if "segmentation" in entry:
        slim = {key: entry[key] for key in ANNOTATION_KEYS if key in entry}
        return slim | {"segmentation_json": json.dumps(entry["segmentation"], separators=(",", ":"))}
    if "file_name" in entry:
        return {key: entry[key] for key in IMAGE_KEYS if key in entry}
    return entry


def _read_categories(entries: list[Any], path: str) -> tuple[CocoCategory, ...]:
    if not entries:
        raise InputError(f"{path}: 'categories' is empty; list at least one category with 'id' and 'name'")
    names: dict[int, str] = {}
    for index, entry in enumerate(entries):
        if not (isinstance(entry, dict) and _is_id(entry.get("id")) and _is_text(entry.get("name"))):
            raise InputError(f"{path}: categories[{index}] needs an integer 'id' and a text 'name'")
        if entry["id"] in names:
            raise InputError(f"{path}: categories[{index}] repeats id {entry['id']}; give every category its own id")
        names[entry["id"]] = entry["name"]
    return tuple(CocoCategory(source_id, names[source_id]) for source_id in sorted(names))


def _read_images(entries: list[Any], rejected: list[Rejected]) -> dict[int, tuple[str, int, int]]:
    """File name, height and width by image id."""
    images: dict[int, tuple[str, int, int]] = {}
    for index, entry in enumerate(entries):
        problem = _image_problem(entry)
        if problem:
            image_id = entry["id"] if isinstance(entry, dict) and _is_id(entry.get("id")) else None
            rejected.append(Rejected(Reason.IMAGE_RECORD, f"images[{index}]: {problem}", image_id))
        elif entry["id"] in images:
            detail = f"images[{index}] ({entry['file_name']}) repeats the id; the first one is kept"
            rejected.append(Rejected(Reason.DUPLICATE_IMAGE, detail, entry["id"]))
        else:
            images[entry["id"]] = (entry["file_name"], entry["height"], entry["width"])
    return images


def _image_problem(entry: Any) -> str | None:
    if not isinstance(entry, dict):
        return "not an object"
    if not _is_id(entry.get("id")):
        return f"'id' is {entry.get('id')!r}, expected an integer"
    if not _is_text(entry.get("file_name")):
        return f"'file_name' is {entry.get('file_name')!r}, expected a text"
    for key in ("height", "width"):
        if type(entry.get(key)) is not int or entry[key] < 1:
            return f"'{key}' is {entry.get(key)!r}, expected an integer above 0"
    if entry["height"] * entry["width"] >= 2**32:
        return f"{entry['width']}x{entry['height']} pixels are more than a run-length code can count (2^32)"
    return None


def _group_annotations(
    entries: list[Any], image_ids: set[int], category_ids: set[int], rejected: list[Rejected]
) -> dict[int, list[dict[str, Any]]]:
    """The good annotations by image id; their segmentations are not looked at yet."""
    grouped: dict[int, list[dict[str, Any]]] = {}
    seen: set[int] = set()
    for index, entry in enumerate(entries):
        where = f"annotations[{index}]"
        if not isinstance(entry, dict):
            rejected.append(Rejected(Reason.ANNOTATION_RECORD, f"{where}: not an object"))
            continue
        annotation_id, image_id, category_id = (entry.get(key) for key in ("id", "image_id", "category_id"))
        ids = (image_id if _is_id(image_id) else None, annotation_id if _is_id(annotation_id) else None)
        if not _is_id(annotation_id):
            detail = f"{where}: 'id' is {annotation_id!r}, expected an integer"
            rejected.append(Rejected(Reason.ANNOTATION_RECORD, detail, *ids))
        elif annotation_id in seen:
            detail = f"{where} repeats the id of an earlier one"
            rejected.append(Rejected(Reason.DUPLICATE_ANNOTATION, detail, *ids))
        elif not _is_id(image_id) or image_id not in image_ids:
            rejected.append(Rejected(Reason.UNKNOWN_IMAGE, f"{where}: no image has id {image_id!r}", *ids))
        elif category_id == 0 and _is_id(category_id) and 0 not in category_ids:
            least = min(category_ids)
            detail = f"{where}: the file's categories begin at {least}; were these counted from 0?"
            rejected.append(Rejected(Reason.CATEGORY_ZERO, detail, *ids))
        elif not _is_id(category_id) or category_id not in category_ids:
            detail = f"{where}: no category has id {category_id!r}"
            rejected.append(Rejected(Reason.UNKNOWN_CATEGORY, detail, *ids))
        else:
            grouped.setdefault(image_id, []).append(entry)
        if ids[1] is not None:
            seen.add(ids[1])
    return grouped


def _is_id(value: Any) -> bool:
    """Whether `value` is an integer that fits a Parquet int64 (True and False are no ids)."""
    return type(value) is int and -(2**63) <= value < 2**63


def _is_text(value: Any) -> bool:
    """Whether `value` is a text that can be stored: not empty, no lone surrogates (JSON allows them)."""
    return isinstance(value, str) and bool(value) and not any("\ud800" <= c <= "\udfff" for c in value)
