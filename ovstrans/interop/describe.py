"""What a tensor file is, from what it was made, and whether it is intact.

Structure is always checked in full by the file's reader, and so is that no value is NaN or infinite.
Verifying recomputes what the file claims: hashes of the weights it came from where those are at hand
(nothing is downloaded), the fit of its tensors to the named architecture, zeros under the mask.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ovstrans import files
from ovstrans.checkpoints import file as checkpoint_file
from ovstrans.checkpoints.file import BACKBONE
from ovstrans.clip.weights import VISUAL, read_state_dict, require_finite, weights_sha256
from ovstrans.errors import CheckFailed, InputError
from ovstrans.masks import file as mask_file
from ovstrans.masks.file import parse_object
from ovstrans.masks.mask import Mask, density_rows, require_shapes

WEIGHTS_FORMAT = "ovstrans.weights/1"
"""`format` of the pruned weights that `prune` writes beside a mask."""

_UNIT = 1e-2  # half precision rounds the norm of a unit row by less


@dataclass
class Description:
    """kind: what the file is.  facts: name to plain value.  columns, rows: a table, of layers where it is of a model.
    checks: what was found sound, in words."""

    path: str
    kind: str
    facts: dict[str, Any]
    columns: list[str] = field(default_factory=list)
    rows: list[list[Any]] = field(default_factory=list)
    checks: list[str] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        """Plain values; each row becomes an object."""
        table = [dict(zip(self.columns, row, strict=True)) for row in self.rows]
        head = {"path": self.path, "kind": self.kind, "intact": True, "checks": self.checks}
        return {**head, **self.facts, "rows": table}


def describe_tensors(path: Path | str, *, verify: bool = False) -> Description:
    """Describe a mask, a sparse checkpoint, pruned weights or anyone's weights.

    Raises InputError where the file is broken or holds nothing known, CheckFailed where `verify` finds that
    a claim of the file does not hold.
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        return _describe_weights(path, verify)
    found = files.read_metadata(path).get("format", "")
    if found == mask_file.FORMAT:
        return _describe_mask(path, verify)
    if found == checkpoint_file.FORMAT:
        return _describe_checkpoint(path, verify)
    if found.startswith("ovstrans.") and found != WEIGHTS_FORMAT:
        raise InputError(f"{path}: its format {found!r} is not known to this version of ovstrans; update it")
    return _describe_weights(path, verify)


def at_hand(model: str, pretrained: str) -> str | None:
    """Hash of the image encoder of a CLIP that can be had without a download; None otherwise."""
    from ovstrans.clip.load import BUNDLED, load_clip

    if pretrained != BUNDLED and not (pretrained and Path(pretrained).is_file()):
        return None
    try:
        return load_clip(model, pretrained).weights_sha256
    except InputError:
        return None


def _describe_mask(path: Path, verify: bool) -> Description:
    mask = mask_file.load_mask(path)
    facts = {**_made_from(mask), "tensors": len(mask.tensors), **_counts(mask), "recipe": mask.recipe}
    checks = ["structure", "bits agree with shapes and sparsity"]
    if verify:
        known = require_shapes(mask.shapes, model=mask.model, where=str(path))
        checks.append(f"shapes are those of {mask.model}" if known else "model not known here: shapes not checked")
        checks.append(_origin(path, mask.model, mask.pretrained, mask.weights_sha256))
    return Description(str(path), "mask", facts, *_table(mask), checks)


def _describe_checkpoint(path: Path, verify: bool) -> Description:
    checkpoint = checkpoint_file.load_checkpoint(path)
    mask, clip, state = checkpoint.mask, checkpoint.clip, checkpoint.state
    require_finite({**state, **(checkpoint.text_encoder or {})}, str(path))
    facts: dict[str, Any] = {
        "framework": checkpoint.framework,
        "options": checkpoint.options,
        "vocabulary": f"{checkpoint.vocabulary.name} ({len(checkpoint.vocabulary)} classes)",
        "clip": {key: clip[key] for key in ("model", "pretrained", "weights_sha256")},
        "tensors": len(state),
        "values": sum(value.numel() for value in state.values()),
        "nonzero": sum(int(value.count_nonzero()) for value in state.values()),
        "text_rows": len(checkpoint.text_embeddings),
        "text_tower": checkpoint.text_encoder is not None,
        "mask": None,
    }
    if mask is not None:
        facts["mask"] = _made_from(mask)
        facts.update(_counts(mask))
    facts.update(recipe=checkpoint.recipe, provenance=checkpoint.provenance, created_by=checkpoint.created_by)
    checks = ["structure", "values agree with bitmasks", "no NaN or infinity"]
    if verify:
        if mask is not None:
            broken = mask.violations(state)
            if broken:
                raise CheckFailed(f"{path}: {broken[0][1]} masked weights of {broken[0][0]} are not zero")
            checks.append("masked weights are zero")
        norms = checkpoint.text_embeddings.float().norm(dim=1)
        if len(norms) and float((norms - 1).abs().max()) > _UNIT:
            raise CheckFailed(f"{path}: {checkpoint_file.EMBEDDINGS} has rows that are not of unit length")
        checks.append("text embeddings are of unit length")
        checks.append(_origin(path, clip["model"], clip["pretrained"], clip["weights_sha256"]))
        encoder = {key.removeprefix(BACKBONE): value for key, value in state.items() if key.startswith(BACKBONE)}
        facts["backbone_sha256"] = weights_sha256(encoder)
    columns, rows = _table(mask) if mask is not None else ([], [])
    return Description(str(path), "sparse checkpoint", facts, columns, rows, checks)


