"""What the documents take for granted: a COCO data set, weights, and what earlier commands left."""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path

import torch
import torchvision

from msrcnn.data.coco import read_coco, read_instance
from msrcnn.data.shapes import write_shapes
from msrcnn.data.shapes_config import ShapesConfig
from pipelines.options import ShardConfig
from pipelines.shard import shard
from tests.commands import ROOT
from tests.evaluations import write_model
from tests.predicting import write_image, write_video

SIDE = 64


def write_program(folder: Path) -> None:
    """bin/msrcnn: this program, as an activated environment has it."""
    program = folder / "bin" / "msrcnn"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m pipelines "$@"\n')
    program.chmod(0o755)


def environment_in(folder: Path, **variables: str) -> dict[str, str]:
    """Of a shell in which the environment is activated; nothing of the tests' own Ray or MLflow."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "MLFLOW_"))}
    path = f"{folder}/bin:{Path(sys.executable).parent}:{os.environ['PATH']}"
    return kept | {"PATH": path, "PYTHONPATH": str(ROOT), "TORCH_HOME": str(folder / "torch"), **variables}


def write_data(folder: Path) -> None:
    """instances_train.json, train/, instances_val.json, val/: the built-in shapes, few and small."""
    shapes = folder / "shapes"
    write_shapes(ShapesConfig(train=8, val=4, size=SIDE), shapes)
    for split in ("train", "val"):
        (shapes / "annotations" / f"instances_{split}.json").rename(folder / f"instances_{split}.json")
        (shapes / split).rename(folder / split)
    shutil.rmtree(shapes)


def write_weights(folder: Path) -> None:
    """mask_rcnn.pth, and where torchvision looks before it downloads, a ResNet-18; both with random weights."""
    torch.manual_seed(0)
    build = torchvision.models.detection.maskrcnn_resnet50_fpn
    torch.save(build(weights=None, weights_backbone=None, num_classes=4).state_dict(), folder / "mask_rcnn.pth")
    name = torchvision.models.ResNet18_Weights.IMAGENET1K_V1.url.rpartition("/")[2]
    hub = folder / "torch" / "hub" / "checkpoints"
    hub.mkdir(parents=True)
    torch.save(torchvision.models.resnet18(weights=None).state_dict(), hub / name)


def write_photos(folder: Path) -> None:
    """photos/ and holiday.mp4: of shapes."""
    for index, name in enumerate(("street.jpg", "market.png")):
        write_image(folder / "photos" / name, index)
    write_video(folder / "holiday.mp4", [0, 100, 200])


def write_finished(folder: Path) -> None:
    """shards/val, a detector with random weights in runs/first, and results.json, of another detector, by the truth.

    Needs `write_data`, and a Ray that this process is connected to.
    """
    shards, run = folder / "shards" / "val", folder / "runs" / "first"
    shard(ShardConfig(folder / "instances_val.json", folder / "val", shards), log=lambda _: None)
    run.mkdir(parents=True)
    write_model(run / "model.pt", shards)
    dataset = read_coco(folder / "instances_val.json")
    numbers = {category.source_id: category.source_id for category in dataset.categories}
    results = [
        {"image_id": record.image_id, "category_id": instance.category, "score": 1 / (1 + index), "maskiou": 0.9,
         "segmentation": {"size": [record.height, record.width], "counts": instance.rle.decode()}}
        for record in dataset.images
        for index, instance in enumerate(
            read_instance(annotation, record.height, record.width, numbers) for annotation in record.annotations
        )
    ]  # fmt: skip
    (folder / "results.json").write_text(json.dumps(results))
