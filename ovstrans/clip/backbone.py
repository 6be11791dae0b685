"""CLIP's image encoder and its backbone: features of every stage, and the head that follows.

An image encoder is of one of three kinds: open_clip's ModifiedResNet, its TimmModel around timm's ConvNeXt, or a ViT,
open_clip's or timm's (`clip.vit`). Its backbone is all of it up to the last feature map; what follows, the head, pools
that map and projects it into the space of the text embeddings. Layers and their names are in `clip.layers`.

Shapes: `B` batch, `C` channels, `H W` image, `h w` feature map, `E` embedding, `N` rows.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ovstrans.clip import vit
from ovstrans.environment import eval_mode, recompute_statistics
from ovstrans.errors import InputError

STAGES = ("stem", "res2", "res3", "res4", "res5")
"""Names of the feature maps, at strides 4, 4, 8, 16 and 32."""


def encoder_kind(encoder: nn.Module) -> Literal["resnet", "convnext", "vit"]:
    """Return the kind of an image encoder, which may have lost its head, or be a ViT's head alone."""
    trunk = getattr(encoder, "trunk", None)
    if hasattr(encoder, "transformer") or hasattr(encoder, "ln_post") or hasattr(trunk, "blocks"):
        return "vit"
    return "convnext" if isinstance(trunk, nn.Module) else "resnet"


def find_image_encoder(module: nn.Module) -> nn.Module:
    """Return the image encoder in a module.

    Args:
        module: An image encoder, an open_clip CLIP or a framework, bare or wrapped by DDP or `torch.compile`.
    """
    for attribute in ("_orig_mod", "module", "visual", "backbone"):
        inner = getattr(module, attribute, None)
        if isinstance(inner, nn.Module):
            return find_image_encoder(inner)
    return module


def encode_stages(encoder: nn.Module, images: Tensor, stages: Collection[str] = STAGES) -> dict[str, Tensor]:
    """Run the backbone and return the features of its stages.

    A ViT has no stages but tokens, see `clip.vit`.

    Args:
        encoder: A ResNet or ConvNeXt. If it has a `stage_runner` that accepts the images, that runs them (see
            `runtime.choose`).
        images: Normalised images [B, 3, H, W].
        stages: Which features to return, of the names in `STAGES`.

    Returns:
        Feature maps [B, C, h, w] by name.
    """
    runner = getattr(encoder, "stage_runner", None)
    if runner is not None and not encoder.training and runner.accepts(images, stages):
        return cast("dict[str, Tensor]", runner(images, stages))
    inner = cast(Any, encoder)
    if encoder_kind(encoder) == "convnext":
        layers = (inner.trunk.stem, *inner.trunk.stages)
    else:
        layers = (inner.stem, inner.layer1, inner.layer2, inner.layer3, inner.layer4)
    features: dict[str, Tensor] = {}
    current = images
    for name, layer in zip(STAGES, layers, strict=True):
        current = layer(current)
        if name in stages:
            features[name] = current
    return features


def stage_channels(encoder: nn.Module) -> dict[str, int]:
    """Return the channels C of res2 to res5, read off the layers without running them (meta tensors will do).

    Args:
        encoder: A ResNet or ConvNeXt.
    """
    inner = cast(Any, encoder)
    if encoder_kind(encoder) == "convnext":
        last = [stage.blocks[-1].conv_dw for stage in inner.trunk.stages]
    else:
        last = [layer[-1].conv3 for layer in (inner.layer1, inner.layer2, inner.layer3, inner.layer4)]
    return {name: conv.out_channels for name, conv in zip(STAGES[1:], last, strict=True)}


def head_parts(encoder: nn.Module) -> list[nn.Module | nn.Parameter]:
    """Return modules and parameters of the head: an attention pool, norms, a projection."""
    inner = cast(Any, encoder)
    kind = encoder_kind(encoder)
    if kind == "vit":
        return vit.head_parts(encoder)
    return [inner.trunk.head, inner.head] if kind == "convnext" else [inner.attnpool]


def drop_head(encoder: nn.Module) -> None:
    """Remove the head of an image encoder in place, so that only the backbone is left."""
    inner = cast(Any, encoder)
    kind = encoder_kind(encoder)
    if kind == "vit":
        vit.drop_head(encoder)
    elif kind == "convnext":
        inner.trunk.norm_pre = inner.trunk.head = inner.head = None
    else:
        inner.attnpool = None


def encode_last(encoder: nn.Module, images: Tensor) -> Tensor:
    """Run the backbone of any kind and return its last feature map [B, C, h, w], of normalised images [B, 3, H, W]."""
    if encoder_kind(encoder) != "vit":
        return encode_stages(encoder, images)["res5"]
    return vit.token_map(encoder, vit.encode_tokens(encoder, images)[-1], images)


def project_pooled(encoder: nn.Module, features: Tensor) -> Tensor:
    """Turn pooled features of a ConvNeXt into embeddings by its own head: timm's norm, open_clip's projection.

    Args:
        encoder: A ConvNeXt image encoder.
        features: Pooled features [N, C].

    Returns:
        Embeddings [N, E], not normalised.
    """
    inner = cast(Any, encoder)
    # timm's head begins with a global average pool, which has a single position to average here.
    return cast(Tensor, inner.head(inner.trunk.head(features[:, :, None, None])))


