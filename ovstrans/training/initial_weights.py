"""Weights that a run starts from, and the text encoder that its checkpoint keeps."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from ovstrans import files
from ovstrans.clip.load import Clip, create_image_encoder
from ovstrans.clip.weights import VISUAL, fit_state, read_state_dict, require_finite
from ovstrans.errors import InputError, MismatchError, MissingFileError
from ovstrans.masks.file import WEIGHTS_FORMAT, pruned_weights_path
from ovstrans.masks.mask import Mask
from ovstrans.recipes.schema import FinetuneRecipe
from ovstrans.training.loop import derive_seed

_NATURAL_ZEROS = 0.01
"""Most of the weights that a mask keeps that may be exactly zero, as a fraction."""

TEXT_ENCODER_LIMIT = 10_000_000
"""Largest text encoder, in parameters, that a checkpoint contains by default."""


def initial_image_encoder(
    clip: Clip,
    recipe: FinetuneRecipe,
    weights: Mapping[str, Tensor] | None = None,
    mask: Mask | None = None,
) -> nn.Module:
    """Return the image encoder that a run starts from, as `run.init` says.

    `pretrained`: CLIP's own. `pruned`: with the weights that pruning left, from `run.weights` or from the file beside
    the mask. `random`: with weights drawn from the seed, a baseline without pretraining.

    Args:
        clip: The CLIP. It is not changed.
        recipe: Every setting of the run.
        weights: The pruned weights, if they were not given as a file.
        mask: The mask of the run, which pruned weights must belong to.

    Raises:
        InputError: The file of the weights is missing or damaged.
        MismatchError: The weights are of another architecture, or were pruned with another mask.
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
        if mask is not None:
            _require_recorded_origin(path, mask)
    if any(key.startswith(VISUAL) for key in weights):
        weights = {key.removeprefix(VISUAL): value for key, value in weights.items() if key.startswith(VISUAL)}
    encoder = copy.deepcopy(own)
    load_image_encoder(encoder, weights, str(path))
    if mask is not None:
        _require_same_origin(weights, mask, str(path))
    return encoder


def _require_same_origin(weights: Mapping[str, Tensor], mask: Mask, where: str) -> None:
    """Raise MismatchError if pruned weights were not pruned by a mask.

    Where it cuts they must be zero, and where it keeps them hardly any may be: training leaves few exact zeros.
    """
    remedy = (
        "give the weights that `prune` wrote with this mask as `weights`, or `init=pretrained` to put the mask on the "
        "CLIP's own"
    )
    cut = kept = 0
    for name, kept_here in mask.tensors.items():
        weight = weights.get(name)
        if weight is None or weight.shape != kept_here.shape:
            continue
        wrong = int((weight[~kept_here] != 0).sum())
        if wrong:
            raise MismatchError(
                f"{where}: does not belong to {mask.title}: {wrong:,} of the {int((~kept_here).sum()):,} weights of "
                f"{name} that the mask cuts are not zero; {remedy}"
            )
        cut += int((weight[kept_here] == 0).sum())
        kept += int(kept_here.sum())
    if cut > _NATURAL_ZEROS * kept:
        raise MismatchError(
            f"{where}: does not belong to {mask.title}: {cut:,} of the {kept:,} weights that the mask keeps are zero, "
            f"as another mask left them; {remedy}"
        )


def _require_recorded_origin(path: Path, mask: Mask) -> None:
    """Raise MismatchError if pruned weights record that they were made from other weights than a mask."""
    with path.open("rb") as handle:
        ours = files.safetensors_header(handle.read(9)) > 0
    origin = files.read_metadata(path) if ours else {}
    made_from = origin.get("weights_sha256", "") if origin.get("format") == WEIGHTS_FORMAT else ""
    if made_from and mask.weights_sha256 and made_from != mask.weights_sha256:
        raise MismatchError(
            f"{path}: does not belong to {mask.title}: made from weights {made_from[:12]}, the mask from "
            f"{mask.weights_sha256[:12]}; give the weights that `prune` wrote with this mask as `weights`"
        )


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
