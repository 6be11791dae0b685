"""Layers of an image encoder by name: which can be pruned, which a freeze plan chooses from, which have a spectrum.

A layer is named by its key in open_clip's image encoder without `visual.`, never by position: `layer1.0.conv1` of a
ResNet, `trunk.stages.0.blocks.0.mlp.fc1` of a ConvNeXt, `transformer.resblocks.0.mlp.c_fc` of a ViT (`trunk` is the
name of timm's model in open_clip's). Queries, keys and values of open_clip's ViTs are one bare parameter without a
module, `transformer.resblocks.0.attn.in_proj_weight`; the layer has that name too.

timm writes most of a ConvNeXt's pointwise convolutions, which hold nearly all of its weights, as linear layers over
channels-last maps. They count as convolutions here, whichever way they are written.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any, cast

import torch
from torch import Tensor, nn

from ovstrans.errors import InputError

CONVNEXT_BODY = "trunk.stages."
"""Prefix of the layers in the stages of a ConvNeXt."""

VIT_BODY = ("transformer.resblocks.", "trunk.blocks.")
"""Prefixes of the layers in the blocks of a ViT: of open_clip's, and of timm's."""

BODY = ("layer1.", "layer2.", "layer3.", "layer4.", CONVNEXT_BODY, *VIT_BODY)
"""Prefixes of the names of the body's layers, in any image encoder."""

_HEAD = ("attnpool.", "attn_pool.", "trunk.attn_pool.", "trunk.head.")

_BARE = "in_proj_weight"
"""Last part of the name of fused queries, keys and values that are a bare parameter, which no module holds."""

_PART = re.compile(r"(?P<attention>.+)\.[qkv](?:\.\d+)?")


def weight_name(layer: str) -> str:
    """Return the name of a layer's weight: `conv1.weight` of `conv1`; a bare parameter is named as its layer."""
    return layer if layer.endswith(_BARE) else f"{layer}.weight"


def layer_parameters(layer: str) -> tuple[str, ...]:
    """Return the names of the parameters that a layer may have: its weight, and its bias or biases."""
    if layer.endswith(_BARE):
        return layer, f"{layer.removesuffix('weight')}bias"
    own = (f"{layer}.weight", f"{layer}.bias")
    attention, _, last = layer.rpartition(".")
    return (*own, f"{attention}.q_bias", f"{attention}.v_bias") if last == "qkv" else own  # EVA's biases lie apart


def backbone_layers(encoder: nn.Module) -> dict[str, Tensor]:
    """Return the weight of every layer of the backbone that can be pruned, by name and in order.

    These are all convolutions (RN50 has 55, ConvNeXt-L 112), and of a ViT the patch embedding and the matrices of the
    blocks (four a block, fused attention as one).
    """
    found: dict[str, Tensor] = {}
    for name, module in encoder.named_modules():
        if name.startswith(_HEAD):
            continue
        if isinstance(module, nn.Conv2d) or (isinstance(module, nn.Linear) and name.startswith(BODY)):
            found[name] = module.weight
        elif _bare_weight(module) is not None:
            found[f"{name}.{_BARE}"] = cast(Tensor, _bare_weight(module))
    return found


def scope_layers(encoder: nn.Module, scope: str = "body") -> dict[str, Tensor]:
    """Return the weights of the layers in a pruning scope, by layer name and in order.

    Args:
        encoder: The image encoder.
        scope: `body` is layer1 to layer4, which OpenTrans transfers; the four stages of a ConvNeXt without their
            depthwise convolutions, which hold few weights and are sensitive; the blocks of a ViT. `backbone` is all
            but the first layer, which OpenTrans ranks. Anything else is a list of comma-separated patterns over layer
            names, such as `layer3.*,layer4.*` or `*.mlp.*`.

    Raises:
        InputError: If a pattern matches no layer, or nothing is left.
    """
    layers = backbone_layers(encoder)
    if scope == "body":
        depthwise = find_depthwise(encoder)
        return {name: weight for name, weight in layers.items() if name.startswith(BODY) and name not in depthwise}
    if scope == "backbone":
        return dict(list(layers.items())[1:])
    chosen: set[str] = set()
    for pattern in (part.strip() for part in scope.split(",")):
        found = {name for name in layers if fnmatchcase(name, pattern)}
        if not found:
            last = list(layers)[-1]
            raise InputError(
                f"`scope={scope}`: {pattern!r} matches no layer that can be pruned; use body, backbone, or patterns "
                f"over layer names such as {next(iter(layers))!r} and '{last.rpartition('.')[0]}.*'"
            )
        chosen |= found
    return {name: weight for name, weight in layers.items() if name in chosen}


def find_depthwise(encoder: nn.Module) -> set[str]:
    """Return the names of the depthwise convolutions: one filter a channel."""
    return {name for name, module in encoder.named_modules() if isinstance(module, nn.Conv2d) and _is_depthwise(module)}


def stage_name(layer: str) -> str:
    """Return the stage that a layer belongs to: `stem`, `layer1`, `trunk.stages.0` of a ConvNeXt, a block of a ViT."""
    parts = layer.split(".")
    if len(parts) == 1 or "patch_embed" in parts:
        return "stem"
    return ".".join(parts[: 3 if layer.startswith((CONVNEXT_BODY, *VIT_BODY)) else 2 if parts[0] == "trunk" else 1])


