"""Parameter counts of a module: total, kept by a mask, trainable; and the names that cost reports give its parts.

Buffers (running statistics, text embeddings) are not parameters.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from typing import Any

import torch
from torch import nn

from ovstrans.clip.backbone import find_image_encoder
from ovstrans.clip.layers import layer_parameters, uncalled_layers, weight_name
from ovstrans.clip.load import create_clip
from ovstrans.clip.weights import encoder_tensors
from ovstrans.errors import InputError, MismatchError
from ovstrans.masks.mask import Mask, require_fit

OTHER = "other"
"""The component of everything outside the named components."""

ENCODER_COMPONENTS = ("trunk", "embedding", "attention", "mlp", "stem", "downsampling", "depthwise", "pointwise")
"""Components of the image encoder: all of it, or the parts of a bare ViT or ConvNeXt."""


@dataclass
class ParamCounts:
    """Numbers of parameters.

    Attributes:
        total: All entries.
        nonzero: Entries that no mask holds at zero.
        trainable: Entries of `nonzero` that take gradients and that no freeze plan holds.
    """

    total: int = 0
    nonzero: int = 0
    trainable: int = 0


@dataclass
class Params(ParamCounts):
    """Numbers of parameters of a target.

    Attributes:
        components: Name of a component to its numbers; parameters outside of all components are in "other".
        with_clip: `total` and the parameters of the parts of CLIP that the target leaves out, such as the attention
            pool and the text encoder; None if they are unknown.
    """

    components: dict[str, ParamCounts] = field(default_factory=dict)
    with_clip: int | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the entry `params` of a report."""
        table = asdict(self)
        if self.with_clip is None:
            del table["with_clip"]
        return table

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Params:
        """Read the entry `params` of a report."""
        parts = {name: ParamCounts(**part) for name, part in value["components"].items()}
        return cls(value["total"], value["nonzero"], value["trainable"], parts, value.get("with_clip"))

    def __repr__(self) -> str:
        return f"Params({self.total:,} in all, {self.nonzero:,} nonzero, {self.trainable:,} trainable)"


def count_params(
    module: nn.Module,
    components: Mapping[str, nn.Module] | None = None,
    *,
    mask: Mask | None = None,
    frozen: Collection[str] = (),
) -> Params:
    """Count the parameters of a framework or an image encoder.

    A tensor used in two places counts once, where it comes first.

    Args:
        module: Module to count; meta tensors will do.
        components: Parts of it to count separately.
        mask: Mask of its image encoder.
        frozen: Layers of the image encoder that a plan freezes.

    Raises:
        MismatchError: If mask or plan name something that is not in the image encoder.
    """
    kept = kept_weights(module, mask)
    held = frozen_weights(module, frozen)
    names = LayerNames(module, components or {})
    params = Params(components={name: ParamCounts() for name in components or {}})
    for name, parameter in module.named_parameters():
        nonzero = kept.get(name, parameter.numel())
        trains = parameter.requires_grad and name not in held
        part = params.components.setdefault(names.component(name), ParamCounts())
        for counts in (params, part):
            counts.total += parameter.numel()
            counts.nonzero += nonzero
            counts.trainable += nonzero if trains else 0
    return params


def count_with_clip(module: nn.Module, model: str) -> int | None:
    """Count the parameters of a module and of those parts of its CLIP that it does not hold.

    Args:
        module: A framework or a backbone.
        model: open_clip name of its CLIP.

    Returns:
        The number; None if the model is unknown to open_clip.
    """
    try:
        clip = dict(_clip_parameters(model))
    except InputError:
        return None
    own = [(name, parameter.shape) for name, parameter in module.named_parameters()]
    for name, shape in own:
        parts = name.split(".")
        for begin in range(len(parts)):  # backbone.layer1.0.conv1.weight is visual.layer1.0.conv1.weight in CLIP
            key = f"visual.{'.'.join(parts[begin:])}"
            if clip.get(key) == shape:
                del clip[key]
                break
    return sum(shape.numel() for _, shape in own) + sum(shape.numel() for shape in clip.values())


@lru_cache(maxsize=8)
def _clip_parameters(model: str) -> tuple[tuple[str, torch.Size], ...]:
    """Return name and shape of every parameter of an open_clip model."""
    with torch.device("meta"):
        return tuple((name, parameter.shape) for name, parameter in create_clip(model).named_parameters())


class LayerNames:
    """Names of the modules of a target in cost reports.

    Args:
        module: The module that is counted.
        components: Its named parts, none inside another. A module list that is not itself part of the module names
            the modules in it.

    Raises:
        InputError: If a component is not part of the module.
    """

    def __init__(self, module: nn.Module, components: Mapping[str, nn.Module]) -> None:
        self._root = type(module).__name__
        self._encoder = encoder_prefix(module)
        inner_names = {id(inner): name for name, inner in module.named_modules()}
        self._prefixes: list[tuple[str, str]] = []
        for name, part in components.items():
            for each in part if isinstance(part, nn.ModuleList) and id(part) not in inner_names else (part,):
                if id(each) not in inner_names:
                    raise InputError(f"component {name!r}: its module is not part of {type(module).__name__}")
                self._prefixes.append((name, inner_names[id(each)]))

    def layer(self, name: str) -> str:
        """Return the displayed name of an inner module: layers of the image encoder by their names there."""
        return name.removeprefix(self._encoder) or self._root

    def component(self, name: str) -> str:
        """Return the component that an inner module or a parameter belongs to."""
        for component, prefix in self._prefixes:
            if not prefix or name == prefix or name.startswith(f"{prefix}."):
                return component
        return OTHER


def encoder_prefix(module: nn.Module) -> str:
    """Return what precedes the names of encoder layers in a module: "backbone." in a framework, "" in an encoder."""
    encoder = find_image_encoder(module)
    name = next(name for name, inner in module.named_modules() if inner is encoder)
    return f"{name}." if name else ""


def uncalled_by_encoder(module: nn.Module) -> dict[str, tuple[str, ...]]:
    """Return the uncalled layers of the image encoder by their names in a module; see `clip.layers.uncalled_layers`."""
    prefix = encoder_prefix(module)
    found = uncalled_layers(find_image_encoder(module))
    return {prefix + name: tuple(prefix + layer for layer in layers) for name, layers in found.items()}


def kept_weights(module: nn.Module, mask: Mask | None) -> dict[str, int]:
    """Map the masked parameters of a module, by their names in it, to the number of weights that the mask keeps.

    Raises:
        MismatchError: If the mask is of another architecture.
    """
    if mask is None:
        return {}
    require_fit(mask.shapes, encoder_tensors(module), model=mask.model, where=mask.title)
    prefix = encoder_prefix(module)
    return {prefix + key: int(kept.sum()) for key, kept in mask.tensors.items()}


def frozen_weights(module: nn.Module, frozen: Collection[str]) -> set[str]:
    """Return the names, in a module, of the parameters of the layers that a plan freezes.

    Raises:
        MismatchError: If a layer is not in the image encoder.
    """
    prefix, names = encoder_prefix(module), {name for name, _ in module.named_parameters()}
    for layer in frozen:
        if prefix + weight_name(layer) not in names:
            raise MismatchError(f"freeze plan: layer {layer} is not in this model; use a plan of its architecture")
    return {prefix + name for layer in frozen for name in layer_parameters(layer)} & names
