"""The DeepLab of OpenTrans' released code, for counting only: its published figures include its defects.

Its backbone strides convolutions where CLIP pools, and its ASPP computes a pooled branch, drops it and takes the 2048
channels of its own input instead (4 x 256 + 2048 = 3072). `frameworks.deeplabv3` repeats neither. Nothing here can be
trained or evaluated: features are tensors of the right shape and no content.

Shapes: `B` batch, `C` channels, `H W` image, `h w` feature map.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ovstrans.clip.load import create_image_encoder
from ovstrans.costs.target import Backbone

RES2, RES5 = 256, 2048
"""Channels of CLIP RN50 at strides 4 and 32."""
WIDTH, LOW_WIDTH = 256, 48
DILATIONS = (6, 12, 18)


class ReleasedHead(nn.Module):
    """ASPP and decoder, without the dropped branch and without the classification of pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.branches = nn.ModuleList(
            [_layer(RES5, WIDTH, 1), *(_layer(RES5, WIDTH, 3, dilation) for dilation in DILATIONS)]
        )
        self.project = _layer((1 + len(DILATIONS)) * WIDTH + RES5, WIDTH, 1)
        self.low = _layer(RES2, LOW_WIDTH, 1)
        self.last = nn.Sequential(_layer(WIDTH + LOW_WIDTH, WIDTH, 3), _layer(WIDTH, WIDTH, 3))

    def forward(self, images: Tensor) -> Tensor:
        """Compute [B, WIDTH, h, w] at stride 4 for images [B, 3, H, W], of which only the size matters."""
        res2 = _map(images, RES2, [_strided(size) // 2 for size in images.shape[-2:]])
        res5 = _map(images, RES5, [_strided(_strided(size)) for size in res2.shape[-2:]])
        far = self.project(torch.cat([*(branch(res5) for branch in self.branches), res5], dim=1))
        low = self.low(res2)
        return cast(Tensor, self.last(torch.cat([F.interpolate(far, low.shape[-2:], mode="bilinear"), low], dim=1)))


def pooled_branch() -> nn.Module:
    """Build the branch that is computed and dropped: its parameters have no part in the result."""
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), _layer(RES5, WIDTH, 1))


def released_backbone() -> Backbone:
    """Build CLIP RN50's backbone with strided convolutions, at output stride 16."""
    backbone = Backbone(create_image_encoder("RN50"))
    encoder = cast(Any, backbone.backbone)
    for layer, stride in ((encoder.layer2, 2), (encoder.layer3, 2), (encoder.layer4, 1)):
        first = layer[0]
        first.conv2.stride = first.downsample[1].stride = (stride, stride)
        first.avgpool, first.downsample[0] = nn.Identity(), nn.Identity()
    return backbone


def _layer(channels: int, width: int, kernel: int, dilation: int = 1) -> nn.Sequential:
    padding = dilation * (kernel // 2)
    conv = nn.Conv2d(channels, width, kernel, padding=padding, dilation=dilation, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(width), nn.ReLU())


def _strided(size: int) -> int:
    """Return the side of the output of a padded 3x3 convolution of stride 2."""
    return (size - 1) // 2 + 1


def _map(like: Tensor, channels: int, size: list[int]) -> Tensor:
    return like.new_empty(like.shape[0], channels, *size)
