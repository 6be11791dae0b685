"""Feature maps at strides 4 to 32 of a plain ViT, which has one map at the stride of its patches.

Li et al. 2022 (ViTDet, arXiv 2203.16527), sec. 3: every level is made of the last map alone, by transposed convolutions
for finer levels and by pooling for coarser ones.

Shapes: `B` batch, `D` width of the ViT, `C` channels, `H W` image, `h w` feature map.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ovstrans.clip import vit
from ovstrans.clip.backbone import encode_last, encode_stages, encoder_kind, stage_channels

LEVELS: Mapping[str, int] = {"res2": 4, "res3": 8, "res4": 16, "res5": 32}
"""Names of the maps and their strides, as those of a ResNet."""

LAST = "last"
"""Name of the ViT's own last map among the features; CLIP's head takes it."""


class FeaturePyramid(nn.Module):
    """Makes res2 to res5 of the last map of a ViT.

    Patches whose side is no power of two (14) are resized to the nearest stride that is one, bilinearly.

    Args:
        width: D, channels of the last map.
        patch: Side of a patch in pixels.

    Attributes:
        channels: Channels C of each level: halved with every transposed convolution.
    """

    def __init__(self, width: int, patch: int) -> None:
        super().__init__()
        self.base = min(LEVELS.values(), key=lambda stride: abs(math.log2(stride / patch)))
        self.levels = nn.ModuleDict()
        self.channels: dict[str, int] = {}
        for name, stride in LEVELS.items():
            current, layers = width, list[nn.Module]()
            if stride > self.base:
                layers.append(nn.MaxPool2d(stride // self.base))
            for number in range(int(math.log2(max(1, self.base // stride)))):
                if number:
                    layers += [nn.GroupNorm(1, current), nn.GELU()]
                narrow = max(8, current // 2)
                layers.append(nn.ConvTranspose2d(current, narrow, 2, stride=2))
                current = narrow
            self.levels[name] = nn.Sequential(*layers)
            self.channels[name] = current

    def forward(self, last: Tensor, size: tuple[int, int]) -> dict[str, Tensor]:
        """Make the levels.

        Args:
            last: The last map [B, D, h, w].
            size: Height and width of the images, multiples of 32.

        Returns:
            Maps [B, C, *, *] by the names in `LEVELS`, and `last` itself.
        """
        wanted = (size[0] // self.base, size[1] // self.base)
        resized = last
        if tuple(last.shape[-2:]) != wanted:
            resized = F.interpolate(last, size=wanted, mode="bilinear", align_corners=False)
        return {**{name: level(resized) for name, level in self.levels.items()}, LAST: last}


def level_at(stride: int) -> str:
    """Return the name of the level at a stride."""
    return next(name for name, each in LEVELS.items() if each == stride)


def make_pyramid(encoder: nn.Module) -> FeaturePyramid | None:
    """Make the pyramid of a ViT; None for an encoder that has stages."""
    if encoder_kind(encoder) != "vit":
        return None
    with torch.device(next(encoder.parameters()).device):
        return FeaturePyramid(vit.vit_width(encoder), vit.patch_size(encoder))


def level_channels(encoder: nn.Module, pyramid: FeaturePyramid | None) -> dict[str, int]:
    """Return the channels C of res2 to res5."""
    return stage_channels(encoder) if pyramid is None else pyramid.channels


def encode_levels(encoder: nn.Module, images: Tensor, pyramid: FeaturePyramid | None) -> dict[str, Tensor]:
    """Compute res2 to res5 of normalised images [B, 3, H, W] with an encoder of any kind; see `FeaturePyramid`."""
    if pyramid is None:
        return encode_stages(encoder, images, tuple(LEVELS))
    levels: dict[str, Tensor] = pyramid(encode_last(encoder, images), (int(images.shape[-2]), int(images.shape[-1])))
    return levels
