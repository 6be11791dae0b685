"""AdamW and its parameter groups."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import nn

_NORMS = (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm, nn.Embedding)


class Rates(Protocol):
    """lr: of the head.  backbone_rate: the trunk learns at `lr` times this.  weight_decay: of what decays."""

    @property
    def lr(self) -> float: ...
    @property
    def backbone_rate(self) -> float: ...
    @property
    def weight_decay(self) -> float: ...


def parameter_groups(model: nn.Module, settings: Rates, backbone: str = "backbone") -> list[dict]:
    """Groups for AdamW: trainable parameters by place (backbone or head) and by decay.

    The trunk (the submodule `backbone`) learns at `backbone_rate` times the rate. Only weight
    matrices and kernels decay: norms, biases, embeddings and learned scalars or vectors (temperature,
    non-object vector) do not. Frozen parameters are in no group, hence get no optimizer state. Each
    group carries its own `base_lr`, which `set_rate` multiplies. All four groups are always there, some
    maybe empty, so that a resumed run finds those it left.
    """
    exempt = {
        id(p) for module in model.modules() if isinstance(module, _NORMS) for p in module.parameters(recurse=False)
    }
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {(t, d): [] for t in (False, True) for d in (False, True)}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            trunk = name.startswith(f"{backbone}.")
            decays = name.endswith("weight") and parameter.dim() > 1 and id(parameter) not in exempt
            groups[trunk, decays].append(parameter)
    result = []
    for (trunk, decays), parameters in groups.items():
        rate = settings.lr * (settings.backbone_rate if trunk else 1.0)
        result.append(
            {
                "params": parameters,
                "name": f"{'backbone' if trunk else 'head'}{'' if decays else ', no decay'}",
                "lr": rate,
                "base_lr": rate,
                "weight_decay": settings.weight_decay if decays else 0.0,
            }
        )
    return result


def make_optimizer(model: nn.Module, settings: Rates, backbone: str = "backbone") -> torch.optim.AdamW:
    """AdamW over the trainable parameters; see `parameter_groups`."""
    return torch.optim.AdamW(parameter_groups(model, settings, backbone), lr=settings.lr)


def drop_frozen(optimizer: torch.optim.Optimizer) -> int:
    """Take parameters that no longer require a gradient out of the optimizer, with their state.

    The state of the others stays as it is. Returns how many were dropped.
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
    """Set every group's rate to `factor` times its base rate."""
    for group in optimizer.param_groups:
        group["lr"] = group.get("base_lr", group["lr"]) * factor
