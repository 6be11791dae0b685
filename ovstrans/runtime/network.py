"""A CLIP ResNet as the kernels run it: convolutions with their BatchNorm folded in, stage by stage.

Shapes: `O` output channels, `I` input channels, `k` kernel size.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from torch import nn

from ovstrans.clip.backbone import STAGES, DilatedAvgPool2d, encoder_kind
from ovstrans.clip.layers import norm_name
from ovstrans.runtime.layout import Change
from ovstrans.runtime.packing import Floats, PackedConv, PackedLayers, pack_conv

NO_RESNET = "the sparse runtime runs CLIP ResNets, this image encoder is of another kind"


class UnsupportedError(Exception):
    """Reason why an image encoder cannot run by the kernels, in words that complete "runs dense: ..."."""


@dataclass(frozen=True)
class Block:
    """A bottleneck.

    Attributes:
        conv1: 1x1.
        conv2: 3x3.
        conv3: 1x1.
        shortcut: 1x1 on the pooled input; None if the input is added as it is.
        change: The pool after conv2; None if the block keeps its size.
        dilation: Of conv2.
    """

    conv1: PackedConv
    conv2: PackedConv
    conv3: PackedConv
    shortcut: PackedConv | None
    change: Change | None
    dilation: int

    @property
    def convs(self) -> tuple[PackedConv, ...]:
        """The convolutions."""
        return tuple(conv for conv in (self.conv1, self.conv2, self.conv3, self.shortcut) if conv is not None)


@dataclass(frozen=True)
class Network(PackedLayers):
    """The backbone of a CLIP ResNet.

    Attributes:
        stem: Its three 3x3 convolutions, the first with stride 2 and as a 1x1 convolution of 27 channels.
        stages: Blocks of layer1 to layer4.
    """

    stem: tuple[PackedConv, PackedConv, PackedConv]
    stages: tuple[tuple[Block, ...], ...]

    @property
    def convs(self) -> Iterator[PackedConv]:
        """Every convolution, in order."""
        yield from self.stem
        for stage in self.stages:
            for block in stage:
                yield from block.convs

    @property
    def dilations(self) -> tuple[int, ...]:
        """Dilation of the maps of the stem and of every stage."""
        return (1, *(blocks[-1].dilation if len(blocks) > 1 else _after(blocks[0]) for blocks in self.stages))

    @property
    def changes(self) -> tuple[Change, ...]:
        """The pools between the maps: the stem's, and those of stages that pool."""
        return (Change(), *(change for blocks in self.stages if (change := blocks[0].change) is not None))


def is_resnet(encoder: nn.Module) -> bool:
    """Return True if an image encoder is a CLIP ResNet."""
    return encoder_kind(encoder) == "resnet" and hasattr(encoder, "layer1")


def pack_network(encoder: nn.Module) -> Network:
    """Pack the backbone of a CLIP ResNet.

    Args:
        encoder: The image encoder, in eval mode as far as its BatchNorm goes.

    Raises:
        UnsupportedError: If a part of it is not what the kernels compute.
    """
    if not is_resnet(encoder):
        raise UnsupportedError(NO_RESNET)
    modules = dict(encoder.named_modules())
    stem = [_pack(modules, f"conv{number}", stride=2 if number == 1 else 1) for number in (1, 2, 3)]
    pool = modules.get("avgpool")
    if not isinstance(pool, nn.AvgPool2d) or _first(pool.kernel_size) != 2:
        raise UnsupportedError("its stem does not pool by 2")
    stages, dilation = [], 1
    for number in range(1, len(STAGES)):
        names = [f"layer{number}.{name}" for name, _ in cast(nn.Module, modules[f"layer{number}"]).named_children()]
        blocks = []
        for position, name in enumerate(names):
            blocks.append(_read_block(modules, name, dilation, first=position == 0))
            dilation = _after(blocks[-1])
        if (number == 1) != (blocks[0].change is None):
            raise UnsupportedError(f"its layer{number} begins in a way of its own")
        stages.append(tuple(blocks))
    return Network((stem[0], stem[1], stem[2]), tuple(stages))