def norm_name(layer: str) -> str:
    """Return the name of the BatchNorm after a ResNet's convolution: `bn2` for `conv2`, `downsample.1` for `.0`."""
    parent, _, last = layer.rpartition(".")
    norm = "1" if last == "0" else last.replace("conv", "bn")
    return f"{parent}.{norm}" if parent else norm


def weight_matrices(encoder: nn.Module, *, heads: bool = False) -> dict[str, Tensor]:
    """Return every weight that has a spectrum, by layer name: convolutions (4-d) and linear layers (2-d).

    The head's layers are among them. Fused attention weights [3E, E] are split into `NAME.q`, `NAME.k` and `NAME.v`,
    where NAME is the attention. A depthwise kernel [C, 1, k, k] becomes the matrix [C, k*k] of its filters, because its
    slices by kernel position are single columns, which have no spectrum.

    Args:
        encoder: The image encoder.
        heads: Split fused attention weights further, into the rows of each head: `NAME.q.0`, `NAME.q.1`, ...
    """
    found: dict[str, Tensor] = {}
    for name, module in encoder.named_modules():
        fused = _fused_weight(module)
        if fused is not None:
            for part, weight in zip("qkv", fused.detach().chunk(3), strict=True):
                rows = weight.chunk(cast(Any, module).num_heads) if heads else [weight]
                for number, each in enumerate(rows):
                    found[f"{name}.{part}.{number}" if heads else f"{name}.{part}"] = each
        elif isinstance(module, (nn.Conv2d, nn.Linear)) and not _is_fused_layer(encoder, name):
            weight = module.weight.detach()
            found[name] = weight.flatten(1) if isinstance(module, nn.Conv2d) and _is_depthwise(module) else weight
    return found


def plan_layers(shapes: Mapping[str, Sequence[int]]) -> dict[str, tuple[str, ...]]:
    """Return the layers that a freeze plan chooses from, each with the rows of an analysis that describe it.

    In a ViT these are the matrices of the blocks. Fused queries, keys and values are one tensor, of which no part can
    be frozen alone: neither its gradient nor its optimizer state would be saved. They are one layer of three rows, or
    of three rows a head. In any other encoder it is the convolutions, or if there are none all layers.

    Args:
        shapes: Shape of each row's weight, by the row's name; see `weight_matrices`.
    """
    attentions = {match["attention"] for match in map(_PART.fullmatch, shapes) if match}
    fused = {name for name in attentions if all(_has_part(shapes, f"{name}.{part}") for part in "qkv")}
    blocks = tuple({f"{name.rpartition('.')[0]}." for name in fused} | set(VIT_BODY))
    inside = [name for name in shapes if name.startswith(blocks) and len(shapes[name]) == 2]
    if not inside:
        inside = [name for name, shape in shapes.items() if len(shape) > 2 or name.startswith(CONVNEXT_BODY)]
    groups: dict[str, tuple[str, ...]] = {}
    for name in inside or shapes:
        match = _PART.fullmatch(name)
        if match and match["attention"] in fused:
            layer = fused_layer(match["attention"])
        else:
            layer = name
        groups[layer] = (*groups.get(layer, ()), name)
    return groups


def fused_layer(attention: str) -> str:
    """Return the name of the layer that fuses the queries, keys and values of an attention: timm's is a module."""
    return f"{attention}.qkv" if attention.startswith("trunk.") else f"{attention}.{_BARE}"


def uncalled_layers(module: nn.Module) -> dict[str, tuple[str, ...]]:
    """Return the layers that are never called, because their attention multiplies by their weights itself.

    Args:
        module: Any module.

    Returns:
        Name of the attention to the names of such layers: all of torch's own, the fused one of timm's EVA.
    """
    found: dict[str, tuple[str, ...]] = {}
    for name, inner in module.named_modules():
        prefix = f"{name}." if name else ""
        if isinstance(inner, nn.MultiheadAttention) and inner.in_proj_weight is not None:
            found[name] = (f"{prefix}{_BARE}", f"{prefix}out_proj")
        elif getattr(inner, "q_bias", None) is not None and isinstance(getattr(inner, "qkv", None), nn.Linear):
            found[name] = (f"{prefix}qkv",)
    return found


def backbone_shapes(weights: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the weights of two or more dimensions, by name, without those of a pooling attention.

    They tell one architecture from another whatever a framework did to the head.

    Args:
        weights: Parameters or a state dict of an image encoder.
    """
    return {
        key: tuple(value.shape)
        for key, value in weights.items()
        if key.endswith("weight") and value.dim() >= 2 and not key.startswith(_HEAD)
    }


def _bare_weight(module: nn.Module) -> Tensor | None:
    """Return the fused weight of queries, keys and values that a module holds as a bare parameter."""
    weight = getattr(module, _BARE, None)
    return weight if isinstance(weight, torch.Tensor) else None


def _fused_weight(module: nn.Module) -> Tensor | None:
    """Return the fused weight [3E, E] of an attention, wherever it lies."""
    bare, linear = _bare_weight(module), getattr(module, "qkv", None)
    return linear.weight if bare is None and isinstance(linear, nn.Linear) else bare


def _is_fused_layer(encoder: nn.Module, name: str) -> bool:
    parent, _, last = name.rpartition(".")
    return last == "qkv" and _fused_weight(encoder.get_submodule(parent)) is not None


def _is_depthwise(conv: nn.Conv2d) -> bool:
    return 1 < conv.groups == conv.in_channels


def _has_part(names: Mapping[str, object], part: str) -> bool:
    return part in names or f"{part}.0" in names
