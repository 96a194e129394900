"""The built-in data set: seeded COCO-format images on which the quality of masks varies.

Mask scoring can only help where masks differ in quality for reasons other than the class's difficulty (the
paper, section 1 and Fig. 2). Here an object's class is told by its surface, its outline is drawn apart from
that, and what makes a mask hard (thin parts, holes, fading, blur, occlusion, camouflage) shows in the image.
"""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Callable, Generator
from concurrent.futures import ProcessPoolExecutor
from contextlib import closing
from dataclasses import asdict
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pycocotools.mask as coco_mask
from PIL import Image

from msrcnn.config import require
from msrcnn.data.shapes_config import SPLITS, ShapesConfig
from msrcnn.data.shapes_drawing import Instance, draw_scene
from msrcnn.data.shapes_surfaces import SURFACES
from msrcnn.errors import InputError

JPEG_QUALITY = 90
IMAGES_A_WORKER = 50  # a process takes about as long to start as this many images to draw


def categories(config: ShapesConfig) -> list[dict[str, Any]]:
    """The COCO categories; their ids (3, 7, 11, ...) are not contiguous, like COCO's own."""
    return [
        {"id": _category_id(number), "name": SURFACES[number][0], "supercategory": "shape"}
        for number in range(config.classes)
    ]


def _category_id(number: int) -> int:
    return 4 * number + 3


def draw_image(config: ShapesConfig, split: str, index: int) -> tuple[np.ndarray, list[dict[str, Any]]]:
    """Draws one image, a pure function of seed, split, index, size and classes.

    Args:
        config: the data set.
        split: "train" or "val".
        index: the image's number in its split, 0 or more.

    Returns:
        The image, uint8 [size, size, 3] RGB, and its COCO annotations. Beside COCO's keys an annotation that
        is no crowd has `ambiguity` (share of another class's surface, in [0, 0.45]), `outline` (the outline's
        family), `causes` (what makes its mask hard, to strength in [0, 1]; occlusion: the share covered) and
        `difficulty` (all causes together, 1 minus the product of 1 - strength).

    Raises:
        InputError: the split or the index is not one of these.
    """
    require(split in SPLITS, "split", split, " or ".join(map(repr, SPLITS)))
    require(index >= 0, "index", index, "0 or more")
    rng = np.random.default_rng([config.seed, SPLITS.index(split), index])
    image, instances = draw_scene(rng, config.size, config.classes)
    image_id = _image_id(split, index)
    annotations = [
        {"id": 100 * image_id + place, "image_id": image_id, **_annotation(instance)}
        for place, instance in enumerate(instances, start=1)
    ]
    return image, annotations


def _image_id(split: str, index: int) -> int:
    return 1_000_000 * (SPLITS.index(split) + 1) + index + 1


def _annotation(instance: Instance) -> dict[str, Any]:
    segmentation, rle = _encode(instance)
    annotation: dict[str, Any] = {
        "category_id": _category_id(instance.category),
        "segmentation": segmentation,
        "area": float(coco_mask.area(rle)),
        "bbox": [float(edge) for edge in coco_mask.toBbox(rle)],  # x, y, width, height
        "iscrowd": int(instance.iscrowd),
    }
    if not instance.iscrowd:
        easy = math.prod(1 - strength for strength in instance.causes.values())
        annotation |= {
            "ambiguity": round(instance.ambiguity, 4),
            "outline": instance.family,
            "causes": {cause: round(strength, 4) for cause, strength in instance.causes.items()},
            "difficulty": round(1 - easy, 4),
        }
    return annotation


def _encode(instance: Instance) -> tuple[Any, dict[str, Any]]:
    """The JSON segmentation of a mask and its compressed RLE."""
    height, width = instance.mask.shape
    rle = coco_mask.encode(np.asfortranarray(instance.mask, dtype=np.uint8))
    if instance.iscrowd:
        return {"size": [height, width], "counts": _counts(instance.mask)}, rle
    if instance.polygon is not None:
        polygon = [np.round(instance.polygon, 2).ravel().tolist()]
        # Shifted into the image, a vertex can round to the other side of a pixel: then RLE tells the mask.
        if coco_mask.frPyObjects(polygon, height, width)[0]["counts"] == rle["counts"]:
            return polygon, rle
    return {"size": [height, width], "counts": rle["counts"].decode("ascii")}, rle


