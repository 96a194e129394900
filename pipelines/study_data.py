"""The data of a study: shards of all training images, of their two parts that choose a variant, and of validation.

A variant may not be chosen on the images that it is then confirmed on. So the training images are parted once, by a
seed of its own: `fit` trains what `choose` compares; what was chosen trains on all of `train` and is measured on `val`.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from msrcnn.data.shapes_config import ShapesConfig
from msrcnn.errors import InputError
from pipelines.options import ShardConfig
from pipelines.storage import locate

CHOSEN_SHARE = 0.2
"""Share of the training images that variants are chosen on."""
PART_SEED = 0
ROW_GROUP = 16
NAMES = (("train", "val"), ("train2017", "val2017"))


@dataclass(frozen=True)
class StudyShards:
    """Folders of shards."""

    train: Path
    fit: Path
    choose: Path
    val: Path


def study_shards(out: Path, data: Path | ShapesConfig, address: str | None, log: Callable[[str], None]) -> StudyShards:
    """Makes what is missing of the shards, and looks that those there are of this data.

    Args:
        out: folder of the study.
        data: a COCO data set in two parts, or the parameters of the shapes to draw.
        address: Ray cluster.
        log: takes lines.

    Raises:
        InputError: the data set is not as it should be, or another than the shards were made of.
    """
    from pipelines.shard import shard

    if isinstance(data, ShapesConfig):
        data = _drawn(out / "images", data)
    train, val = _names(data)
    annotations = {name: data / "annotations" / f"instances_{name}.json" for name in (train, val)}
    parted = part(annotations[train], out / "annotations")
    wanted = {
        "train": (annotations[train], data / train),
        "fit": (parted[0], data / train),
        "choose": (parted[1], data / train),
        "val": (annotations[val], data / val),
    }
    for name, (file, images) in wanted.items():
        # Also where it is there, so that shards of other annotations are refused.
        shard(ShardConfig(file, images, out / "shards" / name, row_group=ROW_GROUP, name=name, address=address), log)
    return StudyShards(*(out / "shards" / name for name in ("train", "fit", "choose", "val")))


def part(annotations: Path, folder: Path) -> tuple[Path, Path]:
    """Parts a COCO annotation file by images into `fit.json` and `choose.json`, always in the same way."""
    fit, choose = folder / "fit.json", folder / "choose.json"
    if choose.exists():
        return fit, choose
    whole = json.loads(annotations.read_text())
    ids = sorted(image["id"] for image in whole["images"])
    random.Random(PART_SEED).shuffle(ids)
    chosen = set(ids[: round(len(ids) * CHOSEN_SHARE)])
    if not chosen or len(chosen) == len(ids):
        raise InputError(f"{annotations}: {len(ids)} images cannot be parted; give a training set of at least 3")
    locate(folder).make_folder()
    for file, wanted in ((fit, False), (choose, True)):
        value = {
            **whole,
            "images": [row for row in whole["images"] if (row["id"] in chosen) is wanted],
            "annotations": [row for row in whole["annotations"] if (row["image_id"] in chosen) is wanted],
        }
        locate(file).write(json.dumps(value).encode())
    return fit, choose


def _drawn(folder: Path, config: ShapesConfig) -> Path:
    from msrcnn.data.shapes import write_shapes

    if not (folder / "annotations" / "instances_val.json").exists():
        write_shapes(config, folder)
    return folder


def _names(data: Path) -> tuple[str, str]:
    for train, val in NAMES:
        files = [data / "annotations" / f"instances_{name}.json" for name in (train, val)]
        if all(file.exists() for file in files):
            return train, val
    raise InputError(f"--data {data}: neither annotations/instances_train.json and instances_val.json nor those of "
                     "train2017 and val2017 are in it")  # fmt: skip
