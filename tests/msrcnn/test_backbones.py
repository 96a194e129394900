"""Trunk and pyramid: shapes, strides, what is frozen, and that padding does not count."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torchvision.models import resnet18
from torchvision.ops import FrozenBatchNorm2d

from msrcnn.backbones import Backbone
from msrcnn.config import ModelConfig

HEIGHT, WIDTH = 96, 128


def make_backbone(levels: tuple[int, ...] = (4, 5), pooled: bool = False, **options: object) -> Backbone:
    torch.manual_seed(0)
    sizes = tuple((32,) for _ in range(len(levels) + pooled))
    return Backbone(ModelConfig(levels=levels, anchor_sizes=sizes, channels=32, **options))  # type: ignore[arg-type]


def pixels(images: int = 2) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (images, 3, HEIGHT, WIDTH), dtype=torch.uint8, generator=generator)


FULL = torch.tensor([[HEIGHT, WIDTH], [HEIGHT, WIDTH]]).float()


@pytest.mark.parametrize(
    ("levels", "pooled", "strides"),
    [
        ((4, 5), False, [16, 32]),
        ((2, 3, 4, 5), False, [4, 8, 16, 32]),
        ((2, 3, 4, 5), True, [4, 8, 16, 32, 64]),
        ((3, 4), False, [8, 16]),
    ],
)
def test_shapes_and_strides(levels: tuple[int, ...], pooled: bool, strides: list[int]) -> None:
    backbone = make_backbone(levels, pooled, norm="group_norm", frozen_stages=0)
    assert backbone.strides == strides
    maps = backbone(pixels(), FULL)
    assert [tuple(m.shape) for m in maps] == [(2, 32, -(-HEIGHT // s), -(-WIDTH // s)) for s in strides]


def test_stages_beyond_the_last_level_do_not_exist() -> None:
    names = {name.split(".")[1] for name, _ in make_backbone((3, 4)).named_parameters() if name.startswith("trunk")}
    assert "layer3" in names
    assert "layer4" not in names


def test_trunk_equals_torchvision_resnet() -> None:
    """Same names, so that ImageNet weights load; same features of an image normalised as torchvision does it."""
    backbone = make_backbone((2, 3, 4, 5))
    net = resnet18(norm_layer=FrozenBatchNorm2d).eval()
    missing = backbone.trunk.load_state_dict(net.state_dict(), strict=False)
    assert not missing.missing_keys
    assert missing.unexpected_keys == ["fc.weight", "fc.bias"]
    images = pixels(1)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    x = (images.float() / 255 - mean.view(3, 1, 1)) / std.view(3, 1, 1)  # [1, 3, H, W]
    got: list[Tensor] = []
    backbone.fpn.register_forward_pre_hook(lambda _, inputs: got.extend(inputs[0].values()))
    backbone(images, FULL[:1])
    y = net.maxpool(net.relu(net.bn1(net.conv1(x))))
    for name, feature in zip(("layer1", "layer2", "layer3", "layer4"), got, strict=True):
        y = getattr(net, name)(y)
        torch.testing.assert_close(feature, y, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("norm", ["frozen_bn", "group_norm"])
@pytest.mark.parametrize("frozen", [0, 1, 2, 4])
def test_frozen_stages_get_no_gradient_and_all_others_do(norm: str, frozen: int) -> None:
    backbone = make_backbone(norm=norm, frozen_stages=frozen)
    sum(m.square().mean() for m in backbone(pixels(), FULL)).backward()
    parts = [("conv1", "bn1"), ("layer1",), ("layer2",), ("layer3",), ("layer4",)]
    still = {name for part in parts[:frozen] for name in part}
    seen = set()
    for name, p in backbone.named_parameters():
        part = name.split(".")[1] if name.startswith("trunk.") else "fpn"
        seen.add(part)
        assert (p.grad is None) == (part in still), name
        assert p.requires_grad == (part not in still), name
    assert still & seen == still - ({"bn1"} if norm == "frozen_bn" else set())


def test_norm_layers() -> None:
    kinds = {type(m) for m in make_backbone(norm="frozen_bn").modules()}
    assert FrozenBatchNorm2d in kinds
    assert nn.BatchNorm2d not in kinds
    kinds = {type(m) for m in make_backbone(norm="group_norm").modules()}
    assert nn.GroupNorm in kinds
    assert not {FrozenBatchNorm2d, nn.BatchNorm2d} & kinds


def test_what_lies_in_the_padding_changes_nothing() -> None:
    backbone = make_backbone(norm="group_norm", frozen_stages=0).eval()
    sizes = torch.tensor([[70.0, 101], [96, 33]])
    images = pixels()
    other = images.clone()
    for b, (h, w) in enumerate(sizes.int().tolist()):
        other[b, :, h:] = 255 - other[b, :, h:]
        other[b, :, :, w:] = 17
    inside = images.clone()
    inside[0, :, 69, 100] ^= 0xFF  # the last pixel of the image
    with torch.no_grad():
        want, got, changed = (backbone(i, sizes) for i in (images, other, inside))
    for a, b, c in zip(want, got, changed, strict=True):
        assert torch.equal(a, b)
        assert not torch.equal(a[0], c[0])
