"""What a training begins with."""

from __future__ import annotations

import re
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torchvision

from msrcnn.config import DataConfig, ModelConfig, SolverConfig
from msrcnn.detector import MaskScoringRCNN
from msrcnn.errors import InputError
from msrcnn.presets import Preset, for_ap
from msrcnn.weights import save_model
from pipelines import train_setup
from pipelines.job import Job
from pipelines.options import TrainConfig
from pipelines.train_setup import check_resources, initial_model, pretrained_model
from tests.training_runs import SMALL

CATEGORIES = ((1, 1, "disk"), (2, 2, "square"), (3, 3, "star"))


@pytest.fixture
def finished(tmp_path: Path) -> tuple[Path, MaskScoringRCNN]:
    """A file of a detector with the paper's head, and its model."""
    torch.manual_seed(5)
    model = MaskScoringRCNN(SMALL)
    save_model(tmp_path / "model.pt", model, DataConfig(64, 64), CATEGORIES)
    return tmp_path / "model.pt", model


def begun(file: Path, model: ModelConfig) -> tuple[MaskScoringRCNN, list[str]]:
    """What a training of `model` with seed 7 begins with, and its lines."""
    lines: list[str] = []
    return pretrained_model(str(file), job_of(model), lines.append), lines


def job_of(model: ModelConfig) -> Job:
    solver = replace(SolverConfig(), seed=7)
    return Job(model, solver, DataConfig(64, 64), CATEGORIES, 8, 2, 4, 0, 1, False, 60.0, "run", None)


def same(one: MaskScoringRCNN, other: MaskScoringRCNN, head: bool) -> bool:
    """Whether the MaskIoU head's tensors, or all others, are equal."""
    left, right = one.state_dict(), other.state_dict()
    names = [name for name in left if name.startswith("maskiou.") == head]
    assert names
    return all(name in right and torch.equal(left[name], right[name]) for name in names)


def test_a_head_of_another_kind_begins_anew(finished: tuple[Path, MaskScoringRCNN]) -> None:
    """A MaskIoU of 0.7 would be read as a logit; studies begin with random weights too."""
    file, paper = finished
    config = for_ap(Preset(SMALL, SolverConfig(), DataConfig())).model
    model, lines = begun(file, config)
    torch.manual_seed(7)
    assert same(model, MaskScoringRCNN(config), head=True)
    assert same(model, paper, head=False)
    assert "the MaskIoU head begins with random weights: that of those given is of another kind" in lines


def test_a_head_of_the_same_kind_goes_on(finished: tuple[Path, MaskScoringRCNN]) -> None:
    file, paper = finished
    model, lines = begun(file, replace(SMALL, trained="maskiou"))
    assert same(model, paper, head=True)
    assert not any("random" in line for line in lines)


def test_a_further_head_that_ranks_by_another_power_goes_on(tmp_path: Path) -> None:
    worth = "tau=-1,rois=detections,loss=bce,goal=ap"
    torch.manual_seed(5)
    model = MaskScoringRCNN(replace(SMALL, heads=(worth, "input=b")))
    save_model(tmp_path / "model.pt", model, DataConfig(64, 64), CATEGORIES)
    again, lines = begun(tmp_path / "model.pt", replace(SMALL, heads=("input=b", f"{worth},power=4")))
    assert not any("random" in line for line in lines)
    weights = model.state_dict()
    for name, tensor in again.state_dict().items():
        place = name.replace("heads.0.", "heads.x.").replace("heads.1.", "heads.0.").replace("heads.x.", "heads.1.")
        assert torch.equal(tensor, weights[place]), name


