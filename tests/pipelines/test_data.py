"""`msrcnn data` on a data set that is known row by row."""

import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from msrcnn.errors import InputError
from pipelines.data import data_lines, inspect, read_columns
from pipelines.gallery import CAPTION, CELL, MARGIN
from pipelines.manifest import Manifest, Part, read_manifest, write_manifest
from pipelines.options import InspectConfig
from pipelines.schema import SHARD_ROW, Category, ShardMeta

CATEGORIES = (Category(1, 3, "cat"), Category(2, 17, "dog"), Category(3, 20, "[yak]"))
GREY = 100


def instance(number: int, category: int, height: int, width: int, box: tuple[int, int, int, int], crowd: bool = False):
    x0, y0, x1, y1 = box
    mask = np.zeros((height, width), np.uint8)
    mask[y0:y1, x0:x1] = 1
    return {
        "annotation_id": number, "category": category, "bbox": list(box), "area": float(mask.sum()), "iscrowd": crowd,
        "rle": coco_mask.encode(np.asfortranarray(mask))["counts"],
    }  # fmt: skip


def row(image_id: int, height: int, width: int, *instances: dict) -> dict:
    stream = io.BytesIO()
    Image.new("RGB", (width, height), (GREY, GREY, GREY)).save(stream, "PNG")
    return {"image_id": image_id, "file_name": f"{image_id}.png", "height": height, "width": width,
            "image": stream.getvalue(), "instances": list(instances)}  # fmt: skip


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """Two shards of two: a landscape one with three cats and a crowd of dogs, a portrait one, a square, an empty."""
    rows = [
        row(1, 200, 300, instance(1, 1, 200, 300, (0, 0, 10, 10)), instance(2, 1, 200, 300, (20, 20, 70, 70)),
            instance(3, 1, 200, 300, (100, 50, 300, 150)), instance(4, 2, 200, 300, (0, 100, 50, 200), crowd=True)),
        row(2, 400, 100, instance(5, 2, 400, 100, (0, 0, 32, 32))),
        row(3, 100, 105, instance(6, 1, 100, 105, (0, 0, 96, 96))),
        row(4, 50, 50),
    ]  # fmt: skip
    folder = tmp_path / "shards"
    folder.mkdir()
    schema = SHARD_ROW.with_metadata(ShardMeta("little", CATEGORIES).to_metadata())
    parts = []
    for k in range(2):
        path = folder / f"shard-{k:05d}.parquet"
        pq.write_table(pa.Table.from_pylist(rows[2 * k : 2 * k + 2], schema), path, row_group_size=1)
        parts.append(Part(path.name, 2, 0, path.stat().st_size, str(k)))
    rejected = {"image_id": [9, 1], "annotation_id": [None, 8], "reason": ["image file missing", "broken polygon"],
                "detail": ["9.png", "part 0"]}  # fmt: skip
    pq.write_table(pa.table(rejected), folder / "rejected.parquet")
    write_manifest(
        Manifest(
            folder,
            "little",
            CATEGORIES,
            tuple(parts),
            {"broken polygon": 1, "image file missing": 1},
            {},
            {"area does not match the mask": 7},
        )
    )
    return folder


def test_every_number_of_the_report(shards: Path) -> None:
    manifest = read_manifest(shards)
    lines = "\n".join(data_lines(manifest, read_columns(manifest))).splitlines()
    assert lines[0].startswith("little: 4 images in 2 shards, ")
    assert lines[0].endswith("; 6 instances, 1 of them crowds, of 3 classes")
    assert lines[1] == (
        "images without an instance: 1; instances an image: mean 1.5, least 0, quartiles 1 / 1 / 2, most 4"
    )
    assert "shorter side in pixels: mean 112.5, least 50, quartiles 88 / 100 / 125, most 200" in lines
    assert "longer side in pixels: mean 213.8, least 50, quartiles 91 / 202 / 325, most 400" in lines
    assert "landscape 1, portrait 1, about square 2" in lines
    assert (
        "objects by area: small (under 32 x 32 pixels) 1, medium 2, large (from 96 x 96) 2" in lines
    )  # 32 x 32 is medium, 96 x 96 large
    table = [[cell.strip() for cell in line.strip("│").split("│")] for line in lines if line.startswith("│")]
    assert [cells[:5] for cells in table] == [
        ["cat", "3", "4", "0", "2"],
        ["dog", "17", "1", "1", "2"],
        ["[yak]", "20", "0", "0", "0"],
    ]
    assert [len(cells[5]) for cells in table] == [24, 6, 0]
    assert "classes without an instance: [yak]" in lines
    assert "set aside when sharding: 1 x broken polygon, 1 x image file missing" in lines
    assert "  image 9: image file missing: 9.png" in lines
    assert "  image 1, annotation 8: broken polygon: part 0" in lines
    assert "corrected when sharding: 7 x area does not match the mask" in lines


def test_the_gallery_shows_every_image_with_its_masks(shards: Path, tmp_path: Path) -> None:
    lines: list[str] = []
    sheet = tmp_path / "new" / "sheet.png"
    inspect(InspectConfig(shards, gallery=9, out=sheet), lines.append)
    assert lines[-1] == f"4 images with their masks: {sheet}"
    assert [p.name for p in sheet.parent.iterdir()] == ["sheet.png"]
    pixels = np.asarray(Image.open(sheet)).astype(int)
    pitch = CELL + MARGIN
    assert pixels.shape == (2 * (pitch + CAPTION) + MARGIN, 2 * pitch + MARGIN, 3)
    first = pixels[MARGIN : MARGIN + CELL, MARGIN : MARGIN + CELL]  # image 1 at 1.2 times its size
    assert (first[20, 330] == GREY).all()  # no object there
    cat, crowd = first[120, 300], first[125:235, 5:55].reshape(-1, 3)
    assert (cat != GREY).any()
    assert (crowd == GREY).all(1).mean() > 0.1  # hatched
    assert (crowd != GREY).any(1).mean() > 0.2
    small = pixels[MARGIN + pitch + CAPTION : MARGIN + pitch + CAPTION + CELL, MARGIN + 5 : MARGIN + CELL]  # image 3
    assert (small[100, 100] == cat).all()  # a cat too


def test_what_is_no_data_set_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no manifest.json; make shards with"):
        inspect(InspectConfig(tmp_path))
    with pytest.raises(InputError, match=r"--gallery = -1 is not accepted"):
        InspectConfig(tmp_path, gallery=-1)
