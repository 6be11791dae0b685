"""Multiply-accumulates of inference: of a forward pass, dense and under a mask, and of the text encoder.

The unit is always the MAC, one multiplication with its addition; FLOPs are twice that. There are three counters:

torch       The counter of truth (`costs.counter`): every matrix product and convolution that runs. Resampling is
            counted apart, in none of the sums. Norms, activations and pooling are left out, and so are plain products
            that nothing adds up.
fvcore      The library, as the literature uses it (`costs.fvcore_rules`). It runs the model for real, adds norms and
            resizing, and misses some attention.
thop-rules  The rules of `thop` (`costs.thop_rules`). They add norms and pooling, and miss some attention and much more.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from functools import lru_cache
from typing import Any

import torch
from torch import nn

from ovstrans.clip.layers import weight_name
from ovstrans.clip.load import create_clip
from ovstrans.costs.counter import Use, count_macs
from ovstrans.costs.params import LayerNames, encoder_prefix, kept_weights, uncalled_by_encoder
from ovstrans.errors import InputError
from ovstrans.frameworks.base import Framework
from ovstrans.frameworks.mask_framework import MaskFramework
from ovstrans.masks.mask import Mask

COUNTERS = ("torch", "fvcore", "thop-rules")

_SIDES = (8, 16, 24, 32, 48, 64, 96, 128, 224, 256)
"""Sides of the images that a module is tried with, to find the least that it takes."""

INFERENCE = "inference"
"""The component of what a framework itself computes after its heads: scores of queries become scores of pixels."""


@dataclass(frozen=True)
class Macs:
    """MACs of a part of a model.

    Attributes:
        dense: MACs if every weight is used.
        effective: MACs of the weights that the mask keeps: nonzeros times output positions, layer by layer.
    """

    dense: int
    effective: int


@dataclass(frozen=True)
class LayerMacs:
    """MACs of a layer, of the whole batch.

    Attributes:
        name: Name of the layer; layers of the image encoder without prefix.
        component: Component that it belongs to.
        dense: As in `Macs`.
        effective: As in `Macs`.
    """

    name: str
    component: str
    dense: int
    effective: int


@dataclass(frozen=True)
class LayerResampling:
    """MACs of one kind of resampling in a layer, of the whole batch.

    Attributes:
        name: As in `LayerMacs`.
        component: As in `LayerMacs`.
        operation: Kind of resampling, such as "bilinear_resizing".
        macs: MACs.
    """

    name: str
    component: str
    operation: str
    macs: int


@dataclass(frozen=True)
class Resampling:
    """MACs of resizing and sampling by interpolation, which are in no other sum.

    Attributes:
        total: MACs in all.
        operations: Kind of resampling to MACs.
        components: Component to MACs.
    """

    total: int
    operations: Mapping[str, int]
    components: Mapping[str, int]


@dataclass(frozen=True)
class ReleasedMacs(Macs):
    """MACs that the released code of a framework runs for the same answer.

    Attributes:
        components: Component to its MACs.
    """

    components: Mapping[str, Macs]


@dataclass(frozen=True)
class TextEncoderMacs:
    """MACs of embedding a vocabulary: once, not per image.

    Every row of a classifier is a name of a class in every template. The text encoder reads each prompt at its full
    context length, however short it is.

    Attributes:
        vocabulary: Name of the vocabulary.
        rows: Number of class names, synonyms included.
        templates: Number of prompts of a name.
        per_prompt: MACs of one prompt.
    """

    vocabulary: str
    rows: int
    templates: int
    per_prompt: int

    @property
    def prompts(self) -> int:
        """Number of texts to embed."""
        return self.rows * self.templates

    @property
    def macs(self) -> int:
        """MACs of the whole vocabulary."""
        return self.prompts * self.per_prompt

    def to_json(self) -> dict[str, Any]:
        """Return the entry `text_encoder` of a report's `flops`."""
        return {
            "unit": "MAC",
            "per": "vocabulary",
            "vocabulary": self.vocabulary,
            "rows": self.rows,
            "templates": self.templates,
            "prompts": self.prompts,
            "per_prompt": self.per_prompt,
            "macs": self.macs,
            "flops": 2 * self.macs,
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> TextEncoderMacs:
        """Read the entry `text_encoder` of a report's `flops`."""
        return cls(value["vocabulary"], value["rows"], value["templates"], value["per_prompt"])


@dataclass(frozen=True)
class Flops:
    """Cost of inference, in MACs: of one forward pass over a batch, and of embedding the vocabulary once.

    Attributes:
        image_size: Height and width of the images.
        batch: Number of images.
        counter: One of `COUNTERS`.
        dense: MACs if every weight is used.
        effective: MACs of the weights that the mask keeps.
        components: Component to its MACs, in order of appearance.
        resampling: Resizing and sampling, in none of the sums; None if the counter does not tell them apart.
        text_encoder: Cost of the vocabulary; None without one, or by another counter than torch.
        released: Cost of the framework's released code; None if it is the same, or by another counter than torch.
        layers: MACs layer by layer; None if they were not kept.
        resampling_layers: Resampling layer by layer; None if it was not kept.
    """

    image_size: tuple[int, int]
    batch: int
    counter: str
    dense: int
    effective: int
    components: Mapping[str, Macs]
    resampling: Resampling | None = None
    text_encoder: TextEncoderMacs | None = None
    released: ReleasedMacs | None = None
    layers: tuple[LayerMacs, ...] | None = field(default=None, repr=False)
    resampling_layers: tuple[LayerResampling, ...] | None = field(default=None, repr=False)

    def without_layers(self) -> Flops:
        """Return the same without the figures of every layer."""
        return replace(self, layers=None, resampling_layers=None)

    def to_json(self) -> dict[str, Any]:
        """Return the entry `flops` of a report. Figures are MACs, except those under `flops`, which are twice that."""
        apart = self.resampling
        entry: dict[str, Any] = {
            "unit": "MAC",
            "image_size": list(self.image_size),
            "batch": self.batch,
            "counter": self.counter,
            "dense": self.dense,
            "effective": self.effective,
            "components": {name: asdict(part) for name, part in self.components.items()},
            "other": None if apart is None else asdict(apart),
            "flops": {
                "unit": "FLOP",
                "dense": 2 * self.dense,
                "effective": 2 * self.effective,
                "other": None if apart is None else 2 * apart.total,
            },
        }
        if self.layers is not None:
            entry["layers"] = [asdict(layer) for layer in self.layers]
            entry["other_layers"] = [asdict(layer) for layer in self.resampling_layers or ()]
        entry["text_encoder"] = None if self.text_encoder is None else self.text_encoder.to_json()
        entry["released"] = None if self.released is None else asdict(self.released)
        return entry

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Flops:
        """Read the entry `flops` of a report."""
        height, width = value["image_size"]
        other, text, released = value.get("other"), value.get("text_encoder"), value.get("released")
        layers = value.get("layers")
        return cls(
            (height, width),
            value["batch"],
            value["counter"],
            value["dense"],
            value["effective"],
            _parse_components(value["components"]),
            resampling=None if other is None else Resampling(**other),
            text_encoder=None if text is None else TextEncoderMacs.from_json(text),
            released=None if released is None else _parse_released(released),
            layers=None if layers is None else tuple(LayerMacs(**layer) for layer in layers),
            resampling_layers=None
            if layers is None
            else tuple(LayerResampling(**layer) for layer in value.get("other_layers", ())),
        )

    def __repr__(self) -> str:
        height, width = self.image_size
        return (
            f"Flops({self.dense / 1e9:.4g} GMAC dense, {self.effective / 1e9:.4g} effective; {self.batch} x "
            f"{height}x{width}, counter {self.counter})"
        )


def count_flops(
    module: nn.Module,
    image_size: tuple[int, int],
    *,
    components: Mapping[str, nn.Module] | None = None,
    mask: Mask | None = None,
    counter: str = "torch",
    batch: int = 1,
) -> Flops:
    """Count the MACs of one forward pass in eval mode: of a framework's `segment`, of another module's `forward`.

    The literature's counters run `forward` of any module; `thop-rules` runs it as the released code does. Products
    outside any layer (attention, text similarity) belong to the module that runs them. The effective MACs of a masked
    layer are exact: its dense MACs / weights x weights kept.

    Args:
        module: Module to count, with weights of any device or on meta. `fvcore` runs it for real: it needs weights,
            memory and time.
        image_size: Height and width.
        components: Parts of the module to count separately.
        mask: Mask of its image encoder.
        counter: One of `COUNTERS`.
        batch: Number of images.

    Raises:
        InputError: If the counter is unknown, or the image is empty or too small for the module.
        MismatchError: If the mask is of another architecture.
    """
    if counter not in COUNTERS:
        raise InputError(f"`counter={counter}`: unknown; use {', '.join(COUNTERS[:-1])} or {COUNTERS[-1]}")
    if min(*image_size, batch) < 1:
        raise InputError(f"image size {image_size[0]}x{image_size[1]}, batch {batch}: each must be at least 1")
    with _explain_size(module, image_size):
        products, resampling, uses = _run_counter(module, image_size, counter, batch)
    names = LayerNames(module, components or {})

    def place(name: str) -> tuple[str, str]:
        """Return the displayed name of an inner module and its component."""
        itself = not name and isinstance(module, Framework)
        return names.layer(name), INFERENCE if itself else names.component(name)

    effective = _effective_macs(module, products, uses, mask)
    layers = tuple(LayerMacs(*place(name), dense, effective[name]) for name, dense in products.items())
    flops = Flops(
        image_size,
        batch,
        counter,
        sum(products.values()),
        sum(effective.values()),
        _sum_components(layers),
        layers=layers,
    )
    if resampling is None:
        return flops
    apart = tuple(LayerResampling(*place(name), operation, macs) for (name, operation), macs in resampling.items())
    return replace(flops, resampling=_sum_resampling(apart), resampling_layers=apart)


def _run_counter(
    module: nn.Module, image_size: tuple[int, int], counter: str, batch: int
) -> tuple[Mapping[str, int], Mapping[tuple[str, str], int] | None, Mapping[str, Sequence[Use]]]:
    """Return the MACs of each inner module, and by the counter "torch" those of resampling and uses of weights."""
    shape = (batch, 3, *image_size)
    if counter == "torch":
        forward = module.segment if isinstance(module, Framework) else None
        counted = count_macs(module, shape, forward, uncalled=uncalled_by_encoder(module))
        return counted.products, counted.resampling, counted.uses
    if counter == "fvcore":
        from ovstrans.costs.fvcore_rules import run_fvcore

        return run_fvcore(module, shape), None, {}
    from ovstrans.costs.thop_rules import count_thop

    return {layer.name: layer.macs for layer in count_thop(module, image_size, batch=batch).layers}, None, {}


@contextmanager
def _explain_size(module: nn.Module, image_size: tuple[int, int]) -> Iterator[None]:
    """Turn the error of a module that an image is too small for into an InputError that names the least size."""
    try:
        yield
    except RuntimeError as error:
        for side in _SIDES:
            with suppress(RuntimeError):
                _run_counter(module, (side, side), "torch", 1)
                break
        else:
            raise
        if side <= min(image_size):
            raise
        height, width = image_size
        raise InputError(
            f"`image_size={height}x{width}`: too small for this model; it needs at least {side}x{side}"
        ) from error


def count_inference(
    module: nn.Module,
    image_size: tuple[int, int],
    *,
    model: str,
    components: Mapping[str, nn.Module] | None = None,
    mask: Mask | None = None,
    counter: str = "torch",
    batch: int = 1,
) -> Flops:
    """Count all that inference costs: as `count_flops`, and of a framework its text encoder and its released code.

    Args:
        module: As in `count_flops`.
        image_size: As in `count_flops`.
        model: open_clip name of the CLIP.
        components: As in `count_flops`.
        mask: As in `count_flops`.
        counter: As in `count_flops`.
        batch: As in `count_flops`.

    Raises:
        InputError: As `count_flops` does.
    """
    given: dict[str, Any] = {"components": components, "mask": mask, "counter": counter, "batch": batch}
    flops = count_flops(module, image_size, **given)
    if counter != "torch" or not isinstance(module, Framework):
        return flops
    flops = replace(flops, text_encoder=count_text_encoder(module, model))
    if not isinstance(module, MaskFramework):
        return flops
    from ovstrans.costs.released_code import as_released, released_differs

    if not released_differs(module):
        return flops
    with as_released(module):
        released = count_flops(module, image_size, **given)
    return replace(flops, released=ReleasedMacs(released.dense, released.effective, released.components))


def count_text_encoder(framework: Framework, model: str) -> TextEncoderMacs:
    """Count the MACs of embedding the vocabulary that a framework was built with.

    Args:
        framework: The framework.
        model: open_clip name of its CLIP.
    """
    vocabulary, rows = framework.text.vocabulary, len(framework.text.owner)
    return TextEncoderMacs(vocabulary.name, rows, len(vocabulary.templates), count_prompt_macs(model))


@lru_cache
def count_prompt_macs(model: str) -> int:
    """Count the MACs of embedding one prompt with the text encoder of an open_clip model."""
    with torch.device("meta"):
        clip = create_clip(model)
    tokens = torch.zeros(1, clip.context_length, dtype=torch.long, device="meta")
    return count_macs(clip, (1,), lambda _: clip.encode_text(tokens)).total


def _effective_macs(
    module: nn.Module, products: Mapping[str, int], uses: Mapping[str, Sequence[Use]], mask: Mask | None
) -> dict[str, int]:
    """Map each layer to its dense MACs, or if its weight is masked to those of the weights kept."""
    kept, parameters = kept_weights(module, mask), dict(module.named_parameters())
    prefix = encoder_prefix(module)
    effective = dict(products)
    for name, dense in products.items():
        key = weight_name(name)
        if key in kept and mask is not None and name in uses:
            rows = mask.tensors[key.removeprefix(prefix)]
            effective[name] = sum(use.positions * int(rows[use.start :].sum()) for use in uses[name])
        elif key in kept:
            weights = parameters[key].numel()
            positions, rest = divmod(dense, weights)
            assert rest == 0, f"{name}: {dense} MACs are no multiple of its {weights} weights"
            effective[name] = positions * kept[key]
    return effective


def _sum_components(layers: tuple[LayerMacs, ...]) -> dict[str, Macs]:
    parts: dict[str, Macs] = {}
    for layer in layers:
        part = parts.get(layer.component, Macs(0, 0))
        parts[layer.component] = Macs(part.dense + layer.dense, part.effective + layer.effective)
    return parts


def _sum_resampling(layers: tuple[LayerResampling, ...]) -> Resampling:
    operations: dict[str, int] = defaultdict(int)
    components: dict[str, int] = defaultdict(int)
    for layer in layers:
        operations[layer.operation] += layer.macs
        components[layer.component] += layer.macs
    return Resampling(sum(operations.values()), dict(operations), dict(components))


def _parse_components(value: Mapping[str, Any]) -> dict[str, Macs]:
    return {name: Macs(**part) for name, part in value.items()}


def _parse_released(value: Mapping[str, Any]) -> ReleasedMacs:
    return ReleasedMacs(value["dense"], value["effective"], _parse_components(value["components"]))
