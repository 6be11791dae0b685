"""Freezing the layers of a plan, and the modes and statistics of BatchNorm.

A frozen layer has no gradient and no optimizer state, and its weight does not change. Fused queries, keys and values
are frozen as a whole or not at all: autograd computes their gradient in one product, and the optimizer keeps one state.
The BatchNorm after a frozen layer goes on learning, as in the published code (OpenTrans freezes the weights of
convolutions only), unless `freeze_norms` is set.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from ovstrans.clip.backbone import find_image_encoder
from ovstrans.clip.layers import backbone_layers, fused_layer, layer_parameters, norm_name
from ovstrans.environment import Precision, eval_mode, recompute_statistics
from ovstrans.errors import MismatchError
from ovstrans.frameworks.base import Batch, Framework


def check_plan(frozen: Sequence[str], encoder: nn.Module, origin: str) -> None:
    """Check that an image encoder has every layer of a freeze plan.

    Args:
        frozen: Names of the layers.
        encoder: The image encoder.
        origin: Where the plan came from, for messages.

    Raises:
        MismatchError: A layer is missing; the first such one is named.
    """
    layers = backbone_layers(encoder)
    for name in frozen:
        whole = fused_layer(name.rpartition(".")[0])
        if name not in layers and whole in layers and name.endswith((".q", ".k", ".v")):
            raise MismatchError(
                f"{origin}: freezes {name!r}, but queries, keys and values are one tensor, which is frozen as a whole: "
                f"write {whole!r}"
            )
        if name not in layers:
            raise MismatchError(
                f"{origin}: freezes {name!r}, but this model has no such layer ({len(layers)} layers, "
                f"{next(iter(layers))} to {list(layers)[-1]}); the plan is for another architecture, analyze this model"
            )


def freeze(module: nn.Module, frozen: Sequence[str], *, norms: bool = False) -> list[str]:
    """Switch off the gradients of the layers of a plan.

    Call it before the optimizer is built, or call `optim.drop_frozen` after it.

    Args:
        module: An image encoder, a CLIP or a framework.
        frozen: Names of the layers.
        norms: Freeze the scale and shift of the BatchNorms after these layers too.

    Returns:
        Names of the image encoder's parameters that are frozen by this call.
    """
    encoder = find_image_encoder(module)
    layers = set(frozen) | ({norm_name(name) for name in frozen} if norms else set())
    held = {name for layer in layers for name in layer_parameters(layer)}
    parameters = []
    for name, parameter in encoder.named_parameters():
        if name in held:
            parameter.requires_grad_(False)
            parameter.grad = None
            parameters.append(name)
    return parameters


def train_mode(framework: nn.Module, *, norms: str, frozen: Sequence[str] = (), freeze_norms: bool = False) -> None:
    """Put a framework in train mode, except for BatchNorms of the image encoder that must not change.

    A BatchNorm that must not change is in eval mode, and its scale and shift get no gradient.

    Args:
        framework: The framework.
        norms: "train", or "frozen" for every BatchNorm of the image encoder.
        frozen: Names of the frozen layers.
        freeze_norms: Keep the BatchNorms after frozen layers as they are.
    """
    framework.train()
    after_frozen = {norm_name(name) for name in frozen} if freeze_norms else set()
    for name, module in find_image_encoder(framework).named_modules():
        if isinstance(module, _BatchNorm) and (norms == "frozen" or name in after_frozen):
            module.eval()
            module.requires_grad_(False)


def recalibrate(framework: Framework, batches: Iterable[Batch], precision: Precision) -> int:
    """Recompute the running statistics of the image encoder's BatchNorms, as means over batches.

    Pruning shifts the inputs of every layer, so the statistics of the dense weights no longer fit. Weights stay.

    Args:
        framework: The framework; its modes are the same afterwards.
        batches: Batches on the framework's device.
        precision: Precision of the forward pass.

    Returns:
        The number of batches.
    """
    seen = 0
    with eval_mode(framework), recompute_statistics(find_image_encoder(framework)), torch.no_grad():
        for batch in batches:
            with precision.autocast():
                framework.logits(batch.images)
            seen += 1
    return seen
