"""`msrcnn export`: stored detections as COCO results, for pycocotools and COCO's server.

OUT/segm.json   masks by mask score (or class score), without boxes: with one, its area would be taken for the mask's
OUT/bbox.json   boxes by class score
OUT/detections_test-dev2017_NAME_results.zip   segm.json under the name that COCO's server asks for
"""

from __future__ import annotations

import shutil
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from msrcnn.rows import ImageDetections
from pipelines.detection_parts import folder_of, part_name, read_parts, report_failures
from pipelines.json_stream import ListWriter
from pipelines.manifest import read_manifest
from pipelines.output_folder import beginning
from pipelines.parquet import open_parquet
from pipelines.reading import row_groups
from pipelines.results_json import shard_images
from pipelines.scoring_options import ExportConfig
from pipelines.storage import Location, locate
from pipelines.stored_rows import images_of

SEGM, BBOX = "segm.json", "bbox.json"
CHUNK = 2**22
LARGE = 2**30
"""Bytes from which on a file in an archive needs the format for large ones."""


def export(config: ExportConfig, log: Callable[[str], None] = print) -> None:
    """Writes the files, a part of the detections at a time.

    Raises:
        InputError: detections and shards do not belong together, or one is incomplete.
    """
    out = locate(config.out)
    manifest = read_manifest(config.shards)
    groups = row_groups(manifest)
    stored = read_parts(folder_of(locate(config.detections)), manifest, groups)
    report_failures(stored.parts, False, log)
    with beginning(out):
        out.make_folder()
    source = {category.number: category.source_id for category in manifest.categories}
    with (out / SEGM).writing() as segm_sink, (out / BBOX).writing() as bbox_sink:
        segm, bbox = ListWriter(segm_sink), ListWriter(bbox_sink)
        for info, group in zip(stored.parts, groups, strict=True):
            sizes = shard_images([group])
            found = images_of(open_parquet(stored.folder / part_name(info.key)).read())
            for image_id, detections in found.items():
                size = [sizes[image_id].height, sizes[image_id].width]
                segm.add(mask_results(detections, size, source, config.score))
                bbox.add(box_results(detections, source))
        segm.end()
        bbox.end()
    log(f"{segm.items} detections on {manifest.rows} images: {out / SEGM}, {out / BBOX}")
    if config.test_dev:
        name = f"detections_test-dev2017_{config.test_dev}_results"
        archive(out / SEGM, f"{name}.json", out / f"{name}.zip")
        log(f"for COCO's server: {out / f'{name}.zip'}")


def mask_results(found: ImageDetections, size: list[int], source: dict[int, int], score: str) -> list[dict[str, Any]]:
    """An image's masks as COCO results, best class score first.

    Args:
        found: the detections.
        size: of the image, [height, width] in pixels.
        source: the annotation file's category id of each category number.
        score: "mask" or "class", what ranks them.
    """
    scores = found.mask_scores if score == "mask" else found.class_scores
    return [
        {"image_id": found.image_id, "category_id": source[number],
         "segmentation": {"size": size, "counts": rle.decode("ascii")}, "score": value}
        for number, rle, value in zip(found.categories.tolist(), found.rles, scores.tolist(), strict=True)
    ]  # fmt: skip


def box_results(found: ImageDetections, source: dict[int, int]) -> list[dict[str, Any]]:
    """An image's boxes as COCO results, best class score first."""
    columns = zip(found.categories.tolist(), found.boxes.tolist(), found.class_scores.tolist(), strict=True)
    return [
        {"image_id": found.image_id, "category_id": source[number], "bbox": [x0, y0, x1 - x0, y1 - y0], "score": value}
        for number, (x0, y0, x1, y1), value in columns
    ]


def archive(file: Location, name: str, to: Location) -> None:
    """Writes a zip archive that holds a file under another name."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "archive.zip"  # on disk first: an archive is not written from beginning to end
        large = (file.size() or 0) > LARGE
        with (
            zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as packed,
            packed.open(name, "w", force_zip64=large) as member,
            file.filesystem.open_input_stream(file.path) as stream,
        ):
            shutil.copyfileobj(stream, member, CHUNK)
        locate(path).copy_to(to)
