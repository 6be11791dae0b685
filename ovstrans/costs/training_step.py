"""Multiply-accumulates of a training step, layer by layer, counted three ways.

executed    What autograd runs: masked weights run dense, a layer that does not train has no weight gradient, a layer
            with nothing to train before it no input gradient.
sparse      What an engine that skips zeros would run of that: every product of a masked weight at its density.
            Forward and input gradient multiply by the weight, whose zeros are skipped; of the weight gradient only the
            kept entries are wanted.
published   OpenTrans' formula (supplement 6.2) on the inference pass: for a layer of C MACs with density d, forward
            dC, input gradient C (of every layer, also in a frozen prefix, also of the first), weight gradient dC unless
            the layer is frozen.

The forward pass of a step is that of training, not that of inference: a mask framework is supervised at every
prediction of its decoder, class names are the base classes, distillation has projections of its own, and no scores are
made at pixels. The losses themselves need labels and a matching, which meta tensors cannot give. They have few
products: those of the matching are in `costs.training_run`; the rest (captions with images, regions with regions) is
below 0.01 % of a step and left out.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ovstrans.clip.backbone import find_image_encoder
from ovstrans.clip.layers import norm_name, weight_name
from ovstrans.costs.autograd import StepMacs, trace_step
from ovstrans.costs.flops import Flops, count_flops
from ovstrans.costs.params import (
    ENCODER_COMPONENTS,
    LayerNames,
    encoder_prefix,
    frozen_weights,
    kept_weights,
    uncalled_by_encoder,
)
from ovstrans.frameworks.base import Framework
from ovstrans.masks.mask import Mask

WAYS = ("executed", "sparse", "published")
"""The ways of counting a step."""

STEP_BATCH = 2
"""Images of a counted step: the fewest that a BatchNorm after global pooling trains with."""


@dataclass(kw_only=True)
class LayerStep(StepMacs):
    """MACs of a layer in a training step.

    Attributes:
        name: Name of the layer; layers of the image encoder without prefix.
        component: Component that it belongs to.
    """

    name: str
    component: str


@dataclass
class TrainingStep(StepMacs):
    """MACs of a training step, per image.

    Attributes:
        components: Component to its MACs, per image.
        layers: MACs layer by layer, of `batch` images; None if they were not kept.
        batch: Number of images that `layers` counts.
    """

    components: dict[str, StepMacs] = field(default_factory=dict)
    layers: tuple[LayerStep, ...] | None = field(default=None, repr=False)
    batch: int = 1

    @classmethod
    def from_layers(cls, layers: Sequence[LayerStep], batch: int) -> TrainingStep:
        """Sum up layers that were counted for `batch` images."""
        parts: dict[str, list[LayerStep]] = {}
        for layer in layers:
            parts.setdefault(layer.component, []).append(layer)
        components = {name: _per_image(part, batch) for name, part in parts.items()}
        return cls(**asdict(_per_image(layers, batch)), components=components, layers=tuple(layers), batch=batch)

    def to_json(self) -> dict[str, Any]:
        """Return the entry of a report: MACs per image."""
        entry: dict[str, Any] = {
            "forward": self.forward,
            "input_gradient": self.input_gradient,
            "weight_gradient": self.weight_gradient,
            "backward": self.backward,
            "total": self.total,
            "components": {name: asdict(part) for name, part in self.components.items()},
        }
        if self.layers is not None:
            entry["layers"] = [
                {"name": layer.name, "component": layer.component, **asdict(_per_image([layer], self.batch))}
                for layer in self.layers
            ]
        return entry

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> TrainingStep:
        """Read the entry of a report."""
        layers = value.get("layers")
        return cls(
            value["forward"],
            value["input_gradient"],
            value["weight_gradient"],
            components={name: StepMacs(**part) for name, part in value["components"].items()},
            layers=None if layers is None else tuple(LayerStep(**layer) for layer in layers),
        )

    def __repr__(self) -> str:
        return (
            f"TrainingStep({self.total / 1e9:.4g} GMAC per image: {self.forward / 1e9:.4g} forward, "
            f"{self.input_gradient / 1e9:.4g} input gradient, {self.weight_gradient / 1e9:.4g} weight gradient)"
        )


@dataclass
class StepCosts:
    """A training step, counted in each of `WAYS`.

    Attributes:
        executed: What autograd runs.
        sparse: What an engine that skips the mask's zeros would run.
        published: By OpenTrans' formula.
    """

    executed: TrainingStep
    sparse: TrainingStep
    published: TrainingStep


def count_step(
    module: nn.Module,
    image_size: tuple[int, int],
    *,
    components: Mapping[str, nn.Module] | None = None,
    mask: Mask | None = None,
    frozen: Collection[str] = (),
    freeze_norms: bool = False,
    norms: str = "train",
    flops: Flops | None = None,
) -> StepCosts:
    """Count a training step in each of `WAYS`.

    Args:
        module: As in `count_executed_step`.
        image_size: Height and width.
        components: Parts of the module to count separately.
        mask: Mask of its image encoder.
        frozen: As in `count_executed_step`.
        freeze_norms: As in `count_executed_step`.
        norms: As in `count_executed_step`.
        flops: The forward pass that the published formula starts from, with its layers; counted if None.

    Raises:
        MismatchError: If mask or plan name something that is not in the image encoder.
    """
    parts = components or {}
    executed = count_executed_step(
        module, image_size, components=parts, frozen=frozen, freeze_norms=freeze_norms, norms=norms
    )
    if flops is None:
        flops = count_flops(module, image_size, components=parts, mask=mask)
    fixed = [name for name, part in parts.items() if _never_trains(part)]
    return StepCosts(
        executed=executed,
        sparse=count_sparse_step(executed, module, mask),
        published=count_published_step(flops, frozen=frozen, fixed=fixed),
    )


def count_executed_step(
    module: nn.Module,
    image_size: tuple[int, int],
    *,
    components: Mapping[str, nn.Module] | None = None,
    frozen: Collection[str] = (),
    freeze_norms: bool = False,
    norms: str = "train",
    batch: int = STEP_BATCH,
) -> TrainingStep:
    """Count what autograd executes in a step: a real forward and backward pass over meta tensors.

    Args:
        module: A framework, whose losses start from its `training_outputs`; or any other module, whose output is the
            loss. Weights of any device or on meta.
        image_size: Height and width.
        components: Parts of the module to count separately.
        frozen: Layers of the image encoder that a plan freezes.
        freeze_norms: If True, the BatchNorms of frozen layers are frozen too.
        norms: "frozen" if no BatchNorm of the image encoder trains, else "train".
        batch: Number of images.

    Raises:
        MismatchError: If the plan names something that is not in the image encoder.
    """
    held = find_frozen_params(module, frozen, freeze_norms=freeze_norms, norms=norms)
    modes = {inner: inner.training for inner in module.modules()}
    module.train()
    try:
        uncalled = uncalled_by_encoder(module)
        shape = (batch, 3, *image_size)
        macs = trace_step(module, shape, _training_outputs, frozen_params=held, uncalled=uncalled)
    finally:
        for inner, training in modes.items():
            inner.training = training
    names = LayerNames(module, components or {})
    return TrainingStep.from_layers(
        [
            LayerStep(**asdict(each), name=names.layer(name), component=names.component(name))
            for name, each in macs.items()
        ],
        batch,
    )


def count_sparse_step(executed: TrainingStep, module: nn.Module, mask: Mask | None) -> TrainingStep:
    """Count what an engine that skips the mask's zeros would run of an executed step.

    The figures are exact: products / weights x weights kept.

    Args:
        executed: The step as counted, with its layers.
        module: The module that it was counted of.
        mask: Mask of its image encoder; None changes nothing.

    Raises:
        MismatchError: If the mask is of another architecture.
    """
    kept, prefix = kept_weights(module, mask), encoder_prefix(module)
    sizes = {name: parameter.numel() for name, parameter in module.named_parameters()}
    layers = []
    for layer in executed.layers or ():
        weight = prefix + weight_name(layer.name)
        if layer.component in ENCODER_COMPONENTS and weight in kept:
            layer = replace(
                layer,
                forward=_kept_macs(layer.forward, kept[weight], sizes[weight]),
                input_gradient=_kept_macs(layer.input_gradient, kept[weight], sizes[weight]),
                weight_gradient=_kept_macs(layer.weight_gradient, kept[weight], sizes[weight]),
            )
        layers.append(layer)
    return TrainingStep.from_layers(layers, executed.batch)


def count_published_step(flops: Flops, *, frozen: Collection[str] = (), fixed: Collection[str] = ()) -> TrainingStep:
    """Apply OpenTrans' formula (supplement 6.2) to a forward pass, layer by layer.

    Args:
        flops: The forward pass, with its layers.
        frozen: Layers of the image encoder that a plan freezes.
        fixed: Components of which nothing trains.
    """
    layers = []
    for layer in flops.layers or ():
        held = layer.component in fixed or (layer.component in ENCODER_COMPONENTS and layer.name in frozen)
        weight_gradient = 0 if held else layer.effective
        layers.append(
            LayerStep(layer.effective, layer.dense, weight_gradient, name=layer.name, component=layer.component)
        )
    return TrainingStep.from_layers(layers, flops.batch)


def find_frozen_params(
    module: nn.Module, frozen: Collection[str], *, freeze_norms: bool = False, norms: str = "train"
) -> set[str]:
    """Return the names, in a module, of the parameters that do not train under a plan.

    Args:
        module: As in `count_executed_step`.
        frozen: As in `count_executed_step`.
        freeze_norms: As in `count_executed_step`.
        norms: As in `count_executed_step`.

    Raises:
        MismatchError: If the plan names something that is not in the image encoder.
    """
    held = frozen_weights(module, frozen)
    prefix = encoder_prefix(module)
    frozen_norms = {norm_name(name) for name in frozen} if freeze_norms else set()
    for name, inner in find_image_encoder(module).named_modules():
        if isinstance(inner, _BatchNorm) and (norms == "frozen" or name in frozen_norms):
            held |= {f"{prefix}{name}.{own}" for own, _ in inner.named_parameters()}
    return held


def _training_outputs(module: nn.Module, images: Tensor) -> Sequence[Tensor]:
    """Compute what the losses of a framework start from, for images [B, 3, H, W]; of another module its output."""
    return module.training_outputs(images) if isinstance(module, Framework) else [module(images)]


def _never_trains(part: nn.Module) -> bool:
    """Return whether a part has parameters and none of them trains."""
    trains = [each.requires_grad for each in part.parameters()]
    return bool(trains) and not any(trains)


def _per_image(layers: Sequence[StepMacs], batch: int) -> StepMacs:
    return StepMacs(
        sum(layer.forward for layer in layers) // batch,
        sum(layer.input_gradient for layer in layers) // batch,
        sum(layer.weight_gradient for layer in layers) // batch,
    )


def _kept_macs(macs: int, kept: int, weights: int) -> int:
    positions, rest = divmod(macs, weights)
    # A severed attention uses a third of its fused weight; the density of the whole stands for that of the part.
    return positions * kept if rest == 0 else round(macs * kept / weights)
