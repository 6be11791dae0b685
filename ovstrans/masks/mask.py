"""The mask: which weights of an image encoder are kept, and how the others stay zero in any training loop.

    mask = ovstrans.load_mask("mask.safetensors")
    mask.apply(model)                      # an image encoder, a CLIP, a framework, any of them under DDP
    optimizer = torch.optim.AdamW(model.parameters())
    with mask.held(optimizer):
        for images, targets in loader:     # your own loop
            optimizer.zero_grad()
            loss(model(images), targets).backward()
            optimizer.step()

Masked weights are then exactly zero at the start, after every optimizer step and at the end. They are filled with
zeros, not multiplied by the mask, because NaN times zero is NaN.
"""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ovstrans.clip.backbone import find_image_encoder
from ovstrans.clip.layers import backbone_shapes
from ovstrans.clip.weights import encoder_tensors
from ovstrans.errors import InputError, MismatchError
from ovstrans.version import __version__

CREATED_BY = f"ovstrans {__version__}"


@dataclass(eq=False)
class Mask:
    """A transferable sparse subnetwork of an image encoder.

    Masks are equal if they keep the same weights and record the same origin. Their tensors must not be changed.

    Attributes:
        tensors: Boolean tensors by parameter name in the image encoder (`layer1.0.conv1.weight`); True is kept.
        model: open_clip model that the mask was made from.
        pretrained: Tag or file of that model's weights.
        weights_sha256: Hash of that image encoder, see `clip.weights.weights_sha256`; "" if unknown.
        method: How it was made: `imp`, `magnitude`, `random`, ...
        recipe: Settings it was made with, as JSON values.
        created_by: Program and version.
        path: File it was read from, for messages; "" if none.

    Raises:
        InputError: If there is no tensor, or one is not boolean.
    """

    tensors: dict[str, Tensor]
    model: str
    pretrained: str = ""
    weights_sha256: str = ""
    method: str = ""
    recipe: dict[str, Any] = field(default_factory=dict)
    created_by: str = CREATED_BY
    path: str = ""

    def __post_init__(self) -> None:
        if not self.tensors:
            raise InputError(f"{self.title}: it masks nothing; at least one tensor is needed")
        for key, kept in self.tensors.items():
            if kept.dtype != torch.bool or kept.numel() == 0:
                kind = str(kept.dtype).removeprefix("torch.")
                raise InputError(f"{self.title}: {key} is {kind} {list(kept.shape)}, booleans are needed")
        self.tensors = {key: kept.detach().cpu() for key, kept in self.tensors.items()}
        # (weights kept, weights) of every tensor
        self.counts = {key: (int(np.count_nonzero(kept.numpy())), kept.numel()) for key, kept in self.tensors.items()}
        self._encoders: weakref.WeakSet[nn.Module] = weakref.WeakSet()
        self._cut: dict[torch.device, dict[str, Tensor]] = {}

    def __reduce__(self) -> tuple[Any, ...]:
        # Copies and pickles carry the bits, not the models that the original was applied to.
        kept = (self.tensors, self.model, self.pretrained, self.weights_sha256, self.method, self.recipe)
        return Mask, (*kept, self.created_by, self.path)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Mask):
            return NotImplemented
        return (
            self._origin() == other._origin()
            and self.shapes == other.shapes
            and all(torch.equal(kept, other.tensors[key]) for key, kept in self.tensors.items())
        )

    def __hash__(self) -> int:
        return hash((self.model, self.weights_sha256, self.method, frozenset(self.counts.items())))

    def __repr__(self) -> str:
        made_from = " ".join(filter(None, (self.model or "an unnamed model", self.pretrained)))
        facts = {
            "made from": made_from,
            "method": self.method,
            "file": self.path,
        }
        lines = [
            f"Mask: {self.sparsity:.2%} of {self.total:,} weights are zero, in {len(self.tensors)} tensors",
            *(f"  {name:<9}  {value}" for name, value in facts.items() if value),
        ]
        return "\n".join(lines)

    @property
    def severed(self) -> str:
        """Blocks whose queries and keys are pruned whole, so that the mask serves DeOP alone; "" for any framework."""
        return str(self._setting("severed", ""))

    @property
    def granularity(self) -> str:
        """Unit that was pruned as a whole, one of `recipes.schema.GRANULARITIES`; "" if the mask does not record it."""
        return str(self._setting("granularity", "element"))

    @property
    def allocation(self) -> str:
        """How many weights each layer kept, one of `recipes.schema.ALLOCATIONS`; "" if the mask does not record it.

        A mask in the densities of another has "like".
        """
        return "like" if "like" in self.recipe else str(self._setting("allocation", "global"))

    @property
    def title(self) -> str:
        """Name of the mask in messages."""
        return f"{self.path or 'mask'} (made for {self.model or 'an unnamed model'})"

    @property
    def kept(self) -> int:
        """Number of weights kept."""
        return sum(kept for kept, _ in self.counts.values())

    @property
    def total(self) -> int:
        """Number of weights in the masked tensors."""
        return sum(total for _, total in self.counts.values())

    @property
    def density(self) -> float:
        """Kept weights / all weights."""
        return self.kept / self.total

    @property
    def sparsity(self) -> float:
        """Zeros / all weights, the `sparsity` of the file."""
        return (self.total - self.kept) / self.total

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of every masked tensor."""
        return {key: tuple(kept.shape) for key, kept in self.tensors.items()}

    def layer_densities(self) -> dict[str, float]:
        """Return the density of every layer, by layer name (`layer1.0.conv1`)."""
        return {layer_name(key): kept / total for key, (kept, total) in self.counts.items()}

    def made_from(self, weights_sha256: str) -> bool:
        """Return whether the mask was made from weights of this hash; applying it to others is a transfer."""
        return bool(self.weights_sha256) and self.weights_sha256 == weights_sha256

    def apply(self, model: nn.Module | Mapping[str, Tensor]) -> None:
        """Zero the masked weights in place.

        Weights other than those that the mask was made from are allowed (transfer).

        Args:
            model: An image encoder, an open_clip CLIP or a framework, bare or wrapped by DDP or `torch.compile`, on
                any device. It is remembered by a weak reference, for `held` and `mask_gradients`. Or a state dict,
                whose tensors are changed.

        Raises:
            MismatchError: If the architectures differ. The message names the first tensor in which they do, and
                nothing has been changed.
        """
        found = self._fitting(model)
        if isinstance(model, nn.Module):
            self._encoders.add(find_image_encoder(model))
        self._zero(found)

    def violations(self, model: nn.Module | Mapping[str, Tensor]) -> list[tuple[str, int]]:
        """Count the masked weights that are not zero (NaN is not zero).

        Args:
            model: As for `apply`.

        Returns:
            Pairs (parameter name, count) of the tensors that have such weights; empty if the mask is in force.

        Raises:
            MismatchError: As `apply` does.
        """
        found = self._fitting(model)
        counts = ((key, int((found[key].detach()[cut] != 0).sum())) for key, cut in self._cuts(found))
        return [(key, count) for key, count in counts if count]

    def mask_gradients(self) -> None:
        """Zero the gradients of masked weights in every model that the mask was applied to.

        `held` does this before each optimizer step. If you clip gradients, call it before, so that masked weights do
        not count in the norm.
        """
        self._mask_gradients(self._encoders)

    @contextlib.contextmanager
    def held(self, optimizer: torch.optim.Optimizer, model: nn.Module | None = None) -> Iterator[Mask]:
        """Keep masked weights at zero while the block runs, whatever the optimizer does.

        Before each `optimizer.step`, the gradients of masked weights are zeroed, so that no momentum builds up. After
        it, the weights themselves are, in case weight decay or earlier momentum moved them.

        Args:
            optimizer: The optimizer of your training loop.
            model: The model to apply the mask to first. By default the models of earlier `apply` calls count.

        Yields:
            The mask.

        Raises:
            InputError: If there is no model.
            MismatchError: If the optimizer has none of the trainable weights that are masked.
        """
        if model is not None:
            self.apply(model)
        encoders = [find_image_encoder(model)] if model is not None else list(self._encoders)
        if not encoders:
            raise InputError(f"{self.title}: held before it was applied; call mask.apply(model) first")
        masked = [parameter for encoder in encoders for parameter in self._parameters(encoder)]
        stepped = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
        if all(id(parameter) not in stepped for parameter in masked) and any(p.requires_grad for p in masked):
            raise MismatchError(
                f"{self.title}: this optimizer steps none of the masked weights; "
                "make it from the model that the mask is applied to"
            )

        def before(*_: Any) -> None:
            self._mask_gradients(encoders)

        def after(*_: Any) -> None:
            for encoder in encoders:
                self._zero(encoder_tensors(encoder))

        hooks = (optimizer.register_step_pre_hook(before), optimizer.register_step_post_hook(after))
        try:
            after()
            yield self
        finally:
            for hook in hooks:
                hook.remove()
            after()

    def _setting(self, name: str, default: str) -> Any:
        """Return a setting of [prune] in the recipe, `default` where it is left out, "" without a recipe."""
        prune = self.recipe.get("prune")
        return prune.get(name, default) if isinstance(prune, dict) else ""

    def _origin(self) -> tuple[Any, ...]:
        return (self.model, self.pretrained, self.weights_sha256, self.method, self.recipe, self.created_by)

    def _fitting(self, model: nn.Module | Mapping[str, Tensor]) -> dict[str, Tensor]:
        found = encoder_tensors(model)
        require_fit(self.shapes, found, model=self.model, where=self.title)
        return found

    def _parameters(self, encoder: nn.Module) -> list[Tensor]:
        found = encoder_tensors(encoder)
        return [found[key] for key in self.tensors]

    def _mask_gradients(self, encoders: Iterable[nn.Module]) -> None:
        for encoder in encoders:
            found = encoder_tensors(encoder)
            for key, cut in self._cuts(found):
                gradient = found[key].grad
                if gradient is not None:
                    gradient.masked_fill_(cut.to(gradient.device), 0)

    @torch.no_grad()
    def _zero(self, found: Mapping[str, Tensor]) -> None:
        for key, cut in self._cuts(found):
            found[key].masked_fill_(cut, 0)

    def _cuts(self, found: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
        """Yield (key, True where cut) of every masked tensor, from a copy of the mask kept on the tensor's device."""
        for key, kept in self.tensors.items():
            here = self._cut.setdefault(found[key].device, {})
            if key not in here:
                here[key] = (~kept).to(found[key].device)
            yield key, here[key]


