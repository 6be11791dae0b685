"""The trunk of a CLIP image encoder: stage features, dense embeddings, output stride.

A tower is of one of two kinds: open_clip's ModifiedResNet, or its TimmModel around timm's ConvNeXt.

Shapes: `B` batch, `C` channels, `H W` image, `h w` feature map, `E` embedding, `N` rows.
"""

from __future__ import annotations

from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ovstrans.errors import InputError

STAGES = ("stem", "res2", "res3", "res4", "res5")
"""Feature maps at strides 4, 4, 8, 16 and 32."""


def kind(encoder: nn.Module) -> Literal["resnet", "convnext"]:
    """Which of the two a tower is, whatever of its head is still there."""
    return "convnext" if isinstance(getattr(encoder, "trunk", None), nn.Module) else "resnet"


def stages(encoder: nn.Module, images: Tensor) -> dict[str, Tensor]:
    """Features of every stage. images: normalised, [B, 3, H, W]; each result is [B, C, h, w]."""
    inner = cast(Any, encoder)
    if kind(encoder) == "convnext":
        layers = (inner.trunk.stem, *inner.trunk.stages)
    else:
        layers = (inner.stem, inner.layer1, inner.layer2, inner.layer3, inner.layer4)
    features: dict[str, Tensor] = {}
    current = images
    for name, layer in zip(STAGES, layers, strict=True):
        current = features[name] = layer(current)
    return features


def channels(encoder: nn.Module) -> dict[str, int]:
    """Channels C of res2 to res5, read off the layers: nothing runs, so meta towers will do."""
    inner = cast(Any, encoder)
    if kind(encoder) == "convnext":
        last = [stage.blocks[-1].conv_dw for stage in inner.trunk.stages]
    else:
        last = [layer[-1].conv3 for layer in (inner.layer1, inner.layer2, inner.layer3, inner.layer4)]
    return {name: conv.out_channels for name, conv in zip(STAGES[1:], last, strict=True)}


def heads(encoder: nn.Module) -> list[nn.Module]:
    """What carries a trunk into the space of the texts: the attention pool, or a ConvNeXt's norm and projection."""
    inner = cast(Any, encoder)
    return [inner.trunk.head, inner.head] if kind(encoder) == "convnext" else [inner.attnpool]


def drop_head(encoder: nn.Module) -> None:
    """Leave of an image encoder its trunk, in place."""
    given = cast(Any, encoder)
    if kind(encoder) == "convnext":
        given.trunk.norm_pre = given.trunk.head = given.head = None
    else:
        given.attnpool = None


def project(encoder: nn.Module, features: Tensor) -> Tensor:
    """A ConvNeXt's embeddings [N, E], not normalised, of features [N, C] that are pooled already.

    The tower's own head: the trunk's norm, whose global pool has a single position to average, then
    open_clip's projection.
    """
    inner = cast(Any, encoder)
    return inner.head(inner.trunk.head(features[:, :, None, None]))


def dense_embedding(encoder: nn.Module, res5: Tensor) -> Tensor:
    """CLIP embeddings at every position: the head without its pooling.

    res5: [B, C, h, w]. Returns [B, E, h, w], not normalised, in the space of the text embeddings. Of a
    ResNet's attention pool the value and output projections act on each position by itself, as 1x1
    convolutions (Zhou et al., ECCV 2022, sec. 3.2); so do a ConvNeXt's norm and projection.
    """
    if kind(encoder) == "convnext":
        res5 = cast(Any, encoder).trunk.norm_pre(res5)
        batch, width, *size = res5.shape
        rows = project(encoder, res5.flatten(2).transpose(1, 2).reshape(-1, width))
        return rows.reshape(batch, -1, rows.shape[-1]).transpose(1, 2).unflatten(2, size)
    pool = cast(Any, encoder).attnpool
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


def set_output_stride(encoder: nn.Module, stride: int) -> None:
    """Set a ResNet trunk's output stride to 32, 16 or 8, in place, without touching a weight.

    Strided stages are evaluated at every position and what follows is dilated (the a trous
    algorithm): at the positions shared with output stride 32 the features keep their exact values.
    Raises InputError for any other stride, for a ConvNeXt at any but 32, or for a map the trunk
    cannot pool this way.
    """
    if kind(encoder) == "convnext":
        if stride != 32:
            raise InputError(f"output stride {stride}: only CLIP ResNets offer it; a ConvNeXt runs at 32")
        return
    if stride not in (8, 16, 32):
        raise InputError(f"output stride {stride}: not offered; use 32, 16 or 8")
    trunk = cast(Any, encoder)
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
