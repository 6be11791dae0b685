"""Writing checkpoints and pruned CLIPs in the formats of other programs.

    dense        names of ours (of a CLIP: open_clip's), every masked weight exactly zero
    detectron2   names of the published code, zeros too; what detectron2's checkpointer reads

Torch files hold the state as "state_dict" (dense) or "model" (detectron2). Every file says what it is, see
`interop.origin`.
"""

from __future__ import annotations

import importlib
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ovstrans import files
from ovstrans.checkpoints.file import BACKBONE, TEXT_ENCODER, Checkpoint, save_checkpoint
from ovstrans.clip.weights import VISUAL
from ovstrans.errors import InputError
from ovstrans.interop.describe import WEIGHTS_FORMAT
from ovstrans.interop.foreign import ABOUT
from ovstrans.interop.origin import OURS, describe_source
from ovstrans.interop.plain_clip import PlainClip
from ovstrans.masks.file import save_mask
from ovstrans.masks.mask import CREATED_BY, Mask

TORCH_SUFFIXES = (".pth", ".pt")
SUFFIXES: Mapping[str, tuple[str, ...]] = {
    "dense": (".safetensors", *TORCH_SUFFIXES),
    "sparse": (".safetensors",),
    "detectron2": (*TORCH_SUFFIXES, ".safetensors"),
    "mask": (".safetensors",),
}
"""The formats, and how the names of their files may end."""

Renamer = Callable[[Mapping[str, Tensor]], dict[str, Tensor]]

_UPSTREAM = {
    "fcclip": ("ovstrans.interop.upstream_names", "to_fcclip", "from_fcclip"),
    "gkc": ("ovstrans.interop.gkc_names", "to_gkc", "from_gkc"),
}
_ENCODER_PREFIX = {"fcclip": "backbone.clip_model.visual.", "gkc": "backbone."}
"""Where a published framework keeps its image encoder."""

_VERSIONS = {"sem_seg_head": {"version": 2}, "sem_seg_head.predictor": {"version": 2}}
"""Mask2Former's head moves the entries of a state that does not say which version of its names it has."""


def upstream_names() -> list[str]:
    """Frameworks whose published code has names for their weights."""
    return sorted(_UPSTREAM)


def to_upstream(framework: str) -> Renamer:
    """Our names to those of a framework's published code; InputError where it has none."""
    return _renamer(framework, 1)


def from_upstream(framework: str) -> Renamer:
    """The names of a framework's published code to ours; InputError where it has none."""
    return _renamer(framework, 2)


def check_suffix(path: Path | str, kind: str) -> None:
    """InputError for an unknown format, or a file name that does not end as its files do."""
    if kind not in SUFFIXES:
        raise InputError(f"--format {kind}: unknown; use {', '.join(SUFFIXES)}")
    if Path(path).suffix not in SUFFIXES[kind]:
        raise InputError(f"--out {path}: a {kind} file ends in {' or '.join(SUFFIXES[kind])}; give such a name")


def write(path: Path | str, found: Checkpoint | PlainClip | Mask, kind: str, like: str | None = None) -> dict[str, Any]:
    """Write a file of a format; returns what is in it: names, and counts of tensors, values and nonzeros.

    kind: one of `SUFFIXES`. like: see `write_detectron2`. Raises InputError where the format does not
    suit what was found, or `path` is unwritable.
    """
    if isinstance(found, Mask):
        save_mask(path, found)
        about = {"model": found.model, "pretrained": found.pretrained, "sparsity": found.sparsity}
        return {**about, "tensors": len(found.tensors), "values": found.total, "nonzero": found.kept}
    if kind == "sparse":
        if not isinstance(found, Checkpoint):
            raise InputError(
                "--format sparse: a sparse checkpoint is of a framework, this is a CLIP alone; write its mask "
                "(--format mask), or the whole of it (--format dense)"
            )
        save_checkpoint(path, found)
        state = found.state
    else:
        state = write_dense(path, found) if kind == "dense" else write_detectron2(path, found, like)
    clip = found.clip if isinstance(found, Checkpoint) else found.clip.describe()
    return {
        **({"framework": found.framework} if isinstance(found, Checkpoint) else {}),
        "model": clip["model"],
        "pretrained": clip["pretrained"],
        "sparsity": None if found.mask is None else found.mask.sparsity,
        "tensors": len(state),
        "values": sum(value.numel() for value in state.values()),
        "nonzero": sum(int(value.count_nonzero()) for value in state.values()),
    }


