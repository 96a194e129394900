"""A sheet of images with their instances drawn on them: the fastest way to see that a data set is what one thinks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from msrcnn.data.decoding import decode_image
from pipelines.colours import colour_of
from pipelines.manifest import Manifest
from pipelines.output_folder import beginning
from pipelines.painting import paint
from pipelines.reading import RowGroup, read_rows
from pipelines.storage import file_for, locate

CELL = 360
"""Side of a cell of the sheet, in pixels."""
CAPTION = 16
MARGIN = 6
FILL = 115
"""How much of a mask's colour covers the image, of 256."""
LABELS = 12
"""So many instances an image, the largest, are named."""


def write_gallery(groups: Sequence[RowGroup], manifest: Manifest, number: int, seed: int, out: Path) -> None:
    """Draws `number` images of the data set, chosen by `seed`, into one PNG file.

    Row groups are read one after the other, so memory holds one group and the sheet.

    Raises:
        InputError: the file cannot be written.
    """
    total = sum(g.rows for g in groups)
    chosen = np.sort(np.random.default_rng(seed).permutation(total)[:number])
    names = {c.number: c.name for c in manifest.categories}
    cells, begin = [], 0
    for group in groups:
        rows = chosen[(chosen >= begin) & (chosen < begin + group.rows)] - begin
        if len(rows):
            cells += [draw(row, names) for row in read_rows([group.path], [group.index]).take(rows).to_pylist()]
        begin += group.rows
    columns = math.ceil(math.sqrt(len(cells)))
    height = -(-len(cells) // columns) * (CELL + CAPTION + MARGIN) + MARGIN
    sheet = Image.new("RGB", (columns * (CELL + MARGIN) + MARGIN, height), "white")
    for i, cell in enumerate(cells):
        y, x = divmod(i, columns)
        sheet.paste(cell, (MARGIN + x * (CELL + MARGIN), MARGIN + y * (CELL + CAPTION + MARGIN)))
    with beginning(locate(out)):
        out.parent.mkdir(parents=True, exist_ok=True)
        with file_for(locate(out)) as path:
            sheet.save(path, "PNG")


def draw(row: dict[str, Any], names: dict[int, str]) -> Image.Image:
    """One shard row as a cell: the image fitted in, masks filled and outlined by class, crowds hatched, names."""
    image = decode_image(row["image"], row["height"], row["width"], f"image {row['image_id']}")
    pixels = np.array(image)  # [H, W, 3]
    instances = sorted(row["instances"], key=lambda i: -i["area"])  # small ones on top
    for instance in instances:
        colour = colour_of(instance["category"])
        paint(pixels, instance["rle"], colour, FILL, hatched=instance["iscrowd"])
    image = Image.fromarray(pixels)
    scale = CELL / max(image.size)
    image = image.resize((max(1, round(image.width * scale)), max(1, round(image.height * scale))))
    cell = Image.new("RGB", (CELL, CELL + CAPTION), "white")
    cell.paste(image, (0, 0))
    pen, font = ImageDraw.Draw(cell), ImageFont.load_default(11)
    for instance in instances[:LABELS]:
        x0, y0 = (v * scale for v in instance["bbox"][:2])
        pen.text((x0 + 1, y0), names[instance["category"]], "white", font, stroke_width=1, stroke_fill="black")
    text = f"{row['image_id']}  {row['file_name']}  {row['width']}x{row['height']}  {len(instances)} instances"
    pen.text((0, CELL + 2), text, "black", font)
    return cell
