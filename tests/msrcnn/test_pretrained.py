"""Weights from elsewhere end up where they belong, and what cannot is said."""

from __future__ import annotations

import hashlib
import re
import shutil
from argparse import Namespace
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision.models import resnet18, resnet50
from torchvision.models.detection import MaskRCNN
from torchvision.models.detection._utils import overwrite_eps
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.rpn import RPNHead
from torchvision.ops import FrozenBatchNorm2d

from msrcnn import pretrained
from msrcnn.config import DataConfig, ModelConfig
from msrcnn.detector import MaskScoringRCNN
from msrcnn.errors import InputError
from msrcnn.pretrained import COCO, load_weights
from msrcnn.weights import save_model
from tests.pickles import Evil

WIDTH, HIDDEN = 32, 16
CONFIG = ModelConfig(
    levels=(2, 3, 4, 5), anchor_sizes=((32,), (64,), (128,), (256,), (512,)), channels=WIDTH, hidden=HIDDEN,
    num_classes=3,
)  # fmt: skip
ANIMALS = ["person", "dog", "zebra"]
COCO_IDS = [1, 18, 24]
"""Their ids in COCO's annotations, which are torchvision's labels."""


def make_model(config: ModelConfig = CONFIG) -> MaskScoringRCNN:
    torch.manual_seed(1)
    return MaskScoringRCNN(config).eval()


def make_mask_rcnn(labels: int) -> MaskRCNN:
    """torchvision's Mask R-CNN, but narrow and on a ResNet-18."""
    torch.manual_seed(0)
    stages = {f"layer{i}": str(i - 1) for i in (1, 2, 3, 4)}
    backbone = BackboneWithFPN(resnet18(norm_layer=FrozenBatchNorm2d), stages, [64, 128, 256, 512], WIDTH)
    model = MaskRCNN(
        backbone, rpn_head=RPNHead(WIDTH, 3), box_head=TwoMLPHead(WIDTH * 49, HIDDEN),
        box_predictor=FastRCNNPredictor(HIDDEN, labels), mask_head=MaskRCNNHeads(WIDTH, [WIDTH] * 4, 1),
        mask_predictor=MaskRCNNPredictor(WIDTH, WIDTH, labels),
    )  # fmt: skip
    for module in model.modules():
        if isinstance(module, FrozenBatchNorm2d):
            module.running_var.uniform_(1e-4, 2e-4)
            module.weight.uniform_(0.005, 0.01)
    return model.eval()


def old_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The names of torchvision's published COCO file, from before 0.13."""
    state = {re.sub(r"(_blocks\.\d)\.0\.", r"\1.", name): tensor for name, tensor in state.items()}
    state = {name.replace("rpn.head.conv.0.0.", "rpn.head.conv."): tensor for name, tensor in state.items()}
    return {
        re.sub(r"mask_head\.(\d)\.0\.", lambda m: f"mask_head.mask_fcn{int(m[1]) + 1}.", name): tensor
        for name, tensor in state.items()
    }


def save(path: Path, state: dict[str, Any]) -> str:
    torch.save(dict(state), path)
    return str(path)


@pytest.mark.parametrize("old", [False, True])
def test_mask_rcnn_of_as_many_categories(old: bool, tmp_path: Path) -> None:
    theirs, ours = make_mask_rcnn(4), make_model()
    state = dict(theirs.state_dict())
    if old:
        state = old_names(state)
        assert state.keys() != theirs.state_dict().keys()
        theirs.load_state_dict(dict(state))  # torchvision reads them so as well
    report = load_weights(ours, save(tmp_path / "w.pth", state), ["a", "b", "c"])
    assert report.kind == "torchvision Mask R-CNN"
    assert report.left_over == ()
    assert {name.split(".")[0] for name in report.missing} == {"maskiou"}
    assert len(report.matched) == len(state)
    heads = theirs.roi_heads
    same = [
        (ours.backbone.trunk.layer3[1].conv2.weight, theirs.backbone.body.layer3[1].conv2.weight),
        (ours.backbone.fpn.layer_blocks[2][0].weight, theirs.backbone.fpn.layer_blocks[2][0].weight),
        (ours.rpn.head.deltas.bias, theirs.rpn.head.bbox_pred.bias),
        (ours.box.fc2.weight, heads.box_head.fc7.weight),
        (ours.mask.convs[3].weight, heads.mask_head[3][0].weight),
        (ours.mask.deconv.weight, heads.mask_predictor.conv5_mask.weight),
        (ours.mask.logits.weight, heads.mask_predictor.mask_fcn_logits.weight[1:]),
    ]
    for got, want in same:
        assert torch.equal(got, want)


