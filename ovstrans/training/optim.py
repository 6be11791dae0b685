"""AdamW and its parameter groups."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import nn

_NORMS = (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm, nn.Embedding)


class Rates(Protocol):
    """Learning rates and weight decay; `recipes.schema.Optimizer` has them."""

    @property
    def lr(self) -> float:
        """Learning rate of the head."""

    @property
    def backbone_rate(self) -> float:
        """Factor on it for the backbone."""

    @property
    def weight_decay(self) -> float:
        """Weight decay."""


def parameter_groups(model: nn.Module, settings: Rates, backbone: str = "backbone") -> list[dict[str, Any]]:
    """Group the trainable parameters for AdamW: backbone or head, with weight decay or without.

    Weight matrices and kernels decay. Norms, biases, embeddings, and learned scalars and vectors (the temperature, the
    non-object vector) do not. Frozen parameters are in no group, hence get no optimizer state. There are always four
    groups, some of them maybe empty, so that a resumed run finds the groups that it saved.

    Args:
        model: The model.
        settings: Learning rates and weight decay.
        backbone: Name of the submodule that is the backbone.

    Returns:
        Groups with `params`, `name`, `lr`, `weight_decay`, and `base_lr`, which `set_rate` multiplies.
    """
    exempt = {
        id(p) for module in model.modules() if isinstance(module, _NORMS) for p in module.parameters(recurse=False)
    }
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {(b, d): [] for b in (False, True) for d in (False, True)}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            in_backbone = name.startswith(f"{backbone}.")
            decays = name.endswith("weight") and parameter.dim() > 1 and id(parameter) not in exempt
            groups[in_backbone, decays].append(parameter)
    result = []
    for (in_backbone, decays), parameters in groups.items():
        rate = settings.lr * (settings.backbone_rate if in_backbone else 1.0)
        result.append(
            {
                "params": parameters,
                "name": f"{'backbone' if in_backbone else 'head'}{'' if decays else ', no decay'}",
                "lr": rate,
                "base_lr": rate,
                "weight_decay": settings.weight_decay if decays else 0.0,
            }
        )
    return result


def make_optimizer(model: nn.Module, settings: Rates, backbone: str = "backbone") -> torch.optim.AdamW:
    """Return AdamW over the trainable parameters; see `parameter_groups`."""
    return torch.optim.AdamW(parameter_groups(model, settings, backbone), lr=settings.lr)


def drop_frozen(optimizer: torch.optim.Optimizer) -> int:
    """Remove parameters that no longer require a gradient from the optimizer, with their state.

    Returns:
        The number of parameters removed.
    """
    dropped = 0
    for group in optimizer.param_groups:
        frozen = [parameter for parameter in group["params"] if not parameter.requires_grad]
        for parameter in frozen:
            parameter.grad = None
            optimizer.state.pop(parameter, None)
        group["params"] = [parameter for parameter in group["params"] if parameter.requires_grad]
        dropped += len(frozen)
    return dropped


def set_rate(optimizer: torch.optim.Optimizer, factor: float) -> None:
    """Set the learning rate of every group to `factor` times its base rate."""
    for group in optimizer.param_groups:
        group["lr"] = group.get("base_lr", group["lr"]) * factor
