"""What the documents take for granted: a COCO data set, weights, and what earlier commands left."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
import torchvision

from msrcnn.data.shapes import write_shapes
from msrcnn.data.shapes_config import ShapesConfig
from pipelines.evaluate import EvaluateConfig, evaluate
from pipelines.export import ExportConfig, export
from pipelines.options import ShardConfig
from pipelines.shard import shard
from tests.evaluations import write_model

SIDE = 64


def quiet(_: str) -> None:
    """Takes the lines of a stage."""


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


def write_finished(folder: Path) -> None:
    """shards/, runs/first with a model, runs/first-val with its detections, results.json: what earlier commands left.

    Needs `write_data`, and a Ray that this process is connected to.
    """
    for split in ("train", "val"):
        config = ShardConfig(folder / f"instances_{split}.json", folder / split, folder / "shards" / split)
        shard(config, log=quiet)
    run, evaluation = folder / "runs" / "first", folder / "runs" / "first-val"
    run.mkdir(parents=True)
    write_model(run / "model.pt", folder / "shards" / "val")
    config = EvaluateConfig(run, folder / "shards" / "val", evaluation, actors=1, bootstrap=10,
                            tracking=f"sqlite:///{folder}/mlflow.db")  # fmt: skip
    evaluate(config, quiet)
    export(ExportConfig(evaluation, folder / "shards" / "val", folder / "exported"), quiet)
    results = json.loads((folder / "exported" / "segm.json").read_text())
    (folder / "results.json").write_text(json.dumps(results))
    shutil.rmtree(folder / "exported")


def copied(source: Path, target: Path, without: tuple[str, ...]) -> Path:
    """A folder like `source`, from which some things are missing that the document makes itself."""
    shutil.copytree(source, target)
    for name in without:
        shutil.rmtree(target / name)
    return target