def test_of_coco_labels_the_categories_pick_theirs_by_name(tmp_path: Path) -> None:
    theirs, ours = make_mask_rcnn(91), make_model()
    load_weights(ours, save(tmp_path / "w.pth", theirs.state_dict()), ANIMALS)
    heads = theirs.roi_heads
    x, feature = torch.randn(5, HIDDEN), torch.randn(2, WIDTH, 14, 14)
    with torch.no_grad():
        want, deltas = heads.box_predictor(x)
        assert torch.allclose(ours.box.score(x), want[:, [0, *COCO_IDS]], atol=1e-6)
        got = ours.box.deltas(x).unflatten(1, (-1, 4))
        assert torch.allclose(got, deltas.unflatten(1, (-1, 4))[:, [0, *COCO_IDS]], atol=1e-6)
        masks = heads.mask_predictor(heads.mask_head(feature))
        assert torch.allclose(ours.mask(feature), masks[:, COCO_IDS], atol=1e-5)


def test_other_categories_do_not_fit_coco_labels(tmp_path: Path) -> None:
    path, ours = save(tmp_path / "w.pth", make_mask_rcnn(91).state_dict()), make_model()
    before = {name: tensor.clone() for name, tensor in ours.state_dict().items()}
    with pytest.raises(InputError, match=r"w\.pth: is for 90 categories, this data set has 3 \(box\.score"):
        load_weights(ours, path, ["disc", "ring", "star"])
    assert all(torch.equal(tensor, before[name]) for name, tensor in ours.state_dict().items())


def test_batch_norm_has_the_epsilon_that_it_was_trained_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """torchvision sets it to 0 for its COCO weights; what these are is told by their checksum, whatever the name."""
    assert re.fullmatch("[0-9a-f]{8}", pretrained.COCO_CHECKSUM)
    theirs, ours, published = make_mask_rcnn(4), make_model(), Path(COCO.url).name
    file = tmp_path / "hub" / "checkpoints" / published  # where torchvision keeps what it has downloaded
    file.parent.mkdir(parents=True)
    save(file, theirs.state_dict())
    shutil.copy(file, tmp_path / "mask_rcnn.pth")
    x, trunks = torch.randn(1, 3, 64, 64), {}
    with torch.no_grad():
        for eps in (1e-5, 0.0, 1e-3):
            overwrite_eps(theirs, eps)
            trunks[eps] = theirs.backbone.body(x)["3"]
    assert (trunks[1e-5] - trunks[0.0]).abs().max() > 1e-2 * trunks[0.0].std()

    def check(source: str, eps: float, says: str, given: float | None = None) -> None:
        report = load_weights(ours, source, ["a", "b", "c"], given)
        with torch.no_grad():
            got = ours.backbone.trunk(x)[-1]
        want = trunks[eps]
        torch.testing.assert_close(got, want, rtol=1e-3, atol=float(1e-4 * want.std()))
        assert report.lines()[1].startswith(f"  BatchNorm's eps is {eps:g}, {says}")

    check(
        str(file), 1e-5, "torchvision's default; fine-tuned from its published weights it would be 0: --weights-eps 0"
    )
    check(str(file), 0.0, "as given", 0.0)
    check(str(file), 1e-3, "as given", 1e-3)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    check("MaskRCNN_ResNet50_FPN_Weights.DEFAULT", 0.0, "as torchvision runs its published weights")
    monkeypatch.setattr(pretrained, "COCO_CHECKSUM", hashlib.sha256(file.read_bytes()).hexdigest()[:8])
    check(str(tmp_path / "mask_rcnn.pth"), 0.0, "as torchvision runs its published weights, which these are")


def test_an_epsilon_is_refused_where_there_is_no_mask_rcnn_s_batch_norm(tmp_path: Path) -> None:
    resnet, mask_rcnn = {"conv1.weight": torch.zeros(64, 3, 7, 7)}, {"roi_heads.box_head.fc6.bias": torch.zeros(HIDDEN)}
    for state, norm in ((resnet, "frozen_bn"), (mask_rcnn, "group_norm")):
        ours = make_model(replace(CONFIG, norm=norm))
        with pytest.raises(InputError, match=r"w\.pth: --weights-eps is for a torchvision Mask R-CNN's BatchNorm, "):
            load_weights(ours, save(tmp_path / "w.pth", state), ANIMALS, 0.0)
        report = load_weights(ours, save(tmp_path / "w.pth", state), ANIMALS)
        assert not any("BatchNorm's eps" in line for line in report.lines())


