"""A small CLIP whose layers have heavy tails and, in two of them, nothing to fit."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import nn

from ovstrans.clip.load import Clip, random_clip
from ovstrans.clip.weights import weights_sha256
from ovstrans.masks.mask import Mask

ZERO, FLAT = "layer2.0.conv1", "layer1.0.conv3"


def convs(encoder: nn.Module) -> Iterator[tuple[str, nn.Conv2d]]:
    return ((name, module) for name, module in encoder.named_modules() if isinstance(module, nn.Conv2d))


@pytest.fixture(scope="session")
def clip() -> Clip:
    """RN-mini with random weights, ZERO all zero and FLAT orthogonal."""
    clip = random_clip("RN-mini", seed=3)
    generator = torch.Generator().manual_seed(0)
    named = dict(convs(clip.visual))
    with torch.no_grad():
        for conv in named.values():
            conv.weight.mul_(torch.exp(torch.randn(conv.weight.shape[0], 1, 1, 1, generator=generator)))
        named[ZERO].weight.zero_()
        nn.init.orthogonal_(named[FLAT].weight)
    clip.weights_sha256 = weights_sha256(clip.visual.state_dict())
    return clip


@pytest.fixture(scope="session")
def mask(clip: Clip) -> Mask:
    """Keeps the even output channels of every convolution of the body, uniformly."""
    tensors = {}
    for name, conv in convs(clip.visual):
        if name.startswith("layer"):
            kept = torch.zeros_like(conv.weight, dtype=torch.bool)
            kept[::2] = True
            tensors[f"{name}.weight"] = kept
    return Mask(tensors, model="RN-mini", method="random", weights_sha256="f" * 64)
