"""Trunk and feature pyramid: images to one feature map a level."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torchvision.models import resnet
from torchvision.ops import FeaturePyramidNetwork, FrozenBatchNorm2d
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
        return FrozenBatchNorm2d
    return lambda channels: nn.GroupNorm(32, channels)


class Trunk(nn.Module):
    """A ResNet without its classifier: images to the feature maps of the stages asked for."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        net = resnet.__dict__[config.backbone](weights=None, norm_layer=make_norm(config.norm))
        self.levels = config.levels
        self.conv1, self.bn1, self.relu, self.maxpool = net.conv1, net.bn1, net.relu, net.maxpool
        used = STAGES[: config.levels[-1] - 1]
        for name in used:
            setattr(self, name, getattr(net, name))
        self.stages = used
        self.channels = [getattr(net, STAGES[level - 2])[-1].conv2.out_channels for level in config.levels]
        for part in [("conv1", "bn1"), *[(name,) for name in used]][: config.frozen_stages]:
            for name in part:
                getattr(self, name).requires_grad_(False)

    def forward(self, images: Tensor) -> list[Tensor]:
        """Normalised images [B, 3, H, W] to feature maps [B, channels, H / 2^level, W / 2^level], one a level."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(images))))  # [B, 64, H / 4, W / 4]
        features = []
        for level, name in enumerate(self.stages, start=2):
            x = getattr(self, name)(x)
            if level in self.levels:
                features.append(x)
        return features


class Backbone(nn.Module):
    """Trunk and feature pyramid (Lin et al., CVPR 2017): uint8 images to pyramid levels of equal width."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.trunk = Trunk(config)
        pooled = len(config.anchor_sizes) > len(config.levels)
        self.fpn = FeaturePyramidNetwork(
            self.trunk.channels,
            config.channels,
            extra_blocks=LastLevelMaxPool() if pooled else None,
            norm_layer=make_norm(config.norm) if config.norm == "group_norm" else None,
        )
        self.strides = [2 ** (config.levels[0] + i) for i in range(len(config.anchor_sizes))]
        self.register_buffer("mean", torch.tensor(IMAGE_MEAN).view(3, 1, 1) * 255, persistent=False)
        self.register_buffer("std", torch.tensor(IMAGE_STD).view(3, 1, 1) * 255, persistent=False)

    def forward(self, images: Tensor, sizes: Tensor) -> list[Tensor]:
        """Images to pyramid levels.

        Args:
            images: uint8 [B, 3, H, W], H and W multiples of 32.
            sizes: float [B, 2], height and width of each image inside the padding.

        Returns:
            One [B, channels, H / stride, W / stride] a level, by ascending `strides`.
        """
        height, width = images.shape[-2:]
        x = (images.float() - self.get_buffer("mean")) / self.get_buffer("std")  # [B, 3, H, W]
        row = torch.arange(height, device=images.device) < sizes[:, 0, None]  # [B, H]
        column = torch.arange(width, device=images.device) < sizes[:, 1, None]  # [B, W]
        x = x * (row[:, None, :, None] & column[:, None, None, :])  # padding is zero after normalisation
        features = self.trunk(x)
        return list(self.fpn(OrderedDict((str(i), f) for i, f in enumerate(features))).values())