def layer_name(key: str) -> str:
    """Return the layer that a parameter belongs to: `layer1.0.conv1` for `layer1.0.conv1.weight`."""
    return key.removesuffix(".weight")


def density_rows(mask: Mask) -> list[tuple[str, tuple[int, ...], int, int, float]]:
    """Return (layer, shape, weights kept, weights, density) of every masked layer, in the mask's order."""
    rows = []
    for key, shape in mask.shapes.items():
        kept, total = mask.counts[key]
        rows.append((layer_name(key), shape, kept, total, kept / total))
    return rows


def require_fit(shapes: Mapping[str, tuple[int, ...]], found: Mapping[str, Tensor], *, model: str, where: str) -> None:
    """Raise MismatchError, naming the first tensor that differs, if a mask does not fit a model.

    Args:
        shapes: Shapes of the mask's tensors.
        found: The model's tensors, see `clip.weights.encoder_tensors`.
        model: open_clip model that the mask was made from. If open_clip knows it, the whole backbone is compared,
            because masks of a shallow backbone fit inside a deeper one by name and shape (RN50 in RN101).
        where: Beginning of the message.
    """
    remedy = "another architecture; make a mask for this model with 'ovstrans prune'"
    reference = _model_shapes(model)
    needed = [(key, shape, "the mask") for key, shape in shapes.items()]
    if reference is not None:
        parts = {key.split(".")[0] for key in found}
        needed += [(key, shape, model) for key, shape in reference.items() if key.split(".")[0] in parts]
    for key, shape, source in needed:
        if key not in found:
            raise MismatchError(f"{where}: {key} is missing in this model: {remedy}")
        here = tuple(found[key].shape)
        if here != shape:
            raise MismatchError(
                f"{where}: {key} has shape {list(here)} in this model, {list(shape)} in {source}: {remedy}"
            )
    if reference is None:
        return
    parts = {key.split(".")[0] for key in reference}
    for key in backbone_shapes(found):
        if key.split(".")[0] in parts and key not in reference:
            raise MismatchError(f"{where}: {key} of this model is not in {model}: {remedy}")


def require_shapes(shapes: Mapping[str, tuple[int, ...]], *, model: str, where: str) -> bool:
    """Raise MismatchError, naming the first tensor, if a mask does not fit the model that it names.

    Args:
        shapes: Shapes of the mask's tensors.
        model: open_clip model that the mask was made from.
        where: Beginning of the message.

    Returns:
        False if the model is not known here and nothing was compared.
    """
    reference = _model_shapes(model)
    if reference is None:
        return False
    for key, shape in shapes.items():
        if key not in reference:
            raise MismatchError(f"{where}: {key} is no weight of {model}, which it names; make it again")
        if reference[key] != shape:
            raise MismatchError(
                f"{where}: {key} has shape {list(shape)}, {list(reference[key])} in {model}; make it again"
            )
    return True


def _model_shapes(model: str) -> dict[str, tuple[int, ...]] | None:
    if not model:
        return None
    from ovstrans.clip.load import model_shapes  # loads open_clip, which reading a mask does not need

    return model_shapes(model)
