"""Multiply-accumulates of a training step, layer by layer, three ways.

executed    what autograd runs: masked weights run dense, what does not train has no weight gradient, what has
            nothing to train before it no input gradient.
sparse      what an engine that skips zeros would run of that: every product of a masked weight at its density.
            Forward and input gradient multiply by the weight, whose zeros are skipped; of the weight gradient
            only the kept entries are wanted.
published   OpenTrans' formula (supplement 6.2) on the inference pass: of a layer of C MACs with density d,
            forward dC, input gradient C (of every layer, also in a frozen prefix, also of the first), weight
            gradient dC unless the layer is frozen.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from ovstrans.clip.backbone import find_image_encoder, norm_name
from ovstrans.costs.autograd import StepMacs, count_step
from ovstrans.costs.flops import Flops
from ovstrans.costs.objective import training_outputs
from ovstrans.costs.params import component_of, component_prefixes, encoder_prefix, frozen_weights, kept_weights
from ovstrans.masks.mask import Mask

STEP_BATCH = 2
"""Images of a counted step: the least that a BatchNorm after global pooling trains with."""


@dataclass(frozen=True)
class LayerTraining:
    """name, component: as in `LayerFlops`.  The rest: MACs of the whole batch."""

    name: str
    component: str
    forward: int
    input_gradient: int
    weight_gradient: int

    @property
    def total(self) -> int:
        """All three."""
        return self.forward + self.input_gradient + self.weight_gradient


@dataclass(frozen=True)
class TrainingFlops:
    """A step of `batch` images, layer by layer; its sums are MACs of one image."""

    layers: tuple[LayerTraining, ...]
    batch: int

    @property
    def forward(self) -> int:
        """Of the forward pass."""
        return sum(layer.forward for layer in self.layers) // self.batch

    @property
    def input_gradient(self) -> int:
        """Of the gradients of what layers are given."""
        return sum(layer.input_gradient for layer in self.layers) // self.batch

    @property
    def weight_gradient(self) -> int:
        """Of the gradients of weights."""
        return sum(layer.weight_gradient for layer in self.layers) // self.batch

    @property
    def backward(self) -> int:
        """Both gradients."""
        return self.input_gradient + self.weight_gradient

    @property
    def total(self) -> int:
        """forward + backward."""
        return self.forward + self.backward

    def components(self) -> dict[str, dict[str, int]]:
        """{"forward", "input_gradient", "weight_gradient"} of each component, of one image."""
        parts: dict[str, list[LayerTraining]] = {}
        for layer in self.layers:
            parts.setdefault(layer.component, []).append(layer)
        return {name: TrainingFlops(tuple(part), self.batch)._sums() for name, part in parts.items()}

    def as_json(self, *, per_layer: bool = False) -> dict[str, Any]:
        """The entry of a report: MACs of one image."""
        entry: dict[str, Any] = {
            **self._sums(),
            "backward": self.backward,
            "total": self.total,
            "components": self.components(),
        }
        if per_layer:
            entry["layers"] = [
                {"name": layer.name, "component": layer.component, **TrainingFlops((layer,), self.batch)._sums()}
                for layer in self.layers
            ]
        return entry

    def _sums(self) -> dict[str, int]:
        return {
            "forward": self.forward,
            "input_gradient": self.input_gradient,
            "weight_gradient": self.weight_gradient,
        }


def executed_training(
    module: nn.Module,
    image_size: tuple[int, int],
    *,
    components: Mapping[str, nn.Module] | None = None,
    frozen: Collection[str] = (),
    freeze_norms: bool = False,
    norms: str = "train",
    batch: int = STEP_BATCH,
) -> TrainingFlops:
    """What autograd executes in a step, by torch's dispatch counter on a real backward pass over meta tensors.

    module: a framework, whose losses see what `objective.training_outputs` gives, or any other module, whose
    output is the loss; weights of any device, or meta.  components: its parts, by name.  frozen: layers of the
    image encoder that a plan holds still.  freeze_norms: whether their BatchNorms are still too.  norms: "frozen"
    where no BatchNorm of the tower trains.  Raises MismatchError where the plan names what is not in the tower.
    """
    still = still_parameters(module, frozen, freeze_norms=freeze_norms, norms=norms)
    modes = {inner: inner.training for inner in module.modules()}
    module.train()
    try:
        macs = count_step(module, (batch, 3, *image_size), training_outputs, still=still)
    finally:
        for inner, was in modes.items():
            inner.training = was
    return _by_layer(module, macs, components or {}, batch)


def still_parameters(
    module: nn.Module, frozen: Collection[str], *, freeze_norms: bool = False, norms: str = "train"
) -> set[str]:
    """The parameters in `module` that do not train under a plan; see `executed_training`."""
    still = frozen_weights(module, frozen)
    prefix = encoder_prefix(module)
    quiet = {norm_name(name) for name in frozen} if freeze_norms else set()
    for name, inner in find_image_encoder(module).named_modules():
        if isinstance(inner, _BatchNorm) and (norms == "frozen" or name in quiet):
            still |= {f"{prefix}{name}.{own}" for own, _ in inner.named_parameters()}
    return still


def sparse_training(executed: TrainingFlops, module: nn.Module, mask: Mask | None) -> TrainingFlops:
    """What an engine that skips the mask's zeros would run of an `executed` step of the module.

    Exact: products / weights x weights kept. Raises MismatchError where the mask is of another architecture.
    """
    kept, prefix = kept_weights(module, mask), encoder_prefix(module)
    sizes = {name: parameter.numel() for name, parameter in module.named_parameters()}
    layers = []
    for layer in executed.layers:
        weight = f"{prefix}{layer.name}.weight"
        if layer.component != "trunk" or weight not in kept:
            layers.append(layer)
            continue
        share = (kept[weight], sizes[weight])
        layers.append(
            replace(
                layer,
                forward=_shared(layer.forward, share),
                input_gradient=_shared(layer.input_gradient, share),
                weight_gradient=_shared(layer.weight_gradient, share),
            )
        )
    return TrainingFlops(tuple(layers), executed.batch)


def published_training(flops: Flops, *, frozen: Collection[str] = (), fixed: Collection[str] = ()) -> TrainingFlops:
    """The formula of OpenTrans (supplement 6.2), layer by layer, from a forward count.

    frozen: layers of the trunk.  fixed: components of which nothing trains.
    """
    layers = []
    for layer in flops.layers:
        still = layer.component in fixed or (layer.component == "trunk" and layer.name in frozen)
        wanted = 0 if still else layer.effective
        layers.append(LayerTraining(layer.name, layer.component, layer.effective, layer.dense, wanted))
    return TrainingFlops(tuple(layers), flops.batch)


def _by_layer(
    module: nn.Module, macs: Mapping[str, StepMacs], components: Mapping[str, nn.Module], batch: int
) -> TrainingFlops:
    prefix, prefixes = encoder_prefix(module), component_prefixes(module, components)
    return TrainingFlops(
        tuple(
            LayerTraining(
                name.removeprefix(prefix) or type(module).__name__,
                component_of(name, prefixes),
                each.forward,
                each.input_gradient,
                each.weight_gradient,
            )
            for name, each in macs.items()
        ),
        batch,
    )


def _shared(count: int, share: tuple[int, int]) -> int:
    kept, weights = share
    positions, rest = divmod(count, weights)
    assert rest == 0, f"{count} MACs are no multiple of {weights} weights"
    return positions * kept