def test_a_mask_rcnn_s_epsilon_is_the_one_that_is_given(tmp_path: Path) -> None:
    variance = torch.linspace(0.1, 1, 64)
    torch.save({"roi_heads.x": torch.zeros(1), "backbone.body.bn1.running_var": variance}, tmp_path / "mask_rcnn.pth")
    given = {"shards": "shards", "run": "run", "weights": str(tmp_path / "mask_rcnn.pth")}
    for eps, line in ((None, "is 1e-05, torchvision's default; fine-tuned"), (0.0, "is 0, as given")):
        lines: list[str] = []
        model = initial_model(
            TrainConfig(**given, weights_eps=eps), job_of(replace(SMALL, norm="sync_bn")), lines.append
        )
        assert model is not None
        held = model.backbone.trunk.bn1.running_var
        torch.testing.assert_close(held, variance - 1e-5 * (eps == 0.0), rtol=0, atol=1e-7)
        assert any(line in one for one in lines)
    with pytest.raises(InputError, match=r"--weights-eps = 0\.0 is not accepted; it must be 0 or more, with --weights"):
        TrainConfig(shards="shards", run="run", weights_eps=0.0)


def test_weights_of_another_depth_are_refused(tmp_path: Path) -> None:
    """All tensors of a ResNet-50 fit into a ResNet-101, whose other 17 blocks would stay random and frozen."""
    file = tmp_path / "resnet50.pth"
    weights = torchvision.models.resnet50(weights=None).state_dict()
    torch.save(weights, file)
    deep = replace(SMALL, backbone="resnet101", norm="frozen_bn", frozen_stages=2)
    with pytest.raises(InputError) as error:
        begun(file, deep)
    assert str(error.value).startswith(f"{file}: lacks backbone.trunk.layer3.6.bn1.")
    assert str(error.value).endswith("give weights of a resnet101")
    torch.save({name: tensor for name, tensor in weights.items() if name != "layer4.0.conv1.weight"}, file)
    begun(file, replace(deep, backbone="resnet50"))  # that one trains
    torch.save({name: tensor for name, tensor in weights.items() if name != "layer1.0.conv1.weight"}, file)
    with pytest.raises(InputError, match=r"lacks backbone\.trunk\.layer1\.0\.conv1\.weight and 0 more"):
        begun(file, replace(deep, backbone="resnet50"))


@pytest.mark.parametrize(
    ("nodes", "workers", "cpus", "refusal"),
    [
        ([4.0, 4.0], "1:8", 4.0, "2 workers of {'CPU': 4.0} leave no CPU for their readers; lower --cpus by 0.2"),
        ([4.0], "1:8", 4.0, "with their readers they need 4.2 CPU, the Ray cluster has 4;"),
        ([9.0], "1:20", 0.0, "20 workers of {'CPU': 0.45} leave no CPU for their readers"),
        ([4.0, 4.0], "1:8", 3.8, None),
        ([4.0, 4.0], "1:1", 4.0, None),  # no more than were asked for
        ([4.0, 4.0, 0.2], "1:8", 4.0, None),
        ([33.0, 0.2], "30", 1.1, None),  # in floating point 29
        ([3.0, 3.0], "1:2", 3.5, "nodes have too little each for {'CPU': 3.5} a worker and their readers"),
    ],
)
def test_workers_and_their_readers_are_counted_by_node(monkeypatch, nodes, workers, cpus, refusal):
    """An elastic group takes all that the nodes hold: without a place for readers its first step never comes."""
    monkeypatch.setattr("ray.cluster_resources", lambda: {"CPU": sum(nodes)})
    monkeypatch.setattr("ray.nodes", lambda: [{"Alive": True, "Resources": {"CPU": cpus}} for cpus in nodes])
    solver = replace(SolverConfig(), batch=64)
    config = TrainConfig("shards", "run", workers=workers, cpus=cpus, solver=solver)
    with pytest.raises(InputError, match=re.escape(refusal)) if refusal else nullcontext():
        check_resources(config)


@pytest.mark.parametrize(
    ("limit", "expected"), [("max 100000", 8), ("350000 100000", 3), ("50000 100000", 1), (None, 8)]
)
def test_processors_are_those_that_a_container_may_use(monkeypatch, tmp_path, limit, expected):
    monkeypatch.setattr(train_setup.os, "sched_getaffinity", lambda _: {*range(8)})
    monkeypatch.setattr(train_setup, "QUOTA", tmp_path / "cpu.max")
    if limit is not None:
        (tmp_path / "cpu.max").write_text(f"{limit}\n")
    assert train_setup.processors() == expected