def write_dense(path: Path | str, source: Checkpoint | PlainClip) -> dict[str, Tensor]:
    """Write the whole state under its own names; returns what was written.

    A CLIP's file loads as open_clip's `pretrained`, a framework's into the framework. InputError where
    `path` is unwritable.
    """
    if isinstance(source, PlainClip):
        state, metadata = source.state, {**source.metadata(), "format": WEIGHTS_FORMAT, "created_by": CREATED_BY}
    else:
        state, metadata = dict(source.state), {}
    return _write(path, state, {**metadata, ABOUT: describe_source(source, OURS)}, "state_dict")


def write_detectron2(path: Path | str, source: Checkpoint | PlainClip, like: str | None = None) -> dict[str, Tensor]:
    """Write the state under the names of a framework's published code; returns what was written.

    like: whose names a CLIP gets (default fcclip), or the trunk of a framework that has no published names;
    the text encoder goes along where the published model holds it. Raises InputError where it is needed and
    missing, unknown, or not the framework's own; and where `path` is unwritable.
    """
    if isinstance(source, PlainClip):
        names = like or "fcclip"
        state = _encoder_like(names, source.encoder)
        if names == "fcclip":
            text = {key: value for key, value in source.state.items() if not key.startswith(VISUAL)}
            state.update(to_upstream(names)({TEXT_ENCODER + key: value for key, value in text.items()}))
    elif source.framework in _UPSTREAM:
        names = source.framework
        if like not in (None, names):
            raise InputError(f"--like {like}: this is a {names}, and has its own names; leave --like out")
        text = {TEXT_ENCODER + key: value for key, value in (source.text_encoder or {}).items()}
        state = to_upstream(names)({**source.state, **text})
    else:
        if like is None:
            raise InputError(
                f"--format detectron2: {source.framework} has no published names; --like NAME writes its trunk alone "
                f"under those of {' or '.join(upstream_names())}"
            )
        names = like
        keys = [key for key in source.state if key.startswith(BACKBONE)]
        state = _encoder_like(names, {key.removeprefix(BACKBONE): source.state[key] for key in keys})
    return _write(path, state, {ABOUT: describe_source(source, names)}, "model")


def _renamer(framework: str, which: int) -> Renamer:
    if framework not in _UPSTREAM:
        raise InputError(f"{framework}: no published names are known for it; they are for {', '.join(_UPSTREAM)}")
    module = importlib.import_module(_UPSTREAM[framework][0])
    return getattr(module, _UPSTREAM[framework][which])


def _encoder_like(names: str, encoder: Mapping[str, Tensor]) -> dict[str, Tensor]:
    if names not in _ENCODER_PREFIX:
        raise InputError(f"--like {names}: unknown; use {' or '.join(upstream_names())}")
    return {_ENCODER_PREFIX[names] + key: value for key, value in encoder.items()}


def _write(path: Path | str, state: dict[str, Tensor], texts: Mapping[str, str], entry: str) -> dict[str, Tensor]:
    """Write tensors and texts: a torch file with the state under `entry`, or safetensors with metadata."""
    state = {key: value.detach().cpu().contiguous() for key, value in state.items()}
    if Path(path).suffix not in TORCH_SUFFIXES:
        files.write_tensors(path, state, texts)
        return state
    # A tensor of its own each: torch.save writes the storage behind a view whole.
    ordered = OrderedDict((key, value.clone()) for key, value in state.items())
    if entry == "model":
        ordered._metadata = _VERSIONS  # type: ignore[attr-defined]
    # An open file, not its name: the name of the temporary file would end up in the bytes.
    with files.atomic_path(path) as temporary, temporary.open("wb") as handle:
        torch.save({entry: ordered, **texts}, handle)
    return state
