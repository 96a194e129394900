"""Trunk and pyramid: shapes, strides, what is frozen, and that padding does not count."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torchvision.models import resnet
from torchvision.ops import FrozenBatchNorm2d

from msrcnn.backbones import Backbone, FrozenBatchNorm
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


@pytest.mark.parametrize("name", ["resnet18", "resnet50", "resnet101"])
def test_trunk_equals_torchvision_resnet(name: str) -> None:
    """Same names, so that ImageNet weights load; same features of an image normalised as torchvision does it."""
    backbone = make_backbone((2, 3, 4, 5), backbone=name)
    net = resnet.__dict__[name](norm_layer=FrozenBatchNorm2d).eval()
    for key, module in net.named_modules():
        if key.endswith("bn3"):  # the last of a bottleneck: so a deep random network's features stay small
            module.weight.fill_(0.2)
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


@pytest.mark.parametrize("norm", ["frozen_bn", "sync_bn", "group_norm"])
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
    assert FrozenBatchNorm in kinds
    assert nn.BatchNorm2d not in kinds
    kinds = {type(m) for m in make_backbone(norm="group_norm").modules()}
    assert nn.GroupNorm in kinds
    assert not {FrozenBatchNorm, nn.BatchNorm2d} & kinds
    backbone = make_backbone(norm="sync_bn", frozen_stages=0)
    kinds = {type(m) for m in backbone.modules()}
    assert nn.BatchNorm2d in kinds
    assert not {FrozenBatchNorm, nn.GroupNorm} & kinds
    assert any(isinstance(m, nn.BatchNorm2d) for m in backbone.fpn.modules())


def test_batch_norm_of_frozen_stages_keeps_its_statistics() -> None:
    """Also once the layers are exchanged for synchronised ones, as GPU workers do."""
    backbone = make_backbone(norm="sync_bn", frozen_stages=2)
    before = {name: tensor.clone() for name, tensor in backbone.state_dict().items()}
    backbone.train()(pixels(), FULL)
    changed = {n.split(".")[1] for n, t in backbone.state_dict().items() if not torch.equal(t, before[n])}
    assert changed & {"conv1", "bn1", "layer1", "layer2", "layer3"} == {"layer2", "layer3"}
    exchanged = nn.SyncBatchNorm.convert_sync_batchnorm(backbone).train()
    assert not exchanged.trunk.bn1.training
    assert not any(m.training for m in exchanged.trunk.layer1.modules())
    assert exchanged.trunk.layer2[0].bn1.training
    assert exchanged.state_dict().keys() == before.keys()


@pytest.mark.parametrize(("name", "layers"), [("resnet18", 4), ("resnet50", 3)])
def test_deformable_convolutions_begin_as_ordinary_ones(name: str, layers: int) -> None:
    plain = make_backbone((4, 5), backbone=name, norm="group_norm", frozen_stages=0)
    deformable = make_backbone((4, 5), backbone=name, norm="group_norm", frozen_stages=0, deformable=True)
    left = deformable.load_state_dict(plain.state_dict(), strict=False)
    assert not left.unexpected_keys
    assert len(left.missing_keys) == 2 * layers
    assert all(key.startswith("trunk.layer4.") and ".offset." in key for key in left.missing_keys)
    want, got = plain(pixels(), FULL), deformable(pixels(), FULL)
    for a, b in zip(want, got, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
    got[1].square().mean().backward()
    offsets = [p for key, p in deformable.named_parameters() if ".offset." in key]
    assert all(p.grad is not None and p.grad.any() for p in offsets)
    with torch.no_grad():
        for p in offsets:
            p.add_(0.3)
        moved = deformable(pixels(), FULL)
    assert (moved[1] - got[1]).abs().mean() > 0.01 * got[1].std()


@pytest.mark.parametrize(
    ("norm", "deformable"), [("frozen_bn", False), ("sync_bn", False), ("group_norm", False), ("frozen_bn", True)]
)
def test_bf16_and_one_graph(norm: str, deformable: bool) -> None:
    backbone = make_backbone(norm=norm, deformable=deformable).eval()
    with torch.no_grad():
        want = backbone(pixels(), FULL)
        whole = torch.compile(backbone, backend="eager", fullgraph=True)(pixels(), FULL)
        with torch.autocast("cpu", torch.bfloat16):
            rough = backbone(pixels(), FULL)
    for a, b, c in zip(want, whole, rough, strict=True):
        torch.testing.assert_close(b, a)
        assert c.dtype == torch.bfloat16
        assert (c.float() - a).abs().mean() < 0.05 * a.std()


def kept_for_backward(backbone: Backbone) -> int:
    """Bytes of activations, each counted once; without the weights, of which autocast keeps copies of half the size."""
    weights = {tensor.shape for tensor in (*backbone.parameters(), *backbone.buffers())}
    kept: dict[int, tuple[int, Tensor]] = {}

    def keep(tensor: Tensor) -> Tensor:
        if tensor.shape not in weights:
            storage = tensor.untyped_storage()
            kept[storage.data_ptr()] = storage.nbytes(), tensor  # held, so that no other takes its place
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        backbone(pixels(), FULL)
    return sum(size for size, _ in kept.values())


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_bf16_halves_what_is_kept_for_the_backward_pass(name: str) -> None:
    """With torchvision's frozen BatchNorm it is 1.4 times as much as in float32."""
    backbone = make_backbone((2, 3, 4, 5), backbone=name).train()
    whole = kept_for_backward(backbone)
    with torch.autocast("cpu", torch.bfloat16):
        half = kept_for_backward(backbone)
    assert whole > 2**20
    assert half < 0.55 * whole


@pytest.mark.parametrize("eps", [1e-5, 0.0])
def test_frozen_batch_norm_is_torchvisions_but_for_its_type(eps: float) -> None:
    generator = torch.Generator().manual_seed(0)
    ours, theirs = FrozenBatchNorm(8, eps), FrozenBatchNorm2d(8, eps)
    state = {name: torch.rand(8, generator=generator) + 0.1 for name in theirs.state_dict()}
    for norm in (ours, theirs):
        norm.load_state_dict(state | {"num_batches_tracked": torch.tensor(7)})
    x = torch.randn(2, 8, 5, 6, generator=generator)
    assert torch.equal(ours(x), theirs(x))
    rough = ours(x.bfloat16())
    assert rough.dtype == torch.bfloat16
    assert torch.equal(rough, theirs(x.bfloat16()).bfloat16())  # float32 but for its result


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
