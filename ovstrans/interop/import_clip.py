"""A CLIP under a mask as plain weights: the state dict that open_clip loads, with the zeros in it."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from dataclasses import replace as copy_with
from itertools import islice

import open_clip
import torch
from torch import Tensor

from ovstrans.clip.backbone import recalibrate_norms
from ovstrans.clip.load import Clip, load_clip, random_clip
from ovstrans.clip.models import BUNDLED, BUNDLED_MODELS
from ovstrans.clip.weights import VISUAL, StateFit, fit_state, require_finite
from ovstrans.datasets.augment import CenterCrop
from ovstrans.datasets.catalog import open_dataset
from ovstrans.datasets.loading import stream_batches
from ovstrans.datasets.sample import Dataset
from ovstrans.environment import batch_norms
from ovstrans.errors import InputError
from ovstrans.masks.file import mask_metadata
from ovstrans.masks.mask import Mask
from ovstrans.masks.origin import choose_clip

NAME_THE_MODEL = "weights of another architecture; name the right CLIP as `model`"
PARTIAL = "`partial=True` takes what fits"
"""Remedies in the messages about files that do not fit."""

_HEADS = tuple(f"{VISUAL}{part}." for part in ("attnpool", "head", "trunk.head", "trunk.norm_pre"))
"""Prefixes of the image encoder's head, of a ResNet and of a ConvNeXt. Frameworks drop it; the CLIP's own is used."""

CALIBRATION_BATCH = 32
"""Images over which BatchNorm statistics are taken at once; more would fill the memory with those of a large model."""


@dataclass(frozen=True)
class MaskedClip:
    """A CLIP, and the mask that it is under.

    Attributes:
        clip: The CLIP, its masked weights zero.
        mask: The mask; None if it is not known or there is none.
        fit: How the file's entries compare with the model's, if weights came from a file.
        transferred: True if the mask was made from other weights than these.
        untrained: True if the weights were not trained under the mask: it zeroed some that were not zero.
    """

    clip: Clip
    mask: Mask | None
    fit: StateFit | None = None
    transferred: bool = False
    untrained: bool = False

    @property
    def state(self) -> dict[str, Tensor]:
        """All tensors, by open_clip's names."""
        return dict(self.clip.model.state_dict())

    @property
    def encoder(self) -> dict[str, Tensor]:
        """The image encoder's tensors."""
        return dict(self.clip.visual.state_dict())

    def metadata(self) -> dict[str, str]:
        """Return what a file of it records, as strings."""
        recorded = {} if self.mask is None else mask_metadata(self.mask)
        clip = self.clip
        return {**recorded, "model": clip.name, "pretrained": clip.pretrained, "weights_sha256": clip.weights_sha256}


def mask_clip(clip: Clip, mask: Mask | None) -> MaskedClip:
    """Put a copy of a CLIP under a mask, or copy it as it is.

    Raises:
        InputError: If the CLIP has no text encoder.
        MismatchError: If the mask does not fit it.
    """
    own = copy_with(_require_text(clip), model=copy.deepcopy(clip.model).cpu())
    untrained = _apply(mask, own)
    transferred = mask is not None and not mask.made_from(clip.weights_sha256)
    return MaskedClip(own, mask, transferred=transferred, untrained=untrained)


def clip_of_mask(mask: Mask, model: str | None = None, pretrained: str | None = None) -> MaskedClip:
    """Load the CLIP that a mask was made from, or another of its architecture, and apply the mask.

    Args:
        mask: The mask.
        model: open_clip model; None takes the mask's.
        pretrained: Tag or file of its weights; None takes the mask's if the model is the mask's.

    Raises:
        InputError: If the weights cannot be had, or hold no text encoder.
        MismatchError: If the mask does not fit the model.
    """
    chosen = choose_clip(mask, model, pretrained, default=mask.model)
    clip = _require_text(load_clip(chosen.model, chosen.pretrained))
    untrained = _apply(mask, clip)
    return MaskedClip(clip, mask, transferred=not mask.made_from(clip.weights_sha256), untrained=untrained)


def clip_from_weights(
    state: Mapping[str, Tensor],
    where: str,
    *,
    model: str,
    pretrained: str | None = None,
    mask: Mask | None = None,
    partial: bool = False,
) -> MaskedClip:
    """Make a CLIP of the weights in a file: a whole CLIP's, an image encoder's, or a framework's backbone.

    Args:
        state: Tensors under the names of any wrapper (`backbone.layer1...`, `visual.layer1...`).
        where: The file, for messages.
        model: open_clip model. What the file lacks besides the backbone (text encoder, attention pool) comes from it.
        pretrained: Tag or file of that model's weights.
        mask: A mask to apply, or None.
        partial: Take missing weights of the backbone from the model too.

    Raises:
        InputError: If the model's weights are needed and cannot be had, or a value is NaN.
        MismatchError: If shapes are not the model's, or the backbone is not whole.
    """
    clip = random_clip(model, pretrained=pretrained or "")
    fit = fit_state(_by_open_clip_names(state), clip.model.state_dict(), where, remedy=NAME_THE_MODEL)
    fit.require_complete(
        needed=lambda key: not partial and key.startswith(VISUAL) and not key.startswith(_HEADS), remedy=PARTIAL
    )
    if fit.missing:
        clip = _require_text(load_clip(model, pretrained))
    else:
        clip.pretrained, clip.weights_sha256 = pretrained or "", ""
    require_finite(fit.state, where)
    clip.model.load_state_dict(fit.state, strict=False)
    return MaskedClip(clip, mask, fit, untrained=_apply(mask, clip))


