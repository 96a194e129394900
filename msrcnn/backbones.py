"""Trunk and feature pyramid: images to one feature map a level."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torchvision.models import resnet
from torchvision.ops import DeformConv2d, FeaturePyramidNetwork, FrozenBatchNorm2d
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

from msrcnn.config import ModelConfig

STAGES = ("layer1", "layer2", "layer3", "layer4")
"""torchvision's names of the stages that give C2 to C5."""

IMAGE_MEAN = (0.485, 0.456, 0.406)
IMAGE_STD = (0.229, 0.224, 0.225)
"""RGB in [0, 1], as torchvision's ImageNet weights expect it."""


def make_norm(name: str) -> Callable[[int], nn.Module]:
    """The normalisation layer called `name` in the configuration, as a function of its channels."""
    if name == "frozen_bn":
        return FrozenBatchNorm
    if name == "sync_bn":
        return nn.BatchNorm2d
    return lambda channels: nn.GroupNorm(32, channels)


class FrozenBatchNorm(FrozenBatchNorm2d):
    """torchvision's, whose output has its input's type.

    Under autocast torchvision's gives float32, being float32 itself: each activation is then kept for the backward pass
    twice, as float32 by ReLU and as bfloat16 by the next convolution.
    """

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W], of any type, computed in float32."""
        return super().forward(x).to(x.dtype)


class DeformableConv2d(DeformConv2d):
    """A convolution that reads each of its points at a learnt offset (Dai et al., ICCV 2017).

    Parameters are named as the ordinary convolution's, whose weights therefore load; the convolution that predicts
    the offsets begins at zero, so that the layer begins as the ordinary one. Without the modulation of its second
    version (Zhu et al., CVPR 2019), since the paper cites the first.
    """

    def __init__(self, conv: nn.Conv2d) -> None:
        """A deformable layer in place of `conv`, with its weights."""
        size, stride = conv.kernel_size[0], conv.stride[0]
        super().__init__(conv.in_channels, conv.out_channels, size, stride, size // 2, bias=False)
        self.weight = conv.weight
        self.offset = nn.Conv2d(conv.in_channels, 2 * size * size, size, stride, size // 2)
        nn.init.zeros_(self.offset.weight)
        nn.init.zeros_(self.offset.get_parameter("bias"))

    def forward(self, x: Tensor) -> Tensor:
        """[B, in, H, W] to [B, out, H / stride, W / stride]."""
        # Under autocast too: torchvision's kernel knows no bfloat16.
        return super().forward(x.float(), self.offset(x).float()).to(x.dtype)


def make_deformable(stage: nn.Module) -> None:
    """Replaces each 3x3 convolution of a ResNet stage by a deformable one."""
    for block in stage.children():
        for name, layer in list(block.named_children()):
            if isinstance(layer, nn.Conv2d) and layer.kernel_size == (3, 3):
                setattr(block, name, DeformableConv2d(layer))


class Trunk(nn.Module):
    """A ResNet without its classifier: images to the feature maps of the stages asked for.

    Layers and names are torchvision's, so that its ImageNet weights load. In ResNet-50 and 101 a stage's stride is
    then on its first 3x3 convolution; in the weights of the paper's time it was on the 1x1 before it.

    Without a neck the trunk also holds the last stage, which the heads run on each RoI (`res5`).

    Attributes:
        channels: of the feature maps, one a level.
        head_channels: of what `res5` gives.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        net = resnet.__dict__[config.backbone](weights=None, norm_layer=make_norm(config.norm))
        self.levels = config.levels
        self.conv1, self.bn1, self.relu, self.maxpool = net.conv1, net.bn1, net.relu, net.maxpool
        used = STAGES[: config.levels[-1] - 1]
        for name in used:
            setattr(self, name, getattr(net, name))
        if config.deformable:
            make_deformable(net.layer4)
        self.stages = used
        expansion = 1 if config.backbone == "resnet18" else 4
        self.channels = [64 * 2 ** (level - 2) * expansion for level in config.levels]
        self.head_channels = 512 * expansion
        if config.neck == "none":
            self.layer4 = net.layer4
        parts = [("conv1", "bn1"), *[(name,) for name in used]][: config.frozen_stages]
        self.frozen = [name for part in parts for name in part]
        for name in self.frozen:
            getattr(self, name).requires_grad_(False)

    def train(self, mode: bool = True) -> Trunk:
        """Frozen parts stay in testing mode: a BatchNorm there keeps the statistics it was loaded with."""
        super().train(mode)
        for name in self.frozen:
            getattr(self, name).eval()
        return self

    def forward(self, images: Tensor) -> list[Tensor]:
        """Normalised images [B, 3, H, W] to feature maps [B, channels, H / 2^level, W / 2^level], one a level."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(images))))  # [B, 64, H / 4, W / 4]
        features = []
        for level, name in enumerate(self.stages, start=2):
            x = getattr(self, name)(x)
            if level in self.levels:
                features.append(x)
        return features

    def res5(self, rois: Tensor) -> Tensor:
        """The last stage on RoI features: [N, C, S, S] to [N, head_channels, S / 2, S / 2]."""
        return self.layer4(rois)


class Backbone(nn.Module):
    """Trunk and neck: uint8 images to the feature maps that RPN and heads read.

    With a neck these are the levels of a feature pyramid (Lin et al., CVPR 2017), without one they are C4.

    Attributes:
        channels: of every feature map.
        strides: network pixels a cell of each.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.trunk = Trunk(config)
        if config.neck == "none":
            self.fpn, self.channels = None, self.trunk.channels[0]
        else:
            self.fpn, self.channels = make_pyramid(config, self.trunk.channels), config.channels
        self.strides = [2 ** (config.levels[0] + i) for i in range(len(config.anchor_sizes))]
        self.register_buffer("mean", torch.tensor(IMAGE_MEAN).view(3, 1, 1) * 255, persistent=False)
        self.register_buffer("std", torch.tensor(IMAGE_STD).view(3, 1, 1) * 255, persistent=False)

    def forward(self, images: Tensor, sizes: Tensor) -> list[Tensor]:
        """Images to feature maps.

        Args:
            images: uint8 [B, 3, H, W], H and W multiples of 32.
            sizes: float [B, 2], height and width of each image inside the padding.

        Returns:
            One [B, channels, H / stride, W / stride] a level, by ascending `strides`; rounded up in a pooled last one.
        """
        height, width = images.shape[-2:]
        x = (images.float() - self.get_buffer("mean")) / self.get_buffer("std")  # [B, 3, H, W]
        row = torch.arange(height, device=images.device) < sizes[:, 0, None]  # [B, H]
        column = torch.arange(width, device=images.device) < sizes[:, 1, None]  # [B, W]
        x = x * (row[:, None, :, None] & column[:, None, None, :])  # padding is zero after normalisation
        features = self.trunk(x)
        if self.fpn is None:
            return features
        return list(self.fpn(OrderedDict((str(i), f) for i, f in enumerate(features))).values())


def make_pyramid(config: ModelConfig, channels: list[int]) -> FeaturePyramidNetwork:
    """The pyramid on top of a trunk whose levels have `channels`; normalised where the trunk learns its norm."""
    pooled = len(config.anchor_sizes) > len(config.levels)
    return FeaturePyramidNetwork(
        channels,
        config.channels,
        extra_blocks=LastLevelMaxPool() if pooled else None,
        norm_layer=None if config.norm == "frozen_bn" else make_norm(config.norm),
    )
