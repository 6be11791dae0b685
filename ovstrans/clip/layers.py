"""Which tensors of an image encoder are what: prunable convolutions, scopes, matrices with a spectrum.

Layers are named by their key in open_clip's image encoder without `visual.`, never by position:
`layer1.0.conv1` of a ResNet, `trunk.stages.0.blocks.0.mlp.fc1` of a ConvNeXt. The pointwise convolutions
of a ConvNeXt's blocks hold nearly all of its weights, and timm writes most of them as linear layers over
channels-last maps: they count as convolutions here, under either spelling.
"""

from __future__ import annotations

from fnmatch import fnmatchcase

from torch import Tensor, nn

from ovstrans.errors import InputError

_CONVNEXT_BODY = "trunk.stages."

BODY = ("layer1.", "layer2.", "layer3.", "layer4.", _CONVNEXT_BODY)
"""How the names of the body's layers begin, in a ResNet or in a ConvNeXt."""


def find_image_encoder(module: nn.Module) -> nn.Module:
    """The image encoder in a tower, an open_clip CLIP, a framework, or any of them wrapped by DDP."""
    for attribute in ("module", "visual", "backbone"):
        inner = getattr(module, attribute, None)
        if isinstance(inner, nn.Module):
            return find_image_encoder(inner)
    return module


def trunk_convs(encoder: nn.Module) -> dict[str, nn.Conv2d | nn.Linear]:
    """Every convolution, in order (RN50: 55; ConvNeXt-L: 112); the attention pool or projection has none."""
    return {
        name: module
        for name, module in encoder.named_modules()
        if isinstance(module, nn.Conv2d) or (isinstance(module, nn.Linear) and name.startswith(_CONVNEXT_BODY))
    }


def scope_convs(encoder: nn.Module, scope: str = "body") -> dict[str, nn.Conv2d | nn.Linear]:
    """The convolutions that pruning may cut.

    scope: `body` (layer1 to layer4, what OpenTrans transfers; a ConvNeXt's four stages), `trunk` (all
    but the first, what it ranks), or comma-separated patterns over layer names (`layer3.*,layer4.*`).
    Raises InputError for a pattern that matches nothing.
    """
    convs = trunk_convs(encoder)
    if scope == "body":
        return {name: conv for name, conv in convs.items() if name.startswith(BODY)}
    if scope == "trunk":
        return dict(list(convs.items())[1:])
    chosen: set[str] = set()
    for pattern in (part.strip() for part in scope.split(",")):
        found = {name for name in convs if fnmatchcase(name, pattern)}
        if not found:
            raise InputError(
                f"--scope {scope}: {pattern!r} matches no convolution; use body, trunk, or patterns over names "
                f"such as {next(iter(convs))!r} and 'layer4.*'"
            )
        chosen |= found
    return {name: conv for name, conv in convs.items() if name in chosen}


def stage_of(layer: str) -> str:
    """The stage a layer is in: `layer1`, a ConvNeXt's `trunk.stages.0`; the first convolutions are the `stem`."""
    parts = layer.split(".")
    if len(parts) == 1:
        return "stem"
    return ".".join(parts[: 3 if layer.startswith(_CONVNEXT_BODY) else 2 if parts[0] == "trunk" else 1])


def norm_of(layer: str) -> str:
    """The BatchNorm that follows a convolution: `bn2` of `conv2`, `downsample.1` of `downsample.0`."""
    place, _, last = layer.rpartition(".")
    is_worker_rank = "1" if last == "0" else last.replace("conv", "bn")
    return f"{place}.{is_worker_rank}" if place else is_worker_rank


def weight_matrices(encoder: nn.Module) -> dict[str, Tensor]:
    """Every weight with a spectrum: convolutions (4-d) and linear layers (2-d), the head's too.

    Fused attention weights [3E, E] are split into `NAME.q`, `NAME.k`, `NAME.v`. A depthwise kernel
    [C, 1, k, k] is the matrix [C, k*k] of its filters: taken by kernel position it would fall into
    columns, which have no spectrum.
    """
    found: dict[str, Tensor] = {}
    for name, module in encoder.named_modules():
        if isinstance(module, nn.MultiheadAttention) and module.in_proj_weight is not None:
            for part, weight in zip("qkv", module.in_proj_weight.detach().chunk(3), strict=True):
                found[f"{name}.{part}"] = weight
        elif isinstance(module, (nn.Conv2d, nn.Linear)):
            weight = module.weight.detach()
            depthwise = isinstance(module, nn.Conv2d) and 1 < module.groups == module.in_channels
            found[name] = weight.flatten(1) if depthwise else weight
    return found