def _describe_weights(path: Path, verify: bool) -> Description:
    state = read_state_dict(path)
    require_finite(state, str(path))
    metadata = files.read_metadata(path) if path.suffix == ".safetensors" else {}
    ours = metadata.get("format") == WEIGHTS_FORMAT
    encoder = {key.removeprefix(VISUAL): value for key, value in state.items() if key.startswith(VISUAL)}
    whole = bool(encoder)
    encoder = encoder or (dict(state) if "conv1.weight" in state else {})
    holds = "a whole CLIP" if whole else "an image encoder" if encoder else "tensors of an unknown model"
    kinds = Counter(str(value.dtype).removeprefix("torch.") for value in state.values())
    facts: dict[str, Any] = {
        **{key: text for key, text in metadata.items() if key not in ("format", "recipe")},
        "holds": holds,
        "tensors": len(state),
        "types": dict(kinds),
        "values": sum(value.numel() for value in state.values()),
        "nonzero": sum(int(value.count_nonzero()) for value in state.values()),
    }
    if ours and "recipe" in metadata:
        facts["recipe"] = parse_object(metadata["recipe"], f"{path}: recipe")
    checks = ["structure", "no NaN or infinity"]
    if verify:
        if encoder:
            facts["image_tower_sha256"] = weights_sha256(encoder)
        if ours:
            checks += _verify_pruned(path, metadata, state)
    rows = [[key, *_weight_row(value)] for key, value in encoder.items() if value.dim() >= 2]
    kind = "pruned weights" if ours else "weights"
    return Description(str(path), kind, facts, ["tensor", "shape", "nonzero", "weights", "density"], rows, checks)


def _verify_pruned(path: Path, metadata: Mapping[str, str], state: Mapping[str, Tensor]) -> list[str]:
    """Checks of pruned weights against the mask that lies beside them, and against their origin."""
    checks = [_origin(path, *(metadata.get(key, "") for key in ("model", "pretrained", "weights_sha256")))]
    name = Path(metadata.get("mask", "")).name
    beside = path.with_name(name) if name else None
    if beside is None or not beside.is_file():
        return [*checks, "their mask is not beside them: zeros not checked"]
    broken = mask_file.load_mask(beside).violations(state)
    if broken:
        raise CheckFailed(f"{path}: {broken[0][1]} weights of {broken[0][0]} are not zero under {beside}")
    return [*checks, f"zero under {beside.name}"]


def _origin(path: Path, model: str, pretrained: str, sha256: str) -> str:
    """Compare a recorded hash with the weights it names; returns what came of it."""
    if not sha256:
        return "no hash of the weights it was made from"
    here = at_hand(model, pretrained)
    if here is None:
        return f"weights it was made from ({model} {pretrained or 'at random'}) not at hand: hash not checked"
    if here != sha256:
        raise CheckFailed(
            f"{path}: made from weights {sha256[:12]}, but {model} {pretrained} here is {here[:12]}; "
            "the weights have changed since"
        )
    return f"hash is that of {model} {pretrained} here"


def _made_from(mask: Mask) -> dict[str, Any]:
    keys = ("model", "pretrained", "weights_sha256", "method", "created_by")
    return {key: getattr(mask, key) for key in keys}


def _counts(mask: Mask) -> dict[str, Any]:
    return {"sparsity": mask.sparsity, "kept": mask.kept, "total": mask.total}


def _table(mask: Mask) -> tuple[list[str], list[list[Any]]]:
    rows = [[name, list(shape), *numbers] for name, shape, *numbers in density_rows(mask)]
    return ["layer", "shape", "kept", "weights", "density"], rows


def _weight_row(value: Tensor) -> list[Any]:
    nonzero = int(torch.count_nonzero(value))
    return [list(value.shape), nonzero, value.numel(), nonzero / max(1, value.numel())]
