"""Small encoders of both kinds, with weights and inputs that are the same on every machine."""

from __future__ import annotations

import math

import numpy as np
import torch
from open_clip.timm_model import TimmModel
from torch import Tensor, nn

from ovstrans.clip.load import create_image_encoder

SIZES = ((96, 128), (128, 160))
"""Image sizes (H, W) of the golden values; their maps at stride 32 are 3x4 and 4x5, RN-mini's own is 3x3."""


def small_convnext(seed: int | None = None) -> nn.Module:
    """A ConvNeXt encoder of 0.3 M weights that embeds in 32 dimensions, as open_clip would wrap it."""
    encoder = TimmModel("test_convnext", embed_dim=32, image_size=96, pool="", proj="mlp")
    return (encoder if seed is None else filled(encoder, seed)).eval()


def small_resnet(seed: int) -> nn.Module:
    """RN-mini with weights from `filled`."""
    return filled(create_image_encoder("RN-mini"), seed).eval()


def uniform(source: np.random.PCG64, *shape: int) -> Tensor:
    """Variance 1, mean 0, from the raw bits: numpy promises those for every version and machine."""
    raw = source.random_raw(math.prod(shape))
    unit = (raw >> np.uint64(40)).astype(np.float64) / 2**24
    return torch.from_numpy((2 * unit - 1) * math.sqrt(3)).float().reshape(shape)


def filled(encoder: nn.Module, seed: int) -> nn.Module:
    """The encoder with all its weights and statistics drawn anew, so that every path through it matters."""
    source = np.random.PCG64(seed)
    for name, value in sorted(encoder.state_dict().items()):
        if not value.is_floating_point():
            continue
        noise = uniform(source, *value.shape)
        if name.endswith("positional_embedding"):
            value.copy_(0.8 * noise)
        elif value.dim() >= 2:
            value.copy_(noise * math.sqrt(2 / value[0].numel()))
        elif name.endswith("running_var"):
            value.copy_(1 + 0.2 * noise)
        elif name.endswith(("weight", "gamma")):  # of norms: small, so that attention is over more than one position
            value.copy_(0.6 + 0.1 * noise)
        else:
            value.copy_(0.1 * noise)
    return encoder


def pooling_inputs(seed: int, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Images [2, 3, H, W] and mask logits [2, 4, H/4, W/4]: random ones and the border cases.

    Of image 0, mask 1 is empty and mask 3 covers one corner that no position at stride 32 sees; of
    image 1, mask 2 covers everything.
    """
    source = np.random.PCG64(seed)
    height, width = size
    images = uniform(source, 2, 3, height, width)
    masks = uniform(source, 2, 4, height // 4, width // 4)
    masks[0, 1] = masks[0, 3] = -1.0
    masks[0, 3, 0, 0] = 1.0
    masks[1, 2] = 1.0
    return images, masks