def some_resnet18() -> dict[str, Tensor]:
    torch.manual_seed(0)
    net = resnet18()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight.data, module.bias.data, module.running_mean, module.running_var):
                tensor.uniform_(0.5, 1.5)
    return net.state_dict()


@pytest.mark.parametrize("norm", ["frozen_bn", "sync_bn"])
def test_resnet_weights(norm: str, tmp_path: Path) -> None:
    state, ours = some_resnet18(), make_model(replace(CONFIG, norm=norm))
    report = load_weights(ours, save(tmp_path / "r.pth", state), ANIMALS)
    assert report.kind == "torchvision ResNet"
    assert report.left_over == ("backbone.trunk.fc.weight", "backbone.trunk.fc.bias")
    assert not any(name.startswith("backbone.trunk") for name in report.missing)
    own = ours.backbone.trunk.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in own.items())
    assert len(own) == len(report.matched)
    lines = report.lines()
    assert lines[0].endswith(f"r.pth (torchvision ResNet): {len(own)} tensors matched")
    assert "box.fc1 (2)" in lines[1]
    assert "fc.weight" in lines[2]


def test_group_norm_takes_the_convolutions_alone(tmp_path: Path) -> None:
    state, ours = some_resnet18(), make_model(replace(CONFIG, norm="group_norm"))
    report = load_weights(ours, save(tmp_path / "r.pth", state), ANIMALS)
    trunk = ours.backbone.trunk
    assert torch.equal(trunk.layer1[0].conv1.weight, state["layer1.0.conv1.weight"])
    assert torch.equal(trunk.layer1[0].bn1.weight, torch.ones(64))
    assert "backbone.trunk.layer1.0.bn1.weight (BatchNorm)" in report.left_over
    assert "backbone.trunk.layer1.0.bn1.weight" in report.missing


def test_deformable_layers_take_the_ordinary_ones_weights(tmp_path: Path) -> None:
    state, ours = some_resnet18(), make_model(replace(CONFIG, deformable=True))
    report = load_weights(ours, save(tmp_path / "r.pth", state), ANIMALS)
    assert torch.equal(ours.backbone.trunk.layer4[1].conv2.weight, state["layer4.1.conv2.weight"])
    missing = {name for name in report.missing if name.startswith("backbone.trunk")}
    layers = [f"layer4.{block}.conv{i}.offset.{end}" for block in (0, 1) for i in (1, 2) for end in ("weight", "bias")]
    assert missing == {f"backbone.trunk.{name}" for name in layers}


@pytest.mark.parametrize("norm", ["frozen_bn", "sync_bn", "group_norm"])
def test_a_part_with_batch_norm_folded_in(norm: str, data_dir: Path) -> None:
    """The 3x3 convolutions of the last stage are absent; frozen BatchNorm alone can use the rest."""
    path, ours = data_dir / "resnet18_imagenet_partial.pth", make_model(replace(CONFIG, norm=norm))
    if norm != "frozen_bn":
        with pytest.raises(InputError, match=rf"BatchNorm is folded .* model\.norm = '{norm}' .* use frozen_bn"):
            load_weights(ours, str(path), ANIMALS)
        return
    report = load_weights(ours, str(path), ANIMALS)
    missing = {name for name in report.missing if name.startswith("backbone.trunk")}
    assert missing == {f"backbone.trunk.layer4.{block}.conv{i}.weight" for block in (0, 1) for i in (1, 2)}
    assert report.left_over == ("backbone.trunk.fc.weight", "backbone.trunk.fc.bias")


def test_a_checkpoint_of_another_run(tmp_path: Path) -> None:
    torch.manual_seed(5)
    source, ours = MaskScoringRCNN(CONFIG), make_model()
    names = [(k, k, name) for k, name in enumerate(ANIMALS, 1)]
    save_model(tmp_path / "model.pt", source, DataConfig(), names)
    report = load_weights(ours, str(tmp_path / "model.pt"), ANIMALS)
    assert (report.kind, report.missing, report.left_over) == ("msrcnn checkpoint", (), ())
    assert all(torch.equal(tensor, ours.state_dict()[name]) for name, tensor in source.state_dict().items())


