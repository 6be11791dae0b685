"""Describing tensor files: what they are, from what they were made, and whether they are intact.

The reader of a file always checks its structure in full, and that no value is NaN or infinite. Verifying recomputes
what the file claims: hashes of the weights it came from if these are at hand (nothing is downloaded), the fit of its
tensors to the named architecture, zeros under the mask.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sized
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ovstrans import files
from ovstrans.checkpoints import file as checkpoint_file
from ovstrans.checkpoints.file import BACKBONE, Checkpoint
from ovstrans.checkpoints.quantize import Quantized
from ovstrans.clip.layers import weight_name
from ovstrans.clip.weights import VISUAL, read_weight_file, require_finite, weights_sha256
from ovstrans.errors import CheckFailed, InputError, counted, printable, shorten
from ovstrans.interop.verify import check_content, check_frozen, local_clip
from ovstrans.masks import file as mask_file
from ovstrans.masks.file import WEIGHTS_FORMAT, parse_object
from ovstrans.masks.granularity import make_groups
from ovstrans.masks.mask import Mask, density_rows, require_shapes
from ovstrans.recipes.schema import GRANULARITIES
from ovstrans.runtime.choose import describe_runtime

_UNIT_TOLERANCE = 1e-2
"""How far the norm of a unit row may be off; half precision rounds it by less."""

_REPR_WIDTH = 120
_MOST_ENTRIES = 100
_LONGEST_FACT = 4000
"""Entries of a list and characters of a fact that are shown; a file may have any number of them."""


@dataclass(eq=False)
class FileDescription:
    """Description of a file: its kind, its origin, and the checks that it passed.

    Attributes:
        path: The file, or the folder of a run.
        kind: What it is: "mask", "sparse checkpoint", "pruned weights", "weights", "alpha file", "report", ...
        facts: Facts by name, as plain values.
        columns: Columns of the table, of layers for most files.
        rows: Rows of the table, as plain values.
        checks: What was found sound, in words.
        parts: Of the folder of a run, the descriptions of its checkpoint and its freeze plan.
    """

    path: str
    kind: str
    facts: dict[str, Any]
    columns: list[str] = field(default_factory=list)
    rows: list[list[Any]] = field(default_factory=list)
    checks: list[str] = field(default_factory=list)
    parts: list[FileDescription] = field(default_factory=list)

    def __repr__(self) -> str:
        lines = [line if len(line) <= _REPR_WIDTH else line[: _REPR_WIDTH - 4] + " ..." for line in self._lines()]
        if self.rows:
            lines.append(f"  and a table of {counted(len(self.rows), 'row')}: {', '.join(self.columns)}")
        return "\n".join([*lines, *map(repr, self.parts)])

    def __str__(self) -> str:
        return "\n".join(self._lines())

    def flatten(self) -> Iterator[FileDescription]:
        """Yield the description itself, then its parts."""
        yield self
        for part in self.parts:
            yield from part.flatten()

    def to_json(self) -> dict[str, Any]:
        """Return plain values, without the parts; each row of the table becomes an object."""
        table = [dict(zip(self.columns, row, strict=True)) for row in self.rows]
        head = {"path": self.path, "kind": self.kind, "intact": True, "checks": self.checks}
        return {**head, **self.facts, "rows": table}

    def _lines(self) -> list[str]:
        facts = {_shown(label).replace("_", " "): value for label, value in self.facts.items()}
        facts["intact"] = "; ".join(self.checks)
        width = max(len(label) for label in facts)
        lines = [f"  {label:<{width}}  {format_value(value)}" for label, value in facts.items()]
        return [f"{printable(self.path)}: {printable(self.kind)}", *lines]


def format_value(value: Any) -> str:
    """Return a plain value as text for people: `1,234`, `0.5`, `yes`, `a, b`, `key value, key value`."""
    if isinstance(value, dict):
        return _join(
            [f"{_shown(key)} {format_value(entry)}" for key, entry in islice(value.items(), _MOST_ENTRIES)], value
        )
    if isinstance(value, list):
        return _join([format_value(entry) for entry in value[:_MOST_ENTRIES]], value)
    if isinstance(value, bool) or value is None or value == "":
        return "yes" if value is True else "no" if value is False else "-"
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.6g}" if isinstance(value, float) else _shown(value)


def _shown(value: Any) -> str:
    """Return text of a file as it may be shown: escaped and not too long."""
    return shorten(printable(str(value)))


def _join(parts: list[str], value: Sized) -> str:
    more = f", ... ({len(value):,} entries)" if len(value) > len(parts) else ""
    return shorten(", ".join(parts) + more, _LONGEST_FACT) or "-"


def describe_tensors(path: Path | str, *, verify: bool = False) -> FileDescription:
    """Describe a mask, a sparse checkpoint, pruned weights or weights of any model.

    Args:
        path: The file.
        verify: Recompute what the file claims.

    Raises:
        InputError: If the file is broken or holds nothing known.
        CheckFailed: If a claim of the file does not hold.
    """
    path = Path(path)
    found = files.read_format(path)
    describe = {
        mask_file.FORMAT: _describe_mask,
        **dict.fromkeys(checkpoint_file.FORMATS, _describe_checkpoint),
    }.get(found)
    if describe is None and found.startswith("ovstrans.") and found != WEIGHTS_FORMAT:
        raise InputError(f"{path}: its format {found!r} is not known to this version of ovstrans; update it")
    content = check_content(path, found) if verify else ""
    description = (describe or _describe_weights)(path, verify)
    if content:
        description.checks.append(content)
    return description


def local_weights_sha256(model: str, pretrained: str) -> str | None:
    """Return the hash of a CLIP's image encoder if its weights are at hand without a download, else None."""
    clip = local_clip(model, pretrained)
    return None if clip is None else clip.weights_sha256


