"""Checks of what a file claims: that its content is what was written, and that frozen layers are the CLIP's."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ovstrans import files
from ovstrans.checkpoints import file as checkpoint_file
from ovstrans.checkpoints.file import BACKBONE, Checkpoint
from ovstrans.clip.layers import weight_name
from ovstrans.clip.load import Clip, load_clip
from ovstrans.clip.models import BUNDLED
from ovstrans.clip.weights import VISUAL, read_state_dict
from ovstrans.errors import CheckFailed, InputError
from ovstrans.masks import file as mask_file
from ovstrans.masks.file import pruned_weights_path
from ovstrans.masks.mask import layer_name

_ENTRIES: Mapping[str, tuple[str, ...]] = {
    mask_file.FORMAT: mask_file.METADATA,
    mask_file.WEIGHTS_FORMAT: (*(key for key in mask_file.METADATA if key != "shapes"), "mask"),
    checkpoint_file.FORMAT: checkpoint_file.METADATA,
    checkpoint_file.CODED_FORMAT: (*checkpoint_file.METADATA, checkpoint_file.CODING),
}
"""Metadata of our files by their format."""


def check_content(path: Path, format: str) -> str:
    """Compare the content of a file with the hash that was recorded when it was written.

    Args:
        path: The file.
        format: The `format` in its metadata, "" for another file.

    Returns:
        The outcome in words; "" for a file of another program.

    Raises:
        CheckFailed: If they differ.
    """
    with path.open("rb") as handle:
        if not files.safetensors_header(handle.read(9)):
            return ""
    intact = files.content_is_intact(path)
    metadata = files.read_metadata(path)
    unknown = sorted(set(metadata) - set(_ENTRIES.get(format, metadata)))
    if intact is False or (intact is None and unknown):  # an unknown entry may be the hash under a damaged name
        raise CheckFailed(
            f"{path}: its content does not have the hash that was recorded when it was written: values or metadata "
            "have changed since; copy or make it again"
        )
    if intact is None:
        return "no content hash, as files of earlier versions have none" if format in _ENTRIES else ""
    return "content has the hash of when it was written"


def check_frozen(path: Path, checkpoint: Checkpoint) -> list[str]:
    """Compare the frozen layers of a checkpoint with the weights that its run started from.

    Args:
        path: The file, for messages.
        checkpoint: The checkpoint.

    Returns:
        The outcome in words; nothing if no layer is frozen.

    Raises:
        CheckFailed: If a layer differs.
    """
    recipe, provenance = checkpoint.recipe, checkpoint.provenance
    names = [str(name) for name in provenance.get("frozen") or ()]
    if recipe.get("training", {}).get("plan_after"):
        return [f"{len(names)} layers frozen after some steps: not compared"] if names else []
    source, start = _initial_weights(checkpoint, recipe.get("run", {}), str(provenance.get("init", "")))
    if checkpoint.options.get("trunk") == "frozen":
        keys = [key for key in start if key.endswith("weight") and start[key].dim() > 1]
        names = [layer_name(key) for key in keys if BACKBONE + key in checkpoint.state]
    if not names:
        return []
    if not start:
        return [f"{source} not at hand: frozen layers not compared"]
    for name in names:
        ours, theirs = (_layer(state, name, prefix) for state, prefix in ((checkpoint.state, BACKBONE), (start, "")))
        if ours is None or theirs is None or ours.shape != theirs.shape:
            raise CheckFailed(f"{path}: frozen layer {name} is not one of {source}")
        kept = None if checkpoint.mask is None else checkpoint.mask.tensors.get(weight_name(name))
        theirs = theirs.float() if kept is None else theirs.float().masked_fill(~kept, 0)
        different = _count_different(checkpoint, name, ours, theirs)
        if different:
            raise CheckFailed(f"{path}: {different} weights of the frozen layer {name} are not those of {source}")
    return [f"{len(names)} frozen layers are those of {source}"]


def local_clip(model: str, pretrained: str) -> Clip | None:
    """Return a CLIP if its weights are at hand without a download, else None."""
    if pretrained != BUNDLED and not (pretrained and Path(pretrained).is_file()):
        return None
    try:
        return load_clip(model, pretrained)
    except InputError:
        return None


def _initial_weights(checkpoint: Checkpoint, run: Mapping[str, Any], init: str) -> tuple[str, dict[str, Tensor]]:
    """Return the name of the weights that a run started from, and the image encoder's; {} if they are not at hand."""
    if init == "pruned":
        path = Path(run.get("weights") or pruned_weights_path(str(run.get("mask") or "mask")))
        state = read_state_dict(path) if path.is_file() else {}
        return str(path), {key.removeprefix(VISUAL): value for key, value in state.items()}
    clip = checkpoint.clip
    name = f"{clip['model']} {clip['pretrained'] or 'at random'}"
    if init == "random":
        return "random weights", {}
    found = local_clip(clip["model"], clip["pretrained"])
    return name, {} if found is None else dict(found.visual.state_dict())


def _count_different(checkpoint: Checkpoint, name: str, ours: Tensor, theirs: Tensor) -> int:
    """Count the weights of a layer that are not those it began with, rounded to the type they are stored in."""
    scales = _layer({key: one.scales for key, one in checkpoint.quantized.items()}, name, BACKBONE)
    if scales is None:
        return int((ours.float() != theirs.to(ours.dtype).float()).sum())
    scales = scales.reshape(-1, *[1] * (ours.dim() - 1))
    return int(((ours - theirs).abs() > 0.501 * scales).sum())


def _layer(state: Mapping[str, Tensor], name: str, prefix: str) -> Tensor | None:
    """Return the weight of a layer; of `NAME.q`, `NAME.k` and `NAME.v` the part of the fused projection."""
    weight = state.get(prefix + weight_name(name))
    fused = state.get(f"{prefix}{name[:-2]}.in_proj_weight")
    if weight is None and fused is not None and name[-2:] in (".q", ".k", ".v"):
        return torch.chunk(fused, 3)["qkv".index(name[-1])]
    return weight
