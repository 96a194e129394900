"""`msrcnn data`: what is in a folder of shards, counted from everything but the images, and a sheet of examples."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from rich.markup import escape
from rich.table import Table

from msrcnn.data.rejected import Rejected
from pipelines.manifest import Manifest, read_manifest
from pipelines.options import InspectConfig
from pipelines.parquet import open_parquet
from pipelines.part_records import REJECTED
from pipelines.reading import row_groups
from pipelines.storage import locate
from pipelines.text_tables import as_text

WIDTH = 100
CLASSES_SHOWN = 100
REJECTED_SHOWN = 5
SMALL, LARGE = 32**2, 96**2
"""COCO's limits between small, medium and large, in pixels of annotated area."""
COLUMNS = [
    "height", "width", "instances.list.element.category", "instances.list.element.area",
    "instances.list.element.iscrowd",
]  # fmt: skip
SHAPE_RATIO = 1.1
"""An image is landscape or portrait if one side is longer than the other by more than this."""


@dataclass(frozen=True)
class Columns:
    """What is counted, over a whole data set of N images and G instances, crowds included."""

    heights: np.ndarray  # int32 [N], pixels
    widths: np.ndarray  # int32 [N]
    counts: np.ndarray  # int64 [N], instances of each image
    categories: np.ndarray  # int32 [G], 1..C, image by image
    areas: np.ndarray  # float32 [G], pixels, as annotated
    crowd: np.ndarray  # bool [G]


def read_columns(manifest: Manifest) -> Columns:
    """Reads all columns but the images and the masks: some bytes an instance, whatever the images weigh."""

    def read(path: str) -> Columns:
        table = open_parquet(path).read(columns=COLUMNS)
        instances = pa.chunked_array(table["instances"].chunks, table["instances"].type)
        flat = pc.list_flatten(instances)  # without an instance no table could be made of it
        return Columns(
            table["height"].to_numpy(), table["width"].to_numpy(), pc.list_value_length(instances).to_numpy(),
            *(pc.struct_field(flat, name).to_numpy() for name in ("category", "area", "iscrowd")),
        )  # fmt: skip

    with ThreadPoolExecutor(8) as pool:
        parts = list(pool.map(read, manifest.paths))
    names = Columns.__dataclass_fields__
    return Columns(**{name: np.concatenate([getattr(part, name) for part in parts]) for name in names})


def data_lines(manifest: Manifest, columns: Columns) -> Iterable[str]:
    """The report, line by line."""
    images, instances = len(columns.heights), len(columns.categories)
    crowds, empty = int(columns.crowd.sum()), int((columns.counts == 0).sum())
    yield (
        f"{manifest.name}: {images} images in {len(manifest.parts)} shards, {manifest.bytes / 1e6:.1f} MB; "
        f"{instances} instances, {crowds} of them crowds, of {len(manifest.categories)} classes"
    )
    yield f"images without an instance: {empty}; instances an image: {spread(columns.counts)}"
    yield from shape_lines(columns)
    yield from size_lines(columns)
    yield class_table(manifest, columns)
    yield from rejected_lines(manifest)
    if manifest.corrected:
        counted = ", ".join(f"{count} x {kind}" for kind, count in sorted(manifest.corrected.items()))
        yield f"corrected when sharding: {counted}"


def spread(values: np.ndarray) -> str:
    """Mean and five quantiles of some numbers."""
    if len(values) == 0:
        return "none"
    low, quarter, median, three_quarters, high = np.quantile(values, [0, 0.25, 0.5, 0.75, 1])
    return (
        f"mean {values.mean():.1f}, least {low:.0f}, quartiles {quarter:.0f} / {median:.0f} / {three_quarters:.0f}, "
        f"most {high:.0f}"
    )


def shape_lines(columns: Columns) -> Iterable[str]:
    """How large and of which shape the images are."""
    height, width = columns.heights.astype(float), columns.widths.astype(float)
    landscape, portrait = int((width > SHAPE_RATIO * height).sum()), int((height > SHAPE_RATIO * width).sum())
    yield f"shorter side in pixels: {spread(np.minimum(height, width))}"
    yield f"longer side in pixels: {spread(np.maximum(height, width))}"
    yield f"landscape {landscape}, portrait {portrait}, about square {len(height) - landscape - portrait}"


def size_lines(columns: Columns) -> Iterable[str]:
    """How large the objects are, crowds left out."""
    areas = columns.areas[~columns.crowd]
    small, large = int((areas < SMALL).sum()), int((areas >= LARGE).sum())
    yield (
        f"objects by area: small (under 32 x 32 pixels) {small}, medium {len(areas) - small - large}, "
        f"large (from 96 x 96) {large}"
    )
    yield f"square root of the area in pixels: {spread(np.sqrt(areas))}"


def class_table(manifest: Manifest, columns: Columns) -> str:
    """Instances and images of each class, the most frequent first."""
    number = len(manifest.categories) + 1
    objects = np.bincount(columns.categories[~columns.crowd], minlength=number)  # [C + 1]
    crowds = np.bincount(columns.categories[columns.crowd], minlength=number)
    image = np.repeat(np.arange(len(columns.counts)), columns.counts)  # [G]
    pairs = np.unique(image * number + columns.categories)
    images = np.bincount(pairs % number, minlength=number)
    order = sorted(manifest.categories, key=lambda c: (-objects[c.number], c.number))
    table = Table(width=WIDTH)
    for name in ("class", "id in the source", "instances", "crowds", "images", ""):
        table.add_column(name, justify="left" if name in ("class", "") else "right")
    most = max(int(objects.max()), 1)
    for category in order[:CLASSES_SHOWN]:
        n = category.number
        bar = "█" * round(24 * int(objects[n]) / most)
        table.add_row(
            escape(category.name), str(category.source_id), *(str(c[n]) for c in (objects, crowds, images)), bar
        )
    lines = [as_text(table, WIDTH)]
    if len(order) > CLASSES_SHOWN:
        rest = order[CLASSES_SHOWN:]
        lines.append(f"and {len(rest)} more classes, down to {objects[rest[-1].number]} instances of {rest[-1].name}")
    absent = [c.name for c in manifest.categories if objects[c.number] == 0]
    if absent:
        lines.append(f"classes without an instance: {', '.join(absent)}")
    return "\n".join(lines)


def rejected_lines(manifest: Manifest) -> Iterable[str]:
    """What sharding set aside, and the first rows of it."""
    if not manifest.rejected:
        yield "set aside when sharding: nothing"
        return
    counted = ", ".join(f"{count} x {reason}" for reason, count in sorted(manifest.rejected.items()))
    yield f"set aside when sharding: {counted}"
    path = locate(manifest.folder) / REJECTED
    if path.size() is not None:
        rows = open_parquet(path).read().slice(0, REJECTED_SHOWN).to_pylist()
        for row in rows:
            entry = Rejected(**row)
            yield f"  {entry.where or 'no id'}: {entry.reason}: {entry.detail}"
        yield f"all of it: {path}"


def inspect(config: InspectConfig, log: Callable[[str], None] = print) -> None:
    """Prints what a data set holds; with `gallery`, writes a sheet of images with their masks drawn.

    Raises:
        InputError: the folder holds no finished data set.
    """
    manifest = read_manifest(config.shards)
    for line in data_lines(manifest, read_columns(manifest)):
        log(line)
    if config.gallery:
        from pipelines.gallery import write_gallery

        write_gallery(row_groups(manifest), manifest, config.gallery, config.seed, config.out)
        log(f"{min(config.gallery, manifest.rows)} images with their masks: {Path(config.out)}")
