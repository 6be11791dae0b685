"""Weights that a run starts from, and the text encoder that its checkpoint keeps."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from ovstrans.clip.load import Clip, create_image_encoder
from ovstrans.clip.weights import VISUAL, fit_state, read_state_dict, require_finite
from ovstrans.errors import InputError, MissingFileError
from ovstrans.masks.file import pruned_weights_path
from ovstrans.recipes.schema import FinetuneRecipe
from ovstrans.training.state import derive_seed

TEXT_ENCODER_LIMIT = 10_000_000
"""Largest text encoder, in parameters, that a checkpoint contains by default."""


def initial_image_encoder(clip: Clip, recipe: FinetuneRecipe, weights: Mapping[str, Tensor] | None = None) -> nn.Module:
    """Return the image encoder that a run starts from, as `run.init` says.

    `pretrained`: CLIP's own. `pruned`: with the weights that pruning left, from `run.weights` or from the file beside
    the mask. `random`: with weights drawn from the seed, a baseline without pretraining.

    Args:
        clip: The CLIP. It is not changed.
        recipe: Every setting of the run.
        weights: The pruned weights, if they were not given as a file.

    Raises:
        InputError: The file of the weights is missing or damaged.
        MismatchError: The weights are of another architecture.
    """
    run = recipe.run
    if run.init == "random":
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive_seed(run.seed, "tower"))
            return create_image_encoder(clip.name).eval()
    own: nn.Module = clip.visual
    if run.init == "pretrained":
        return own
    if not run.weights and not run.mask:
        raise InputError("`init=pruned`: needs `weights`, or a `mask` with the weights that `prune` wrote beside it")
    path = Path(run.weights) if run.weights else pruned_weights_path(run.mask)
    if weights is None:
        if not path.exists():
            raise MissingFileError(
                f"{path}: no such file; `init=pruned` reads the weights that `prune` wrote beside the mask "
                "(others are given as `weights`)"
            )
        weights = read_state_dict(path)
    if any(key.startswith(VISUAL) for key in weights):
        weights = {key.removeprefix(VISUAL): value for key, value in weights.items() if key.startswith(VISUAL)}
    encoder = copy.deepcopy(own)
    load_image_encoder(encoder, weights, str(path))
    return encoder


def load_image_encoder(encoder: nn.Module, state: Mapping[str, Tensor], origin: str) -> None:
    """Load a state dict into an image encoder.

    Args:
        encoder: The image encoder.
        state: Its tensors by name.
        origin: Where they came from, for messages.

    Raises:
        MismatchError: A tensor is missing or has another shape.
        InputError: A tensor is not finite.
    """
    fit = fit_state(state, encoder.state_dict(), origin)
    fit.require_complete()
    require_finite(fit.state, origin)
    encoder.load_state_dict(fit.state, strict=False)


def text_encoder(clip: Clip, limit: int = TEXT_ENCODER_LIMIT) -> dict[str, Tensor] | None:
    """Return the tensors of the text encoder, or None if it is large or missing.

    A float32 tensor whose values are all representable in float16 is returned as float16, without loss.

    Args:
        clip: The CLIP.
        limit: Largest number of parameters.
    """
    state = {key: value for key, value in clip.model.state_dict().items() if not key.startswith(VISUAL)}
    if not clip.has_text or sum(value.numel() for value in state.values()) > limit:
        return None
    return {key: _halved(value.detach().cpu()) for key, value in state.items()}


def _halved(value: Tensor) -> Tensor:
    """Return a tensor as float16 if that loses nothing."""
    if value.dtype is torch.float32 and torch.equal(value.half().float(), value):
        return value.half()
    return value
