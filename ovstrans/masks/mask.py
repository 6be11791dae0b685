"""The mask: which weights of an image encoder are kept, and how they are held at zero.

    mask = load_mask("mask.safetensors")
    mask.apply(model)                      # a tower, a CLIP, a framework, any of them under DDP
    with mask.held(optimizer):             # anyone's training loop
        train(model, optimizer)

Masked weights are then exactly zero at the start, after every optimizer step and at the end. They
are filled with zeros, not multiplied: NaN times zero is NaN.
"""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ovstrans.errors import InputError, MismatchError
from ovstrans.masks.match import encoder_tensors, image_encoder, require_fit
from ovstrans.version import __version__

CREATED_BY = f"ovstrans {__version__}"


@dataclass(eq=False)
class Mask:
    """A transferable sparse subnetwork. Its tensors are not changed once it is made.

    tensors: boolean, by parameter name in the image encoder (`layer1.0.conv1.weight`); True is kept.
    model, pretrained: the open_clip model it was made from.  weights_sha256: hash of that image encoder,
    see `clip.weights.weights_sha256` ("" where unknown).  method: `imp`, `magnitude`, `random`, ...
    recipe: settings it was made with, as JSON can hold them.  created_by: program and version.
    path: the file it was read from, for messages.

    Raises InputError where there is no tensor or one is not boolean.
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
        self.counts = {key: (int(kept.sum()), kept.numel()) for key, kept in self.tensors.items()}
        self._encoders: weakref.WeakSet[nn.Module] = weakref.WeakSet()
        self._cut: dict[torch.device, dict[str, Tensor]] = {}

    def __reduce__(self) -> tuple[Any, ...]:
        # Copies and pickles carry the bits, not the models that the original was applied to.
        kept = (self.tensors, self.model, self.pretrained, self.weights_sha256, self.method, self.recipe)
        return Mask, (*kept, self.created_by, self.path)

    @property
    def title(self) -> str:
        """How messages call it."""
        return f"{self.path or 'mask'} (made for {self.model or 'an unnamed model'})"

    @property
    def kept(self) -> int:
        """Weights kept."""
        return sum(kept for kept, _ in self.counts.values())

    @property
    def total(self) -> int:
        """Weights the mask is about."""
        return sum(total for _, total in self.counts.values())

    @property
    def density(self) -> float:
        """kept / total."""
        return self.kept / self.total

    @property
    def sparsity(self) -> float:
        """Zeros / total, the `sparsity` of the file."""
        return (self.total - self.kept) / self.total

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of every masked tensor."""
        return {key: tuple(kept.shape) for key, kept in self.tensors.items()}

    def layer_densities(self) -> dict[str, float]:
        """Density of every layer, by layer name (`layer1.0.conv1`)."""
        return {layer_name(key): kept / total for key, (kept, total) in self.counts.items()}

    def made_from(self, weights_sha256: str) -> bool:
        """Whether these are the weights it was made from; otherwise applying it is a transfer."""
        return bool(self.weights_sha256) and self.weights_sha256 == weights_sha256

    def apply(self, target: nn.Module | Mapping[str, Tensor]) -> None:
        """Zero the masked weights in place.

        target: an image encoder, an open_clip CLIP, a framework, any of them wrapped by DDP or
        `torch.compile`, on any device; it is remembered (not kept alive) for `held` and
        `mask_gradients`. Or a state dict, whose tensors are changed. Weights other than those the mask
        was made from are welcome. Raises MismatchError, before anything is changed, naming the first
        tensor in which the architectures differ.
        """
        found = self._fitting(target)
        if isinstance(target, nn.Module):
            self._encoders.add(image_encoder(target))
        self._zero(found)

    def violations(self, target: nn.Module | Mapping[str, Tensor]) -> list[tuple[str, int]]:
        """(name, count) of masked weights that are not zero; empty where the mask is in force.

        NaN is not zero. Raises MismatchError as `apply` does.
        """
        found = self._fitting(target)
        counts = ((key, int((found[key].detach()[cut] != 0).sum())) for key, cut in self._cuts(found))
        return [(key, count) for key, count in counts if count]

    def mask_gradients(self) -> None:
        """Zero the gradients of masked weights in every model it was applied to.

        `held` does it before each step; call it before clipping, so that masked weights do not count in
        the norm.
        """
        for encoder in self._encoders:
            found = encoder_tensors(encoder)
            for key, cut in self._cuts(found):
                gradient = found[key].grad
                if gradient is not None:
                    gradient.masked_fill_(cut.to(gradient.device), 0)

    @contextlib.contextmanager
    def held(self, optimizer: torch.optim.Optimizer, model: nn.Module | None = None) -> Iterator[Mask]:
        """For the block, keep masked weights at zero whatever the optimizer does.

        Before each `optimizer.step` their gradients are zeroed (no momentum builds up), after it the
        weights themselves (weight decay, momentum from before). model: applied to first; otherwise the
        models of earlier `apply` calls. Raises InputError where there is none, MismatchError where the
        optimizer has none of the trainable weights that the mask is about.
        """
        if model is not None:
            self.apply(model)
        encoders = [image_encoder(model)] if model is not None else list(self._encoders)
        if not encoders:
            raise InputError(f"{self.title}: held before it was applied; call mask.apply(model) first")
        masked = [parameter for encoder in encoders for parameter in self._parameters(encoder)]
        stepped = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
        if all(id(parameter) not in stepped for parameter in masked) and any(p.requires_grad for p in masked):
            raise MismatchError(
                f"{self.title}: this optimizer steps none of the masked weights; "
                "make it from the model that the mask is applied to"
            )

        def after(*_: Any) -> None:
            for encoder in encoders:
                self._zero(encoder_tensors(encoder))

        hooks = (
            optimizer.register_step_pre_hook(lambda *_: self.mask_gradients()),
            optimizer.register_step_post_hook(after),
        )
        try:
            after()
            yield self
        finally:
            for hook in hooks:
                hook.remove()
            after()

    def _fitting(self, target: nn.Module | Mapping[str, Tensor]) -> dict[str, Tensor]:
        found = encoder_tensors(target)
        require_fit(self.shapes, found, model=self.model, where=self.title)
        return found

    def _parameters(self, encoder: nn.Module) -> list[Tensor]:
        found = encoder_tensors(encoder)
        return [found[key] for key in self.tensors]

    @torch.no_grad()
    def _zero(self, found: Mapping[str, Tensor]) -> None:
        for key, cut in self._cuts(found):
            found[key].masked_fill_(cut, 0)

    def _cuts(self, found: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
        """(key, True where cut) beside each tensor, from a copy of the mask kept on its device."""
        for key, kept in self.tensors.items():
            here = self._cut.setdefault(found[key].device, {})
            if key not in here:
                here[key] = (~kept).to(found[key].device)
            yield key, here[key]


def layer_name(key: str) -> str:
    """The layer that a parameter belongs to: `layer1.0.conv1.weight` to `layer1.0.conv1`."""
    return key.removesuffix(".weight")


def density_rows(mask: Mask) -> list[tuple[str, tuple[int, ...], int, int, float]]:
    """(layer, shape, weights kept, weights, density) of every masked layer, in the mask's order."""
    rows = []
    for key, shape in mask.shapes.items():
        kept, total = mask.counts[key]
        rows.append((layer_name(key), shape, kept, total, kept / total))
    return rows
