"""Counting parameters: all, those a mask keeps, those that train; per component.

Buffers (running statistics, text embeddings) are not parameters.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from ovstrans.clip.backbone import find_image_encoder
from ovstrans.clip.weights import encoder_tensors
from ovstrans.errors import InputError, MismatchError
from ovstrans.masks.mask import Mask, require_fit

OTHER = "other"
"""The component of whatever no component names."""


@dataclass
class Params:
    """total: every entry.  nonzero: those that no mask holds at zero.  trainable: those of `nonzero`
    that take gradients and that no freeze plan holds still."""

    total: int = 0
    nonzero: int = 0
    trainable: int = 0

    def add(self, total: int, nonzero: int, trainable: int) -> None:
        """Count another tensor."""
        self.total += total
        self.nonzero += nonzero
        self.trainable += trainable

    def as_json(self) -> dict[str, int]:
        """The entry of a report."""
        return {"total": self.total, "nonzero": self.nonzero, "trainable": self.trainable}


def count_params(
    module: nn.Module,
    components: Mapping[str, nn.Module] | None = None,
    *,
    mask: Mask | None = None,
    frozen: Collection[str] = (),
) -> dict[str, Any]:
    """`params` of a report: {"total", "nonzero", "trainable", "components": {name: the same three}}.

    module: a framework or a tower; meta tensors will do.  components: parts of it; the rest is `other`.
    frozen: layers of the image encoder that a plan freezes.  A tensor used in two places counts once,
    where it comes first. Raises MismatchError where mask or plan name what is not in the tower.
    """
    kept = kept_weights(module, mask)
    still = frozen_weights(module, frozen)
    prefixes = component_prefixes(module, components or {})
    everything, parts = Params(), {name: Params() for name in components or {}}
    for name, parameter in module.named_parameters():
        nonzero = kept.get(name, parameter.numel())
        trains = parameter.requires_grad and name not in still
        counts = (parameter.numel(), nonzero, nonzero if trains else 0)
        everything.add(*counts)
        parts.setdefault(component_of(name, prefixes), Params()).add(*counts)
    return {**everything.as_json(), "components": {name: part.as_json() for name, part in parts.items()}}


def encoder_prefix(module: nn.Module) -> str:
    """What stands before a layer's name inside `module`: "backbone." in a framework, "" in a tower."""
    encoder = find_image_encoder(module)
    name = next(name for name, inner in module.named_modules() if inner is encoder)
    return f"{name}." if name else ""


def kept_weights(module: nn.Module, mask: Mask | None) -> dict[str, int]:
    """Parameter name in `module` to the number of weights the mask keeps of it."""
    if mask is None:
        return {}
    require_fit(mask.shapes, encoder_tensors(module), model=mask.model, where=mask.title)
    prefix = encoder_prefix(module)
    return {prefix + key: int(kept.sum()) for key, kept in mask.tensors.items()}


def frozen_weights(module: nn.Module, frozen: Collection[str]) -> set[str]:
    """The parameters in `module` of the layers that a plan freezes."""
    prefix, names = encoder_prefix(module), {name for name, _ in module.named_parameters()}
    for layer in frozen:
        if f"{prefix}{layer}.weight" not in names:
            raise MismatchError(f"freeze plan: layer {layer} is not in this model; use a plan of its architecture")
    return {name for layer in frozen for name in (f"{prefix}{layer}.weight", f"{prefix}{layer}.bias") if name in names}


def component_prefixes(module: nn.Module, components: Mapping[str, nn.Module]) -> dict[str, str]:
    """Component name to the name of its module inside `module`."""
    names = {id(inner): name for name, inner in module.named_modules()}
    for name, part in components.items():
        if id(part) not in names:
            raise InputError(f"component {name!r}: its module is not part of {type(module).__name__}")
    return {name: names[id(part)] for name, part in components.items()}


def component_of(name: str, prefixes: Mapping[str, str]) -> str:
    """The component that a parameter or module of this name belongs to."""
    for component, prefix in prefixes.items():
        if not prefix or name == prefix or name.startswith(f"{prefix}."):
            return component
    return OTHER