def wrapped(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """As DistributedDataParallel names them."""
    return {f"module.{name}": tensor for name, tensor in state.items()}


def of_torchvision_s_script(state: dict[str, Tensor]) -> dict[str, Any]:
    """What references/detection/train.py stores after an epoch."""
    net = nn.Linear(2, 1)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.02, momentum=0.9)
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, [16, 22])
    net(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    schedule.step()
    args = Namespace(model="maskrcnn_resnet50_fpn", lr=0.02, lr_steps=[16, 22], opt=None, distributed=False)
    rest = {"optimizer": optimizer.state_dict(), "lr_scheduler": schedule.state_dict(), "args": args, "epoch": 0}
    return {"model": state, **rest, "scaler": {"scale": 65536.0, "_growth_tracker": 0}}


def test_what_training_scripts_store_is_what_its_state_dict_is(tmp_path: Path) -> None:
    ours, state = make_model(), make_mask_rcnn(4).state_dict()
    initial = {name: tensor.clone() for name, tensor in ours.state_dict().items()}
    plain = load_weights(ours, save(tmp_path / "plain.pth", state), ["a", "b", "c"])
    assert len(plain.matched) == len(state)
    want = {name: tensor.clone() for name, tensor in ours.state_dict().items()}
    stored = {
        "reference": of_torchvision_s_script(state),
        "reference, wrapped": of_torchvision_s_script(wrapped(state)),
        "tutorial": {"epoch": 3, "model_state_dict": state, "loss": torch.tensor(0.4)},
        "state_dict": {"state_dict": wrapped(state), "meta": {"epoch": 3}},
        "wrapped": wrapped(state),
    }
    for form, value in stored.items():
        ours.load_state_dict(initial)
        report = load_weights(ours, save(tmp_path / "w.pth", value), ["a", "b", "c"])
        names = (report.matched, report.missing, report.left_over)
        assert names == (plain.matched, plain.missing, plain.left_over), form
        assert all(torch.equal(tensor, want[name]) for name, tensor in ours.state_dict().items()), form


def test_what_holds_no_state_dict_that_is_meant_is_refused(tmp_path: Path) -> None:
    marker, ours = tmp_path / "executed", make_model()
    state = {f"{layer}1.{end}": torch.zeros(1) for layer in ("conv", "bn") for end in ("weight", "bias")}
    half = {name if name.endswith("bias") else f"module.{name}": tensor for name, tensor in state.items()}
    cases = {
        "partly wrapped": (half, r"neither a checkpoint .*, by its names \(module\.conv1\.weight, conv1\.bias\)"),
        "two": ({"model": state, "state_dict": state}, r"holds tensors in 'model' and in 'state_dict'; save the ones"),
        "not only tensors": ({"model": {**state, "note": "best"}, "epoch": 3},
                             r"holds no tensors by name, neither .* \(it holds 'model', 'epoch'\); save the model's"),
        "nothing": ({}, r"holds no tensors by name, .* \(it holds nothing\); save the model's state_dict by itself"),
        "a path in its options": ({"model": state, "args": Namespace(out=PurePosixPath("runs"))},
                                  r"not weights \(it holds a pathlib\.[\w.]*PurePosixPath, and .*\); save the model's"),
        "a whole model": ({"model": nn.Linear(1, 1)}, r"not weights \(it holds a torch\.nn\.[\w.]*Linear, and "),
        "code": ({"model": state, "args": Evil(marker)}, "not weights "),
        "code in its options": ({"model": state, "args": Namespace(out=Evil(marker))}, "not weights "),
    }  # fmt: skip
    for name, (stored, message) in cases.items():
        torch.save(stored, tmp_path / "odd.pth")
        with pytest.raises(InputError, match=rf"odd\.pth: {message}") as caught:
            load_weights(ours, str(tmp_path / "odd.pth"), ANIMALS)
        assert "\n" not in str(caught.value), name
    assert not marker.exists()


def test_what_is_refused(tmp_path: Path) -> None:
    ours = make_model()
    cases = [
        (str(tmp_path / "none.pth"), r"none\.pth: no such file; give a file of weights, or one of"),
        ("ResNet50_Weights.NONE", "torchvision has no weights of this name"),
        ("ResNet19_Weights.DEFAULT", "torchvision has no weights of this name"),
        (save(tmp_path / "other.pth", {"encoder.weight": torch.zeros(3)}), "neither a checkpoint of msrcnn nor"),
        (save(tmp_path / "r50.pth", resnet50().state_dict()), r"r50\.pth: backbone\.trunk\.layer1\.0\.conv1\.weight"),
    ]
    for source, message in cases:
        with pytest.raises(InputError, match=message) as caught:
            load_weights(ours, source, ANIMALS)
        assert "\n" not in str(caught.value)
