"""DeepLabV3+'s decoder: what ASPP saw from afar, sharpened by features near the image.

Chen et al. 2018 (arXiv 1802.02611), sec. 3.1 and 4.1, in the layout that OpenTrans trains and counts
(arXiv 2404.07448, Tab. 1): ASPP's channels throughout.

Shapes: `B` batch, `C` channels, `D` width of the head, `h w` feature map.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Decoder(nn.Module):
    """ASPP's output brought to stride 4, joined with res2, and refined by two convolutions.

    channels: C of res2.  low_width: what these are reduced to, few, so that they refine rather than
    decide.  width: D.  dropout, last_dropout: after the first and the second convolution.
    """

    def __init__(self, channels: int, *, low_width: int, width: int, dropout: float, last_dropout: float) -> None:
        super().__init__()
        self.reduce = nn.Sequential(*_conv(channels, low_width, 1))
        self.refine = nn.Sequential(
            *_conv(width + low_width, width, 3),
            nn.Dropout(dropout),
            *_conv(width, width, 3),
            nn.Dropout(last_dropout),
        )

    def forward(self, far: Tensor, res2: Tensor) -> Tensor:
        """far: ASPP's output [B, D, *, *], of any stride.  res2: [B, C, h, w].  Returns [B, D, h, w]."""
        near = self.reduce(res2)
        return self.refine(torch.cat([raised(far, near), near], dim=1))


def raised(features: Tensor, target: Tensor) -> Tensor:
    """Features [B, C, *, *] interpolated to the h x w of `target` [B, *, h, w]; unchanged where they have it."""
    size = target.shape[-2:]
    return features if features.shape[-2:] == size else F.interpolate(features, size=size, mode="bilinear")


def _conv(inputs: int, outputs: int, kernel: int) -> tuple[nn.Module, ...]:
    return (
        nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(),
    )