def _describe_mask(path: Path, verify: bool) -> FileDescription:
    mask = mask_file.load_mask(path)
    facts = {**_origin_facts(mask), "tensors": len(mask.tensors), **_counts(mask), "recipe": mask.recipe}
    checks = ["structure", "bits agree with shapes and sparsity"]
    if verify:
        known = require_shapes(mask.shapes, model=mask.model, where=str(path))
        checks.append(f"shapes are those of {mask.model}" if known else "model not known here: shapes not checked")
        checks.append(_check_origin(path, mask.model, mask.pretrained, mask.weights_sha256))
        checks += _check_granularity(path, mask)
    return FileDescription(str(path), "mask", facts, *_density_table(mask), checks)


def _describe_checkpoint(path: Path, verify: bool) -> FileDescription:
    checkpoint = checkpoint_file.load_checkpoint(path)
    mask, clip, state = checkpoint.mask, checkpoint.clip, checkpoint.state
    require_finite({**state, **(checkpoint.text_encoder or {})}, str(path))
    facts: dict[str, Any] = {
        "framework": checkpoint.framework,
        "options": checkpoint.options,
        "vocabulary": f"{checkpoint.vocabulary.name} ({counted(len(checkpoint.vocabulary), 'class', 'classes')})",
        "clip": {key: clip[key] for key in ("model", "pretrained", "weights_sha256")},
        "tensors": len(state),
        "values": sum(value.numel() for value in state.values()),
        "nonzero": sum(int(value.count_nonzero()) for value in state.values()),
        "text_rows": len(checkpoint.text_embeddings),
        "text_encoder": checkpoint.text_encoder is not None,
        "mask": None,
    }
    encoder = {key.removeprefix(BACKBONE): value for key, value in state.items() if key.startswith(BACKBONE)}
    if mask is not None:
        facts["mask"] = _origin_facts(mask)
        facts.update(_counts(mask))
    facts["stored"] = _describe_storage(path, state, checkpoint.quantized)
    facts["cpu_runtime"] = describe_runtime(encoder)
    facts.update(recipe=checkpoint.recipe, provenance=checkpoint.provenance, created_by=checkpoint.created_by)
    checks = ["structure", "values agree with bitmasks", "no NaN or infinity"]
    if verify:
        if mask is not None:
            broken = mask.violations(state)
            if broken:
                raise CheckFailed(f"{path}: {broken[0][1]} masked weights of {broken[0][0]} are not zero")
            checks.append("masked weights are zero")
        norms = checkpoint.text_embeddings.float().norm(dim=1)
        if len(norms) and float((norms - 1).abs().max()) > _UNIT_TOLERANCE:
            raise CheckFailed(f"{path}: {checkpoint_file.EMBEDDINGS} has rows that are not of unit length")
        checks.append("text embeddings are of unit length")
        checks.append(_check_origin(path, clip["model"], clip["pretrained"], clip["weights_sha256"]))
        checks += check_frozen(path, checkpoint)
        facts["backbone_sha256"] = weights_sha256(encoder)
    columns, rows = _density_table(mask) if mask is not None else ([], [])
    if checkpoint.quantized:
        columns, rows = _quantized_table(checkpoint, columns, rows)
    return FileDescription(str(path), "sparse checkpoint", facts, columns, rows, checks)