def _counts(mask: np.ndarray) -> list[int]:
    """COCO's uncompressed run lengths of a mask [H, W]: down the columns, beginning with a run of zeros."""
    flat = mask.ravel(order="F")  # [H * W]
    starts = np.flatnonzero(np.diff(flat, prepend=False))
    return np.diff(np.concatenate([[0], starts, [flat.size]])).tolist()


def write_shapes(config: ShapesConfig, folder: Path, progress: Callable[[int, int], None] | None = None) -> None:
    """Writes the data set: `train/` and `val/` with JPEG images, `annotations/instances_{train,val}.json`.

    Args:
        config: the data set.
        folder: where to; made by this call. Nothing is there until everything is.
        progress: called with the images done and all images, after each image.

    Raises:
        InputError: the folder is not empty or cannot be written.
    """
    folder = Path(folder).resolve()
    _refuse_occupied(config, folder)
    aside = folder.with_name(f".{folder.name}.{os.getpid()}.partial")
    try:
        aside.mkdir(parents=True)
        _write_into(config, aside, progress)
        aside.rename(folder)  # takes the place of an empty folder
    except OSError as error:
        raise InputError(f"{folder}: cannot be written ({error.strerror}); choose another folder") from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _refuse_occupied(config: ShapesConfig, folder: Path) -> None:
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder}: is a file, not a folder; choose another folder")
    if not folder.is_dir() or not any(folder.iterdir()):
        return
    try:
        info = json.loads((folder / "annotations" / "instances_train.json").read_text())["info"]
        same = info["shapes"] == asdict(config)
    except (OSError, ValueError, KeyError, TypeError):
        same = False
    what = "already holds this very data set" if same else "is not empty"
    raise InputError(f"{folder}: {what}; delete it or choose another folder")


def _write_into(config: ShapesConfig, folder: Path, progress: Callable[[int, int], None] | None) -> None:
    jobs = [(config, folder, split, index) for split in SPLITS for index in range(getattr(config, split))]
    for name in (*SPLITS, "annotations"):
        (folder / name).mkdir()
    found: dict[str, list[dict[str, Any]]] = {split: [] for split in SPLITS}
    # Closed, so that after an exception no process still writes into the folder.
    with closing(_map_on_processes(_write_image, jobs)) as results:
        for done, (job, drawn) in enumerate(zip(jobs, results, strict=True), start=1):
            found[job[2]] += drawn
            if progress is not None:
                progress(done, len(jobs))
    for split in SPLITS:
        data = {
            "info": {"description": "msrcnn shapes", "version": "1", "shapes": asdict(config)},
            "images": [
                {
                    "id": _image_id(split, index),
                    "file_name": _file_name(index),
                    "height": config.size,
                    "width": config.size,
                }
                for index in range(getattr(config, split))
            ],
            "annotations": found[split],
            "categories": categories(config),
        }
        (folder / "annotations" / f"instances_{split}.json").write_text(json.dumps(data))


def _file_name(index: int) -> str:
    return f"{index + 1:06d}.jpg"


def _write_image(job: tuple[ShapesConfig, Path, str, int]) -> list[dict[str, Any]]:
    config, folder, split, index = job
    image, annotations = draw_image(config, split, index)
    Image.fromarray(image).save(folder / split / _file_name(index), quality=JPEG_QUALITY)
    return annotations


def _map_on_processes(function: Callable[[Any], Any], jobs: list[Any]) -> Generator[Any, None, None]:
    """`map(function, jobs)` on all processors; the results come in order."""
    workers = min(os.cpu_count() or 1, -(-len(jobs) // IMAGES_A_WORKER))
    if workers == 1:
        yield from map(function, jobs)
        return
    # Spawned, since a forked child of a process with threads (torch, Ray) may hang.
    pool = ProcessPoolExecutor(workers, mp_context=get_context("spawn"))
    try:
        yield from pool.map(function, jobs, chunksize=16)
    finally:
        pool.shutdown(cancel_futures=True)