def recalibrate_clip(
    content: MaskedClip, data: str | Dataset | None, *, data_root: str | None, batches: int, seed: int
) -> str:
    """Recompute BatchNorm statistics in place if the weights were not trained under the mask and there are images.

    Images are seen at the image encoder's own size: scaled to cover it, and cropped in the centre.

    Args:
        content: The CLIP under its mask.
        data: Images, by name or as a dataset; None for generated scenes if the weights are bundled ones.
        data_root: Folder of published datasets.
        batches: Number of batches of `CALIBRATION_BATCH` images, at most once through the images; 0 for none.
        seed: Seed of the choice of images.

    Returns:
        What was done and should be known, "" for nothing.

    Raises:
        InputError: The images cannot be read.
    """
    clip = content.clip
    if not content.untrained or not batch_norms(clip.visual):
        why = "there is no BatchNorm" if content.untrained else "no mask zeroes any of these weights"
        return "" if data is None else f"`data` is not used: {why}"
    if not batches:
        return ""
    if data is None and (clip.name not in BUNDLED_MODELS or clip.pretrained != BUNDLED):
        return "BatchNorm statistics are those of the dense weights; `data=folder:PATH` recomputes them"
    images = data or "scenes"
    if isinstance(images, str):
        split = "train" if images.startswith("folder:") else "unlabelled"
        images = open_dataset(images, split=split, size=clip.image_size, labels=False, data_root=data_root)
    if not len(images):
        raise InputError(f"{images.name}:{images.split}: holds no image")
    size = min(CALIBRATION_BATCH, len(images))
    count = min(batches, len(images) // size)
    mean, std = (torch.tensor(each).view(3, 1, 1) for each in (clip.mean, clip.std))
    found = stream_batches(images, batch_size=size, seed=seed, transform=CenterCrop((clip.image_size, clip.image_size)))
    recalibrate_norms(clip.visual, ((each.images - mean) / std for each in islice(found, count)))
    return f"BatchNorm statistics were recomputed on {count * size} images of {images.name}:{images.split}"


def _apply(mask: Mask | None, clip: Clip) -> bool:
    """Put a CLIP under a mask, if there is one; returns whether that changed a weight."""
    if mask is None:
        return False
    changed = bool(mask.violations(clip.model))
    mask.apply(clip.model)
    return changed


def open_clip_name(model: str, pretrained: str) -> str:
    """Return the name under which open_clip builds the very model: QuickGELU goes by name there, not by weights."""
    quick = f"{model}-quickgelu"
    settings = open_clip.get_pretrained_cfg(model, pretrained) or {}
    config = open_clip.get_model_config(model) or {}
    needs_quick = settings.get("quick_gelu", False) and not config.get("quick_gelu", False)
    return quick if needs_quick and quick in open_clip.list_models() else model


def is_builtin(model: str) -> bool:
    """Return whether open_clip knows a model by name. Others it builds from a folder (`local-dir:`)."""
    return open_clip.get_model_config(model) is not None


def _require_text(clip: Clip) -> Clip:
    if not clip.has_text:
        raise InputError(
            f"{clip.pretrained}: holds the image encoder only; name the weights of the whole CLIP as `pretrained`"
        )
    return clip


def _by_open_clip_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename a file's tensors so that the image encoder's are under `visual.`."""
    if any(key.startswith(VISUAL) for key in state):
        return dict(state)
    prefix = _encoder_prefix(state)
    text = prefix.removesuffix(VISUAL) if prefix.endswith(VISUAL) else None
    renamed = {}
    for key, value in state.items():
        if key.startswith(prefix):
            renamed[VISUAL + key.removeprefix(prefix)] = value
        elif text is not None and key.startswith(text):
            renamed[key.removeprefix(text)] = value
        else:
            renamed[key] = value
    return renamed


def _encoder_prefix(state: Mapping[str, Tensor]) -> str:
    """Return the prefix of the image encoder's names in a state dict; "" if it is there alone."""
    for prefix in ("backbone.clip_model.visual.", "clip_model.visual.", "backbone.", ""):
        if any(key.startswith((f"{prefix}layer1.0.", f"{prefix}trunk.stages.")) for key in state):
            return prefix
    return ""