def _describe_weights(path: Path, verify: bool) -> FileDescription:
    file = read_weight_file(path)
    state, metadata = file.state, file.metadata
    require_finite(state, str(path))
    ours = metadata.get("format") == WEIGHTS_FORMAT
    encoder = {key.removeprefix(VISUAL): value for key, value in state.items() if key.startswith(VISUAL)}
    whole = bool(encoder)
    encoder = encoder or (dict(state) if "conv1.weight" in state else {})
    holds = "a whole CLIP" if whole else "an image encoder" if encoder else "tensors of an unknown model"
    types = Counter(str(value.dtype).removeprefix("torch.") for value in state.values())
    facts: dict[str, Any] = {
        **{key: text for key, text in metadata.items() if key not in ("format", "recipe")},
        "holds": holds,
        "tensors": len(state),
        "types": dict(types),
        "values": sum(value.numel() for value in state.values()),
        "nonzero": sum(int(value.count_nonzero()) for value in state.values()),
    }
    if ours and "recipe" in metadata:
        facts["recipe"] = parse_object(metadata["recipe"], f"{path}: recipe")
    checks = ["structure", "no NaN or infinity"]
    if verify:
        if encoder:
            facts["encoder_sha256"] = weights_sha256(encoder)
        if ours:
            checks += _verify_pruned(path, metadata, state)
    rows = [[key, *_weight_row(value)] for key, value in encoder.items() if value.dim() >= 2]
    kind = "pruned weights" if ours else "weights"
    return FileDescription(str(path), kind, facts, ["tensor", "shape", "nonzero", "weights", "density"], rows, checks)


def _verify_pruned(path: Path, metadata: Mapping[str, str], state: Mapping[str, Tensor]) -> list[str]:
    """Check pruned weights against the mask beside them and against their origin; return what was found sound."""
    checks = [_check_origin(path, *(metadata.get(key, "") for key in ("model", "pretrained", "weights_sha256")))]
    name = Path(metadata.get("mask", "")).name
    beside = path.with_name(name) if name else None
    if beside is None or not beside.is_file():
        return [*checks, "their mask is not beside them: zeros not checked"]
    broken = mask_file.load_mask(beside).violations(state)
    if broken:
        raise CheckFailed(f"{path}: {broken[0][1]} weights of {broken[0][0]} are not zero under {beside}")
    return [*checks, f"zero under {beside.name}"]


def _check_origin(path: Path, model: str, pretrained: str, sha256: str) -> str:
    """Compare a recorded hash with the weights it names, and return the outcome in words."""
    if not sha256:
        return "no hash of the weights it was made from"
    here = local_weights_sha256(model, pretrained)
    if here is None:
        return f"weights it was made from ({model} {pretrained or 'at random'}) not at hand: hash not checked"
    if here != sha256:
        raise CheckFailed(
            f"{path}: made from weights {sha256[:12]}, but {model} {pretrained} here is {here[:12]}; "
            "the weights have changed since"
        )
    return f"hash is that of {model} {pretrained} here"


