"""The trunk of a CLIP ResNet: stage features, dense embeddings, output stride.

Shapes: `B` batch, `C` channels, `H W` image, `h w` feature map, `E` embedding.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ovstrans.errors import InputError

STAGES = ("stem", "res2", "res3", "res4", "res5")
"""Feature maps at strides 4, 4, 8, 16 and 32."""


def stages(tower: nn.Module, images: Tensor) -> dict[str, Tensor]:
    """Features of every stage. images: normalised, [B, 3, H, W]; each result is [B, C, h, w]."""
    trunk = cast(Any, tower)
    features = {"stem": trunk.stem(images)}
    current = features["stem"]
    for name, layer in zip(STAGES[1:], (trunk.layer1, trunk.layer2, trunk.layer3, trunk.layer4), strict=True):
        current = features[name] = layer(current)
    return features


def dense_embedding(tower: nn.Module, res5: Tensor) -> Tensor:
    """CLIP embeddings at every position: the attention pool's value path, without the attention.

    res5: [B, C, h, w]. Returns [B, E, h, w], not normalised. The value and output projections act
    on each position by itself, as 1x1 convolutions (Zhou et al., ECCV 2022, sec. 3.2), so the result
    lives in the space of the text embeddings.
    """
    pool = cast(Any, tower).attnpool
    value = F.conv2d(res5, pool.v_proj.weight[:, :, None, None], pool.v_proj.bias)
    return F.conv2d(value, pool.c_proj.weight[:, :, None, None], pool.c_proj.bias)


class SpreadPool2d(nn.Module):
    """The average pool of a strided stage, evaluated at every position.

    Averages 2x2 windows whose taps are `dilation` apart, stride 1. At the positions that the strided
    pool would keep the result is the same; the last rows and columns repeat at the border.
    """

    def __init__(self, dilation: int) -> None:
        super().__init__()
        self.dilation = dilation

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, h, w] to [B, C, h, w]."""
        step = self.dilation
        right = torch.cat([x[..., step:], x[..., -1:].expand(*x.shape[:-1], step)], dim=-1)
        rows = (x + right) / 2
        below = torch.cat([rows[..., step:, :], rows[..., -1:, :].expand(*rows.shape[:-2], step, -1)], dim=-2)
        return (rows + below) / 2


def set_output_stride(tower: nn.Module, stride: int) -> None:
    """Set the trunk's output stride to 32, 16 or 8, in place, without touching a weight.

    Strided stages are evaluated at every position and what follows is dilated (the a trous
    algorithm): at the positions shared with output stride 32 the features keep their exact values.
    Raises InputError for any other stride, or for a map the trunk cannot pool this way.
    """
    if stride not in (8, 16, 32):
        raise InputError(f"output stride {stride}: not offered; use 32, 16 or 8")
    trunk = cast(Any, tower)
    dilation = 1
    for number, layer in ((3, trunk.layer3), (4, trunk.layer4)):
        spread = 2 ** (number + 1) > stride
        for position, block in enumerate(layer):
            # The first block's 3x3 runs before its pool, on the spacing of the stage before.
            block.conv2.dilation = block.conv2.padding = (dilation, dilation)
            if position == 0:
                if block.stride != 2:
                    raise InputError(f"layer{number}: pools by {block.stride}, 2 is needed to change the output stride")
                pool: nn.Module = SpreadPool2d(dilation) if spread else nn.AvgPool2d(2)
                block.avgpool = pool
                block.downsample[0] = pool
                dilation *= 2 if spread else 1
