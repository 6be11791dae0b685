"""Finding the tensors that a mask is about in whatever the caller holds, and telling whether they fit."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache

import torch
from torch import Tensor, nn

from ovstrans.clip.layers import find_image_encoder
from ovstrans.errors import InputError, MismatchError

WRAPPERS = re.compile(r"^(?:(?:module|_orig_mod|model|backbone|clip_model|visual)\.)+")
"""What wrapping puts before an image encoder's keys: DDP, torch.compile, frameworks, CLIP."""

_POOL = "attnpool."
"""Frameworks drop or resize the attention pool; it says nothing about the trunk."""


def image_encoder(module: nn.Module) -> nn.Module:
    """The image encoder in a module, through DDP and `torch.compile` wrappers too."""
    encoder = module
    while True:
        inner = find_image_encoder(getattr(encoder, "_orig_mod", encoder))
        if inner is encoder:
            return encoder
        encoder = inner


def encoder_tensors(target: nn.Module | Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Parameters (of a module) or entries (of a state dict) by their name in the image encoder.

    Where a state dict has a name both with a wrapper's prefix and without one (a CLIP's text encoder
    beside its image encoder), the prefixed one is the image encoder's.
    """
    if isinstance(target, nn.Module):
        named = image_encoder(target).named_parameters(remove_duplicate=False)
        return {name.replace("_orig_mod.", ""): parameter for name, parameter in named}
    bare = {key: value for key, value in target.items() if isinstance(value, Tensor)}
    prefixed = {WRAPPERS.sub("", key): value for key, value in bare.items() if WRAPPERS.match(key)}
    return {**bare, **prefixed}


def require_fit(shapes: Mapping[str, tuple[int, ...]], found: Mapping[str, Tensor], *, model: str, where: str) -> None:
    """MismatchError naming the first tensor in which a mask and a model differ.

    shapes: of the mask's tensors.  found: see `encoder_tensors`.  model: the mask's; where open_clip knows
    it, the whole trunk is compared, because masks of one depth fit inside deeper trunks by name and
    shape (RN50 in RN101).  where: how the message begins.
    """
    remedy = "another architecture; make a mask for this model with 'ovstrans prune'"
    reference = reference_weights(model)
    wanted = [(key, shape, "the mask") for key, shape in shapes.items()]
    if reference is not None:
        parts = {key.split(".")[0] for key in found}
        wanted += [(key, shape, model) for key, shape in reference.items() if key.split(".")[0] in parts]
    for key, shape, source in wanted:
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
    for key, value in found.items():
        if _is_weight(key, value) and key.split(".")[0] in parts and key not in reference:
            raise MismatchError(f"{where}: {key} of this model is not in {model}: {remedy}")


def require_shapes(shapes: Mapping[str, tuple[int, ...]], *, model: str, where: str) -> bool:
    """MismatchError naming the first tensor of a mask that the model it names does not have so.

    Returns False where the model is not known here and nothing was compared.
    """
    reference = reference_weights(model)
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


@lru_cache(maxsize=8)
def reference_weights(model: str) -> dict[str, tuple[int, ...]] | None:
    """Shapes of the trunk's weights in an open_clip model, or None where the name is not known here."""
    if not model:
        return None
    from ovstrans.clip.load import create_image_encoder  # loads open_clip, which reading a mask does not need

    try:
        with torch.device("meta"):
            encoder = create_image_encoder(model)
    except InputError:
        return None
    named = encoder.named_parameters()
    return {name: tuple(value.shape) for name, value in named if _is_weight(name, value)}


def _is_weight(key: str, value: Tensor) -> bool:
    return key.endswith("weight") and value.dim() >= 2 and not key.startswith(_POOL)