def _check_granularity(path: Path, mask: Mask) -> list[str]:
    """Compare a mask with the granularity that it records, and return the outcome in words."""
    if mask.granularity in ("", "element"):
        return []
    if mask.granularity not in GRANULARITIES:
        return [f"granularity {mask.granularity} not known here: not checked"]
    for name, groups in make_groups(mask.tensors, mask.granularity).items():
        if not groups.fits(mask.tensors[name]):
            raise CheckFailed(f"{path}: {name} is not pruned in {mask.granularity}, which the mask records")
    return [f"every layer is pruned in {mask.granularity}"]


def _origin_facts(mask: Mask) -> dict[str, Any]:
    facts = {key: getattr(mask, key) for key in ("model", "pretrained", "weights_sha256", "method")}
    if mask.granularity:
        facts |= {"granularity": mask.granularity, "allocation": mask.allocation}
    macs = mask.recipe.get("macs")
    if isinstance(macs, dict):
        facts["macs"] = macs
    facts["created_by"] = mask.created_by
    if mask.severed:
        facts["serves"] = f"deop with severed blocks {mask.severed} only"
    return facts


def _counts(mask: Mask) -> dict[str, Any]:
    return {"sparsity": mask.sparsity, "kept": mask.kept, "total": mask.total}


def _density_table(mask: Mask) -> tuple[list[str], list[list[Any]]]:
    rows = [[name, list(shape), *numbers] for name, shape, *numbers in density_rows(mask)]
    return ["layer", "shape", "kept", "weights", "density"], rows


def _describe_storage(path: Path, state: Mapping[str, Tensor], quantized: Mapping[str, Quantized]) -> dict[str, Any]:
    """Return the types that weights are stored in, the errors of int8, and how large the file is."""
    types = Counter(
        "int8" if key in quantized else str(value.dtype).removeprefix("torch.")
        for key, value in state.items()
        if value.dim() >= 2 and value.is_floating_point()
    )
    facts: dict[str, Any] = {"weights": ", ".join(sorted(types)), "bytes": path.stat().st_size}
    coding = parse_object(files.read_metadata(path).get(checkpoint_file.CODING, "{}"), str(path))
    facts["compressed"] = "packed" in coding
    if quantized:
        name, worst = max(quantized.items(), key=lambda item: item[1].largest)
        mean = sum(one.mean * state[key].numel() for key, one in quantized.items())
        facts["mean_error"] = mean / max(1, sum(state[key].numel() for key in quantized))
        facts["largest_error"] = worst.largest
        facts["in"] = name.removesuffix(".weight")
    return facts


def _quantized_table(
    checkpoint: Checkpoint, columns: list[str], rows: list[list[Any]]
) -> tuple[list[str], list[list[Any]]]:
    """Add the errors of the layers stored as int8 to the table, and rows for those that are not masked."""
    state, rest = checkpoint.state, dict(checkpoint.quantized)
    found = []
    for row in rows:
        one = rest.pop(BACKBONE + row[0], rest.pop(BACKBONE + weight_name(row[0]), None))
        found.append([*row, *((one.largest, one.mean) if one else (None, None))])
    for key, one in rest.items():
        shape, nonzero, total, density = _weight_row(state[key])
        found.append([key.removesuffix(".weight"), shape, nonzero, total, density, one.largest, one.mean])
    columns = columns or ["layer", "shape", "kept", "weights", "density"]
    return [*columns, "largest error", "mean error"], found


def _weight_row(value: Tensor) -> list[Any]:
    nonzero = int(torch.count_nonzero(value))
    return [list(value.shape), nonzero, value.numel(), nonzero / max(1, value.numel())]
