"""The freeze plan in force, and how BatchNorm behaves under it.

A frozen layer has no gradient, no optimizer state and an unchanging weight. Its BatchNorm goes on
learning, as in the published code (OpenTrans freezes convolution weights only), unless `freeze_norms`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from ovstrans.clip.backbone import backbone_convs, find_image_encoder, norm_name
from ovstrans.errors import MismatchError
from ovstrans.frameworks.base import Batch, Framework
from ovstrans.training.precision import Precision


def check_plan(frozen: Sequence[str], encoder: nn.Module, origin: str) -> None:
    """MismatchError naming the first planned layer that the tower has not."""
    convs = backbone_convs(encoder)
    for name in frozen:
        if name not in convs:
            raise MismatchError(
                f"{origin}: freezes {name!r}, which this model has not ({len(convs)} convolutions, "
                f"{next(iter(convs))} to {list(convs)[-1]}): a plan for another architecture; analyze this model"
            )


def freeze(module: nn.Module, frozen: Sequence[str], *, norms: bool = False) -> list[str]:
    """Switch off the gradients of the planned layers, and of their BatchNorms where `norms`.

    Call it before the optimizer is built, or follow it with `optim.drop_frozen`. Everything else is
    left as it is. Returns the names of the tower's parameters that it froze.
    """
    encoder = find_image_encoder(module)
    layers = set(frozen) | ({norm_name(name) for name in frozen} if norms else set())
    done = []
    for name, parameter in encoder.named_parameters():
        if name.rpartition(".")[0] in layers:
            parameter.requires_grad_(False)
            parameter.grad = None
            done.append(name)
    return done


def train_mode(framework: nn.Module, *, norms: str, frozen: Sequence[str] = (), freeze_norms: bool = False) -> None:
    """Put a framework in train mode, with those BatchNorms of the backbone in eval mode that must not move.

    norms: "train", or "frozen" (running statistics and affine of every backbone BatchNorm fixed).
    freeze_norms: the same for the BatchNorms of frozen layers.
    """
    framework.train()
    still = {norm_name(name) for name in frozen} if freeze_norms else set()
    for name, module in find_image_encoder(framework).named_modules():
        if isinstance(module, _BatchNorm) and (norms == "frozen" or name in still):
            module.eval()
            module.requires_grad_(False)


def recalibrate(framework: Framework, batches: Iterable[Batch], precision: Precision) -> int:
    """Recompute the running statistics of the backbone's BatchNorms as plain means over the batches.

    Pruning shifts what every layer sees; the statistics of the dense weights no longer fit. Weights
    are untouched. Returns the number of batches seen.
    """
    seen = 0
    framework.eval()
    with _cumulative(find_image_encoder(framework)), torch.no_grad():
        for batch in batches:
            with precision.autocast():
                framework.logits(batch.images)
            seen += 1
    return seen


@contextmanager
def _cumulative(encoder: nn.Module) -> Iterator[None]:
    norms = [module for module in encoder.modules() if isinstance(module, _BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None
        norm.train()
    try:
        yield
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
            norm.eval()
