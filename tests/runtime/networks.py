"""CLIP ResNets with random weights, norms and masks."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from open_clip.modified_resnet import ModifiedResNet
from torch import Tensor, nn

from ovstrans.clip.backbone import set_output_stride
from ovstrans.clip.layers import backbone_layers


def make_encoder(
    layers: Sequence[int] = (1, 2, 2, 1), width: int = 8, *, density: float = 0.3, stride: int = 32, seed: int = 0
) -> nn.Module:
    """Return an encoder in eval mode, with a random share of the weights of all but the first convolution."""
    torch.manual_seed(seed)
    encoder = ModifiedResNet(list(layers), 32, 2, 64, width).eval()
    for module in encoder.modules():
        if isinstance(module, nn.BatchNorm2d):
            for values in (module.weight.data, module.running_var):
                values.uniform_(0.5, 1.5)
            for values in (module.bias.data, module.running_mean):
                values.normal_(0, 0.1)
    if stride != 32:
        set_output_stride(encoder, stride)
    for weight in list(backbone_layers(encoder).values())[1:]:
        weight.data *= (torch.rand_like(weight) < density) / max(density, 0.01) ** 0.5
    return encoder


def relative_error(found: Tensor, expected: Tensor) -> float:
    """Return the largest difference over the largest value."""
    assert found.shape == expected.shape
    return float((found - expected).abs().max() / expected.abs().max().clamp(min=1e-30))