def encode_dense(encoder: nn.Module, res5: Tensor) -> Tensor:
    """Compute CLIP embeddings at every position: the head without its pooling.

    The value and output projections of a ResNet's attention pool act on each position by itself, as 1x1 convolutions
    (Zhou et al., ECCV 2022, sec. 3.2). So do a ConvNeXt's norm and projection, and those of a ViT, whose last block has
    mixed the tokens by then; `vit.embed_patch_map` keeps them apart.

    Args:
        encoder: The image encoder.
        res5: Features [B, C, h, w] of the last stage, or the map of a ViT's last tokens.

    Returns:
        Embeddings [B, E, h, w], not normalised, in the space of the text embeddings.
    """
    if encoder_kind(encoder) == "convnext":
        res5 = cast(Any, encoder).trunk.norm_pre(res5)
        batch, width, *size = res5.shape
        rows = project_pooled(encoder, res5.flatten(2).transpose(1, 2).reshape(-1, width))
        return rows.reshape(batch, -1, rows.shape[-1]).transpose(1, 2).reshape(batch, -1, *size)
    if encoder_kind(encoder) == "vit":
        rows = vit.embed_tokens(encoder, res5.flatten(2).transpose(1, 2))
        return rows.transpose(1, 2).reshape(len(rows), -1, *res5.shape[-2:])
    pool = cast(Any, encoder).attnpool
    value = F.conv2d(res5, pool.v_proj.weight[:, :, None, None], pool.v_proj.bias)
    return F.conv2d(value, pool.c_proj.weight[:, :, None, None], pool.c_proj.bias)


def encode_positions(encoder: nn.Module, images: Tensor) -> Tensor:
    """Compute CLIP embeddings at every position of images, for an encoder of any kind: dense zero-shot features.

    A ViT's last block is severed for it, see `vit.embed_patch_map`.

    Args:
        encoder: The image encoder.
        images: Normalised images [B, 3, H, W].

    Returns:
        Embeddings [B, E, h, w], not normalised, at the stride of the last feature map.
    """
    if encoder_kind(encoder) != "vit":
        return encode_dense(encoder, encode_stages(encoder, images, ("res5",))["res5"])
    tokens = vit.encode_tokens(encoder, images)
    before_last = tokens[-2] if len(tokens) > 1 else vit.embed_patches(encoder, images)
    return vit.embed_patch_map(encoder, before_last, images)


def recalibrate_norms(encoder: nn.Module, images: Iterable[Tensor]) -> int:
    """Recompute the running statistics of an image encoder's BatchNorms in place, as means over batches.

    A mask that no training follows shifts the inputs of every layer, so that the statistics of the dense weights no
    longer fit. Weights stay as they are, and so do the modes.

    Args:
        encoder: The image encoder.
        images: Batches of normalised images [B, 3, H, W] on its device.

    Returns:
        The number of batches.
    """
    seen = 0
    with eval_mode(encoder), recompute_statistics(encoder), torch.no_grad():
        for batch in images:
            encode_last(encoder, batch)
            seen += 1
    return seen


class DilatedAvgPool2d(nn.Module):
    """The 2x2 average pool of a strided stage, evaluated at every position with stride 1.

    At the positions that the strided pool would keep, the result is the same. The last rows and columns are repeated
    at the border.

    Args:
        dilation: Distance between the positions that are averaged.
    """

    def __init__(self, dilation: int) -> None:
        super().__init__()
        self.dilation = dilation

    def forward(self, x: Tensor) -> Tensor:
        """Pool [B, C, h, w] to the same shape."""
        step = self.dilation
        right = torch.cat([x[..., step:], x[..., -1:].expand(*x.shape[:-1], step)], dim=-1)
        rows = (x + right) / 2
        below = torch.cat([rows[..., step:, :], rows[..., -1:, :].expand(*rows.shape[:-2], step, -1)], dim=-2)
        return (rows + below) / 2


def set_output_stride(encoder: nn.Module, stride: int) -> None:
    """Set the output stride of a ResNet's backbone in place, without touching a weight.

    Strided stages are evaluated at every position and the convolutions after them are dilated (the a trous algorithm).
    At the positions shared with output stride 32, the features keep their exact values.

    Args:
        encoder: The image encoder.
        stride: 32, 16 or 8. A ConvNeXt takes 32 only.

    Raises:
        InputError: If the stride is not offered, or a stage does not pool by 2.
    """
    if encoder_kind(encoder) == "convnext":
        if stride != 32:
            raise InputError(f"output stride {stride}: only CLIP ResNets offer it; a ConvNeXt runs at 32")
        return
    if stride not in (8, 16, 32):
        raise InputError(f"output stride {stride}: not offered; use 32, 16 or 8")
    inner = cast(Any, encoder)
    dilation = 1
    for number, layer in ((3, inner.layer3), (4, inner.layer4)):
        dilate = 2 ** (number + 1) > stride
        for position, block in enumerate(layer):
            # The first block's 3x3 runs before its pool, on the spacing of the stage before.
            block.conv2.dilation = block.conv2.padding = (dilation, dilation)
            if position == 0:
                if block.stride != 2:
                    raise InputError(f"layer{number}: pools by {block.stride}, 2 is needed to change the output stride")
                pool: nn.Module = DilatedAvgPool2d(dilation) if dilate else nn.AvgPool2d(2)
                block.avgpool = pool
                block.downsample[0] = pool
                dilation *= 2 if dilate else 1


def full_precision(tensor: Tensor) -> AbstractContextManager[object]:
    """Return a context without autocast on the tensor's device (meta tensors have no autocast)."""
    return nullcontext() if tensor.is_meta else torch.autocast(tensor.device.type, enabled=False)
