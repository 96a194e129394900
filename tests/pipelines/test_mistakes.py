"""What a newcomer gets wrong, and what the answer must say: what, where, what to do, in one line."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision

from msrcnn.config import SolverConfig
from msrcnn.detector import MaskScoringRCNN
from msrcnn.presets import PRESETS
from msrcnn.weights import save_model
from pipelines.cli import main
from pipelines.manifest import read_manifest
from pipelines.options import ShardConfig
from pipelines.shard import shard
from pipelines.train import falls
from tests.commands import ROOT
from tests.evaluations import write_model

pytestmark = pytest.mark.ray
TRAIN = "train --shards shards/train --run new "
SHARD = "shard --out new --images train --annotations "
EVALUATE = "evaluate --shards shards/val --out new --model "

MISTAKES = {
    # The command line.
    "no such command": ("trian", "'trian' is not a command; did you mean train?"),
    "options before the command": ("--shards s train", "--shards: the command comes before its options"),
    "nothing but the command": ("train", "--shards and --run are missing; msrcnn train --help"),
    "misspelt option": (TRAIN + "--weight w", "--weight: no option of msrcnn train; did you mean --weights?"),
    "option without its group": (TRAIN + "--lr 0.1", "--lr: no option of msrcnn train; did you mean --solver.lr?"),
    "option by another name": (TRAIN + "--batch-size 2", "did you mean --solver.batch?"),
    "option of another command": ("evaluate --preset demo", "--preset: no option of msrcnn evaluate"),
    "comma in a number": (TRAIN + "--solver.lr 0,02", "--solver.lr: could not convert string to float: '0,02'"),
    "value that is none of the choices": (TRAIN + "--model.backbone resnet34", "'resnet34' for argument '--model.ba"),
    "value for a switch": (TRAIN + "--gpu true", "--gpu takes no value (true); give --gpu or --no-gpu"),
    "no value": ("train --run new --shards", "Missing value for argument '--shards'"),
    "word too many": ("shapes here --out new", "Unrecognized options: here"),
    "misspelt preset": (TRAIN + "--preset r50", "--preset r50: no such preset; did you mean r50-fpn?"),
    "misspelt table": ("sweep tabel4 --shards shards/train --validation shards/val --out new",
                       "tabel4: no such sweep and no such file; did you mean table4?"),
    # Annotations and images.
    "no such annotation file": (SHARD + "nowhere.json", "nowhere.json: no such file; give the path of a COCO anno"),
    "folder for the annotation file": (SHARD + "used", "used: is a folder; give the path of a COCO annotation file"),
    "no such folder of images": ("shard --out new --annotations train.json --images trian",
                                 "trian: no such folder; give --images"),
    "images one level further down": ("shard --out new --annotations train.json --images .",
                                      "none of its 22 images is in", "it is in", "train: give that as --images"),
    "images one level further up": ("shard --out new --annotations deep.json --images train",
                                    "none of its 22 images is in", "it is in", "give that as --images"),
    "annotations of other images": ("shard --out new --annotations other.json --images train",
                                    "elsewhere-000001.jpg does not exist", "or --annotations the file of these images"),
    "no categories": (SHARD + "without-categories.json", "'categories' is missing; give an object with the lists"),
    "empty annotation file": (SHARD + "empty.json", "empty.json: the file is empty; get or write it again"),
    "half an annotation file": (SHARD + "half.json", "half.json: not valid JSON", "it may be truncated"),
    "results for annotations": (SHARD + "results.json", "results.json: holds COCO results, not a COCO annotation file"),
    "ids that are texts": (SHARD + "text-ids.json", "'id' is '1000001', expected an integer"),
    "boxes without masks": (SHARD + "boxes.json", "annotations can be used", "segmentation is absent", "not from box"),
    "polygons in fractions": (SHARD + "fractions.json", "annotations can be used", "mask without a pixel", "in pixels"),
    "images that are none": ("shard --out new --annotations train.json --images web/texts",
                             "none of its 22 images can be used", "not a readable image"),
    "folder that is in use": ("shard --out used --annotations train.json --images train", "used: is not empty; choose"),
    "same folder for another data set": ("shard --out shards/train --annotations val.json --images val",
                                         "already holds data set 'instances_train'; choose another --out"),
    # Shards.
    "annotation file for shards": ("data train.json", "train.json: is a file; give the folder that `msrcnn shard`"),
    "images for shards": ("data train", "train: no manifest.json; make shards with `msrcnn shard`"),
    "folder above the shards": ("data shards", "shards: no manifest.json; give", "shards/train, which has one"),
    "folder for the gallery": ("data shards/val --gallery 2 --out used", "used: cannot be written (Is a directory)"),
    "shards without objects": ("train --run new --preset demo --shards unlabelled",
                               "no image has an object, so there is nothing to learn"),
    # Weights.
    "from scratch with frozen layers": (TRAIN, "freeze what nothing has trained; give --weights, or train from"),
    "weights by half a name": (TRAIN + "--weights resnet18", "did you mean ResNet18_Weights.IMAGENET1K_V1?"),
    "misspelt weights": (TRAIN + "--weights ResNet18_Weights.IMAGENET", "did you mean ResNet18_Weights.IMAGENET1K_V1?"),
    "weights that are nowhere": (TRAIN + "--weights nowhere.pth", "nowhere.pth: no such file; give a file of weights"),
    "folder for weights": (TRAIN + "--weights shards", "shards: neither a run directory nor a model file"),
    "weights of Detectron2": (TRAIN + "--weights d2.pth", "d2.pth: weights of Detectron2", "`msrcnn score`"),
    "weights of MMDetection": (TRAIN + "--weights mmdet.pth", "mmdet.pth: weights of MMDetection", "`msrcnn score`"),
    "pickled weights": (TRAIN + "--weights d2.pkl", "d2.pkl: a pickle, which may run code"),
    "weights of another backbone": (TRAIN + "--weights resnet50.pth", "weights of this backbone (--preset chooses it)"),
    "weights for other categories": (TRAIN + "--preset demo --weights detector.pt", "is for 5 categories", "has 3"),
    # Training.
    "fewer images than a step": (TRAIN + "--solver.batch 64 --weights w", "22 images are fewer than --solver.batch 64"),
    "more workers than images a step": (TRAIN + "--preset demo --workers 8", "it must be at most --solver.batch (4)"),
    "more workers than CPUs": (TRAIN + "--preset demo --workers 4 --cpus 1", "ask for fewer, lower --cpus"),
    "GPU that is not there": (TRAIN + "--preset demo --gpu", "need 1 GPU, the Ray cluster has 0", "leave out --gpu"),
    "short side alone": (TRAIN + "--data.short-side 4000", "it must be at least data.short_side (4000); give both"),
    "run with other settings": ("train --preset demo --shards shards/train --run run",
                                "run: holds a run with other settings", "choose another --run or the same settings"),
    "run in a folder of other things": ("train --preset demo --shards shards/train --run used",
                                        "used: neither empty nor a run directory; choose another --run"),
    "run where nothing can be written": ("train --preset demo --shards shards/train --run /proc/new",
                                         "/proc/new: cannot be written", "choose another --run"),
    "no tracking server": (TRAIN + "--preset demo --tracking http://127.0.0.1:9", "MLflow at http://127.0.0.1:9: C"),
    # Evaluation.
    "no such model": (EVALUATE + "nowhere", "nowhere: neither a run directory nor a model file"),
    "model of another program": (EVALUATE + "resnet50.pth", "resnet50.pth: no model of msrcnn; give a run directory"),
    "model for other categories": (EVALUATE + "detector.pt", "its categories are not those of shards/val (5 where"),
    "training that has not ended": (EVALUATE + "begun", "begun: the training in it is not finished"),
    "evaluation that is there": ("evaluate --shards shards/val --model model.pt --out finished",
                                 "finished: already holds an evaluation; choose another --out or delete it"),
    "run for detections": ("score --shards shards/val --out new --detections run", "holds no detections; make them"),
    "annotations for results": ("score --shards shards/val --out new --detections val.json",
                                "val.json: holds no list, expected a JSON list of results"),
    # A cluster.
    "no address": ("jobs", "no cluster: give --address http://HOST:8265"),
    "path of this machine in a job": ("submit train --shards shards/train --run /shared/run",
                                      "--shards shards/train: on the cluster"),
}  # fmt: skip
"""What is done: the command, and the words that its answer must have."""


def annotation_files(folder: Path) -> None:
    """Annotation files with what people do to them."""
    train = json.loads((folder / "train.json").read_text())

    def write(name: str, **changed: Any) -> None:
        (folder / name).write_text(json.dumps({k: v for k, v in {**train, **changed}.items() if v is not None}))

    def renamed(change: Callable[[str], str]) -> list[dict[str, Any]]:
        return [{**image, "file_name": change(image["file_name"])} for image in train["images"]]

    write("without-categories.json", categories=None)
    write("deep.json", images=renamed(lambda name: f"train/{name}"))
    write("other.json", images=renamed(lambda name: f"elsewhere-{name}"))
    write("text-ids.json", images=[{**image, "id": str(image["id"])} for image in train["images"]])
    write("boxes.json", annotations=[{k: v for k, v in a.items() if k != "segmentation"} for a in train["annotations"]])
    thin = [[0.1, 0.1, 0.3, 0.1, 0.3, 0.3]]
    write("fractions.json", annotations=[{**a, "segmentation": thin} for a in train["annotations"]])
    (folder / "results.json").write_text(json.dumps([{"image_id": 1, "category_id": 3, "bbox": [0] * 4, "score": 1}]))
    (folder / "empty.json").write_text("")
    (folder / "half.json").write_text(json.dumps(train)[:999])
    (folder / "web" / "texts").mkdir(parents=True)
    for image in train["images"]:
        (folder / "web" / "texts" / image["file_name"]).write_text("an error page of a web server")


def weight_files(folder: Path) -> None:
    """Files that people take for weights, and one that is, for five categories."""
    tensor = torch.zeros(3)
    torch.save({"model": {"backbone.bottom_up.stem.conv1.weight": tensor}, "iteration": 1}, folder / "d2.pth")
    torch.save({"meta": {}, "state_dict": {"backbone.conv1.weight": tensor, "rpn_head.rpn_conv.weight": tensor}},
               folder / "mmdet.pth")  # fmt: skip
    (folder / "d2.pkl").write_bytes(b"\x80\x04}.")
    torch.save(torchvision.models.resnet50(weights=None).state_dict(), folder / "resnet50.pth")
    demo = PRESETS["demo"]
    names = [(c.number, c.source_id, c.name) for c in read_manifest(folder / "shards" / "val").categories]
    model = MaskScoringRCNN(replace(demo.model, num_classes=len(names) + 2))
    save_model(folder / "detector.pt", model, demo.data, [*names, (4, 100, "moon"), (5, 101, "comet")])


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, shards: Path, trained: Any) -> Path:
    """A folder of somebody who has data, shards, a training, and files of other programs."""
    folder = tmp_path_factory.mktemp("world")
    for split in ("train", "val"):
        shutil.copytree(shards / "images" / split, folder / split)
        shutil.copy(shards / "images" / "annotations" / f"instances_{split}.json", folder / f"{split}.json")
        shutil.copytree(shards / split, folder / "shards" / split)
    shutil.copytree(trained[0].run, folder / "run")
    for name in ("used", "begun", "finished"):
        (folder / name).mkdir()
    (folder / "used" / "notes.txt").write_text("mine")
    shutil.copy(folder / "run" / "run.json", folder / "begun" / "run.json")
    (folder / "finished" / "summary.json").write_text("{}")
    annotation_files(folder)
    weight_files(folder)
    write_model(folder / "model.pt", folder / "shards" / "val")
    unlabelled = json.loads((folder / "train.json").read_text()) | {"annotations": []}
    (folder / "unlabelled.json").write_text(json.dumps(unlabelled))
    shard(ShardConfig(folder / "unlabelled.json", folder / "train", folder / "unlabelled"), log=lambda _: None)
    return folder


@pytest.mark.parametrize(("command", "says"), [(c, says) for c, *says in MISTAKES.values()], ids=[*MISTAKES])
def test_the_answer_is_one_line_that_helps(command: str, says: list[str], world: Path, monkeypatch, capfd) -> None:
    monkeypatch.chdir(world)
    for name in ("MLFLOW_TRACKING_URI", "RAY_API_SERVER_ADDRESS", "RAY_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(world / "config"))
    monkeypatch.setattr(sys, "argv", ["msrcnn", *command.split()])
    before = {path.name for path in world.iterdir()}
    with pytest.raises(SystemExit) as ended:
        main()
    said = capfd.readouterr().err
    assert ended.value.code == 2
    assert said.startswith("msrcnn: ")
    assert said.count("\n") == 1, said
    for words in says:
        assert words in said
    left = {path.name for path in world.iterdir()} - before - {"mlflow.db"}
    assert left <= {"new"}
    assert not any((world / "new" / name).exists() for name in ("manifest.json", "model.pt", "summary.json"))
    shutil.rmtree(world / "new", ignore_errors=True)


def test_without_arguments_the_commands_are_listed(monkeypatch, capsys) -> None:
    monkeypatch.setattr(sys, "argv", ["msrcnn"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert "usage: msrcnn" in capsys.readouterr().out


def test_a_training_says_where_it_begins_and_at_which_learning_rate(trained: Any) -> None:
    """Which shows a mistyped --run, which begins anew, a rate that was scaled twice, and one that never falls."""
    config, lines = trained
    headline = next(line for line in lines if line.startswith("training "))
    assert "steps of 4 images" in headline
    assert f"at learning rate {config.solver.lr * 4 / 16:g}, falling after epoch 1 of 2; " in headline
    assert headline.endswith(f"; run directory {config.run}")
    assert falls(SolverConfig()) == "falling after epoch 14 and 17 of 18"
    assert falls(SolverConfig(epochs=16)) == "falling after epoch 14 of 16"
    assert falls(SolverConfig(epochs=12)) == "which never falls (--solver.decay-epochs 14 17 in 12 epochs)"
    assert falls(SolverConfig(decay_epochs=())) == "which never falls"
    assert "2 workers begin at step 0" in lines


def test_python_that_is_too_old_is_named(tmp_path: Path) -> None:
    for name in ("Makefile", "requirements.lock", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path / name)
    old = tmp_path / "python3.8"
    old.write_text("#!/bin/sh\nexit 1\n")  # as an old one answers to the question of its version
    old.chmod(0o755)
    done = subprocess.run(["make", "setup", f"PYTHON={old}"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert f"{old} is older than 3.11; run make with PYTHON=/path/to/a/newer/python3" in done.stderr
    assert not (tmp_path / ".venv").exists()