def _after(block: Block) -> int:
    """Return the dilation of what follows a block."""
    return block.dilation * (2 if block.change is not None and block.change.step else 1)


def _read_block(modules: dict[str, nn.Module], name: str, dilation: int, *, first: bool) -> Block:
    pool, change = modules[f"{name}.avgpool"], None
    if isinstance(pool, DilatedAvgPool2d):
        change = Change(pool.dilation)
    elif isinstance(pool, nn.AvgPool2d):
        if _first(pool.kernel_size) != 2 or dilation != 1:
            raise UnsupportedError(f"{name} does not pool by 2")
        change = Change()
    elif not isinstance(pool, nn.Identity):
        raise UnsupportedError(f"{name} pools in a way of its own")
    shortcut = None
    if modules.get(f"{name}.downsample") is not None:
        shortcut = _pack(modules, f"{name}.downsample.0")
    if change is not None and (shortcut is None or not first or (change.step and change.step != dilation)):
        raise UnsupportedError(f"{name} pools where the kernels do not")
    convs = [
        _pack(modules, f"{name}.conv{number}", dilation=dilation if number == 2 else 1, size=3 if number == 2 else 1)
        for number in (1, 2, 3)
    ]
    return Block(convs[0], convs[1], convs[2], shortcut, change, dilation)


def _pack(
    modules: dict[str, nn.Module], name: str, *, stride: int = 1, dilation: int = 1, size: int | None = None
) -> PackedConv:
    conv = modules[name]
    if not isinstance(conv, nn.Conv2d):
        raise UnsupportedError(f"{name} is no convolution but {type(conv).__name__}")
    kernel = conv.kernel_size[0]
    size = size or kernel
    expected = ((size, size), (stride, stride), (dilation if size == 3 else 1,) * 2, 1)
    padding = (dilation if size == 3 else 0,) * 2
    if (conv.kernel_size, conv.stride, conv.dilation, conv.groups) != expected or conv.padding != padding:
        raise UnsupportedError(f"{name} is not the convolution that CLIP has there")
    if conv.padding_mode != "zeros" or conv.weight.is_meta:
        raise UnsupportedError(f"{name} has no weights or is padded in a way of its own")
    weight, bias = fold_norm(conv, modules.get(norm_name(name)), name)
    if stride == 2:
        weight = weight.reshape(weight.shape[0], -1, 1, 1)
    return pack_conv(weight, bias, name=name)


def fold_norm(conv: nn.Conv2d, norm: Any, name: str = "") -> tuple[Floats, Floats]:
    """Fold the BatchNorm after a convolution into its weights.

    Args:
        conv: The convolution.
        norm: A BatchNorm or frozen BatchNorm.
        name: The convolution's name, for the message.

    Returns:
        Weight [O, I, k, k] and bias [O]. Zeros stay zeros.

    Raises:
        UnsupportedError: If the norm is no BatchNorm with statistics.
    """
    values = [getattr(norm, key, None) for key in ("weight", "bias", "running_mean", "running_var", "eps")]
    if any(value is None for value in values):
        raise UnsupportedError(f"{name} is not followed by a BatchNorm with statistics")
    gamma, beta, mean, var = (cast(torch.Tensor, value).detach().double().cpu().numpy() for value in values[:4])
    scale = gamma / np.sqrt(var + float(cast(float, values[4])))
    bias = beta - mean * scale
    if conv.bias is not None:
        bias = bias + conv.bias.detach().double().cpu().numpy() * scale
    weight = conv.weight.detach().float().cpu().numpy() * scale.astype(np.float32)[:, None, None, None]
    return weight.astype(np.float32, copy=False), bias.astype(np.float32)


def _first(value: int | tuple[int, ...]) -> int:
    return value if isinstance(value, int) else value[0]
